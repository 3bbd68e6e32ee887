"""AdamW by hand, what decays, and the learning rate over time."""

import math

import pytest
import torch
from torch import nn

from recsys.training.optimizers import adamw, learning_rate_factor


def layer() -> nn.Module:
    """A matrix and a vector of ones."""
    module = nn.Linear(2, 3)
    for parameter in module.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    return module


def test_matrices_decay_and_vectors_do_not():
    module = layer()
    adamw(module, lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(module.weight.data, torch.full((3, 2), 1 - 0.1 * 0.5))
    assert torch.equal(module.bias.data, torch.ones(3))


def test_two_steps_are_those_of_the_paper():
    module = layer()
    optimizer = adamw(module, lr=0.1, weight_decay=0.5)
    value = first = second = 0.0
    value = 1.0
    for step, gradient in enumerate([2.0, -6.0], start=1):
        module.weight.grad.fill_(gradient)
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        change = first / (1 - 0.9**step) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
        value = value * (1 - 0.1 * 0.5) - 0.1 * change
        torch.testing.assert_close(module.weight.data, torch.full((3, 2), value))


def test_frozen_parameters_are_left_out():
    module = layer()
    module.weight.requires_grad_(False)
    optimizer = adamw(module, lr=0.1, weight_decay=0.5)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert trained == [module.bias]
    optimizer.step()
    assert torch.equal(module.weight, torch.ones(3, 2))


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 4, [0.25, 0.5, 0.75, 1, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25, 0, 0]),
        ("linear", 2, [0.5, 0.75, 0.5, 0.25, 0, 0]),
        ("cosine", 0, [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0, 0]),
        ("cosine", 4, [0.25, (2 + math.sqrt(2)) / 8, 0.375, (2 - math.sqrt(2)) / 4, 0, 0]),
    ],
)
def test_the_factor_of_each_step_of_four_and_of_those_behind(schedule, warmup, expected):
    found = [learning_rate_factor(step, 4, warmup, schedule) for step in range(6)]
    assert found == pytest.approx(expected)
