"""rnn_scan: every backend against the definition in float64, Newton's method against the walk."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import InputError, WorkError
from recsys.kernels import use_backend
from recsys.kernels.backends import choose
from recsys.kernels.rnn_scan import (
    GRU,
    LSTM,
    Cell,
    newton,
    obstacles,
    rnn_scan,
    rnn_scan_reference,
    rnn_scan_step,
)
from recsys.kernels.rnn_scan.cells import jacobian
from recsys.kernels.testing import assert_matches_reference, outcome, relative_error

FAST = ["cpu", "torch"]
ALL = [*FAST, "triton"]
CELLS = [GRU, LSTM]


class Elman(Cell):
    """h' = tanh(a h + u)."""

    num_gates, num_states = 1, 1

    def step(self, state, u, params):
        return (torch.tanh(params[0] * state[0] + u[0]),)


class Oscillator(Cell):
    """Three states, of which the last does not hear of the first."""

    num_gates, num_states = 2, 3

    def step(self, state, u, params):
        x, v, m = state
        v_next = 0.8 * v - 0.4 * torch.sin(x) + params[0] * m + u[0]
        return x + 0.3 * v_next - 0.5 * x, v_next, torch.tanh(params[1] * m + u[1])


OWN_CELLS = [Elman(), Oscillator()]


def cell_name(value):
    return type(value).__name__ if isinstance(value, Cell) else None


def tensors(cell, B=2, L=37, D=5, dtype=torch.float32, weight=1.0, scale=1.0, seed=0):
    """u, recurrent weights of size `weight` at most and an initial state, of size `scale`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    G, S = cell.num_gates, cell.num_states
    u, state = scale * normal(B, L, G, D), scale * normal(B, S, D)
    params = weight * (2 * torch.rand(G, D, generator=generator, dtype=torch.float64) - 1)
    states = torch.promote_types(dtype, torch.float32)
    return {"u": u.to(dtype), "params": params.to(dtype), "initial_state": state.to(states)}


def with_options(cell, **options):
    def call(u, params, initial_state=None, reset=None, backend=None):
        return rnn_scan(
            cell,
            u,
            params,
            initial_state=initial_state,
            reset=reset,
            return_final_state=True,
            backend=backend,
            **options,
        )

    return call


def packed(cell, lengths=(5, 0, 1, 9, 11), **options):
    """Sequences of any lengths, with a reset now and then."""
    total = sum(lengths)
    data = tensors(cell, B=1, L=total, D=3, **options)
    data["u"] = data["u"][0]
    data["initial_state"] = tensors(cell, B=len(lengths), D=3, **options)["initial_state"]
    data["reset"] = torch.arange(total) % 11 == 7
    return data, torch.tensor([0, *lengths]).cumsum(0)


# What the cells are.


def test_a_gru_without_recurrent_weights_is_an_average_with_given_weights():
    u = torch.randn(1, 40, 3, 4, dtype=torch.float64)
    z, new = u[0, :, 0].sigmoid(), u[0, :, 2].tanh()
    wanted = torch.stack(
        [
            sum(z[s] * new[s] * (1 - z[s + 1 : t + 1]).prod(0) for s in range(t + 1))
            for t in range(40)
        ]
    )
    y = rnn_scan(GRU, u, torch.zeros(3, 4, dtype=torch.float64))
    torch.testing.assert_close(y[0], wanted)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_a_gru_step_by_hand(backend):
    # h = 1: z = sigmoid(ln 3) = 3/4, r = sigmoid(-ln 3) = 1/4, c = tanh(atanh(1/2)) = 1/2.
    params = torch.tensor([[math.log(3)], [-math.log(3)], [4 * math.atanh(0.5)]])
    y = rnn_scan(
        GRU, torch.zeros(1, 1, 3, 1), params, initial_state=torch.ones(1, 1, 1), backend=backend
    )
    torch.testing.assert_close(y.item(), 0.25 * 1 + 0.75 * 0.5, rtol=1e-6, atol=0)


def test_the_gru_is_torchs_with_diagonal_matrices():
    data = tensors(GRU, dtype=torch.float64, L=20, D=3)
    theirs = torch.nn.GRU(9, 3, bias=False, batch_first=True, dtype=torch.float64)
    (u_z, u_r, u_c), (a_z, a_r, a_c) = data["u"].unbind(2), data["params"]
    with torch.no_grad():  # gates r, z, n, where their z weighs what is old
        theirs.weight_ih_l0.copy_(torch.eye(9))
        theirs.weight_hh_l0.copy_(torch.cat([a.diag() for a in (a_r, -a_z, a_c)]))
    inputs = torch.cat([u_r, -u_z, u_c], dim=-1)
    wanted, last = theirs(inputs, data["initial_state"].transpose(0, 1).contiguous())
    y, final = with_options(GRU)(**data)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(final[:, 0], last[0])


def test_the_lstm_is_torchs_with_diagonal_matrices():
    data = tensors(LSTM, dtype=torch.float64, L=20, D=3)
    theirs = torch.nn.LSTM(12, 3, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(torch.eye(12))
        theirs.weight_hh_l0.copy_(torch.cat([a.diag() for a in data["params"]]))
    h, c = data["initial_state"].transpose(0, 1).contiguous().split(1)
    wanted, (last_h, last_c) = theirs(data["u"].flatten(2), (h, c))
    y, final = with_options(LSTM)(**data)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(final, torch.stack([last_h[0], last_c[0]], dim=1))


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_the_cells_own_gradients_are_autograds(cell):
    data = tensors(cell, dtype=torch.float64)
    state = tuple(data["initial_state"].unbind(1))
    u, params = tuple(data["u"][:, 0].unbind(1)), tuple(data["params"].unbind(0))
    gradient = tuple(torch.randn_like(part) for part in state)
    ours = cell.vjp(state, u, params, gradient)
    autograds = Cell.vjp(cell, state, u, params, gradient)
    for one, other in zip(ours, autograds, strict=True):
        torch.testing.assert_close(one, other)


def test_a_jacobian_has_the_state_that_changes_first():
    one = torch.ones(2)
    J = jacobian(Oscillator(), (0 * one, one, one), (one, one), (7 * one, 0 * one))
    assert [[part[0].item() for part in row] for row in J] == [
        [pytest.approx(0.5 - 0.12), pytest.approx(0.24), pytest.approx(2.1)],
        [pytest.approx(-0.4), pytest.approx(0.8), 7.0],
        [0.0, 0.0, 0.0],
    ]


# Every backend against the definition.


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("L", [1, 2, 63, 64, 100])
def test_outputs_states_and_gradients_match_the_definition(L, dtype, cell):
    assert_matches_reference(with_options(cell), tensors(cell, L=L, dtype=dtype), *FAST)


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_thousand_steps_match_the_definition(dtype, cell):
    assert_matches_reference(with_options(cell), tensors(cell, L=1000, D=3, dtype=dtype), *FAST)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_float64_is_exact_to_its_rounding(cell, backend):
    data = tensors(cell, L=64, dtype=torch.float64)
    assert_matches_reference(with_options(cell), data, backend)


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("L", [1, 9])
def test_the_triton_kernels_match_the_definition(L, dtype, cell):
    data = tensors(cell, B=1, L=L, D=3, dtype=dtype)
    assert_matches_reference(with_options(cell), data, "triton")


@pytest.mark.parametrize("cell", OWN_CELLS, ids=cell_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_cell_of_ones_own_matches_the_definition(dtype, cell):
    data = tensors(cell, L=20, dtype=dtype)
    assert_matches_reference(with_options(cell), data, "torch")


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_packed_sequences_with_resets_match_the_definition(cell, reverse, backend):
    data, cu_seqlens = packed(cell)
    call = with_options(cell, cu_seqlens=cu_seqlens, reverse=reverse)
    assert_matches_reference(call, data, backend)


@pytest.mark.parametrize("cell", OWN_CELLS, ids=cell_name)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_cell_of_ones_own_walks_packed_sequences_with_resets(reverse, cell):
    data, cu_seqlens = packed(cell)
    call = with_options(cell, cu_seqlens=cu_seqlens, reverse=reverse)
    assert_matches_reference(call, data, "torch")


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of NumPy, for Triton
@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_tiny_and_saturated_states_match_the_definition(scale, cell, backend):
    data = tensors(cell, B=1, L=10, D=3, scale=scale)
    assert_matches_reference(with_options(cell), data, backend)


def test_the_kernels_tanh_is_exact_to_its_rounding_everywhere():
    # With z = 1 and h = 0 before, h' is tanh(u).
    x = torch.cat([10.0 ** torch.linspace(-30, 1.5, 4000), torch.linspace(0, 20, 4000)])
    u = torch.stack([torch.full_like(x, 88.0), torch.zeros_like(x), x])
    y = rnn_scan(GRU, u[None, None], torch.zeros_like(u), backend="cpu")[0, 0]
    wanted = x.double().tanh()
    assert float(((y - wanted).abs() / wanted.clamp(min=1e-300)).max()) <= 4e-7


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_packed_sequences_equal_one_call_for_each(cell, backend):
    data, cu_seqlens = packed(cell, lengths=(4, 0, 8))
    y, final = with_options(cell, cu_seqlens=cu_seqlens)(**data, backend=backend)
    for n, (start, end) in enumerate([(0, 4), (4, 4), (4, 12)]):
        one, last = with_options(cell)(
            data["u"][None, start:end],
            data["params"],
            data["initial_state"][n : n + 1],
            data["reset"][None, start:end],
            backend=backend,
        )
        assert torch.equal(y[start:end], one[0])
        assert torch.equal(final[n], last[0])


@pytest.mark.parametrize("backend", ["reference", *ALL])
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_reverse_equals_flip(cell, backend):
    data = tensors(cell, L=9, D=3)
    reset = torch.arange(9).expand(2, 9) == 3
    y, final = with_options(cell, reverse=True)(**data, reset=reset, backend=backend)
    data["u"] = data["u"].flip(1)
    flipped, last = with_options(cell)(**data, reset=reset.flip(1), backend=backend)
    assert torch.equal(y, flipped.flip(1))
    assert torch.equal(final, last)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_a_reset_begins_again_from_zero(cell, backend):
    data = tensors(cell, L=9, D=3)
    reset = torch.arange(9).expand(2, 9) == 4
    y, final = with_options(cell)(**data, reset=reset, backend=backend)
    again, last = with_options(cell)(data["u"][:, 4:], data["params"], backend=backend)
    assert torch.equal(y[:, 4:], again)
    assert torch.equal(final, last)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=0, max_size=5),
    reverse=st.booleans(),
    seed=st.integers(0, 99),
    backend=st.sampled_from(FAST),
    cell=st.sampled_from(CELLS),
)
def test_any_lengths_match_the_definition(lengths, reverse, seed, backend, cell):
    data, cu_seqlens = packed(cell, lengths, seed=seed)
    call = with_options(cell, cu_seqlens=cu_seqlens, reverse=reverse)
    if sum(lengths):
        assert_matches_reference(call, data, backend)
    else:
        y, final = call(**data, backend=backend)
        assert y.shape == (0, 3)
        assert torch.equal(final, data["initial_state"])


@pytest.mark.parametrize("backend", ["reference", *ALL])
@pytest.mark.parametrize("method", ["walk", "newton"])
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_no_steps_leave_the_state_and_pass_its_gradient(cell, method, backend):
    G, S = cell.num_gates, cell.num_states
    state = torch.randn(2, S, 3, requires_grad=True)
    params = torch.ones(G, 3, requires_grad=True)
    call = with_options(cell, method=method)
    y, final = call(torch.ones(2, 0, G, 3), params, state, backend=backend)
    assert y.shape == (2, 0, 3)
    assert torch.equal(final, state)
    final.sum().backward()
    assert torch.equal(state.grad, torch.ones(2, S, 3))
    assert params.grad is None or not params.grad.any()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_two_halves_with_a_carried_state_equal_the_whole(cell, backend):
    data = tensors(cell, L=40, D=3)
    call, u, params = with_options(cell), data["u"], data["params"]
    whole, final = call(**data, backend=backend)
    first, state = call(u[:, :13], params, data["initial_state"], backend=backend)
    second, last = call(u[:, 13:], params, state, backend=backend)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert torch.equal(last, final)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", [*CELLS, *OWN_CELLS], ids=cell_name)
def test_steps_equal_the_scan(cell, dtype):
    data = tensors(cell, L=30, dtype=dtype)
    reset = torch.arange(30).expand(2, 30) == 11
    y, final = with_options(cell)(**data, reset=reset)
    state = data["initial_state"]
    for t in range(30):
        y_t, state = rnn_scan_step(cell, data["u"][:, t], data["params"], state, reset=reset[:, t])
        assert y_t.dtype == y.dtype
        assert relative_error(y_t, y[:, t]) <= 8 * torch.finfo(dtype).eps
    assert relative_error(state, final) <= 1e-6


@pytest.mark.parametrize("cell", [*CELLS, *OWN_CELLS], ids=cell_name)
def test_gradcheck_of_the_definition(cell):
    data = tensors(cell, B=1, L=4, D=2, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in data.values()]

    def both(u, params, state):
        y, (final,) = rnn_scan_reference(cell, u, params, state)
        return y, final

    assert torch.autograd.gradcheck(both, inputs)


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_threads_change_nothing(cell, monkeypatch):
    from recsys.kernels import compiled

    monkeypatch.setattr(compiled, "SERIAL_BYTES", 0)
    data = tensors(cell, B=5, L=70, D=9)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(outcome(with_options(cell), data, "cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.parametrize("backend", ["reference", *ALL])
@pytest.mark.parametrize("method", ["walk", "newton"])
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_a_nan_comes_out_from_where_it_came_in(cell, method, backend):
    data = tensors(cell, B=1, L=6, D=3)
    data["u"][0, 2, 0, 1] = math.nan
    y, final = with_options(cell, method=method)(**data, backend=backend)
    assert y.isnan()[0].tolist() == [[False, t >= 2, False] for t in range(6)]
    assert final[:, 0].isnan().tolist() == [[False, True, False]]


def test_float32_carries_the_state_of_bf16_inputs():
    # z = 1/512 a step from 0 towards 1: in bf16, h would stand still at about 1/2.
    u = torch.zeros(1, 4000, 3, 1, dtype=torch.bfloat16)
    u[:, :, 0], u[:, :, 2] = -6.25, 8.0
    y, final = with_options(GRU)(u, torch.zeros(3, 1, dtype=torch.bfloat16))
    assert float(final) > 0.999
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(("cell", "backend"), [(GRU, "cpu"), (LSTM, "torch"), (Elman(), "torch")])
def test_a_second_derivative_is_refused(cell, backend):
    data = {name: x.requires_grad_() for name, x in tensors(cell, L=3).items()}
    y, _ = with_options(cell)(**data, backend=backend)
    (grad,) = torch.autograd.grad(y.square().sum(), data["u"], create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError), match=r"second derivative|twice"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("method", ["walk", "newton"])
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_compiled_models_keep_one_graph(cell, method, backend):
    data = tensors(cell, L=7)

    def step(u, params, state):
        y, final = rnn_scan(
            cell,
            u * 2,
            params.tanh(),
            initial_state=state,
            method=method,
            return_final_state=True,
            backend=backend,
        )
        return y.sum() + final.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_() for x in data.values()]
    wanted = torch.autograd.grad(step(*inputs), inputs)
    got = torch.autograd.grad(compiled(*inputs), inputs)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_block_that_names_a_backend_runs_it():
    data = {name: x.requires_grad_() for name, x in tensors(GRU, L=3).items()}
    with use_backend("reference"):
        y, _ = with_options(GRU)(**data)
    (grad,) = torch.autograd.grad(y.square().sum(), data["u"], create_graph=True)
    assert grad.requires_grad  # which only the definition's is


# Newton's method.


def diagonal(cell, weight, B=4, L=200, D=16):
    """u and a recurrent weight of one size in every channel: those that diverge from 2 on."""
    data = tensors(cell, B=B, L=L, D=D)
    data["params"] = torch.full_like(data["params"], weight)
    return data


def solution(cell, data, max_iter=8, tol=1e-5):
    B, L = data["u"].shape[:2]
    return newton.solve(
        cell,
        data["u"].flatten(0, 1),
        data["params"],
        data["initial_state"],
        torch.arange(B + 1) * L,
        None,
        False,
        max_iter,
        tol,
    )


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
@pytest.mark.parametrize(("weight", "most"), [(0.125, 4), (0.9, 5)])
def test_newton_converges_on_trained_weights_in_a_few_iterations(weight, most, cell):
    data = tensors(cell, B=4, L=200, D=16, weight=weight)
    states, iterations, residual = solution(cell, data)
    y = rnn_scan(cell, data["u"], data["params"], initial_state=data["initial_state"])
    assert 3 <= iterations <= most
    assert residual <= 1e-5
    torch.testing.assert_close(states[:, 0].view_as(y), y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", [*CELLS, *OWN_CELLS], ids=cell_name)
def test_newton_equals_the_walk_with_its_gradients(cell, reverse, backend):
    if cell in OWN_CELLS:
        backend = None
    data, cu_seqlens = packed(cell, lengths=(5, 0, 1, 30, 34))
    data = {name: x.double() if x.is_floating_point() else x for name, x in data.items()}
    options = {"cu_seqlens": cu_seqlens, "reverse": reverse}
    walked = outcome(with_options(cell, **options), data, backend)
    options |= {"method": "newton", "on_fail": "raise", "tol": 1e-9, "max_iter": 20}
    solved = outcome(with_options(cell, **options), data, backend)
    for name, wanted in walked.items():
        torch.testing.assert_close(solved[name], wanted, rtol=0, atol=1e-7)


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_newton_in_float32_equals_the_walk_to_1e_5(cell):
    data = tensors(cell, L=100, weight=0.9)
    walked = outcome(with_options(cell), data, "cpu")
    solved = outcome(with_options(cell, method="newton", on_fail="raise"), data, "cpu")
    for name, wanted in walked.items():
        assert relative_error(solved[name], wanted) <= 1e-5, name


@pytest.mark.parametrize(("cell", "weight"), [(GRU, 2.0), (GRU, -3.0), (GRU, 5.0), (LSTM, 5.0)])
def test_where_newton_diverges_the_walk_runs_instead(cell, weight):
    data = diagonal(cell, weight)
    assert solution(cell, data).iterations is None
    walked = outcome(with_options(cell), data, "cpu")
    solved = outcome(with_options(cell, method="newton"), data, "cpu")
    assert all(torch.equal(solved[name], walked[name]) for name in walked)


@pytest.mark.parametrize("weight", [2.0, -3.0, 5.0])
def test_where_newton_diverges_it_can_be_told_to_raise(weight):
    with pytest.raises(WorkError, match=r"within 8 iterations: residual \d"):
        with_options(GRU, method="newton", on_fail="raise")(**diagonal(GRU, weight))


@pytest.mark.parametrize("options", [{"max_iter": 1}, {"tol": 1e-12}])
def test_newton_cut_short_of_its_tolerance_is_no_solution(options):
    data = tensors(GRU, L=50)
    assert solution(GRU, data, **options).iterations is None
    assert torch.equal(
        rnn_scan(GRU, data["u"], data["params"], method="newton", **options),
        rnn_scan(GRU, data["u"], data["params"]),
    )


@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_newton_keeps_sequences_and_what_resets_part_from_each_other(cell):
    data = tensors(cell, B=1, L=120, D=16, weight=0.9)
    u, params, nothing = data["u"][0], data["params"], torch.zeros(3, cell.num_states, 16)

    def solved(u, bounds, reset=None):
        cu_seqlens = torch.tensor(bounds)
        state = nothing[: len(bounds) - 1]
        return newton.solve(cell, u, params, state, cu_seqlens, reset, False, 8, 1e-5)

    alone = [solved(part, [0, 40]) for part in u.split(40)]
    packed = solved(u, [0, 40, 80, 120])
    parted = solved(u, [0, 120], reset=torch.arange(120) % 40 == 0)
    for together in (packed, parted):
        assert together.iterations == max(part.iterations for part in alone)
        wanted = torch.cat([part.states_TSD for part in alone])
        torch.testing.assert_close(together.states_TSD, wanted, rtol=0, atol=1e-6)


def test_a_small_residual_alone_is_no_solution():
    # Each step adds 6e-6, so that even zeros leave a residual below the tolerance.
    u = torch.zeros(1, 1000, 3, 1)
    u[:, :, 0], u[:, :, 2] = -12.0, 8.0
    walked = rnn_scan(GRU, u, torch.zeros(3, 1))
    assert walked[0, -1] > 6e-3
    solved = rnn_scan(GRU, u, torch.zeros(3, 1), method="newton", on_fail="raise")
    torch.testing.assert_close(solved, walked, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", OWN_CELLS, ids=cell_name)
def test_a_cell_of_ones_own_runs_in_plain_torch_and_says_so(cell):
    data = tensors(cell)
    found = obstacles(cell, data["u"], data["params"])
    choice = choose("rnn_scan", torch.device("cpu"), "", found)
    assert choice.backend == "torch"
    assert choice.reason == f"no compiled kernel for this cell ({type(cell).__name__})"
    with pytest.raises(InputError, match="no compiled kernel for this cell"):
        with_options(cell)(**data, backend="cpu")


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": torch.ones(2, 37, 4, 5)}, r"u must have shape \(2, 37, 3, 'channels'\)"),
        ({"u": torch.ones(2, 37, 15)}, "u must have shape"),
        ({"u": torch.ones(2, 37, 3, 5, dtype=torch.int64)}, "u must be real"),
        ({"params": torch.ones(3, 4)}, "params must have shape"),
        ({"params": torch.ones(3, 5, dtype=torch.complex64)}, "params must be real"),
        ({"initial_state": torch.ones(2, 2, 5)}, "initial_state must have shape"),
        ({"reset": torch.zeros(2, 36, dtype=torch.bool)}, "reset must begin with sizes"),
        ({"reset": torch.zeros(2, 37)}, "reset must be bool"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        with_options(GRU)(**(tensors(GRU) | changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "newtn"}, "unknown method 'newtn'; did you mean 'newton'"),
        ({"on_fail": "ignore"}, "unknown on_fail 'ignore'"),
        ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ({"tol": 0.0}, "tol must be above 0"),
        ({"tol": math.nan}, "tol must be above 0"),
    ],
)
def test_options_that_do_not_exist_are_named(options, message):
    with pytest.raises(InputError, match=message):
        with_options(GRU, **options)(**tensors(GRU))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("method", ["walk", "newton"])
@pytest.mark.parametrize("bounds", [[0, 3, 2, 4], [1, 4], [0, 5], [0, -1, 4]])
def test_sequences_outside_the_tensor_are_refused(bounds, method, backend):
    call = with_options(GRU, cu_seqlens=torch.tensor(bounds), method=method)
    with pytest.raises(InputError, match="cu_seqlens"):
        call(torch.ones(4, 3, 2), torch.ones(3, 2), backend=backend)


def test_float64_has_no_triton_kernel():
    data = tensors(GRU, L=3, dtype=torch.float64)
    with pytest.raises(InputError, match="do not compute in float64"):
        with_options(GRU)(**data, backend="triton")
