"""A function that shows for how long its process lives."""

import time
from pathlib import Path


def count_for_ever(file):
    """Write a growing number to a file."""
    number = 0
    while True:
        number += 1
        Path(file).write_text(str(number))
        time.sleep(0.02)
