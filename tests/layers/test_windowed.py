"""Blocks over the last items at learned positions."""

import pytest
import torch

from recsys.layers.attention import CausalSelfAttention
from recsys.layers.block import PreNormBlock
from recsys.layers.feedforward import FeedForward
from recsys.layers.window import Window
from recsys.layers.windowed import WindowedEncoder

MAX_LEN, NUM_ITEMS = 4, 9


def encoder(dim: int = 8) -> WindowedEncoder:
    torch.manual_seed(0)
    attention = CausalSelfAttention(dim, 2, 0.0, MAX_LEN)
    block = PreNormBlock(dim, attention, FeedForward(dim, dim, 0.0), 0.0)
    return WindowedEncoder(NUM_ITEMS, dim, MAX_LEN, 0.0, [block]).eval()


def test_positions_weigh_as_much_as_items_before_training():
    built = encoder(dim=64)
    read_std = 64**0.5 * built.items.weight[1:].std().item()
    assert built.positions.weight.std().item() == pytest.approx(read_std, rel=0.2)


@torch.no_grad()
def test_histories_that_have_lost_items_go_on_beside_those_that_have_not():
    built = encoder()
    long_T, short_T = torch.tensor([3, 1, 4, 1, 5, 9]), torch.tensor([2, 6])
    states = []
    for items_T in (long_T[:-1], short_T[:-1]):
        state = built.init_state(1)
        for item in items_T:
            _, state = built.step(item[None], state)
        states.append(state)
    (one, [one_ring]), (other, [other_ring]) = states
    window = Window(*map(torch.cat, zip(one, other, strict=True)))
    ring = tuple(map(torch.cat, zip(one_ring, other_ring, strict=True)))
    x_BD, _ = built.step(torch.stack([long_T[-1], short_T[-1]]), (window, (ring,)))
    torch.testing.assert_close(x_BD[0], built(long_T[None, -MAX_LEN:])[0, -1])
    torch.testing.assert_close(x_BD[1], built(short_T[None])[0, -1])
