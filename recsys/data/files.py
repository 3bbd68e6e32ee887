"""Files of texts, which may be compressed: what they hold, or in a line why that cannot be read."""

import gzip
import json
import zlib
from pathlib import Path
from typing import IO, Any, cast

from recsys.errors import InputError

DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading a compressed file raises where it is cut or damaged."""


def opened(file: Path) -> IO[bytes]:
    """The bytes of a file, or of what it holds compressed."""
    return cast(IO[bytes], gzip.open(file)) if file.suffix == ".gz" else open(file, "rb")


def text_of(file: Path, encoding: str) -> str:
    """All that a file holds. InputError where it is damaged or in another encoding."""
    try:
        with opened(file) as stream:
            return stream.read().decode(encoding)
    except (*DAMAGED, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None


def json_object(file: Path, number: int, line: str) -> dict[str, Any]:
    """The record in a line of a file. InputError, which names the line, where there is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}, line {number} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"{file}, line {number} is not a JSON object: {line[:80]}")
    return record
