"""Snapshot: one state of model and catalogue, and search in it. Nothing in it ever changes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.data.vocab import Vocab
from recsys.models.base import Recommender, Scorer, SequenceModel
from recsys.retrieval.index import Index


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


class Snapshot:
    """A model and its catalogue; row i-1 of the table is item i."""

    def __init__(
        self,
        model: Recommender,
        catalogue: pa.Table,
        index: Index | None,
        device: torch.device | str,
    ):
        self.model = model
        self.catalogue = catalogue
        self.index = index
        self.device = device
        self.vocab = Vocab(catalogue["item"])
        titled = "title" in catalogue.column_names
        self.titles = catalogue["title"].to_pylist() if titled else [None] * len(self.vocab)
        counts = catalogue["count"].to_pylist() if "count" in catalogue.column_names else None
        self._popularity = torch.from_numpy(
            np.concatenate([[0], [0] * len(self.vocab) if counts is None else counts]).astype(
                np.float32
            )
        ).to(device)
        with torch.inference_mode():
            self._scorer: Scorer = model.scorer()

    @torch.inference_mode()
    def search(
        self, batch: Batch, k: int, seen: tuple[Tensor, Tensor] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """([B, k] int64 item numbers, best first, 0 where there are no more; [B, k] float32
        scores). `seen` are (row, item) pairs that must not come back."""
        batch = batch.to(self.device)
        if self.index is None or not isinstance(self.model, SequenceModel):
            return self._exact(self._scorer(batch), k, seen)
        query_BD = self.model.query(batch).float().cpu().numpy()
        hidden = _hidden_a_row(seen, len(query_BD))
        return self._through_index(self.index, query_BD, k, hidden)

    def popular(self, k: int, hidden: list[int], unknown: list[Any]) -> Recommendations:
        """The most frequent items of training, marked as such."""
        scores_BV = self._popularity[None].clone()
        pairs = torch.zeros(len(hidden), dtype=torch.int64), torch.tensor(hidden, dtype=torch.int64)
        items_BK, scores_BK = self._exact(scores_BV, k, pairs)
        return self.decode(items_BK[0], scores_BK[0], unknown, "popularity")

    def decode(
        self, items_K: np.ndarray, scores_K: np.ndarray, unknown: list[Any], fallback: str | None
    ) -> Recommendations:
        """Item numbers and scores as raw ids with their titles."""
        items = [item for item in items_K.tolist() if item > 0]
        return Recommendations(
            self.vocab.decode(items),
            scores_K[: len(items)].tolist(),
            [self.titles[item - 1] for item in items],
            unknown,
            fallback,
        )

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


def _hidden_a_row(seen: tuple[Tensor, Tensor] | None, rows: int) -> list[set[int]]:
    hidden: list[set[int]] = [set() for _ in range(rows)]
    if seen is not None:
        for row, item in zip(seen[0].tolist(), seen[1].tolist(), strict=True):
            hidden[row].add(item)
    return hidden
