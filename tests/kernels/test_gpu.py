"""Every kernel on an NVIDIA GPU against its definition in float64, at sizes that people train with.

The same problems run on the CPU in the plain test run, so that only the device is new to them.
"""

import pytest
import torch

from recsys.kernels import (
    GRU,
    LSTM,
    AttentionState,
    SoftmaxState,
    linear_attention,
    linear_cross_entropy,
    linear_scan,
    rnn_scan,
    selective_scan,
    softmax_scan,
)
from recsys.kernels.testing import assert_matches_reference, outcome

gpu = pytest.mark.gpu


def _linear_scan(a, b, state, **options):
    return linear_scan(a, b, initial_state=state, return_final_state=True, **options)


def _softmax_scan(s, v, lse, o, **options):
    state = SoftmaxState(lse, o)
    y, (lse, o) = softmax_scan(s, v, initial_state=state, return_final_state=True, **options)
    return y, lse, o


def _selective_scan(u, dt, A, B, C, state, **options):
    return selective_scan(u, dt, A, B, C, initial_state=state, return_final_state=True, **options)


def _linear_attention(q, k, v, log_decay, state, **options):
    y, (S, _) = linear_attention(
        q,
        k,
        v,
        log_decay=log_decay,
        initial_state=AttentionState(state),
        return_final_state=True,
        **options,
    )
    return y, S


def _rnn_scan(cell):
    return lambda u, params, state, **options: rnn_scan(
        cell, u, params, initial_state=state, return_final_state=True, **options
    )


def problem(op, length, dtype, device, rows=3):
    """(call, tensors) of an operation on `rows` sequences."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def low(x):
        return x.to(device, dtype)

    def state(x):
        return x.to(device)

    N, L = rows, length
    calls = {
        "linear_scan": lambda: (
            _linear_scan,
            {
                "a": low(normal(N, L, 70).sigmoid()),
                "b": low(normal(N, L, 70)),
                "state": state(normal(N, 70)),
            },
        ),
        "linear_scan constant": lambda: (
            _linear_scan,
            {
                "a": low(normal(70).sigmoid()),
                "b": low(normal(N, L, 70)),
                "state": state(normal(N, 70)),
            },
        ),
        "softmax_scan": lambda: (
            _softmax_scan,
            {
                "s": (10 * normal(N, L, 2)).to(device),
                "v": low(normal(N, L, 2, 40)),
                "lse": state(normal(N, 2)),
                "o": state(normal(N, 2, 40)),
            },
        ),
        "selective_scan": lambda: (
            _selective_scan,
            {
                "u": low(normal(N, L, 70)),
                "dt": low(normal(N, L, 70).sigmoid()),
                "A": state(-normal(70, 16).exp()),
                "B": low(normal(N, L, 16)),
                "C": low(normal(N, L, 16)),
                "state": state(normal(N, 70, 16)),
            },
        ),
        "linear_attention": lambda: (
            _linear_attention,
            {
                "q": low(normal(N, L, 2, 64) / 8),
                "k": low(normal(N, L, 2, 64) / 8),
                "v": low(normal(N, L, 2, 40)),
                "log_decay": -(normal(N, L, 2).to(device).exp()),
                "state": state(normal(N, 2, 64, 40)),
            },
        ),
        "rnn_scan gru": lambda: (
            _rnn_scan(GRU),
            {
                "u": low(normal(N, L, 3, 70)),
                "params": state(normal(3, 70).sigmoid()),
                "state": state(normal(N, 1, 70).tanh()),
            },
        ),
        "rnn_scan lstm": lambda: (
            _rnn_scan(LSTM),
            {
                "u": low(normal(N, L, 4, 70)),
                "params": state(normal(4, 70).sigmoid()),
                "state": state(normal(N, 2, 70).tanh()),
            },
        ),
    }
    return calls[op]()


OPERATIONS = [
    "linear_scan",
    "linear_scan constant",
    "softmax_scan",
    "selective_scan",
    "linear_attention",
    "rnn_scan gru",
    "rnn_scan lstm",
]


def loss_problem(rows, items, dim, device):
    """(call, tensors) of linear_cross_entropy."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(items, (rows,), generator=generator).to(device)
    x, weight = (
        torch.randn(rows, dim, generator=generator),
        torch.randn(items, dim, generator=generator),
    )

    def call(x, weight, backend):
        return (linear_cross_entropy(x, weight, target, label_smoothing=0.1, backend=backend),)

    return call, {"x": x.to(device), "weight": (0.3 * weight).to(device)}


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_problems_are_sound_on_the_cpu(op):
    assert_matches_reference(*problem(op, 5, torch.float32, "cpu", rows=1), "cpu")


def test_the_loss_problem_is_sound_on_the_cpu():
    assert_matches_reference(*loss_problem(20, 30, 8, "cpu"), "torch")


@gpu
@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 63, 64, 100, 1000])
@pytest.mark.parametrize("op", OPERATIONS)
def test_kernels_match_the_definition(op, length, dtype, backend):
    assert_matches_reference(*problem(op, length, dtype, "cuda"), backend)


@gpu
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("op", OPERATIONS)
def test_packed_and_reversed_sequences_match_the_definition(op, reverse):
    call, tensors = problem(op, 150, torch.float32, "cuda", rows=1)
    packed = {
        name: x[0]
        if x.shape[:2] == (1, 150)
        else x.repeat(4, *[1] * (x.dim() - 1))
        if name in ("state", "lse", "o")
        else x
        for name, x in tensors.items()
    }
    cu_seqlens = torch.tensor([0, 70, 70, 71, 150], device="cuda")
    assert_matches_reference(
        lambda **given: call(**given, cu_seqlens=cu_seqlens, reverse=reverse), packed, "triton"
    )


@gpu
@pytest.mark.parametrize("op", OPERATIONS)
def test_a_second_run_gives_the_same_bits(op):
    call, tensors = problem(op, 200, torch.float32, "cuda")
    once, again = outcome(call, tensors, "triton"), outcome(call, tensors, "triton")
    assert all(torch.equal(once[name], again[name]) for name in once)


@gpu
@pytest.mark.parametrize("shape", [(1, 1, 1), (63, 1000, 17), (6400, 12_000, 64), (500, 3000, 128)])
def test_the_loss_matches_the_definition(shape):
    call, tensors = loss_problem(*shape, "cuda")
    assert_matches_reference(call, tensors, "triton")
    once, again = outcome(call, tensors, "triton"), outcome(call, tensors, "triton")
    assert all(torch.equal(once[name], again[name]) for name in once)
