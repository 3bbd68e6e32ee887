"""linear_cross_entropy as two torch operators: losses of rows, and their sum with its gradients.

The sum knows each row's weight in advance, so that gradients are taken in the forward pass while
the logits are at hand; losses of rows compute the logits again in the backward pass.
"""

from typing import Any

import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.kernels import operators
from recsys.kernels.backends import Obstacles, choose, dtype_obstacles
from recsys.kernels.linear_cross_entropy import chunked
from recsys.kernels.linear_cross_entropy.chunked import Problem

Gradients = tuple[Tensor, Tensor, Tensor]
MAX_FUSED_BYTES = 512
"""Widest vectors that the Triton kernels take: 128 float32 numbers, 256 of two bytes."""


def obstacles(x: Tensor, weight: Tensor, *rest: Any) -> Obstacles:
    """Backends that cannot run on these tensors, with the reason."""
    found = dict(dtype_obstacles(x.dtype))
    widest = MAX_FUSED_BYTES // x.element_size()
    if x.shape[-1] > widest:
        found.setdefault(
            "triton", f"the Triton kernels take up to {widest} dimensions of {x.dtype}"
        )
    return found


def _implementation(problem: Problem, asked: str) -> Any:
    x_ND = problem.x_ND
    found = obstacles(x_ND, problem.weight_VD)
    backend = choose("linear_cross_entropy", x_ND.device, asked, found).backend
    if backend == "triton":
        from recsys.kernels.linear_cross_entropy import fused

        return fused
    return chunked  # matrix products are torch's on the CPU, too


def _problem(
    x_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    label_smoothing: float,
    softcap: float,
    memory_budget: int,
    dtype: torch.dtype,
) -> Problem:
    if target_N.device.type == "cpu":  # elsewhere the look would make the device wait
        _check_targets(target_N, len(weight_VD))
    bias = None if bias_V is None else bias_V.to(dtype)
    x, weight = x_ND.to(dtype), weight_VD.to(dtype)
    return Problem(x, weight, bias, target_N, label_smoothing, softcap, memory_budget)


def _check_targets(target_N: Tensor, num_items: int) -> None:
    outside = target_N[(target_N < 0) | (target_N >= num_items)]
    if len(outside):
        raise InputError(
            f"target {int(outside[0])} is outside the {num_items} rows of weight and is not "
            "ignore_index"
        )


def _rows(
    x_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    label_smoothing: float,
    softcap: float,
    memory_budget: int,
    dtype: torch.dtype,
    asked: str,
) -> tuple[Tensor, Tensor]:
    problem = _problem(
        x_ND, weight_VD, bias_V, target_N, label_smoothing, softcap, memory_budget, dtype
    )
    loss_N, lse_N = _implementation(problem, asked).forward(problem)
    return loss_N, lse_N


def _rows_shapes(x_ND: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    sums = torch.promote_types(x_ND.dtype, torch.float32)
    return x_ND.new_empty(len(x_ND), dtype=sums), x_ND.new_empty(len(x_ND), dtype=sums)


def _rows_backward(
    dloss_N: Tensor,
    dlse_N: Tensor,
    lse_N: Tensor,
    x_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    label_smoothing: float,
    softcap: float,
    memory_budget: int,
    dtype: torch.dtype,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = _problem(
        x_ND, weight_VD, bias_V, target_N, label_smoothing, softcap, memory_budget, dtype
    )
    gradients = _implementation(problem, asked).backward(problem, dloss_N, dlse_N, lse_N)
    return _like(gradients, x_ND, weight_VD, bias_V)


def _rows_backward_shapes(
    dloss_N: Tensor,
    dlse_N: Tensor,
    lse_N: Tensor,
    x_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    *rest: Any,
) -> Gradients:
    return _gradient_shapes(x_ND, weight_VD, bias_V)


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_ND, weight_VD, bias_V, target_N, *ctx.settings = inputs
    ctx.save_for_backward(output[1], x_ND, weight_VD, bias_V, target_N)


def _rows_gradients(ctx: Any, dloss_N: Tensor, dlse_N: Tensor) -> tuple[Any, ...]:
    dx, dW, dbias = rows_backward(dloss_N, dlse_N, *ctx.saved_tensors, *ctx.settings)
    bias_V = ctx.saved_tensors[3]
    return dx, dW, None if bias_V is None else dbias, *[None] * 6


def _sum(
    x_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    row_weight_N: Tensor,
    label_smoothing: float,
    softcap: float,
    memory_budget: int,
    dtype: torch.dtype,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = _problem(
        x_ND, weight_VD, bias_V, target_N, label_smoothing, softcap, memory_budget, dtype
    )
    loss, *gradients = _implementation(problem, asked).weighted(problem, row_weight_N)
    return loss, *_like(gradients, x_ND, weight_VD, bias_V)


def _sum_shapes(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sums = torch.promote_types(x_ND.dtype, torch.float32)
    return x_ND.new_empty((), dtype=sums), *_gradient_shapes(x_ND, weight_VD, bias_V)


def _sum_backward(
    grad_loss: Tensor, dx_ND: Tensor, dW_VD: Tensor, dbias_V: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return dx_ND * grad_loss, dW_VD * grad_loss, dbias_V * grad_loss


def _sum_backward_shapes(
    grad_loss: Tensor, dx_ND: Tensor, dW_VD: Tensor, dbias_V: Tensor
) -> Gradients:
    return torch.empty_like(dx_ND), torch.empty_like(dW_VD), torch.empty_like(dbias_V)


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.has_bias = inputs[2] is not None
    ctx.save_for_backward(*output[1:])


def _sum_gradients(ctx: Any, grad_loss: Tensor, *unused: Any) -> tuple[Any, ...]:
    dx, dW, dbias = sum_backward(grad_loss, *ctx.saved_tensors)
    return dx, dW, dbias if ctx.has_bias else None, *[None] * 7


def _like(gradients: Any, x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Gradients:
    """Gradients in the dtypes of what they belong to; an empty one where there is no bias."""
    dx, dW, dbias = gradients
    dbias = x_ND.new_empty(0) if bias_V is None else dbias.to(bias_V.dtype)
    return dx.to(x_ND.dtype), dW.to(weight_VD.dtype), dbias


def _gradient_shapes(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Gradients:
    dbias = x_ND.new_empty(0) if bias_V is None else torch.empty_like(bias_V)
    return torch.empty_like(x_ND), torch.empty_like(weight_VD), dbias


rows = operators.define("linear_cross_entropy_rows", _rows, _rows_shapes)
rows_backward = operators.define(
    "linear_cross_entropy_rows_backward", _rows_backward, _rows_backward_shapes
)
operators.differentiate("linear_cross_entropy_rows", _save_rows, _rows_gradients)
weighted_sum = operators.define("linear_cross_entropy_sum", _sum, _sum_shapes)
sum_backward = operators.define(
    "linear_cross_entropy_sum_backward", _sum_backward, _sum_backward_shapes
)
operators.differentiate("linear_cross_entropy_sum", _save_sum, _sum_gradients)
