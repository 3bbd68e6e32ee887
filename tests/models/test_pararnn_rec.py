"""ParaRNN beyond the contract: its settings and sizes, and memories as long as its histories."""

import math
from typing import Any

import pytest
import torch

from recsys.batch import PAD, Batch
from recsys.errors import InputError
from recsys.models.pararnn_rec import ParaRNNRec
from recsys.training.losses import Softmax
from recsys.training.objectives import next_item

NUM_ITEMS = 12
COUNTS = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)
BATCH = Batch(
    torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, PAD, PAD], [5, 3, PAD, PAD, PAD]]),
    torch.tensor([5, 3, 2]),
)


def small(**settings: Any) -> ParaRNNRec:
    torch.manual_seed(0)
    return ParaRNNRec(ParaRNNRec.Config(**{"dim": 8, "max_len": 5, **settings}), NUM_ITEMS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "must be at least 1"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"max_len": 0}, "must be at least 1"),
        ({"state_dim": 0}, "must be at least 1"),
        ({"hidden_dim": -1}, "must be at least 1"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ParaRNNRec.Config(**settings)


def test_the_first_loss_is_that_of_guessing():
    loss, _ = next_item(Softmax(), COUNTS)(small().eval(), BATCH)
    assert loss.item() == pytest.approx(math.log(NUM_ITEMS), rel=0.1)


@pytest.mark.parametrize(("cell", "gates", "states"), [("gru", 3, 1), ("lstm", 4, 2)])
def test_blocks_have_the_sizes_they_were_given(cell, gates, states):
    model = small(cell=cell, num_layers=2, state_dim=6, hidden_dim=10)
    mixer = gates * 6 * 8 + gates * 6 + 8 * 6
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    assert matrices == 13 * 8 + 2 * (mixer + 2 * 8 * 10)
    state = model.init_state(3)
    assert sum(part.nbytes for block in state for part in block) == 3 * 4 * 2 * 6 * states


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@torch.no_grad()
def test_training_begins_with_an_oldest_item_that_is_not_forgotten(cell):
    model = small(dim=32, max_len=100, cell=cell).eval()
    items_BT = torch.ones(2, 100, dtype=torch.int64)
    items_BT[1, 0] = 2
    one, other = model.query(Batch(items_BT, torch.full((2,), 100)))
    assert (one - other).abs().max() > 1e-3
