"""MambaRec beyond the contract, which runs over its default mixer alone."""

import math
from typing import Any

import pytest
import torch

from recsys.batch import PAD, Batch
from recsys.errors import InputError
from recsys.layers.ssm import Mamba, Mamba2
from recsys.models.mamba_rec import MambaRec
from recsys.retrieval.state import state_from_bytes, state_to_bytes
from recsys.training.losses import Softmax
from recsys.training.objectives import next_item
from recsys.training.optimizers import adamw

NUM_ITEMS = 12
COUNTS = torch.ones(NUM_ITEMS + 1, dtype=torch.int64)


def small(**settings: Any) -> MambaRec:
    torch.manual_seed(0)
    sizes = {"dim": 8, "num_heads": 2, "state_dim": 4, "max_len": 6, "dropout": 0.0}
    return MambaRec(MambaRec.Config(**{**sizes, **settings}), NUM_ITEMS).eval()


def histories(batch: int, steps: int) -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randint(1, NUM_ITEMS + 1, (batch, steps)), torch.full((batch,), steps))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "must be at least 1"),
        ({"num_layers": 0}, "must be at least 1"),
        ({"state_dim": 0}, "must be at least 1"),
        ({"expand": 0}, "must be at least 1"),
        ({"conv_width": 0}, "must be at least 1"),
        ({"num_heads": 0}, "must be at least 1"),
        ({"max_len": 0}, "must be at least 1"),
        ({"hidden_dim": 0}, "must be at least 1"),
        ({"mixer": "mamba3"}, "model.mixer must be mamba or mamba2, got 'mamba3'"),
        ({"mixer": "mamba2", "dim": 9, "num_heads": 4}, "got 2 times 9 and 4"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": math.nan}, "got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        MambaRec.Config(**settings)


@pytest.mark.parametrize(("name", "kind"), [("mamba", Mamba), ("mamba2", Mamba2)])
def test_the_mixer_that_is_named_is_in_every_block(name, kind):
    blocks = small(mixer=name, num_layers=3).blocks
    assert [type(block.mixer) for block in blocks] == [kind] * 3


def test_heads_are_for_mamba2_alone():
    small(dim=9, num_heads=4)


@pytest.mark.parametrize("hidden_dim", [None, 5])
def test_the_feed_forward_is_four_times_dim_wide_where_not_said(hidden_dim):
    ((block,), wide) = small(hidden_dim=hidden_dim).blocks, hidden_dim or 32
    assert sum(p.numel() for p in block.feedforward.parameters()) == 2 * 8 * wide + wide + 8


@pytest.mark.parametrize(("name", "more"), [("mamba", 0), ("mamba2", 8 * 2 * 5 * 2)])
def test_a_history_takes_the_bytes_that_init_state_says_whatever_max_len(name, more):
    sizes = {"mixer": name, "num_layers": 2, "state_dim": 5, "expand": 3, "conv_width": 3}
    for max_len in (6, 600):
        state = small(**sizes, max_len=max_len).init_state(1)
        numbers = sum(x.numel() for (inputs,), kept in state for x in (inputs, kept))
        assert 4 * numbers == 4 * 2 * 3 * 8 * (5 + 3 - 1) + more


@torch.no_grad()
def test_with_mamba2_going_on_from_bytes_equals_encoding_the_whole_history():
    model, batch = small(mixer="mamba2", num_layers=2), histories(3, 60)
    state, queries = model.init_state(3), []
    for items_B in batch.items_BT.unbind(1):
        state = state_from_bytes(state_to_bytes(state, "a mark"), model, "a mark")
        query_BD, state = model.step(items_B, state)
        queries.append(query_BD)
    stepped = torch.stack(queries, dim=1)
    torch.testing.assert_close(stepped, model.encode(batch), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_with_mamba2_padding_and_what_comes_behind_change_nothing():
    model, items_BT = small(mixer="mamba2", num_layers=2), histories(2, 9).items_BT
    padded = Batch(torch.tensor([[3, 1, 4, PAD, PAD]]), torch.tensor([3]))
    alone = Batch(torch.tensor([[3, 1, 4]]), torch.tensor([3]))
    torch.testing.assert_close(model.query(padded), model.query(alone))
    before = model.encode(Batch(items_BT, torch.tensor([9, 9])))
    changed = torch.cat([items_BT[:, :5], items_BT[:, 5:] % NUM_ITEMS + 1], dim=1)
    after = model.encode(Batch(changed, torch.tensor([9, 9])))
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert bool(((after - before)[:, 5:].abs().amax(dim=2) > 1e-3).all())


def test_with_mamba2_training_moves_every_parameter_and_learns_what_follows_what():
    model = small(mixer="mamba2").train()
    begin = torch.arange(24)[:, None] % NUM_ITEMS
    items_BT = (begin + torch.arange(7)) % NUM_ITEMS + 1
    batch = Batch(items_BT, torch.full((24,), 7))
    objective, optimizer = next_item(Softmax(), COUNTS), adamw(model, lr=0.01, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(60):
        optimizer.zero_grad()
        loss, _ = objective(model, batch)
        loss.backward()
        optimizer.step()
        if step == 0:
            still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
            assert still == []
    assert loss.item() < 0.3
