"""Pruning: cut a smaller model out of a larger one along any axis, by measured importance."""
