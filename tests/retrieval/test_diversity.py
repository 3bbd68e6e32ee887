"""Maximal marginal relevance: its formula taken literally, by hand and at its edges."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.retrieval.diversity import diversified


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = math.hypot(*one) * math.hypot(*other)
    return product / lengths if lengths else 0.0


def reference(scores: list[float], vectors: list[list[float]], k: int, weight: float) -> list[int]:
    """The paper's loop, nothing kept between picks; ties to the better score, then the earlier."""
    low, high = min(scores), max(scores)
    relevance = [1.0 if high == low else (one - low) / (high - low) for one in scores]
    picked: list[int] = []
    while len(picked) < min(k, len(scores)):
        worth = {
            i: (1 - weight) * relevance[i]
            - weight * max((cosine(vectors[i], vectors[j]) for j in picked), default=0.0)
            for i in range(len(scores))
            if i not in picked
        }
        best = max(worth.values())
        tied = [i for i, value in worth.items() if value > best - 1e-9]
        picked.append(max(tied, key=lambda i: (scores[i], -i)))
    return picked


def picks(scores: list[float], vectors: list[list[float]], k: int, weight: float) -> list[int]:
    items = np.arange(1, len(scores) + 1)
    positions = diversified(
        items, np.array(scores, np.float32), np.array(vectors, np.float32), k, weight
    )
    assert positions.dtype == np.int64
    return positions.tolist()


def test_a_list_worked_out_by_hand():
    # Relevance 1, 0.9, 0.5, 0. After item 0, at weight 0.5: item 1 is its copy,
    # 0.45 - 0.5 = -0.05; item 2 is at a right angle, 0.25 - 0 = 0.25; item 3 is opposite,
    # 0 + 0.5 = 0.5 and is picked. Then item 1 has cosine 1 to item 0, -0.05, and item 2 has 0.25.
    scores, vectors = [10, 9, 5, 0], [[1, 0], [2, 0], [0, 1], [-1, 0]]
    assert picks(scores, vectors, 4, 0.5) == [0, 3, 2, 1]
    # At weight 0.2: item 1 0.72 - 0.2 = 0.52, item 2 0.4, item 3 0.2: the order by score.
    assert picks(scores, vectors, 4, 0.2) == [0, 1, 2, 3]
    # At weight 0.4: item 1 0.54 - 0.4 = 0.14, item 2 0.3, item 3 0.4; then item 2 0.3.
    assert picks(scores, vectors, 3, 0.4) == [0, 3, 2]


def test_weight_zero_is_the_order_by_score():
    random = np.random.default_rng(0)
    scores = random.integers(0, 20, 50).astype(float).tolist()
    vectors = random.normal(size=(50, 4)).tolist()
    assert picks(scores, vectors, 50, 0) == np.argsort(-np.array(scores), kind="stable").tolist()


def test_weight_one_minds_likeness_alone_after_the_best():
    vectors = [[1, 0], [1, 0.1], [1, 0.5], [0, 1], [-1, -1]]
    assert picks([1, 5, 4, 3, 2], vectors, 3, 1) == [1, 4, 3]


def test_of_equals_the_better_scored_is_picked_and_then_the_earlier():
    vectors = [[1, 0]] * 4
    assert picks([1, 3, 2, 3], vectors, 4, 1) == [1, 3, 2, 0]
    assert picks([2, 2, 2, 2], vectors, 4, 0.5) == [0, 1, 2, 3]


@pytest.mark.parametrize("num", [2, 7, 64, 101])
def test_copies_of_one_vector_come_by_score(num):
    random = np.random.default_rng(num)
    scores = random.permutation(num).astype(float)
    vectors = np.tile(random.normal(size=37), (num, 1)).tolist()
    assert picks(scores.tolist(), vectors, num, 1) == np.argsort(-scores).tolist()


def test_a_vector_of_zeros_is_like_nothing():
    vectors = [[0, 0], [1, 0], [1, 0], [1, 1]]
    assert picks([1, 4, 3, 2], vectors, 4, 1) == [1, 0, 3, 2]
    assert picks([3, 2, 1], [[0, 0]] * 3, 3, 0.9) == [0, 1, 2]


def test_the_scale_and_offset_of_scores_and_the_length_of_vectors_do_not_matter():
    random = np.random.default_rng(3)
    scores, vectors = random.normal(size=30), random.normal(size=(30, 5))
    items = np.arange(1, 31)
    plain = diversified(items, scores, vectors, 30, 0.5).tolist()
    assert plain != np.argsort(-scores).tolist()
    assert diversified(items, scores * 64 - 8, vectors, 30, 0.5).tolist() == plain
    lengths = 10.0 ** random.integers(-200, 200, (30, 1))
    assert diversified(items, scores, vectors * lengths, 30, 0.5).tolist() == plain


def test_places_without_an_item_are_never_picked_nor_counted():
    items = np.array([4, 0, 2, 9, 0])
    scores = np.array([2.0, np.inf, 3.0, 1.0, -np.inf], np.float32)
    vectors = np.array([[1, 0], [np.nan, 0], [1, 0], [0, 1], [0, 0]], np.float32)
    assert diversified(items, scores, vectors, 5, 0.6).tolist() == [2, 3, 0]
    assert diversified(items * 0, scores, vectors, 5, 0.6).tolist() == []
    assert diversified(items[:0], scores[:0], vectors[:0], 5, 0.6).tolist() == []


def test_nothing_given_is_changed():
    random = np.random.default_rng(4)
    given_arrays = np.arange(1, 9), random.normal(size=8), random.normal(size=(8, 3))
    before = [array.copy() for array in given_arrays]
    diversified(*given_arrays, 5, 0.5)
    for array, was in zip(given_arrays, before, strict=True):
        assert np.array_equal(array, was)


WHOLE = st.integers(-3, 3).map(float)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(WHOLE, st.lists(WHOLE, min_size=3, max_size=3)), min_size=1, max_size=12),
    st.integers(1, 14),
    st.sampled_from([0.0, 0.1, 0.37, 0.5, 0.93, 1.0]),
)
def test_each_pick_is_worth_as_much_as_that_of_the_formula(candidates, k, weight):
    scores, vectors = [one[0] for one in candidates], [one[1] for one in candidates]
    found = picks(scores, vectors, k, weight)
    assert len(set(found)) == len(found) == min(k, len(scores))
    assert found[0] == reference(scores, vectors, 1, weight)[0]
    # Where several are worth the same up to rounding, any of them may have been picked.
    low, high = min(scores), max(scores)
    for place in range(1, len(found)):
        worth = {
            i: (1 - weight) * (1 if high == low else (scores[i] - low) / (high - low))
            - weight * max(cosine(vectors[i], vectors[j]) for j in found[:place])
            for i in range(len(scores))
            if i not in found[:place]
        }
        assert worth[found[place]] == pytest.approx(max(worth.values()), abs=1e-6)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_list_equals_that_of_the_slow_reference(seed, weight):
    random = np.random.default_rng(seed)
    scores, vectors = random.normal(size=60), random.normal(size=(60, 8))
    wanted = reference(scores.tolist(), vectors.tolist(), 20, weight)
    assert diversified(np.arange(1, 61), scores, vectors, 20, weight).tolist() == wanted


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(InputError, match=rf"lies in \[0, 1\], got {weight}"):
        diversified(np.array([1]), np.array([1.0]), np.array([[1.0]]), 1, weight)


@pytest.mark.parametrize("k", [0, -1])
def test_a_list_of_nothing_is_refused(k):
    with pytest.raises(InputError, match=f"at least 1, got {k}"):
        diversified(np.array([1]), np.array([1.0]), np.array([[1.0]]), k, 0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_candidates_that_are_not_finite_are_refused(bad):
    items, good = np.array([1, 2]), np.array([1.0, 2.0])
    with pytest.raises(InputError, match="finite"):
        diversified(items, np.array([1.0, bad]), np.ones((2, 2)), 1, 0.5)
    with pytest.raises(InputError, match="finite"):
        diversified(items, good, np.array([[1.0, 1.0], [bad, 1.0]]), 1, 0.5)
