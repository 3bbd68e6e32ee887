"""The heads of log files: their first line, and the columns that it or the first records name."""

import csv
import json
from contextlib import suppress
from itertools import islice
from pathlib import Path

from recsys.data.files import DAMAGED, json_object, opened
from recsys.errors import InputError

NAMING_RECORDS = 100
"""JSON lines whose keys are the columns."""
LINES = 1000
"""Lines by which it is settled whether fields stand in quotes."""


def head_of(file: Path, encoding: str = "utf-8") -> tuple[int, str]:
    """(how many blank lines stand first, the line behind them) of a file, which may be compressed.

    InputError where it cannot be read or is blank.
    """
    try:
        with opened(file) as stream:
            for number, line in enumerate(stream):
                if number == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    return number, line.decode(encoding).rstrip("\r\n")
    except DAMAGED as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not {encoding} text: {error}") from None
    raise InputError(f"{file} is empty")


def json_names(file: Path) -> list[str]:
    """The keys of the first records: not every one need have a time."""
    blank, line = head_of(file)
    record = json_object(file, blank + 1, line)
    with opened(file) as stream:
        for later in islice(stream, NAMING_RECORDS):
            # A line that is broken is named where it is read.
            with suppress(ValueError, RecursionError):
                found = json.loads(later)
                record |= found if isinstance(found, dict) else {}
    return list(record)


def delimiter_of(line: str) -> str:
    """What stands between the fields of a line: the mark that it holds most of."""
    return max(("\t", ",", ";", "|", "::"), key=lambda mark: (line.count(mark), mark == ","))


def quote_of(file: Path, encoding: str, delimiter: str, width: int) -> str:
    """What fields stand in that hold the delimiter; "" where a quote is a character like others.

    Between tabs it often is, as in titles with inches. They are read with quotes only where the
    first lines of the file have fields that begin with one, and all of those lines are of `width`
    fields so.
    """
    if len(delimiter) > 1:
        return ""
    if delimiter != "\t":
        return '"'
    with opened(file) as stream:
        lines = [line.decode(encoding, "replace").rstrip("\r\n") for line in islice(stream, LINES)]
    lines[0] = lines[0].removeprefix("\ufeff")
    quoting = [line for line in lines if '\t"' in f"\t{line}"]
    return '"' if quoting and all(_width(line, delimiter) == width for line in quoting) else ""


def _width(line: str, delimiter: str) -> int:
    """Fields of a line in quotes; 0 where they do not end, or end within a field."""
    try:
        return len(next(csv.reader([line], delimiter=delimiter, strict=True)))
    except csv.Error:
        return 0


def header_of(file: Path, line: str, delimiter: str) -> tuple[str, ...]:
    """The names of the columns. InputError where the first line does not name each once."""
    parts = line.split(delimiter)
    if len(delimiter) == 1 and _width(line, delimiter):  # a quoted name may hold the delimiter
        parts = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    names = tuple(name.strip().strip('"') for name in parts)
    if len(set(names)) != len(names) or not all(names) or "\r" in line:
        raise InputError(f"{file}: the first line must name each column once, got {line[:120]!r}")
    return names
