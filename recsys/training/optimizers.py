"""The optimizer, its parameter groups and the learning rate over time."""

import math
from typing import Literal

import torch
from torch import nn

Schedule = Literal["constant", "linear", "cosine"]


def adamw(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019). Biases and norms (parameters of one axis) do not decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def learning_rate_factor(
    step: int, total_steps: int, warmup_steps: int, schedule: Schedule
) -> float:
    """What the learning rate is multiplied by at optimizer step `step`, counted from 0."""
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    done = min(1.0, step / max(1, total_steps))
    if schedule == "linear":
        return warmup * (1.0 - done)
    if schedule == "cosine":
        return warmup * 0.5 * (1.0 + math.cos(math.pi * done))
    return warmup
