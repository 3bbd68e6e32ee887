"""Amazon reviews of 2014, 2018 and 2023, in their publisher's files."""

import ast
import html
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.data.files import DAMAGED, opened
from recsys.data.interactions import Columns, Source
from recsys.data.text import flat, unbroken
from recsys.errors import InputError

Report = Callable[[str], None]
LONGEST_LINE = 1 << 22
"""Characters; a longer line of item facts is skipped and counted, never parsed."""

COLUMNS_2014 = Columns("reviewerID", "asin", "unixReviewTime")
COLUMNS_2023 = Columns("user_id", "parent_asin", "timestamp")

CATEGORIES_2014 = {
    "beauty": "Beauty",
    "sports": "Sports_and_Outdoors",
    "toys": "Toys_and_Games",
    "games": "Video_Games",
    "books": "Books",
    "electronics": "Electronics",
    "movies": "Movies_and_TV",
    "cds": "CDs_and_Vinyl",
    "clothing": "Clothing_Shoes_and_Jewelry",
    "home": "Home_and_Kitchen",
    "kindle": "Kindle_Store",
    "health": "Health_and_Personal_Care",
    "cellphones": "Cell_Phones_and_Accessories",
    "apps": "Apps_for_Android",
    "tools": "Tools_and_Home_Improvement",
    "pets": "Pet_Supplies",
    "automotive": "Automotive",
    "grocery": "Grocery_and_Gourmet_Food",
    "patio": "Patio_Lawn_and_Garden",
    "baby": "Baby",
    "music": "Digital_Music",
    "instruments": "Musical_Instruments",
    "video": "Amazon_Instant_Video",
    "office": "Office_Products",
}

_TAG = re.compile(r"<[^>]{1,500}>")


def source(name: str, year: int, reviews: Path, meta: Path | None, report: Report) -> Source:
    """The reviews of one category as a log, with what `meta` says of its items."""
    if meta is None:
        report(f"{name}: no meta file beside {reviews.name}, items have no titles")
    k_core = 5 if year == 2023 else 1  # the older releases' files are 5-core already
    return Source(
        name,
        (reviews,),
        format="json",
        columns=COLUMNS_2023 if year == 2023 else COLUMNS_2014,
        read_items=None if meta is None else lambda: read_items(meta, report),
        item_files=() if meta is None else (meta,),
        min_user_events=k_core,
        min_item_events=k_core,
    )


def read_items(meta: Path, report: Report) -> pa.Table:
    """item, title, brand, categories and text of every line of a meta file, of any release.

    The lines are JSON, or Python literals (2014); a line that is neither is counted, never run.
    """
    rows: dict[str, dict[str, Any]] = {}
    unread = 0
    for line in _lines(meta):
        record = _parse(line)
        raw = record.get("parent_asin") or record.get("asin") if record is not None else None
        if record is None or not isinstance(raw, str):
            unread += 1
            continue
        rows.setdefault(raw, _facts(record))
    if unread:
        report(f"{meta.name}: {unread:,} lines could not be read and were skipped")
    schema = pa.schema(
        [
            ("item", pa.string()),
            ("title", pa.string()),
            ("brand", pa.string()),
            ("categories", pa.list_(pa.string())),
            ("text", pa.string()),
        ]
    )
    return pa.Table.from_pylist(
        [{"item": raw, **facts} for raw, facts in rows.items()], schema=schema
    )


def _lines(path: Path) -> Iterator[str]:
    try:
        with opened(path) as stream:
            file = io.TextIOWrapper(stream, encoding="utf-8")
            while line := file.readline(LONGEST_LINE):
                if line.strip():
                    yield line
    except (*DAMAGED, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except RecursionError:
        return None
    except ValueError:
        try:
            record = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None  # counted by the caller
    return record if isinstance(record, dict) else None


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    title = _clean(record.get("title"))
    brand = _clean(record.get("brand") or record.get("store"))
    nested = record.get("categories") or record.get("category") or []
    categories = list(dict.fromkeys(filter(None, map(_clean, flat(nested)))))
    text = ". ".join(part for part in (title, brand, ", ".join(categories)) if part)
    return {"title": title, "brand": brand, "categories": categories, "text": text or None}


def _clean(value: Any) -> str | None:
    """Plain text: entities decoded, tags removed; a title that is a piece of script is no title."""
    if not isinstance(value, str):
        return None
    text = " ".join(_TAG.sub(" ", html.unescape(unbroken(value))).split())
    return None if not text or "function(" in text or text.startswith("var ") else text[:1000]


def numbered_source(name: str, sequences: Path, texts: Path, numbers: Path) -> Source:
    """`user item item …` lines, `asin text` lines and `asin number` lines, tab-separated."""

    def read_numbered_items() -> pa.Table:
        number_of = dict(_pairs(numbers))
        known = [(number_of[asin], text) for asin, text in _pairs(texts) if asin in number_of]
        if not known:
            raise InputError(f"{texts} and {numbers} have no item in common")
        return pa.Table.from_pylist([{"item": item, **_parts(text)} for item, text in known])

    return Source(
        name,
        (sequences,),
        format="sequences",
        read_items=read_numbered_items,
        item_files=(texts, numbers),
    )


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    """The two fields of each line."""
    for number, line in enumerate(_lines(path), start=1):
        key, tab, value = line.rstrip("\n").partition("\t")
        if not tab:
            raise InputError(f"{path}, line {number} has no tab: {line[:80]}")
        yield key, value.strip()


def _parts(text: str) -> dict[str, str | None]:
    """Title, categories and brand of UniSRec's `title. categories. brand.`; the categories begin
    with the name of the store."""
    found = re.fullmatch(r"(.*?)\. (Industrial & Scientific.*?)(?:\. (.*?))?\.?\s*", text)
    title, categories, brand = found.groups() if found else (text, None, None)
    return {
        "title": title or None,
        "brand": brand or None,
        "categories": categories,
        "text": text or None,
    }
