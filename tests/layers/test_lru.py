"""LRU: the recurrence of the paper, where its decays lie, and that nothing grows."""

import math

import pytest
import torch

from recsys.layers.lru import LRU, ring


def layer(dim: int = 3, state_dim: int = 5, low: float = 0.4, high: float = 0.95) -> LRU:
    torch.manual_seed(0)
    lru = LRU(dim, state_dim, low, high)
    with torch.no_grad():
        for projection in (lru.project_in, lru.project_out):
            projection.bias.normal_()
    return lru


def by_convolution(lru: LRU, x: torch.Tensor) -> torch.Tensor:
    """y_t = Re(C sum_k lambda^k gamma (B x_{t-k} + b)) + c, in complex matrices."""
    b_ND = torch.complex(lru.project_in.weight[0::2], lru.project_in.weight[1::2])
    b_N = torch.complex(lru.project_in.bias[0::2], lru.project_in.bias[1::2])
    c_DN = torch.complex(lru.project_out.weight[:, 0::2], -lru.project_out.weight[:, 1::2])
    lambda_N = torch.exp(-torch.exp(lru.nu_log) + 1j * torch.exp(lru.theta_log))
    y = torch.empty_like(x)
    for t in range(x.shape[1]):
        h_BN = sum(
            lambda_N**k * lru.gamma_log.exp() * (x[:, t - k].to(b_ND.dtype) @ b_ND.T + b_N)
            for k in range(t + 1)
        )
        y[:, t] = (h_BN @ c_DN.T).real + lru.project_out.bias
    return y


def test_it_is_the_sum_of_the_past_under_powers_of_lambda():
    lru = layer().double()
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    torch.testing.assert_close(lru(x), by_convolution(lru, x))


@torch.no_grad()
def test_steps_equal_forward_and_leave_the_state_they_get():
    lru, x = layer(), torch.randn(4, 7, 3)
    whole, state = lru(x), lru.init_state(4)
    for t in range(7):
        kept = state[0].clone()
        y, after = lru.step(x[:, t], state)
        assert torch.equal(state[0], kept)
        torch.testing.assert_close(y, whole[:, t])
        state = after
    assert state[0].dtype == torch.complex64


def test_decays_lie_evenly_over_the_area_between_two_circles():
    torch.manual_seed(0)
    nu, theta = ring(20_000, 0.3, 0.9)
    square = torch.exp(-2 * nu)
    assert square.min() >= 0.09 - 1e-6
    assert square.max() <= 0.81 + 1e-6
    for share, even in [(square, (0.09, 0.81)), (theta, (0.0, 2 * math.pi))]:
        thirds = torch.histc(share, 3, *even) / len(share)
        torch.testing.assert_close(thirds, torch.full((3,), 1 / 3), atol=0.02, rtol=0)


@pytest.mark.parametrize("radius", [0.1, 0.8, 0.97])
@torch.no_grad()
def test_slow_and_fast_channels_start_equally_loud(radius):
    torch.manual_seed(0)
    lru = LRU(32, 64, radius, radius)
    lru.project_out = torch.nn.Identity()
    states = lru(torch.randn(64, 300, 32))[:, 200:]
    assert states.square().mean().item() == pytest.approx(0.5, rel=0.1)
    torch.manual_seed(0)
    lru = LRU(32, 64, radius, radius)
    out = lru(torch.randn(64, 300, 32))[:, 200:]
    assert out.square().mean().item() == pytest.approx(1.0, rel=0.15)


@torch.no_grad()
def test_no_parameters_make_a_state_grow_by_itself():
    lru = layer(state_dim=64)
    for parameter in (lru.nu_log, lru.theta_log):
        parameter.normal_(std=6)
    lru.project_in.bias.zero_()
    (h,), x = (torch.ones(1, 64, dtype=torch.complex64),), torch.zeros(1, 3)
    for _ in range(500):
        _, (h,) = lru.step(x, (h,))
    assert h.abs().max() <= 1.001


def test_it_runs_where_products_are_of_low_precision():
    lru, x = layer(), torch.randn(2, 9, 3)
    with torch.autocast("cpu", torch.bfloat16):
        low = lru(x)
    torch.testing.assert_close(low.float(), lru(x), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("radii", [(-0.1, 0.5), (0.5, 0.4), (0.5, 1.0), (0.0, 0.0)])
def test_radii_must_rise_within_the_unit_circle(radii):
    with pytest.raises(ValueError, match=f"got {radii[0]} and {radii[1]}"):
        LRU(4, 4, *radii)
