"""selective_scan on flat sequences as a torch operator: the backend's choice, shapes and gradients.

Inside, A is [S, D] and a state [S, D]: channels stand last, as in u, so that a loop over them is
one over neighbours in memory.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from recsys.kernels import operators
from recsys.kernels.backends import Obstacles, dtype_obstacles
from recsys.kernels.selective_scan.checkpoints import num_checkpoints

MAX_TRITON_STATES = 64


def obstacles(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Obstacles:
    """Backends that cannot run on these tensors, with the reason."""
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in (u, dt, A, B, C)))
    return _obstacles(dtype, B.shape[-1])


def _obstacles(dtype: torch.dtype, states: int) -> dict[str, str]:
    found = dtype_obstacles(dtype)
    if states > MAX_TRITON_STATES:
        found.setdefault(
            "triton",
            f"the Triton kernels hold at most {MAX_TRITON_STATES} states a channel, got {states}",
        )
    return found


def _implementation(h_NSD: Tensor, asked: str) -> Any:
    found = _obstacles(h_NSD.dtype, h_NSD.shape[1])
    return operators.implementation("selective_scan", h_NSD.device, asked, found)


def _forward(
    u_TD: Tensor,
    dt_TD: Tensor,
    A_SD: Tensor,
    B_TS: Tensor,
    C_TS: Tensor,
    h_NSD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor]:
    y_TD, final_NSD, checkpoints_CSD = _implementation(h_NSD, asked).forward(
        u_TD, dt_TD, A_SD, B_TS, C_TS, h_NSD, cu_seqlens, reset_T, reverse
    )
    return y_TD, final_NSD, checkpoints_CSD


def _backward(
    dy_TD: Tensor,
    dfinal_NSD: Tensor,
    u_TD: Tensor,
    dt_TD: Tensor,
    A_SD: Tensor,
    B_TS: Tensor,
    C_TS: Tensor,
    h_NSD: Tensor,
    checkpoints_CSD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (u_TD, dt_TD, A_SD, B_TS, C_TS, h_NSD)
    gradients = _implementation(h_NSD, asked).backward(
        dy_TD, dfinal_NSD, *inputs, checkpoints_CSD, cu_seqlens, reset_T, reverse
    )
    du_TD, ddt_TD, dA_SD, dB_TS, dC_TS, dh_NSD = (
        gradient.to(x.dtype) for gradient, x in zip(gradients, inputs, strict=True)
    )
    return du_TD, ddt_TD, dA_SD, dB_TS, dC_TS, dh_NSD


def _forward_shapes(
    u_TD: Tensor,
    dt_TD: Tensor,
    A_SD: Tensor,
    B_TS: Tensor,
    C_TS: Tensor,
    h_NSD: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    checkpoints_CSD = h_NSD.new_empty((num_checkpoints(u_TD.shape[0]), *h_NSD.shape[1:]))
    return _contiguous(u_TD), _contiguous(h_NSD), checkpoints_CSD


def _backward_shapes(
    dy_TD: Tensor,
    dfinal_NSD: Tensor,
    u_TD: Tensor,
    dt_TD: Tensor,
    A_SD: Tensor,
    B_TS: Tensor,
    C_TS: Tensor,
    h_NSD: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        _contiguous(u_TD),
        _contiguous(dt_TD),
        _contiguous(A_SD),
        _contiguous(B_TS),
        _contiguous(C_TS),
        _contiguous(h_NSD),
    )


def _contiguous(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, cu_seqlens, reset_T, ctx.reverse, ctx.asked = inputs
    ctx.save_for_backward(*tensors, output[2], cu_seqlens, reset_T)
    ctx.mark_non_differentiable(output[2])


def _gradients(ctx: Any, dy_TD: Tensor, dfinal_NSD: Tensor, _: Tensor) -> tuple[Any, ...]:
    gradients = scan_backward(
        dy_TD.contiguous(), dfinal_NSD.contiguous(), *ctx.saved_tensors, ctx.reverse, ctx.asked
    )
    return *gradients, None, None, None, None


scan = operators.define("selective_scan", _forward, _forward_shapes)
scan_backward = operators.define("selective_scan_backward", _backward, _backward_shapes)
operators.differentiate("selective_scan", _save, _gradients)
