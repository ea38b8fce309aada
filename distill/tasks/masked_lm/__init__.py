"""Task `masked-lm`."""
