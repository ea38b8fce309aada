"""How a teacher is run to fill a cache."""
