"""The catalogue by words: which items have all of them in their title or id."""

import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.sequences import int_array
from recsys.errors import InputError

WORDS = 20
"""Most distinct words of a search."""
LONGEST = 1_000
"""Most characters of a search."""
SHOWN = ("item", "title", "count")
"""Columns of the catalogue that are shown."""


@dataclass(frozen=True)
class FoundItem:
    """An item of the catalogue."""

    item: Any
    """Raw id."""
    title: str | None
    """Its title, None where the catalogue has none."""
    available: bool
    """Whether it may be recommended now."""
    count: int | None
    """How often it stood in training, None where the catalogue does not say."""


@dataclass(frozen=True)
class Found:
    """A page of what a search found."""

    total: int
    """Items found, on this page and on others."""
    items: list[FoundItem]
    """Those of this page, most frequent in training first."""


def title_of(value: Any) -> str | None:
    """A title as one text, whatever the catalogue holds in its place."""
    if value is None or isinstance(value, str):
        return value
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


class Lookup:
    """A catalogue as it is searched; row i-1 is item i.

    The first search takes longer: it writes the texts down in the order of the answers. They are
    kept as long as the catalogue.
    """

    def __init__(self, catalogue: pa.Table):
        self._catalogue = catalogue

    def found(
        self, search: str, limit: int, offset: int, removed_V: np.ndarray, available_V: np.ndarray
    ) -> Found:
        """`Retriever.find_items` where bool [V+1] says what is removed, and what is available."""
        if limit < 1:
            raise InputError(f"limit must be at least 1, got {limit}")
        if offset < 0:
            raise InputError(f"offset must be at least 0, got {offset}")
        items_N = self._matching(_words(search))
        items_N = items_N[~removed_V[items_N]]
        page_K = items_N[offset : offset + limit]
        names = [name for name in SHOWN if name in self._catalogue.column_names]
        rows = self._catalogue.select(names).take(int_array(page_K - 1)).to_pylist()
        items = [
            FoundItem(
                row["item"], title_of(row.get("title")), bool(available_V[item]), row.get("count")
            )
            for item, row in zip(page_K, rows, strict=True)
        ]
        return Found(len(items_N), items)

    def _matching(self, words: list[str]) -> np.ndarray:
        """int64 [N] items that have every word, most frequent first."""
        items_N, texts_N = self._order_V, self._texts_V
        for word in sorted(words, key=len, reverse=True):
            places = pc.indices_nonzero(pc.match_substring(texts_N, word, ignore_case=True))
            items_N, texts_N = items_N[_numbers(places)], texts_N.take(places)
        return items_N

    @cached_property
    def _order_V(self) -> np.ndarray:
        """int64 [V] all items, most frequent first, equally frequent ones in catalogue order."""
        if "count" not in self._catalogue.column_names:
            return np.arange(1, self._catalogue.num_rows + 1)
        counts_V = np.array(self._catalogue["count"].to_pylist())
        return np.argsort(-counts_V, kind="stable") + 1

    @cached_property
    def _texts_V(self) -> pa.Array:
        """Title and id of `_order_V`, on a line each, accents composed as in a search."""
        texts = self._catalogue["item"].cast(pa.large_string())
        if "title" in self._catalogue.column_names:
            titles = self._catalogue["title"]
            if pa.types.is_list(titles.type):
                titles = pc.binary_join(titles, _line_end(pa.string()))
            titles, line_end = titles.cast(pa.large_string()), _line_end(pa.large_string())
            texts = pc.binary_join_element_wise(titles, texts, line_end, null_handling="skip")
        composed = pc.utf8_normalize(texts.combine_chunks(), form="NFC")
        return composed.take(int_array(self._order_V - 1))


def _words(search: str) -> list[str]:
    """The distinct words of a search. InputError where it is no text, or too long."""
    if not isinstance(search, str):
        raise InputError(f"search is a text, got {type(search).__name__} {search!r}")
    try:
        search.encode()
    except UnicodeEncodeError:  # half a character, which JSON can spell
        raise InputError(f"search is no text: {search!r}") from None
    words = list(dict.fromkeys(unicodedata.normalize("NFC", search).split()))
    if len(words) > WORDS or len(search) > LONGEST:
        raise InputError(
            f"search takes at most {WORDS} words and {LONGEST:,} characters, got {len(words)}"
            f" words and {len(search):,} characters"
        )
    return words


def _line_end(kind: pa.DataType) -> pa.Scalar:
    """A line end of a type of texts. Arrow's own `scalar` would import pandas: 40 MB."""
    width = np.int32 if pa.types.is_string(kind) else np.int64
    offsets = pa.py_buffer(np.array([0, 1], dtype=width))
    return pa.Array.from_buffers(kind, 1, [None, offsets, pa.py_buffer(b"\n")])[0]


def _numbers(places: pa.UInt64Array) -> np.ndarray:
    """The memory of an Arrow array. Its own `to_numpy` would import pandas: 40 MB."""
    numbers: np.ndarray = np.frombuffer(places.buffers()[1], dtype=np.uint64)
    return numbers[places.offset : places.offset + len(places)]
