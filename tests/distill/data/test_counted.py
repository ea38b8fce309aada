"""What counts in which unit."""

import pytest

from distill.data.counted import Counted


def test_units_of_a_step():
    counted = Counted(10, 4, 2) + Counted(7)
    assert [counted.of(unit) for unit in ("all", "chosen", "rejected", "judged")] == [17, 13, 4, 2]
    assert counted.scales(2.0) == {
        "all": 2 / 17, "chosen": 2 / 13, "rejected": 2 / 4, "judged": 2 / 2
    }  # fmt: skip


def test_a_unit_that_counts_nothing_divides_by_one():
    assert Counted(5).scales(1.0)["judged"] == 1.0


def test_an_unknown_unit_is_an_error():
    with pytest.raises(ValueError, match="unknown unit 'pairs'; units are chosen, rejected"):
        Counted(1).of("pairs")
