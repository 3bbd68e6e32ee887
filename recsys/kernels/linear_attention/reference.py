"""The definitions of linear_attention, in any floating dtype."""

import torch
from torch import Tensor


def linear_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, S: Tensor
) -> tuple[Tensor, tuple[Tensor]]:
    """S_t = d_t S_{t-1} + k_t v_t', o_t = S_t' q_t, d_t = exp(log_decay_t).

    q, k [N, L, H, K], v [N, L, H, P], log_decay [N, L, H]; S [N, H, K, P] is that before t = 0.
    """
    steps = []
    for q_t, k_t, v_t, d_t in zip(*(x.unbind(1) for x in (q, k, v, log_decay.exp())), strict=True):
        S = d_t[..., None, None] * S + k_t[..., None] * v_t[..., None, :]
        steps.append(_read(S, q_t))
    return torch.stack(steps, dim=1) if steps else v, (S,)


def delta_rule_reference(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, S: Tensor
) -> tuple[Tensor, tuple[Tensor]]:
    """R = d_t S_{t-1}, S_t = R + beta_t k_t (v_t - R' k_t)', o_t = S_t' q_t; beta [N, L, H]."""
    steps = []
    inputs = (q, k, v, log_decay.exp(), beta)
    for q_t, k_t, v_t, d_t, beta_t in zip(*(x.unbind(1) for x in inputs), strict=True):
        S = d_t[..., None, None] * S
        u_t = beta_t[..., None] * (v_t - _read(S, k_t))
        S = S + k_t[..., None] * u_t[..., None, :]
        steps.append(_read(S, q_t))
    return torch.stack(steps, dim=1) if steps else v, (S,)


def _read(S: Tensor, x: Tensor) -> Tensor:
    """S' x: [N, H, P] of S [N, H, K, P] and x [N, H, K]."""
    return (x[..., None, :] @ S)[..., 0, :]
