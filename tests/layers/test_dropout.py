"""Dropout: the right share, the right scale, the same mask on the way back."""

import pytest
import torch

from recsys.layers import dropout
from recsys.layers.dropout import Dropout


def dropped(p: float, shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(output for ones, gradient of its sum)."""
    torch.manual_seed(seed)
    x = torch.ones(shape, requires_grad=True)
    y = Dropout(p).train()(x)
    y.sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_a_share_p_is_dropped_and_the_rest_scaled_to_the_same_mean(p):
    y, _ = dropped(p, (400, 501))
    kept = y != 0
    assert abs(float(kept.float().mean()) - (1 - p)) < 0.005
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - p)), rtol=1e-3, atol=0)
    assert abs(float(y.mean()) - 1) < 0.02


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 7, 5), (0, 3)])
def test_the_gradient_passes_where_the_value_passed(shape):
    y, grad = dropped(0.5, shape)
    assert y.shape == shape
    assert torch.equal(y, grad)


@pytest.mark.parametrize("piece", [1, 7, 16, 140])
def test_pieces_change_nothing(piece: int, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(1)
    x, weight = torch.randn(5, 4, 7).transpose(0, 2), torch.randn(7, 4, 5)
    found = []
    for size in (dropout.PIECE, piece):
        monkeypatch.setattr(dropout, "PIECE", size)
        torch.manual_seed(2)
        leaf = x.clone().requires_grad_()
        y = Dropout(0.5).train()(leaf)
        (y * weight).sum().backward()
        found += [y.detach(), leaf.grad]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert torch.equal(found[1], (found[0] != 0) * weight / 0.5)


def test_every_place_is_dropped_alike_and_independently():
    y = torch.stack([dropped(0.5, (64,), seed)[0] for seed in range(2000)])
    kept = (y != 0).float()
    assert float((kept.mean(dim=0) - 0.5).abs().max()) < 0.06
    correlation = torch.corrcoef(kept.T) - torch.eye(64)
    assert float(correlation.abs().max()) < 0.12


def test_the_generator_decides_the_mask():
    assert torch.equal(dropped(0.5, (50, 50), 1)[0], dropped(0.5, (50, 50), 1)[0])
    assert not torch.equal(dropped(0.5, (50, 50), 1)[0], dropped(0.5, (50, 50), 2)[0])


def test_nothing_is_dropped_in_evaluation_or_with_p_zero():
    x = torch.randn(5, 5)
    assert Dropout(0.9).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(p):
    with pytest.raises(ValueError, match="p must lie"):
        Dropout(p)


def test_a_share_next_to_one_leaves_finite_values():
    y, _ = dropped(1 - 1e-9, (300, 300))
    assert bool(torch.isfinite(y).all())
