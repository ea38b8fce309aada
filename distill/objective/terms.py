"""Terms of an objective as the recipe writes them: the loss, its weight, and its signal."""

from __future__ import annotations

from contextlib import suppress
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, create_model, model_validator

from attar.config import Section
from attar.errors import RecipeError
from attar.word_lists import listed
from distill.data.counted import Texts
from distill.objective import policy_gradient, sequence_value  # noqa: F401  they register losses
from distill.objective.losses import LOSSES, Loss
from distill.objective.preference_forms import FORMS
from distill.objective.schedules import Ramp, scheduled
from teachers.codecs.codec import CODECS
from teachers.signals import Tail

TeacherSource = Literal["cache", "online"]  # of the teacher's signals
Source = TeacherSource | Literal["reference"]  # a reference gives log-probabilities of answers


def _known_map(value: Any) -> Any:
    if isinstance(value, str) and value not in ("cut", "even", "last"):
        raise ValueError(
            f"`{value}` is not a layer map; write `cut`, `even`, `last` or [[student, teacher]]"
        )
    return value


LayerPairs = Annotated[
    list[tuple[int, int]] | Literal["cut", "even", "last"] | None, BeforeValidator(_known_map)
]
Relation = Literal["query", "key", "value"]
RELATIONS: list[Relation] = ["query", "key", "value"]
NO_SIGNALS = ("labels", "order", "rollouts")  # what losses read that need no teacher
NON_NEGATIVE = Annotated[float, Field(ge=0)]
POSITIVE = Annotated[float, Field(gt=0)]


class Term(Section):
    """One term: a loss, its weight, and the loss's own parameters."""

    loss: str
    weight: scheduled(NON_NEGATIVE) = 1.0  # type: ignore[valid-type]

    def loss_parameters(self) -> dict[str, Any]:
        """Return the values of the loss's own parameters, by name."""
        return {name: getattr(self, name) for name in LOSSES[self.loss].parameters()}

    def at(self, step: int, total: int) -> Term:
        """Return the term in one step of `total`, from 0, with its schedules as numbers.

        At step `total`, after the last, a schedule has its end value.
        """
        ramps = {name: value.at(step, total) for name, value in self if isinstance(value, Ramp)}
        return self.model_copy(update=ramps) if ramps else self


class PreferenceKeys(Term):
    """What a term on preferences is beside the keys of its form, which the registry gives."""

    if TYPE_CHECKING:
        form: str
        source: Source | None

    @property
    def reads_reference(self) -> bool:
        """Return whether its form compares the student with a reference."""
        return FORMS[self.form].reference

    def loss_parameters(self) -> dict[str, Any]:
        """Return the values of the form's parameters, by name; its own defaults where absent."""
        given = {name: getattr(self, name) for name in FORMS[self.form].parameters()}
        return {name: value for name, value in given.items() if value is not None}

    @model_validator(mode="after")
    def _each_has_an_effect(self) -> PreferenceKeys:
        own = FORMS[self.form].parameters()
        for name in self.model_fields_set & _PREFERENCE_KEYS.keys():
            if name not in own and getattr(self, name) is not None:
                able = [one for one, form in FORMS.items() if name in form.parameters()]
                raise ValueError(
                    f"`{name}` has no effect with `form: {self.form}`; it is a key of "
                    f"{listed([f'`{one}`' for one in able], 'and')}; leave it out"
                )
        if self.source is not None and not self.reads_reference:
            raise ValueError(
                f"`source` has no effect with `form: {self.form}`, which reads no reference; leave "
                "it out"
            )
        return self


_PREFERENCE_KEYS = {
    name: key for _, form in FORMS.items() for name, key in form.parameters().items()
}


def _preference_model(found: Loss) -> type[Term]:
    """Return the recipe's model of the term on preferences: a form, and every form's keys."""
    forms: Any = Literal[tuple(name for name, _ in FORMS.items())]
    about = (
        "of the reference's log-probabilities: `reference` (the student's own start, or "
        "`reference` of the section), `cache` (codec `label` or `final_hidden`) or `online`; "
        "`reference` when absent"
    )
    fields: dict[str, Any] = {
        "loss": (Literal[found.name], found.name),
        "form": (forms, Field("sigmoid", description="how preferences become a loss")),
        "source": (Source | None, Field(None, description=about)),
    }
    for name, (annotation, _) in _PREFERENCE_KEYS.items():
        kind = scheduled(annotation) if _is_number(annotation) else annotation
        users = [one for one, form in FORMS.items() if name in form.parameters()]
        about = f"of {listed(users, 'and')}; the form's own default when absent"
        fields[name] = (kind | None, Field(None, description=about))
    made: type[Term] = create_model(f"{found.name}_term", __base__=PreferenceKeys, **fields)
    return made


def _is_number(annotation: Any) -> bool:
    """Return whether a parameter is a number, which may follow a schedule."""
    return (get_args(annotation) or [annotation])[0] is float


def _own_keys(found: Loss) -> dict[str, tuple[Any, Any]]:
    """Return the loss's parameters as fields; a number may follow a schedule."""
    fields = {}
    for name, (annotation, default) in found.parameters().items():
        fields[name] = (scheduled(annotation) if _is_number(annotation) else annotation, default)
    return fields


def _term_model(found: Loss) -> type[Term]:
    """Return the recipe's model of one loss's term, made from its function's signature."""
    fields: dict[str, Any] = {"loss": (Literal[found.name], found.name), **_own_keys(found)}
    if found.reads not in ("vector", "similarity", "order", "rewards", "rollouts"):
        about = (
            "of pairs of answers: `chosen` (and texts alone), `rejected` or `all`; where the "
            "student writes: `rollouts` (its own answers) or `data` (the others); `chosen` has both"
        )
        fields["on"] = (Texts, Field("chosen", description=about))
    if found.reads not in NO_SIGNALS:
        about = "`cache`, or `online`: the teacher runs in the step; the section's when absent"
        fields["source"] = (TeacherSource | None, Field(None, description=about))
    if found.reads in ("distribution", "rewards"):
        about = "T; the value is times T^2"
        fields["temperature"] = (scheduled(POSITIVE), Field(1.0, description=about))
    if found.reads == "distribution":
        about = "how to treat the mass outside the stored entries; the codec decides when absent"
        fields["tail"] = (Tail | None, Field(None, description=about))
    if found.reads in ("hidden", "relation"):
        what = "block" if found.reads == "relation" else "layer"
        about = (
            f"[student {what}, teacher {what}] pairs; or every cached {what}, mapped as the "
            "student was `cut`, `even`, or `last` (counted from the end); cut, else even, if absent"
        )
        fields["layers"] = (LayerPairs, Field(None, description=about))
    if found.reads == "relation":
        about = "relation heads; as many as fit both models' key-value heads when absent"
        fields["heads"] = (int | None, Field(None, ge=1, description=about))
        about = "which relations count, each the same"
        fields["relations"] = (list[Relation], Field(RELATIONS, min_length=1, description=about))
    made: type[Term] = create_model(f"{found.name}_term", __base__=Term, **fields)
    return made


TERM_MODELS = {
    name: _preference_model(found) if found.reads == "sequence" else _term_model(found)
    for name, found in LOSSES.items()
}
if TYPE_CHECKING:
    AnyTerm = Any  # one of TERM_MODELS
else:
    AnyTerm = Annotated[reduce(or_, TERM_MODELS.values()), Field(discriminator="loss")]


def source_of(term: Any, default: TeacherSource) -> Source | None:
    """Return where a term's signals come from; None for a term that reads the texts alone.

    default: the source of the term's section.
    """
    reads = LOSSES[term.loss].reads
    if reads in NO_SIGNALS:
        return None
    if reads == "sequence":
        return (term.source or "reference") if term.reads_reference else None
    found: Source = term.source or default
    return found


def terms_reading(terms: list[Any], source: Source, default: TeacherSource) -> list[Any]:
    """Return the terms whose signals come from `source`; `default` is the section's own source."""
    return [term for term in terms if source_of(term, default) == source]


def learns_preferences(terms: list[Any]) -> bool:
    """Return whether any term reads preferences."""
    return any(LOSSES[term.loss].reads == "sequence" for term in terms)


def rates_answers(terms: list[Any]) -> bool:
    """Return whether a form of any term rates answers one by one, and so reads a baseline."""
    return any(LOSSES[one.loss].reads == "sequence" and not FORMS[one.form].pairs for one in terms)


def reads_pairs(terms: list[Any]) -> bool:
    """Return whether any term reads both answers of a pair."""
    return any(LOSSES[term.loss].reads in ("sequence", "order", "rewards") for term in terms)


def reads_rejected(terms: list[Any]) -> bool:
    """Return whether any term reads rejected answers: as one of a pair, or by their tokens."""
    on = (getattr(term, "on", "chosen") for term in terms)
    return reads_pairs(terms) or any(one in ("rejected", "all") for one in on)


def reads_from(section: Any, source: Source) -> bool:
    """Return whether any term of a section's objective reads its signals from `source`."""
    return bool(terms_reading(section.objective, source, section.source))


def check_served(term: Any, codec: Any) -> None:
    """Raise `RecipeError` where a codec's targets are wrong for a term over distributions.

    The message gives the reason and what to write instead.
    """
    found = LOSSES[term.loss]
    if codec.gives == "label":
        raise RecipeError(
            f"{term.loss} compares distributions, and the codec `{codec.name}` holds the "
            f"probability of the text's own tokens alone; use {_serving(term)} in `cache.codec`, "
            "or `source: online`"
        )
    if not isinstance(term.temperature, Ramp):
        codec.check_temperature(term.temperature)
    elif len(set(term.temperature.ends)) == 1:
        codec.check_temperature(term.temperature.to)
    elif codec.tail != "none":
        raise RecipeError(
            f"a scheduled temperature takes values that the codec `{codec.name}` does not hold; "
            f"use {_codecs('none')} in `cache.codec`, or `source: online`"
        )
    if found.full and codec.tail != "none":
        raise RecipeError(
            f"{term.loss} compares every id, which the entries of the codec `{codec.name}` do not "
            f"hold; use {_codecs('none')} in `cache.codec`, or `source: online`"
        )
    if codec.tail == "sampled" and not found.linear:
        raise RecipeError(
            f"{term.loss} is not linear in the teacher's probabilities, so the samples of the "
            f"codec `{codec.name}` would bias it; use {_codecs('bucket', 'none')} in `cache.codec`"
        )
    if term.tail is not None and codec.tail != "bucket":
        raise RecipeError(
            f"`tail: {term.tail}` needs stored entries with a tail; the codec `{codec.name}` has "
            f"none. Leave `tail` out, or use {_codecs('bucket')} in `cache.codec`"
        )
    if (term.tail == "drop" and not found.linear) or (
        term.tail == "renormalize" and found.needs_mass
    ):
        reason = (
            "infinite, since the student has mass outside the entries and the teacher none"
            if term.tail == "renormalize"
            else "not a divergence: its entries do not sum to one"
        )
        raise RecipeError(
            f"{term.loss} with `tail: {term.tail}` is {reason}; leave `tail` out with "
            f"{_codecs('bucket')}, or use {_codecs('none')}"
        )


def check_online(term: Any) -> None:
    """Raise `RecipeError` for a key that has no effect when the teacher runs in the step."""
    if getattr(term, "tail", None) is not None:
        raise RecipeError("`tail` is for stored entries, and `source: online` has none")


def _codecs(*tails: str) -> str:
    return _named(
        [n for n, one in CODECS.items() if one.gives == "distribution" and one.tail in tails]
    )


def _serving(term: Any) -> str:
    """The codecs of distributions that serve a term with their defaults, or all where none does."""
    known = [name for name, kind in CODECS.items() if kind.gives == "distribution"]
    able = []
    for name in known:
        with suppress(RecipeError):
            check_served(term, CODECS[name]())
            able.append(name)
    return _named(able or known)


def _named(names: list[str]) -> str:
    return listed([f"`{name}`" for name in names], "or")
