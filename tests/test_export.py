"""Exported models answer as the models themselves, in programs that know nothing of recsys."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch
from safetensors.numpy import load_file
from toy_models import LEARNED, NUM_ITEMS, TINY, batch_of, tiny_config, toy_features

from recsys.batch import Batch
from recsys.checkpoint import CONFIG, WEIGHTS, load_model, write_items, write_json, write_tensors
from recsys.config import to_dict
from recsys.export import export_run
from recsys.models.base import model_class, new_model

READS_TEXTS = ["recformer"]
QUICK = ["sasrec", "gru4rec", "lru_rec"]
"""One model of each kind of graph: attention, a walk, doubled steps."""
EXPORTED = [name for name in LEARNED if name not in READS_TEXTS]
HISTORIES = [[3, 1, 4, 1, 5, 9], [6, 5, 12], [5], [9, 7]]


def saved_run(run: Path, name: str, **settings: object) -> Path:
    kind = model_class(name).Config
    config = kind(**{**to_dict(tiny_config(name)), **settings})
    torch.manual_seed(0)
    features_VF = toy_features(name)
    if settings.get("item_encoder") == "text":
        features_VF = torch.randn(NUM_ITEMS + 1, 5)
    model = new_model(name, config, NUM_ITEMS, features_VF)
    for parameter in model.parameters():  # norms and biases that do something
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


def several() -> list[Batch]:
    """A batch with padding, histories of each length alone, and padding behind all of them."""
    return [batch_of(HISTORIES), *(batch_of([one]) for one in HISTORIES), batch_of([[5]], 3)]


def timed(batch: Batch, seed: int) -> Batch:
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
    run = saved_run(tmp_path, name, **settings)
    check(run, format, [timed(batch, seed) for seed, batch in enumerate(several())])
    facts = json.loads((run / f"export-{format}" / "export.json").read_text())
    assert list(facts["inputs"]) == ["items", "lengths", "times"]


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
