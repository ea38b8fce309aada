"""Tables from names to functions or classes, filled by decorators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from attar.errors import RecipeError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name; an unknown name is a `RecipeError` that suggests the nearest."""

    def __init__(self, noun: str, meant: Mapping[str, str] | None = None) -> None:
        """meant: what people mean by names that are none of these, in Markdown."""
        self.noun, self._meant = noun, meant or {}
        self._things: dict[str, T] = {}

    def add(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a function or class under `name`."""

        def register(entry: T) -> T:
            assert name not in self._things, f"{self.noun} {name} is registered twice"
            self._things[name] = entry
            return entry

        return register

    def __getitem__(self, name: str) -> T:
        if name not in self._things:
            known = ", ".join(sorted(self._things))
            meant = self._meant.get(name)
            hint = f" Did you mean {meant}?" if meant else nearest(name, self._things)
            raise RecipeError(f"There is no {self.noun} `{name}`; known are {known}.{hint}")
        return self._things[name]

    def __contains__(self, name: str) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def items(self) -> list[tuple[str, T]]:
        """Registered pairs in the order of registration."""
        return list(self._things.items())
