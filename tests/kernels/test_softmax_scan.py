"""softmax_scan: every backend against its definition in float64, and the claims it makes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.kernels import use_backend
from recsys.kernels.backends import available_backends, explain
from recsys.kernels.softmax_scan import SoftmaxState, softmax_scan, softmax_scan_step
from recsys.kernels.softmax_scan.reference import softmax_scan_reference
from recsys.kernels.testing import assert_matches_reference, outcome, relative_error

FAST = ["cpu", "torch"]
ALL = [*FAST, "triton"]
EVERY = ["reference", *ALL]
LOW = [torch.bfloat16, torch.float16]


def tensors(B=2, L=37, H=2, K=5, dtype=torch.float32, seed=0, scale=1.0):
    """s with deviation `scale`, v and an initial state, as float32 where dtype is lower."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    states = torch.promote_types(dtype, torch.float32)
    return {
        "s": (scale * normal(B, L, H)).to(dtype),
        "v": normal(B, L, H, K).to(dtype),
        "lse": normal(B, H).to(states),
        "o": normal(B, H, K).to(states),
    }


def flags(*shape, share, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def call(s, v, lse=None, o=None, reset=None, valid=None, backend=None, **options):
    y, state = softmax_scan(
        s,
        v,
        initial_state=None if lse is None else SoftmaxState(lse, o),
        reset=reset,
        valid=valid,
        return_final_state=True,
        backend=backend,
        **options,
    )
    return y, *state


def with_options(**options):
    return lambda **tensors: call(**tensors, **options)


def outputs(s, v, backend=None, **options):
    """o alone, from nothing: what a final lse of -inf, whose weighting has no gradient, needs."""
    return (softmax_scan(s, v, backend=backend, **options),)


def as_float64(data):
    return {name: data[name].double() for name in ("s", "v")}


def from_a_fixed_lse(lse, **options):
    """`call` without a gradient of lse, which has a test of its own for rounded outputs."""
    return lambda s, v, **rest: call(s, v, lse.to(rest["o"].dtype), **rest, **options)


def dense(s, v, valid=None):
    """[B, L, H, K] by attention over the lower triangle, where every row has a valid place."""
    length = s.shape[1]
    seen_TT = torch.ones(length, length, dtype=torch.bool).tril()
    score_BHTT = s.transpose(1, 2)[:, :, None].expand(-1, -1, length, -1)
    seen = seen_TT if valid is None else seen_TT & valid[:, None, None]
    weight = score_BHTT.masked_fill(~seen, -math.inf).softmax(-1)
    return torch.einsum("bhij,bjhk->bihk", weight, v)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize("L", [1, 2, 63, 64, 100])
def test_outputs_states_and_gradients_match_the_definition(L, dtype, masked):
    masks = {"reset": flags(2, L, share=0.1), "valid": flags(2, L, share=0.7, seed=1)}
    data = tensors(L=L, dtype=dtype) | (masks if masked else {})
    if dtype == torch.float32:
        assert_matches_reference(call, data, *FAST)
    else:
        assert_matches_reference(from_a_fixed_lse(data.pop("lse")), data, *FAST)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_lse_is_as_exact_as_the_outputs_it_is_computed_from(seed, dtype, backend):
    data = tensors(B=1, L=17, dtype=dtype, seed=seed)
    exact = outcome(call, {name: x.double() for name, x in data.items()}, "reference")
    got = outcome(call, data, backend)["gradient of lse"]
    assert got.dtype == torch.float32
    assert relative_error(got, exact["gradient of lse"]) <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_thousand_steps_match_the_definition(dtype):
    data = tensors(L=1000, H=1, dtype=dtype)
    assert_matches_reference(from_a_fixed_lse(data.pop("lse")), data, *FAST)


@pytest.mark.parametrize("backend", FAST)
def test_float64_is_exact_to_its_rounding(backend):
    data = tensors(L=64, dtype=torch.float64) | {"valid": flags(2, 64, share=0.7)}
    assert_matches_reference(call, data, backend)


@pytest.mark.parametrize(
    ("L", "K", "masked", "dtype"),
    [
        (1, 1, False, torch.float32),
        (16, 5, True, torch.bfloat16),
        (66, 3, False, torch.float32),
        (67, 3, True, torch.bfloat16),
        (9, 35, True, torch.float32),
    ],
)
def test_the_triton_kernels_match_the_definition(L, K, masked, dtype):
    masks = {"reset": flags(1, L, share=0.1), "valid": flags(1, L, share=0.7, seed=1)}
    data = tensors(B=1, L=L, K=K, dtype=dtype) | (masks if masked else {})
    if dtype == torch.float32:
        assert_matches_reference(call, data, "triton")
    else:
        assert_matches_reference(from_a_fixed_lse(data.pop("lse")), data, "triton")


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_it_is_softmax_attention_over_the_prefix(scale, backend):
    data = tensors(L=40, H=1, scale=scale)
    wanted = outcome(lambda s, v, backend: (dense(s, v),), as_float64(data), backend)
    got = outcome(outputs, {"s": data["s"], "v": data["v"]}, backend)
    assert got.keys() == wanted.keys()
    for name in got:
        assert relative_error(got[name], wanted[name]) <= 2e-6


def test_the_definition_is_softmax_attention_over_the_prefix():
    data = as_float64(tensors(L=40, scale=3.0))
    wanted = outcome(lambda s, v, backend: (dense(s, v),), data, "reference")
    got = outcome(outputs, data, "reference")
    for name in got:
        assert relative_error(got[name], wanted[name]) <= 1e-13


@pytest.mark.parametrize("backend", EVERY)
def test_skipped_places_have_no_weight_in_the_dense_softmax(backend):
    data = tensors(L=30, K=3)
    valid = flags(2, 30, share=0.5)
    valid[:, 0] = True
    inputs = [data[name].requires_grad_() for name in ("s", "v")]
    y, wanted = softmax_scan(*inputs, valid=valid, backend=backend), dense(*inputs, valid)
    torch.testing.assert_close(y, wanted)
    got = torch.autograd.grad(y.square().sum(), inputs)
    for one, other in zip(got, torch.autograd.grad(wanted.square().sum(), inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("constant", [-1024.0, 2.0**17])
def test_a_constant_added_to_all_scores_changes_no_bit(constant, backend):
    data = tensors(B=1, L=20, H=1)
    data["s"] = (64 * data["s"]).round() / 64  # so that the sum is exact
    plain = outcome(outputs, {"s": data["s"], "v": data["v"]}, backend)
    moved = outcome(outputs, {"s": data["s"] + constant, "v": data["v"]}, backend)
    assert all(torch.equal(plain[name], moved[name]) for name in plain)


@pytest.mark.parametrize("backend", EVERY)
def test_weights_that_underflow_leave_outputs_and_gradients_right(backend):
    s = torch.tensor([0.0, -1e4, 1e4, -1e4, 1e4])[None, :, None].requires_grad_()
    v = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[None, :, None, None].requires_grad_()
    y, (lse, o) = softmax_scan(s, v, return_final_state=True, backend=backend)
    torch.testing.assert_close(y.flatten(), torch.tensor([1.0, 1, 3, 3, 4]), atol=1e-3, rtol=0)
    torch.testing.assert_close(lse.item(), 1e4 + math.log(2), atol=1e-3, rtol=0)
    ds, dv = torch.autograd.grad(o.sum() + lse.sum(), [s, v])
    # Half of the weight each: do/ds = p (v - o), dlse/ds = p.
    wanted = torch.tensor([0.0, 0, 0, 0, 1])
    torch.testing.assert_close(ds.flatten(), wanted, atol=2e-3, rtol=0)
    torch.testing.assert_close(dv.flatten(), torch.tensor([0.0, 0, 0.5, 0, 0.5]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("how", ["valid", "scores of -inf"])
def test_where_nothing_counts_the_state_stays_and_gradients_are_finite(how, backend):
    data = tensors(L=6)
    valid = torch.zeros(2, 6, dtype=torch.bool) if how == "valid" else None
    s = data["s"] if how == "valid" else torch.full_like(data["s"], -math.inf)
    lse = data["lse"].clone()
    lse[0] = -math.inf
    inputs = [x.requires_grad_() for x in (s, data["v"], lse, data["o"])]
    y, last, o = call(*inputs, valid=valid, backend=backend)
    assert torch.equal(y, data["o"][:, None].expand_as(y))
    assert torch.equal(o, data["o"])
    torch.testing.assert_close(last, lse, rtol=1e-6, atol=1e-6)
    ones = torch.ones_like
    grads = [ones(y), 2 * ones(last), ones(o)]
    ds, dv, dlse, do = torch.autograd.grad([y, last, o], inputs, grads)
    assert not ds.any()
    assert not dv.any()
    torch.testing.assert_close(do, torch.full_like(do, 7))
    assert torch.equal(dlse, torch.tensor([[0.0, 0.0], [2.0, 2.0]]))


@pytest.mark.parametrize("backend", EVERY)
def test_without_a_state_nothing_counted_gives_zeros(backend):
    data = tensors(L=4)
    valid = torch.tensor([[False, False, True, True]] * 2)
    y, _, _ = call(data["s"], data["v"], valid=valid, backend=backend)
    assert not y[:, :2].any()
    assert torch.equal(y[:, 2], data["v"][:, 2])


@pytest.mark.parametrize("backend", EVERY)
def test_what_a_skipped_step_holds_is_nothing_even_nan(backend):
    data = tensors(L=12, K=3)
    valid = flags(2, 12, share=0.6)
    clean = outcome(call, data | {"valid": valid}, backend)
    data["s"][~valid], data["v"][~valid] = math.nan, math.nan
    poisoned = outcome(call, data | {"valid": valid}, backend)
    assert all(torch.equal(clean[name], poisoned[name]) for name in clean)


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("where", ["s", "v", "lse", "o"])
def test_a_nan_comes_out_as_nan(where, backend):
    data = tensors(L=8, K=3)
    data[where][0] = math.nan
    y, _, o = call(**data, backend=backend)
    assert y[0].isnan().all()
    assert o[0].isnan().all()
    assert y[1].isfinite().all()


@pytest.mark.parametrize("backend", EVERY)
def test_a_step_that_forgets_and_is_skipped_leaves_nothing(backend):
    data = tensors(L=5)
    reset, valid = torch.arange(5).expand(2, 5) == 2, torch.arange(5).expand(2, 5) != 2
    y, lse, o = call(**data, reset=reset, valid=valid, backend=backend)
    assert not y[:, 2].any()
    rest = call(data["s"][:, 3:], data["v"][:, 3:], backend=backend)
    for got, wanted in zip((y[:, 3:], lse, o), rest, strict=True):
        torch.testing.assert_close(got, wanted)
    grads = outcome(call, data | {"reset": reset, "valid": valid}, backend)
    for name in ("lse", "o"):
        assert grads[f"gradient of {name}"].isfinite().all()
    data["s"].requires_grad_()
    y, _, _ = call(**data, reset=reset, valid=valid, backend=backend)
    (ds,) = torch.autograd.grad(y[:, 2:].square().sum(), data["s"])
    assert not ds[:, :3].any()
    assert ds[:, 3:].any()


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_with_resets_match_the_definition(reverse, backend):
    cu_seqlens = torch.tensor([0, 5, 5, 6, 20, 37])
    data = {name: x[0] for name, x in tensors(B=1, K=3).items()}
    data |= {name: x for name, x in tensors(B=5, K=3, seed=1).items() if name in ("lse", "o")}
    data |= {"reset": torch.arange(37) % 11 == 7, "valid": flags(37, share=0.8)}
    packed = with_options(cu_seqlens=cu_seqlens, reverse=reverse)
    assert_matches_reference(packed, data, backend)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_packed_sequences_equal_one_call_for_each(backend):
    data = tensors(B=1, L=12, K=3)
    s, v = data["s"][0], data["v"][0]
    states = tensors(B=3, K=3)
    lse, o = states["lse"], states["o"]
    packed = call(s, v, lse, o, cu_seqlens=torch.tensor([0, 4, 4, 12]), backend=backend)
    for n, (start, end) in enumerate([(0, 4), (4, 4), (4, 12)]):
        part, row = slice(start, end), slice(n, n + 1)
        one = call(s[None, part], v[None, part], lse[row], o[row], backend=backend)
        torch.testing.assert_close(packed[0][part], one[0][0])
        torch.testing.assert_close(packed[1][row], one[1])
        torch.testing.assert_close(packed[2][row], one[2])


@pytest.mark.parametrize("backend", EVERY)
def test_reverse_equals_flip(backend):
    data = tensors(L=9, K=3)
    reset, valid = torch.arange(9).expand(2, 9) == 3, torch.arange(9).expand(2, 9) != 5
    y, *state = call(**data, reset=reset, valid=valid, reverse=True, backend=backend)
    data["s"], data["v"] = data["s"].flip(1), data["v"].flip(1)
    flipped, *last = call(**data, reset=reset.flip(1), valid=valid.flip(1), backend=backend)
    assert torch.equal(y, flipped.flip(1))
    assert all(torch.equal(one, other) for one, other in zip(state, last, strict=True))


@pytest.mark.parametrize("backend", EVERY)
def test_a_reset_starts_anew(backend):
    data = tensors(L=9, K=3)
    reset = torch.arange(9).expand(2, 9) == 4
    y, lse, o = call(**data, reset=reset, backend=backend)
    after = call(data["s"][:, 4:], data["v"][:, 4:], backend=backend)
    for got, wanted in zip((y[:, 4:], lse, o), after, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("where", ["s", "v", "lse", "o"])
def test_a_reset_forgets_even_nan(where, backend):
    data = tensors(L=9, K=3)
    reset = torch.arange(9).expand(2, 9) == 4
    clean = [x[:, 4:].clone().requires_grad_() for x in (data["s"], data["v"])]
    wanted = call(*clean, backend=backend)
    data[where][:, 0] = math.nan  # of the first step, or head
    inputs = [x.requires_grad_() for x in data.values()]
    y, lse, o = call(*inputs, reset=reset, backend=backend)
    assert y[:, :4].isnan().any()
    for got, expected in zip((y[:, 4:], lse, o), wanted, strict=True):
        assert torch.equal(got, expected)
    if backend != "reference":  # where autograd multiplies NaN by 0 on its way back
        grads = torch.autograd.grad(y[:, 4:].square().sum() + lse.sum(), inputs[:2])
        expected = torch.autograd.grad(wanted[0].square().sum() + wanted[1].sum(), clean)
        for got, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(got[:, 4:], other)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=0, max_size=5),
    reverse=st.booleans(),
    seed=st.integers(0, 99),
    backend=st.sampled_from(FAST),
)
def test_any_lengths_match_the_definition(lengths, reverse, seed, backend):
    total = sum(lengths)
    data = {name: x[0] for name, x in tensors(B=1, L=total, K=3, seed=seed).items()}
    states = tensors(B=len(lengths), K=3, seed=seed + 1)
    data |= {"lse": states["lse"], "o": states["o"]}
    data |= {"reset": flags(total, share=0.2, seed=seed), "valid": flags(total, share=0.7)}
    packed = with_options(cu_seqlens=torch.tensor([0, *lengths]).cumsum(0), reverse=reverse)

    def with_sums(**tensors):
        y, lse, o = packed(**tensors)
        return y, lse.exp(), o  # where all was skipped lse is -inf, which has no distance

    if total:
        assert_matches_reference(with_sums, data, backend)
    else:
        y, lse, o = packed(**data, backend=backend)
        assert y.shape == (0, 2, 3)
        assert torch.equal(lse, data["lse"])
        assert torch.equal(o, data["o"])


@pytest.mark.parametrize("backend", EVERY)
def test_no_steps_leave_the_state_and_pass_its_gradient(backend):
    data = tensors(L=0)
    lse, o = data["lse"].requires_grad_(), data["o"].requires_grad_()
    y, last, final = call(data["s"], data["v"], lse, o, backend=backend)
    assert y.shape == (2, 0, 2, 5)
    assert torch.equal(last, lse)
    assert torch.equal(final, o)
    (2 * last.sum() + 3 * final.sum()).backward()
    assert torch.equal(lse.grad, torch.full((2, 2), 2.0))
    assert torch.equal(o.grad, torch.full((2, 2, 5), 3.0))


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("sizes", [(0, 4, 2, 3), (2, 4, 0, 3), (2, 4, 2, 0)])
def test_nothing_to_do_gives_empty_results_and_gradients(sizes, backend):
    B, L, H, K = sizes
    data = {name: x.requires_grad_() for name, x in tensors(B=B, L=L, H=H, K=K).items()}
    y, lse, o = call(**data, backend=backend)
    assert (y.shape, lse.shape, o.shape) == ((B, L, H, K), (B, H), (B, H, K))
    (y.sum() + lse.sum() + o.sum()).backward()
    assert data["s"].grad.isfinite().all()
    assert data["v"].grad.shape == (B, L, H, K)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_two_halves_with_a_carried_state_equal_the_whole(backend):
    data = tensors(L=40, K=3)
    whole = call(**data, backend=backend)
    s, v = data["s"], data["v"]
    first, *state = call(s[:, :13], v[:, :13], data["lse"], data["o"], backend=backend)
    second, *last = call(s[:, 13:], v[:, 13:], *state, backend=backend)
    halves = (torch.cat([first, second], dim=1), *last)
    for got, wanted in zip(halves, whole, strict=True):
        assert relative_error(got, wanted) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_steps_equal_the_scan(dtype):
    data = tensors(L=30, dtype=dtype)
    reset, valid = flags(2, 30, share=0.1), flags(2, 30, share=0.7, seed=1)
    y, *final = call(**data, reset=reset, valid=valid)
    state = SoftmaxState(data["lse"], data["o"])
    for t in range(30):
        options = {"reset": reset[:, t], "valid": valid[:, t]}
        y_t, state = softmax_scan_step(data["s"][:, t], data["v"][:, t], state, **options)
        assert y_t.dtype == y.dtype
        assert relative_error(y_t, y[:, t]) <= 8 * torch.finfo(dtype).eps
    for got, wanted in zip(state, final, strict=True):
        assert got.dtype == wanted.dtype
        assert relative_error(got, wanted) <= 1e-6


def test_a_step_skips_what_is_not_a_number():
    data = tensors(L=1)
    state = SoftmaxState(data["lse"], data["o"])
    nan = torch.full_like(data["v"][:, 0], math.nan)
    skipped = torch.zeros(2, dtype=torch.bool)
    y, after = softmax_scan_step(nan[..., 0], nan, state, valid=skipped)
    assert torch.equal(y, state.o)
    assert torch.equal(after.lse, state.lse)


def test_gradcheck_of_the_definition():
    data = tensors(B=1, L=4, K=2, dtype=torch.float64)
    reset = torch.tensor([[False, False, True, False]])
    inputs = [x.requires_grad_() for x in data.values()]

    def run(s, v, lse, o):
        y, state = softmax_scan_reference(s, v, reset, lse, o)
        return y, *state

    def before_the_reset(s, v, lse, o):
        return softmax_scan_reference(s[:, :2], v[:, :2], reset[:, :2], lse, o)[0]

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradcheck(before_the_reset, inputs)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads, monkeypatch):
    from recsys.kernels import compiled

    monkeypatch.setattr(compiled, "SERIAL_BYTES", 0)
    data = tensors(B=5, L=70, K=37)
    alone = outcome(call, data, "cpu")
    torch.set_num_threads(threads)
    together = outcome(call, data, "cpu")
    assert all(torch.equal(alone[name], together[name]) for name in alone)


@pytest.mark.parametrize("backend", EVERY)
def test_strided_inputs_are_read_in_their_order(backend):
    data = tensors(L=3, K=4)
    s, v = data["s"].transpose(0, 1), data["v"].transpose(0, 1)
    y, *_ = call(s, v, backend=backend)
    assert torch.equal(y, call(s.contiguous(), v.contiguous(), backend=backend)[0])
    wide = torch.stack([data["v"][0]] * 2, dim=-1)[..., 0]
    packed, *_ = call(data["s"][0], wide, cu_seqlens=torch.tensor([0, 3]), backend=backend)
    alone, *_ = call(data["s"][:1], data["v"][:1], backend=backend)
    assert torch.equal(packed, alone[0])


def test_float32_carries_a_mean_of_bf16_numbers():
    s = torch.zeros(1, 4096, 1, dtype=torch.bfloat16)
    v = torch.ones(1, 4096, 1, 1, dtype=torch.bfloat16)
    v[0, 2048:] = 3
    y, lse, o = call(s, v)
    torch.testing.assert_close(lse.item(), math.log(4096), rtol=1e-6, atol=0)
    torch.testing.assert_close(o.item(), 2.0, rtol=1e-5, atol=0)
    assert y.dtype == torch.bfloat16
    assert y[0, -1].item() == 2.0


@pytest.mark.parametrize("backend", FAST)
def test_a_second_derivative_is_refused(backend):
    data = {name: x.requires_grad_() for name, x in tensors(L=3).items()}
    y, _, _ = call(**data, backend=backend)
    (grad,) = torch.autograd.grad(y.square().sum(), data["v"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", FAST)
def test_compiled_models_keep_one_graph(backend):
    data = tensors(L=7)
    valid = flags(2, 7, share=0.7)

    def step(s, v, lse, o):
        y, last, final = call(3 * s, v.sigmoid(), lse, o, valid=valid, backend=backend)
        return y.sum() + last.sum() + final.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_() for x in data.values()]
    wanted = torch.autograd.grad(step(*inputs), inputs)
    got = torch.autograd.grad(compiled(*inputs), inputs)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_block_that_names_a_backend_runs_it():
    data = {name: x.requires_grad_() for name, x in tensors(L=3).items()}
    with use_backend("reference"):
        y, _, _ = call(**data)
    (grad,) = torch.autograd.grad(y.square().sum(), data["v"], create_graph=True)
    assert grad.requires_grad  # which only the definition's is


def test_triton_says_that_it_does_not_compute_in_float64():
    data = tensors(L=3, dtype=torch.float64)
    with pytest.raises(InputError, match="do not compute in float64"):
        call(**data, backend="triton")
    assert "triton" not in available_backends("softmax_scan", "cpu", torch.float64)
    assert explain("softmax_scan", data["s"], data["v"]).backend == "cpu"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"s": torch.ones(2, 37)}, "s must have shape"),
        ({"s": torch.ones(2, 36, 2)}, "s must have shape"),
        ({"v": torch.ones(2, 37, 2)}, r"v must be \[batch, time, heads, channels\]"),
        ({"s": torch.ones(2, 37, 2, dtype=torch.int64)}, "s must be real floating"),
        ({"v": torch.ones(2, 37, 2, 5, dtype=torch.complex64)}, "v must be real floating"),
        ({"lse": torch.ones(3, 2)}, "initial_state.lse must have shape"),
        ({"o": torch.ones(2, 2, 4)}, "initial_state.o must have shape"),
        ({"reset": torch.zeros(2, 36, dtype=torch.bool)}, "reset must begin with sizes"),
        ({"valid": torch.zeros(2, 37)}, "valid must be bool"),
        ({"v": torch.ones(2, 37, 2, 5, device="meta")}, "different devices"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        call(**(tensors() | changes))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("bounds", [[0, 3, 2, 4], [1, 4], [0, 5], [0, -1, 4]])
def test_sequences_outside_the_tensor_are_refused(bounds, backend):
    s, v = torch.ones(4, 2), torch.ones(4, 2, 3)
    with pytest.raises(InputError, match="cu_seqlens"):
        call(s, v, cu_seqlens=torch.tensor(bounds), backend=backend)
