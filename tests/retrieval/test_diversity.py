"""Maximal marginal relevance against its definition, word by word."""

import numpy as np
import pytest

from recsys.retrieval.diversity import diversified


def by_definition(scores, vectors, k, weight):
    """Picked places, one at a time, from the formula."""
    low, high = min(scores), max(scores)
    relevance = [(s - low) / (high - low) if high > low else 1.0 for s in scores]

    def cosine(a, b):
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / lengths) if lengths else 0.0

    picked: list[int] = []
    while len(picked) < min(k, len(scores)):
        value = {
            place: (1 - weight) * relevance[place]
            - weight * max((cosine(vectors[place], vectors[p]) for p in picked), default=0.0)
            for place in range(len(scores))
            if place not in picked
        }
        picked.append(max(value, key=lambda place: (round(value[place], 9), scores[place], -place)))
    return picked


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_it_picks_as_the_formula_says(weight, seed):
    random = np.random.default_rng(seed)
    scores, vectors = random.normal(size=30), random.normal(size=(30, 4))
    vectors[3] = 0
    found = diversified(np.arange(1, 31), scores, vectors, 8, weight)
    assert found.tolist() == by_definition(scores.tolist(), vectors, 8, weight)


def test_the_second_of_two_twins_waits_for_another_kind():
    scores, vectors = np.array([3.0, 2.9, 1.0]), np.array([[1.0, 0], [1, 0], [0, 1]])
    places = diversified(np.array([7, 8, 9]), scores, vectors, 3, 0.6)
    assert places.tolist() == [0, 2, 1]


def test_without_weight_the_order_is_that_of_the_scores():
    scores = np.array([1.0, 5.0, 5.0, 2.0])
    found = diversified(np.arange(1, 5), scores, np.ones((4, 2)), 10, 0.0)
    assert found.tolist() == [1, 2, 3, 0]


def test_no_candidates_give_no_list():
    empty = np.zeros(0)
    assert diversified(empty, empty, np.zeros((0, 3)), 5, 0.5).tolist() == []
