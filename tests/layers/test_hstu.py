"""HSTU: its equations term by term, its bias in time, its ring."""

import math

import pytest
import torch
import torch.nn.functional as F

from recsys.layers import hstu
from recsys.layers.hstu import HIDDEN, NUM_BUCKETS, HSTUBlock, gap_buckets

TIMES_BT = torch.tensor([[0, 3, 3, 90, 4_000, 4_001, 10**6], [5, 6, 60, 61, 10**12, 2 * 10**12, 9]])
"""Of which the last is out of order."""


def block(window: int = 8, dropout: float = 0.0) -> HSTUBlock:
    torch.manual_seed(0)
    layer = HSTUBlock(6, 2, dropout, window).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def history(steps: int = 7) -> torch.Tensor:
    return torch.randn(2, steps, 6, generator=torch.Generator().manual_seed(1)).double()


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


def bucket(gap: int) -> int:
    return min(int(math.log(max(1, gap)) / 0.301), 127)


def by_the_paper(layer: HSTUBlock, x_TD: torch.Tensor, times: list[int] | None) -> torch.Tensor:
    """[T, D] eqs. 1 to 3 for one history, place by place and head by head."""
    u, v, q, k = silu(layer.project_in(layer.norm(x_TD))).split(6, dim=1)
    y_TD = torch.empty_like(x_TD)
    for i in range(len(x_TD)):
        mixed_D = torch.zeros(6, dtype=x_TD.dtype)
        for j in range(i + 1):
            gap = 0 if times is None else times[i] - times[j]
            rab = layer.place_bias[i - j] + layer.time_bias[bucket(gap)]
            for own in (slice(0, 3), slice(3, 6)):
                a = silu(q[i, own] @ k[j, own] + rab) / layer.window
                mixed_D[own] += a * v[j, own]
        centred_D = mixed_D - mixed_D.mean()
        normed_D = centred_D / centred_D.square().mean().sqrt()
        normed_D = normed_D * layer.mixed_norm.weight + layer.mixed_norm.bias
        y_TD[i] = x_TD[i] + layer.project_out(normed_D * u[i])
    return y_TD


@pytest.mark.parametrize("rows", [64, 3])
@pytest.mark.parametrize("timed", [False, True])
@torch.no_grad()
def test_a_unit_computes_the_equations_of_the_paper(timed, rows, monkeypatch):
    monkeypatch.setattr(hstu, "ROWS", rows)
    layer, x_BTD = block(), history()
    y_BTD = layer(x_BTD, TIMES_BT if timed else None)
    for y_TD, x_TD, times_T in zip(y_BTD, x_BTD, TIMES_BT, strict=True):
        expected_TD = by_the_paper(layer, x_TD, times_T.tolist() if timed else None)
        torch.testing.assert_close(y_TD, expected_TD, atol=1e-6, rtol=1e-6)


def test_a_gradient_is_the_slope_of_the_output(monkeypatch):
    monkeypatch.setattr(hstu, "ROWS", 2)
    layer, x_BTD = block(window=5), history(steps=5)
    probed = [layer.place_bias, layer.time_bias, layer.project_in.weight]

    def total() -> torch.Tensor:
        return layer(x_BTD, TIMES_BT[:, :5]).sin().sum()

    grads = torch.autograd.grad(total(), probed)
    for parameter, grad in zip(probed, grads, strict=True):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-6)
            above = total()
            parameter.sub_(direction, alpha=2e-6)
            slope = (above - total()) / 2e-6
            parameter.add_(direction, alpha=1e-6)
        torch.testing.assert_close(slope, (grad * direction).sum(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("timed", [False, True])
@torch.no_grad()
def test_event_by_event_it_gives_what_it_gives_for_the_whole(timed):
    layer, x_BTD = block(window=7), history()
    state, out = layer.init_state(2), []
    for x_BD, times_B in zip(x_BTD.unbind(1), TIMES_BT.unbind(1), strict=True):
        y_BD, state = layer.step(x_BD, state, times_B if timed else None)
        out.append(y_BD)
    expected_BTD = layer(x_BTD, TIMES_BT if timed else None)
    torch.testing.assert_close(torch.stack(out, dim=1), expected_BTD)


@torch.no_grad()
def test_a_ring_knows_its_last_events_and_how_far_back_they_are():
    layer, x_BTD = block(window=3), history()
    state = layer.init_state(2)
    for end in range(1, 8):
        y_BD, state = layer.step(x_BTD[:, end - 1], state, TIMES_BT[:, end - 1])
        last = slice(max(0, end - 3), end)
        torch.testing.assert_close(y_BD, layer(x_BTD[:, last], TIMES_BT[:, last])[:, -1])


@torch.no_grad()
def test_what_is_hidden_counts_nothing_to_the_bit():
    score = torch.tensor([HIDDEN, HIDDEN + 300, HIDDEN - 300])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        with torch.enable_grad():
            x = score.to(dtype).requires_grad_()
            y = F.silu(x)
            (slope,) = torch.autograd.grad(y.sum(), x)
        assert not y.any()
        assert not slope.any()


def test_gaps_fall_into_buckets_of_equal_ratio():
    gaps = torch.tensor([-5, 0, 1, 2, 3, 60, 86_400, 10**9, 10**16, 2**62])
    expected = [0, 0, 0, 2, 3, 13, 37, 68, 122, 127]
    assert gap_buckets(gaps, torch.tensor(0)).tolist() == expected
    now = 1_700_000_000_000_000_000
    assert gap_buckets(torch.tensor(now + 60), torch.tensor(now)).item() == 13
    assert max(expected) == NUM_BUCKETS - 1


@torch.no_grad()
def test_without_times_no_time_has_passed():
    layer, x_BTD = block(), history()
    same_BT = torch.full((2, 7), 12345)
    torch.testing.assert_close(layer(x_BTD), layer(x_BTD, same_BT))


@torch.no_grad()
def test_between_an_event_without_a_time_and_another_no_time_has_passed():
    layer, x_BTD = block(), history(steps=3)
    moments = [None, torch.tensor([10**9, 10**12]), None]

    def walked(times: list[torch.Tensor | None]) -> list[torch.Tensor]:
        state, out = layer.init_state(2), []
        for x_BD, times_B in zip(x_BTD.unbind(1), times, strict=True):
            y_BD, state = layer.step(x_BD, state, times_B)
            out.append(y_BD)
        return out

    same = [moments[1]] * 3
    for y_BD, expected_BD in zip(walked(moments), walked(same), strict=True):
        torch.testing.assert_close(y_BD, expected_BD)


@torch.no_grad()
def test_the_longest_history_does_not_change_a_short_one():
    short, long = block(window=8), block(window=800)
    long.load_state_dict({**short.state_dict(), "place_bias": torch.zeros(800).double()})
    long.place_bias[:8] = short.place_bias
    torch.testing.assert_close(long(history()), short(history()), atol=1e-4, rtol=1e-4)


def test_values_are_dropped_in_training_alone():
    layer, x_BTD = block(dropout=0.5), history()
    assert not torch.equal(layer(x_BTD), layer(x_BTD))
    layer.eval()
    assert torch.equal(layer(x_BTD), layer(x_BTD))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of num_heads, got 8 and 3"):
        HSTUBlock(8, 3, dropout=0.0, window=4)
