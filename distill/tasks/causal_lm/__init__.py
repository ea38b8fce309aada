"""Task `causal-lm`."""
