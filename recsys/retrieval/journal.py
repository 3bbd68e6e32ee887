"""The journal: changes of a live catalogue, in the order they came, that outlive the process.

A line a change: a checksum and a JSON object. A change is acknowledged once its line is on disk; a
line that was cut by a crash was never acknowledged and is taken off when the journal is opened.
"""

import errno
import json
import os
import zlib
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import InputError, WorkError
from recsys.whole import held_alone, written_whole

HEADER = {"recsys_journal": 1}


@dataclass
class Changes:
    """What all changes of a journal come to."""

    rows: dict[Any, dict[str, Any]] = field(default_factory=dict)
    """What was said of items, by raw id, in the order in which they came first."""
    latest: dict[Any, set[str]] = field(default_factory=dict)
    """The columns in which something was said of an item when it was said last."""
    removed: dict[Any, None] = field(default_factory=dict)
    """Raw ids that do not come back, in order."""
    unavailable: dict[Any, None] = field(default_factory=dict)
    """Raw ids that are out of stock, in order."""

    def take(self, change: dict[str, Any]) -> None:
        """One more change."""
        for row in change.get("upsert", ()):
            # An item said again keeps its place: places become numbers, which states of users hold.
            self.rows[row["item"]] = {**self.rows.get(row["item"], {}), **row}
            self.latest[row["item"]] = set(row)
            self.removed.pop(row["item"], None)
        self.removed.update(dict.fromkeys(change.get("remove", ())))
        for raw in change.get("available", ()):
            self.unavailable.pop(raw, None)
        self.unavailable.update(dict.fromkeys(change.get("unavailable", ())))

    def rows_for(self, columns: Collection[str]) -> list[dict[str, Any]]:
        """What a catalogue of these columns knows by now: there an item keeps what is not said
        again; in other columns it has what was said last."""
        return [
            {n: v for n, v in row.items() if n in columns or n in self.latest[raw]}
            for raw, row in self.rows.items()
        ]

    def shortest(self) -> list[dict[str, Any]]:
        """The fewest changes that come to the same."""
        earlier, last = [], []
        for raw, row in self.rows.items():
            latest = self.latest[raw]
            if row.keys() <= latest:
                earlier.append(row)
            else:
                earlier.append({n: v for n, v in row.items() if n == "item" or n not in latest})
                last.append({n: v for n, v in row.items() if n in latest})
        parts = [
            ("upsert", earlier),
            ("upsert", last),
            ("remove", list(self.removed)),
            ("unavailable", list(self.unavailable)),
        ]
        return [{name: values} for name, values in parts if values]


class Journal:
    """An open journal, of one process at a time."""

    def __init__(self, path: str | Path):
        """Read the changes of a file, or begin one.

        InputError where another process has it open, the file is none, or a line before the last
        is damaged.
        """
        self.path = Path(path)
        taken = f"{self.path} is open in another process: one process writes a journal"
        self._held = ExitStack()
        self._held.enter_context(held_alone(Path(f"{self.path}.lock"), taken))
        self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115
        try:
            self.changes = self._read()
        except BaseException:
            self.close()
            raise

    def append(self, change: dict[str, Any]) -> None:
        """Write one change through to the disk. WorkError where that fails: it did not happen."""
        line = _line(change)
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "no space left")
            os.fsync(self._file.fileno())
        except OSError as error:
            os.truncate(self.path, end)
            raise WorkError(f"{self.path} could not be written: {error.strerror}") from error
        self.changes.take(change)

    def compact(self) -> None:
        """Write the fewest lines that come to the same, whole or not at all."""
        with written_whole(self.path) as aside:
            lines = [_line(HEADER), *map(_line, self.changes.shortest())]
            with open(aside, "wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
        self._file.close()
        self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        """Let another process open it."""
        self._file.close()
        self._held.close()

    def _read(self) -> Changes:
        self._file.seek(0)
        data = self._file.read()
        header = _line(HEADER)
        if header.startswith(data):  # new, or a crash cut the first write
            os.truncate(self.path, 0)
            self._file.write(header)
            os.fsync(self._file.fileno())
            return Changes()
        if not data.startswith(header):
            raise InputError(f"{self.path} is no journal of a catalogue: name another file")
        whole = data.rfind(b"\n") + 1
        lines = data[len(header) : whole].splitlines(keepends=True)
        changes, end = Changes(), len(header)
        for number, line in enumerate(lines, start=2):
            change = _parsed(line)
            if change is None and number == len(lines) + 1:
                break
            if change is None:
                raise InputError(
                    f"{self.path} line {number} is damaged: restore the file, or remove it and"
                    " send the changes of the catalogue again"
                )
            changes.take(change)
            end += len(line)
        if end < len(data):
            os.truncate(self.path, end)
        return changes


def as_read(change: dict[str, Any]) -> dict[str, Any]:
    """A change as a journal gives it back: JSON's values, dates and decimals as texts.

    InputError where a journal cannot hold it.
    """
    read: dict[str, Any] = json.loads(_text(change))
    return read


def _text(change: dict[str, Any]) -> bytes:
    try:
        return json.dumps(change, ensure_ascii=False, allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError) as error:  # bytes; infinite, or half a character
        raise InputError(f"the change cannot be written to the journal: {error}") from None


def _plain(value: Any) -> Any:
    """What JSON has no form for, in one that an Arrow type is read from."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, date | time | Decimal):  # a datetime is a date
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _line(change: dict[str, Any]) -> bytes:
    text = _text(change)
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The change of a line; None where the line is damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    change = json.loads(text)
    return change if isinstance(change, dict) else None
