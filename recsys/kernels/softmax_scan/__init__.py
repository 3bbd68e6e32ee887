"""softmax_scan: softmax attention over the prefix of a sequence, step by step.

"Attention as an RNN" (Feng et al., 2024, Aaren): attention of a fixed query over all events so
far, with a state that does not grow.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.kernels.backends import Backend, asked_backend, dtype_obstacles
from recsys.kernels.packing import (
    Times,
    check_device,
    check_floating,
    check_shape,
    run_definition,
    state_dtype,
    times_of,
)
from recsys.kernels.softmax_scan.operator import obstacles, scan
from recsys.kernels.softmax_scan.reference import advance, softmax_scan_reference

__all__ = [
    "SoftmaxState",
    "dtype_obstacles",
    "obstacles",
    "softmax_scan",
    "softmax_scan_reference",
    "softmax_scan_step",
]


class SoftmaxState(NamedTuple):
    """What is left of the events so far; float32, or float64 where an input is."""

    lse: Tensor
    """[B or N, H] logarithm of the sum of e^s; -inf before the first event."""
    o: Tensor
    """[B or N, H, K] average of v, weighted by e^s; 0 before the first event."""


def softmax_scan(
    s: Tensor,
    v: Tensor,
    *,
    initial_state: SoftmaxState | None = None,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    reset: Tensor | None = None,
    valid: Tensor | None = None,
    return_final_state: bool = False,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, SoftmaxState]:
    """[B, L, H, K] o_t = sum over i <= t of softmax(s_<=t)_i v_i in the dtype of v, and the state.

    s [B, L, H] scores, of any size and -inf to leave an event out; v [B, L, H, K]. Packed: s
    [T, H], v [T, H, K] and `cu_seqlens` [N + 1] int. `reset` [B, L] or [T] bool forgets what came
    before a step. Where `valid` [B, L] or [T] bool is False, a step is skipped, whatever its s
    and v hold: o stays, 0 while nothing has come. `reverse` walks from the end, with the state of
    the end. Gradients reach s, v and the initial state from o and the final state; that of an
    initial lse of -inf is 0. Sums are float32 for low-precision inputs and relative to the largest
    score so far (Feng et al., section 3.2), so that a number added to all scores changes nothing.
    InputError for shapes that do not fit.
    """
    times = times_of(v, cu_seqlens)
    _check(s, v, len(times.shape))
    check_device(s, v, *(initial_state or ()), cu_seqlens, reset, valid)
    s_TH, v_THK = times.flat(s, "s"), times.flat(v, "v")
    lse_NH, o_NHK = _state(initial_state, times.num_sequences, s, v)
    reset_T, valid_T = times.flat_mask(reset, "reset"), times.flat_mask(valid, "valid")
    asked = asked_backend(backend)
    if asked == "reference":
        y_THK, lse_NH, o_NHK = _by_definition(
            s_TH, v_THK, lse_NH, o_NHK, times, reset_T, valid_T, reverse
        )
    else:
        y_THK, _, _, lse_NH, o_NHK = scan(
            s_TH, v_THK, lse_NH, o_NHK, times.cu_seqlens, reset_T, valid_T, reverse, asked
        )
    y = times.unflat(y_THK)
    return (y, SoftmaxState(lse_NH, o_NHK)) if return_final_state else y


def softmax_scan_step(
    s_t: Tensor,
    v_t: Tensor,
    state: SoftmaxState,
    *,
    reset: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, SoftmaxState]:
    """(o_t [B, H, K] in the dtype of v_t, new state) for one event; s_t [B, H], v_t [B, H, K].

    The state is what `softmax_scan` returns and takes. `reset` [B] bool forgets it first; where
    `valid` [B] bool is False the event is skipped.
    """
    lse, o = state
    s_t, v_t, dtype = s_t.to(lse.dtype), v_t.to(lse.dtype), v_t.dtype
    if reset is not None:
        lse = lse.masked_fill(reset[:, None], -math.inf)
        o = o.masked_fill(reset[:, None, None], 0)
    if valid is not None:
        s_t, v_t = _without(s_t, v_t, ~valid)
    lse, o = advance(s_t, v_t, lse, o)
    return o.to(dtype), SoftmaxState(lse, o)


def _check(s: Tensor, v: Tensor, time_dims: int) -> None:
    if v.dim() != time_dims + 2:
        leading = "batch, time" if time_dims == 2 else "time"
        raise InputError(f"v must be [{leading}, heads, channels], got shape {tuple(v.shape)}")
    check_shape(s, v.shape[:-1], "s")
    check_floating(s=s, v=v)


def _state(
    initial: SoftmaxState | None, num_sequences: int, s: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    dtype = state_dtype(s, v)
    heads = (num_sequences, *v.shape[-2:-1])
    if initial is None:
        lse_NH = s.new_full(heads, -math.inf, dtype=dtype)
        return lse_NH, v.new_zeros((*heads, v.shape[-1]), dtype=dtype)
    lse_NH, o_NHK = initial
    check_shape(lse_NH, heads, "initial_state.lse")
    check_shape(o_NHK, (*heads, v.shape[-1]), "initial_state.o")
    # Overwritten with itself: an lse of -inf is not a number to move, so its gradient is 0.
    lse_NH = lse_NH.to(dtype).masked_fill(lse_NH == -math.inf, -math.inf)
    return lse_NH, o_NHK.to(dtype)


def _without(s: Tensor, v: Tensor, skipped: Tensor) -> tuple[Tensor, Tensor]:
    """s and v of events that count for nothing where `skipped`."""
    return (
        s.masked_fill(skipped[..., None], -math.inf),
        v.masked_fill(skipped[..., None, None], 0),
    )


def _by_definition(
    s_TH: Tensor,
    v_THK: Tensor,
    lse_NH: Tensor,
    o_NHK: Tensor,
    times: Times,
    reset_T: Tensor | None,
    valid_T: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = v_THK.dtype
    s_TH, v_THK = s_TH.to(lse_NH.dtype), v_THK.to(lse_NH.dtype)
    if valid_T is not None:
        s_TH, v_THK = _without(s_TH, v_THK, ~valid_T)
    if reset_T is None:
        reset_T = torch.zeros(len(s_TH), dtype=torch.bool, device=s_TH.device)
    y_THK, (lse_NH, o_NHK) = run_definition(
        softmax_scan_reference, [s_TH, v_THK, reset_T], (lse_NH, o_NHK), times, reverse
    )
    return y_THK.to(dtype), lse_NH, o_NHK
