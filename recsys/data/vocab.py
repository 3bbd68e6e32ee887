"""Vocab: raw item ids of any type <-> 1..V."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from recsys.errors import InputError


class Vocab:
    """Raw ids in catalogue order: the first one is item 1."""

    def __init__(self, raw_ids: pa.Array | pa.ChunkedArray):
        if isinstance(raw_ids, pa.ChunkedArray):
            raw_ids = raw_ids.combine_chunks()
        self.raw_ids = raw_ids
        self._raw = raw_ids.to_pylist()
        self._index = {raw: i for i, raw in enumerate(self._raw, start=1)}
        if len(self._index) != len(self._raw):
            raise InputError("the catalogue names an item twice")

    def __len__(self) -> int:
        """V, the number of items without padding."""
        return len(self._raw)

    def __contains__(self, raw: object) -> bool:
        return raw in self._index

    def encode(self, raw_ids: Iterable[object]) -> tuple[list[int], list[object]]:
        """(item numbers of the known ids in order, the unknown raw ids in order)."""
        known, unknown = [], []
        for raw in raw_ids:
            item = self._index.get(raw)
            if item is None:
                unknown.append(raw)
            else:
                known.append(item)
        return known, unknown

    def decode(self, items: Sequence[int] | np.ndarray) -> list:
        """Raw ids of items 1..V."""
        raw = self._raw
        return [raw[item - 1] for item in items]

    def parse(self, text: str) -> object:
        """The raw id that `text`, typed on a command line, stands for (numbers stay numbers)."""
        if pa.types.is_integer(self.raw_ids.type):
            try:
                return int(text)
            except ValueError:
                return text
        return text
