"""Retriever: a run folder as an object that takes raw item ids and gives raw item ids."""

import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.checkpoint import ITEMS, MODEL_FACTS, load_model, read_config, read_items
from recsys.data.item_features import load_item_features
from recsys.data.vocab import Vocab
from recsys.errors import InputError
from recsys.layers.item_encoder import knows_by_features
from recsys.models.base import Recommender, SequenceModel
from recsys.retrieval.index import INDEX, Index, load_index
from recsys.retrieval.snapshot import Recommendations, Snapshot
from recsys.retrieval.upsert import upserted

INDEX_FROM = 200_000
"""Items from which a saved index is used without being asked for; exact search is fast below."""

Through = Literal["auto", "exact", "index"]


class Retriever:
    """Serves one snapshot of model and catalogue at a time; threads may share a retriever.

    A request sees the snapshot of the moment it came in, whole, whatever is changed meanwhile.
    """

    def __init__(
        self,
        model: Recommender,
        catalogue: pa.Table,
        index: Index | None,
        device: torch.device | str,
        vectors: Callable[[pa.Table], np.ndarray] | None = None,
    ):
        """`vectors` makes fixed vectors float32 [N, F] of items described by a table, for models
        that know items by them."""
        self._now = Snapshot(model, catalogue, index, device)
        self._vectors = vectors
        self._writing = threading.Lock()

    @property
    def model(self) -> Recommender:
        """The model that answers."""
        return self._now.model

    @property
    def vocab(self) -> Vocab:
        """The raw ids of the catalogue."""
        return self._now.vocab

    @property
    def max_len(self) -> int:
        """Items of a history that the model sees, the last ones."""
        return self._now.model.max_len

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        index: Through = "auto",
    ) -> "Retriever":
        """From a run folder alone. `threads` sets torch's threads for the whole process.

        `index="auto"` uses the run's FAISS index where there is one and the catalogue is large.
        Raises InputError where the folder is not whole, damaged, or its index of other weights.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        run = Path(run)
        model, catalogue = load_model(run, device), read_items(run)
        trained_on = read_config(run, MODEL_FACTS)["dataset"]["items"]
        if catalogue.num_rows != trained_on:
            raise InputError(
                f"{run / ITEMS} names {catalogue.num_rows:,} items, the model was trained on"
                f" {trained_on:,}: they do not belong together"
            )
        wanted = index == "index" or (
            index == "auto" and catalogue.num_rows >= INDEX_FROM and (run / INDEX).is_file()
        )
        described = isinstance(model, SequenceModel) and knows_by_features(model)
        vectors = load_item_features(run).transform if described else None
        return cls(model, catalogue, load_index(run) if wanted else None, device, vectors)

    def recommend(
        self,
        history: Sequence[Any],
        k: int = 10,
        *,
        times: Sequence[int] | None = None,
        exclude: Collection[Any] = (),
        exclude_seen: bool = True,
    ) -> Recommendations:
        """The k best items after a history of raw ids, oldest first.

        `times` are those of the history, in the unit of the training data; models that see time
        (hstu_rec, lssl_rec) were trained with them where the log has them. Unknown ids of the
        history are skipped and reported, those of `exclude` do not matter. A history without a
        known item is answered by popularity, and marked so. Fewer than k items come back only when
        the catalogue holds no more.
        """
        (found,) = self.recommend_batch(
            [history],
            k,
            times=None if times is None else [times],
            exclude=exclude,
            exclude_seen=exclude_seen,
        )
        return found

    def recommend_batch(
        self,
        histories: Sequence[Sequence[Any]],
        k: int = 10,
        *,
        times: Sequence[Sequence[int]] | None = None,
        exclude: Collection[Any] = (),
        exclude_seen: bool = True,
    ) -> list[Recommendations]:
        """`recommend` for many histories at once."""
        if k < 1:
            raise InputError(f"k must be at least 1, got {k}")
        now = self._now
        encoded = [_encode(now.vocab, "a history", history, Sequence) for history in histories]
        hidden, _ = _encode(now.vocab, "exclude", exclude, Collection)
        known = [items for items, _ in encoded if items]
        moments = None if times is None else _times_of_known(now.vocab, histories, times)
        rows, row = [], 0
        if known:
            batch = _batch(known, moments, now.model.max_len)
            items_BK, scores_BK = now.search(batch, k, _pairs(known, hidden, exclude_seen))
        for items, unknown in encoded:
            if items:
                rows.append(now.decode(items_BK[row], scores_BK[row], unknown, None))
                row += 1
            else:
                rows.append(now.popular(k, hidden, unknown))
        return rows

    def recommend_items(
        self, batch: Batch, k: int, *, seen: tuple[Tensor, Tensor] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """([B, k] int64 item numbers, best first, 0 where there are no more; [B, k] float32
        scores).

        `seen` are (row, item) pairs that must not come back. The batch is scored in one block.
        """
        return self._now.search(batch, k, seen)

    def titles(self, raw_ids: Sequence[Any]) -> list[str | None]:
        """Titles of raw ids; None where there is none."""
        now, titles = self._now, []
        for raw in raw_ids:
            items, _ = now.vocab.encode([raw])
            titles.append(now.titles[items[0] - 1] if items else None)
        return titles

    def upsert_items(self, items: Any) -> int:
        """Serve new items by their text, without training; how many of them were new.

        `items`: a pandas DataFrame or an Arrow table with a column `item` of raw ids and the
        columns of text that the training data had, as in title, brand, categories. A known item
        takes the new texts. Requests that have begun end with the catalogue they began with.
        InputError where the model does not know items by their text, or the index of the run is
        used, which does not grow.
        """
        with self._writing:
            before = len(self.vocab)
            self._now = upserted(self._now, items, self._vectors)
            return len(self.vocab) - before


def _encode(
    vocab: Vocab, what: str, raw_ids: Collection[Any], kind: type
) -> tuple[list[int], list[Any]]:
    """(item numbers, unknown raw ids); a word is no list of ids, though it can be walked."""
    plain: Any = raw_ids.tolist() if isinstance(raw_ids, np.ndarray) else raw_ids
    if isinstance(plain, str | bytes) or not issubclass(type(plain), kind):
        raise InputError(f"{what} is a list of item ids, got {type(raw_ids).__name__} {raw_ids!r}")
    try:
        return vocab.encode(plain)
    except TypeError:  # a list or dictionary in the place of an id
        raise InputError(f"{what} holds what cannot be an item id: {raw_ids!r}") from None


def _times_of_known(
    vocab: Vocab, histories: Sequence[Sequence[Any]], times: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The times of the known items, of the histories that have any."""
    if [len(row) for row in times] != [len(history) for history in histories]:
        raise InputError("times must name one time for each item of a history")
    rows = [
        [int(time) for raw, time in zip(history, row, strict=True) if raw in vocab]
        for history, row in zip(histories, times, strict=True)
    ]
    return [row for row in rows if row]


def _batch(histories: list[list[int]], times: list[list[int]] | None, max_len: int) -> Batch:
    """The last max_len items of each history."""
    lengths = [min(len(history), max_len) for history in histories]
    return Batch(
        _padded(histories, lengths),
        torch.tensor(lengths),
        None if times is None else _padded(times, lengths),
    )


def _pairs(
    histories: list[list[int]], hidden: list[int], exclude_seen: bool
) -> tuple[Tensor, Tensor]:
    """(row, item) of all that must not come back."""
    masked = [history + hidden if exclude_seen else hidden for history in histories]
    rows = [row for row, items in enumerate(masked) for _ in items]
    return (
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor([item for items in masked for item in items], dtype=torch.int64),
    )


def _padded(rows: list[list[int]], lengths: list[int]) -> Tensor:
    """[B, T] int64: the last `lengths` numbers of each row, and zeros behind them."""
    longest = max(lengths)
    return torch.tensor(
        [row[-size:] + [0] * (longest - size) for row, size in zip(rows, lengths, strict=True)]
    )
