"""How signals are stored: importing the package registers every codec."""

import teachers.codecs.classes
import teachers.codecs.final_hidden
import teachers.codecs.hybrid
import teachers.codecs.label
import teachers.codecs.layer_states
import teachers.codecs.nucleus
import teachers.codecs.pca_basis
import teachers.codecs.sampled
import teachers.codecs.topk
import teachers.codecs.vectors
