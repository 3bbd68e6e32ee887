"""Metrics against hand values and scikit-learn."""

import math

import numpy as np
import pytest
import torch

from recsys.eval.metrics import METRICS, hr_at_k, mrr_at_k, ndcg_at_k


def test_ndcg_of_second_place_is_one_over_log2_of_three():
    assert ndcg_at_k(torch.tensor([1]), 10).item() == pytest.approx(1 / math.log2(3), abs=1e-15)


def test_the_first_place_is_worth_one_under_every_metric():
    assert all(
        metric(torch.tensor([0]), k).item() == 1 for metric in METRICS.values() for k in (1, 9)
    )


def test_hand_values_at_the_edge_of_the_list():
    ranks = torch.tensor([0, 2, 4, 5, 99])
    assert hr_at_k(ranks, 5).tolist() == [1, 1, 1, 0, 0]
    assert mrr_at_k(ranks, 5).tolist() == [1, 1 / 3, 1 / 5, 0, 0]
    assert ndcg_at_k(ranks, 5).tolist() == pytest.approx([1, 0.5, 1 / math.log2(6), 0, 0])


def test_metrics_are_float64_one_a_target():
    for metric in METRICS.values():
        assert metric(torch.tensor([3, 0]), 2).dtype == torch.float64
        assert metric(torch.empty(0, dtype=torch.int64), 2).shape == (0,)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_ndcg_is_that_of_scikit_learn(k):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    scores, target = random.normal(size=(40, 30)), random.integers(30, size=40)
    own = scores[np.arange(40), target]
    rank = torch.from_numpy((scores > own[:, None]).sum(axis=1))
    relevant = np.eye(30)[target]
    expected = sklearn_metrics.ndcg_score(relevant, scores, k=k)
    assert ndcg_at_k(rank, k).mean().item() == pytest.approx(expected)
