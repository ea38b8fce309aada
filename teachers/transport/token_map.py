"""Which ids of a student stand for the bytes of a teacher's ids."""

from __future__ import annotations

from collections.abc import Mapping

from attar.models.token_bytes import TokenBytes


class TokenMap:
    """From a teacher's ids to a student's.

    roles: which special id of the student stands for a special id of the teacher, such as the end
    of an answer. The mass of a teacher's other special ids goes to the tail.
    """

    def __init__(self, teacher: TokenBytes, student: TokenBytes, roles: Mapping[int, int]) -> None:
        self.teacher, self.student, self.roles = teacher, student, dict(roles)
