"""minGRU and minLSTM: the paper's equations, gates at their ends, and a state that stays a mean."""

import pytest
import torch

from recsys.layers.mingru import MinGRU, MinimalRNN, MinLSTM

CELLS = [MinGRU, MinLSTM]


def layer(kind: type, dim: int = 3, hidden_dim: int = 5) -> MinimalRNN:
    torch.manual_seed(0)
    return MinimalRNN(dim, kind(dim, hidden_dim))


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def by_definition(rnn: MinimalRNN, x_BTD: torch.Tensor) -> torch.Tensor:
    linear, size = rnn.cell.project, rnn.cell.hidden_dim
    h = torch.zeros(len(x_BTD), size, dtype=x_BTD.dtype)
    y = []
    for x in x_BTD.unbind(1):
        *gates, candidate = (x @ linear.weight.T + linear.bias).split(size, dim=1)
        if isinstance(rnn.cell, MinGRU):
            z = sigmoid(gates[0])
            h = (1 - z) * h + z * candidate
        else:
            f, i = sigmoid(gates[0]), sigmoid(gates[1])
            h = f / (f + i) * h + i / (f + i) * candidate
        y.append(rnn.project_out(h))
    return torch.stack(y, dim=1)


@pytest.mark.parametrize("kind", CELLS)
def test_it_is_the_recurrence_of_the_paper_with_its_gradients(kind):
    rnn = layer(kind).double()
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    outcomes = []
    for run in (rnn, lambda x: by_definition(rnn, x)):
        y = run(x)
        outcomes.append((y, *torch.autograd.grad(y.square().sum(), [x, *rnn.parameters()])))
    for got, wanted in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("kind", CELLS)
@torch.no_grad()
def test_steps_equal_forward_and_leave_the_state_they_get(kind):
    rnn, x = layer(kind), torch.randn(4, 7, 3)
    whole, state = rnn(x), rnn.init_state(4)
    for t in range(7):
        kept = state[0].clone()
        y, after = rnn.step(x[:, t], state)
        assert torch.equal(state[0], kept)
        torch.testing.assert_close(y, whole[:, t])
        state = after


@pytest.mark.parametrize("kind", CELLS)
@torch.no_grad()
def test_a_state_never_leaves_the_range_of_the_candidates(kind):
    rnn = layer(kind, hidden_dim=32)
    rnn.cell.project.weight.mul_(10)
    x = torch.randn(2, 300, 3)
    candidates = rnn.cell.project(x)[..., -32:]
    state = rnn.init_state(2)
    for t in range(300):
        _, state = rnn.step(x[:, t], state)
        assert state[0].abs().max() <= candidates.abs().max() * 1.001


@torch.no_grad()
def test_a_minlstm_with_both_gates_shut_still_weighs_them():
    cell = MinLSTM(1, 1)
    cell.project.weight.zero_()
    cell.project.bias.copy_(torch.tensor([-200.0, -200.0, 3.0]))
    keep, new = cell(torch.zeros(1, 1))
    assert keep.item() == pytest.approx(0.5)
    assert new.item() == pytest.approx(1.5)


@pytest.mark.parametrize("kind", [MinGRU, MinLSTM])
@torch.no_grad()
def test_a_share_of_the_state_near_1_is_kept_where_products_are_of_low_precision(kind):
    layer, x = MinimalRNN(6, kind(6, 8)), torch.randn(2, 150, 6)
    gates = layer.cell.project.bias.view(-1, 8)
    layer.cell.project.weight.view(-1, 8, 6)[:-1] = 0
    gates[0] = 0.0
    gates[0 if kind is MinGRU else 1] = -6.0  # the share that is new
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    torch.testing.assert_close(low.float(), layer(x), atol=1e-3, rtol=0.01)
