"""Ranking metrics of one relevant item, from its rank. Pure functions."""

from collections.abc import Callable

import torch
from torch import Tensor


def hr_at_k(rank_N: Tensor, k: int) -> Tensor:
    """[N] float64: 1 where the target is among the first k. rank_N int64 counts from 0."""
    return (rank_N < k).double()


def ndcg_at_k(rank_N: Tensor, k: int) -> Tensor:
    """[N] float64: 1 / log2(rank + 2) where the target is among the first k, else 0."""
    return hr_at_k(rank_N, k) / torch.log2(rank_N.double() + 2)


def mrr_at_k(rank_N: Tensor, k: int) -> Tensor:
    """[N] float64: 1 / (rank + 1) where the target is among the first k, else 0."""
    return hr_at_k(rank_N, k) / (rank_N.double() + 1)


METRICS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "hr": hr_at_k,
    "ndcg": ndcg_at_k,
    "mrr": mrr_at_k,
}
