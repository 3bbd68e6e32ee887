"""The mixers of Mamba and Mamba-2 against their papers' equations, one number at a time."""

import math
from typing import Any

import pytest
import torch

from recsys.layers.mixer import Mixer
from recsys.layers.ssm import Mamba, Mamba2, forget_faster

DIM, STATES, HEADS, WIDTH = 6, 3, 4, 4


def mixer(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    layer = {
        "mamba": lambda: Mamba(DIM, STATES, expand=2, conv_width=WIDTH),
        "mamba2": lambda: Mamba2(DIM, STATES, HEADS, expand=2, conv_width=WIDTH),
    }[kind]()
    with torch.no_grad():  # skips and norms begin at 1, where a forgotten one would not show
        for parameter in layer.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape)
    return layer.to(dtype)


def history(batch: int, steps: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, steps, DIM, dtype=dtype)


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def softplus(x: torch.Tensor) -> torch.Tensor:
    return torch.log(1 + torch.exp(x))


def convolved(layer: Any, x_TC: torch.Tensor) -> torch.Tensor:
    weight, bias = layer.convolution.weight, layer.convolution.bias
    padded = torch.cat([x_TC.new_zeros(WIDTH - 1, x_TC.shape[1]), x_TC])
    windows = padded.unfold(0, WIDTH, 1)  # oldest first
    return silu(torch.einsum("tcw,wc->tc", windows, weight.flip(0)) + bias)


def mamba_by_definition(layer: Mamba, x_TD: torch.Tensor) -> torch.Tensor:
    inner = 2 * DIM
    both = x_TD @ layer.project_in.weight.T
    x, z = convolved(layer, both[:, :inner]), both[:, inner:]
    selected = x @ layer.project_state.weight.T
    low_rank, B, C = selected[:, :1], selected[:, 1 : 1 + STATES], selected[:, 1 + STATES :]
    dt = softplus(low_rank @ layer.project_dt.weight.T + layer.project_dt.bias)
    A = -torch.exp(layer.log_rate.reshape(inner, STATES))
    y = torch.zeros_like(x)
    for d in range(inner):
        h = x.new_zeros(STATES)
        for t in range(len(x)):
            h = torch.exp(dt[t, d] * A[d]) * h + dt[t, d] * B[t] * x[t, d]
            y[t, d] = C[t] @ h + layer.skip[d] * x[t, d]
    return (y * silu(z)) @ layer.project_out.weight.T


def mamba2_by_definition(layer: Mamba2, x_TD: torch.Tensor) -> torch.Tensor:
    """With the past as a sum over events: y_t = sum over i <= t of C_t.B_i decay dt_i x_i."""
    inner, size = 2 * DIM, 2 * DIM // HEADS
    whole = x_TD @ layer.project_in.weight.T
    z, dt = whole[:, :inner], softplus(whole[:, -HEADS:] + layer.dt_bias)
    mixed = convolved(layer, whole[:, inner:-HEADS])
    x, B, C = mixed[:, :inner], mixed[:, inner : inner + STATES], mixed[:, inner + STATES :]
    y = torch.zeros_like(x)
    for h in range(HEADS):
        own = slice(h * size, (h + 1) * size)
        A = -math.exp(layer.log_rate[h])
        for t in range(len(x)):
            for i in range(t + 1):
                decay = torch.exp(A * dt[i + 1 : t + 1, h].sum())
                y[t, own] += (C[t] @ B[i]) * decay * dt[i, h] * x[i, own]
            y[t, own] += layer.skip[h] * x[t, own]
    y = y * silu(z)
    y = y / (y.pow(2).mean(dim=1, keepdim=True) + torch.finfo(y.dtype).eps).sqrt()
    return (y * layer.norm.weight) @ layer.project_out.weight.T


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@torch.no_grad()
def test_a_mixer_computes_the_equations_of_its_paper(kind):
    layer, x_BTD = mixer(kind), history(2, 7)
    defined = {"mamba": mamba_by_definition, "mamba2": mamba2_by_definition}[kind]
    wanted = torch.stack([defined(layer, x_TD) for x_TD in x_BTD])
    assert float(wanted.abs().min()) > 0
    torch.testing.assert_close(layer(x_BTD), wanted)


def steps(layer: Mixer, x_BTD: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
    rows = []
    for x_BD in x_BTD.unbind(1):
        y_BD, state = layer.step(x_BD, state)
        rows.append(y_BD)
    return torch.stack(rows, dim=1), state


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@torch.no_grad()
def test_event_by_event_and_from_a_kept_state_it_is_the_same(kind):
    layer, x_BTD = mixer(kind, torch.float32), history(3, 40, torch.float32)
    whole = layer(x_BTD)
    first, state = steps(layer, x_BTD[:, :15], layer.init_state(3))
    second, _ = steps(layer, x_BTD[:, 15:], state)
    again, _ = steps(layer, x_BTD[:, 15:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(again, second)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@torch.no_grad()
def test_a_mixer_that_forgets_faster_has_every_decay_to_that_power(kind):
    layer, x_BD = mixer(kind), history(2, 1)[:, 0]
    inputs, states = layer.init_state(2)

    def decays() -> torch.Tensor:
        """What one event leaves of a state of ones."""
        _, (_, empty) = layer.step(x_BD, (inputs, states))
        _, (_, full) = layer.step(x_BD, (inputs, states + 1))
        return full - empty

    before = decays()
    forget_faster(layer, 2.5)
    assert bool(((before > 0) & (before < 1)).all())
    torch.testing.assert_close(decays(), before**2.5)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_of_forgetting_that_is_no_rate_is_refused(factor):
    with pytest.raises(ValueError, match="factor must be above 0"):
        forget_faster(mixer("mamba"), factor)


def test_step_sizes_begin_log_uniform_between_a_thousandth_and_a_tenth():
    torch.manual_seed(0)
    for bias in (
        Mamba(400, 1, expand=2, conv_width=4).project_dt.bias,
        Mamba2(400, 1, num_heads=800, expand=2, conv_width=4).dt_bias,
    ):
        dt = softplus(bias.detach().double())
        assert 0.00099 < float(dt.min()) < 0.0011
        assert 0.09 < float(dt.max()) < 0.101
        assert float(dt.log10().mean()) == pytest.approx(-2, abs=0.05)


def test_rates_begin_as_one_to_the_number_of_states_in_every_channel_of_mamba():
    rates = Mamba(4, 5, expand=2, conv_width=4).log_rate.detach().exp().view(8, 5)
    torch.testing.assert_close(rates, torch.arange(1.0, 6).expand(8, 5))


def test_rates_of_the_heads_of_mamba2_begin_between_one_and_sixteen():
    torch.manual_seed(0)
    rates = Mamba2(100, 1, num_heads=200, expand=2, conv_width=4).log_rate.detach().exp()
    assert 1 <= float(rates.min()) < 1.5
    assert 15.5 < float(rates.max()) <= 16.0001


def test_heads_must_divide_the_inner_width():
    with pytest.raises(ValueError, match="multiple of num_heads, got 12 and 5"):
        Mamba2(6, 2, num_heads=5, expand=2, conv_width=4)
