"""Trials: trainings that pause on the way, so that the weak ones need not be trained to the end."""
