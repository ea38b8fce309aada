"""Weights in few bits: formats, rounding, learned scales."""
