"""Answers that a model wrote to the prompts of the training part, and which are learned from."""
