"""Artifacts: importing the package enrols them all."""

import students.artifacts.adapter  # noqa: F401
import students.artifacts.checkpoint  # noqa: F401
import students.artifacts.gguf.artifacts  # noqa: F401
import students.artifacts.onnx.graph  # noqa: F401
import students.artifacts.torchao_int8  # noqa: F401
