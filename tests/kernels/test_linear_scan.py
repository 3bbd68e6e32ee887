"""linear_scan: every backend against the definition in float64, and the claims of its docstring."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.kernels import linear_scan, linear_scan_step, use_backend
from recsys.kernels.linear_scan.reference import linear_scan_reference
from recsys.kernels.testing import assert_matches_reference, outcome, relative_error

FAST = ["cpu", "torch"]
ALL = [*FAST, "triton"]
KINDS = ["full", "group", "constant", "scalar"]


def tensors(B=2, L=37, channels=(2, 5), kind="full", dtype=torch.float32, decay=1.0, seed=0):
    """a of the largest size `decay`, b and an initial state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = {
        "full": (B, L, *channels),
        "group": (B, L, *channels[:-1], 1),
        "constant": channels,
        "scalar": (B, L, *[1] * len(channels)),
    }[kind]
    a = decay * torch.rand(*shape, generator=generator, dtype=torch.float64)
    b, state = normal(B, L, *channels), normal(B, *channels)
    if dtype.is_complex:
        a = torch.polar(a, 3 * normal(*shape))
        b, state = (torch.complex(x, normal(*x.shape)) for x in (b, state))
    states = torch.promote_types(dtype, torch.float32)
    return {"a": a.to(dtype), "b": b.to(dtype), "initial_state": state.to(states)}


def call(a, b, initial_state=None, reset=None, backend=None, **options):
    return linear_scan(
        a,
        b,
        initial_state=initial_state,
        reset=reset,
        return_final_state=True,
        backend=backend,
        **options,
    )


def with_options(**options):
    return lambda **tensors: call(**tensors, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("L", [1, 2, 63, 64, 100])
def test_outputs_states_and_gradients_match_the_definition(L, dtype, kind):
    assert_matches_reference(call, tensors(L=L, kind=kind, dtype=dtype), *FAST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_thousand_steps_match_the_definition(dtype):
    assert_matches_reference(call, tensors(L=1000, channels=(3,), dtype=dtype), *FAST)


@pytest.mark.parametrize("backend", FAST)
def test_float64_is_exact_to_its_rounding(backend):
    assert_matches_reference(call, tensors(L=64, dtype=torch.float64), backend)


@pytest.mark.parametrize("kind", ["full", "group", "constant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("L", [1, 33])
def test_the_triton_kernels_match_the_definition(L, dtype, kind):
    assert_matches_reference(call, tensors(B=1, L=L, kind=kind, dtype=dtype), "triton")


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("decay", [0.0, 1.0, 1.2])
def test_forgetting_keeping_and_growing_states_match_the_definition(decay, backend):
    data = tensors(L=20, channels=(3,))
    data["a"] = torch.full_like(data["a"], decay)
    assert_matches_reference(call, data, backend)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["full", "constant"])
def test_packed_sequences_with_resets_match_the_definition(kind, reverse, backend):
    cu_seqlens = torch.tensor([0, 5, 5, 6, 20, 37])
    data = tensors(B=1, L=37, channels=(3,), kind=kind)
    data = {name: x if name == "a" and x.dim() == 1 else x[0] for name, x in data.items()}
    data["initial_state"] = tensors(B=5, channels=(3,))["initial_state"]
    data["reset"] = torch.arange(37) % 11 == 7
    packed = with_options(cu_seqlens=cu_seqlens, reverse=reverse)
    assert_matches_reference(packed, data, backend)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_packed_sequences_equal_one_call_for_each(backend):
    data = tensors(B=1, L=12, channels=(3,))
    a, b = data["a"][0], data["b"][0]
    state = tensors(B=3, channels=(3,))["initial_state"]
    y, final = call(a, b, state, cu_seqlens=torch.tensor([0, 4, 4, 12]), backend=backend)
    for n, (start, end) in enumerate([(0, 4), (4, 4), (4, 12)]):
        part = slice(start, end)
        one, last = call(a[None, part], b[None, part], state[n : n + 1], backend=backend)
        assert torch.equal(y[part], one[0])
        assert torch.equal(final[n], last[0])


@pytest.mark.parametrize("backend", ["reference", *ALL])
def test_reverse_equals_flip(backend):
    data = tensors(L=9, channels=(3,))
    reset = torch.arange(9).expand(2, 9) == 3
    y, final = call(**data, reset=reset, reverse=True, backend=backend)
    a, b, state = data["a"].flip(1), data["b"].flip(1), data["initial_state"]
    flipped, last = call(a, b, state, reset=reset.flip(1), backend=backend)
    assert torch.equal(y, flipped.flip(1))
    assert torch.equal(final, last)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_a_reset_equals_a_coefficient_of_zero(backend):
    data = tensors(L=9, channels=(3,))
    reset = torch.arange(9).expand(2, 9) % 4 == 2
    y, _ = call(**data, reset=reset, backend=backend)
    data["a"] = data["a"].masked_fill(reset[..., None], 0)
    torch.testing.assert_close(y, call(**data, backend=backend)[0])


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=0, max_size=5),
    reverse=st.booleans(),
    seed=st.integers(0, 99),
    backend=st.sampled_from(FAST),
)
def test_any_lengths_match_the_definition(lengths, reverse, seed, backend):
    total = sum(lengths)
    data = tensors(B=1, L=total, channels=(3,), seed=seed)
    data = {"a": data["a"][0], "b": data["b"][0]}
    data["initial_state"] = tensors(B=len(lengths), channels=(3,), seed=seed)["initial_state"]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    packed = with_options(cu_seqlens=cu_seqlens, reverse=reverse)
    if total:
        assert_matches_reference(packed, data, backend)
    else:
        y, final = packed(**data, backend=backend)
        assert y.shape == (0, 3)
        assert torch.equal(final, data["initial_state"])


@pytest.mark.parametrize("backend", ["reference", *ALL])
def test_no_steps_leave_the_state_and_pass_its_gradient(backend):
    state = torch.randn(2, 3, requires_grad=True)
    y, final = call(torch.ones(2, 0, 3), torch.ones(2, 0, 3), state, backend=backend)
    assert y.shape == (2, 0, 3)
    assert torch.equal(final, state)
    final.sum().backward()
    assert torch.equal(state.grad, torch.ones(2, 3))


@pytest.mark.parametrize("backend", FAST)
def test_two_halves_with_a_carried_state_equal_the_whole(backend):
    data = tensors(L=40, channels=(3,))
    whole, final = call(**data, backend=backend)
    a, b = data["a"], data["b"]
    first, state = call(a[:, :13], b[:, :13], data["initial_state"], backend=backend)
    second, last = call(a[:, 13:], b[:, 13:], state, backend=backend)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert torch.equal(last, final)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_steps_equal_the_scan(dtype):
    data = tensors(L=30, dtype=dtype)
    reset = torch.arange(30).expand(2, 30) == 11
    y, final = call(**data, reset=reset)
    state = data["initial_state"]
    for t in range(30):
        y_t, state = linear_scan_step(data["a"][:, t], data["b"][:, t], state, reset=reset[:, t])
        assert y_t.dtype == y.dtype
        assert relative_error(y_t, y[:, t]) <= 4 * torch.finfo(dtype).eps
    assert relative_error(state, final) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradcheck_of_the_definition(dtype):
    data = tensors(B=1, L=4, channels=(2,), dtype=dtype)
    inputs = [x.to(dtype).requires_grad_() for x in data.values()]
    assert torch.autograd.gradcheck(lambda *x: linear_scan_reference(*x)[0], inputs)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads, monkeypatch):
    from recsys.kernels import compiled

    monkeypatch.setattr(compiled, "SERIAL_BYTES", 0)
    data = tensors(B=5, L=70, channels=(9,), kind="constant")
    alone = outcome(call, data, "cpu")
    torch.set_num_threads(threads)  # every test begins with one again
    together = outcome(call, data, "cpu")
    assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_float32_carries_a_sum_of_small_bf16_numbers():
    ones = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    y, final = call(ones, ones)
    assert float(final) == 1000.0  # in bf16, 256 + 1 is 256
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("backend", FAST)
def test_a_second_derivative_is_refused(backend):
    data = {name: x.requires_grad_() for name, x in tensors(L=3).items()}
    y, _ = call(**data, backend=backend)
    (grad,) = torch.autograd.grad(y.square().sum(), data["a"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", [None, *FAST])
def test_compiled_models_keep_one_graph(backend):
    data = tensors(L=7)

    def step(a, b, state):
        y, final = linear_scan(
            a.sigmoid(), b * 2, initial_state=state, return_final_state=True, backend=backend
        )
        return y.sum() + final.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_() for x in data.values()]
    wanted = torch.autograd.grad(step(*inputs), inputs)
    got = torch.autograd.grad(compiled(*inputs), inputs)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_block_that_names_a_backend_runs_it():
    data = tensors(L=3)
    with use_backend("reference"):
        y, _ = call(**{name: x.requires_grad_() for name, x in data.items()})
    (grad,) = torch.autograd.grad(y.square().sum(), data["a"], create_graph=True)
    assert grad.requires_grad  # which only the definition's is


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": torch.ones(3, 7)}, "does not broadcast"),
        ({"b": torch.ones(2, 37, 2, 5, dtype=torch.long)}, "b must be floating or complex"),
        ({"initial_state": torch.ones(3, 2, 5)}, "initial_state must have shape"),
        ({"reset": torch.zeros(2, 36, dtype=torch.bool)}, "reset must begin with sizes"),
        ({"reset": torch.zeros(2, 37)}, "reset must be bool"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        call(**(tensors() | changes))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("bounds", [[0, 3, 2, 4], [1, 4], [0, 5], [0, -1, 4]])
def test_sequences_outside_the_tensor_are_refused(bounds, backend):
    b = torch.ones(4, 2)
    with pytest.raises(InputError, match="cu_seqlens"):
        call(b, b, cu_seqlens=torch.tensor(bounds), backend=backend)
