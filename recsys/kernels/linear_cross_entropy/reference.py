"""The definition of linear_cross_entropy, in any floating dtype."""

import torch
from torch import Tensor


def linear_cross_entropy_reference(
    x_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    label_smoothing: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """(lse_n - sum_v q_nv logit_nv, lse_n), q = (1 - smoothing) onehot(target) + smoothing / V."""
    logits_NV = x_ND @ weight_VD.T
    if bias_V is not None:
        logits_NV = logits_NV + bias_V
    if softcap:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    lse_N = torch.logsumexp(logits_NV, dim=1)
    target_logit_N = logits_NV.gather(1, target_N[:, None])[:, 0]
    wanted_N = (1 - label_smoothing) * target_logit_N
    if label_smoothing:
        wanted_N = wanted_N + label_smoothing * logits_NV.mean(dim=1)
    return lse_N - wanted_N, lse_N
