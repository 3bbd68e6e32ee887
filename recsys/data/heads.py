"""The heads of log files: their first line, and the columns that it or the first records name."""

import csv
import gzip
import json
import zlib
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, cast

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
        with _opened(file) as stream:
            for number, line in enumerate(stream):
                if number == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    return number, line.decode(encoding).rstrip("\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not {encoding} text: {error}") from None
    raise InputError(f"{file} is empty")


def json_names(file: Path) -> list[str]:
    """The keys of the first records: not every one need have a time."""
    blank, line = head_of(file)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}, line {blank + 1} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"{file}, line {blank + 1} is not a JSON object: {line[:80]}")
    with _opened(file) as stream:
        for later in islice(stream, NAMING_RECORDS):
            with suppress(
                ValueError, RecursionError
            ):  # a line that is broken is named where it is read
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
    with _opened(file) as stream:
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


def _opened(file: Path) -> IO[bytes]:
    """The bytes of a file, or of what it holds compressed."""
    return cast(IO[bytes], gzip.open(file)) if file.suffix == ".gz" else open(file, "rb")
