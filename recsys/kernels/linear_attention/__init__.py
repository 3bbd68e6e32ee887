"""linear_attention: a matrix of keys and values as the state, S_t = d_t S_{t-1} + k_t v_t'.

With no decay linear attention (Katharopoulos et al., 2020), with a constant one retention (Sun et
al., 2023), with one from the input Mamba-2's SSD (Dao & Gu, 2024); with `beta` the delta rule of
fast weights (Schlag et al., 2021) and of (gated) DeltaNet (Yang et al., 2024 and 2025); with
`prefix` the encoder part of prefix linear attention (Arora et al., 2024, "Just read twice").
"""

from typing import NamedTuple

import torch
from torch import Tensor

from recsys.errors import InputError
from recsys.kernels.backends import Backend, asked_backend, dtype_obstacles
from recsys.kernels.linear_attention.operator import attend, obstacles
from recsys.kernels.linear_attention.reference import (
    delta_rule_reference,
    linear_attention_reference,
)
from recsys.kernels.operators import in_own_precision
from recsys.kernels.packing import (
    Definition,
    Times,
    check_device,
    check_floating,
    check_shape,
    run_definition,
    state_dtype,
    times_of,
)

__all__ = [
    "AttentionState",
    "delta_rule_reference",
    "dtype_obstacles",
    "linear_attention",
    "linear_attention_reference",
    "linear_attention_step",
    "obstacles",
]

DELTA_CHUNK = 16
"""Largest chunk with `beta`: what many keys that overlap take from each other costs precision."""


class AttentionState(NamedTuple):
    """What is kept of the past, in float32."""

    S: Tensor
    """[B or N, H, K, P]: sums of k v'."""
    z: Tensor | None = None
    """[B or N, H, K]: sums of k, with `normalize`; None without."""


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    log_decay: Tensor | None = None,
    beta: Tensor | None = None,
    normalize: bool = False,
    prefix: tuple[Tensor, Tensor] | None = None,
    initial_state: AttentionState | None = None,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int = 64,
    return_final_state: bool = False,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, AttentionState]:
    """[B, L, H, P] o_t = S_t' q_t in the dtype of v, and with it the last state on request.

    q, k [B, L, H, K], v [B, L, H, P], or [T, H, …] packed, with `cu_seqlens` [N + 1] int; nothing
    is scaled by 1 / sqrt(K). log_decay [B, L, H] <= 0, -inf to forget all: S_t = d_t S_{t-1} + k_t
    v_t' with d_t = exp(log_decay_t), or 1 without. beta [B, L, H] in 0 … 2: the delta rule S_t = R
    + beta_t k_t (v_t - R' k_t)' with R = d_t S_{t-1} (keys of norm 1 keep it stable).

    `normalize` divides o_t by q_t z_t, with z_t = d_t z_{t-1} + k_t, which needs positive q and k
    (after exp, elu + 1 …) and no beta. `prefix` (k [B or N, M, H, K], v [B or N, M, H, P]) adds its
    sums of k v' and k to the state before the first step; rows of zeros fill up a shorter prefix.
    initial_state is zeros by default. `reset` [B, L] or [T] bool forgets what came before a step.
    `reverse` walks from the end, with the state of the end. chunk_size is how many steps the matrix
    products outside the CPU's kernels take at once, at most; it changes roundings only.

    States and sums are float32 for low-precision inputs and have their gradients too. InputError
    for shapes that do not fit.
    """
    times = times_of(q, cu_seqlens)
    _check(q, k, v, log_decay, beta, times, normalize, chunk_size)
    check_device(q, k, v, log_decay, beta, cu_seqlens, reset, *(prefix or ()))
    state = state_dtype(*(x for x in (q, k, v, log_decay, beta) if x is not None))
    S_NHKP = _start(initial_state, prefix, q, v, times.num_sequences, normalize, state)
    q_THK, k_THK, v_THP = (times.flat(x, "q, k, v") for x in (q, k, v))
    log_decay_TH = _with_resets(log_decay, reset, times, q_THK, state)
    beta_TH = None if beta is None else times.flat(beta, "beta")
    if normalize:
        # The quotient of two sums that were rounded first would lose what float32 holds of them.
        v_THP = _with_ones(v_THP.to(state))
    if beta is not None:
        chunk_size = min(chunk_size, DELTA_CHUNK)
    asked = asked_backend(backend)
    if asked == "reference":
        o_THP, final_NHKP = _by_definition(
            *(q_THK, k_THK, v_THP, log_decay_TH, beta_TH, S_NHKP, times, reverse)
        )
    else:
        o_THP, final_NHKP, _ = attend(
            *(q_THK, k_THK, v_THP, log_decay_TH, beta_TH, S_NHKP, times.cu_seqlens),
            *(reverse, chunk_size, asked),
        )
    o = times.unflat(_normalized(o_THP) if normalize else o_THP).to(v.dtype)
    return (o, _as_state(final_NHKP, normalize)) if return_final_state else o


def linear_attention_step(
    q_t: Tensor,
    k_t: Tensor,
    v_t: Tensor,
    state: AttentionState,
    *,
    log_decay_t: Tensor | None = None,
    beta_t: Tensor | None = None,
    normalize: bool = False,
    reset: Tensor | None = None,
) -> tuple[Tensor, AttentionState]:
    """(o_t [B, H, P] in the dtype of v_t, new state) for one event q_t, k_t [B, H, K], v_t.

    log_decay_t, beta_t [B, H] and the state as in `linear_attention`; `reset` [B] bool forgets it
    first.
    """
    _check_state(state, normalize, beta_t is not None)
    S = state.S if state.z is None else torch.cat([state.S, state.z[..., None]], dim=-1)
    q, k, v = (x.to(S.dtype) for x in (q_t, k_t, v_t))
    v = _with_ones(v) if normalize else v
    if log_decay_t is not None:
        S = S * log_decay_t.to(S.dtype).exp()[..., None, None]
    if reset is not None:
        S = S * ~reset[:, None, None, None]
    with in_own_precision(q.device):
        if beta_t is not None:
            v = beta_t.to(S.dtype)[..., None] * (v - torch.einsum("bhkp,bhk->bhp", S, k))
        S = S + k[..., None] * v[..., None, :]
        o = torch.einsum("bhkp,bhk->bhp", S, q)
    o = _normalized(o) if normalize else o
    return o.to(v_t.dtype), _as_state(S, normalize)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    beta: Tensor | None,
    times: Times,
    normalize: bool,
    chunk_size: int,
) -> None:
    lead = len(times.shape)
    named = {"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": beta}
    check_floating(**named)
    if q.dim() != lead + 2:
        wanted = "[batch, time, heads, keys]" if lead == 2 else "[time, heads, keys]"
        raise InputError(f"q must be {wanted}, got shape {tuple(q.shape)}")
    check_shape(k, q.shape, "k")
    if v.dim() != q.dim() or v.shape[:-1] != q.shape[:-1]:
        raise InputError(
            f"v must have shape {(*q.shape[:-1], 'values')}, got shape {tuple(v.shape)}"
        )
    for name in ("log_decay", "beta"):
        if (x := named[name]) is not None:
            check_shape(x, q.shape[:-1], name)
    if normalize and beta is not None:
        raise InputError("normalize does not go with beta: the delta rule has no sum of keys")
    if chunk_size < 1:
        raise InputError(f"chunk_size must be at least 1, got {chunk_size}")


def _check_state(state: AttentionState, normalize: bool, delta: bool) -> None:
    if normalize and delta:
        raise InputError("normalize does not go with beta: the delta rule has no sum of keys")
    if normalize != (state.z is not None):
        raise InputError("the state must have z with normalize, and only then")


def _start(
    initial_state: AttentionState | None,
    prefix: tuple[Tensor, Tensor] | None,
    q: Tensor,
    v: Tensor,
    num_sequences: int,
    normalize: bool,
    dtype: torch.dtype,
) -> Tensor:
    """[N, H, K, P], P + 1 with `normalize`: the state before the first step."""
    (heads, key_size), value_size = q.shape[-2:], v.shape[-1]
    if initial_state is None:
        S = q.new_zeros((num_sequences, heads, key_size, value_size + normalize), dtype=dtype)
    else:
        _check_state(initial_state, normalize, False)
        check_device(q, *initial_state)
        shape = (num_sequences, heads, key_size, value_size)
        check_shape(initial_state.S, shape, "initial_state.S")
        S = initial_state.S.to(dtype)
        if initial_state.z is not None:
            check_shape(initial_state.z, shape[:3], "initial_state.z")
            S = torch.cat([S, initial_state.z.to(dtype)[..., None]], dim=-1)
    if prefix is None:
        return S
    k_NMHK, v_NMHP = prefix
    events = k_NMHK.shape[1] if k_NMHK.dim() > 1 else 0
    check_shape(k_NMHK, (num_sequences, events, heads, key_size), "prefix keys")
    check_shape(v_NMHP, (num_sequences, events, heads, value_size), "prefix values")
    v_NMHP = _with_ones(v_NMHP) if normalize else v_NMHP
    with in_own_precision(q.device):
        return S + torch.einsum("nmhk,nmhp->nhkp", k_NMHK.to(dtype), v_NMHP.to(dtype))


def _with_resets(
    log_decay: Tensor | None, reset: Tensor | None, times: Times, q_THK: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """[T, H] of log_decay, -inf at a reset."""
    log_decay_TH = None if log_decay is None else times.flat(log_decay, "log_decay")
    reset_T = times.flat_mask(reset, "reset")
    if reset_T is None:
        return log_decay_TH
    if log_decay_TH is None:
        log_decay_TH = q_THK.new_zeros(q_THK.shape[:2], dtype=dtype)
    return log_decay_TH.masked_fill(reset_T[:, None], -torch.inf)


def _with_ones(v: Tensor) -> Tensor:
    """A column more, whose sums over k v' are the sums of k."""
    return torch.cat([v, v.new_ones(()).expand(*v.shape[:-1], 1)], dim=-1)


def _normalized(o: Tensor) -> Tensor:
    return o[..., :-1] / o[..., -1:]


def _as_state(S: Tensor, normalize: bool) -> AttentionState:
    return AttentionState(S[..., :-1], S[..., -1]) if normalize else AttentionState(S)


def _by_definition(
    q_THK: Tensor,
    k_THK: Tensor,
    v_THP: Tensor,
    log_decay_TH: Tensor | None,
    beta_TH: Tensor | None,
    S_NHKP: Tensor,
    times: Times,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    dtype = S_NHKP.dtype
    if log_decay_TH is None:
        log_decay_TH = q_THK.new_zeros(q_THK.shape[:2], dtype=dtype)
    inputs = [x.to(dtype) for x in (q_THK, k_THK, v_THP, log_decay_TH)]
    definition: Definition = linear_attention_reference
    if beta_TH is not None:
        definition = delta_rule_reference
        inputs.append(beta_TH.to(dtype))
    with in_own_precision(q_THK.device):
        o_THP, (final_NHKP,) = run_definition(definition, inputs, (S_NHKP,), times, reverse)
    return o_THP, final_NHKP
