"""What was said in a conversation, as much of it as a model has positions for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from attar.errors import ModelError

Write = Callable[[str], None]
Messages = list[dict[str, str]]
ANSWER_SHARE = 4  # a fourth of the positions is kept for an answer that may be that long


class History:
    """The system message and the turns so far; a turn is a question with its answer."""

    def __init__(
        self,
        encode: Callable[[Messages], list[int]],
        positions: int | None,
        remark: Write,
        *,
        keeps_turns: bool = True,
        name: str = "",
    ) -> None:
        """encode: ids of messages that wait for an answer. positions: that the model has; None for
        no limit. remark: takes one line where turns are left out. keeps_turns: whether `encode`
        reads earlier turns. name: of the speaker, where several speak.
        """
        self._encode, self._positions, self._remark = encode, positions, remark
        self._keeps_turns, self._of = keeps_turns, f" of `{name}`" if name else ""
        self._system: Messages = []
        self._turns: list[Messages] = []
        self._asked: Messages = []

    def begin(self, system: str | None) -> None:
        """Forget what was said."""
        self._system = [{"role": "system", "content": system}] if system else []
        self._turns = []

    def ask(self, text: str, max_tokens: int) -> tuple[list[int], int]:
        """(ids of the prompt, most tokens of its answer, at least 1).

        The oldest turns are left out where the answer would have no room; the system message stays.
        Raises `ModelError` for a message that leaves no position for an answer.
        """
        self._asked = [{"role": "user", "content": text}]
        ids = self._ids(0)
        if self._positions is None:
            return ids, max_tokens
        most = self._positions - min(max_tokens, self._positions // ANSWER_SHARE)
        if len(ids) > most and self._turns:
            counts = range(1, len(self._turns) + 1)
            found = bisect_left(counts, True, key=lambda left_out: len(self._ids(left_out)) <= most)
            self._leave_out(counts[min(found, len(counts) - 1)])
            ids = self._ids(0)
        room = self._positions - len(ids)
        if room < 1:
            beside = " with the system message" if self._system else ""
            raise ModelError(
                f"The message has {len(ids):,} tokens{beside}, and the model has "
                f"{self._positions:,} positions; write a shorter one."
            )
        return ids, min(max_tokens, room)

    def remember(self, said: str) -> None:
        """Keep the last question with its answer."""
        if self._keeps_turns:
            self._turns.append([*self._asked, {"role": "assistant", "content": said}])

    def _ids(self, left_out: int) -> list[int]:
        """Ids of the prompt without the `left_out` oldest turns."""
        turns = [message for turn in self._turns[left_out:] for message in turn]
        return self._encode([*self._system, *turns, *self._asked])

    def _leave_out(self, count: int) -> None:
        del self._turns[:count]
        turns = f"oldest turn{self._of} is" if count == 1 else f"{count} oldest turns{self._of} are"
        self._remark(
            f"(The {turns} left out from here on: the model has {self._positions:,} positions.)\n"
        )
