"""Kernels run on poisoned memory; Triton kernels run interpreted where there is no GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from recsys.kernels.backends import OPS

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which no test has done yet


@pytest.fixture(autouse=True)
def _triton_where_it_is_installed(request):
    """Tests with backend="triton" are skipped where Triton does not exist (macOS, Windows)."""
    callspec = getattr(request.node, "callspec", None)
    asked = callspec.params.get("backend") if callspec else None
    if (asked == "triton" or "triton" in request.node.name) and not importlib.util.find_spec(
        "triton"
    ):
        pytest.skip("triton is not installed")


@pytest.fixture(autouse=True)
def _nan_in_fresh_memory():
    """torch.empty holds NaN, so that a number which no kernel wrote does not pass for one."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


PREPARED = set()
"""Modules whose functions have seen the language that the interpreter lends them."""


@pytest.fixture(autouse=True)
def _triton_is_prepared_once_a_module(monkeypatch):
    """The interpreter goes through all of triton.language for each function that a kernel calls,
    and only the first call from a module finds work: it is most of the time of these tests."""
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if not interpreter:
        return

    def call(function, *arguments, **named):
        if function.fn.__module__ not in PREPARED:
            interpreter._patch_lang(function.fn)
            PREPARED.add(function.fn.__module__)
        return function.rewrite()(*arguments, **named)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


def pytest_collection_modifyitems(items):
    """What is compiled ahead of time is looked at last, when it is ready."""
    items.sort(key=lambda item: "test_ahead_of_time" in item.nodeid)


def pytest_collection_finish(session):
    """Begin to compile as soon as it is known that somebody will ask: beside the other tests."""
    if any("test_ahead_of_time" in item.nodeid for item in session.items):
        pool = ThreadPoolExecutor(1)
        session.config.stash[COMPILING] = {op: pool.submit(_compile, op) for op in OPS}


COMPILING = pytest.StashKey[dict[str, Future]]()


def _compile(op):
    script = Path(__file__).with_name("ahead_of_time.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, str(script), op],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )


@pytest.fixture
def ahead_of_time(request):
    """What compiling an operation's kernels printed, a record for each kernel and architecture."""

    def wait(op):
        done = request.config.stash[COMPILING][op].result()
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return wait
