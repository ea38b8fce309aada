"""Codecs: importing the package enrols them all."""

import teachers.codecs.classes  # noqa: F401
import teachers.codecs.final_hidden  # noqa: F401
import teachers.codecs.hybrid  # noqa: F401
import teachers.codecs.layer_states  # noqa: F401
import teachers.codecs.nucleus  # noqa: F401
import teachers.codecs.pca_basis  # noqa: F401
import teachers.codecs.sampled  # noqa: F401
import teachers.codecs.topk  # noqa: F401
import teachers.codecs.vectors  # noqa: F401
