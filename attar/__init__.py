"""The ground floor, used by teachers, students and distill (see docs/adr/0001).

It holds the errors that users read, files that survive a kill, registries, and the structure of
`transformers` models. Nothing here knows signals, students or losses.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
