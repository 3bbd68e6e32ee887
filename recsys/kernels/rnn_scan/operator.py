"""rnn_scan on flat sequences as a torch operator: the backend's choice, shapes and gradients.

An operator's arguments are tensors, numbers and texts. So the cells that have kernels go by their
name; any other cell is a Python object and goes through an autograd function around the same code.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys.errors import WorkError
from recsys.kernels import operators
from recsys.kernels.backends import Obstacles, dtype_obstacles
from recsys.kernels.rnn_scan import newton
from recsys.kernels.rnn_scan.cells import COMPILED, Cell, compiled_name


def obstacles(cell: Cell, u: Tensor, params: Tensor) -> Obstacles:
    """Backends that cannot run on these tensors, with the reason."""
    found = dtype_obstacles(torch.promote_types(u.dtype, params.dtype))
    if compiled_name(cell) is None:
        missing = f"no compiled kernel for this cell ({type(cell).__name__})"
        found |= {"cpu": missing, "triton": missing}
    return found


def scan(
    cell: Cell,
    u_TGD: Tensor,
    params_GD: Tensor,
    h_NSD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
    method: str,
    max_iter: int,
    tol: float,
    on_fail: str,
    asked: str,
) -> tuple[Tensor, Tensor]:
    """(h [T, D], final [N, S, D]) in the dtype of the initial state, with gradients."""
    name = compiled_name(cell)
    tensors = (u_TGD, params_GD, h_NSD, cu_seqlens, reset_T)
    options = (reverse, method, max_iter, tol, on_fail, asked)
    if name is None:
        y_TD, _, final_NSD = _OwnCell.apply(cell, *tensors, *options)
    else:
        y_TD, _, final_NSD = _scan(name, *tensors, *options)
    return y_TD, final_NSD


def _run(
    cell: Cell,
    u_TGD: Tensor,
    params_GD: Tensor,
    h_NSD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
    method: str,
    max_iter: int,
    tol: float,
    on_fail: str,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = _implementation(cell, u_TGD, params_GD, h_NSD, asked)
    inputs = (cell, u_TGD, params_GD, h_NSD, cu_seqlens, reset_T, reverse)
    if method == "newton":
        solution = newton.solve(*inputs, max_iter, tol, asked)
        if solution.iterations is not None:
            return _parts(solution.states_TSD, h_NSD, cu_seqlens, reverse)
        if on_fail == "raise":
            raise WorkError(
                f"Newton's method did not converge within {max_iter} iterations: residual "
                f"{solution.residual:.3g}, asked for {tol:.3g}; on_fail='walk' walks instead"
            )
    y_TD, rest_TRD, final_NSD = backend.forward(*inputs)
    return y_TD, rest_TRD, final_NSD


def _pull(
    cell: Cell,
    dy_TD: Tensor,
    dfinal_NSD: Tensor,
    u_TGD: Tensor,
    params_GD: Tensor,
    h_NSD: Tensor,
    *rest: Any,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = _implementation(cell, u_TGD, params_GD, h_NSD, asked)
    du_TGD, dparams_GD, dh_NSD = backend.backward(
        cell, dy_TD, dfinal_NSD, u_TGD, params_GD, h_NSD, *rest
    )
    return du_TGD.to(u_TGD.dtype), dparams_GD.to(params_GD.dtype), dh_NSD


def _implementation(cell: Cell, u_TGD: Tensor, params_GD: Tensor, h_NSD: Tensor, asked: str) -> Any:
    found = dict(obstacles(cell, u_TGD, params_GD)) | dtype_obstacles(h_NSD.dtype)
    return operators.implementation("rnn_scan", u_TGD.device, asked, found)


def _parts(
    states_TSD: Tensor, h_NSD: Tensor, cu_seqlens: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(h, the rest, final) of all states: what a walk returns."""
    final_NSD = h_NSD.clone()
    some_N = cu_seqlens.diff() > 0
    last_N = cu_seqlens[:-1] if reverse else cu_seqlens[1:] - 1
    final_NSD[some_N] = states_TSD[last_N[some_N]]
    return states_TSD[:, 0].clone(), states_TSD[:, 1:].clone(), final_NSD


def _forward(
    cell: str,
    u_TGD: Tensor,
    params_GD: Tensor,
    h_NSD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
    method: str,
    max_iter: int,
    tol: float,
    on_fail: str,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (u_TGD, params_GD, h_NSD, cu_seqlens, reset_T)
    return _run(COMPILED[cell], *tensors, reverse, method, max_iter, tol, on_fail, asked)


def _backward(
    cell: str,
    dy_TD: Tensor,
    dfinal_NSD: Tensor,
    u_TGD: Tensor,
    params_GD: Tensor,
    h_NSD: Tensor,
    y_TD: Tensor,
    rest_TRD: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    reverse: bool,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor]:
    saved = (u_TGD, params_GD, h_NSD, y_TD, rest_TRD, cu_seqlens, reset_T)
    return _pull(COMPILED[cell], dy_TD, dfinal_NSD, *saved, reverse, asked=asked)


def _forward_shapes(
    cell: str, u_TGD: Tensor, params_GD: Tensor, h_NSD: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    total, (_, states, dim) = u_TGD.shape[0], h_NSD.shape
    rest_TRD = h_NSD.new_empty((total, states - 1, dim))
    return h_NSD.new_empty((total, dim)), rest_TRD, h_NSD.new_empty(h_NSD.shape)


def _backward_shapes(
    cell: str,
    dy_TD: Tensor,
    dfinal_NSD: Tensor,
    u_TGD: Tensor,
    params_GD: Tensor,
    h_NSD: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    du_TGD, dparams_GD, dh_NSD = (x.new_empty(x.shape) for x in (u_TGD, params_GD, h_NSD))
    return du_TGD, dparams_GD, dh_NSD


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.cell, u_TGD, params_GD, h_NSD, cu_seqlens, reset_T, ctx.reverse, *_, ctx.asked = inputs
    y_TD, rest_TRD, _ = output
    ctx.save_for_backward(u_TGD, params_GD, h_NSD, y_TD, rest_TRD, cu_seqlens, reset_T)
    ctx.mark_non_differentiable(rest_TRD)


def _gradients(ctx: Any, dy_TD: Tensor, _: Tensor, dfinal_NSD: Tensor) -> tuple[Any, ...]:
    gradients = (dy_TD.contiguous(), dfinal_NSD.contiguous())
    pulled = _scan_backward(ctx.cell, *gradients, *ctx.saved_tensors, ctx.reverse, ctx.asked)
    return None, *pulled, *[None] * 8


_scan = operators.define("rnn_scan", _forward, _forward_shapes)
_scan_backward = operators.define("rnn_scan_backward", _backward, _backward_shapes)
operators.differentiate("rnn_scan", _save, _gradients)


class _OwnCell(torch.autograd.Function):
    """The same for a cell without kernels."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = _run(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TD: Tensor, _: Tensor, dfinal_NSD: Tensor) -> tuple[Any, ...]:
        gradients = (dy_TD.contiguous(), dfinal_NSD.contiguous())
        pulled = _pull(ctx.cell, *gradients, *ctx.saved_tensors, ctx.reverse, asked=ctx.asked)
        return None, *pulled, *[None] * 8
