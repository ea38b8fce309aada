"""Which targets and cuts a recipe may write, and which are refused."""

import pytest
from pydantic import ValidationError

from students.config import StudentConfig
from students.pruning.target import TargetConfig, read_amount
from students.pruning.width import WidthConfig


@pytest.mark.parametrize(
    ("kind", "amount", "number", "share"),
    [
        ("parameters", "60%", 0.6, True),
        ("parameters", "80M", 80e6, False),
        ("parameters", "1.5b", 1.5e9, False),
        ("parameters", 100_000_000, 1e8, False),
        ("bytes", "200 MB", 2e8, False),
        ("bytes", "37.5%", 0.375, True),
        ("latency", "12ms", 0.012, False),
        ("latency", 0.4, 0.4, True),
        ("parameters", 0.6, 0.6, True),
        ("parameters", 8e7, 8e7, False),
    ],
)
def test_amounts(kind, amount, number, share):
    assert read_amount(kind, amount) == (pytest.approx(number), share)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({}, "give one of `parameters`, `bytes`, `latency`; found none"),
        ({"parameters": "60%", "bytes": "50%"}, "found parameters and bytes"),
        ({"parameters": "60MB"}, "write a share .60%. or a number .80M."),
        ({"latency": "60"}, "write a share .60%. or a number .12ms."),
        ({"parameters": "about half"}, "is not a target"),
        ({"parameters": "160%"}, "between 0% and 100%"),
        ({"parameters": "0%"}, "between 0% and 100%"),
        ({"parameters": "60%", "form": "nf4"}, "`form` is only used with `bytes`"),
        ({"parameters": "60%", "axes": []}, "at least 1"),
        ({"parameters": 0.0}, "it must be above 0"),
        (
            {"parameters": "60%", "axes": ["hidden"], "calibration_tokens": 64},
            "`calibration_tokens` has no effect where `axes` does not name `layers`",
        ),
    ],
)
def test_an_invalid_target_is_refused(section, says):
    with pytest.raises(ValidationError, match=says):
        TargetConfig.model_validate(section)


@pytest.mark.parametrize("key", ["layers", "heads", "feed_forward", "hidden"])
def test_a_shape_is_searched_or_given(key):
    with pytest.raises(
        ValidationError, match=f"`target` searches for the shape that `{key}` gives"
    ):
        StudentConfig.model_validate({"target": {"parameters": "60%"}, key: {"keep": 2}})


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"target": {"parameters": 0.6, "finalists": 2}}, "`target.finalists` has no effect with"),
        ({"layers": {"keep": 2}, "calibration_tokens": 64}, "blocks: `layers.calibration_tokens`"),
        ({"heads": {"keep": 2, "by": "even"}, "calibration_tokens": 64}, "no effect where no head"),
        ({"calibration_tokens": 64}, "no effect where no heads"),
        ({"layers": {"keep": [0], "by": "even"}}, "`by` has no effect where `keep` lists"),
        ({"layers": {"keep": [0], "calibration_tokens": 9}}, "where `keep` lists the blocks"),
        ({"heads": {"keep": "three"}}, "keep a number or a share"),
        ({"heads": {"keep": "175%"}}, "between 0% and 100%"),
    ],
)
def test_a_setting_without_effect_or_meaning_is_refused_in_one_sentence(section, says):
    with pytest.raises(ValidationError, match=says) as error:
        StudentConfig.model_validate(section)
    assert error.value.error_count() == 1


def test_a_share_is_written_either_way():
    wanted = [{"target": {"parameters": share}, "refit": True} for share in ("60%", 0.6)]
    assert StudentConfig.model_validate(wanted[0]) == StudentConfig.model_validate(wanted[1])
    assert TargetConfig(parameters=0.6).words == "`student.target.parameters: 60%`"
    kept = [WidthConfig.model_validate({"keep": share}) for share in ("75%", 0.75)]
    assert kept[0] == kept[1]
