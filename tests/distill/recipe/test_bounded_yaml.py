"""A recipe of any text is read or refused at once, in one line."""

import pytest

from attar.errors import RecipeError
from distill.recipe import bounded_yaml
from distill.recipe.parse import overridden, parse_yaml
from distill.run.load import check_recipe


def aliases(first, item):
    """Nine levels of ten aliases each, on one value."""
    lines = [f"a0: &a0 {first}"]
    for i in range(1, 10):
        lines.append(f"a{i}: &a{i} {item % ', '.join([f'*a{i - 1}'] * 10)}")
    return "\n".join(lines)


HOSTILE = {
    "aliases in lists": (aliases("[x]", "[%s]"), "more than .* values"),
    "aliases merged": (aliases("{x: 1}", "{<<: [%s]}"), "more than .* values"),
    "an alias of itself": ("a: &a [*a]", "more than .* values"),
    "nested lists": ("data: " + "[" * 5000 + "]" * 5000, "levels deep"),
    "nested maps": ("{a: " * 5000 + "}" * 5000, "levels deep"),
    "a long number": ("seed: " + "9" * 5001, "5,001 digits.*line 1"),
    "a long hexadecimal number": ("seed: 0x" + "f" * 5001, "digits"),
    "a number beyond 64 bits": ("seed: 99999999999999999999", "20 digits"),
    "no date": ("x: 2026-13-45", "month"),
    "a key that is a list": ("{[1]: 2}", "unhashable"),
    "not base64": ("x: !!binary a", "base64"),
    "a NUL": ("x: \x00", "unacceptable character"),
    "an object": ("x: !!python/object:os.system {}", "could not determine a constructor"),
    "a file that is no recipe": ("x" * (bounded_yaml.MOST_CHARACTERS + 1), "characters"),
}


@pytest.mark.parametrize(("text", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_refused_in_one_line(text, words):
    with pytest.raises(RecipeError, match=words) as caught:
        parse_yaml(text, "recipe.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["train.lr=" + "9" * 5001, "train.lr=" + "[" * 5000])
def test_hostile_overrides_are_refused_in_one_line(text):
    with pytest.raises(RecipeError, match="not valid YAML"):
        overridden({}, (text,))


def test_many_keys_are_read_and_told():
    values = parse_yaml("".join(f"key{i}: 1\n" for i in range(20_000)), "recipe.yaml")
    assert len(values) == 20_000
    with pytest.raises(RecipeError, match="more"):
        check_recipe({"data": {"train": "x"}, "teacher": {"model": "y"}, "student": {}, **values})


def test_an_override_changes_one_of_two_places_that_an_alias_filled():
    text = "train: &a {lr: 1, betas: [1, 2]}\nspecialize: *a"
    values = overridden(parse_yaml(text, "recipe.yaml"), ("train.lr=2", "train.betas.0=3"))
    assert values == {"train": {"lr": 2, "betas": [3, 2]}, "specialize": {"lr": 1, "betas": [1, 2]}}


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    values = {"data": {"train": "x"}, "teacher": {"model": "y"}, "student": {}}
    with pytest.raises(RecipeError, match="`seed`"):
        check_recipe(overridden(values, (f"seed={seed}",)))


def test_a_key_is_a_word():
    """YAML 1.1 takes `on` for true, also as a key; as a value it stays so."""
    found = bounded_yaml.load("terms: [{loss: cross_entropy, on: chosen}]\npacking: on\nno: 1")
    assert found == {
        "terms": [{"loss": "cross_entropy", "on": "chosen"}], "packing": True, "no": 1
    }  # fmt: skip
