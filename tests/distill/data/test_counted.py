"""What counts in which unit."""

import pytest

from distill.data.counted import UNITS, Counted


def test_units_of_a_step():
    counted = Counted(10, 4, 2, 2, 1) + Counted(7) + Counted(0, 0, 1, 0, 1)
    counted += Counted(9, rollouts=9, written=2)
    wanted = {
        "all": 26, "chosen": 22, "rejected": 4, "judged": 3, "answers": 4, "data": 13,
        "rollouts": 9, "written": 2,
    }  # fmt: skip
    assert {unit: counted.of(unit) for unit in UNITS} == wanted
    assert counted.scales(2.0) == {unit: 2 / number for unit, number in wanted.items()}


def test_a_unit_that_counts_nothing_divides_by_one():
    assert Counted(5).scales(1.0)["judged"] == 1.0


def test_an_unknown_unit_is_an_error():
    with pytest.raises(ValueError, match="unknown unit 'pairs'; units are chosen, rejected"):
        Counted(1).of("pairs")
