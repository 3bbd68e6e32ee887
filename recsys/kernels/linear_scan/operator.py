"""linear_scan on flat sequences as a torch operator: the backend's choice, shapes and gradients."""

from typing import Any

import torch
from torch import Tensor

from recsys.kernels import operators
from recsys.kernels.backends import Obstacles, dtype_obstacles


def obstacles(a: Tensor, b: Tensor) -> Obstacles:
    """Backends that cannot run on these tensors, with the reason."""
    return dtype_obstacles(torch.promote_types(a.dtype, b.dtype))


def _forward(
    a_TG: Tensor,
    b_TD: Tensor,
    h_ND: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
    asked: str,
) -> tuple[Tensor, Tensor]:
    backend = operators.implementation("linear_scan", b_TD.device, asked, obstacles(a_TG, b_TD))
    y_TD, final_ND = backend.forward(a_TG, b_TD, h_ND, cu_seqlens, reset_T, reverse)
    return y_TD, final_ND


def _backward(
    dy_TD: Tensor,
    dfinal_ND: Tensor,
    a_TG: Tensor,
    y_TD: Tensor,
    h_ND: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = operators.implementation("linear_scan", y_TD.device, asked, obstacles(a_TG, y_TD))
    da_TG, db_TD, dh_ND = backend.backward(
        dy_TD, dfinal_ND, a_TG, y_TD, h_ND, cu_seqlens, reset_T, reverse
    )
    return da_TG, db_TD, dh_ND


def _forward_shapes(a_TG: Tensor, b_TD: Tensor, h_ND: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(b_TD), torch.empty_like(h_ND)


def _backward_shapes(
    dy_TD: Tensor, dfinal_ND: Tensor, a_TG: Tensor, y_TD: Tensor, h_ND: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(a_TG), torch.empty_like(y_TD), torch.empty_like(h_ND)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    a_TG, _, h_ND, cu_seqlens, reset_T, ctx.reverse, ctx.asked = inputs
    ctx.save_for_backward(a_TG, output[0], h_ND, cu_seqlens, reset_T)


def _gradients(ctx: Any, dy_TD: Tensor, dfinal_ND: Tensor) -> tuple[Any, ...]:
    da_TG, db_TD, dh_ND = scan_backward(
        dy_TD.contiguous(), dfinal_ND.contiguous(), *ctx.saved_tensors, ctx.reverse, ctx.asked
    )
    return da_TG, db_TD, dh_ND, None, None, None, None


scan = operators.define("linear_scan", _forward, _forward_shapes)
scan_backward = operators.define("linear_scan_backward", _backward, _backward_shapes)
operators.differentiate("linear_scan", _save, _gradients)
