"""Pruning: a smaller model cut out of a larger one along every axis, by measured importance."""
