"""Runtimes: importing the package enrols them all."""

import distill.runtimes.hugging_face  # noqa: F401
import distill.runtimes.llama_cpp  # noqa: F401
import distill.runtimes.onnx  # noqa: F401
