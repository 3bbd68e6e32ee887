"""linear_cross_entropy against its definition in float64, against torch's, and in little memory."""

import pytest
import torch
import torch.nn.functional as F

from recsys.errors import InputError
from recsys.kernels import linear_cross_entropy
from recsys.kernels.linear_cross_entropy import chunked
from recsys.kernels.testing import assert_matches_reference, outcome, relative_error

ALL = ["torch", "triton"]


def problem(rows=50, items=33, dim=5, scale=1.0, dtype=torch.float64, seed=0):
    """(x, weight, bias, target, row weights)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    target = torch.randint(items, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator, dtype=torch.float64).to(dtype)
    return normal(rows, dim) * scale, normal(items, dim), normal(items), target, weights


def call_with(target, **options):
    """A call of the form that assert_matches_reference wants."""

    def call(x, weight, bias=None, row_weight=None, backend=None):
        result = linear_cross_entropy(
            x, weight, target, bias=bias, row_weight=row_weight, backend=backend, **options
        )
        return result if isinstance(result, tuple) else (result,)

    return call


def test_the_definition_is_torchs_cross_entropy():
    x, weight, bias, target, _ = problem()
    target[::7] = -100
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "sum"}, {"reduction": "none"}):
        ours = linear_cross_entropy(x, weight, target, bias=bias, backend="reference", **options)
        torch.testing.assert_close(
            ours, F.cross_entropy(F.linear(x, weight, bias), target, **options)
        )


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("tiles", [False, True], ids=["rows", "tiles"])
@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"temperature": 0.3}, {"softcap": 2.0, "label_smoothing": 0.2}],
    ids=str,
)
def test_value_and_gradients_match_the_definition(
    options, reduction, return_lse, tiles, backend, monkeypatch
):
    monkeypatch.setattr(chunked, "TILE", (16, 16))
    monkeypatch.setattr(chunked, "MIN_ROWS", 16)
    monkeypatch.setattr(chunked, "BUFFER_BYTES", 0)
    x, weight, bias, target, row_weight = problem(dtype=torch.float32)
    target[::7] = -100
    budget = 100 if tiles else 1 << 20
    call = call_with(
        target, reduction=reduction, return_lse=return_lse, memory_budget=budget, **options
    )
    assert_matches_reference(
        call, {"x": x, "weight": weight, "bias": bias, "row_weight": row_weight}, backend
    )


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("tiles", [False, True], ids=["rows", "tiles"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("rows", "items", "dim"), [(1, 1, 1), (1, 7, 3), (63, 100, 5), (130, 33, 17)]
)
def test_fixed_row_weights_match_the_definition(
    rows, items, dim, smoothing, tiles, backend, monkeypatch
):
    """Weights without a gradient of their own: gradients are taken in the forward pass."""
    monkeypatch.setattr(chunked, "TILE", (16, 16))
    monkeypatch.setattr(chunked, "MIN_ROWS", 40)
    monkeypatch.setattr(chunked, "BUFFER_BYTES", 0)
    x, weight, bias, target, row_weight = problem(rows, items, dim, dtype=torch.float32)

    def call(x, weight, bias, backend):
        loss = linear_cross_entropy(
            x,
            weight,
            target,
            bias=bias,
            row_weight=row_weight.to(x.dtype),
            label_smoothing=smoothing,
            memory_budget=100 if tiles else 1 << 20,
            backend=backend,
        )
        return (loss,)

    assert_matches_reference(call, {"x": x, "weight": weight, "bias": bias}, backend)


def test_float64_is_exact_to_its_rounding():
    x, weight, bias, target, _ = problem(257, 40, 16)
    assert_matches_reference(call_with(target), {"x": x, "weight": weight, "bias": bias}, "torch")


@pytest.mark.parametrize("backend", ALL)
@pytest.mark.parametrize("tiles", [False, True], ids=["rows", "tiles"])
def test_scores_of_a_hundred_lose_no_more_than_the_definition(tiles, backend, monkeypatch):
    monkeypatch.setattr(chunked, "TILE", (16, 64))
    x, weight, _, target, _ = problem(100, 300, 8, scale=30.0, dtype=torch.float32)
    call = call_with(target, memory_budget=100 if tiles else 1 << 20)
    assert_matches_reference(call, {"x": x, "weight": weight}, backend)


@pytest.mark.parametrize("backend", ALL)
def test_a_target_far_below_the_best_item_has_a_finite_loss(backend):
    x, table = torch.tensor([[1.0]]), torch.tensor([[500.0], [0.0]])
    assert float(linear_cross_entropy(x, table, torch.tensor([1]), backend=backend)) == 500.0


@pytest.mark.parametrize("tiles", [False, True], ids=["rows", "tiles"])
@pytest.mark.parametrize("inputs", ["bf16 inputs", "bf16 products"])
def test_bf16_products_keep_a_float32_loss(inputs, tiles, monkeypatch):
    monkeypatch.setattr(chunked, "TILE", (64, 512))
    x, table, _, target, _ = problem(1600, 4000, 16, 0.3, dtype=torch.float32)
    exact = outcome(call_with(target), {"x": x.double(), "weight": table.double()}, "reference")
    given = {"x": x, "weight": table}
    if inputs == "bf16 inputs":
        given = {name: part.bfloat16() for name, part in given.items()}
    budget = 100 if tiles else 1 << 26
    call = call_with(target, compute_dtype=torch.bfloat16, memory_budget=budget)
    ours = outcome(call, given, "torch")
    assert ours["output 0"].dtype == torch.float32
    assert relative_error(ours["output 0"], exact["output 0"]) < 1e-4
    assert relative_error(ours["gradient of x"], exact["gradient of x"]) < 2e-2
    assert relative_error(ours["gradient of weight"], exact["gradient of weight"]) < 2e-2


@pytest.mark.parametrize("backend", ["reference", *ALL])
def test_rows_that_are_ignored_or_weigh_nothing_change_nothing(backend):
    x, weight, _, target, row_weight = problem(20, 11, 4, dtype=torch.float32)
    part = outcome(call_with(target[:7]), {"x": x[:7], "weight": weight}, backend)
    ignored = target.clone()
    ignored[7:] = -1
    whole = outcome(call_with(ignored, ignore_index=-1), {"x": x, "weight": weight}, backend)
    torch.testing.assert_close(whole["output 0"], part["output 0"])
    torch.testing.assert_close(whole["gradient of weight"], part["gradient of weight"])
    assert not whole["gradient of x"][7:].any()
    row_weight = torch.ones(20)
    row_weight[7:] = 0
    loss = linear_cross_entropy(x, weight, target, row_weight=row_weight, backend=backend)
    torch.testing.assert_close(loss, part["output 0"])


def test_where_every_row_is_ignored_the_mean_is_nan_as_torch_has_it():
    x, weight, _, target, _ = problem(3, 11, 4)
    assert linear_cross_entropy(x, weight, torch.full_like(target, -100)).isnan()
    assert float(linear_cross_entropy(x, weight, target.fill_(-100), reduction="sum")) == 0


def test_of_no_rows_the_mean_is_nan_as_torch_has_it():
    x, weight, _, target, _ = problem(0, 11, 4)
    for learns in (False, True):
        assert linear_cross_entropy(x.requires_grad_(learns), weight, target).isnan()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
@pytest.mark.parametrize("backend", ALL)
def test_items_that_never_come_change_nothing_however_many_come_first(backend):
    x, weight, bias, target, _ = problem(rows=5, items=2100, dtype=torch.float32)
    bias[:2060] = -torch.inf
    target = target.clamp_min(2060)
    tiles = call_with(target, memory_budget=1 << 12)
    inputs = {"x": x, "weight": weight, "bias": bias}
    assert_matches_reference(tiles, inputs, backend)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's numpy
@pytest.mark.parametrize("backend", ALL)
def test_nan_in_is_nan_out(backend):
    x, weight, _, target, _ = problem(dtype=torch.float32)
    x[3, 2] = torch.nan
    loss_N = linear_cross_entropy(x, weight, target, reduction="none", backend=backend)
    assert loss_N.isnan().nonzero().flatten().tolist() == [3]
    x.requires_grad_()
    assert linear_cross_entropy(x, weight, target, backend=backend).isnan()


@pytest.mark.parametrize("budget", [256 << 20, 1 << 12], ids=["rows", "tiles"])
def test_an_autocast_around_it_rounds_nothing(budget):
    x, weight, bias, target, _ = problem(items=2100, dtype=torch.float32)
    inputs = {"x": x, "weight": weight, "bias": bias}
    for reduction in ("mean", "none"):
        one = call_with(target, memory_budget=budget, reduction=reduction)
        wanted = outcome(one, inputs, "torch")
        with torch.autocast("cpu", torch.bfloat16):
            got = outcome(one, inputs, "torch")
        for name, one_of in wanted.items():
            assert torch.equal(got[name], one_of), (reduction, name)


def test_losses_without_gradient_equal_those_with():
    x, weight, bias, target, _ = problem(dtype=torch.float32)
    with torch.no_grad():
        alone = linear_cross_entropy(x, weight, target, bias=bias)
    learning = linear_cross_entropy(x.requires_grad_(), weight, target, bias=bias)
    torch.testing.assert_close(alone, learning.detach())


def test_chunks_have_128_rows_or_become_tiles_whatever_the_catalogue():
    def blocks(items, dtype=torch.float32, budget=256 << 20):
        x, table = torch.empty(6400, 1, dtype=dtype), torch.empty(1, 1, dtype=dtype)
        return chunked.Problem(
            x, table.expand(items, 1), None, torch.zeros(6400), 0.0, 0.0, budget
        ).blocks()

    assert blocks(12_000) == (131, 12_000)
    assert blocks(100_000) == (128, 100_000)
    assert blocks(1_000_000) == chunked.TILE
    assert blocks(1_000_000, torch.bfloat16) == (128, 1_000_000)
    assert blocks(12_000, budget=1 << 20) == chunked.TILE


def test_a_million_items_take_the_memory_of_a_tile():
    """The logits of these 64 rows would be 256 MB."""
    x, table = torch.randn(64, 2), torch.randn(1_000_000, 2)
    tiles = chunked.Problem(x, table, None, torch.zeros(64, dtype=torch.long), 0, 0, 1 << 20)
    largest = max(len(buffer.flatten()) for _, _, buffer in chunked._blocks(tiles))
    assert largest * 4 <= 4 << 20


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_models_keep_one_graph(reduction):
    x, weight, bias, target, _ = problem(dtype=torch.float32)

    def step(x, weight, bias):
        loss = linear_cross_entropy(x * 2, weight, target, bias=bias, reduction=reduction)
        return loss.sum()

    inputs = [part.requires_grad_() for part in (x, weight, bias)]
    wanted = torch.autograd.grad(step(*inputs), inputs)
    got = torch.autograd.grad(
        torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs), inputs
    )
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused(reduction):
    x, weight, _, target, _ = problem(dtype=torch.float32)
    loss = linear_cross_entropy(x.requires_grad_(), weight, target, reduction=reduction)
    (grad,) = torch.autograd.grad(loss.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.ones(33, 4)}, "must share D"),
        ({"weight": torch.ones(0, 5)}, "V > 0"),
        ({"target": torch.zeros(49, dtype=torch.long)}, "target must have shape"),
        ({"bias": torch.ones(3)}, "bias must have shape"),
        ({"row_weight": torch.ones(3)}, "row_weight must have shape"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"temperature": 0.0}, "temperature"),
        ({"softcap": -1.0}, "softcap"),
        ({"reduction": "max"}, "reduction must be"),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes, message):
    x, weight, _, target, _ = problem(dtype=torch.float32)
    with pytest.raises(InputError, match=message):
        linear_cross_entropy(**({"x": x, "weight": weight, "target": target} | changes))


def test_a_target_outside_the_catalogue_is_an_error():
    x, weight, _, target, _ = problem(dtype=torch.float32)
    target[3] = 33
    for inputs in (x, x.clone().requires_grad_()):
        with pytest.raises(InputError, match="target 33 is outside the 33 rows"):
            linear_cross_entropy(inputs, weight, target)
