"""linear_scan: the first-order recurrence h_t = a_t h_{t-1} + b_t, channel by channel.

The engine of LRU (Orvieto et al., 2023), diagonal S4 and S5, minGRU and minLSTM (Feng et al.,
2024) and of exponential averages; its backward is the same scan walked the other way.
"""

import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.kernels.backends import Backend, asked_backend, dtype_obstacles
from recsys.kernels.linear_scan.operator import obstacles, scan
from recsys.kernels.linear_scan.reference import linear_scan_reference
from recsys.kernels.packing import (
    Times,
    check_device,
    check_shape,
    run_definition,
    state_dtype,
    times_of,
)

__all__ = [
    "dtype_obstacles",
    "linear_scan",
    "linear_scan_reference",
    "linear_scan_step",
    "obstacles",
]


def linear_scan(
    a: Tensor,
    b: Tensor,
    *,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    reset: Tensor | None = None,
    return_final_state: bool = False,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """[B, L, …] h_t = a_t h_{t-1} + b_t in the dtype of b, and with it the last h on request.

    b [B, L, …channels], or [T, …channels] packed, with `cu_seqlens` [N + 1] int. a is real or
    complex, of any size (0 forgets, above 1 grows), and one of: the shape of b; 1 in the last place
    (a decay per head or step); the channels alone (the same at every step, which saves a third of
    the memory traffic). initial_state [B or N, …channels], zeros by default. `reset` [B, L] or [T]
    bool forgets what came before a step. `reverse` walks from the end, with the state of the end.
    States and sums are float32 (complex64) for low-precision inputs and have their gradients too.
    InputError for shapes that do not fit.
    """
    for name, x in (("a", a), ("b", b)):
        if not (x.is_floating_point() or x.is_complex()):
            raise InputError(f"{name} must be floating or complex numbers, got {x.dtype}")
    times = times_of(b, cu_seqlens)
    channels = b.shape[len(times.shape) :]
    check_device(a, b, initial_state, cu_seqlens, reset)
    a_TG = _coefficients(a, b, len(times.shape))
    b_TD = b.reshape(times.shape.numel(), channels.numel())
    state = state_dtype(a, b)
    if a.is_complex() and not b.is_complex():
        b_TD = b_TD.to(state)
    if b.is_complex() and not a.is_complex():
        a_TG = a_TG.to(state)
    if initial_state is None:
        h_ND = b.new_zeros((times.num_sequences, b_TD.shape[1]), dtype=state)
    else:
        check_shape(initial_state, (times.num_sequences, *channels), "initial_state")
        h_ND = initial_state.to(state).reshape(times.num_sequences, b_TD.shape[1])
    reset_T = times.flat_mask(reset, "reset")
    asked = asked_backend(backend)
    if asked == "reference":
        y_TD, final_ND = _by_definition(a_TG, b_TD, h_ND, reset_T, times, reverse, state)
    else:
        y_TD, final_ND = scan(a_TG, b_TD, h_ND, times.cu_seqlens, reset_T, reverse, asked)
    y = y_TD.reshape(b.shape)
    return (y, final_ND.reshape(len(final_ND), *channels)) if return_final_state else y


def linear_scan_step(
    a_t: Tensor, b_t: Tensor, state: Tensor, *, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(y_t [B, …] in the dtype of b_t, new state) for one event; a_t broadcasts to b_t [B, …].

    The state is what `linear_scan` returns and takes: float32 or complex64 [B, …]. `reset` [B]
    bool forgets it first.
    """
    a_t = a_t.to(state.dtype)
    if reset is not None:
        a_t = a_t * ~reset.reshape(-1, *[1] * (state.dim() - 1))
    state = a_t * state + b_t
    return state.to(_output_dtype(b_t.dtype, state.dtype)), state


def _output_dtype(b: torch.dtype, state: torch.dtype) -> torch.dtype:
    return state if state.is_complex else b


def _coefficients(a: Tensor, b: Tensor, time_dims: int) -> Tensor:
    """[T or 1, G] of a, G dividing the D channels of b: channel d takes a[t or 0, d // (D / G)]."""
    channels = b.shape[time_dims:]
    if a.dim() == b.dim() and a.shape[:time_dims] == b.shape[:time_dims]:
        flat = a.flatten(0, time_dims - 1)
        if a.shape == b.shape or a.shape[time_dims:] == (*channels[:-1], 1):
            return flat.flatten(1) if channels else flat[:, None]
    try:
        if a.dim() <= len(channels):
            return a.expand(channels).reshape(1, channels.numel())
        full = a.expand(b.shape)
    except RuntimeError:
        raise InputError(f"a {tuple(a.shape)} does not broadcast to b {tuple(b.shape)}") from None
    return full.reshape(b.shape[:time_dims].numel(), channels.numel())


def _by_definition(
    a_TG: Tensor,
    b_TD: Tensor,
    h_ND: Tensor,
    reset_T: Tensor | None,
    times: Times,
    reverse: bool,
    state: torch.dtype,
) -> tuple[Tensor, Tensor]:
    a_TD = a_TG.to(state).repeat_interleave(b_TD.shape[1] // max(1, a_TG.shape[1]), dim=1)
    a_TD = a_TD.expand(len(b_TD), -1)
    if reset_T is not None:
        a_TD = a_TD.masked_fill(reset_T[:, None], 0)
    y_TD, (final_ND,) = run_definition(
        linear_scan_reference, [a_TD, b_TD.to(state)], (h_ND,), times, reverse
    )
    return y_TD.to(b_TD.dtype), final_ND
