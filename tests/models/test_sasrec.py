"""SASRec beyond the contract: its settings, its padding row, and what its attention sees."""

import math
from typing import Any

import pytest
import torch

from recsys.batch import PAD, Batch
from recsys.errors import InputError
from recsys.layers.attention import CausalSelfAttention
from recsys.layers.block import PreNormBlock
from recsys.layers.feedforward import FeedForward
from recsys.models.sasrec import SASRec
from recsys.training.losses import PAIR_LOSSES, Softmax
from recsys.training.objectives import next_item
from recsys.training.optimizers import adamw

NUM_ITEMS = 12
COUNTS = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)
BATCH = Batch(
    torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, PAD, PAD], [5, 3, PAD, PAD, PAD]]),
    torch.tensor([5, 3, 2]),
)


def small(**settings: Any) -> SASRec:
    torch.manual_seed(0)
    return SASRec(SASRec.Config(**{"dim": 8, "max_len": 5, **settings}), NUM_ITEMS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "must be a multiple of model.num_heads, got 10 and 4"),
        ({"dim": 0}, "must be at least 1"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"num_heads": 0}, "must be at least 1"),
        ({"max_len": 0}, "must be at least 1"),
        ({"hidden_dim": 0}, "must be at least 1"),
        ({"hidden_dim": -8}, "must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, "got -0.1"),
        ({"dropout": math.nan}, "got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SASRec.Config(**settings)


@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_the_padding_row_is_zero_and_never_trained(kind):
    model = small(dropout=0.0).train()
    assert not model.item_vectors()[PAD].any()
    before = model.item_vectors().detach().clone()
    objective = next_item(kind(), COUNTS)
    optimizer = adamw(model, lr=0.01, weight_decay=0.1)
    for _ in range(3):
        objective(model, BATCH)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    after = model.item_vectors().detach()
    assert not after[PAD].any()
    assert (after[1:] != before[1:]).any(dim=1).all()


def test_the_first_loss_is_that_of_guessing():
    loss, _ = next_item(Softmax(), COUNTS)(small().eval(), BATCH)
    assert loss.item() == pytest.approx(math.log(NUM_ITEMS), rel=0.1)


@pytest.mark.parametrize("hidden_dim", [None, 8, 24])
def test_the_feed_forward_is_as_wide_as_dim_where_not_said(hidden_dim):
    model = small(num_layers=1, hidden_dim=hidden_dim)
    wide = hidden_dim or 8
    attention, norms = 4 * 8 * 8 + 4 * 8, 3 * 2 * 8
    feedforward = 2 * 8 * wide + wide + 8
    tables = (NUM_ITEMS + 1 + 5) * 8
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == tables + attention + norms + feedforward


@torch.no_grad()
def test_a_query_knows_the_order_of_its_history():
    model = small().eval()
    one, other = model.query(Batch(torch.tensor([[1, 2, 3], [2, 1, 3]]), torch.tensor([3, 3])))
    assert (one - other).abs().max() > 1e-3


@torch.no_grad()
def test_dropout_is_for_training_alone():
    model = small(dropout=0.5).train()
    assert not torch.equal(model.encode(BATCH), model.encode(BATCH))
    model.eval()
    assert torch.equal(model.encode(BATCH), model.encode(BATCH))


@pytest.mark.parametrize("num_heads", [1, 2])
def test_attention_without_preferences_is_the_mean_of_what_came_so_far(num_heads):
    layer = CausalSelfAttention(4, num_heads, 0.0, window=8)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.project_in.weight[8:] = torch.eye(4)
        layer.project_out.weight[:] = torch.eye(4)
    x_BTD = torch.randn(2, 5, 4)
    expected = x_BTD.cumsum(1) / torch.arange(1, 6)[:, None]
    torch.testing.assert_close(layer(x_BTD), expected)


def test_a_head_attends_by_the_softmax_of_its_own_scaled_products():
    torch.manual_seed(0)
    layer = CausalSelfAttention(6, 2, 0.0, window=8)
    x_TD = torch.randn(4, 6)
    q, k, v = layer.project_in(x_TD).split(6, dim=1)
    heads = []
    for own in (slice(0, 3), slice(3, 6)):
        product_TT = q[:, own] @ k[:, own].T / math.sqrt(3)
        future_TT = torch.ones(4, 4, dtype=torch.bool).triu(1)
        heads.append(product_TT.masked_fill(future_TT, -math.inf).softmax(1) @ v[:, own])
    expected = layer.project_out(torch.cat(heads, dim=1))
    torch.testing.assert_close(layer(x_TD[None])[0], expected)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_a_block_sees_all_that_came_before_and_nothing_behind(num_heads):
    torch.manual_seed(0)
    attention, feedforward = CausalSelfAttention(4, num_heads, 0.0, 8), FeedForward(4, 4, 0.0)
    block = PreNormBlock(4, attention, feedforward, dropout=0.0)
    x_TD = torch.randn(5, 4, requires_grad=True)
    weight_D = torch.randn(4)
    out_T = block(x_TD[None])[0] @ weight_D
    for place in range(5):
        (gradient_TD,) = torch.autograd.grad(out_T[place], x_TD, retain_graph=True)
        seen_T = (gradient_TD != 0).any(dim=1)
        assert seen_T.tolist() == [step <= place for step in range(5)]


def test_heads_must_divide_the_width_of_the_layer():
    with pytest.raises(ValueError, match="got 6 and 4"):
        CausalSelfAttention(6, 4, 0.0, window=8)
