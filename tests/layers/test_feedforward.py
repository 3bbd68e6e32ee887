"""Position-wise networks, number by number."""

import math

import torch

from recsys.layers.feedforward import GELUFeedForward, SwiGLU


@torch.no_grad()
def test_swiglu_multiplies_values_by_the_silu_of_their_gates():
    torch.manual_seed(0)
    layer = SwiGLU(3, 5, dropout=0.0).double()
    assert [key for key, _ in layer.named_parameters()] == [
        "project_in.weight",
        "project_out.weight",
    ]
    gate_HD, value_HD = layer.project_in.weight.split(5)
    x_D = torch.randn(3, dtype=torch.float64)
    hidden = []
    for gate, value in zip((gate_HD @ x_D).tolist(), (value_HD @ x_D).tolist(), strict=True):
        hidden.append(value * gate / (1 + math.exp(-gate)))
    expected_D = layer.project_out.weight @ torch.tensor(hidden, dtype=torch.float64)
    torch.testing.assert_close(layer(x_D), expected_D)


@torch.no_grad()
def test_gelu_weighs_a_value_by_the_normal_probability_below_it():
    layer = GELUFeedForward(1, 1, dropout=0.0).double()
    for parameter in layer.parameters():
        parameter.fill_(1.0 if parameter.dim() == 2 else 0.0)
    x_N1 = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    expected = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in (-1.0, 0.0, 2.0)]
    torch.testing.assert_close(layer(x_N1)[:, 0], torch.tensor(expected, dtype=torch.float64))


def test_both_drop_hidden_values_in_training_alone():
    torch.manual_seed(0)
    x_BD = torch.randn(4, 8)
    for kind in (SwiGLU, GELUFeedForward):
        layer = kind(8, 16, 0.5)
        assert not torch.equal(layer(x_BD), layer(x_BD))
        layer.eval()
        assert torch.equal(layer(x_BD), layer(x_BD))
