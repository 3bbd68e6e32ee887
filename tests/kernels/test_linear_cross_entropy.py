"""linear_cross_entropy against its definition in float64."""

import pytest
import torch

from recsys.kernels.linear_cross_entropy import (
    chunked,
    linear_cross_entropy,
    linear_cross_entropy_reference,
)


def problem(rows: int, items: int, dim: int, scale: float = 1.0, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64) * scale
    table = torch.randn(items, dim, generator=generator, dtype=torch.float64)
    target = torch.randint(items, (rows,), generator=generator)
    weight = torch.rand(rows, generator=generator, dtype=torch.float64)
    return x, table, target, weight


def outcome(function, x, table, target, weight, **options):
    x, table = x.clone().requires_grad_(), table.clone().requires_grad_()
    loss = function(x, table, target, weight, **options)
    (loss * 3).backward()
    return loss.detach(), x.grad, table.grad


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


@pytest.mark.parametrize(
    ("rows", "items", "dim"), [(1, 1, 1), (1, 7, 3), (63, 100, 5), (257, 33, 16)]
)
def test_value_and_gradients_equal_the_definition_in_float64(rows, items, dim, monkeypatch):
    monkeypatch.setattr(chunked, "BUFFER_BYTES", 40 * items * 8)
    data = problem(rows, items, dim)
    for got, wanted in zip(
        outcome(linear_cross_entropy, *data),
        outcome(linear_cross_entropy_reference, *data),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_float32_loses_no_more_than_the_definition_in_float32(scale):
    data = problem(100, 500, 8, scale)
    exact = outcome(linear_cross_entropy_reference, *data)
    single = [part.float() if part.is_floating_point() else part for part in data]
    plain = outcome(linear_cross_entropy_reference, *single)
    ours = outcome(linear_cross_entropy, *single)
    for got, base, wanted in zip(ours, plain, exact, strict=True):
        assert relative_error(got, wanted) <= 4 * relative_error(base, wanted) + 1e-6


def test_a_target_far_below_the_best_item_has_a_finite_loss():
    x, table = torch.tensor([[1.0]]), torch.tensor([[500.0], [0.0]])
    loss = linear_cross_entropy(x, table, torch.tensor([1]), torch.ones(1))
    assert float(loss) == 500.0


def test_bf16_products_keep_a_float32_loss():
    x, table, target, weight = (
        part.float() if part.is_floating_point() else part for part in problem(200, 4000, 16, 0.3)
    )
    exact = outcome(
        linear_cross_entropy_reference, x.double(), table.double(), target, weight.double()
    )
    ours = outcome(linear_cross_entropy, x, table, target, weight, compute_dtype=torch.bfloat16)
    assert ours[0].dtype == torch.float32
    assert relative_error(ours[0], exact[0]) < 1e-3
    assert relative_error(ours[1], exact[1]) < 2e-2
    assert relative_error(ours[2], exact[2]) < 2e-2


def test_rows_of_weight_zero_change_nothing():
    x, table, target, weight = problem(20, 11, 4)
    weight[7:] = 0
    whole = outcome(linear_cross_entropy, x, table, target, weight)
    part = outcome(linear_cross_entropy, x[:7], table, target[:7], weight[:7])
    torch.testing.assert_close(whole[0], part[0])
    torch.testing.assert_close(whole[2], part[2])


def test_chunks_never_shrink_to_single_rows_on_a_large_catalogue():
    assert chunked._rows_per_chunk(6400, 1_000_000, 4) == 32
    assert chunked._rows_per_chunk(5, 1_000_000, 4) == 5
