"""The encoder block: its equations, and the places it answers for."""

import torch

from recsys.layers.attention import SelfAttention
from recsys.layers.encoder import EncoderBlock
from recsys.layers.feedforward import GELUFeedForward

REAL_BT = torch.arange(5) < torch.tensor([[5], [3]])


def block(dropout: float = 0.0) -> EncoderBlock:
    torch.manual_seed(0)
    return EncoderBlock(6, SelfAttention(6, 2, 0.0), GELUFeedForward(6, 9, 0.0), dropout).double()


def normed(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@torch.no_grad()
def test_branches_read_the_norm_and_are_added_to_what_was_there():
    layer, x = block(), torch.randn(2, 5, 6, dtype=torch.float64) * 3 + 1
    expected = x + layer.attention(normed(x), normed(x), REAL_BT)
    expected = expected + layer.feedforward(normed(expected))
    torch.testing.assert_close(layer(x, REAL_BT), expected)


@torch.no_grad()
def test_a_few_places_are_answered_as_in_the_answer_for_all():
    layer, x_BTD = block(), torch.randn(2, 5, 6, dtype=torch.float64)
    few_BMD = layer(x_BTD, REAL_BT, torch.tensor([[4, 1], [0, 2]]))
    all_BTD = layer(x_BTD, REAL_BT)
    torch.testing.assert_close(few_BMD[0], all_BTD[0, [4, 1]])
    torch.testing.assert_close(few_BMD[1], all_BTD[1, [0, 2]])


def test_branches_are_dropped_in_training_alone():
    layer, x_BTD = block(dropout=0.5), torch.randn(2, 5, 6, dtype=torch.float64)
    assert not torch.equal(layer(x_BTD, REAL_BT), layer(x_BTD, REAL_BT))
    layer.eval()
    assert torch.equal(layer(x_BTD, REAL_BT), layer(x_BTD, REAL_BT))
