"""Exact ranks over the full catalogue."""

import math

import torch
from torch import Tensor

from recsys.errors import WorkError


def target_ranks(
    scores_BV: Tensor, target_B: Tensor, seen: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """[B] int64: how many items stand before the target, 0 for the best place.

    scores_BV [B, V+1] float, column 0 is padding and never counts; overwritten. target_B int64.
    `seen` (row, item) int64 pairs are masked with minus infinity, the target too if it is among
    them. Every other item with the same score as the target stands before it. Raises WorkError when
    a score is not a number.
    """
    # One pass instead of two: the sum is finite unless some score is not, or the sum overflows.
    if not math.isfinite(scores_BV.sum()) and bool(torch.isnan(scores_BV).any()):
        raise WorkError("the model scored an item with NaN; its weights or its input are broken")
    scores_BV[:, 0] = -math.inf
    if seen is not None:
        scores_BV[seen] = -math.inf
    target_score_B1 = scores_BV.gather(1, target_B[:, None])
    # Compared in place and summed as float32, exact up to 2^24 items (a half-precision sum is not):
    # summing a bool tensor would first copy it to int64 and costs four times as much.
    padding_B = target_score_B1[:, 0] == -math.inf
    ahead_B = scores_BV.ge_(target_score_B1).sum(dim=1, dtype=torch.float32).long()
    # The target itself is counted, and so is the padding column where the target is masked too.
    return ahead_B - 1 - padding_B.long()
