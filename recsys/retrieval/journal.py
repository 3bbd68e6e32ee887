"""The journal: changes of a live catalogue, in the order they came, that outlive the process.

A line a change: a checksum and a JSON object. A change is acknowledged once its line is on disk; a
line that was cut by a crash was never acknowledged and is taken off when the journal is opened.
"""

import errno
import json
import os
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys.errors import InputError, WorkError
from recsys.whole import held_alone, written_whole

HEADER = {"recsys_journal": 1}


@dataclass
class Changes:
    """What all changes of a journal come to."""

    rows: dict[Any, dict[str, Any]] = field(default_factory=dict)
    """What was said of items, by raw id, in the order in which they came first."""
    removed: dict[Any, None] = field(default_factory=dict)
    """Raw ids that do not come back, in order."""
    unavailable: dict[Any, None] = field(default_factory=dict)
    """Raw ids that are out of stock, in order."""

    def take(self, change: dict[str, Any]) -> None:
        """One more change."""
        for row in change.get("upsert", ()):
            # An item said again keeps its place: places become numbers, which states of users hold.
            self.rows[row["item"]] = {**self.rows.get(row["item"], {}), **row}
            self.removed.pop(row["item"], None)
        self.removed.update(dict.fromkeys(change.get("remove", ())))
        for raw in change.get("available", ()):
            self.unavailable.pop(raw, None)
        self.unavailable.update(dict.fromkeys(change.get("unavailable", ())))

    def shortest(self) -> list[dict[str, Any]]:
        """The fewest changes that come to the same."""
        parts = {
            "upsert": list(self.rows.values()),
            "remove": list(self.removed),
            "unavailable": list(self.unavailable),
        }
        return [{name: values} for name, values in parts.items() if values]


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


def _line(change: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(change, ensure_ascii=False, allow_nan=False, default=str).encode()
    except ValueError as error:  # infinite, or half a character
        raise InputError(f"the change cannot be written to the journal: {error}") from None
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The change of a line; None where the line is damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    change = json.loads(text)
    return change if isinstance(change, dict) else None
