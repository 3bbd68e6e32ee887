"""Plain twins compute what the layers do."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import recsys.layers
from recsys.layers.aaren import Aaren
from recsys.layers.convolution import CausalConvolution
from recsys.layers.diagonal_rnn import diagonal_gru, diagonal_lstm
from recsys.layers.hstu import HSTUBlock
from recsys.layers.item_encoder import ItemTable, know_by_features
from recsys.layers.lru import LRU
from recsys.layers.lssl import EventSSM, GapSSM
from recsys.layers.mingru import MinGRU, MinimalRNN, MinLSTM
from recsys.layers.mixer import Mixer
from recsys.layers.plain import PLAIN, in_plain_operations, sees_time
from recsys.layers.recurrence import GRULayer, LSTMLayer
from recsys.layers.ssm import Mamba, Mamba2

LONGEST, DIM = 21, 8
LAYERS: dict[str, Callable[[], Mixer]] = {
    "aaren": lambda: Aaren(DIM, 2),
    "convolution": lambda: CausalConvolution(DIM, 4),
    "hstu": lambda: HSTUBlock(DIM, 2, 0.0, LONGEST),
    "lru": lambda: LRU(DIM, 6, 0.8, 0.99),
    "lssl": lambda: EventSSM(DIM, 6, 0.01, 1.0),
    "lssl, gaps": lambda: GapSSM(DIM, 6, 0.01, 1.0),
    "mingru": lambda: MinimalRNN(DIM, MinGRU(DIM, 6)),
    "minlstm": lambda: MinimalRNN(DIM, MinLSTM(DIM, 6)),
    "mamba": lambda: Mamba(DIM, 4, 2, 4),
    "mamba2": lambda: Mamba2(DIM, 4, 2, 2, 4),
}
WALKS: dict[str, Callable[[], Mixer]] = {
    "gru": lambda: GRULayer(DIM, 6),
    "lstm": lambda: LSTMLayer(DIM, 6),
    "diagonal gru": lambda: diagonal_gru(DIM, 6, LONGEST),
    "diagonal lstm": lambda: diagonal_lstm(DIM, 6, LONGEST),
}


@torch.no_grad()
def check(make: Callable[[], Mixer], lengths: list[int]) -> None:
    torch.manual_seed(0)
    layer = make().eval()
    for parameter in layer.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    plain = in_plain_operations(nn.ModuleList([layer]), LONGEST)[0]
    assert type(plain) is PLAIN[type(layer)]
    for length in lengths:
        x_BTD = torch.randn(3, length, DIM)
        times_BT = torch.exp(20 * torch.rand(3, length)).long().cumsum(1)
        expected, found = layer(x_BTD, times_BT), plain(x_BTD, times_BT)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_a_plain_layer_computes_the_same_at_every_length(name):
    check(LAYERS[name], list(range(1, LONGEST + 1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", WALKS)
def test_so_does_a_layer_that_walks(name):
    check(WALKS[name], [1, 2, LONGEST])


def test_every_layer_that_runs_a_kernel_has_a_twin():
    running = set()
    for file in Path(recsys.layers.__path__[0]).glob("*.py"):
        module = ast.parse(file.read_text(encoding="utf-8"))
        kernels = {
            name.name
            for node in ast.walk(module)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("recsys.kernels")
            for name in node.names
        }
        running |= {
            cls.name
            for cls in module.body
            if isinstance(cls, ast.ClassDef)
            for node in ast.walk(cls)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in kernels
        }
    assert {"LRU", "Mamba"} <= running
    assert running <= {layer.__name__ for layer in PLAIN}


def test_the_model_itself_stays_as_it_was():
    model = nn.ModuleList([LRU(DIM, 6, 0.8, 0.99)])
    before = {key: x.clone() for key, x in model.state_dict().items()}
    in_plain_operations(model, LONGEST)
    assert type(model[0]) is LRU
    assert before.keys() == model.state_dict().keys()
    assert all(x.requires_grad for x in model.parameters())


def test_items_known_by_features_are_read_from_a_table_of_the_same_vectors():
    model = nn.ModuleList([ItemTable(9, DIM)])
    know_by_features(model, "id+text", torch.randn(10, 5), 1)
    plain = in_plain_operations(model, LONGEST)
    assert type(plain[0]) is ItemTable
    items_BT = torch.tensor([[1, 9, 4], [2, 2, 3]])
    torch.testing.assert_close(plain[0](items_BT), model[0](items_BT))
    torch.testing.assert_close(plain[0].vectors(), model[0].vectors())


def test_a_layer_sees_time_once_it_has_learned_of_gaps():
    layer = HSTUBlock(DIM, 2, 0.0, LONGEST)
    layer.time_bias.data[0] = 1.0
    assert not sees_time(layer)
    layer.time_bias.data[7] = 0.1
    assert sees_time(layer)
    assert sees_time(GapSSM(DIM, 6, 0.01, 1.0))
    assert not sees_time(EventSSM(DIM, 6, 0.01, 1.0))
