"""Task `sequence-classification`."""
