"""The choice of a backend: argument, block, environment, device; what is missing is said."""

import threading
import warnings

import numpy as np
import pytest
import torch

from recsys.errors import InputError
from recsys.kernels import (
    KernelWarning,
    available_backends,
    backends,
    compiled,
    explain,
    linear_cross_entropy,
    linear_scan,
    use_backend,
)
from recsys.kernels.backends import OPS, choose
from recsys.kernels.survey import survey

ROW = torch.ones(1, 3, 2)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def installed(monkeypatch):
    """Say which of numba and triton are installed, with no warning given yet."""

    def say(*packages):
        monkeypatch.setattr(backends, "_installed", lambda package: package in packages)

    monkeypatch.setattr(backends, "_warned", set())
    monkeypatch.delenv("RECSYS_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return say


def test_the_device_decides_where_nobody_asks(installed):
    installed("numba", "triton")
    assert choose("linear_scan", CPU, "", {}).backend == "cpu"
    assert choose("linear_scan", CUDA, "", {}).backend == "triton"
    assert choose("linear_scan", torch.device("mps"), "", {}).backend == "torch"


def test_argument_goes_before_block_before_environment_before_device(installed, monkeypatch):
    installed("numba", "triton")
    assert explain("linear_scan", ROW, ROW).backend == "cpu"
    monkeypatch.setenv("RECSYS_KERNELS", "torch")
    assert explain("linear_scan", ROW, ROW).backend == "torch"
    with use_backend("reference"):
        assert explain("linear_scan", ROW, ROW).backend == "reference"
        with use_backend("cpu"):
            assert explain("linear_scan", ROW, ROW).backend == "cpu"
        assert explain("linear_scan", ROW, ROW, backend="torch").backend == "torch"
    assert explain("linear_scan", ROW, ROW) == backends.Choice("linear_scan", "torch", "asked for")


def test_a_block_does_not_reach_into_other_threads(installed):
    installed("numba", "triton")
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(
            target=lambda: seen.append(explain("linear_scan", ROW, ROW).backend)
        )
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_without_numba_the_cpu_runs_torch_steps_and_warns_once(installed):
    installed("triton")
    with pytest.warns(KernelWarning, match="numba is not installed"):
        y = linear_scan(ROW, ROW)
    assert y[0, :, 0].tolist() == [1, 2, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_scan(ROW, ROW)
        linear_scan(ROW, ROW, backend="cpu")  # asked for by name: no warning, but explained
    choice = explain("linear_scan", ROW, ROW, backend="cpu")
    assert (choice.backend, choice.reason) == (
        "torch",
        "cpu asked for, but numba is not installed",
    )


def test_cuda_without_triton_runs_torch_steps_and_warns_once(installed):
    installed("numba")
    with pytest.warns(KernelWarning, match="triton is not installed"):
        choice = choose("linear_scan", CUDA, "", {})
    assert (choice.backend, choice.reason) == ("torch", "triton is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose("linear_scan", CUDA, "", {})


def test_what_a_kernel_cannot_do_runs_torch_steps_and_is_explained_without_a_warning(installed):
    installed("numba", "triton")
    obstacle = {"triton": "the Triton kernels do not compute in float64"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choice = choose("linear_scan", CUDA, "", obstacle)
    assert (choice.backend, choice.reason) == ("torch", obstacle["triton"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [("triton", "the tensors are on cpu"), ("cuda", "unknown backend 'cuda'")],
)
def test_a_backend_asked_for_that_cannot_run_is_an_error(asked, message, installed):
    installed("numba", "triton")
    with pytest.raises(InputError, match=message):
        linear_scan(ROW, ROW, backend=asked)
    with pytest.raises(InputError, match=message), use_backend(asked):
        linear_scan(ROW, ROW)


def test_a_misspelt_environment_names_itself_and_the_nearest(installed, monkeypatch):
    installed("numba", "triton")
    monkeypatch.setenv("RECSYS_KERNELS", "tritn")
    with pytest.raises(InputError, match=r"RECSYS_KERNELS.*did you mean 'triton'"):
        linear_scan(ROW, ROW)


def test_a_compiled_function_refuses_a_definition_asked_for_around_it():
    compiled_scan = torch.compile(lambda a: linear_scan(a, a), backend="eager", fullgraph=True)
    with use_backend("reference"), pytest.raises(InputError, match="takes backend='reference'"):
        compiled_scan(ROW)


def test_an_unknown_operation_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'linear_scan'"):
        explain("linear_scam", ROW)


def test_tensors_of_two_devices_are_refused():
    with pytest.raises(InputError, match="different devices"):
        linear_scan(ROW, ROW.to("meta"))


def test_available_backends_leave_out_what_a_dtype_rules_out(installed):
    installed("numba", "triton")
    for op in OPS:
        assert available_backends(op, "cpu", torch.float32) == ["reference", "cpu", "torch"]
        assert available_backends(op, "cuda", torch.float32) == ["reference", "torch", "triton"]
        assert available_backends(op, "cuda", torch.float64) == ["reference", "torch"]


def test_the_survey_names_every_operation_of_every_device(installed):
    installed("numba", "triton")
    result = survey()
    (cpu,) = [device for device in result["devices"] if device["device"] == "cpu"]
    assert [row["op"] for row in cpu["ops"]] == list(OPS)
    assert all(row["backend"] == "cpu" and row["reason"] for row in cpu["ops"])


def test_the_loss_needs_no_numba(installed):
    installed()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_cross_entropy(torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 1]))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_sequence_goes_to_exactly_one_thread(threads, monkeypatch):
    monkeypatch.setattr(compiled, "SERIAL_BYTES", 0)
    torch.set_num_threads(threads)
    cu_seqlens = np.array([0, 0, 5, 6, 6, 100, 103, 103])
    seen = np.zeros(7)

    def mark(seen, cu_seqlens, first, last):
        seen[first:last] += 1

    compiled.over_sequences(mark, seen, cu_seqlens=cu_seqlens)
    assert seen.tolist() == [1] * 7


def test_callers_in_many_threads_get_their_own_results(monkeypatch):
    monkeypatch.setattr(compiled, "SERIAL_BYTES", 0)
    torch.set_num_threads(2)
    b = torch.randn(8, 4, 40, 3)
    wanted = [linear_scan(b[i], b[i], backend="reference") for i in range(8)]
    results = [None] * 8

    def work(i):
        for _ in range(20):
            results[i] = linear_scan(b[i], b[i], backend="cpu")

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for got, want in zip(results, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_exp_sigmoid_and_tanh_of_float32_are_right_to_a_rounding_and_pass_nan_on():
    @compiled.kernel
    def apply(x, e, s, t):
        for i in range(len(x)):
            e[i], s[i], t[i] = compiled.exp(x[i]), compiled.sigmoid(x[i]), compiled.tanh(x[i])

    x = np.append(np.linspace(-87, 88, 9999), [1e-3, 0, np.nan, -np.inf, np.inf])
    x = x.astype(np.float32)
    e, s, t = (np.empty_like(x) for _ in range(3))
    apply(x, e, s, t)
    exact = np.exp(x.astype(np.float64))
    exact[-2] = 1e-300  # of minus infinity
    assert np.abs(e / exact - 1)[:-3].max() < 2e-7
    assert np.abs(s - 1 / (1 + 1 / exact))[:-3].max() < 2e-7
    wanted = np.tanh(x.astype(np.float64))
    assert (np.abs(t - wanted) <= 4e-7 * np.abs(wanted))[:-3].all()
    assert np.isnan([e[-3], s[-3], t[-3]]).all()
    assert e[-2] < 2e-38
    assert s[-2:].tolist() == [pytest.approx(0, abs=1e-37), 1]
    assert t[-2:].tolist() == pytest.approx([-1, 1], rel=4e-7)
    assert exact[-4] == e[-4] == 1
