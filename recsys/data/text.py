"""What a catalogue says of its items in words, as attributes and as sentences."""

import importlib.util
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import InputError

Report = Callable[[str], None]
LONGEST = 10_000
"""Characters of one text that are read; more say nothing new of an item."""
FIRST = ("title", "brand", "categories")
"""Columns in the order in which an item is described; others follow by name."""
_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class Attributes:
    """The texts of V items, column by column."""

    columns: list[str]
    """Names of the columns, in the order in which an item is described."""
    values: list[list[str | None]]
    """For each column a text for each item, None where nothing is said; no text is empty."""


def item_attributes(catalogue: pa.Table, report: Report | None = None) -> Attributes:
    """The columns of a catalogue that hold texts, or lists of texts (joined by commas).

    Texts are in Unicode's composed form with single blanks, and end at LONGEST characters.
    `report` is told what was cut, and how many items have no title and no text at all. InputError
    where no item has any text.
    """
    columns = _text_columns(catalogue)
    values = []
    cut = 0
    for name in columns:
        texts: list[str | None] = []
        for value in catalogue[name].to_pylist():
            if isinstance(value, list):
                value = ", ".join(part for part in value if part)
            cut += len(value or "") > LONGEST
            texts.append(clean(value[:LONGEST]) or None if value else None)
        values.append(texts)
    nameless = sum(not any(texts) for texts in zip(*values, strict=True)) if values else 0
    if not values or nameless == catalogue.num_rows:
        raise InputError(
            "nothing is known of the items in words: give their titles, brands, categories or other"
            " texts in a table of items, as in recsys data prepare … --items FILE"
        )
    if report is not None:
        total = f"of {catalogue.num_rows:,} items"
        if cut:
            report(f"{cut:,} texts were cut at {LONGEST:,} characters")
        if "title" in columns and (untitled := values[columns.index("title")].count(None)):
            report(f"{untitled:,} {total} have no title")
        if nameless:
            report(f"{nameless:,} {total} have no text at all")
    return Attributes(columns, values)


def sentences(attributes: Attributes) -> list[str]:
    """One text an item: its values with a stop between them; "" where nothing is said."""
    rows = zip(*attributes.values, strict=True)
    return [". ".join(value for value in row if value) for row in rows]


def clean(text: str) -> str:
    """Composed Unicode, without control characters, single blanks, none at the ends."""
    return _BLANKS.sub(" ", unicodedata.normalize("NFC", text)).strip()


def without_text(catalogue: pa.Table) -> int:
    """How many items have a text in no column."""
    silent = pa.array([True] * catalogue.num_rows, pa.bool_())
    for name in _text_columns(catalogue):
        column = catalogue[name]
        size = pc.list_value_length(column) if _is_list(column.type) else pc.utf8_length(column)
        silent = pc.and_(silent, pc.equal(pc.fill_null(size, 0), 0))
    return int(pc.sum(silent).as_py() or 0)


def need_package(module: str, package: str) -> None:
    """InputError unless a package of the extra `text` is installed."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f"texts of items need the package {package}: pip install 'recsys[text]'")


def _text_columns(catalogue: pa.Table) -> list[str]:
    columns = [field.name for field in catalogue.schema if is_text(field)]
    if len(columns) > 1 and "text" in columns:
        columns.remove("text")  # all the others in one
    return sorted(
        columns, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)
    )


def is_text(field: pa.Field) -> bool:
    """Whether a column of a catalogue holds texts, or lists of texts."""
    if field.name in ("item", "count"):
        return False
    kind = field.type.value_type if _is_list(field.type) else field.type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def flat(value: Any) -> Iterator[Any]:
    """What lists in lists hold, in order, however deep they are; a value alone is itself."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += reversed(part)
        else:
            yield part


def unbroken(text: str) -> str:
    """Halves of characters, which JSON can spell and no file can hold, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
