"""Hybrids beyond the contract: every mixer in a block of its own, and names that are none."""

import pytest
import torch

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.models.hybrid_rec import MIXERS, HybridRec


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_each_mixer_goes_on_event_by_event_behind_attention(name: str):
    torch.manual_seed(0)
    config = HybridRec.Config(dim=8, mixers=f"attention, {name}", max_len=6)
    model = HybridRec(config, num_items=9).eval()
    items_BT = torch.randint(1, 10, (3, 8))
    state = model.init_state(3)
    for end in range(1, 9):
        query_BD, state = model.step(items_BT[:, end - 1], state)
        last_BT = items_BT[:, max(0, end - 6) : end]
        batch = Batch(last_BT, torch.full((3,), last_BT.shape[1]))
        torch.testing.assert_close(query_BD, model.query(batch), atol=1e-5, rtol=1e-5)


def test_blocks_stand_in_the_order_of_their_names():
    model = HybridRec(HybridRec.Config(dim=8, mixers="mamba,attention,lru"), num_items=9)
    kinds = [type(block.mixer).__name__ for block in model.encoder.blocks]
    assert kinds == ["Mamba", "CausalSelfAttention", "LRU"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mixers": "lru,atention"}, "'atention'.*attention"),
        ({"mixers": ""}, "model.mixers names ''"),
        ({"dim": 6, "num_heads": 4}, "multiple of model.num_heads"),
        ({"dropout": 1.0}, "model.dropout"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, words: str):
    with pytest.raises(InputError, match=words):
        HybridRec.Config(**settings)
