"""A user's own table of items: what is known of them besides the log."""

import csv
import io
import math
import re
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from recsys.data.files import json_object, text_of
from recsys.data.text import FIRST, Report, flat, unbroken
from recsys.errors import InputError, nearest

ID_COLUMNS = ("item", "item_id", "itemid", "id", "asin", "parent_asin", "product_id", "sku")
"""Names of the column of item ids, likeliest first, as they are guessed."""
FEWEST_IDS = 20
"""Values from which on a column is taken for one of ids: fewer tell too little."""
_NUMBER = re.compile(r"[-+]?[$€£]?\s*\d[\d.,]*(e[-+]?\d+)?\s*%?", re.IGNORECASE)
_WHOLE = re.compile(r"[-+]?\d{1,18}")
_GROUPED = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_ID_MARK = re.compile(r"[\d/]")

Kind = Literal["texts", "lists", "numbers", "ids", "nested", "nothing"]


def read_item_table(
    path: Path, id_column: str | None, report: Report, log_column: str | None = None
) -> pa.Table:
    """`item` (strings), then `title`, then every other column of texts, of lists of texts or of
    numbers, which filters may ask for.

    CSV, TSV, JSON lines (each also .gz) or Parquet. Missing and blank values are null; columns of
    other ids, of lists of numbers and of nested values are left out. The first of several rows of
    an item counts. `log_column` is what the log calls its items, the likeliest name here too.
    `report` is told what was kept and left out. InputError where the file cannot be read, names no
    item or holds nothing else.
    """
    rows = _rows(path)
    if not rows:
        raise InputError(f"{path} is empty: it names no items")
    names = list(dict.fromkeys(name for row in rows for name in row))
    key = _id_column(path, names, id_column, log_column)
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if (item := _id(row.get(key))) is not None:
            found.setdefault(item, row)
    if not found:
        raise InputError(f"{path} names no item in its column {key!r}")
    if twice := sum(_id(row.get(key)) is not None for row in rows) - len(found):
        report(f"{path.name}: {twice:,} rows name an item again and are left out")
    columns = {name: [row.get(name) for row in found.values()] for name in names if name != key}
    kinds = {name: _kind(name, values) for name, values in columns.items()}
    told = [name for name, kind in kinds.items() if kind in ("texts", "lists")]
    numbers = {
        name: column
        for name, kind in kinds.items()
        if kind == "numbers" and _plain(name) != "title"
        if (column := _numbers(columns[name])) is not None
    }
    left = [f"{name} ({kind})" for name, kind in kinds.items() if name not in (*told, *numbers)]
    without = f"; left out: {', '.join(left)}" if left else ""
    if not told and not numbers:
        raise InputError(f"{path} holds nothing but item ids in {key!r}{without}")
    kept = f"texts in {', '.join(told)}" if told else "no texts"
    kept += f", numbers in {', '.join(numbers)}" if numbers else ""
    report(f"{path.name}: item = {key!r}, {kept}{without}")
    table = {"item": pa.array(list(found), pa.string())}
    for name in sorted(told, key=lambda name: _plain(name) != "title"):
        make = _lists if kinds[name] == "lists" else _texts
        stored = name if told == ["text"] else _stored_name(name, [*names, *table], "text")
        table[stored] = make(columns[name])
    for name, column in numbers.items():
        table[_stored_name(name, [*names, *table], "number")] = column
    return pa.table(table)


def _plain(name: str) -> str:
    """A column's name as it is compared: RecBole's `item_id:token` is `item_id`."""
    return name.partition(":")[0].strip().lower().replace("-", "_").replace(" ", "_")


def _stored_name(name: str, taken: list[str], kind: Literal["text", "number"]) -> str:
    """The column's own name. `item` and `count` are the toolkit's, and `text` is what it calls all
    that is known in one; beside others it is one of them."""
    if _plain(name) == "title":
        return "title"
    if name not in ("item", "count", "text"):
        return name
    renamed = "description" if (name, kind) == ("text", "text") else f"{name}_{kind}"
    while renamed in taken:
        renamed += "_"
    return renamed


def _id_column(path: Path, names: list[str], wish: str | None, log_column: str | None) -> str:
    if wish is not None:
        if wish not in names:
            raise InputError(
                f"{path} has no column {wish!r}{nearest(wish, names)} (columns: {', '.join(names)})"
            )
        return wish
    if log_column in names:
        return log_column
    plain = {_plain(name): name for name in reversed(names)}
    key = next((plain[guess] for guess in ID_COLUMNS if guess in plain), None)
    if key is None:
        raise InputError(
            f"which column of {path} holds the item ids? Say it with --items-id-column, as a"
            f" setting data.items_id_column (columns: {', '.join(names)})"
        )
    return key


def _id(value: Any) -> str | None:
    """An id as a text; None for none. A whole number that was read as a float is one again."""
    if value is None or value != value or str(value).strip() == "":
        return None
    whole = isinstance(value, float) and value.is_integer()
    return unbroken(str(int(value) if whole else value))


def _kind(name: str, values: list[Any]) -> Kind:
    """What a column holds, by its values that say anything."""
    said = [value for value in values if not _is_blank(value)]
    if not said:
        return "nothing"
    if any(isinstance(value, dict) for value in said):
        return "nested"
    listed = sum(isinstance(value, list) for value in said)
    parts = [part for value in said for part in flat(value)]
    if listed not in (0, len(said)) or any(isinstance(part, dict) for part in parts):
        return "nested"
    if all(not isinstance(part, str) or _NUMBER.fullmatch(part.strip()) for part in parts):
        return "numbers"
    if listed:
        return "lists"
    words = [str(value).strip() for value in said]
    marked = sum(bool(_ID_MARK.search(word)) for word in words)
    single = len(set(words)) == len(words) and not any(" " in word for word in words)
    # Numbers of a shop and addresses of pictures describe nothing: another one for each item.
    if (
        single
        and len(words) > FEWEST_IDS
        and marked > 0.9 * len(words)
        and _plain(name) not in FIRST
    ):
        return "ids"
    return "texts"


def _is_blank(value: Any) -> bool:
    if isinstance(value, list | dict):  # which may be too deep to be written as a text
        return value == []
    return value is None or value != value or str(value).strip() == ""


def _texts(values: list[Any]) -> pa.Array:
    texts = [None if _is_blank(value) else unbroken(str(value)) for value in values]
    return pa.array(texts, pa.string())


def _numbers(values: list[Any]) -> pa.Array | None:
    """int64 or float64, null for what is blank; None where a number has no one reading."""
    try:
        plain = [None if _is_blank(value) else _number(value) for value in values]
        whole = all(value is None or isinstance(value, int) for value in plain)
        return pa.array(plain, pa.int64() if whole else pa.float64())
    except (ValueError, OverflowError, pa.ArrowInvalid):
        return None


def _number(value: Any) -> int | float:
    """3, "3.50", "$3.50" or "1,299.50". ValueError for lists, shares and what is not finite."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value
    text = str(value).strip().lstrip("$€£").strip()
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    if _WHOLE.fullmatch(text):
        return int(text)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _lists(values: list[Any]) -> pa.Array:
    """Lists of texts, nested ones made flat; null for an empty one."""
    lists = [
        [unbroken(str(part)) for part in flat(value) if not _is_blank(part)] for value in values
    ]
    return pa.array([parts or None for parts in lists], pa.list_(pa.string()))


def _rows(path: Path) -> list[dict[str, Any]]:
    """One dictionary a row."""
    if not path.is_file():
        raise InputError(f"the table of items {path} does not exist or is not a file")
    name = path.name.removesuffix(".gz")
    if path.name.endswith((".parquet", ".pq")):
        import pyarrow.parquet as pq

        try:
            return list(pq.ParquetFile(path).read().to_pylist())
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{path} cannot be read as Parquet: {error}") from None
    text = text_of(path, "utf-8-sig")
    if name.endswith((".json", ".jsonl", ".ndjson")):
        return _json_rows(path, text)
    return _csv_rows(path, text)


def _json_rows(path: Path, text: str) -> list[dict[str, Any]]:
    # Not splitlines: a text may hold other ends of lines, as U+2028.
    lines = enumerate(text.split("\n"), start=1)
    return [json_object(path, number, line) for number, line in lines if line.strip()]


def _csv_rows(path: Path, text: str) -> list[dict[str, Any]]:
    first = text.partition("\n")[0].rstrip("\r")
    delimiter = max(("\t", ",", ";", "|"), key=lambda mark: (first.count(mark), mark == ","))
    lines = io.StringIO(text)
    if delimiter == "\t":  # there, quotes are as they stand
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows: list[dict[str, Any]] = []
    try:
        header = next(reader, [])
        if len(set(header)) != len(header) or not all(header):
            raise InputError(
                f"{path}: the first line must name each column once, got {first[:120]!r}"
            )
        for values in reader:
            if values and len(values) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num} has {len(values)} fields, the first line"
                    f" {len(header)}"
                )
            rows += [dict(zip(header, values, strict=True))] if values else []
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} cannot be read: {error}") from None
    return rows
