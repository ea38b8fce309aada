"""Accuracy of a model on questions with known answers, through any runtime."""
