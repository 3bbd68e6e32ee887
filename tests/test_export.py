"""Exported models answer as the models themselves, in programs that know nothing of recsys."""

import copy
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch
from commands import contents, done, refused, sets
from safetensors.numpy import load_file
from toy_models import COUNTED, LEARNED, NUM_ITEMS, TINY, batch_of, tiny_config, toy_features

from recsys import export
from recsys.batch import Batch
from recsys.checkpoint import CONFIG, WEIGHTS, load_model, write_items, write_json, write_tensors
from recsys.config import to_dict
from recsys.errors import InputError, WorkError
from recsys.eval import tables
from recsys.export import export_run
from recsys.models.base import model_class, new_model

READS_TEXTS = ["recformer"]
QUICK = ["sasrec"]
"""Exported in every run of the tests; the others are slow."""
EXPORTED = [name for name in LEARNED if name not in READS_TEXTS]
HISTORIES = [[3, 1, 4, 1, 5, 9], [6, 5, 12], [5], [9, 7]]


def saved_run(run: Path, name: str, timed: bool = False, **settings: object) -> Path:
    kind = model_class(name).Config
    config = kind(**{**to_dict(tiny_config(name)), **settings})
    torch.manual_seed(0)
    features_VF = toy_features(name)
    if settings.get("item_encoder") == "text":
        features_VF = torch.randn(NUM_ITEMS + 1, 5)
    model = new_model(name, config, NUM_ITEMS, features_VF)
    for key, parameter in model.named_parameters():  # norms and biases that do something
        if timed or not key.endswith("time_bias"):
            parameter.data += 0.1 * torch.randn_like(parameter)
    write_json(
        run / CONFIG,
        {"model": {"name": name, **to_dict(config)}, "dataset": {"items": NUM_ITEMS}},
    )
    write_tensors(run / WEIGHTS, model.state_dict())
    write_items(run, pa.table({"item": [f"i{item}" for item in range(1, NUM_ITEMS + 1)]}))
    return run


def inputs(batch: Batch) -> dict[str, np.ndarray]:
    tensors = {"items": batch.items_BT, "lengths": batch.lengths_B, "times": batch.timestamps_BT}
    return {name: x.numpy() for name, x in tensors.items() if x is not None}


def answers(folder: Path, batch: Batch) -> np.ndarray:
    """Of the file that an export left."""
    facts = json.loads((folder / "export.json").read_text())
    file = folder / facts["file"]
    if facts["format"] == "onnx":
        return onnxruntime.InferenceSession(file).run(["query"], inputs(batch))[0]
    tensors = {name: torch.from_numpy(x) for name, x in inputs(batch).items()}
    return torch.export.load(file).module()(**tensors).numpy()


@torch.no_grad()
def check(run: Path, format: str, batches: list[Batch]) -> None:
    export_run(run, format)
    model, folder = load_model(run), run / f"export-{format}"
    for batch in batches:
        np.testing.assert_allclose(answers(folder, batch), model.query(batch), atol=1e-5)
    vectors = load_file(folder / "item_vectors.safetensors")["item_vectors"]
    np.testing.assert_array_equal(vectors, model.item_vectors())
    assert (folder / "items.parquet").read_bytes() == (run / "items.parquet").read_bytes()
    # Nor do the files name a place on this machine.
    for file in folder.iterdir():
        assert not re.search(rb"layers/|" + re.escape(bytes(run)), file.read_bytes())


def several() -> list[Batch]:
    """A batch with padding, histories of each length alone, and padding behind all of them."""
    return [batch_of(HISTORIES), *(batch_of([one]) for one in HISTORIES), batch_of([[5]], 3)]


def with_times(batch: Batch, seed: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    gaps_BT = (18 * torch.rand(batch.items_BT.shape, generator=random)).exp().long()
    return Batch(batch.items_BT, batch.lengths_B, gaps_BT.cumsum(1) * batch.real_BT)


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in EXPORTED],
)
def test_an_exported_model_answers_as_the_model(name, format, tmp_path: Path):
    check(saved_run(tmp_path, name), format, several())


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gru4rec", {"cell": "lstm", "hidden_dim": 12, "item_tables": "separate"}),
        ("pararnn_rec", {"cell": "lstm"}),
        ("mingru_rec", {"cell": "lstm"}),
        ("mamba_rec", {"mixer": "mamba2"}),
        ("hybrid_rec", {"mixers": "attention,lru,mingru,gru,lssl,mamba,mamba2,aaren"}),
        ("sasrec", {"item_encoder": "text"}),
        ("gru4rec", {"max_len": 1}),
        ("bert4rec", {"max_len": 1}),
        ("lru_rec", {"max_len": 2}),
    ],
)
def test_so_do_its_variants(name, settings, format, tmp_path: Path):
    run = saved_run(tmp_path, name, **settings)
    longest = int(settings.get("max_len", TINY["max_len"]))
    check(run, format, [batch_of([one[:longest] for one in HISTORIES]), batch_of([[5]])])


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "lru_rec", "lssl_rec", "mamba_rec"])
def test_long_histories_are_answered_as_by_the_model(name, format, tmp_path: Path):
    run = saved_run(tmp_path, name, max_len=200)
    batch = Batch(torch.randint(1, NUM_ITEMS + 1, (3, 200)), torch.tensor([200, 150, 1]))
    check(run, format, [batch])


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize(("name", "settings"), [("hstu_rec", {}), ("lssl_rec", {"time": "gaps"})])
def test_models_that_see_time_take_times(name, settings, format, tmp_path: Path):
    run = saved_run(tmp_path, name, timed=True, **settings)
    check(run, format, [with_times(batch, seed) for seed, batch in enumerate(several())])
    facts = json.loads((run / f"export-{format}" / "export.json").read_text())
    assert list(facts["inputs"]) == ["items", "lengths", "times"]


@pytest.mark.slow
def test_an_export_runs_where_recsys_is_not(tmp_path: Path):
    folder = tmp_path / "away"
    export_run(saved_run(tmp_path / "run", "sasrec"), "torch", folder)
    code = (
        "import sys, torch\n"
        "program = torch.export.load(sys.argv[1]).module()\n"
        "print(program(items=torch.tensor([[3, 1]]), lengths=torch.tensor([2])).shape)\n"
        "assert not [name for name in sys.modules if name.startswith('recsys')]\n"
    )
    command = [sys.executable, "-I", "-c", code, str(folder / "model.pt2")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout == f"torch.Size([1, {TINY['dim']}])\n"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a torch export of it, which tests read or copy."""
    run = saved_run(tmp_path_factory.mktemp("exported") / "run", "sasrec")
    export_run(run, "torch")
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned which item follows which."""
    folder = tmp_path_factory.mktemp("trained")
    events = [(user, (user + step) % NUM_ITEMS, step) for user in range(96) for step in range(9)]
    rows = [f"{user},item-{item},{step}" for user, item, step in events]
    (folder / "log.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    done("data", "prepare", folder / "log.csv", "--out", folder / "data")
    settings = {"trainer.epochs": 6, "trainer.lr": 0.02, "model.dim": 16, "model.max_len": 6}
    train = ["train", "--model", "sasrec", "--data", folder / "data", "--out", folder / "run"]
    done(*train, *sets({**settings, "model.dropout": 0}))
    return folder / "run"


def test_int8_products_are_measured_beside_the_float_ones(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "small"
    facts = done("export", trained, "--format", "onnx", "--int8", "--out", out, "--json").json
    assert facts == json.loads((out / "export.json").read_text())
    expected = json.loads((trained / "metrics.json").read_text())["metrics"]
    assert facts["test"]["float"] == pytest.approx(
        {name: expected[name]["value"] for name in facts["test"]["float"]}
    )
    assert set(facts["test"]["int8"]) == {"hr@10", "ndcg@10", "mrr@10"}
    assert facts["test"]["int8"]["ndcg@10"] > 0.9
    assert 1e-4 < facts["int8"]["largest_difference"] < 0.5
    graph = onnx.load(out / "model.int8.onnx").graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("MatMulInteger") == 2 * 4  # layers, and linear maps of each
    tables.export(facts)
    assert f"{facts['test']['int8']['ndcg@10']:.4f}" in capsys.readouterr().out


def test_an_export_says_what_it_is(tmp_path: Path):
    run = saved_run(tmp_path / "run", "sasrec")
    facts = export_run(run, "torch")
    assert facts["max_len"] == TINY["max_len"]
    assert facts["inputs"] == {"items": "int64 [B, T]", "lengths": "int64 [B]"}
    assert facts["outputs"] == {"query": f"float32 [B, {TINY['dim']}]"}
    assert facts["weights_sha256"] == hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()
    assert facts["largest_difference"] <= 1e-5
    kept = json.loads((run / "export-torch" / "export.json").read_text())
    assert kept == facts


def test_an_export_takes_the_place_of_an_earlier_one_alone(exported: Path, tmp_path: Path):
    run = Path(shutil.copytree(exported, tmp_path / "run"))
    old = run / "export-torch" / "model.onnx"
    old.touch()
    export_run(run, "torch")
    assert not old.exists()
    (empty := tmp_path / "empty").mkdir()
    export_run(run, "torch", empty)
    assert (empty / "model.pt2").is_file()
    before = contents(run)
    message = refused("export", run, "--format", "torch", "--out", run)
    assert "is not an export" in message
    assert contents(run) == before
    (run / "export-torch" / "notes").mkdir()
    message = refused("export", run, "--format", "torch")
    assert "holds more than an export, 'notes', which would be lost" in " ".join(message.split())
    (own := tmp_path / "own").mkdir()
    (own / "export.json").write_text('{"name": "my own tool"}')
    assert "is not an export" in refused("export", run, "--format", "torch", "--out", own)
    assert [path.name for path in own.iterdir()] == ["export.json"]


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_what_differs_from_its_model_is_not_written(
    error, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def off_by_a_little(model: Any, longest: int) -> Any:
        model = copy.deepcopy(model)
        model.encoder.norm.bias.data[3] += error
        return model

    run = saved_run(tmp_path / "run", "sasrec")
    before = contents(run)
    monkeypatch.setattr(export, "in_plain_operations", off_by_a_little)
    with pytest.raises(WorkError, match="differs from its model by"):
        export_run(run, "torch")
    assert contents(run) == before


def test_an_export_that_fails_leaves_the_earlier_one(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Path(shutil.copytree(exported, tmp_path / "run"))
    before = contents(tmp_path)
    replace = os.replace

    def full(one: Path, other: Path) -> None:
        if Path(one).name.endswith(".part"):
            raise OSError("no")
        replace(one, other)

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no"):
        export_run(run, "torch")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", [*COUNTED, *READS_TEXTS])
def test_a_model_without_a_graph_is_refused_with_the_reason(name, tmp_path: Path):
    run = saved_run(tmp_path, name)
    assert name in (message := refused("export", run, "--format", "onnx"))
    assert "counts" in message or "reads the texts" in message
    assert not (run / "export-onnx").exists()


def test_bad_wishes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = saved_run(tmp_path / "run", "sasrec")
    assert "for --format onnx only" in refused("export", run, "--format", "torch", "--int8")
    assert "not a run folder" in refused("export", tmp_path, "--format", "torch")
    with pytest.raises(InputError, match="onnx or torch, got 'tf'"):
        export_run(run, "tf")  # type: ignore[arg-type]
    found = importlib.util.find_spec
    missing = {"onnxruntime": None}
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: missing[name] if name in missing else found(name)
    )
    message = refused("export", run, "--format", "onnx")
    assert "needs the package onnxruntime: pip install 'recsys[export]'" in message


def test_int8_without_the_data_is_refused_before_anything_is_written(trained, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = json.loads((run / CONFIG).read_text())
    config["dataset"]["path"] = str(tmp_path / "gone")
    write_json(run / CONFIG, config)
    before = contents(run)
    assert "--data DIR" in refused("export", run, "--format", "onnx", "--int8")
    assert contents(run) == before


def test_a_layer_that_runs_a_kernel_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("recsys.layers.plain.PLAIN", {})
    with pytest.raises(InputError, match=r"MinGRURec is no graph .* twin in .*plain\.py"):
        export_run(saved_run(tmp_path, "mingru_rec"), "torch")
