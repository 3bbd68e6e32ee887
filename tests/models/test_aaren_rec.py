"""AarenRec beyond the contract: its settings, its small state, and that it knows an order."""

import math
from typing import Any

import pytest
import torch

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.models.aaren_rec import AarenRec

NUM_ITEMS = 12


def small(**settings: Any) -> AarenRec:
    torch.manual_seed(0)
    return AarenRec(AarenRec.Config(**{"dim": 8, "num_heads": 2, **settings}), NUM_ITEMS).eval()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "must be a multiple of model.num_heads, got 10 and 4"),
        ({"dim": 0}, "must be at least 1"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"num_heads": 0}, "must be at least 1"),
        ({"max_len": 0}, "must be at least 1"),
        ({"hidden_dim": 0}, "must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": math.nan}, "got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        AarenRec.Config(**settings)


@pytest.mark.parametrize("max_len", [6, 600])
def test_a_history_takes_the_bytes_that_init_state_says_whatever_max_len(max_len):
    state = small(num_layers=3, max_len=max_len).init_state(1)
    assert 4 * sum(x.numel() for layer in state for x in layer) == 4 * 3 * (8 + 2)


@pytest.mark.parametrize("hidden_dim", [None, 5])
def test_the_feed_forward_is_four_times_dim_wide_where_not_said(hidden_dim):
    block, wide = small(hidden_dim=hidden_dim).encoder.blocks[0], hidden_dim or 32
    assert sum(p.numel() for p in block.feedforward.parameters()) == 2 * 8 * wide + wide + 8


@torch.no_grad()
def test_one_layer_knows_the_order_of_the_items_behind_the_newest():
    model = small(num_layers=1)
    one, other = model.query(Batch(torch.tensor([[1, 2, 3], [2, 1, 3]]), torch.tensor([3, 3])))
    assert (one - other).abs().max() > 1e-3


@torch.no_grad()
def test_dropout_is_for_training_alone():
    model, batch = small(dropout=0.5).train(), Batch(torch.tensor([[1, 2]]), torch.tensor([2]))
    assert not torch.equal(model.encode(batch), model.encode(batch))
    model.eval()
    assert torch.equal(model.encode(batch), model.encode(batch))
