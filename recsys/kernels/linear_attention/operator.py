"""linear_attention on flat sequences as a torch operator: backend, shapes and gradients."""

from typing import Any

import torch
from torch import Tensor

from recsys.kernels import operators
from recsys.kernels.backends import Obstacles, choose, dtype_obstacles

WIDEST_KEY = {True: 128, False: 64}
"""Key size up to which the Triton kernels fit into registers: in bfloat16, and in other dtypes."""


def obstacles(q: Tensor, k: Tensor, v: Tensor, *, beta: Tensor | None = None) -> Obstacles:
    """Backends that cannot run on these tensors, with the reason."""
    if beta is not None:
        return {"triton": "the delta rule (beta) has no Triton kernel"}
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    widest = WIDEST_KEY[dtype == torch.bfloat16]
    if q.shape[-1] > widest:
        reason = f"the Triton kernels take keys of up to {widest} numbers in {dtype}"
        return {"triton": f"{reason}, not {q.shape[-1]}"}
    return dtype_obstacles(dtype)


def _backend(
    q_THK: Tensor, k_THK: Tensor, v_THP: Tensor, beta_TH: Tensor | None, asked: str
) -> Any:
    missing = obstacles(q_THK, k_THK, v_THP, beta=beta_TH)
    return operators.implementation("linear_attention", q_THK.device, asked, missing)


def _forward(
    q_THK: Tensor,
    k_THK: Tensor,
    v_THP: Tensor,
    log_decay_TH: Tensor | None,
    beta_TH: Tensor | None,
    S_NHKP: Tensor,
    cu_seqlens: Tensor,
    reverse: bool,
    chunk_size: int,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor]:
    o_THP, final_NHKP, states = _backend(q_THK, k_THK, v_THP, beta_TH, asked).forward(
        *(q_THK, k_THK, v_THP, log_decay_TH, beta_TH, S_NHKP, cu_seqlens),
        *(reverse, chunk_size),
    )
    return o_THP, final_NHKP, states


def _backward(
    do_THP: Tensor,
    dfinal_NHKP: Tensor,
    q_THK: Tensor,
    k_THK: Tensor,
    v_THP: Tensor,
    log_decay_TH: Tensor | None,
    beta_TH: Tensor | None,
    states: Tensor,
    cu_seqlens: Tensor,
    reverse: bool,
    chunk_size: int,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradient of a log_decay or beta that is not there is an empty tensor."""
    gradients = _backend(q_THK, k_THK, v_THP, beta_TH, asked).backward(
        *(do_THP, dfinal_NHKP, q_THK, k_THK, v_THP, log_decay_TH, beta_TH, states, cu_seqlens),
        *(reverse, chunk_size),
    )
    dq, dk, dv, dlog_decay, dbeta, dS = (q_THK.new_empty(0) if g is None else g for g in gradients)
    return dq, dk, dv, dlog_decay, dbeta, dS


def _forward_shapes(
    q_THK: Tensor,
    k_THK: Tensor,
    v_THP: Tensor,
    log_decay_TH: Tensor | None,
    beta_TH: Tensor | None,
    S_NHKP: Tensor,
    cu_seqlens: Tensor,
    reverse: bool,
    chunk_size: int,
    asked: str,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = _backend(q_THK, k_THK, v_THP, beta_TH, asked)
    kept = backend.states_shape(q_THK, k_THK, v_THP, S_NHKP.shape[0], chunk_size)
    return (
        torch.empty_like(v_THP, memory_format=torch.contiguous_format),
        S_NHKP.new_empty(S_NHKP.shape),
        S_NHKP.new_empty(kept),
    )


def _backward_shapes(
    do_THP: Tensor,
    dfinal_NHKP: Tensor,
    q_THK: Tensor,
    k_THK: Tensor,
    v_THP: Tensor,
    log_decay_TH: Tensor | None,
    beta_TH: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (x.new_empty(x.shape) for x in (q_THK, k_THK, v_THP))
    dlog_decay, dbeta = (
        q_THK.new_empty(0) if x is None else x.new_empty(x.shape) for x in (log_decay_TH, beta_TH)
    )
    return dq, dk, dv, dlog_decay, dbeta, dfinal_NHKP.new_empty(dfinal_NHKP.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q_THK, k_THK, v_THP, log_decay_TH, beta_TH, _, cu_seqlens = inputs[:7]
    ctx.reverse, ctx.chunk_size, ctx.asked = inputs[7:]
    if not ctx.asked and not torch.compiler.is_compiling():
        # Each backend keeps the states of its own steps: what ran forward runs backward too. What
        # is compiled now may run under another one later.
        found = obstacles(q_THK, k_THK, v_THP, beta=beta_TH)
        ctx.asked = choose("linear_attention", q_THK.device, "", found).backend
    ctx.save_for_backward(q_THK, k_THK, v_THP, log_decay_TH, beta_TH, output[2], cu_seqlens)


def _gradients(ctx: Any, do_THP: Tensor, dfinal_NHKP: Tensor, _: Tensor) -> tuple[Any, ...]:
    _, _, _, log_decay_TH, beta_TH, _, _ = ctx.saved_tensors
    dq, dk, dv, dlog_decay, dbeta, dS = attend_backward(
        *(do_THP.contiguous(), dfinal_NHKP.contiguous(), *ctx.saved_tensors),
        *(ctx.reverse, ctx.chunk_size, ctx.asked),
    )
    return (
        *(dq, dk, dv),
        None if log_decay_TH is None else dlog_decay,
        None if beta_TH is None else dbeta,
        *(dS, None, None, None, None),
    )


attend = operators.define("linear_attention", _forward, _forward_shapes)
attend_backward = operators.define("linear_attention_backward", _backward, _backward_shapes)
operators.differentiate("linear_attention", _save, _gradients)
