"""Runtimes: importing the package registers them all."""

import distill.runtimes.hugging_face
import distill.runtimes.llama_cpp
import distill.runtimes.onnx
