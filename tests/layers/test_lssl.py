"""State spaces: the solution of their equation, where they start, and what a gap does."""

import math

import numpy as np
import pytest
import torch

from recsys.errors import InputError
from recsys.layers.lssl import MAX_STRETCH, EventSSM, GapClock, GapSSM, StateSpace

DIM, STATE = 3, 5


def event_layer() -> EventSSM:
    torch.manual_seed(0)
    return EventSSM(DIM, STATE, 0.01, 0.5)


def gap_layer(bend: float = 0.0) -> GapSSM:
    torch.manual_seed(0)
    layer = GapSSM(DIM, STATE, 0.01, 0.5)
    torch.nn.init.normal_(layer.clock.bend_K, std=bend)
    return layer


def some_times(batch: int, steps: int) -> torch.Tensor:
    """With gaps of 0 and of up to some years of seconds."""
    gaps = (2 ** torch.randint(0, 27, (batch, steps))) - 1
    return 1_500_000_000 + gaps.cumsum(1)


def solved(space: StateSpace, n: int, steps_B: torch.Tensor) -> torch.Tensor:
    """[B, 1 + D] of channel n after `steps_B` times dt: what is left of h, and what has come of
    inputs [D] held for so long. The exponential of h' = lambda h + B x, x' = 0 as one matrix."""
    system = torch.zeros(1 + DIM, 1 + DIM, dtype=torch.complex128)
    system[0, 0] = torch.complex(-space.log_decay[n].exp(), space.frequency[n])
    system[0, 1:] = torch.complex(space.b_ND2[n, :, 0], space.b_ND2[n, :, 1])
    return torch.linalg.matrix_exp(system * (space.log_dt[n].exp() * steps_B)[:, None, None])[:, 0]


def by_definition(layer: EventSSM | GapSSM, x_BTD: torch.Tensor, steps_BT) -> torch.Tensor:
    space = layer.space
    c_DN = torch.complex(space.project_out.weight[:, 0::2], -space.project_out.weight[:, 1::2])
    y = space.skip_D * x_BTD
    for n in range(STATE):
        b_D = solved(space, n, torch.ones(1))[0, 1:]
        h_B = torch.zeros(len(x_BTD), dtype=torch.complex128)
        for t in range(x_BTD.shape[1]):
            h_B = solved(space, n, steps_BT[:, t])[:, 0] * h_B + x_BTD[:, t].to(b_D.dtype) @ b_D
            y[:, t] += (h_B[:, None] * c_DN[:, n]).real
    return y


@torch.no_grad()
def test_events_move_the_state_by_the_exact_solution_of_its_equation():
    layer = event_layer().double()
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_definition(layer, x, torch.ones(2, 6)))


@torch.no_grad()
def test_gaps_let_the_state_run_for_as_many_steps_as_the_clock_says():
    layer, times = gap_layer(bend=0.3).double(), some_times(2, 8)
    x = torch.randn(2, 8, DIM, dtype=torch.float64)
    gaps = np.diff(times.numpy(), axis=1, prepend=times[:, :1].numpy())
    knots = 4.0 ** np.arange(len(layer.clock.bend_K)) - 1
    bend = np.interp(np.log2(gaps + 1.0), np.log2(knots + 1), layer.clock.bend_K.numpy())
    steps = torch.from_numpy(MAX_STRETCH ** np.tanh(bend))
    torch.testing.assert_close(layer(x, times), by_definition(layer, x, steps))


def test_gaps_mean_nothing_before_the_clock_has_learned_and_are_then_learned():
    layer, events = gap_layer(), event_layer()
    events.space.load_state_dict(layer.space.state_dict())
    x, times = torch.randn(2, 8, DIM), some_times(2, 8)
    torch.testing.assert_close(layer(x, times), events(x))
    layer(x, times).square().sum().backward()
    assert layer.clock.bend_K.grad.abs().max() > 1e-4


@pytest.mark.parametrize("build", [event_layer, lambda: gap_layer(bend=0.5)])
@torch.no_grad()
def test_steps_equal_forward_and_leave_the_state_they_get(build):
    layer, x, times = build(), torch.randn(4, 7, DIM), some_times(4, 7)
    whole, state = layer(x, times), layer.init_state(4)
    for t in range(7):
        kept = [part.clone() for part in state]
        y, after = layer.step(x[:, t], state, times[:, t])
        assert all(map(torch.equal, state, kept))
        torch.testing.assert_close(y, whole[:, t])
        state = after


@torch.no_grad()
def test_a_gap_matters_from_its_event_on_and_the_hour_of_the_day_never():
    layer, x, times = gap_layer(bend=0.5), torch.randn(1, 6, DIM), some_times(1, 6)
    before = layer(x, times)
    torch.testing.assert_close(layer(x, times + 12_345), before)
    later = times.clone()
    later[:, 3:] += 10_000
    changed = (layer(x, later) - before).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.tolist() == [False, False, False, True, True, True]


@torch.no_grad()
def test_a_clock_stays_within_its_bounds_and_takes_gaps_below_zero_as_none():
    clock = GapClock()
    gaps = torch.tensor([-5, 0, 1, 1000, 2**62])
    for bend, steps in [(100.0, MAX_STRETCH), (-100.0, 1 / MAX_STRETCH), (0.0, 1.0)]:
        clock.bend_K.fill_(bend)
        torch.testing.assert_close(clock(gaps), torch.full((5,), steps))
    clock.bend_K.normal_()
    assert clock(gaps)[0] == clock(gaps)[1] != clock(gaps)[2]


@torch.no_grad()
def test_another_unit_of_time_moves_what_a_clock_has_learned_along():
    torch.manual_seed(0)
    clock, other = GapClock(), GapClock()
    clock.bend_K.normal_()
    other.bend_K[1:] = clock.bend_K[:-1]
    gaps = torch.tensor([0, 3, 77, 86_400, 10**9])
    torch.testing.assert_close(other(4 * gaps + 3), clock(gaps), rtol=1e-4, atol=0)


def test_channels_start_as_s4d_lin_with_time_scales_even_over_their_range():
    torch.manual_seed(0)
    space = StateSpace(4, 4000, 0.001, 0.1)
    rate = space.rate() / space.log_dt.exp()
    torch.testing.assert_close(rate.real, torch.full((4000,), -0.5))
    torch.testing.assert_close(rate.imag, math.pi * torch.arange(4000.0))
    thirds = torch.histc(space.log_dt.detach(), 3, math.log(0.001), math.log(0.1)) / 4000
    torch.testing.assert_close(thirds, torch.full((3,), 1 / 3), atol=0.03, rtol=0)


@torch.no_grad()
def test_no_parameters_make_a_state_grow_by_itself():
    layer = gap_layer(bend=3.0)
    for parameter in (layer.space.log_decay, layer.space.frequency, layer.space.log_dt):
        parameter.normal_(std=4)
    state = (torch.ones(1, STATE, dtype=torch.complex64), torch.zeros(1, dtype=torch.int64))
    for time in some_times(1, 500).unbind(1):
        _, state = layer.step(torch.zeros(1, DIM), state, time)
    assert state[0].abs().max() <= 1.001


def test_it_runs_where_products_are_of_low_precision():
    layer, x, times = gap_layer(bend=0.1), torch.randn(2, 9, DIM), some_times(2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x, times)
    torch.testing.assert_close(low.float(), layer(x, times), atol=0.1, rtol=0.1)


@torch.no_grad()
def test_a_clock_counts_as_exactly_where_products_are_of_low_precision():
    clock = GapClock()
    clock.bend_K.normal_()
    gaps = torch.tensor([0, 3, 77, 86_400, 10**9])
    with torch.autocast("cpu", torch.bfloat16):
        low = clock(gaps)
    assert torch.equal(low, clock(gaps))


def test_gaps_without_times_are_refused():
    layer = gap_layer()
    with pytest.raises(InputError, match="need the times of the events"):
        layer(torch.randn(1, 2, DIM))
    with pytest.raises(InputError, match=r"model\.time=events"):
        layer.step(torch.randn(1, DIM), layer.init_state(1))


@pytest.mark.parametrize("dt", [(0.0, 0.1), (0.2, 0.1)])
def test_time_scales_must_rise_above_zero(dt):
    with pytest.raises(ValueError, match=f"got {dt[0]} and {dt[1]}"):
        StateSpace(DIM, STATE, *dt)
