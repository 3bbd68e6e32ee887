"""Recurrent layers against their equations written out, step by step and in both directions."""

import pytest
import torch
from torch import Tensor

from recsys.layers.recurrence import Bidirectional, GRULayer, LSTMLayer, turn_round

LAYERS = [GRULayer, LSTMLayer]


def seeded(kind: type, dim_in: int = 3, dim_out: int = 4, dropout: float = 0.0):
    torch.manual_seed(0)
    layer = kind(dim_in, dim_out, dropout).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer


def history(batch: int = 2, steps: int = 5, dim: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, steps, dim, generator=generator, dtype=torch.float64)


def gates(layer, x: Tensor, h: Tensor, num_gates: int) -> list[tuple[Tensor, Tensor]]:
    """(what the input says, what the state says) for each gate of one history."""
    w, u, b, c = dict(layer.rnn.named_parameters()).values()
    size = len(h)
    rows = [slice(k * size, (k + 1) * size) for k in range(num_gates)]
    return [(w[k] @ x + b[k], u[k] @ h + c[k]) for k in rows]


def gru_by_hand(layer: GRULayer, x_TD: Tensor) -> Tensor:
    h, out = torch.zeros(4, dtype=torch.float64), []
    for x in x_TD:
        (r_x, r_h), (z_x, z_h), (n_x, n_h) = gates(layer, x, h, 3)
        reset, keep = 1 / (1 + (-r_x - r_h).exp()), 1 / (1 + (-z_x - z_h).exp())
        h = keep * h + (1 - keep) * torch.tanh(n_x + reset * n_h)
        out.append(h)
    return torch.stack(out)


def lstm_by_hand(layer: LSTMLayer, x_TD: Tensor) -> Tensor:
    h = s = torch.zeros(4, dtype=torch.float64)
    out = []
    for x in x_TD:
        i, f, g, o = (a + b for a, b in gates(layer, x, h, 4))
        s = s / (1 + (-f).exp()) + torch.tanh(g) / (1 + (-i).exp())
        h = torch.tanh(s) / (1 + (-o).exp())
        out.append(h)
    return torch.stack(out)


@pytest.mark.parametrize(("kind", "by_hand"), [(GRULayer, gru_by_hand), (LSTMLayer, lstm_by_hand)])
@torch.no_grad()
def test_a_layer_follows_its_equations(kind, by_hand):
    layer, x_BTD = seeded(kind), history()
    expected = torch.stack([by_hand(layer, x_TD) for x_TD in x_BTD])
    torch.testing.assert_close(layer(x_BTD), expected)


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_steps_give_what_a_walk_gives_and_leave_their_state_as_it_was(kind):
    layer, x_BTD = seeded(kind), history(batch=3)
    state, out = layer.init_state(3), []
    for x_BD in x_BTD.unbind(1):
        kept = [part.clone() for part in state]
        y_BD, after = layer.step(x_BD, state)
        assert all(torch.equal(part, was) for part, was in zip(state, kept, strict=True))
        out.append(y_BD)
        state = after
    torch.testing.assert_close(torch.stack(out, dim=1), layer(x_BTD))


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_dropout_is_of_what_is_given_on_and_not_of_what_is_remembered(kind):
    layer, x_BTD = seeded(kind, dim_out=64, dropout=0.5).train(), history(steps=8)
    dropped = layer(x_BTD)
    kept = dropped != 0
    assert 0.4 < kept.double().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * layer.eval()(x_BTD)[kept])


def test_matrices_begin_as_glorots_gate_by_gate_and_a_forget_gate_open():
    torch.manual_seed(0)
    for kind, num_gates in ((GRULayer, 3), (LSTMLayer, 4)):
        w, u, *biases = kind(30, 50).rnn.parameters()
        for matrix, fan in ((w, 80), (u, 100)):
            for gate in matrix.chunk(num_gates):
                assert gate.abs().max().item() == pytest.approx((6 / fan) ** 0.5, rel=0.02)
        sums = sum(biases).chunk(num_gates)
        assert [gate.unique().tolist() for gate in sums] == [
            [float(num_gates == 4 and place == 1)] for place in range(num_gates)
        ]


def test_turning_round_keeps_padding_at_the_end():
    x_BTD = torch.arange(8.0).view(2, 4, 1)
    turned = turn_round(x_BTD, torch.tensor([4, 2]))
    assert turned[..., 0].tolist() == [[3, 2, 1, 0], [5, 4, 6, 7]]
    assert turn_round(x_BTD, torch.tensor([1, 3]))[..., 0].tolist() == [[0, 1, 2, 3], [6, 5, 4, 7]]


@torch.no_grad()
def test_both_directions_read_each_history_alone_from_end_to_end():
    onward, backward = seeded(GRULayer), seeded(LSTMLayer)
    x_BTD, lengths = history(batch=3, steps=5), [5, 1, 3]
    both = Bidirectional(onward, backward)(x_BTD, torch.tensor(lengths))
    assert both.shape == (3, 5, 8)
    for row, length in enumerate(lengths):
        alone = x_BTD[row, :length]
        expected = [gru_by_hand(onward, alone), lstm_by_hand(backward, alone.flip(0)).flip(0)]
        torch.testing.assert_close(both[row, :length], torch.cat(expected, dim=1))


def test_padding_sends_no_gradient_into_a_history_of_both_directions():
    x_BTD = history(batch=2, steps=5).requires_grad_()
    both = Bidirectional(seeded(GRULayer), seeded(GRULayer))(x_BTD, torch.tensor([3, 5]))
    both[0, :3].sum().backward()
    seen = (x_BTD.grad != 0).any(dim=2)
    assert seen.tolist() == [[True, True, True, False, False], [False] * 5]


@pytest.mark.parametrize("kind", [GRULayer, LSTMLayer])
@torch.no_grad()
def test_a_share_of_the_state_near_1_is_kept_where_products_are_of_low_precision(kind):
    layer, x = kind(6, 8), torch.randn(2, 150, 6) / 8
    gates = layer.rnn.all_weights[0][2].view(-1, 8)
    gates[1] = 6.0  # nearly all is kept,
    if kind is LSTMLayer:
        gates[0] = -6.0  # and little is let in
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    torch.testing.assert_close(low.float(), layer(x), atol=1e-3, rtol=0.01)
