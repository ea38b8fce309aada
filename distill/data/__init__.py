"""From rows to examples to batches."""
