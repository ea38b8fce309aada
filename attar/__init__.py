"""The ground floor: what teachers and students both stand on (see docs/adr/0001).

Errors a user reads, files that survive a kill, registries, and the anatomy of a
`transformers` model. Nothing here knows what a signal, a student or a loss is.
"""

__version__ = "0.1.0"
