"""rnn_scan: nonlinear recurrent networks whose recurrence is diagonal (ParaRNN, 2025).

What a GRU or an LSTM costs on a long sequence is its product with a matrix at every step. Danieli
et al. keep its diagonal alone (section 3): then a channel needs nothing from the others, a walk is
one pass over memory, and the steps can be solved for all at once by Newton's method.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from recsys.errors import InputError, nearest
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
from recsys.kernels.rnn_scan.cells import GRU, LSTM, Cell
from recsys.kernels.rnn_scan.operator import obstacles, scan
from recsys.kernels.rnn_scan.reference import rnn_scan_reference

__all__ = [
    "GRU",
    "LSTM",
    "Cell",
    "dtype_obstacles",
    "obstacles",
    "rnn_scan",
    "rnn_scan_reference",
    "rnn_scan_step",
]

Method = Literal["walk", "newton"]
OnFail = Literal["walk", "raise"]


def rnn_scan(
    cell: Cell,
    u: Tensor,
    params: Tensor,
    *,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    reset: Tensor | None = None,
    method: Method = "walk",
    max_iter: int = 8,
    tol: float = 1e-5,
    on_fail: OnFail = "walk",
    return_final_state: bool = False,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """[B, L, D] the h of each step in the dtype of u, and with it the last state on request.

    cell: `GRU`, `LSTM`, or a `Cell` of your own, which runs in plain torch and breaks the graph of
    torch.compile. u [B, L, G, D] holds the G pre-activations of each channel (input projections and
    biases), or [T, G, D] packed, with `cu_seqlens` [N + 1] int; params [G, D] the diagonal
    recurrent weights, gates in the order of the cell. initial_state [B or N, S, D], zeros by
    default. `reset` [B, L] or [T] bool forgets what came before a step. `reverse` walks from the
    end, with the state of the end. States and sums are float32 for low-precision inputs; gradients
    are exact, with either method.
    method="newton" solves for all steps at once by at most `max_iter` linear scans: meant for few
    long sequences on a GPU, since on a CPU the walk is many times faster. A solution counts only if
    its last step (in proportion to the largest state) and its residual are within `tol`; otherwise
    the walk runs (`newton.solve` tells which), or with on_fail="raise" WorkError is raised.
    backend="reference" always walks.
    InputError for shapes that do not fit.
    """
    _check_options(method, max_iter, tol, on_fail)
    check_floating(u=u, params=params, initial_state=initial_state)
    check_device(u, params, initial_state, cu_seqlens, reset)
    times = times_of(u, cu_seqlens)
    _check_sizes(cell, u, params, times.shape)
    u_TGD, state = times.flat(u, "u"), state_dtype(u, params)
    shape = (times.num_sequences, cell.num_states, u.shape[-1])
    if initial_state is None:
        h_NSD = u.new_zeros(shape, dtype=state)
    else:
        check_shape(initial_state, shape, "initial_state")
        h_NSD = initial_state.to(state)
    reset_T = times.flat_mask(reset, "reset")
    asked = asked_backend(backend)
    if asked == "reference":
        y_TD, final_NSD = _by_definition(cell, u_TGD, params, h_NSD, reset_T, times, reverse)
    else:
        y_TD, final_NSD = scan(
            *(cell, u_TGD, params, h_NSD, times.cu_seqlens, reset_T, reverse),
            *(method, max_iter, tol, on_fail, asked),
        )
    y = times.unflat(y_TD).to(u.dtype)
    return (y, final_NSD) if return_final_state else y


def rnn_scan_step(
    cell: Cell, u_t: Tensor, params: Tensor, state: Tensor, *, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(y_t [B, D] in the dtype of u_t, new state) for one event, u_t [B, G, D].

    The state is what `rnn_scan` returns and takes: float32 [B, S, D]. `reset` [B] bool forgets it
    first.
    """
    if reset is not None:
        state = state.masked_fill(reset[:, None, None], 0)
    u, weights = u_t.to(state.dtype), params.to(state.dtype)
    parts = cell.step(state.unbind(1), u.unbind(1), weights.unbind(0))
    return parts[0].to(u_t.dtype), torch.stack(parts, dim=1)


def _check_options(method: str, max_iter: int, tol: float, on_fail: str) -> None:
    choices = (("method", method, get_args(Method)), ("on_fail", on_fail, get_args(OnFail)))
    for name, given, known in choices:
        if given not in known:
            raise InputError(
                f"unknown {name} {given!r}{nearest(given, known)} (known: {', '.join(known)})"
            )
    if max_iter < 1:
        raise InputError(f"max_iter must be at least 1, got {max_iter}")
    if not tol > 0:
        raise InputError(f"tol must be above 0, got {tol}")


def _check_sizes(cell: Cell, u: Tensor, params: Tensor, steps: torch.Size) -> None:
    if u.dim() != len(steps) + 2 or u.shape[-2] != cell.num_gates:
        wanted = (*steps, cell.num_gates, "channels")
        raise InputError(f"u must have shape {wanted}, got {tuple(u.shape)}")
    check_shape(params, u.shape[-2:], "params")


def _by_definition(
    cell: Cell,
    u_TGD: Tensor,
    params_GD: Tensor,
    h_NSD: Tensor,
    reset_T: Tensor | None,
    times: Times,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    params = params_GD.to(h_NSD.dtype)

    def definition(u: Tensor, *rest: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        *reset, state = rest
        return rnn_scan_reference(cell, u, params, state, *reset)

    resets = [] if reset_T is None else [reset_T]
    y_TD, (final_NSD,) = run_definition(
        definition, [u_TGD.to(h_NSD.dtype), *resets], (h_NSD,), times, reverse
    )
    return y_TD, final_NSD
