"""linear_attention: every backend against the definition in float64, and its docstring's claims."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.nn.functional import normalize as unit

from recsys.errors import InputError
from recsys.kernels.backends import use_backend
from recsys.kernels.linear_attention import (
    AttentionState,
    delta_rule_reference,
    linear_attention,
    linear_attention_reference,
    linear_attention_step,
    obstacles,
)
from recsys.kernels.testing import assert_matches_reference, outcome, relative_error

FAST = ["cpu", "torch"]
ALL = [*FAST, "triton"]
RULES = ["plain", "decay", "delta", "decayed delta"]
ALL_RULES = [(rule, backend) for rule in RULES for backend in FAST] + [
    ("plain", "triton"),
    ("decay", "triton"),
]


def tensors(B=2, L=37, H=2, K=11, P=3, rule="decay", dtype=torch.float32, seed=0):
    """Inputs of a rule, and the S of an initial state; keys of norm 1 for the delta rule."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    data = {"q": normal(B, L, H, K), "k": unit(normal(B, L, H, K), dim=-1)}
    data["v"] = normal(B, L, H, P)
    if "decay" in rule:
        data["log_decay"] = uniform(B, L, H).log()
    if "delta" in rule:
        data["beta"] = 2 * uniform(B, L, H)
    states = torch.float64 if dtype == torch.float64 else torch.float32
    return {name: x.to(dtype) for name, x in data.items()} | {"S": normal(B, H, K, P).to(states)}


def call(q, k, v, S=None, log_decay=None, beta=None, reset=None, backend=None, **options):
    o, state = linear_attention(
        *(q, k, v),
        log_decay=log_decay,
        beta=beta,
        initial_state=None if S is None else AttentionState(S),
        reset=reset,
        return_final_state=True,
        backend=backend,
        **options,
    )
    return o, state.S


def normalized_call(q, k, v, S, z, log_decay=None, backend=None):
    """With q, k and z made positive."""
    o, state = linear_attention(
        *(q.exp(), k.exp(), v),
        log_decay=log_decay,
        normalize=True,
        initial_state=AttentionState(S, z.exp()),
        return_final_state=True,
        backend=backend,
    )
    return o, state.S, state.z


def with_options(**options):
    return lambda **tensors: call(**tensors, **options)


def packed(data, lengths, seed=0):
    """One row as packed sequences of these lengths."""
    rows = {name: x[0] for name, x in data.items() if name != "S"}
    _, H, K, P = data["S"].shape
    return rows | {"S": tensors(B=len(lengths), L=0, H=H, K=K, P=P, seed=seed)["S"]}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("L", [1, 2, 63, 64, 100])
def test_outputs_states_and_gradients_match_the_definition(L, dtype, rule):
    assert_matches_reference(call, tensors(L=L, rule=rule, dtype=dtype), *FAST)


@pytest.mark.parametrize("rule", RULES)
def test_a_thousand_steps_match_the_definition(rule):
    assert_matches_reference(call, tensors(B=1, L=1000, H=1, rule=rule), *FAST)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("rule", RULES)
def test_float64_is_exact_to_its_rounding(rule, backend):
    data = tensors(L=70, rule=rule, dtype=torch.float64)
    exact, ours = outcome(call, data, "reference"), outcome(call, data, backend)
    assert max(relative_error(ours[name], exact[name]) for name in exact) < 3e-14


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("K", "P"), [(1, 1), (16, 32), (21, 17)])
def test_any_head_sizes_match_the_definition(K, P, rule):
    # Keys of one number are all the same: the worst case of a chunk's triangular system.
    run = with_options(chunk_size=1 if K == 1 else 64)
    assert_matches_reference(run, tensors(L=9, K=K, P=P, rule=rule), *FAST)


@pytest.mark.parametrize("rule", ["plain", "decay"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("L", "P"), [(1, 3), (35, 35)])
def test_the_triton_kernels_match_the_definition(L, P, dtype, rule):
    assert_matches_reference(call, tensors(B=1, L=L, P=P, rule=rule, dtype=dtype), "triton")


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["plain", "decay"])
def test_normalized_outputs_and_gradients_match_the_definition(rule, dtype, backend):
    data = tensors(B=1, L=20, rule=rule, dtype=dtype)
    data["z"] = tensors(B=1, L=1)["q"][:, 0]
    assert_matches_reference(normalized_call, data, backend)


@pytest.mark.parametrize(("rule", "backend"), ALL_RULES)
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_with_resets_match_the_definition(rule, reverse, backend):
    data = packed(tensors(B=1, L=40, rule=rule), lengths=[5, 0, 1, 14, 20])
    data["reset"] = torch.arange(40) % 11 == 7
    options = {"cu_seqlens": torch.tensor([0, 5, 5, 6, 20, 40]), "reverse": reverse}
    assert_matches_reference(with_options(**options, chunk_size=16), data, backend)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("rule", RULES)
def test_packed_sequences_equal_one_call_for_each(rule, backend):
    data = packed(tensors(B=1, L=12, rule=rule), lengths=[4, 0, 8])
    o, final = call(**data, cu_seqlens=torch.tensor([0, 4, 4, 12]), backend=backend)
    S = data.pop("S")
    for n, (start, end) in enumerate([(0, 4), (4, 4), (4, 12)]):
        row = {name: x[None, start:end] for name, x in data.items()}
        one, last = call(**row, S=S[n : n + 1], backend=backend)
        torch.testing.assert_close(o[start:end], one[0])
        torch.testing.assert_close(final[n], last[0])


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("rule", RULES)
def test_reverse_equals_flip(rule, backend):
    data = tensors(L=9, rule=rule)
    reset = torch.arange(9).expand(2, 9) == 3
    o, final = call(**data, reset=reset, reverse=True, backend=backend)
    flipped = {name: x if name == "S" else x.flip(1) for name, x in data.items()}
    wanted, last = call(**flipped, reset=reset.flip(1), backend=backend)
    assert torch.equal(o, wanted.flip(1))
    assert torch.equal(final, last)


@pytest.mark.parametrize("backend", ["reference", *ALL])
def test_a_log_decay_of_minus_infinity_equals_a_reset(backend):
    data = tensors(B=1, L=40, rule="decay")
    reset = (torch.arange(40) % 9 == 4)[None]
    forgetting = data | {"log_decay": data["log_decay"].masked_fill(reset[..., None], -torch.inf)}
    by_reset = outcome(call, data | {"reset": reset}, backend)
    by_decay = outcome(call, forgetting, backend)
    assert all(torch.equal(by_reset[name], by_decay[name]) for name in by_decay)
    assert not by_decay["gradient of log_decay"][reset].any()
    # The start of the last stretch is all that its outputs know.
    tail = {name: x[:, 31:] for name, x in data.items() if name != "S"}
    alone, _ = call(**tail, S=torch.zeros_like(data["S"]), backend=backend)
    torch.testing.assert_close(by_reset["output 0"][:, 31:], alone)


@pytest.mark.parametrize("backend", ALL)
def test_weak_decays_behind_strong_ones_stay_exact(backend):
    data = tensors(B=1, L=40, H=1)
    data["log_decay"] = torch.where(torch.arange(40) < 20, -3e4, -1e-3)[None, :, None].clone()
    assert_matches_reference(call, data, backend)


@pytest.mark.parametrize("backend", ["reference", *ALL])
def test_no_decay_equals_the_lower_triangle_of_attention(backend):
    data = tensors(B=2, L=20, rule="plain", dtype=torch.float32)
    q, k, v = data["q"], data["k"], data["v"]
    o, final = call(q, k, v, backend=backend)
    weights = torch.einsum("bihk,bjhk->bhij", q, k).tril()
    torch.testing.assert_close(o, torch.einsum("bhij,bjhp->bihp", weights, v))
    torch.testing.assert_close(final, torch.einsum("bjhk,bjhp->bhkp", k, v))


@pytest.mark.parametrize("backend", ["reference", *ALL])
def test_a_constant_decay_equals_retention(backend):
    data = tensors(B=2, L=20, rule="plain")
    gamma = torch.tensor([0.9, 0.5])
    o, _ = call(
        data["q"], data["k"], data["v"], log_decay=gamma.log().expand(2, 20, 2), backend=backend
    )
    i = torch.arange(20)
    D_HLL = (gamma[:, None, None] ** (i[:, None] - i).clamp(min=0)).tril()
    weights = torch.einsum("bihk,bjhk->bhij", data["q"], data["k"]) * D_HLL
    torch.testing.assert_close(o, torch.einsum("bhij,bjhp->bihp", weights, data["v"]))


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_the_delta_rule_stores_and_overwrites_under_orthonormal_keys(backend):
    keys = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    k = keys[[0, 1, 2, 3, 0, 1, 2, 3]].reshape(1, 8, 1, 4)
    v = torch.arange(24.0).reshape(1, 8, 1, 3)
    o, state = call(k, k, v, beta=torch.ones(1, 8, 1), backend=backend)
    torch.testing.assert_close(o, v)
    # What the last four wrote is all that is left of eight.
    torch.testing.assert_close(keys @ state[0, 0], v[0, 4:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", *ALL])
def test_normalize_gives_means_of_values(backend):
    data = tensors(B=2, L=20, rule="plain")
    q, k, v = data["q"].exp(), data["k"].exp(), data["v"]
    o = linear_attention(q, k, v, normalize=True, backend=backend)
    weights = torch.einsum("bihk,bjhk->bhij", q, k).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(o, torch.einsum("bhij,bjhp->bihp", weights, v))


@pytest.mark.parametrize("backend", ["reference", *ALL])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_prefix_equals_events_in_front(normalize, backend):
    data = {name: x.exp() for name, x in tensors(B=2, L=17, rule="plain").items()}
    q, k, v = (data[name].requires_grad_() for name in "qkv")
    front, rest = slice(0, 7), slice(7, 17)
    options = {"normalize": normalize, "return_final_state": True, "backend": backend}
    whole, last = linear_attention(q, k, v, **options)
    wanted = torch.autograd.grad(whole[:, rest].sum(), [q, k, v])
    prefix = (k[:, front], v[:, front])
    o, state = linear_attention(q[:, rest], k[:, rest], v[:, rest], prefix=prefix, **options)
    torch.testing.assert_close(o, whole[:, rest])
    torch.testing.assert_close(state.S, last.S)
    for got, grad in zip(torch.autograd.grad(o.sum(), [q, k, v]), wanted, strict=True):
        torch.testing.assert_close(got, grad, rtol=1e-5, atol=1e-5)


def test_a_shorter_prefix_filled_up_with_zeros_is_the_shorter_prefix():
    data = tensors(B=3, L=4, rule="plain")
    k, v = data["k"].clone(), data["v"].clone()
    k[1, 2:] = 0
    given = {name: data[name][:, 0] for name in "qkv"}
    cu_seqlens = torch.tensor([0, 1, 2, 3])
    o = linear_attention(**given, cu_seqlens=cu_seqlens, prefix=(k, v))
    alone = linear_attention(
        **{name: x[1:2] for name, x in given.items()},
        cu_seqlens=torch.tensor([0, 1]),
        prefix=(k[1:2, :2], v[1:2, :2]),
    )
    torch.testing.assert_close(o[1:2], alone)


@pytest.mark.parametrize(("rule", "backend"), ALL_RULES)
def test_chunk_sizes_agree(rule, backend):
    data = tensors(
        B=1, L=40, H=1, rule=rule, dtype=torch.float64 if backend == "torch" else torch.float32
    )
    by_size = [outcome(with_options(chunk_size=size), data, backend) for size in (1, 7, 64)]
    for name, wanted in by_size[0].items():
        for other in by_size[1:]:
            assert relative_error(other[name], wanted) < 5e-6, name


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=0, max_size=5),
    reverse=st.booleans(),
    seed=st.integers(0, 99),
    rule=st.sampled_from(RULES),
    backend=st.sampled_from(FAST),
)
def test_any_lengths_match_the_definition(lengths, reverse, seed, rule, backend):
    total = sum(lengths)
    data = packed(tensors(B=1, L=total, H=1, rule=rule, seed=seed), lengths, seed)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    run = with_options(cu_seqlens=cu_seqlens, reverse=reverse, chunk_size=8)
    if total:
        assert_matches_reference(run, data, backend)
    else:
        o, final = run(**data, backend=backend)
        assert o.shape == (0, 1, 3)
        assert torch.equal(final, data["S"])


@pytest.mark.parametrize("backend", ["reference", *ALL])
def test_no_steps_leave_the_state_and_pass_its_gradient(backend):
    S = torch.randn(2, 2, 11, 3, requires_grad=True)
    empty = {name: x for name, x in tensors(L=0).items() if name != "S"}
    o, final = call(**empty, S=S, backend=backend)
    assert o.shape == (2, 0, 2, 3)
    assert torch.equal(final, S)
    final.sum().backward()
    assert torch.equal(S.grad, torch.ones_like(S))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("rule", RULES)
def test_two_halves_with_a_carried_state_equal_the_whole(rule, backend):
    data = tensors(L=40, rule=rule)
    whole, final = call(**data, backend=backend)
    S = data.pop("S")
    first, S = call(**{name: x[:, :13] for name, x in data.items()}, S=S, backend=backend)
    second, S = call(**{name: x[:, 13:] for name, x in data.items()}, S=S, backend=backend)
    assert relative_error(torch.cat([first, second], dim=1), whole) < 2e-6
    assert relative_error(S, final) < 2e-6


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_equal_the_parallel_form(dtype, rule):
    data = tensors(L=30, rule=rule, dtype=dtype)
    reset = torch.arange(30).expand(2, 30) == 11
    o, final = call(**data, reset=reset)
    state, steps = AttentionState(data["S"]), []
    for t in range(30):
        options = {f"{name}_t": data[name][:, t] for name in ("log_decay", "beta") if name in data}
        inputs = (data[name][:, t] for name in "qkv")
        o_t, state = linear_attention_step(*inputs, state, **options, reset=reset[:, t])
        steps.append(o_t)
    assert o_t.dtype == o.dtype
    assert relative_error(torch.stack(steps, dim=1), o) <= 4 * torch.finfo(dtype).eps
    assert relative_error(state.S, final) <= 1e-6


def test_normalized_steps_equal_the_parallel_form():
    data = tensors(L=20)
    q, k, v = data["q"].exp(), data["k"].exp(), data["v"]
    options = {"log_decay": data["log_decay"], "normalize": True, "return_final_state": True}
    o, final = linear_attention(q, k, v, **options)
    state = AttentionState(torch.zeros(2, 2, 11, 3), torch.zeros(2, 2, 11))
    for t in range(20):
        g_t = data["log_decay"][:, t]
        inputs = (x[:, t] for x in (q, k, v))
        o_t, state = linear_attention_step(*inputs, state, log_decay_t=g_t, normalize=True)
        torch.testing.assert_close(o_t, o[:, t])
    torch.testing.assert_close(state.S, final.S)
    torch.testing.assert_close(state.z, final.z)


@pytest.mark.parametrize("rule", ["decay", "decayed delta"])
def test_gradcheck_of_the_definition(rule):
    data = tensors(B=1, L=4, H=1, K=2, P=2, rule=rule, dtype=torch.float64)
    definition = linear_attention_reference if rule == "decay" else delta_rule_reference
    inputs = [x.requires_grad_() for x in data.values()]
    assert torch.autograd.gradcheck(lambda *x: (definition(*x)[0], definition(*x)[1][0]), inputs)


@pytest.mark.parametrize("rule", ["decay", "decayed delta"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads, rule, monkeypatch):
    from recsys.kernels import compiled

    monkeypatch.setattr(compiled, "SERIAL_BYTES", 0)
    data = tensors(B=5, L=70, rule=rule)
    before = torch.get_num_threads()
    alone = outcome(call, data, "cpu")
    torch.set_num_threads(threads)
    together = outcome(call, data, "cpu")
    torch.set_num_threads(before)
    assert all(torch.equal(alone[name], together[name]) for name in alone)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("name", ["q", "k", "v", "log_decay", "beta", "S"])
def test_what_is_not_a_number_does_not_vanish(name, backend):
    data = tensors(B=1, L=5, H=1, rule="decayed delta")
    data[name] = torch.full_like(data[name], torch.nan)
    o, _ = call(**data, backend=backend)
    assert o.isnan().all()


@pytest.mark.parametrize("backend", FAST)
def test_float32_carries_a_sum_of_small_bf16_numbers(backend):
    ones = torch.ones(1, 1000, 1, 1, dtype=torch.bfloat16)
    o, final = call(ones, ones, ones, backend=backend)
    assert float(final) == 1000.0  # in bf16, 256 + 1 is 256
    assert o.dtype == torch.bfloat16


def test_on_no_device_there_are_shapes():
    q = torch.empty(2, 5, 3, 4, device="meta")
    o = linear_attention(q, q, q, prefix=(q, q), backend="reference")
    state = AttentionState(torch.empty(2, 3, 4, 4, device="meta"))
    step, _ = linear_attention_step(q[:, 0], q[:, 0], q[:, 0], state)
    assert (o.shape, step.shape) == (q.shape, q[:, 0].shape)


def test_a_compiled_call_follows_the_backend_around_it():
    data = {name: x.requires_grad_() for name, x in tensors(L=40).items()}
    compiled = torch.compile(lambda q, k, v: linear_attention(q, k, v), backend="aot_eager")
    wanted = torch.autograd.grad(compiled(data["q"], data["k"], data["v"]).sum(), data["q"])
    with use_backend("torch"):
        got = torch.autograd.grad(compiled(data["q"], data["k"], data["v"]).sum(), data["q"])
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("around", [*FAST, "reference"])
def test_what_ran_forward_runs_backward(around):
    data = {name: x.requires_grad_() for name, x in tensors(L=70, K=5).items()}
    o, _ = call(**data)
    wanted = torch.autograd.grad(o.sum(), data["q"], retain_graph=True)
    with use_backend(around):
        got = torch.autograd.grad(o.sum(), data["q"])
    assert torch.equal(got[0], wanted[0])


@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize("rule", ["decay", "delta"])
def test_an_autocast_around_it_rounds_nothing(rule, backend):
    data = tensors(L=70, rule=rule)
    prefix = (data["k"][:, :9] + 1, data["v"][:, :9] - 1)

    def one(**tensors):
        return call(**tensors, prefix=prefix)

    wanted = outcome(one, data, backend)
    with torch.autocast("cpu", torch.bfloat16):
        # Steps, unlike these, are of one form for all backends.
        step, _ = linear_attention_step(*(data[n][:, 0] for n in "qkv"), AttentionState(data["S"]))
        got = outcome(one, data, backend)
    plain, _ = linear_attention_step(*(data[n][:, 0] for n in "qkv"), AttentionState(data["S"]))
    assert torch.equal(step, plain)
    for name, x in wanted.items():
        if backend == "reference" and name.startswith("gradient"):
            continue  # of plain operations: what is around the backward pass rounds it
        assert torch.equal(got[name], x), name


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own duals
@pytest.mark.parametrize("backend", FAST)
def test_a_forward_mode_derivative_is_refused(backend):
    data = tensors(L=3)
    with forward_ad.dual_level():
        data["q"] = forward_ad.make_dual(data["q"], torch.ones_like(data["q"]))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            call(**data, backend=backend)


@pytest.mark.parametrize("backend", FAST)
def test_a_second_derivative_is_refused(backend):
    data = {name: x.requires_grad_() for name, x in tensors(L=3).items()}
    o, _ = call(**data, backend=backend)
    (grad,) = torch.autograd.grad(o.square().sum(), data["q"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("rule", ["plain", "decayed delta"])
def test_compiled_models_keep_one_graph(rule, backend):
    data = tensors(L=7, rule=rule)

    def step(q, k, v, S, *rest):
        options = dict(zip(("log_decay", "beta"), rest, strict=False))
        o, final = call(q.sigmoid(), k, v, S=S, **options, backend=backend)
        return o.sum() + final.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    names = [name for name in ("q", "k", "v", "S", "log_decay", "beta") if name in data]
    inputs = [data[name].requires_grad_() for name in names]
    wanted = torch.autograd.grad(step(*inputs), inputs)
    got = torch.autograd.grad(compiled(*inputs), inputs)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_what_triton_cannot_do_is_said():
    data = tensors(L=3, rule="delta")
    q, k, v = data["q"], data["k"], data["v"]
    assert "delta rule" in obstacles(q, k, v, beta=data["beta"])["triton"]
    with pytest.raises(InputError, match="delta rule"):
        linear_attention(q, k, v, beta=data["beta"], backend="triton")
    wide = torch.ones(1, 3, 1, 129)
    assert "up to 64 numbers in torch.float32, not 129" in obstacles(wide, wide, v)["triton"]
    wide, low_v = wide.bfloat16(), v.bfloat16()
    assert "up to 128 numbers in torch.bfloat16" in obstacles(wide, wide, low_v)["triton"]
    assert obstacles(wide[..., :128], wide[..., :128], low_v) == {}
    assert "float64" in obstacles(q.double(), k, v)["triton"]
    assert obstacles(q, k, v) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": torch.ones(2, 37, 2, 4)}, "k must have shape"),
        ({"q": torch.ones(2, 37, 5)}, r"q must be \[batch"),
        ({"v": torch.ones(2, 37, 3, 5)}, "v must have shape"),
        ({"v": torch.ones(2, 37, 2, 5, dtype=torch.int64)}, "v must be real floating"),
        ({"log_decay": torch.ones(2, 37)}, "log_decay must have shape"),
        ({"beta": torch.ones(2, 37, 2, 1)}, "beta must have shape"),
        ({"S": torch.ones(3, 2, 11, 3)}, "initial_state.S must have shape"),
        ({"reset": torch.zeros(2, 36, dtype=torch.bool)}, "reset must begin with sizes"),
        ({"reset": torch.zeros(2, 37)}, "reset must be bool"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"prefix": (torch.ones(2, 4, 2, 11), torch.ones(2, 3, 2, 3))}, "prefix values must"),
        ({"prefix": (torch.ones(2, 4, 2, 4), torch.ones(2, 4, 2, 3))}, "prefix keys must"),
        ({"normalize": True}, "must have z with normalize"),
        ({"normalize": True, "beta": torch.ones(2, 37, 2)}, "does not go with beta"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        call(**(tensors() | changes))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("bounds", [[0, 3, 2, 4], [1, 4], [0, 5], [0, -1, 4]])
def test_sequences_outside_the_tensor_are_refused(bounds, backend):
    x = torch.ones(4, 1, 2)
    with pytest.raises(InputError, match="cu_seqlens"):
        call(x, x, x, cu_seqlens=torch.tensor(bounds), backend=backend)
