"""Snapshot: one state of model and catalogue, and search in it. Nothing in it ever changes."""

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recsys.batch import Batch
from recsys.data.vocab import Vocab
from recsys.errors import InputError
from recsys.models.base import Recommender, SequenceModel
from recsys.retrieval.filters import passing
from recsys.retrieval.index import Index
from recsys.retrieval.lookup import Lookup, title_of

FILTERS_KEPT = 256
"""Distinct filter expressions whose items are remembered."""
EXACT_SHARE = 0.1
"""Where a smaller share of the catalogue may come back, it is searched without the index."""


Describe = Callable[[pa.Table], np.ndarray]
"""Items described by a table -> what a model knows them by, [N, F]."""


@dataclass(frozen=True)
class Recommendations:
    """What to show for one question, best first."""

    items: list[Any]
    """Raw item ids."""
    scores: list[float]
    """Inner products (or counts, for the baselines), or probabilities where those were asked for;
    larger is better."""
    titles: list[str | None]
    """Titles, None where the catalogue has none."""
    unknown: list[Any]
    """Raw ids of the history that the catalogue does not know; they were skipped."""
    fallback: str | None
    """"popularity" where the history held no known item, else None."""
    short: str | None = None
    """Why fewer than k items came back, else None."""
    model_version: str = ""
    """Start of the fingerprint of the weights that answered."""
    catalogue_version: int = 0
    """Changes of the catalogue since the run was loaded."""
    index_version: str | None = None
    """Start of the checksum of the index that was searched; None where every item was scored."""


class Snapshot:
    """A model and its catalogue; row i-1 of the table is item i."""

    def __init__(
        self,
        model: Recommender,
        catalogue: pa.Table,
        index: Index | None,
        device: torch.device | str,
        *,
        fingerprint: str = "",
        describe: Describe | None = None,
    ):
        """`fingerprint` is that of the weights; `describe` makes the fixed vectors that a model
        knows items by."""
        self.device = device
        self.fingerprint = fingerprint
        self.describe = describe
        self.catalogue_version = 0
        self._take(model, catalogue)
        self.index = index if isinstance(model, SequenceModel) else None
        self.removed_V = np.zeros(len(self.vocab) + 1, dtype=bool)
        self.unavailable_V = self.removed_V
        self.available_V = _real(~self.removed_V)
        self.stale_N = np.zeros(0, dtype=np.int64)

    @property
    def model_version(self) -> str:
        """Start of the fingerprint of the weights."""
        return self.fingerprint[:12]

    @property
    def index_version(self) -> str | None:
        """Start of the checksum of the index; None without one."""
        return None if self.index is None else self.index.version

    @property
    def vectors_VD(self) -> Tensor:
        """float32 [V+1, D] what items are known by. InputError for a model without such vectors."""
        if self._vectors_VD is None:
            raise InputError(f"{type(self.model).__name__} has no item vectors")
        return self._vectors_VD

    def _take(self, model: Recommender, catalogue: pa.Table) -> None:
        """The parts that follow from model and catalogue alone."""
        self.model = model
        self.catalogue = catalogue
        self.vocab = Vocab(catalogue["item"])
        size = len(self.vocab)
        titled = "title" in catalogue.column_names
        named = catalogue["title"].to_pylist() if titled else [None] * size
        self.titles = [title_of(title) for title in named]
        counted = "count" in catalogue.column_names
        counts = catalogue["count"].to_pylist() if counted else [0] * size
        self._popularity_V = torch.from_numpy(np.concatenate([[0], counts]).astype(np.float32))
        self._popularity_V = self._popularity_V.to(self.device)
        self.lookup = Lookup(catalogue)
        self._filters: dict[str, np.ndarray] = {}
        self._filtering = threading.Lock()
        self._vectors_VD: Tensor | None = None
        with torch.inference_mode():
            if isinstance(model, SequenceModel):
                self._vectors_VD = model.item_vectors().detach().float()
                self._norms_V = self._vectors_VD.norm(dim=1).clamp_min(1e-12)
            else:
                self._scorer = model.scorer()

    def with_items(
        self, model: Recommender, catalogue: pa.Table, place_N: np.ndarray
    ) -> "Snapshot":
        """This snapshot after its items `place_N` were described anew; numbers above V are new.
        An item that was removed is back."""
        new = copy.copy(self)
        new._take(model, catalogue)
        more = np.zeros(catalogue.num_rows + 1 - len(self.removed_V), dtype=bool)
        removed_V = np.concatenate([self.removed_V, more])
        removed_V[place_N] = False
        new.stale_N = np.union1d(self.stale_N, place_N)
        return new._with(removed_V, np.concatenate([self.unavailable_V, more]))

    def without(self, items_N: np.ndarray) -> "Snapshot":
        """This snapshot with some items removed: they do not come back, but may be asked with."""
        removed_V = self.removed_V.copy()
        removed_V[items_N] = True
        return copy.copy(self)._with(removed_V, self.unavailable_V)

    def with_available(self, items_N: np.ndarray, available: bool) -> "Snapshot":
        """This snapshot with some items in stock, or out of it, from now on."""
        unavailable_V = self.unavailable_V.copy()
        unavailable_V[items_N] = not available
        return copy.copy(self)._with(self.removed_V, unavailable_V)

    def _with(self, removed_V: np.ndarray, unavailable_V: np.ndarray) -> "Snapshot":
        """Itself, a copy that no one has yet, with other items closed."""
        self.removed_V, self.unavailable_V = removed_V, unavailable_V
        self.available_V = _real(~(removed_V | unavailable_V))
        self.catalogue_version += 1
        return self

    def with_index(self, index: Index | None) -> "Snapshot":
        """This snapshot searched through an index of all its items as they are now, or exactly."""
        new = copy.copy(self)
        new.index = index
        new.stale_N = np.zeros(0, dtype=np.int64)
        return new

    def allowed(self, filters: str | None, allow: list[int] | None) -> np.ndarray | None:
        """bool [V+1] of what may come back; None where nothing is asked for and all is there."""
        allowed_V = self.available_V
        if filters is not None:
            with self._filtering:
                passing_V = self._filters.get(filters)
            if passing_V is None:
                passing_V = passing(filters, self.catalogue)
                with self._filtering:
                    if len(self._filters) >= FILTERS_KEPT:
                        self._filters.pop(next(iter(self._filters)))
                    self._filters[filters] = passing_V
            allowed_V = allowed_V & passing_V
        if allow is not None:
            named_V = np.zeros(len(allowed_V), dtype=bool)
            named_V[allow] = True
            allowed_V = allowed_V & named_V
        return None if allowed_V is self.available_V and allowed_V[1:].all() else allowed_V

    @torch.inference_mode()
    def search(
        self,
        batch: Batch,
        k: int,
        seen: tuple[Tensor, Tensor] | None,
        allowed_V: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """([B, k] int64 item numbers, best first, 0 where there are no more; [B, k] float32
        scores). `seen` are (row, item) pairs that must not come back."""
        if not isinstance(self.model, SequenceModel):
            return _best(self._scorer(batch.to(self.device)), k, seen, allowed_V)
        return self.search_queries(self.query(batch), k, seen, allowed_V)

    @torch.inference_mode()
    def query(self, batch: Batch) -> Tensor:
        """float32 [B, D] the query at the end of each history. InputError for a counting model."""
        if not isinstance(self.model, SequenceModel):
            raise InputError(f"{type(self.model).__name__} has no queries")
        return self.model.query(batch.to(self.device)).float()

    @torch.inference_mode()
    def scores(self, batch: Batch, items_N: np.ndarray) -> np.ndarray:
        """float32 [B, N] the scores of some items alone, exact also where there is an index."""
        chosen_N = torch.from_numpy(items_N).to(self.device)
        if isinstance(self.model, SequenceModel):
            return (self.query(batch) @ self.vectors_VD[chosen_N].T).cpu().numpy()
        return self._scorer(batch.to(self.device))[:, chosen_N].cpu().numpy()

    @torch.inference_mode()
    def similar(
        self, item: int, k: int, seen: tuple[Tensor, Tensor], allowed_V: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """([k] items, most similar first, 0 where there are no more; [k] cosines of vectors)."""
        vector_D = torch.nn.functional.normalize(self.vectors_VD[item], dim=0)
        cosine_1V = (self.vectors_VD @ vector_D / self._norms_V)[None]
        items_1K, scores_1K = _best(cosine_1V, k, seen, allowed_V)
        return items_1K[0], scores_1K[0]

    @torch.inference_mode()
    def search_queries(
        self,
        query_BD: Tensor,
        k: int,
        seen: tuple[Tensor, Tensor] | None,
        allowed_V: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`search` for queries float32 [B, D] of the model."""
        if self.index is not None and self.is_indexed(allowed_V):
            hidden = _hidden_a_row(seen, len(query_BD))
            return self._through_index(self.index, query_BD.cpu().numpy(), k, hidden, allowed_V)
        return _best(query_BD @ self.vectors_VD.T, k, seen, allowed_V)

    def is_indexed(self, allowed_V: np.ndarray | None) -> bool:
        """Whether a search among the allowed items goes through the index."""
        if self.index is None or allowed_V is None:
            return self.index is not None
        return bool(np.count_nonzero(allowed_V) >= EXACT_SHARE * len(self.vocab))

    @torch.inference_mode()
    def probabilities(self, query_BD: Tensor, scores_BK: np.ndarray) -> np.ndarray:
        """float32 [B, K]: scores as softmax over all items that are available."""
        scores_BV = query_BD @ self.vectors_VD.T
        scores_BV[:, torch.from_numpy(~self.available_V).to(scores_BV.device)] = -torch.inf
        total_B1 = torch.logsumexp(scores_BV, dim=1, keepdim=True).cpu().numpy()
        return np.exp(scores_BK - total_B1)

    def popular(
        self, k: int, seen: tuple[Tensor, Tensor], allowed_V: np.ndarray | None
    ) -> np.ndarray:
        """Numbers of the k most frequent items of training, most frequent first."""
        items_1K, _ = _best(self._popularity_V[None].clone(), k, seen, allowed_V)
        return items_1K[0]

    def counts(self, items_K: np.ndarray) -> np.ndarray:
        """float32 [K]: how often items stood in training."""
        return self._popularity_V.cpu().numpy()[items_K]

    def count_share(self, items_K: np.ndarray) -> np.ndarray:
        """float32 [K]: their share of all events of training."""
        return self.counts(items_K) / max(1.0, float(self._popularity_V.sum()))

    def vectors(self, items_N: np.ndarray) -> np.ndarray:
        """float32 [N, D] of some items. InputError for a model without item vectors."""
        return self.vectors_VD[torch.from_numpy(items_N).to(self.device)].cpu().numpy()

    def _through_index(
        self,
        index: Index,
        query_BD: np.ndarray,
        k: int,
        hidden: list[set[int]],
        allowed_V: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fetch as many more as are hidden, and twice as many again while a row comes out short.

        Items described since the index was built are scored one by one beside it.
        """
        if allowed_V is None:
            allowed_V = self.available_V
        usable_V = allowed_V
        if len(self.stale_N):
            usable_V = allowed_V.copy()
            usable_V[self.stale_N] = False
        num_items, usable = len(self.vocab), int(np.count_nonzero(usable_V))
        items_BK = np.zeros((len(query_BD), min(k, num_items)), dtype=np.int64)
        scores_BK = np.full(items_BK.shape, -np.inf, dtype=np.float32)
        todo = np.arange(len(query_BD))
        longest = max(map(len, hidden), default=0)
        width = min(num_items, -(-(k + longest) * num_items // max(usable, 1)))
        while len(todo) and usable:
            found, scores = index.search(query_BD[todo], width)
            short = []
            for row, items, values in zip(todo, found, scores, strict=True):
                kept = [
                    i for i, item in enumerate(items) if usable_V[item] and item not in hidden[row]
                ][:k]
                items_BK[row, : len(kept)] = items[kept]
                scores_BK[row, : len(kept)] = values[kept]
                unseen = usable - sum(bool(usable_V[item]) for item in hidden[row])
                if len(kept) < min(k, unseen) and width < num_items:
                    short.append(row)
            todo, width = np.array(short, dtype=np.int64), min(num_items, width * 2)
        return self._with_stale(query_BD, items_BK, scores_BK, hidden, allowed_V)

    def _with_stale(
        self,
        query_BD: np.ndarray,
        items_BK: np.ndarray,
        scores_BK: np.ndarray,
        hidden: list[set[int]],
        allowed_V: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best of what the index found and of the items that it knows otherwise or not."""
        stale_S = self.stale_N[allowed_V[self.stale_N]]
        if not len(stale_S):
            return items_BK, scores_BK
        scores_BS = query_BD @ self.vectors(stale_S).T
        for row, unwanted in enumerate(hidden):
            scores_BS[row, np.isin(stale_S, list(unwanted))] = -np.inf
        both = np.concatenate([scores_BK, scores_BS], axis=1)
        items = np.concatenate([items_BK, np.broadcast_to(stale_S, scores_BS.shape)], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, : items_BK.shape[1]]
        scores = np.take_along_axis(both, order, axis=1).astype(np.float32)
        return np.where(np.isneginf(scores), 0, np.take_along_axis(items, order, axis=1)), scores


def _real(items_V: np.ndarray) -> np.ndarray:
    """The same without padding."""
    items_V[0] = False
    return items_V


def _best(
    scores_BV: Tensor, k: int, seen: tuple[Tensor, Tensor] | None, allowed_V: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of every item's score, which is overwritten."""
    scores_BV[:, 0] = -torch.inf
    if allowed_V is not None:
        closed_V = torch.from_numpy(~allowed_V).to(scores_BV.device)
        scores_BV.masked_fill_(closed_V, -torch.inf)
    if seen is not None:
        scores_BV[seen[0].to(scores_BV.device), seen[1].to(scores_BV.device)] = -torch.inf
    top = torch.topk(scores_BV, min(k, scores_BV.shape[1] - 1), dim=1)
    scores_BK = top.values.cpu().numpy()
    items_BK = top.indices.cpu().numpy()
    return np.where(np.isneginf(scores_BK), 0, items_BK), scores_BK


def _hidden_a_row(seen: tuple[Tensor, Tensor] | None, rows: int) -> list[set[int]]:
    hidden: list[set[int]] = [set() for _ in range(rows)]
    if seen is not None:
        for row, item in zip(seen[0].tolist(), seen[1].tolist(), strict=True):
            hidden[row].add(item)
    return hidden
