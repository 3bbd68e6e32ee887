"""selective_scan: every backend against its definition in float64, and its docstring's claims."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.kernels import linear_scan
from recsys.kernels.backends import explain, use_backend
from recsys.kernels.selective_scan import (
    obstacles,
    selective_scan,
    selective_scan_reference,
    selective_scan_step,
)
from recsys.kernels.selective_scan.checkpoints import CHUNK, num_checkpoints
from recsys.kernels.selective_scan.operator import scan
from recsys.kernels.testing import assert_matches_reference, outcome, relative_error

FAST = ["cpu", "torch"]
ALL = [*FAST, "triton"]


def tensors(B=2, L=37, D=5, S=3, dtype=torch.float32, seed=0):
    """Inputs as Mamba makes them, A and the initial state in the dtype of states."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    states = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "u": normal(B, L, D).to(dtype),
        "dt": F.softplus(normal(B, L, D) - 2).to(dtype),
        "A": -normal(D, S).exp().to(states),
        "B": normal(B, L, S).to(dtype),
        "C": normal(B, L, S).to(dtype),
        "initial_state": normal(B, D, S).to(states),
    }


def packed(T, sequences, **options):
    data = tensors(B=1, L=T, **options)
    data = {name: x if name == "A" else x[0] for name, x in data.items()}
    data["initial_state"] = tensors(B=sequences, L=0, **options)["initial_state"]
    return data


def call(u, dt, A, B, C, backend=None, **options):
    return selective_scan(u, dt, A, B, C, return_final_state=True, backend=backend, **options)


def with_options(**options):
    return lambda **tensors: call(**tensors, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("L", [1, 2, 63, 64, 65, 100])
def test_outputs_states_and_gradients_match_the_definition(L, dtype):
    assert_matches_reference(call, tensors(L=L, dtype=dtype), *FAST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_thousand_steps_match_the_definition(dtype):
    assert_matches_reference(call, tensors(B=1, L=1000, dtype=dtype), *FAST)


@pytest.mark.parametrize(("D", "S"), [(1, 1), (33, 16), (7, 70)])
def test_odd_sizes_match_the_definition(D, S):
    assert_matches_reference(call, tensors(L=9, D=D, S=S), *FAST)


@pytest.mark.parametrize("backend", FAST)
def test_float64_is_exact_to_its_rounding(backend):
    assert_matches_reference(call, tensors(L=70, dtype=torch.float64), backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("L", "D", "S"), [(1, 3, 1), (5, 33, 3), (3, 5, 20)])
def test_the_triton_kernels_match_the_definition(L, D, S, dtype):
    assert_matches_reference(call, tensors(B=1, L=L, D=D, S=S, dtype=dtype), "triton")


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_skip_and_gate_match_the_definition(dtype, backend):
    data = tensors(L=3, dtype=dtype)
    data["D"], data["z"] = torch.linspace(-1, 2, 5), data["u"].flip(1) * 3
    assert_matches_reference(call, data, backend)


def test_skip_and_gate_are_those_of_the_paper():
    data = tensors(L=6)
    skip, z = torch.linspace(-1, 2, 5), torch.randn(2, 6, 5)
    y, _ = call(**data, D=skip, z=z)
    plain, _ = call(**data)
    torch.testing.assert_close(y, (plain + skip * data["u"]) * z * torch.sigmoid(z))


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_with_resets_match_the_definition(reverse):
    data = packed(160, 5)
    data["reset"] = torch.arange(160) % 41 == 7
    cu_seqlens = torch.tensor([0, 5, 5, 6, 140, 160])
    assert_matches_reference(with_options(cu_seqlens=cu_seqlens, reverse=reverse), data, *FAST)


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_with_resets_match_the_definition_in_triton(reverse):
    data = packed(69, 3, D=3, S=2)
    data["reset"] = torch.arange(69) % 31 == 5
    cu_seqlens = torch.tensor([0, 2, 2, 69])
    assert_matches_reference(with_options(cu_seqlens=cu_seqlens, reverse=reverse), data, "triton")


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_packed_sequences_equal_one_call_for_each(backend):
    data = packed(80, 3)
    y, final = call(**data, cu_seqlens=torch.tensor([0, 4, 4, 80]), backend=backend)
    for n, part in enumerate([slice(0, 4), slice(4, 4), slice(4, 80)]):
        own = {name: x if name == "A" else x[None, part] for name, x in data.items()}
        own["initial_state"] = data["initial_state"][n : n + 1]
        one, last = call(**own, backend=backend)
        torch.testing.assert_close(y[part], one[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(final[n], last[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", *ALL])
def test_reverse_equals_flip(backend):
    data = tensors(L=9)
    reset = torch.arange(9).expand(2, 9) == 3
    y, final = call(**data, reset=reset, reverse=True, backend=backend)
    flipped = {name: x.flip(1) if x.shape[:2] == (2, 9) else x for name, x in data.items()}
    mirrored, last = call(**flipped, reset=reset.flip(1), backend=backend)
    assert torch.equal(y, mirrored.flip(1))
    assert torch.equal(final, last)


@pytest.mark.parametrize("backend", ["reference", *ALL])
def test_a_reset_forgets_even_a_state_that_is_not_a_number(backend):
    data = tensors(L=5)
    data["initial_state"][:] = float("nan")
    data["u"].requires_grad_()
    reset = torch.tensor([False, False, True, False, False]).expand(2, 5)
    y, final = call(**data, reset=reset, backend=backend)
    rest = {name: x[:, 2:] if x.shape[:2] == (2, 5) else x for name, x in data.items()}
    anew, last = call(**(rest | {"initial_state": None}), backend=backend)
    assert torch.equal(y[:, 2:], anew)
    assert torch.equal(final, last)
    assert y[:, :2].isnan().all()
    (grad,) = torch.autograd.grad(y[:, 2:].sum(), data["u"])
    assert grad.isfinite().all()
    assert not grad[:, :2].any()


@pytest.mark.parametrize("backend", ["reference", *ALL])
def test_a_number_that_is_none_stays_in_its_channel_and_after_its_time(backend):
    data = tensors(L=4)
    data["dt"][0, 2, 1] = float("nan")
    y, final = call(**data, backend=backend)
    wanted = torch.zeros(2, 4, 5, dtype=torch.bool)
    wanted[0, 2:, 1] = True
    assert torch.equal(y.isnan(), wanted)
    assert torch.equal(final.isnan().all(-1), wanted[:, -1])


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 9), st.integers(60, 70)), min_size=0, max_size=4),
    reverse=st.booleans(),
    seed=st.integers(0, 99),
    backend=st.sampled_from(FAST),
)
def test_any_lengths_match_the_definition(lengths, reverse, seed, backend):
    total = sum(lengths)
    data = packed(total, len(lengths), D=3, S=2, seed=seed)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    run = with_options(cu_seqlens=cu_seqlens, reverse=reverse)
    if total:
        assert_matches_reference(run, data, backend)
    else:
        y, final = run(**data, backend=backend)
        assert y.shape == (0, 3)
        assert torch.equal(final, data["initial_state"])


@pytest.mark.parametrize("backend", ["reference", *ALL])
def test_no_steps_leave_the_state_and_pass_its_gradient(backend):
    data = {name: x.requires_grad_() for name, x in tensors(L=0).items()}
    y, final = call(**data, backend=backend)
    assert y.shape == (2, 0, 5)
    assert torch.equal(final, data["initial_state"])
    final.sum().backward()
    assert torch.equal(data["initial_state"].grad, torch.ones(2, 5, 3))
    assert backend == "reference" or not data["A"].grad.any()


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("empty", [{"B": 0}, {"D": 0}, {"S": 0}])
def test_no_sequences_channels_or_states_give_sums_of_nothing(empty, backend):
    results = outcome(call, tensors(**({"L": 3} | empty)), backend)
    assert all(torch.equal(x, torch.zeros_like(x)) for x in results.values())


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("cut", [13, 64, 70])
def test_two_halves_with_a_carried_state_equal_the_whole(cut, backend):
    data = tensors(L=80)
    whole, final = call(**data, backend=backend)
    parts = [
        {name: x[:, part] if x.shape[:2] == (2, 80) else x for name, x in data.items()}
        for part in (slice(0, cut), slice(cut, 80))
    ]
    first, state = call(**parts[0], backend=backend)
    second, last = call(**(parts[1] | {"initial_state": state}), backend=backend)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert torch.equal(last, final)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_equal_the_scan(dtype):
    data = tensors(L=30, dtype=dtype)
    skip, z = torch.linspace(-1, 1, 5), tensors(L=30, dtype=dtype, seed=1)["u"]
    reset = torch.arange(30).expand(2, 30) == 11
    y, final = call(**data, D=skip, z=z, reset=reset)
    state = data["initial_state"]
    for t in range(30):
        u_t, dt_t, B_t, C_t = (data[name][:, t] for name in ("u", "dt", "B", "C"))
        y_t, state = selective_scan_step(
            *(u_t, dt_t, data["A"], B_t, C_t, state), D=skip, z_t=z[:, t], reset=reset[:, t]
        )
        assert y_t.dtype == y.dtype
        assert relative_error(y_t, y[:, t]) <= 8 * torch.finfo(dtype).eps
    assert relative_error(state, final) <= 1e-6


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_sums_over_all_earlier_events_give_the_same(backend):
    """y_t = sum over r <= t of C_t exp(A (dt_{r+1} + … + dt_t)) B_r dt_r u_r."""
    data = tensors(B=1, L=12, dtype=torch.float64)
    u, dt, A, B, C, state = (x if name == "A" else x[0] for name, x in data.items())
    elapsed = dt.cumsum(0)
    since = (elapsed[:, None] - elapsed[None])[..., None]
    earlier = torch.ones(12, 12).tril_().bool()[..., None, None]
    decay = torch.where(earlier, torch.exp(since * A), 0)
    y = torch.einsum("ts,trds,rs,rd->td", C, decay, B, dt * u)
    y += torch.einsum("ts,tds,ds->td", C, torch.exp(elapsed[..., None] * A), state)
    torch.testing.assert_close(call(**data, backend=backend)[0][0], y)


@pytest.mark.parametrize("backend", FAST)
def test_a_linear_scan_over_all_states_gives_the_same(backend):
    data = tensors(L=50)
    u, dt, A, B, C, state = data.values()
    decay, added = torch.exp(dt[..., None] * A), (dt * u)[..., None] * B[:, :, None]
    h, last = linear_scan(decay, added, initial_state=state, return_final_state=True)
    y, final = call(**data, backend=backend)
    assert relative_error(y, (h * C[:, :, None]).sum(-1)) < 1e-6
    assert relative_error(final, last) < 1e-6


@pytest.mark.parametrize("backend", ALL)
def test_decays_are_right_to_a_millionth_however_fast_or_slow(backend):
    exponents = -torch.cat([torch.linspace(0, 80, 33), torch.logspace(-30, 1.9, 32)])
    data = {
        "u": torch.zeros(1, 1, 65),
        "dt": torch.ones(1, 1, 65),
        "A": exponents[:, None],
        "B": torch.zeros(1, 1, 1),
        "C": torch.zeros(1, 1, 1),
    }
    _, final = call(**data, initial_state=torch.ones(1, 65, 1), backend=backend)
    wanted = exponents.double().exp()
    assert float((final[0, :, 0].double() / wanted - 1).abs().max()) < (
        1e-5 if backend == "triton" else 1e-6  # its exp2 rounds the exponent once more
    )


@pytest.mark.parametrize("backend", FAST)
def test_a_rate_without_bound_forgets_at_once(backend):
    one, rates = torch.ones(1, 3, 3), -torch.tensor([[1e15], [1e30], [torch.inf]])
    y, final = call(one, one, rates, one[..., :1], one[..., :1], backend=backend)
    torch.testing.assert_close(y, one)
    torch.testing.assert_close(final, torch.ones(1, 3, 1))


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4])
def test_tiny_and_huge_times_match_the_definition(scale, backend):
    data = tensors(B=1, L=6)
    data["dt"] = data["dt"] * scale
    assert_matches_reference(call, data, backend)


def test_the_forward_keeps_one_state_in_sixty_four():
    B, L, D, S = 8, 200, 64, 16
    data = {name: x.requires_grad_() for name, x in tensors(B, L, D, S).items()}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.setdefault(x.data_ptr(), x.numel()), lambda x: x
    ):
        call(**data)
    materialised = B * L * D * S
    inputs = sum(x.numel() for x in data.values())
    assert sum(kept.values()) <= inputs + B + 1 + materialised / 64
    assert sum(kept.values()) < materialised / 5


@given(lengths=st.lists(st.integers(0, 200), max_size=6), reverse=st.booleans())
def test_no_two_checkpoints_share_a_place(lengths, reverse):
    places = []
    start = 0
    for length in lengths:
        places += [(start + i) // CHUNK - 1 for i in range(CHUNK, length, CHUNK)]
        start += length
    assert len(set(places)) == len(places)
    assert all(0 <= place < num_checkpoints(start) for place in places)


@pytest.mark.parametrize("backend", ALL)
def test_checkpoints_are_the_states_before_their_steps(backend):
    data = tensors(B=1, L=66, D=3, S=2)
    state = data.pop("initial_state")
    u, dt, A, B, C = (x if name == "A" else x[0] for name, x in data.items())
    cu_seqlens = torch.tensor([0, 66])
    rest = (A.T, B, C, state.transpose(1, 2), cu_seqlens, None, False, backend)
    _, _, checkpoints = scan(u, dt, *rest)
    halves = {name: x if name == "A" else x[:, :64] for name, x in data.items()}
    _, wanted = call(**halves, initial_state=state, backend="reference")
    assert relative_error(checkpoints.transpose(1, 2), wanted) < 1e-6


@pytest.mark.parametrize("backend", ALL)
def test_parts_of_one_projection_give_the_same_as_copies(backend):
    data = tensors(L=3)
    joined = torch.cat([data["B"], data["u"], data["C"], data["dt"]], dim=-1)
    B, u, C, dt = joined.split([3, 5, 3, 5], dim=-1)
    wanted = outcome(call, data, backend)
    got = call(u, dt, data["A"].T.contiguous().T, B, C, initial_state=data["initial_state"])
    assert relative_error(got[0], wanted["output 0"]) < 1e-6


def test_gradcheck_of_the_definition():
    data = tensors(B=1, L=4, D=2, S=2, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in data.values()]
    reset = torch.tensor([[False, False, True, False]])

    def definition(*inputs):
        y, (final,) = selective_scan_reference(*inputs, reset)
        return y, final

    assert torch.autograd.gradcheck(definition, inputs)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads, monkeypatch):
    from recsys.kernels import compiled

    monkeypatch.setattr(compiled, "SERIAL_BYTES", 0)
    data = tensors(B=5, L=70, D=9)
    alone = outcome(call, data, "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    together = outcome(call, data, "cpu")
    torch.set_num_threads(before)
    assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_float32_carries_a_sum_of_small_bf16_numbers():
    ones = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    y, final = call(ones, ones, torch.zeros(1, 1), ones, ones)
    assert float(final) == 1000.0  # in bf16, 256 + 1 is 256
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("backend", FAST)
def test_a_second_derivative_is_refused(backend):
    data = {name: x.requires_grad_() for name, x in tensors(L=3).items()}
    y, _ = call(**data, backend=backend)
    (grad,) = torch.autograd.grad(y.square().sum(), data["u"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", FAST)
def test_compiled_models_keep_one_graph(backend):
    data = tensors(L=70)

    def step(u, dt, A, B, C, state):
        y, final = call(u * 2, dt, A, B, C, D=A[:, 0], z=u, initial_state=state, backend=backend)
        return y.sum() + final.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_() for x in data.values()]
    wanted = torch.autograd.grad(step(*inputs), inputs)
    got = torch.autograd.grad(compiled(*inputs), inputs)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_block_that_names_a_backend_runs_it():
    data = {name: x.requires_grad_() for name, x in tensors(L=3).items()}
    with use_backend("reference"):
        y, _ = call(**data)
    (grad,) = torch.autograd.grad(y.square().sum(), data["u"], create_graph=True)
    assert grad.requires_grad  # which only the definition's is


def test_what_triton_cannot_do_is_said():
    u, dt, A, B, C, _ = tensors(L=2, S=65).values()
    assert "at most 64 states a channel, got 65" in obstacles(u, dt, A, B, C)["triton"]
    with pytest.raises(InputError, match="at most 64 states"):
        call(u, dt, A, B, C, backend="triton")
    with pytest.raises(InputError, match="float64"):
        call(*list(tensors(L=2, dtype=torch.float64).values())[:5], backend="triton")
    u, dt, A, B, C, _ = tensors(L=2, S=64).values()
    assert not obstacles(u, dt, A, B, C)
    assert explain("selective_scan", u, dt, A, B, C).backend == "cpu"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": torch.ones(2, 37)}, "u must have shape"),
        ({"dt": torch.ones(2, 37, 1)}, "dt must have shape"),
        ({"A": -torch.ones(4, 3)}, "A must have shape"),
        ({"A": -torch.ones(5)}, "A must have shape"),
        ({"B": torch.ones(2, 37, 4)}, "B must have shape"),
        ({"C": torch.ones(2, 36, 3)}, "C must have shape"),
        ({"D": torch.ones(4)}, "D must have shape"),
        ({"z": torch.ones(2, 37, 4)}, "z must have shape"),
        ({"initial_state": torch.ones(2, 3, 5)}, "initial_state must have shape"),
        ({"A": -torch.ones(5, 3, dtype=torch.complex64)}, "A must be real floating"),
        ({"u": torch.ones(2, 37, 5, dtype=torch.int64)}, "u must be real floating"),
        ({"reset": torch.zeros(2, 36, dtype=torch.bool)}, "reset must begin with sizes"),
        ({"reset": torch.zeros(2, 37)}, "reset must be bool"),
        ({"z": torch.ones(2, 37, 5, device="meta")}, "different devices"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        call(**(tensors() | changes))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("bounds", [[0, 3, 2, 4], [1, 4], [0, 5], [0, -1, 4]])
def test_sequences_outside_the_tensor_are_refused(bounds, backend):
    data = packed(4, len(bounds) - 1)
    with pytest.raises(InputError, match="cu_seqlens"):
        call(**data, cu_seqlens=torch.tensor(bounds), backend=backend)
