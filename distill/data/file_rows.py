"""Rows of text files: JSON, JSON lines, CSV, TSV and plain text.

Every row is parsed on its own, by Python's types: numbers, objects and lists stay what they are,
rows may have different keys, and a row that cannot be parsed spoils no other. Only the places
where rows begin are kept in memory. Text is UTF-8, or UTF-16 with its byte order mark.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import mmap
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from attar.errors import DataError
from distill.data.bad_rows import RowError
from distill.data.column_types import ColumnType, common_type, type_of

Row = dict[str, Any]
NOT_UTF8 = "hold bytes that are not UTF-8; save the file as UTF-8"
NOT_JSON = "are no JSON"
NO_OBJECT = "are JSON, but no object with keys"
HALF_CHARACTER = "hold half of a character (a lone surrogate)"
OTHER_CELLS = "have another number of cells than the header"
COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
SEPARATORS = (",", "\t", ";")


class FileRows:
    """The rows of some files as one table; `table[i]` raises `RowError` for one that is no row.

    features: types of the columns. filled: number of rows that have a value in each column.
    A column of a table is numbers where all its cells are; an empty cell of it has no value.
    """

    def __init__(self, files: Iterable[tuple[Path, str]]) -> None:
        self._parts = [_open_part(path, kind) for path, kind in files]
        self._ends = np.cumsum([len(part) for part in self._parts])
        self.features: dict[str, ColumnType] = {}
        self.filled: dict[str, int] = {}
        self._find_columns()

    def _find_columns(self) -> None:
        found: dict[str, set[str]] = {}
        for part in self._parts:
            for i in range(len(part)):
                try:
                    row = part.row(i)
                except RowError:
                    continue
                for name, value in row.items():
                    kinds = found.setdefault(name, set())
                    if value is not None:
                        kinds.add(type_of(value))
                        self.filled[name] = self.filled.get(name, 0) + 1
        self.features = {name: ColumnType(common_type(kinds)) for name, kinds in found.items()}

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in the order in which they appear."""
        return list(self.features)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, i: int) -> Row:
        part, at = self._at(i)
        row = part.row(at)
        return {name: row.get(name) for name in self.features}

    def __iter__(self) -> Iterator[Row]:
        for i in range(len(self)):
            try:
                yield self[i]
            except RowError as error:
                raise RowError(error.reason, self.place(i)) from None

    def place(self, i: int) -> str:
        """Where a row stands: its line, or its number in a JSON list, and its file."""
        part, at = self._at(i)
        return part.place(at)

    def _at(self, i: int) -> tuple[_Part, int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = int(np.searchsorted(self._ends, i, side="right"))
        return self._parts[number], i - (int(self._ends[number - 1]) if number else 0)


class _Part:
    """The rows of one file: a list of them, or the bytes of each and how they are parsed."""

    def __init__(
        self,
        path: Path,
        *,
        rows: Sequence[Any] | None = None,
        data: Any = b"",
        spans: Sequence[tuple[int, int, int]] = (),  # start, end, line
        parse: Callable[[bytes], Row] = lambda raw: {},
    ) -> None:
        self.path, self._rows, self._data, self._parse = path, rows, data, parse
        self._spans = np.asarray(spans, np.int64).reshape(-1, 3)
        self._escapes = SURROGATE_ESCAPE.search(data) is not None if rows else False

    def __len__(self) -> int:
        return len(self._spans) if self._rows is None else len(self._rows)

    def row(self, i: int) -> Row:
        if self._rows is not None:
            return _as_row(self._rows[i], self._escapes)
        start, end, _ = self._spans[i]
        return self._parse(bytes(self._data[start:end]))

    def place(self, i: int) -> str:
        if self._rows is not None:
            return f"row {i + 1} of {self.path}"
        return f"line {self._spans[i][2]} of {self.path}"


def _open_part(path: Path, kind: str) -> _Part:
    data = _contents(path)
    if kind == "text":
        return _Part(path, data=data, spans=[(0, len(data), 1)], parse=_text_row)
    if kind == "csv":
        return _table_part(path, data)
    start = re.search(rb"\S", data[: 1 << 16])
    if start is not None and start.group() == b"[":
        whole = _whole_json(path, data)
        if isinstance(whole, list):
            return _Part(path, rows=whole, data=data)
    spans = [(s, e, line) for line, (s, e) in enumerate(_lines(data), 1) if data[s:e].strip()]
    if len(spans) > 1 and not any(_is_whole(data, *span[:2]) for span in spans[:2]):
        with suppress(DataError):  # else it is lines, of which the first two are bad
            whole = _whole_json(path, data)
            if isinstance(whole, dict):
                return _Part(path, rows=_rows_of_object(whole))
    return _Part(path, data=data, spans=spans, parse=_json_row)


# Bytes -------------------------------------------------------------------------------------------


def _contents(path: Path) -> Any:
    """The bytes of a file as UTF-8 without a byte order mark, mapped into memory."""
    opener: Callable[[Path], Any] = COMPRESSED.get(path.suffix.lower(), lambda p: p.open("rb"))
    if path.suffix.lower() == ".zst":
        opener = _zstandard(path)
    with opener(path) as file:
        first = file.read(4)
    utf8_mark = first.startswith(codecs.BOM_UTF8)
    utf16 = first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if path.suffix.lower() not in (*COMPRESSED, ".zst") and not utf16 and not utf8_mark:
        with path.open("rb") as file:
            return _mapped(file)
    with tempfile.TemporaryFile() as plain, opener(path) as file:
        if utf8_mark:
            file.read(len(codecs.BOM_UTF8))
        if utf16:
            text = io.TextIOWrapper(file, "utf-16", newline="")
            for piece in iter(lambda: text.read(1 << 20), ""):
                plain.write(piece.encode("utf-8", "surrogatepass"))
            text.detach()
        else:
            shutil.copyfileobj(file, plain)
        plain.flush()
        return _mapped(plain)


def _mapped(file: Any) -> Any:
    """The bytes of an open file, which stay when it is closed."""
    if not file.seek(0, io.SEEK_END):
        return b""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _zstandard(path: Path) -> Callable[[Path], BinaryIO]:
    try:
        import zstandard
    except ImportError:
        raise DataError(
            f"{path} is compressed by zstd, and the package `zstandard` is not installed; "
            "`pip install zstandard`, or decompress the file."
        ) from None
    found: Callable[[Path], BinaryIO] = zstandard.open
    return found


def _lines(data: Any) -> Iterator[tuple[int, int]]:
    """(start, end) of every line, without its end."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        yield start, end
        start = end + 1


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RowError(NOT_UTF8) from None


# JSON and text -----------------------------------------------------------------------------------


def _text_row(raw: bytes) -> Row:
    return {"text": _decoded(raw).replace("\r\n", "\n").replace("\r", "\n")}


def _json_row(raw: bytes) -> Row:
    text = _decoded(raw)
    try:
        return _as_row(json.loads(text), SURROGATE_ESCAPE.search(raw) is not None)
    except (ValueError, RecursionError):
        raise RowError(NOT_JSON) from None


def _as_row(value: Any, escapes: bool) -> Row:
    """A JSON value as a row: an object, or a text alone.

    escapes: whether its text was written with escapes of which one half may be missing.
    """
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise RowError(NO_OBJECT)
    try:
        if escapes:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RowError(HALF_CHARACTER) from None
    return value


def _is_whole(data: Any, start: int, end: int) -> bool:
    """Whether a line is a JSON value of its own."""
    try:
        json.loads(data[start:end])
    except (ValueError, RecursionError):
        return False
    return True


def _whole_json(path: Path, data: Any) -> Any:
    """A whole file as one JSON value; None for one of a value a line.

    Raises `DataError`, with the line, for a file that is neither.
    """
    try:
        return json.loads(bytes(data).decode())
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        if not _is_whole(data, *next(_lines(data))):
            raise DataError(
                f"Line {line} of {path} is not UTF-8; save the file as UTF-8."
            ) from None
    except (ValueError, RecursionError) as error:
        if not _is_whole(data, *next(_lines(data))):
            raise DataError(f"{path} is no JSON: {error}.") from None
    return None


def _rows_of_object(value: Mapping[str, Any]) -> list[Any]:
    """The rows of a file that is one object: columns of one length, a list of rows, or one row."""
    lists = [each for each in value.values() if isinstance(each, list)]
    if len(lists) == len(value) and len({len(each) for each in lists}) == 1 and len(lists) > 1:
        return [dict(zip(value, row, strict=True)) for row in zip(*lists, strict=True)]
    if len(lists) == 1 and lists[0] and all(isinstance(row, dict) for row in lists[0]):
        if len(value) == 1 and "role" not in lists[0][0] and "from" not in lists[0][0]:
            return lists[0]
    return [value]


# Tables ------------------------------------------------------------------------------------------


def _table_part(path: Path, data: Any) -> _Part:
    """A CSV or TSV file: the header names the columns; the separator is the header's."""
    csv.field_size_limit(1 << 30)
    first = data.find(b"\n")
    head = _decoded(bytes(data[: first if first >= 0 else len(data)]))
    separator = max(SEPARATORS, key=head.count)
    spans: list[tuple[int, int, int]] = []
    names: list[str] = []
    kinds: list[Any] = []  # of each column: int or float where all cells are such numbers
    for span, cells in _records(data, separator):
        if not names:
            names = [name.strip() for name in _cells(bytes(data[slice(*span[:2])]), separator)]
            kinds = [int] * len(names)
        elif cells:
            spans.append(span)
            kinds = [_still(kind, cell) for kind, cell in zip(kinds, cells, strict=False)] + kinds[
                len(cells) :
            ]

    def parse(raw: bytes) -> Row:
        cells = _cells(raw, separator)
        if len(cells) != len(names):
            raise RowError(OTHER_CELLS)
        return {
            name: cell if kind is None else (kind(cell) if cell else None)
            for name, kind, cell in zip(names, kinds, cells, strict=True)
        }

    return _Part(path, data=data, spans=spans, parse=parse)


def _records(data: Any, separator: str) -> Iterator[tuple[tuple[int, int, int], list[str]]]:
    """((start, end, first line), cells) of each record, which may hold ends of lines in quotes.

    Bytes are read as Latin-1, one character each, so that places are places in the file.
    """
    at = {"end": 0, "line": 0}

    def lines() -> Iterator[str]:
        for start, end in _lines(data):
            stop = min(end + 1, len(data))
            at.update(end=stop, line=at["line"] + 1)
            # the reader takes no carriage return inside a line; here only places matter
            line = bytes(data[start:stop]).decode("latin-1")
            yield line[:-2].replace("\r", " ") + line[-2:]

    start, line = 0, 1
    for cells in csv.reader(lines(), delimiter=separator):
        yield (start, at["end"], line), cells
        start, line = at["end"], at["line"] + 1


def _cells(raw: bytes, separator: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(_decoded(raw), newline=""), delimiter=separator), [])
    except csv.Error:
        raise RowError("are no row of a table") from None


def _still(kind: Any, cell: str) -> Any:
    """The type of a column with one more cell: int, then float, then None (text).

    A column is numbers only where every cell is written as Python writes them: `007` is text.
    """
    if kind is None or not cell:
        return kind
    if kind is int and not (cell.removeprefix("-").isdecimal() and str(int(cell)) == cell):
        kind = float
    if kind is float:
        try:
            if repr(float(cell)) == cell or str(int(cell)) == cell:
                return float
        except ValueError:
            pass
        return None
    return kind
