"""Diagonal RNNs against the cells' equations written out, and what they remember at first."""

import math

import pytest
import torch
from torch import Tensor

from recsys.kernels.rnn_scan import rnn_scan
from recsys.layers.diagonal_rnn import DiagonalRNN, diagonal_gru, diagonal_lstm

MIXERS = [diagonal_gru, diagonal_lstm]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gru_channel(u: list[list[float]], a: list[float]) -> list[float]:
    """One channel of the GRU of Cho et al.; u holds z, r and c of each step."""
    h, out = 0.0, []
    for u_z, u_r, u_c in u:
        new, reset = sigmoid(a[0] * h + u_z), sigmoid(a[1] * h + u_r)
        h = (1 - new) * h + new * math.tanh(a[2] * reset * h + u_c)
        out.append(h)
    return out


def lstm_channel(u: list[list[float]], a: list[float]) -> list[float]:
    """One channel of an LSTM; u holds i, f, g and o of each step."""
    h, c, out = 0.0, 0.0, []
    for step in u:
        i, f, g, o = (weight * h + part for weight, part in zip(a, step, strict=True))
        c = sigmoid(f) * c + sigmoid(i) * math.tanh(g)
        h = sigmoid(o) * math.tanh(c)
        out.append(h)
    return out


def seeded(mixer, dim: int = 3, state_dim: int = 4, longest: int = 20) -> DiagonalRNN:
    torch.manual_seed(0)
    layer = mixer(dim, state_dim, longest).double()
    with torch.no_grad():
        layer.recurrent_GD.normal_()
    return layer


def history(batch: int = 2, steps: int = 6, dim: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, steps, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mixer", "channel"), [(diagonal_gru, gru_channel), (diagonal_lstm, lstm_channel)]
)
@torch.no_grad()
def test_every_channel_follows_the_equations_of_its_cell(mixer, channel):
    layer, x_BTD = seeded(mixer), history()
    weight, bias = layer.project_in.weight, layer.project_in.bias
    rows = []
    for x_TD in x_BTD:
        u_TG = x_TD @ weight.T + bias  # gate by gate, each with its four channels
        channels = [
            channel(u_TG[:, d::4].tolist(), layer.recurrent_GD[:, d].tolist()) for d in range(4)
        ]
        rows.append(torch.tensor(channels, dtype=torch.float64).T)
    expected = torch.stack(rows) @ layer.project_out.weight.T + layer.project_out.bias
    torch.testing.assert_close(layer(x_BTD), expected)


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_steps_give_what_the_scan_gives_and_leave_their_state_as_it_was(mixer):
    layer, x_BTD = seeded(mixer).float(), history(batch=3).float()
    state, out = layer.init_state(3), []
    for x_BD in x_BTD.unbind(1):
        kept = state[0].clone()
        y_BD, after = layer.step(x_BD, state)
        assert torch.equal(state[0], kept)
        out.append(y_BD)
        state = after
    torch.testing.assert_close(torch.stack(out, dim=1), layer(x_BTD))


@pytest.mark.parametrize(("mixer", "keeps"), [(diagonal_gru, -1), (diagonal_lstm, 1)])
def test_channels_keep_from_a_half_to_all_but_one_over_the_longest_of_their_state(mixer, keeps):
    layer = mixer(8, 5, longest=200)
    bias_GD = layer.project_in.bias.detach().view(-1, 5)
    kept_D = torch.sigmoid(bias_GD[1] if keeps > 0 else -bias_GD[0])
    memories = (1 / (1 - kept_D)).tolist()
    assert memories == pytest.approx([2, 2 * 10**0.5, 20, 20 * 10**0.5, 200], rel=1e-4)
    if keeps > 0:
        assert torch.equal(bias_GD[0], -bias_GD[1])
    assert not bias_GD[2:].any()


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_the_slowest_channel_remembers_an_event_for_as_long_as_it_was_told(mixer):
    torch.manual_seed(0)
    layer = mixer(4, 2, longest=50)
    layer.recurrent_GD.zero_()
    gates_BTGD = layer.project_in(torch.zeros(1, 51, 4)).unflatten(-1, (-1, 2))
    candidate = 2  # c of a GRU, g of an LSTM
    gates_BTGD[0, 0, candidate] = 1.0
    h_TD = rnn_scan(layer.cell, gates_BTGD, layer.recurrent_GD)[0]
    faded_D = h_TD[50] / h_TD[0]
    assert faded_D[1].item() == pytest.approx(math.exp(-1), rel=0.02)
    assert faded_D[0] < 1e-6


@pytest.mark.parametrize("mixer", MIXERS)
def test_one_event_long_memories_are_no_mistake(mixer):
    assert mixer(4, 3, longest=1).project_in.bias.isfinite().all()


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_newtons_method_solves_a_fresh_layer(mixer):
    torch.manual_seed(0)
    layer = mixer(16, 16, longest=50)
    x_BTD = torch.randn(2, 60, 16)
    gates_BTGD = layer.project_in(x_BTD).unflatten(-1, (-1, 16))
    solved = rnn_scan(layer.cell, gates_BTGD, layer.recurrent_GD, method="newton", on_fail="raise")
    torch.testing.assert_close(layer.project_out(solved), layer(x_BTD), atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_gpu_gives_what_a_cpu_gives(mixer):
    torch.manual_seed(0)
    layer, x_BTD = mixer(16, 16, longest=50), torch.randn(3, 40, 16)
    expected = layer(x_BTD)
    found = layer.cuda()(x_BTD.cuda())
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)
