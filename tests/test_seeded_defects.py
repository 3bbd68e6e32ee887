"""The suite catches the mistakes that are made in this field: each is put in, and must be found."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Defect:
    """One mistake: `right` in `file` becomes `wrong`; `caught_by` are the tests that must fail."""

    file: str
    right: str
    wrong: str
    tests: str
    """What pytest is given: a file, and words that choose among its tests."""
    words: str
    caught_by: tuple[str, ...]


CONTRACT = "tests/models/test_contract.py"
DEFECTS = {
    "causal mask removed": Defect(
        "recsys/layers/attention.py",
        "is_causal=True",
        "is_causal=False",
        CONTRACT,
        "sasrec",
        ("test_no_query_sees_its_own_target", "test_no_position_sees_what_comes_behind_it"),
    ),
    "query reads the last column, not the last item": Defect(
        "recsys/models/base.py",
        "self.encode(batch)[rows_B, batch.lengths_B - 1]",
        "self.encode(batch)[rows_B, -1]",
        CONTRACT,
        "sasrec or gru4rec",
        ("test_padding_does_not_change_the_query",),
    ),
    "scan ignores its initial state": Defect(
        "recsys/kernels/linear_scan/__init__.py",
        "    times = times_of(b, cu_seqlens)\n",
        "    initial_state = None\n    times = times_of(b, cu_seqlens)\n",
        "tests/kernels/test_linear_scan.py",
        "",
        ("test_",),
    ),
    "targets off by one": Defect(
        "recsys/models/base.py",
        "batch.items_BT[:, 1:][real_BT]",
        "batch.items_BT[:, :-1][real_BT]",
        CONTRACT,
        "gru4rec",
        ("test_no_query_sees_its_own_target", "test_a_model_learns_what_follows_what"),
    ),
    "BERT4Rec does not hide masked items": Defect(
        "recsys/models/bert4rec.py",
        "if hidden_BT is not None:",
        "if False:",
        CONTRACT,
        "bert4rec",
        ("test_no_query_sees_its_own_target", "test_a_model_learns_what_follows_what"),
    ),
    "a kernel imports a model": Defect(
        "recsys/kernels/linear_scan/reference.py",
        "from torch import Tensor\n",
        "from torch import Tensor\n\nfrom recsys.models.base import Pairs\n",
        "tests/test_architecture.py",
        "",
        ("test_",),
    ),
}


def seeded(folder: Path, defect: Defect | None) -> Path:
    """A copy of the package and its tests with the defect in it."""
    for part in ("recsys", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "CONTRIBUTING.md", "README.md"):
        shutil.copy(ROOT / part, folder / part)
    if defect is not None:
        file = folder / defect.file
        text = file.read_text(encoding="utf-8")
        assert text.count(defect.right) == 1
        file.write_text(text.replace(defect.right, defect.wrong), encoding="utf-8")
    return folder


def failures(folder: Path, defect: Defect) -> list[str]:
    """The names of the tests that fail there."""
    command = [sys.executable, "-m", "pytest", defect.tests, "-rf", "--tb=no"]
    command += ["-k", defect.words] if defect.words else []
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    assert bool(lines) == bool(done.returncode)
    return [line.partition("::")[2] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFECTS)
def test_the_suite_catches_a_seeded_defect_and_nothing_without_it(name: str, tmp_path: Path):
    defect = DEFECTS[name]
    assert failures(seeded(tmp_path / "whole", None), defect) == []
    found = failures(seeded(tmp_path / "seeded", defect), defect)
    for test in defect.caught_by:
        assert any(line.startswith(test) for line in found), found
