"""A model writes answers: who writes, what was written, and what is still to be asked."""
