"""selective_scan: the input-dependent state space of Mamba (S6; Gu & Dao, 2023).

Every channel d walks S states of its own, h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, and reads them
out as y_t = C_t · h_t (equations 2a and 2b of the paper, with the decay of its equation 4 and, as
in its code, Euler's step dt B for the input). States [B, L, D, S] never exist as a whole: the
forward keeps one in 64 steps, from which the backward recomputes the others.
"""

import torch
import torch.nn.functional as F
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
from recsys.kernels.selective_scan.operator import obstacles, scan
from recsys.kernels.selective_scan.reference import selective_scan_reference

__all__ = [
    "dtype_obstacles",
    "obstacles",
    "selective_scan",
    "selective_scan_reference",
    "selective_scan_step",
]


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    reset: Tensor | None = None,
    return_final_state: bool = False,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """[B, L, D] y_t = C_t · h_t in the dtype of u, and with it the last h on request.

    h_t[d, s] = exp(dt_t[d] A[d, s]) h_{t-1}[d, s] + dt_t[d] B_t[s] u_t[d]. u and dt [B, L, D] (dt
    positive already: softplus is the caller's); A [D, S], below 0 for states that fade; B and C
    [B, L, S]. Or packed, with [T, …] for [B, L, …] and `cu_seqlens` [N + 1] int. All are real.
    `D` [D] adds D u_t to y_t; then `z` [B, L, D] multiplies it with silu(z_t).
    initial_state [B or N, D, S], zeros by default. `reset` [B, L] or [T] bool forgets what came
    before a step. `reverse` walks from the end, with the state of the end. States and sums are
    float32 for low-precision inputs and have their gradients too.
    InputError for shapes that do not fit.
    """
    check_floating(u=u, dt=dt, A=A, B=B, C=C, D=D, z=z, initial_state=initial_state)
    check_device(u, dt, A, B, C, D, z, initial_state, cu_seqlens, reset)
    times = times_of(u, cu_seqlens)
    _check_sizes(u, dt, A, B, C, D, z, times.shape)
    u_TD, dt_TD = times.flat(u, "u"), times.flat(dt, "dt")
    B_TS, C_TS = times.flat(B, "B"), times.flat(C, "C")
    state = state_dtype(u, dt, A, B, C)
    if initial_state is None:
        h_NDS = u.new_zeros((times.num_sequences, *A.shape), dtype=state)
    else:
        check_shape(initial_state, (times.num_sequences, *A.shape), "initial_state")
        h_NDS = initial_state.to(state)
    reset_T = times.flat_mask(reset, "reset")
    asked = asked_backend(backend)
    if asked == "reference":
        y_TD, final_NDS = _by_definition(u_TD, dt_TD, A, B_TS, C_TS, h_NDS, reset_T, times, reverse)
    else:
        y_TD, final_NSD, _ = scan(
            *(u_TD, dt_TD, A.T, B_TS, C_TS, h_NDS.transpose(1, 2)),
            *(times.cu_seqlens, reset_T, reverse, asked),
        )
        final_NDS = final_NSD.transpose(1, 2)
    y = _skip_and_gate(times.unflat(y_TD), u, D, z, state)
    return (y, final_NDS) if return_final_state else y


def selective_scan_step(
    u_t: Tensor,
    dt_t: Tensor,
    A: Tensor,
    B_t: Tensor,
    C_t: Tensor,
    state: Tensor,
    *,
    D: Tensor | None = None,
    z_t: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y_t [B, D] in the dtype of u_t, new state) for one event.

    u_t, dt_t and z_t [B, D], B_t and C_t [B, S], A and D as in `selective_scan`. The state is what
    that returns and takes: float32 [B, D, S]. `reset` [B] bool forgets it first.
    """
    if reset is not None:
        state = state.masked_fill(reset[:, None, None], 0)
    u, dt, B, C = (x.to(state.dtype) for x in (u_t, dt_t, B_t, C_t))
    decay = torch.exp(dt[..., None] * A.to(state.dtype))
    state = decay * state + (dt * u)[..., None] * B[:, None, :]
    y_t = (state * C[:, None, :]).sum(-1).to(u_t.dtype)
    return _skip_and_gate(y_t, u_t, D, z_t, state.dtype), state


def _skip_and_gate(
    y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None, state: torch.dtype
) -> Tensor:
    """(y + D u) silu(z), computed in the dtype of a state; in the dtype of u."""
    if D is not None:
        y = torch.addcmul(y.to(state), D.to(state), u.to(state))
    if z is not None:
        y = y.to(state) * F.silu(z.to(state))
    return y.to(u.dtype)


def _check_sizes(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    steps: torch.Size,
) -> None:
    if u.dim() != len(steps) + 1:
        raise InputError(f"u must have shape {(*steps, 'channels')}, got {tuple(u.shape)}")
    channels = u.shape[-1]
    if A.dim() != 2 or len(A) != channels:
        raise InputError(f"A must have shape ({channels}, states), got {tuple(A.shape)}")
    check_shape(dt, u.shape, "dt")
    check_shape(B, (*steps, A.shape[1]), "B")
    check_shape(C, (*steps, A.shape[1]), "C")
    if D is not None:
        check_shape(D, (channels,), "D")
    if z is not None:
        check_shape(z, u.shape, "z")


def _by_definition(
    u_TD: Tensor,
    dt_TD: Tensor,
    A_DS: Tensor,
    B_TS: Tensor,
    C_TS: Tensor,
    h_NDS: Tensor,
    reset_T: Tensor | None,
    times: Times,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    u, dt, A, B, C = (x.to(h_NDS.dtype) for x in (u_TD, dt_TD, A_DS, B_TS, C_TS))
    resets = [] if reset_T is None else [reset_T]

    def definition(
        u: Tensor, dt: Tensor, B: Tensor, C: Tensor, *rest: Tensor
    ) -> tuple[Tensor, tuple[Tensor]]:
        *reset, h = rest
        return selective_scan_reference(u, dt, A, B, C, h, *reset)

    y_TD, (final_NDS,) = run_definition(
        definition, [u, dt, B, C, *resets], (h_NDS,), times, reverse
    )
    return y_TD.to(u_TD.dtype), final_NDS
