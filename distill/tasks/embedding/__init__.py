"""Task `embedding`."""
