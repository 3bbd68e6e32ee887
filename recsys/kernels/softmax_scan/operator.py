"""softmax_scan on flat sequences as a torch operator: the backend's choice, shapes and gradients.

Every form computes the weight p_t = e^(s_t - lse_t) of a step and what it keeps of the state,
1 - p_t = e^(lse_{t-1} - lse_t), from the largest score so far and a sum relative to it. Both are
saved rather than lse: at scores of 1e4 a float32 lse is off by 5e-4, and p with it. They also
say all that the backward must know of resets and skipped steps:

    g_{t-1} = do_{t-1} + (1 - p_t) g_t              dv_t = p_t g_t
    m_{t-1} = (1 - p_t) m_t - c_t                   ds_t = p_t m_t + c_t
    c_t = p_t (1 - p_t) g_t . (v_t - o_{t-1})

with g and m the gradients of the state (o, lse). The usual v_t - o_t in place of
(1 - p_t) (v_t - o_{t-1}) cancels where p_t is near 1, and most where o was rounded to bfloat16.
"""

from typing import Any

import torch
from torch import Tensor

from recsys.kernels import operators
from recsys.kernels.backends import Obstacles, dtype_obstacles


def obstacles(s: Tensor, v: Tensor) -> Obstacles:
    """Backends that cannot run on these tensors, with the reason."""
    return dtype_obstacles(torch.promote_types(s.dtype, v.dtype))


def _forward(
    s_TH: Tensor,
    v_THK: Tensor,
    lse_NH: Tensor,
    o_NHK: Tensor,
    cu_seqlens: Tensor,
    reset_T: Tensor | None,
    valid_T: Tensor | None,
    reverse: bool,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    found = obstacles(s_TH, v_THK)
    backend = operators.implementation("softmax_scan", v_THK.device, asked, found)
    y_THK, p_TH, kept_TH, lse_NH, o_NHK = backend.forward(
        s_TH, v_THK, lse_NH, o_NHK, cu_seqlens, reset_T, valid_T, reverse
    )
    return y_THK, p_TH, kept_TH, lse_NH, o_NHK


def _backward(
    dy_THK: Tensor,
    dlse_NH: Tensor,
    do_NHK: Tensor,
    v_THK: Tensor,
    y_THK: Tensor,
    o_NHK: Tensor,
    p_TH: Tensor,
    kept_TH: Tensor,
    cu_seqlens: Tensor,
    reverse: bool,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = obstacles(p_TH, v_THK)
    backend = operators.implementation("softmax_scan", v_THK.device, asked, found)
    ds_TH, dv_THK, dlse_NH, do_NHK = backend.backward(
        dy_THK, dlse_NH, do_NHK, v_THK, y_THK, o_NHK, p_TH, kept_TH, cu_seqlens, reverse
    )
    return ds_TH, dv_THK, dlse_NH, do_NHK


def _forward_shapes(
    s_TH: Tensor, v_THK: Tensor, lse_NH: Tensor, o_NHK: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    p_TH, kept_TH = (lse_NH.new_empty(s_TH.shape) for _ in range(2))
    y_THK, final_NH, final_NHK = (x.new_empty(x.shape) for x in (v_THK, lse_NH, o_NHK))
    return y_THK, p_TH, kept_TH, final_NH, final_NHK


def _backward_shapes(
    dy_THK: Tensor,
    dlse_NH: Tensor,
    do_NHK: Tensor,
    v_THK: Tensor,
    y_THK: Tensor,
    o_NHK: Tensor,
    p_TH: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ds_TH, dv_THK, dlse_NH, do_NHK = (x.new_empty(x.shape) for x in (p_TH, v_THK, dlse_NH, do_NHK))
    return ds_TH, dv_THK, dlse_NH, do_NHK


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    s_TH, v_THK, _, o_NHK, cu_seqlens, _, _, ctx.reverse, ctx.asked = inputs
    ctx.scores = s_TH.dtype
    y_THK, p_TH, kept_TH, _, _ = output
    ctx.mark_non_differentiable(p_TH, kept_TH)
    ctx.save_for_backward(v_THK, y_THK, o_NHK, p_TH, kept_TH, cu_seqlens)


def _gradients(
    ctx: Any, dy_THK: Tensor, dp_TH: Any, dkept_TH: Any, dlse_NH: Tensor, do_NHK: Tensor
) -> tuple[Any, ...]:
    grads = (x.contiguous() for x in (dy_THK, dlse_NH, do_NHK))
    ds_TH, dv_THK, dlse_NH, do_NHK = scan_backward(
        *grads, *ctx.saved_tensors, ctx.reverse, ctx.asked
    )
    return ds_TH.to(ctx.scores), dv_THK, dlse_NH, do_NHK, None, None, None, None, None


scan = operators.define("softmax_scan", _forward, _forward_shapes)
scan_backward = operators.define("softmax_scan_backward", _backward, _backward_shapes)
operators.differentiate("softmax_scan", _save, _gradients)
