"""YAML that cannot take a program's time or memory: its size, depth and numbers are bounded.

YAML's aliases let a page of text stand for more values than memory holds, and a reader of nested
lists calls itself for each level. A recipe has a few hundred values, six levels deep.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MOST_CHARACTERS = 4_000_000
MOST_VALUES = 100_000  # aliases counted as often as they are used
DEEPEST = 60
MOST_DIGITS = 18  # of a whole number; it fits 64 bits
Sizes = dict[int, int]


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-4` is a number, the key `on` a word (both as in YAML 1.2), and no key
    stands twice.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise _refused(f"more than {DEEPEST} levels deep", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and _size_of(node, {}) > MOST_VALUES:
            raise _refused(f"more than {MOST_VALUES:,} values", node.start_mark)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise _refused(f"`{key.value}` is written twice", key.start_mark)
                seen.add(key.value)
                if key.tag == "tag:yaml.org,2002:bool":
                    key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> int:
        digits = len(node.value.lstrip("+-0xb_"))
        if digits > MOST_DIGITS:
            raise _refused(f"a whole number of {digits:,} digits", node.start_mark)
        return int(self.construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load(text: str) -> Any:
    """The values of a text, none of which is shared by two places.

    Raises `yaml.YAMLError` for what does not parse and for what is beyond the bounds.
    """
    if len(text) > MOST_CHARACTERS:
        raise _refused(f"{len(text):,} characters; {MOST_CHARACTERS:,} are read", None)
    try:
        return _unshared(yaml.load(text, _Loader))
    except (ValueError, OverflowError, TypeError) as error:  # such as the date 2026-13-01
        raise _refused(str(error), None) from None


def _refused(reason: str, mark: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, reason, mark)


def _size_of(node: Any, known: Sizes) -> int:
    """Values of a node with its aliases written out; `known` holds those of nodes seen before."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # what contains itself has no end
        inner = node.value
        if isinstance(node, yaml.MappingNode):
            inner = [one for pair in node.value for one in pair]
        known[id(node)] = 1 + sum(_size_of(one, known) for one in inner)
    return known[id(node)]


def _unshared(value: Any) -> Any:
    """A copy in which an alias is a value of its own, so that `--set` changes one place."""
    if isinstance(value, dict):
        return {key: _unshared(one) for key, one in value.items()}
    return [_unshared(one) for one in value] if isinstance(value, list) else value
