"""Retriever: a run folder as an object that takes raw item ids and gives raw item ids."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.checkpoint import ITEMS, MODEL_FACTS, load_model, read_config, read_items
from recsys.data.vocab import Vocab
from recsys.errors import InputError
from recsys.models.base import Recommender, Scorer, SequenceModel
from recsys.retrieval.index import INDEX, Index, load_index

INDEX_FROM = 200_000
"""Items from which a saved index is used without being asked for; exact search is fast below."""

Through = Literal["auto", "exact", "index"]


@dataclass(frozen=True)
class Recommendations:
    """What to show for one history, best first."""

    items: list[Any]
    """Raw item ids."""
    scores: list[float]
    """Inner products (or counts, for the baselines); larger is better."""
    titles: list[str | None]
    """Titles, None where the catalogue has none."""
    unknown: list[Any]
    """Raw ids of the history that the catalogue does not know; they were skipped."""
    fallback: str | None
    """"popularity" where the history held no known item, else None."""


class Retriever:
    """Immutable after loading, so threads may share one."""

    def __init__(
        self,
        model: Recommender,
        catalogue: pa.Table,
        index: Index | None,
        device: torch.device | str,
    ):
        self.vocab = Vocab(catalogue["item"])
        self.max_len = model.max_len
        self._device = device
        self.model = model
        self._index = index
        titled = "title" in catalogue.column_names
        self._titles = catalogue["title"].to_pylist() if titled else [None] * len(self.vocab)
        counts = catalogue["count"].to_pylist() if "count" in catalogue.column_names else None
        self._popularity = torch.from_numpy(
            np.concatenate([[0], [0] * len(self.vocab) if counts is None else counts]).astype(
                np.float32
            )
        ).to(device)
        with torch.inference_mode():
            self._scorer: Scorer = model.scorer()

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
        return cls(model, catalogue, load_index(run) if wanted else None, device)

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
        encoded = [self._encode("a history", history, Sequence) for history in histories]
        hidden, _ = self._encode("exclude", exclude, Collection)
        known = [items for items, _ in encoded if items]
        moments = None if times is None else self._times_of_known(histories, times)
        rows, row = [], 0
        if known:
            items_BK, scores_BK = self._search_lists(known, moments, k, hidden, exclude_seen)
        for items, unknown in encoded:
            if items:
                rows.append(self._decode(items_BK[row], scores_BK[row], unknown, None))
                row += 1
            else:
                rows.append(self._popular(k, hidden, unknown))
        return rows

    @torch.inference_mode()
    def recommend_items(
        self, batch: Batch, k: int, *, seen: tuple[Tensor, Tensor] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """([B, k] int64 item numbers, best first, 0 where there are no more; [B, k] float32
        scores).

        `seen` are (row, item) pairs that must not come back. The batch is scored in one block.
        """
        batch = batch.to(self._device)
        if self._index is None or not isinstance(self.model, SequenceModel):
            return self._exact(self._scorer(batch), k, seen)
        query_BD = self.model.query(batch).float().cpu().numpy()
        hidden = _hidden_a_row(seen, len(query_BD))
        return self._through_index(self._index, query_BD, k, hidden)

    def titles(self, raw_ids: Sequence[Any]) -> list[str | None]:
        """Titles of raw ids; None where there is none."""
        titles = []
        for raw in raw_ids:
            items, _ = self.vocab.encode([raw])
            titles.append(self._titles[items[0] - 1] if items else None)
        return titles

    def _encode(
        self, what: str, raw_ids: Collection[Any], kind: type
    ) -> tuple[list[int], list[Any]]:
        """(item numbers, unknown raw ids); a word is no list of ids, though it can be walked."""
        plain: Any = raw_ids.tolist() if isinstance(raw_ids, np.ndarray) else raw_ids
        if isinstance(plain, str | bytes) or not issubclass(type(plain), kind):
            raise InputError(
                f"{what} is a list of item ids, got {type(raw_ids).__name__} {raw_ids!r}"
            )
        try:
            return self.vocab.encode(plain)
        except TypeError:  # a list or dictionary in the place of an id
            raise InputError(f"{what} holds what cannot be an item id: {raw_ids!r}") from None

    def _times_of_known(
        self, histories: Sequence[Sequence[Any]], times: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """The times of the known items, of the histories that have any."""
        if [len(row) for row in times] != [len(history) for history in histories]:
            raise InputError("times must name one time for each item of a history")
        rows = [
            [int(time) for raw, time in zip(history, row, strict=True) if raw in self.vocab]
            for history, row in zip(histories, times, strict=True)
        ]
        return [row for row in rows if row]

    def _search_lists(
        self,
        histories: list[list[int]],
        times: list[list[int]] | None,
        k: int,
        hidden: list[int],
        exclude_seen: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        lengths = [min(len(history), self.max_len) for history in histories]
        batch = Batch(
            _padded(histories, lengths),
            torch.tensor(lengths),
            None if times is None else _padded(times, lengths),
        )
        masked = [history + hidden if exclude_seen else hidden for history in histories]
        rows = [row for row, items in enumerate(masked) for _ in items]
        seen = (
            torch.tensor(rows, dtype=torch.int64),
            torch.tensor([item for items in masked for item in items], dtype=torch.int64),
        )
        return self.recommend_items(batch, k, seen=seen)

    def _exact(
        self, scores_BV: Tensor, k: int, seen: tuple[Tensor, Tensor] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        scores_BV[:, 0] = -torch.inf
        if seen is not None:
            scores_BV[seen[0].to(scores_BV.device), seen[1].to(scores_BV.device)] = -torch.inf
        top = torch.topk(scores_BV, min(k, scores_BV.shape[1] - 1), dim=1)
        scores_BK = top.values.cpu().numpy()
        items_BK = top.indices.cpu().numpy()
        return np.where(np.isneginf(scores_BK), 0, items_BK), scores_BK

    def _through_index(
        self, index: Index, query_BD: np.ndarray, k: int, hidden: list[set[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fetch as many more as are hidden, and twice as many again while a row comes out short."""
        num_items = len(self.vocab)
        items_BK = np.zeros((len(query_BD), min(k, num_items)), dtype=np.int64)
        scores_BK = np.full(items_BK.shape, -np.inf, dtype=np.float32)
        todo = np.arange(len(query_BD))
        width = min(num_items, k + max(map(len, hidden), default=0))
        while len(todo):
            found, scores = index.search(query_BD[todo], width)
            short = []
            for row, items, values in zip(todo, found, scores, strict=True):
                kept = [i for i, item in enumerate(items) if item > 0 and item not in hidden[row]][
                    :k
                ]
                items_BK[row, : len(kept)] = items[kept]
                scores_BK[row, : len(kept)] = values[kept]
                if len(kept) < min(k, num_items - len(hidden[row])) and width < num_items:
                    short.append(row)
            todo, width = np.array(short, dtype=np.int64), min(num_items, width * 2)
        return items_BK, scores_BK

    def _popular(self, k: int, hidden: list[int], unknown: list[Any]) -> Recommendations:
        scores_BV = self._popularity[None].clone()
        pairs = torch.zeros(len(hidden), dtype=torch.int64), torch.tensor(hidden, dtype=torch.int64)
        items_BK, scores_BK = self._exact(scores_BV, k, pairs)
        return self._decode(items_BK[0], scores_BK[0], unknown, "popularity")

    def _decode(
        self, items_K: np.ndarray, scores_K: np.ndarray, unknown: list[Any], fallback: str | None
    ) -> Recommendations:
        items = [item for item in items_K.tolist() if item > 0]
        return Recommendations(
            self.vocab.decode(items),
            scores_K[: len(items)].tolist(),
            [self._titles[item - 1] for item in items],
            unknown,
            fallback,
        )


def _padded(rows: list[list[int]], lengths: list[int]) -> Tensor:
    """[B, T] int64: the last `lengths` numbers of each row, and zeros behind them."""
    longest = max(lengths)
    return torch.tensor(
        [row[-size:] + [0] * (longest - size) for row, size in zip(rows, lengths, strict=True)]
    )


def _hidden_a_row(seen: tuple[Tensor, Tensor] | None, rows: int) -> list[set[int]]:
    hidden: list[set[int]] = [set() for _ in range(rows)]
    if seen is not None:
        for row, item in zip(seen[0].tolist(), seen[1].tolist(), strict=True):
            hidden[row].add(item)
    return hidden
