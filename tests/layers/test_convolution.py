"""The causal convolution: its sum, its gradients, and its steps."""

import pytest
import torch

from recsys.layers.convolution import CausalConvolution


def inputs(batch: int, steps: int, dim: int, width: int) -> tuple[CausalConvolution, torch.Tensor]:
    torch.manual_seed(0)
    layer = CausalConvolution(dim, width).double()
    return layer, torch.randn(batch, steps, dim, dtype=torch.float64, requires_grad=True)


def by_definition(layer: CausalConvolution, x: torch.Tensor) -> torch.Tensor:
    """Event by event; weight j belongs to the input j events back."""
    rows = []
    for t in range(x.shape[1]):
        y = layer.bias
        for j in range(len(layer.weight)):
            if t - j >= 0:
                y = y + layer.weight[j] * x[:, t - j]
        rows.append(y.expand(len(x), -1))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize(("steps", "width"), [(1, 1), (1, 4), (3, 4), (4, 4), (9, 4), (9, 1)])
def test_it_is_the_sum_over_the_last_inputs_with_its_gradients(steps, width):
    layer, x = inputs(3, steps, 5, width)
    weight = torch.randn(3, steps, 5, dtype=torch.float64)
    outcomes = []
    for convolve in (layer, lambda x: by_definition(layer, x)):
        y = convolve(x)
        outcomes.append((y, *torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])))
    for got, wanted in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, wanted)


def test_it_equals_the_grouped_convolution_of_torch():
    layer, x = inputs(2, 7, 3, 4)
    wanted = torch.nn.functional.conv1d(
        x.mT, layer.weight.flip(0).T[:, None], layer.bias, padding=3, groups=3
    )
    torch.testing.assert_close(layer(x), wanted[..., :7].mT)


@pytest.mark.parametrize("width", [1, 2, 4])
@torch.no_grad()
def test_step_by_step_it_is_the_same(width):
    layer, x = inputs(3, 6, 5, width)
    state = layer.init_state(3)
    assert state[0].shape == (3, width - 1, 5)
    steps = []
    for x_BD in x.unbind(1):
        y_BD, state = layer.step(x_BD, state)
        steps.append(y_BD)
    torch.testing.assert_close(torch.stack(steps, dim=1), layer(x))


def test_weights_begin_as_torch_begins_those_of_a_grouped_convolution():
    layer = CausalConvolution(3000, 4)
    for parameter in (layer.weight, layer.bias):
        assert float(parameter.detach().abs().max()) == pytest.approx(0.5, rel=0.01)
        assert abs(float(parameter.detach().mean())) < 0.02


def test_a_width_below_one_is_refused():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        CausalConvolution(4, 0)
