"""Calls of the Triton kernels of linear_attention at sizes that people train with."""

import torch


def linear_attention() -> None:
    from recsys.kernels.linear_attention import fused

    cu_seqlens = torch.tensor([0, 50, 200])
    cases = [
        (64, 32, torch.float32, False),
        (64, 32, torch.float32, True),
        (64, 32, torch.bfloat16, False),
        (64, 32, torch.bfloat16, True),
        (64, 65, torch.float32, True),  # with `normalize`
        (128, 128, torch.bfloat16, True),
    ]
    for K, P, dtype, decay in cases:
        q, v = torch.ones(200, 4, K, dtype=dtype), torch.ones(200, 4, P, dtype=dtype)
        S = torch.ones(2, 4, K, P)
        log_decay = torch.zeros(200, 4, dtype=dtype) if decay else None
        given = (q, q, v, log_decay, None)
        _, _, states = fused.forward(*given, S, cu_seqlens, False, 64)
        fused.backward(v, S, *given, states, cu_seqlens, False, 64)
