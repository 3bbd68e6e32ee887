"""Launches of rnn_scan at sizes that people train with, to be compiled ahead of time."""

import torch


def rnn_scan() -> None:
    from recsys.kernels.rnn_scan import GRU, LSTM, fused

    cu_seqlens = torch.tensor([0, 50, 200])
    forgets = torch.zeros(200, dtype=torch.bool)
    for cell in (GRU, LSTM):
        params, h = torch.ones(cell.num_gates, 64), torch.ones(2, cell.num_states, 64)
        y, rest = torch.ones(200, 64), torch.ones(200, cell.num_states - 1, 64)
        for dtype, reset, reverse in (
            (torch.float32, None, False),
            (torch.float32, forgets, False),
            (torch.bfloat16, None, True),
        ):
            u = torch.ones(200, cell.num_gates, 64, dtype=dtype)
            options = (cu_seqlens, reset, reverse)
            fused.forward(cell, u, params, h, *options)
            fused.backward(cell, y, h, u, params, h, y, rest, *options)
