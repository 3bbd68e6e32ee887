"""What may import what, what stays light to import, and what no file may do."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import recsys

ROOT = Path(recsys.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def order() -> list[list[str]]:
    """The line of the guide: a package imports only what stands to its right."""
    guide = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"`(cli → .*)`", guide)
    return [place.split(" | ") for place in line.split(" → ")]


RANK = {package: rank for rank, packages in enumerate(order()) for package in packages}
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
"""Modules whose readers run what a file tells them to."""


def package_of(file: Path) -> str:
    """`training` for recsys/training/trainer.py, `run` for recsys/run.py, `` for recsys itself."""
    return file.relative_to(ROOT).with_suffix("").parts[0].removeprefix("__init__")


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imported(module: ast.Module) -> Iterator[str]:
    """Dotted names of all that is imported anywhere in a file, `.` for a relative import."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{n.name}" for n in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "recsys":
            yield f"recsys.{node.attr}"  # `import recsys` reaches everything through its attributes


def packages_used(module: ast.Module) -> set[str]:
    """Packages of recsys that a file imports; what recsys itself offers stands for itself."""
    parts = [name.split(".") for name in imported(module)]
    inside = {part[1] for part in parts if part[0] == "recsys" and len(part) > 1}
    return inside - {"__version__"}


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


def loaded_by(statement: str) -> set[str]:
    """Modules in memory after a statement in a new process."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout))


def test_every_package_has_its_place_in_the_order():
    assert {package_of(file) for file in FILES} - {""} == RANK.keys()


@pytest.mark.parametrize("file", [f for f in FILES if package_of(f)], ids=named)
def test_a_package_imports_only_what_stands_to_its_right(file: Path):
    own = package_of(file)
    wrong = [
        used
        for used in sorted(packages_used(tree(file)) - {own})
        if RANK.get(used, -1) <= RANK[own]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "used"),
    [
        ("import recsys.run", {"run"}),
        ("from recsys.data.loader import collate", {"data"}),
        ("from recsys import checkpoint, __version__", {"checkpoint"}),
        ("def late():\n    from recsys.eval import tables", {"eval"}),
        ("import recsys\nrecsys.train(1)", {"train"}),
        ("import recsys\nprint(recsys.__version__)", set()),
        ("import torch.nn", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(line, used):
    assert packages_used(ast.parse(line)) == used


def test_imports_are_absolute():
    assert [named(f) for f in FILES if any(n.startswith(".") for n in imported(tree(f)))] == []


def test_no_file_but_a_kernel_is_longer_than_400_lines():
    lines = {named(f): len(f.read_text().splitlines()) for f in FILES if package_of(f) != "kernels"}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_faiss_is_imported_in_one_place():
    users = [named(f) for f in FILES if any(n.split(".")[0] == "faiss" for n in imported(tree(f)))]
    assert users == ["retrieval/faiss_index.py"]


@pytest.mark.parametrize("file", FILES, ids=named)
def test_no_file_is_read_that_could_run_code(file: Path):
    module = tree(file)
    calls = {ast.unparse(node.func) for node in ast.walk(module) if isinstance(node, ast.Call)}
    assert not calls & {"eval", "exec", "torch.load", "torch.save", "torch.jit.load"}
    assert not {name.split(".")[0] for name in imported(module)} & UNSAFE
    assert not {"torch.load", "torch.save"} & set(imported(module))
    keywords = {node.arg for node in ast.walk(module) if isinstance(node, ast.keyword)}
    assert "allow_pickle" not in keywords


def test_importing_recsys_imports_nothing_heavy():
    loaded = loaded_by("import recsys")
    assert "recsys" in loaded
    assert not loaded & {"torch", "numpy", "pandas", "pyarrow"}
    assert not [name for name in loaded if name.startswith("recsys.")]


def test_serving_imports_nothing_of_training():
    loaded = loaded_by("import recsys.retrieval, recsys.retrieval.stores")
    assert {"recsys.retrieval", "torch"} <= loaded
    heavy = {"pandas", "ibis", "duckdb", "transformers", "matplotlib", "accelerate", "faiss"}
    assert not loaded & (heavy | {"typer", "redis", "fastapi", "sqlglot"})
    assert not [name for name in loaded if name.startswith(("recsys.training", "recsys.eval"))]


def test_every_name_that_recsys_offers_is_there():
    assert set(recsys.__all__) <= set(dir(recsys))
    assert all(getattr(recsys, name).__name__.startswith(name) for name in recsys.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = recsys.nothing
