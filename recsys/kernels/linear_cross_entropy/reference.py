"""The definition of linear_cross_entropy, in any floating dtype."""

import torch
from torch import Tensor


def linear_cross_entropy_reference(
    x_ND: Tensor, table_VD: Tensor, target_N: Tensor, row_weight_N: Tensor
) -> Tensor:
    """[] sum over rows n of row_weight_n * (logsumexp_v(x_n . w_v) - x_n . w_target_n)."""
    logits_NV = x_ND @ table_VD.T
    lse_N = torch.logsumexp(logits_NV, dim=1)
    target_logit_N = logits_NV.gather(1, target_N[:, None])[:, 0]
    return (row_weight_N * (lse_N - target_logit_N)).sum()
