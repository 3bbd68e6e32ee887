"""eSASRec beyond the contract: its settings and its size."""

import math
from typing import Any

import pytest
import torch

from recsys.batch import PAD, Batch
from recsys.errors import InputError
from recsys.models.esasrec import ESASRec
from recsys.training.losses import Softmax
from recsys.training.objectives import next_item

NUM_ITEMS = 12
COUNTS = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)
BATCH = Batch(torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, PAD, PAD]]), torch.tensor([5, 3]))


def small(**settings: Any) -> ESASRec:
    torch.manual_seed(0)
    return ESASRec(ESASRec.Config(**{"dim": 8, "max_len": 5, **settings}), NUM_ITEMS)


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
        ESASRec.Config(**settings)


@pytest.mark.parametrize("hidden_dim", [None, 24])
def test_the_feed_forward_has_three_matrices_four_times_dim_wide_where_not_said(hidden_dim):
    model = small(num_layers=1, hidden_dim=hidden_dim)
    wide = hidden_dim or 4 * 8
    attention, gates, norms = 4 * 8 * 8 + 4 * 8, 2 * (8 * 8 + 8), 3 * 2 * 8
    tables = (NUM_ITEMS + 1 + 5) * 8
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == tables + attention + gates + norms + 3 * 8 * wide


@torch.no_grad()
def test_the_first_loss_is_that_of_guessing():
    loss, _ = next_item(Softmax(), COUNTS)(small().eval(), BATCH)
    assert loss.item() == pytest.approx(math.log(NUM_ITEMS), rel=0.1)


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
