"""The run folder: files appear whole or not at all, and what does not fit is not loaded."""

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from recsys import checkpoint
from recsys.checkpoint import (
    CONFIG,
    ITEMS,
    STATE,
    WEIGHTS,
    build_model,
    load_model,
    load_vocab,
    read_items,
    read_json,
    read_tensors,
    write_items,
    write_json,
    write_lines,
    write_tensors,
)
from recsys.config import to_dict
from recsys.errors import InputError, WorkError
from recsys.models.base import model_class

CATALOGUE = pa.table({"item": ["x", "y", "z"], "count": [2, 0, 5]})


def disk_full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def safetensors_disk_full(*args: Any, **kwargs: Any) -> None:
    raise safetensors.SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


@pytest.mark.parametrize(
    ("place", "name", "fail", "write"),
    [
        (Path, "write_text", disk_full, lambda path: write_json(path, {"a": 1})),
        (Path, "write_text", disk_full, lambda path: write_lines(path, [{"a": 1}])),
        (os, "replace", disk_full, lambda path: write_json(path, {"a": 1})),
        (pq, "write_table", disk_full, lambda path: write_items(path.parent, CATALOGUE)),
        (
            checkpoint,
            "save_file",
            safetensors_disk_full,
            lambda path: write_tensors(path, {"a": torch.zeros(2)}),
        ),
    ],
)
def test_a_full_disk_is_reported_and_harms_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    fail: Callable[..., None],
    write: Callable[[Path], None],
):
    path = tmp_path / ITEMS
    path.write_bytes(b"old")
    monkeypatch.setattr(place, name, fail)
    with pytest.raises(WorkError, match=f"no space left to write .*{ITEMS}"):
        write(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [ITEMS]


def test_other_errors_of_the_disk_are_not_called_a_full_disk(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_json(tmp_path / "file" / "below.json", {})


def test_json_and_lines_round_trip(tmp_path: Path):
    write_json(tmp_path / "a.json", {"x": [1, 0.1, None, "ä"]})
    assert read_json(tmp_path / "a.json") == {"x": [1, 0.1, None, "ä"]}
    write_lines(tmp_path / "h.jsonl", [{"epoch": 1}, {"epoch": 2}])
    lines = (tmp_path / "h.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_json_never_holds_what_json_does_not_know(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": math.nan})
    assert os.listdir(tmp_path) == []


def test_json_that_is_missing_or_broken_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=rf"is not a run folder: it has no {CONFIG}"):
        read_json(tmp_path / CONFIG)
    (tmp_path / CONFIG).write_text('{"a": ')
    with pytest.raises(InputError, match=rf"{CONFIG} is damaged: .*line 1"):
        read_json(tmp_path / CONFIG)


def test_tensors_and_their_header_come_back_to_the_bit(tmp_path: Path):
    tensors = {
        "float": torch.tensor([0.1, -0.0, 1e-45, math.inf, math.nan]),
        "double": torch.tensor(1 / 3, dtype=torch.float64),
        "half": torch.tensor([[0.1, 0.2]], dtype=torch.bfloat16),
        "long": torch.tensor([2**62, -1]),
        "bool": torch.tensor([True, False]),
        "bytes": torch.get_rng_state(),
        "none": torch.empty(0, 3),
        "turned": torch.arange(6.0).view(2, 3).T,
    }
    tensors["shared"] = tensors["float"][:2]
    meta = {"best": 0.1 + 0.2, "least": 5e-324, "start": -math.inf, "history": [{"loss": 1e300}]}
    write_tensors(tmp_path / STATE, tensors, meta)
    found, header = read_tensors(tmp_path / STATE)
    assert header == meta
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(
            found[name].contiguous().view(-1).view(torch.uint8),
            tensor.contiguous().view(-1).view(torch.uint8),
        )


def test_tensors_without_a_header_have_an_empty_one(tmp_path: Path):
    write_tensors(tmp_path / "a", {"x": torch.ones(1, requires_grad=True)})
    assert read_tensors(tmp_path / "a")[1] == {}
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "b", metadata={"json": "{"})
    with pytest.raises(InputError, match="b is damaged"):
        read_tensors(tmp_path / "b")


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_tensors_cut_short_are_refused(tmp_path: Path, size: int):
    path = tmp_path / WEIGHTS
    write_tensors(path, {"x": torch.ones(100)}, {"epoch": 3})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=f"{WEIGHTS} is damaged or incomplete"):
        read_tensors(path)


def test_a_pickle_is_not_read(tmp_path: Path):
    torch.save({"x": torch.ones(1)}, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match="damaged"):
        read_tensors(tmp_path / WEIGHTS)


def test_tensors_that_are_not_there_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=f"{WEIGHTS} does not exist"):
        read_tensors(tmp_path / WEIGHTS)


def saved_run(run: Path, name: str = "sasrec", num_items: int = 3) -> torch.nn.Module:
    settings = {"dim": 8, "max_len": 4} if name == "sasrec" else {}
    torch.manual_seed(1)
    model = build_model(name, settings, num_items)
    described = {"name": name, **to_dict(model_class(name).Config(**settings))}
    write_json(run / CONFIG, {"model": described, "dataset": {"items": num_items}})
    write_tensors(run / WEIGHTS, model.state_dict())
    write_items(run, CATALOGUE)
    return model


@pytest.mark.parametrize("name", ["sasrec", "popular", "item_knn"])
def test_a_model_comes_back_to_the_bit_and_ready_to_serve(tmp_path: Path, name: str):
    saved, found = saved_run(tmp_path, name), load_model(tmp_path)
    assert not found.training
    for key, tensor in saved.state_dict().items():
        assert torch.equal(found.state_dict()[key], tensor)


def test_weights_of_another_model_are_refused(tmp_path: Path):
    saved_run(tmp_path)
    write_tensors(tmp_path / WEIGHTS, build_model("popular", {}, 3).state_dict())
    with pytest.raises(InputError, match=f"{WEIGHTS} does not belong to model sasrec: tensor"):
        load_model(tmp_path)


def test_weights_of_another_catalogue_are_refused(tmp_path: Path):
    saved_run(tmp_path)
    other = build_model("sasrec", {"dim": 8, "max_len": 4}, 5)
    write_tensors(tmp_path / WEIGHTS, other.state_dict())
    with pytest.raises(
        InputError, match=r"another catalogue: 'encoder.items.weight' is \(6, 8\).*\(4, 8\)"
    ):
        load_model(tmp_path)


def test_a_run_without_config_or_weights_is_refused(tmp_path: Path):
    saved_run(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(InputError, match=f"{WEIGHTS} does not exist"):
        load_model(tmp_path)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(InputError, match="is not a run folder"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        [],
        {},
        {"model": {"name": "sasrec"}},
        {"model": {}, "dataset": {"items": 3}},
        {"model": {"name": "sasrec"}, "dataset": {"items": "many"}},
        {"model": {"name": 5}, "dataset": {"items": 3}},
        {"model": {"name": "sasrek"}, "dataset": {"items": 3}},
        {"model": {"name": "sasrec", "dims": 8}, "dataset": {"items": 3}},
        {"model": {"name": "sasrec", "dim": 8}, "dataset": {"items": -3}},
    ],
)
def test_a_config_that_describes_no_model_is_refused(tmp_path: Path, config: Any):
    saved_run(tmp_path)
    write_json(tmp_path / CONFIG, config)
    with pytest.raises(InputError):
        load_model(tmp_path)


def test_the_catalogue_of_a_run_comes_back_in_order(tmp_path: Path):
    saved_run(tmp_path)
    assert read_items(tmp_path).equals(CATALOGUE)
    assert load_vocab(tmp_path).encode(["z", "x"]) == ([3, 1], [])


def test_a_catalogue_that_is_missing_or_damaged_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=f"it has no {ITEMS}"):
        read_items(tmp_path)
    write_items(tmp_path, CATALOGUE)
    whole = (tmp_path / ITEMS).read_bytes()
    for part in (b"", whole[:50], whole[:-1]):
        (tmp_path / ITEMS).write_bytes(part)
        with pytest.raises(InputError, match=f"{ITEMS} is damaged"):
            read_items(tmp_path)
    write_items(tmp_path, pa.table({"id": ["x"]}))
    with pytest.raises(InputError, match=f"{ITEMS} is damaged: it has no column named item"):
        read_items(tmp_path)
