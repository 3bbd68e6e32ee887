"""Negatives: drawn where they should be, as often as they should be, with the right log rate."""

import math

import pytest
import torch

from recsys.data.negatives import NegativeSampler

COUNTS = torch.tensor([0, 6, 3, 1, 0])  # item 4 was never seen: it counts as seen once
SHARES = torch.tensor([6, 3, 1, 1]) / 11


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
@pytest.mark.parametrize(("per_pair", "shape"), [(False, (5,)), (True, (3, 5))])
def test_shapes_and_range(kind, per_pair, shape):
    drawn = NegativeSampler(kind, 5, per_pair, COUNTS).draw(torch.tensor([1, 2, 3]), generator())
    assert drawn.items.shape == drawn.log_q.shape == shape
    assert drawn.items.min() >= 1
    assert drawn.items.max() <= 4


def test_popularity_draws_in_proportion_to_counts():
    drawn = NegativeSampler("popularity", 60_000, False, COUNTS).draw(
        torch.tensor([1]), generator()
    )
    shares = torch.bincount(drawn.items, minlength=5)[1:] / 60_000
    torch.testing.assert_close(shares, SHARES, atol=0.01, rtol=0)


def test_log_q_is_the_log_of_the_expected_number_of_draws():
    drawn = NegativeSampler("popularity", 8, False, COUNTS).draw(torch.tensor([1, 4]), generator())
    expected = torch.log(8 * SHARES)
    torch.testing.assert_close(drawn.log_q, expected[drawn.items - 1])
    torch.testing.assert_close(drawn.target_log_q, expected[[0, 3]])
    uniform = NegativeSampler("uniform", 8, False, COUNTS).draw(torch.tensor([2]), generator())
    torch.testing.assert_close(uniform.log_q, torch.full((8,), math.log(8 / 4)))


@pytest.mark.parametrize("alpha", [0.5, 0.0])
def test_popularity_may_be_flattened_by_a_power(alpha):
    sampler = NegativeSampler("popularity", 60_000, False, COUNTS, alpha)
    drawn = sampler.draw(torch.tensor([1, 4]), generator())
    powers = torch.tensor([6.0, 3.0, 1.0, 1.0]) ** alpha
    expected = powers / powers.sum()
    shares = torch.bincount(drawn.items, minlength=5)[1:] / 60_000
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.log_q, torch.log(60_000 * expected)[drawn.items - 1])
    torch.testing.assert_close(drawn.target_log_q, torch.log(60_000 * expected)[[0, 3]])


def test_a_seed_draws_what_it_has_always_drawn():
    drawn = NegativeSampler("popularity", 8, False, COUNTS).draw(torch.tensor([1]), generator())
    assert drawn.items.tolist() == [4, 2, 1, 4, 2, 2, 1, 1]
    drawn = NegativeSampler("uniform", 8, False, COUNTS).draw(torch.tensor([1]), generator())
    assert drawn.items.tolist() == [1, 4, 2, 1, 4, 4, 4, 4]


def test_negatives_of_both_kinds_are_the_targets_and_what_is_drawn_by_popularity():
    target = torch.tensor([2, 1, 2])
    both = NegativeSampler("in_batch_and_popularity", 5, False, COUNTS, 0.5)
    popular = NegativeSampler("popularity", 5, False, COUNTS, 0.5)
    items = both.draw(target, generator()).items
    assert items.tolist() == [2, 1, 2, *popular.draw(target, generator()).items.tolist()]


def test_the_rate_of_an_item_of_both_kinds_is_that_of_either_source_together():
    powers = torch.tensor([6.0, 3.0, 1.0, 1.0]) ** 0.5
    expected = torch.log(3 * SHARES + 5 * powers / powers.sum())
    sampler = NegativeSampler("in_batch_and_popularity", 5, False, COUNTS, 0.5)
    drawn = sampler.draw(torch.tensor([2, 1, 2]), generator())
    torch.testing.assert_close(drawn.log_q, expected[drawn.items - 1])
    torch.testing.assert_close(drawn.target_log_q, expected[[1, 0, 1]])


@pytest.mark.parametrize("kind", ["uniform", "popularity", "in_batch", "in_batch_and_popularity"])
def test_negatives_counted_by_their_rates_stand_for_the_whole_catalogue(kind):
    targets = NegativeSampler("popularity", 30_000, False, COUNTS)
    target = targets.draw(torch.tensor([1]), generator(1)).items
    alpha = 0.3 if "popularity" in kind else 1.0
    drawn = NegativeSampler(kind, 20_000, False, COUNTS, alpha).draw(target, generator())
    found = torch.bincount(drawn.items, weights=(-drawn.log_q).exp(), minlength=5)
    torch.testing.assert_close(found[1:], torch.ones(4), atol=0.06, rtol=0)


def test_in_batch_negatives_are_the_other_targets():
    target = torch.tensor([2, 1, 2])
    drawn = NegativeSampler("in_batch", 99, False, COUNTS).draw(target, generator())
    assert drawn.items.tolist() == [2, 1, 2]
    torch.testing.assert_close(drawn.log_q, torch.log(3 * SHARES)[[1, 0, 1]])


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
def test_a_generator_in_the_same_state_draws_the_same(kind):
    sampler = NegativeSampler(kind, 20, True, COUNTS)
    target = torch.tensor([1, 2])
    assert torch.equal(
        sampler.draw(target, generator(1)).items, sampler.draw(target, generator(1)).items
    )
    assert not torch.equal(
        sampler.draw(target, generator(1)).items, sampler.draw(target, generator(2)).items
    )
