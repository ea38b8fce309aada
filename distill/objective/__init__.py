"""Losses, terms and the objective that is learned."""
