"""Whether a server gives what a cache needs, asked before the first shard and by `cache verify`.

Each check is one function: it raises `ServerError` with what to change, or leaves a finding. Texts
are the probe's own, so that nothing of a user's data is needed.

    model        it serves the name that the recipe asks for
    ids          ids are taken as ids: as many positions come back, each with the id that was sent
    strings      its tokenizer has the same id -> string map, and makes the same ids of three texts
    k            as many entries as the codec needs
    window       the longest text fits, with the token that the server writes
    temperature  answers are of temperature 1: asked at 0.5 they are the same, or sharper as they
                 should be
    repeats      a text asked again, alone and among others, and as the beginning of a longer one:
                 no position is dropped, and how far the numbers differ (the spread) is recorded

Legend: P predictions of a text, K entries.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attar.errors import ServerError
from teachers.cache.config import CacheConfig
from teachers.codecs.codec import is_label_codec
from teachers.remote.client import Client, ServerRefusal
from teachers.remote.remote_runner import Asker, RemoteRunner, entries_asked
from teachers.remote.scored_prompt import BadAnswer, ScoredPrompt, listed_window

log = logging.getLogger(__name__)

TEXTS = (
    "The teacher says what the student learns.",
    "In 1905, 3 + 4 = 7 -- isn't it?\n\tYes; 100%.",
    "Ein Größenvergleich: naïve café, 東京, 🙂.",
)
PROBE_IDS = 32  # ids of a text of the probe, fewer where the longest text is shorter
STRIDE = 7  # ids by which the texts of the probe begin apart
FEWEST_COMPARED = 5  # entries from which a temperature is known
LIKELY = 0.01  # probability from which differences of log-probabilities are recorded
MAX_SPREAD = 0.03  # of the probability mass, on average: as much as `cache verify` allows
MISREAD = 0.02  # share of ids whose strings may differ: how bytes within a character are shown


@dataclass
class Probe:
    """A probe under way. longest: ids of the longest text. found: what the checks leave."""

    asker: Asker
    tokenizer: Any
    vocabulary: int
    config: CacheConfig
    longest: int
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def server(self) -> str:
        """The server as messages name it."""
        return self.asker.client.config.words

    @property
    def k(self) -> int:
        """How many entries a position the codec needs."""
        return entries_asked(self.config.codec, self.vocabulary)

    def text(self, turn: int, number: int | None = None) -> list[int]:
        """Ids of plain text, another piece for each turn, repeated up to `number`."""
        whole = self.tokenizer(" ".join(TEXTS), add_special_tokens=False)["input_ids"]
        length = number or max(2, min(PROBE_IDS, self.longest))
        return [whole[(turn * STRIDE + i) % len(whole)] for i in range(length)]

    def any_ids(self) -> list[int]:
        """Ids drawn from all that the tokenizer knows, always the same ones."""
        known = np.asarray(sorted(self.tokenizer.get_vocab().values()))
        length = max(2, min(PROBE_IDS, self.longest))
        return [int(i) for i in np.random.default_rng(0).choice(known, length)]

    def score(self, ids: list[int], k: int, temperature: float = 1.0) -> ScoredPrompt:
        """An answer that is what was asked for; else a `ServerError`."""
        try:
            return self.asker.score(ids, k, temperature)
        except BadAnswer as fault:
            raise ServerError(
                f"{self.server} gives an answer that cannot be used: {fault}."
            ) from None


def connect(
    client: Client, tokenizer: Any, vocabulary: int, config: CacheConfig, longest: int
) -> RemoteRunner:
    """A runner on a server that was probed and gives what the cache needs.

    longest: ids of the longest text that it will be asked for. Raises `ServerError` for the first
    thing that is otherwise.
    """
    probe = Probe(Asker(client), tokenizer, vocabulary, config, longest)
    try:
        for check in (
            check_model,
            check_listed_window,
            check_ids,
            check_strings,
            check_entries,
            check_window,
            check_temperature,
            check_repeats,
        ):
            check(probe)
    finally:
        client.hang_up()
    as_served = {"kind": client.config.kind, "model": client.config.model, "k": probe.k}
    window = probe.found.pop("window")
    return RemoteRunner(client, vocabulary, config, window, {**as_served, **probe.found})


def check_model(probe: Probe) -> None:
    """The server is there, and serves the model that the recipe names."""
    client = probe.asker.client
    window = listed_window(client)
    probe.found.update(engine=probe.asker.kind.version(client), window=window)


def check_ids(probe: Probe) -> None:
    """Ids are taken as ids; the reader of answers compares them one by one."""
    scored = probe.score(probe.any_ids(), 1)
    if not scored.ids_PK.shape[1] and not is_label_codec(probe.config.codec):
        raise ServerError(
            f"{probe.server} names tokens by their strings, which several ids may share, so it "
            f"cannot fill `cache.codec: {probe.config.codec.name}`; use `label`, or a server that "
            "names ids (`kind: vllm` or `sglang`, or one that knows `return_tokens_as_token_ids`)."
        )


def check_strings(probe: Probe) -> None:
    """The server's tokenizer is the teacher's: the same strings of ids, the same ids of texts."""
    asker, tokenizer = probe.asker, probe.tokenizer
    try:
        pairs = asker.strings(probe.any_ids())
    except BadAnswer as fault:
        raise ServerError(f"{probe.server} gives an answer that cannot be used: {fault}.") from None
    wrong = [(i, text) for i, text in pairs if not _same_string(tokenizer, i, text)]
    if len(wrong) > MISREAD * len(pairs):
        i, text = wrong[0]
        raise ServerError(
            f"{probe.server} has another tokenizer than `teacher.model`: id {i} is {text!r} there "
            f"and {tokenizer.decode([i])!r} here; serve the model whose tokenizer that is, or name "
            "its folder in `teacher.model`."
        )
    compared = 0
    for text in TEXTS:
        there = asker.kind.tokenize(asker.client, text, asker.client.config.model)
        here = tokenizer(text, add_special_tokens=False)["input_ids"]
        compared += there is not None
        if there is not None and there != here:
            raise ServerError(
                f"{probe.server} has another tokenizer than `teacher.model`: it makes {there[:6]} "
                f"of {text[:20]!r}, and this one {here[:6]}; serve the model whose tokenizer that "
                "is, or name its folder in `teacher.model`."
            )
    probe.found.update(strings_compared=len(pairs), texts_compared=compared)
    if not pairs and not compared:
        log.warning(
            "cache: the server says nothing of its tokenizer; whether it is that of "
            "`teacher.model` is not known"
        )


def _same_string(tokenizer: Any, i: int, text: str) -> bool:
    """Whether a server's string for an id is the tokenizer's, in any of the usual spellings."""
    if "\ufffd" in text or text.startswith("bytes:"):
        return True  # bytes within a character, of which each server shows something else
    own = tokenizer.decode([i]), str(tokenizer.convert_ids_to_tokens(i))
    return "\ufffd" in own[0] or _plain(text) in {_plain(one) for one in own}


def _plain(text: str) -> str:
    """Without the sign of a space before a word, which some tokenizers show and some cut."""
    return text.replace("\u2581", " ").replace("\u0120", " ").replace("\u010a", "\n").strip()


def check_entries(probe: Probe) -> None:
    """The server gives as many entries a position as the codec asks for."""
    k = probe.k
    if is_label_codec(probe.config.codec):
        return
    hint = probe.asker.kind.limit_hint.format(k=k)
    reason = None
    try:
        probe.asker.score(probe.text(0), k)
    except ServerRefusal as refusal:
        reason = refusal.words or str(refusal)
    except BadAnswer as fault:
        reason = str(fault)
    if reason is not None:
        raise ServerError(
            f"{probe.server} does not give {k} entries a token ({reason}), which `cache.codec.k` "
            f"asks for; lower it, or {hint}."
        )


def check_listed_window(probe: Probe) -> None:
    """The window that the server names takes the longest text and the one token that it writes."""
    window = probe.found.get("window")
    if window is not None and probe.longest + 1 > window:
        raise _too_long(probe, f"takes {window} ids at most, with one that it writes")


def check_window(probe: Probe) -> None:
    """The server takes a text as long as the longest, whatever it says of its window."""
    if probe.longest > PROBE_IDS:
        try:
            probe.score(probe.text(0, probe.longest), 1)
        except ServerRefusal as refusal:
            about = f"refuses so long a text ({refusal.words or refusal})"
            raise _too_long(probe, about) from None


def _too_long(probe: Probe, about: str) -> ServerError:
    return ServerError(
        f"{probe.server} {about}, and `data.max_length` is {probe.longest}; lower that, or start "
        "the server with a longer window."
    )


def check_temperature(probe: Probe) -> None:
    """Answers at temperature 1 are of temperature 1.

    Some servers give raw log-probabilities whatever the temperature, some temper them, and some
    process them otherwise: then those at 1 are not the teacher's either.
    """
    ids, k = probe.text(1), probe.k
    if probe.asker.kind.names_ids:
        k = max(k, min(FEWEST_COMPARED, probe.vocabulary))
    sharp, flat = (probe.score(ids, k, temperature) for temperature in (0.5, 1.0))
    if mass_between(sharp, flat, ids) <= MAX_SPREAD:
        probe.found["temperature"] = "ignored"
        return
    if _is_tempered(sharp, flat):
        probe.found["temperature"] = "followed"
        return
    raise ServerError(
        f"{probe.server} gives other log-probabilities at temperature 0.5 than at 1, and not those "
        "that follow from them, so that neither are known to be the teacher's; serve it without "
        "processors of logits, and vLLM with `--logprobs-mode raw_logprobs`."
    )


def _is_tempered(sharp: ScoredPrompt, flat: ScoredPrompt) -> bool:
    """Whether log p at 0.5 is twice that at 1, but for the constant of each position."""
    gaps: list[float] = []
    for was, now in zip(_by_id(flat), _by_id(sharp), strict=True):
        shifts = [now[i] - 2 * was[i] for i in was.keys() & now.keys() if was[i] > -np.inf]
        if len(shifts) > 1:
            gaps.extend(np.abs(np.asarray(shifts) - np.mean(shifts)))
    return bool(gaps) and float(np.mean(gaps)) <= 2 * MAX_SPREAD


def check_repeats(probe: Probe) -> None:
    """The same text gives the same, again, among others, and as the beginning of a longer one."""
    ids, k = probe.text(2), probe.k
    more = probe.text(3)[: max(0, probe.longest - len(ids))]
    first = probe.score(ids, k)
    texts = [ids, probe.text(4), [*ids, *more], ids]
    with probe.asker.pool() as pool:
        answers = list(pool.map(lambda text: probe.score(text, k), texts))
    again = [answers[0], _beginning(answers[2], len(first.own_P)), answers[3]]
    spread = max(mass_between(first, one, ids) for one in again)
    if not spread <= MAX_SPREAD:
        raise ServerError(
            f"{probe.server} gives other log-probabilities when the same text is asked again "
            f"({spread:.3f} of the mass differs, {MAX_SPREAD:g} is rounding); serve one model at "
            "one precision, with nothing in it that is random."
        )
    probe.found["spread"] = spread
    probe.found["spread_nats"] = max(_largest_gap(first, one) for one in again)


def _beginning(scored: ScoredPrompt, number: int) -> ScoredPrompt:
    """The first predictions of a text."""
    ids_PK, logprobs_PK = scored.ids_PK[:number], scored.logprobs_PK[:number]
    return ScoredPrompt(ids_PK, logprobs_PK, scored.own_P[:number])


def mass_between(one: ScoredPrompt, other: ScoredPrompt, ids: list[int]) -> float:
    """The mean probability mass in which two answers for a text differ; what neither names is one
    outcome. Only ids that both name are compared one by one.
    """
    total = 0.0
    rows = zip(_by_id(one), _by_id(other), one.own_P, other.own_P, ids[1:], strict=True)
    for mine, others, own, other_own, follows in rows:
        mine, others = {**mine, follows: own}, {**others, follows: other_own}
        shared = list(mine.keys() & others.keys())
        p, q = (np.exp([float(row[i]) for i in shared]) for row in (mine, others))
        total += 0.5 * float(np.abs(p - q).sum() + abs(p.sum() - q.sum()))
    return total / max(1, len(one.own_P))


def _largest_gap(one: ScoredPrompt, other: ScoredPrompt) -> float:
    """The largest difference of log-probabilities of ids that are likely in both."""
    found = [0.0]
    for mine, others in zip(_by_id(one), _by_id(other), strict=True):
        shared = [i for i in mine.keys() & others.keys() if mine[i] > np.log(LIKELY)]
        found.extend(abs(mine[i] - others[i]) for i in shared)
    return max(found)


def _by_id(scored: ScoredPrompt) -> list[dict[int, float]]:
    """Log-probabilities by id, of every position."""
    rows = zip(scored.ids_PK.tolist(), scored.logprobs_PK.tolist(), strict=True)
    return [dict(zip(ids, values, strict=True)) for ids, values in rows]
