"""Aaren: attention of a fixed query that fades with age, whole or event by event."""

import math
from typing import Any

import pytest
import torch

from recsys.layers.aaren import Aaren


def layer_of(dim: int, num_heads: int, dtype: torch.dtype = torch.float64) -> Aaren:
    torch.manual_seed(0)
    return Aaren(dim, num_heads).to(dtype)


def by_definition(
    layer: Aaren, q_HK: torch.Tensor, W_HKD: torch.Tensor, x_TD: torch.Tensor
) -> torch.Tensor:
    """Queries and keys as in the paper, with ALiBi's penalty on age."""
    heads, size, _ = W_HKD.shape
    v = (x_TD @ layer.value.weight.T + layer.value.bias).view(-1, heads, size)
    slopes = 1 / (1 + torch.exp(-layer.slope_logit))
    out = torch.zeros(len(x_TD), heads, size, dtype=x_TD.dtype)
    for h in range(heads):
        for t in range(len(x_TD)):
            k = x_TD[: t + 1] @ W_HKD[h].T
            age = t - torch.arange(t + 1)
            weight = torch.exp(k @ q_HK[h] / math.sqrt(size) - slopes[h] * age)
            out[t, h] = (weight[:, None] * v[: t + 1, h]).sum(0) / weight.sum()
    return out.flatten(1) @ layer.project_out.weight.T + layer.project_out.bias


@pytest.mark.parametrize(("dim", "num_heads"), [(6, 1), (6, 2), (8, 4)])
@torch.no_grad()
def test_it_is_attention_of_a_query_over_keys_with_a_penalty_on_age(dim, num_heads):
    layer = layer_of(dim, num_heads)
    size = dim // num_heads
    q_HK = torch.randn(num_heads, size, dtype=torch.float64)
    W_HKD = torch.randn(num_heads, size, dim, dtype=torch.float64)
    layer.score.weight[:] = torch.einsum("hk,hkd->hd", q_HK, W_HKD) / math.sqrt(size)
    layer.slope_logit[:] = torch.linspace(-2, 3, num_heads)
    x_BTD = torch.randn(2, 9, dim, dtype=torch.float64)
    wanted = torch.stack([by_definition(layer, q_HK, W_HKD, x_TD) for x_TD in x_BTD])
    torch.testing.assert_close(layer(x_BTD), wanted)


def steps(layer: Aaren, x_BTD: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
    rows = []
    for x_BD in x_BTD.unbind(1):
        y_BD, state = layer.step(x_BD, state)
        rows.append(y_BD)
    return torch.stack(rows, dim=1), state


@torch.no_grad()
def test_event_by_event_and_from_a_kept_state_it_is_the_same():
    layer = layer_of(8, 4, torch.float32)
    x_BTD = torch.randn(3, 40, 8)
    first, state = steps(layer, x_BTD[:, :15], layer.init_state(3))
    second, _ = steps(layer, x_BTD[:, 15:], state)
    again, _ = steps(layer, x_BTD[:, 15:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), layer(x_BTD))
    assert torch.equal(again, second)


@torch.no_grad()
def test_the_steepest_slope_keeps_its_precision_over_a_thousand_events():
    layer = layer_of(8, 4, torch.float32)
    layer.slope_logit.fill_(20.0)
    x_BTD = torch.randn(1, 1000, 8)
    exact = layer.double()(x_BTD.double())
    layer.float()
    torch.testing.assert_close(layer(x_BTD).double(), exact, atol=1e-4, rtol=0)
    stepped, state = steps(layer, x_BTD, layer.init_state(1))
    torch.testing.assert_close(stepped.double(), exact, atol=1e-5, rtol=0)
    assert float(state.lse.abs().max()) < 10


def test_slopes_begin_as_the_geometric_series_of_alibi():
    slopes = layer_of(8, 8).slope_logit.detach().sigmoid()
    wanted = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    torch.testing.assert_close(slopes, torch.tensor(wanted, dtype=torch.float64))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of num_heads, got 8 and 3"):
        Aaren(8, 3)
