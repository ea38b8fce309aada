"""Prompts in place of training: instructions, demonstrations, calibration, and their search."""
