"""Ranks and metrics of a model on held-out targets, with intervals over users."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recsys.data.loader import flat_positions, query_batches
from recsys.data.sequences import SequenceDataset
from recsys.data.split import Queries
from recsys.errors import InputError
from recsys.eval.metrics import METRICS
from recsys.eval.ranks import target_ranks
from recsys.models.base import Recommender
from recsys.retrieval.retriever import Retriever

Seen = Literal["mask", "keep"]
SCORE_BYTES = 24 << 20
"""Size of one block of scores. Larger blocks fall out of the cache, smaller ones cost calls."""
MAX_K = 10**9
"""Largest cut-off: more than any catalogue, and a number that every array can be compared with."""
RESAMPLES = 1000
"""Bootstrap resamples behind an interval."""


@dataclass(frozen=True)
class Evaluation:
    """What a model did on Q targets."""

    rank_Q: Tensor
    """int64, 0 for the best place; V where the target was not found at all."""
    user_Q: np.ndarray
    """int64 user number of each target."""

    @property
    def users(self) -> int:
        """Users with at least one target."""
        return len(np.unique(self.user_Q))

    def among(self, chosen_Q: np.ndarray) -> "Evaluation":
        """The same of some targets alone; chosen_Q bool."""
        return Evaluation(self.rank_Q[torch.from_numpy(chosen_Q)], self.user_Q[chosen_Q])

    def metrics(self, ks: Sequence[int]) -> dict[str, float]:
        """{"hr@10": mean over targets, ...} for every metric and k."""
        return {
            f"{name}@{k}": float(metric(self.rank_Q, k).mean())
            for k in ks
            for name, metric in METRICS.items()
        }

    def with_intervals(self, ks: Sequence[int], seed: int = 0) -> dict[str, dict[str, object]]:
        """{"hr@10": {"value": x, "ci95": [lo, hi]}, ...}; intervals are a bootstrap over users."""
        values = self.metrics(ks)
        samples = self._resampled(ks, seed)
        low, high = np.quantile(samples, [0.025, 0.975], axis=0)
        return {
            name: {"value": value, "ci95": [float(low[i]), float(high[i])]}
            for i, (name, value) in enumerate(values.items())
        }

    def values(self, ks: Sequence[int]) -> np.ndarray:
        """[Q, metrics] float64, columns as in `metrics`."""
        columns = [metric(self.rank_Q, k) for k in ks for metric in METRICS.values()]
        return torch.stack(columns, dim=1).numpy()

    def _resampled(self, ks: Sequence[int], seed: int) -> np.ndarray:
        """[RESAMPLES, metrics] means over users drawn with replacement."""
        random = np.random.default_rng(seed)
        values = self.values(ks)
        users, place = np.unique(self.user_Q, return_inverse=True)
        if len(users) == len(values):
            # One target a user: users with the same rank are alike, so drawing users is drawing
            # how many have each rank, a multinomial over at most max(ks) + 1 outcomes.
            outcome, kind = np.unique(np.minimum(self.rank_Q.numpy(), max(ks)), return_inverse=True)
            count = np.bincount(kind, minlength=len(outcome))
            table = np.stack([values[kind == i][0] for i in range(len(outcome))])
            return (
                random.multinomial(len(users), count / len(users), RESAMPLES) @ table / len(users)
            )
        return _means_of_drawn_users(values, place, random)


@torch.inference_mode()
def evaluate(
    model: Recommender,
    dataset: SequenceDataset,
    queries: Queries,
    seen: Seen = "mask",
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Rank every target among the whole catalogue. `seen="mask"` takes the history out of it."""
    model.eval()
    scorer = model.scorer()
    rank_Q = torch.empty(len(queries), dtype=torch.int64)
    batch_size = max(1, min(1024, SCORE_BYTES // (4 * (dataset.num_items + 1))))
    for rows, batch in query_batches(dataset, queries, batch_size, model.max_len):
        target_B = torch.from_numpy(dataset.items[queries.end[rows]].astype(np.int64))
        seen_pairs = _seen_pairs(dataset, queries, rows, device) if seen == "mask" else None
        scores_BV = scorer(batch.to(device))
        rank_Q[torch.from_numpy(rows)] = target_ranks(
            scores_BV, target_B.to(device), seen_pairs
        ).cpu()
    return Evaluation(rank_Q, queries.user)


def evaluate_through(
    retriever: Retriever, dataset: SequenceDataset, queries: Queries, seen: Seen, k: int
) -> Evaluation:
    """Ranks from the retriever's own first k answers; a target not among them has rank V, or k
    where that is more. Answers with the score of the target stand before it."""
    rank_Q = np.full(len(queries), max(dataset.num_items, k), dtype=np.int64)
    # One more than k: of a target in the last place it says whether others come with it.
    most = min(k + 1, dataset.num_items)
    for rows, batch in query_batches(dataset, queries, 1024, retriever.max_len):
        pairs = _seen_pairs(dataset, queries, rows, "cpu") if seen == "mask" else None
        items_BK, scores_BK = retriever.recommend_items(batch, most, seen=pairs)
        found_BK = items_BK == dataset.items[queries.end[rows]][:, None]
        score_B1 = np.where(found_BK, scores_BK, -np.inf).max(axis=1, keepdims=True)
        rank_B = ((scores_BK >= score_B1) & (items_BK > 0)).sum(axis=1) - 1
        found_B = found_BK.any(axis=1) & (rank_B < k)
        rank_Q[rows[found_B]] = rank_B[found_B]
    return Evaluation(torch.from_numpy(rank_Q), queries.user)


def paired_difference(
    one: Evaluation, other: Evaluation, ks: Sequence[int], seed: int = 0
) -> dict[str, dict[str, object]]:
    """Per metric: mean of other - one, and its 95 % bootstrap interval over users."""
    if not np.array_equal(one.user_Q, other.user_Q):
        raise InputError("the two evaluations are not over the same targets")
    random = np.random.default_rng(seed)
    difference = other.values(ks) - one.values(ks)
    _, place = np.unique(one.user_Q, return_inverse=True)
    drawn = _means_of_drawn_users(difference, place, random)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return {
        name: {
            "difference": float(difference[:, i].mean()),
            "ci95": [float(low[i]), float(high[i])],
        }
        for i, name in enumerate(one.metrics(ks))
    }


def _means_of_drawn_users(
    values: np.ndarray, place: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """[RESAMPLES, metrics] means over the targets of users drawn with replacement.

    values float64 [Q, metrics]; place int64 [Q], the user of each target, counted from 0.
    """
    users = int(place.max()) + 1
    # The last column counts targets: users have different numbers of them.
    sums = np.zeros((users, values.shape[1] + 1))
    np.add.at(sums, place, np.column_stack([values, np.ones(len(values))]))
    drawn = (sums[random.integers(users, size=users)].sum(axis=0) for _ in range(RESAMPLES))
    return np.stack([total[:-1] / total[-1] for total in drawn])


def check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    """Cut-offs in rising order; InputError where one is below 1 or above MAX_K."""
    if not ks or min(ks) < 1:
        raise InputError(f"--k takes whole numbers from 1, got {', '.join(map(str, ks)) or 'none'}")
    if max(ks) > MAX_K:
        raise InputError(f"--k takes whole numbers up to {MAX_K}, got {max(ks)}")
    return tuple(sorted(set(ks)))


def _seen_pairs(
    dataset: SequenceDataset, queries: Queries, rows: np.ndarray, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """(row in the batch, item) of everything in the histories, also of what max_len cuts off."""
    row, position = flat_positions(queries.start[rows], queries.end[rows])
    items = dataset.items[position].astype(np.int64)
    return torch.from_numpy(row).to(device), torch.from_numpy(items).to(device)
