"""Ranks over the full catalogue: ties, masks, infinities and what is not a number."""

import math

import pytest
import torch
from torch import Tensor

from recsys.errors import WorkError
from recsys.eval.ranks import target_ranks

INF = math.inf


def ranks(scores: list[list[float]], targets: list[int], seen=None) -> list[int]:
    """Scores of items 1..V; padding in front of them scores higher than anything."""
    padded = torch.tensor([[1e9, *row] for row in scores])
    pairs = None if seen is None else tuple(torch.tensor(seen).T)
    return target_ranks(padded, torch.tensor(targets), pairs).tolist()


def test_the_rank_counts_the_items_that_stand_before_the_target():
    assert ranks([[3.0, 1.0, 2.0]] * 3, [1, 2, 3]) == [0, 2, 1]


def test_constant_scores_rank_every_target_last():
    assert ranks([[0.0] * 5, [7.5] * 5], [1, 5]) == [4, 4]


def test_ties_count_against_the_target():
    assert ranks([[2.0, 2.0, 1.0, 3.0]], [1]) == [2]


def test_padding_never_counts():
    assert ranks([[1.0]], [1]) == [0]
    assert ranks([[-INF, -INF, -INF]], [2]) == [2]


def test_seen_items_stand_behind_the_target():
    scores = [[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]]
    assert ranks(scores, [3, 4], seen=[[0, 1], [0, 2], [1, 2], [1, 2]]) == [0, 2]


def test_a_target_that_was_seen_is_last():
    assert ranks([[4.0, 3.0, 2.0, 1.0]], [1], seen=[[0, 1]]) == [3]
    assert ranks([[4.0, 3.0, 2.0, 1.0]], [1], seen=[[0, 1], [0, 2], [0, 3], [0, 4]]) == [3]


def test_a_target_scored_minus_infinity_is_last():
    assert ranks([[-INF, -5.0, -INF]], [1]) == [2]


def test_plus_infinity_is_a_score_like_another():
    assert ranks([[INF, 0.0, 1.0]] * 3, [1, 2, 3]) == [0, 2, 1]
    assert ranks([[INF, INF, -INF]], [2]) == [1]
    assert ranks([[3e38, 3e38, 1.0]], [3]) == [2]  # whose sum overflows


@pytest.mark.parametrize("place", [0, 3])
def test_a_score_that_is_not_a_number_stops_the_work(place):
    scores = torch.zeros(2, 4)
    scores[1, place] = math.nan
    with pytest.raises(WorkError, match="NaN"):
        target_ranks(scores, torch.tensor([1, 2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ranks_beyond_what_a_short_float_counts_are_exact(dtype):
    scores: Tensor = torch.zeros(1, 2002, dtype=dtype)
    assert target_ranks(scores, torch.tensor([7])).tolist() == [2000]
