"""Losses against torch, against the papers' formulas by hand, and against each other."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.data.negatives import Negatives, NegativeSampler
from recsys.errors import InputError
from recsys.models.base import Pairs
from recsys.training.losses import (
    BCE,
    GBCE,
    PAIR_LOSSES,
    BPRMax,
    Cloze,
    Loss,
    SampledSoftmax,
    Softmax,
    TOP1Max,
    loss_class,
    loss_list,
)

NUM_ITEMS = 7


def vectors(seed: int = 0, num_items: int = NUM_ITEMS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_items + 1, 4, generator=generator)


def some_pairs(target: list[int], weight: list[float] | None = None) -> Pairs:
    query = torch.randn(len(target), 4, generator=torch.Generator().manual_seed(9))
    return Pairs(query, torch.tensor(target), torch.tensor(weight or [1.0] * len(target)))


def given(items: list[int] | Tensor, pairs: Pairs) -> Negatives:
    """Negatives with a log rate of zero."""
    items = torch.as_tensor(items)
    return Negatives(items, torch.zeros(items.shape), torch.zeros(len(pairs.target_N)))


def one_dimension(scores: list[float], target: int) -> tuple[Pairs, Tensor]:
    """One pair whose scores of items 1.. are the given numbers."""
    item_vectors = torch.tensor([0.0, *scores])[:, None]
    return Pairs(torch.ones(1, 1), torch.tensor([target]), torch.ones(1)), item_vectors


def all_items(pairs: Pairs) -> Negatives:
    return given(torch.arange(1, NUM_ITEMS + 1), pairs)


def example(loss: Loss, pairs: Pairs) -> Negatives | None:
    if isinstance(loss, Softmax):
        return None
    return given([[1, 6], [2, 5], [3, 3], [4, 7]], pairs)


def test_softmax_is_the_cross_entropy_over_the_catalogue():
    pairs, items = some_pairs([3, 1, 7], [1.0, 2.0, 0.5]), vectors()
    each = F.cross_entropy(pairs.query_ND @ items[1:].T / 0.5, pairs.target_N - 1, reduction="none")
    expected = (each * pairs.weight_N).sum() / 3.5
    torch.testing.assert_close(Softmax(temperature=0.5)(pairs, items), expected)


def test_softmax_gives_the_padding_row_neither_probability_nor_gradient():
    pairs, items = some_pairs([3, 1, 7]), vectors()
    loud = items.clone()
    loud[0] = 1e6
    loud.requires_grad_()
    loss = Softmax()(pairs, loud)
    torch.testing.assert_close(loss, Softmax()(pairs, items))
    loss.backward()
    assert loud.grad[0].abs().sum() == 0
    assert loud.grad[1:].abs().sum() > 0


def test_sampled_softmax_over_every_item_is_the_full_softmax():
    pairs, items = some_pairs([3, 1, 7]), vectors()
    loss = SampledSoftmax(log_q=False, temperature=0.7)
    torch.testing.assert_close(
        loss(pairs, items, all_items(pairs)), Softmax(temperature=0.7)(pairs, items)
    )


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
@pytest.mark.parametrize("per_pair", [False, True])
def test_log_q_makes_sampled_softmax_an_estimate_of_the_full_one(kind, per_pair):
    pairs = some_pairs([3, 1, 7])
    counts = torch.tensor([0, 1, 2, 3, 9, 20, 5, 4])
    sampler = NegativeSampler(kind, 60_000, per_pair, counts)
    drawn = sampler.draw(pairs.target_N, torch.Generator().manual_seed(0))
    gradients, values = [], []
    for loss, negatives in ((SampledSoftmax(), drawn), (Softmax(), None)):
        items = vectors().requires_grad_()
        value = loss(pairs, items, negatives)
        value.backward()
        values.append(value.detach())
        gradients.append(items.grad.flatten())
    torch.testing.assert_close(values[0], values[1], atol=0.01, rtol=0)
    assert F.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.999


def test_without_log_q_sampling_by_popularity_is_another_loss():
    pairs, items = some_pairs([3, 1, 7]), vectors()
    sampler = NegativeSampler("popularity", 60_000, False, torch.tensor([0, 1, 2, 3, 9, 20, 5, 4]))
    drawn = sampler.draw(pairs.target_N, torch.Generator().manual_seed(0))
    raw = SampledSoftmax(log_q=False)(pairs, items, drawn)
    assert raw > Softmax()(pairs, items) + 1


def test_sampled_softmax_hand_value():
    pairs, items = one_dimension([1.0, 0.0, -1.0], target=1)
    # Item 3 was expected twice, item 2 half a time: e^-1 counts a half, e^0 counts double.
    drawn = Negatives(torch.tensor([2, 3]), torch.tensor([0.5, 2.0]).log(), torch.zeros(1))
    expected = -math.log(math.e / (math.e + 2 * 1 + 0.5 * math.exp(-1)))
    assert SampledSoftmax()(pairs, items, drawn).item() == pytest.approx(expected)


def test_in_batch_negatives_leave_out_the_pairs_own_target():
    pairs, items = some_pairs([3, 1, 3]), vectors()
    sampler = NegativeSampler("in_batch", 99, False, torch.ones(8))
    drawn = sampler.draw(pairs.target_N, torch.Generator())
    logits = pairs.query_ND @ items.T
    # Every rate is 3 / 7. Pairs 1 and 3 have one negative (item 1), pair 2 has item 3 twice.
    shift = math.log(3 / 7)
    rows = [(0, 3, [1]), (1, 1, [3, 3]), (2, 3, [1])]
    expected = [
        torch.logsumexp(torch.stack([logits[n, t], *(logits[n, i] - shift for i in others)]), 0)
        - logits[n, t]
        for n, t, others in rows
    ]
    loss = SampledSoftmax(negatives="in_batch")(pairs, items, drawn)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_cloze_is_the_softmax_of_the_pairs_it_is_given():
    pairs, items = some_pairs([3, 1, 7], [1.0, 2.0, 0.5]), vectors()
    for temperature in (1.0, 0.5):
        assert torch.equal(Cloze(temperature)(pairs, items), Softmax(temperature)(pairs, items))


def test_bpr_max_hand_value():
    pairs, items = one_dimension([1.0, 0.0, -1.0], target=1)
    s2, s3 = math.e / (math.e + 1), 1 / (math.e + 1)
    expected = -math.log(s2 / (1 + math.exp(-1)) + s3 / (1 + math.exp(-2))) + 0.25 * s3
    found = BPRMax(reg=0.25)(pairs, items, given([2, 3], pairs))
    assert found.item() == pytest.approx(expected)


def test_top1_max_hand_value():
    pairs, items = one_dimension([1.0, 0.0, -1.0], target=1)
    s2, s3 = math.e / (math.e + 1), 1 / (math.e + 1)
    second = 1 / (1 + math.exp(1)) + 1 / 2
    third = 1 / (1 + math.exp(2)) + 1 / (1 + math.exp(-1))
    found = TOP1Max()(pairs, items, given([2, 3], pairs))
    assert found.item() == pytest.approx(s2 * second + s3 * third)


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        (
            BPRMax(reg=0.3),
            lambda r, rs, s: -(s * (r - rs).sigmoid()).sum().log() + 0.3 * (s * rs**2).sum(),
        ),
        (TOP1Max(), lambda r, rs, s: (s * ((rs - r).sigmoid() + (rs**2).sigmoid())).sum()),
    ],
)
def test_a_max_loss_is_the_weighted_mean_of_its_formula_over_negatives_of_each_pair(loss, formula):
    pairs, items = some_pairs([3, 1, 7], [1.0, 2.0, 0.5]), vectors()
    shared = [2, 3, 6, 6, 1]
    score_NV = pairs.query_ND.double() @ items.double().T
    each = []
    for score_V, target in zip(score_NV, pairs.target_N.tolist(), strict=True):
        others = score_V[[item for item in shared if item != target]]
        each.append(formula(score_V[target], others, others.softmax(0)).item())
    expected = (each[0] + 2 * each[1] + 0.5 * each[2]) / 3.5
    assert loss(pairs, items, given(shared, pairs)).item() == pytest.approx(expected, rel=1e-5)


def test_bpr_max_lifts_the_target_lowers_the_highest_negative_and_draws_scores_to_zero():
    pairs, items = one_dimension([0.5, 2.0, -1.0], target=1)
    items.requires_grad_()
    BPRMax(reg=0.0)(pairs, items, given([2, 3], pairs)).backward()
    target, highest, _ = items.grad[1:, 0].tolist()
    assert target < 0 < highest
    one = given([3], pairs)
    (with_reg,) = torch.autograd.grad(BPRMax(reg=2.0)(pairs, items, one), items)
    (without,) = torch.autograd.grad(BPRMax(reg=0.0)(pairs, items, one), items)
    assert (with_reg - without)[3].item() == pytest.approx(2 * 2 * -1.0)


@pytest.mark.parametrize("loss", [BPRMax(), TOP1Max()])
def test_a_pair_whose_negatives_are_all_its_target_has_nothing_to_learn(loss):
    pairs, items = some_pairs([3, 1]), vectors().requires_grad_()
    value = loss(pairs, items, given([[3, 3], [2, 5]], pairs))
    alone = Pairs(pairs.query_ND[1:], pairs.target_N[1:], torch.ones(1))
    torch.testing.assert_close(value, loss(alone, items, given([[2, 5]], alone)) / 2)
    value.backward()
    assert not items.grad[3].any()
    assert items.grad.isfinite().all()


def test_bce_hand_value():
    pairs, items = one_dimension([2.0, 0.0, -1.0], target=1)
    expected = math.log(1 + math.exp(-2)) + math.log(2) + math.log(1 + math.exp(-1))
    found = BCE(num_negatives=2)(pairs, items, given([[2, 3]], pairs))
    assert found.item() == pytest.approx(expected)


def test_shared_and_repeated_negatives_agree():
    pairs, items = some_pairs([3, 1, 7]), vectors()
    shared, repeated = given([2, 5], pairs), given([[2, 5]] * 3, pairs)
    for loss in (BCE(), GBCE(), SampledSoftmax(), BPRMax(), TOP1Max()):
        torch.testing.assert_close(loss(pairs, items, shared), loss(pairs, items, repeated))


def test_gbce_without_calibration_is_bce():
    pairs, items = some_pairs([3, 1, 7]), vectors()
    drawn = given([[2, 4], [3, 5], [6, 6]], pairs)
    torch.testing.assert_close(
        GBCE(num_negatives=2, t=0.0)(pairs, items, drawn),
        BCE(num_negatives=2)(pairs, items, drawn),
    )


@pytest.mark.parametrize(("t", "beta"), [(1.0, 1 / 3), (0.75, 0.5)])
def test_gbce_raises_the_positive_to_the_beta_of_the_paper(t, beta):
    # Seven items: alpha = 2 / (7 - 1) = 1/3; beta = alpha (t (1 - 1/alpha) + 1/alpha) = 1 - 2t/3.
    pairs, items = one_dimension([2.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0], target=1)
    expected = -beta * math.log(1 / (1 + math.exp(-2))) + math.log(2) + math.log(1 + math.exp(-1))
    found = GBCE(num_negatives=2, t=t)(pairs, items, given([[2, 3]], pairs))
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_a_weight_of_zero_removes_a_pair(kind):
    loss, items = kind(), vectors()
    pairs = some_pairs([3, 1, 7, 2], [1.0, 0.0, 2.0, 0.0])
    kept = [0, 2]
    rest = Pairs(pairs.query_ND[kept], pairs.target_N[kept], pairs.weight_N[kept])
    drawn = example(loss, pairs)
    drawn_rest = drawn and given(drawn.items[kept], rest)
    torch.testing.assert_close(loss(pairs, items, drawn), loss(rest, items, drawn_rest))


@pytest.mark.parametrize("loss", [BCE(), GBCE(t=0.0), SampledSoftmax(), BPRMax(), TOP1Max()])
def test_a_negative_equal_to_the_target_is_ignored(loss):
    pairs, items = some_pairs([3, 1]), vectors()
    with_it, without = given([[3, 2], [5, 1]], pairs), given([[2], [5]], pairs)
    items.requires_grad_()
    value = loss(pairs, items, with_it)
    torch.testing.assert_close(value, loss(pairs, items, without))
    value.backward()
    assert items.grad.isfinite().all()


@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_the_value_is_float32_and_finite_for_bfloat16_queries_and_large_scores(kind):
    loss, items = kind(), vectors() * 100
    pairs = some_pairs([3, 1, 7, 2])
    low = Pairs(pairs.query_ND.bfloat16() * 100, pairs.target_N, pairs.weight_N)
    value = loss(low, items, example(loss, low))
    assert value.dtype == torch.float32
    assert value.isfinite()


@pytest.mark.parametrize("kind", [BCE, GBCE, SampledSoftmax, BPRMax, TOP1Max])
def test_a_sampled_loss_without_negatives_is_a_mistake(kind):
    with pytest.raises(ValueError, match="needs negatives"):
        kind()(some_pairs([1]), vectors(), None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Softmax(temperature=0.0), "loss.temperature must be above 0, got 0.0"),
        (lambda: SampledSoftmax(temperature=math.nan), "loss.temperature"),
        (lambda: SampledSoftmax(num_negatives=0), "loss.num_negatives must be above 0"),
        (lambda: BCE(num_negatives=-1), "got -1"),
        (lambda: BCE(negatives="in_batch"), "needs loss.name=sampled_softmax"),
        (lambda: GBCE(negatives="in_batch"), "gbce draws its negatives"),
        (
            lambda: BCE(negatives="in_batch_and_popularity", per_pair=False),
            "bce draws its negatives",
        ),
        (lambda: BPRMax(num_negatives=0), "loss.num_negatives must be above 0"),
        (lambda: BPRMax(reg=-0.5), "loss.reg must be at least 0, got -0.5"),
        (lambda: TOP1Max(alpha=1.5), r"loss.alpha must lie in \[0, 1\], got 1.5"),
        (lambda: SampledSoftmax(alpha=0.5), "got 0.5 with loss.negatives=uniform"),
        (lambda: BPRMax(alpha=0.5, negatives="in_batch"), "with loss.negatives=in_batch"),
        (
            lambda: TOP1Max(per_pair=True, negatives="in_batch_and_popularity"),
            "loss.per_pair must be false",
        ),
        (
            lambda: SampledSoftmax(per_pair=True, negatives="in_batch"),
            "loss.per_pair must be false with loss.negatives=in_batch,",
        ),
        (lambda: GBCE(t=1.5), r"loss.t must lie in \[0, 1\], got 1.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_an_unknown_loss_suggests_the_nearest():
    assert loss_class("gbce") is GBCE
    with pytest.raises(InputError, match="did you mean 'softmax'"):
        loss_class("sofmax")


def test_the_list_of_losses_is_ready_for_json_and_names_every_setting():
    listed = {entry["name"]: entry for entry in json.loads(json.dumps(loss_list()))}
    names = [
        "softmax",
        "sampled_softmax",
        "bce",
        "gbce",
        "bpr_max",
        "top1_max",
        "cloze",
        "mlm_contrastive",
    ]
    assert list(listed) == names
    assert {"name": "loss.t", "type": "a number", "default": 0.75} in listed["gbce"]["settings"]
    assert all(entry["title"] and entry["paper"] for entry in listed.values())
