"""LiGR blocks: what a gate lets through."""

import torch

from recsys.layers.attention import CausalSelfAttention
from recsys.layers.feedforward import SwiGLU
from recsys.layers.ligr import LiGRBlock


def block(dropout: float = 0.0) -> LiGRBlock:
    torch.manual_seed(0)
    return LiGRBlock(6, CausalSelfAttention(6, 2, 0.0, window=8), SwiGLU(6, 9, 0.0), dropout)


def normed(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@torch.no_grad()
def test_each_branch_passes_a_gate_that_reads_what_it_is_added_to():
    layer = block().double()
    x = torch.randn(2, 5, 6, dtype=torch.float64) * 3 + 1
    gate = layer.mixer_gate
    expected = x + layer.mixer(normed(x)) / (1 + (-(x @ gate.weight.T + gate.bias)).exp())
    gate = layer.feedforward_gate
    branch = layer.feedforward(normed(expected))
    expected = expected + branch / (1 + (-(expected @ gate.weight.T + gate.bias)).exp())
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
def test_closed_gates_leave_a_history_as_it_is():
    layer = block()
    for gate in (layer.mixer_gate, layer.feedforward_gate):
        gate.bias.fill_(-1e4)
    x_BTD = torch.randn(2, 5, 6)
    assert torch.equal(layer(x_BTD), x_BTD)


@torch.no_grad()
def test_event_by_event_it_gives_what_it_gives_for_the_whole():
    layer = block().double()
    x_BTD = torch.randn(3, 8, 6, dtype=torch.float64)
    state, out = layer.init_state(3), []
    for x_BD in x_BTD.unbind(1):
        y_BD, state = layer.step(x_BD, state)
        out.append(y_BD)
    torch.testing.assert_close(torch.stack(out, dim=1), layer(x_BTD))


def test_branches_are_dropped_in_training_alone():
    layer, x_BTD = block(dropout=0.5), torch.randn(2, 5, 6)
    assert not torch.equal(layer(x_BTD), layer(x_BTD))
    layer.eval()
    assert torch.equal(layer(x_BTD), layer(x_BTD))
