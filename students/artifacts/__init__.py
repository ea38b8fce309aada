"""Artifacts: importing the package enrols them all."""

import students.artifacts.adapter
import students.artifacts.checkpoint
import students.artifacts.gguf.artifacts
import students.artifacts.onnx.graph
import students.artifacts.torchao_int8
