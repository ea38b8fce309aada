"""Amounts of memory as users write them."""

import pytest

from attar.errors import RecipeError
from distill.advise.memory_limit import machine_memory, memory_of


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8e9), ("512 MiB", 512 * 2**20), ("1.5G", 1.5e9), ("2Ti", 2 * 2**40), ("10kB", 1e4),
     ("10KB", 1e4), ("4KiB", 4096), ("1000000", 1e6)],
)  # fmt: skip
def test_amounts(text, size):
    assert memory_of(text) == size


@pytest.mark.parametrize("text", ["8XB", "GB", "", "-1GB", "0GB", "8 GB RAM"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(RecipeError, match="is not an amount of memory"):
        memory_of(text)


def test_the_machine_has_some():
    found = machine_memory()
    assert found is None or found > 1e8
