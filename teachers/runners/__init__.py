"""Runners: a teacher is run over examples or texts to fill a cache."""
