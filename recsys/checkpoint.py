"""The run folder: what a training leaves behind, and all that serving needs.

    config.json          the resolved settings, versions, the command, the data set trained on
    model.safetensors    best weights by validation (of the refit, where one was asked for)
    items.parquet        row i-1: raw id of item i, its count in training, title and text if known
    history.jsonl        a line an epoch
    metrics.json         written last: its presence means that the run is complete
    state/               what resuming needs

Every file is written aside and renamed, so a reader never meets half of one.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys.config import from_dict
from recsys.data.sequences import SequenceDataset
from recsys.data.split import SplitConfig
from recsys.data.tokenizer import ENCODER, TOKENIZER, Tokenizer
from recsys.data.vocab import Vocab
from recsys.errors import InputError
from recsys.models.base import ReadsTexts, Recommender, SequenceModel, model_class, new_model
from recsys.whole import folder_written_whole, written_whole

CONFIG, WEIGHTS, ITEMS = "config.json", "model.safetensors", "items.parquet"
HISTORY, METRICS, STATE = "history.jsonl", "metrics.json", "state/trainer.safetensors"
LOCK = "state/lock"
"""Held by the process that trains here."""
WITHOUT_REFIT = "state/without_refit.json"
"""Test metrics of the best epoch before a refit, until they stand in metrics.json."""


MODEL_FACTS: dict[str, type] = {"model.name": str, "dataset.items": int}
"""What a model cannot be loaded without, in config.json."""
DATA_FACTS: dict[str, type] = {
    "dataset.path": str,
    "dataset.name": str,
    "dataset.fingerprint": str,
}
"""What the data of a run cannot be found and recognised without."""
RUN_FACTS: dict[str, type] = {
    **MODEL_FACTS,
    **DATA_FACTS,
    "refit": bool,
    "split.kind": str,
    "split.target": str,
    "split.test_share": float,
}
"""What a run cannot be evaluated or gone on with without."""

Device = Literal["auto", "cpu", "cuda"]


def device_of(wish: Device) -> torch.device:
    """Where to compute. InputError for another word, and for cuda where there is none."""
    if wish not in get_args(Device):
        raise InputError(f"device {wish!r} is none of {', '.join(get_args(Device))}")
    available = torch.cuda.is_available()
    if wish == "cuda" and not available:
        raise InputError(
            "--device cuda: no CUDA device is available here; use --device auto or cpu"
        )
    return torch.device("cuda" if available and wish != "cpu" else "cpu")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with written_whole(path) as aside:
        aside.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} is not a run folder: it has no {path.name}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from None


def read_metrics(run: Path) -> dict[str, Any]:
    """metrics.json of a complete run."""
    metrics = read_json(run / METRICS)
    needed = ("data", "split", "protocol", "metrics", "baselines")
    if not isinstance(metrics, dict) or not all(isinstance(metrics.get(k), dict) for k in needed):
        raise InputError(f"{run / METRICS} is damaged: it is not what an evaluation has written")
    return metrics


def read_history(run: Path) -> list[dict[str, Any]]:
    """The lines of history.jsonl."""
    file = run / HISTORY
    try:
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}") from None
    if not all(isinstance(record, dict) for record in records):
        raise InputError(f"{file} is damaged: not every line is an object")
    return records


def read_config(run: Path, needed: dict[str, type] = RUN_FACTS) -> dict[str, Any]:
    """config.json of a run, with the parts that are `needed` checked."""
    config = read_json(run / CONFIG)
    for name, kind in needed.items():
        value: Any = config
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        empty = name == "dataset.items" and isinstance(value, int) and value < 1
        if not isinstance(value, kind) or empty:
            raise InputError(f"{run / CONFIG} is damaged: {name} is {value!r}")
    return config


def read_split(run: Path, config: dict[str, Any]) -> SplitConfig:
    """How the data of a run was split, from the contents of its config.json."""
    try:
        return from_dict(SplitConfig, config["split"], "split")
    except InputError as error:
        raise InputError(f"{run / CONFIG} is damaged: {error}") from None


def sha256_of(path: Path) -> str:
    """The checksum of a file of a run folder. InputError where it is missing."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: the run folder is not whole") from None


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write JSON lines whole or not at all."""
    with written_whole(path) as aside:
        aside.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_tensors(
    path: Path, tensors: dict[str, Tensor], meta: dict[str, Any] | None = None
) -> None:
    """Write tensors, and JSON values in the header of the same file, whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with written_whole(path) as aside:
        save_file(plain, aside, metadata={"json": json.dumps(meta)} if meta is not None else None)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, the JSON values of the header)."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = json.loads((file.metadata() or {}).get("json", "{}"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: the run has not saved anything yet") from None
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{path} is damaged or incomplete: {error}") from None
    return tensors, meta


def write_items(run: Path, catalogue: pa.Table) -> None:
    """Write items.parquet: raw id first, one row an item in order of item number."""
    import pyarrow.parquet as pq

    with written_whole(run / ITEMS) as aside:
        pq.write_table(catalogue, aside)


def read_items(run: Path) -> pa.Table:
    """The catalogue of a run, row i-1 for item i."""
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(run / ITEMS).read()
    except FileNotFoundError:
        raise InputError(f"{run} is not a whole run folder: it has no {ITEMS}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{run / ITEMS} is damaged: {error}") from None
    if "item" not in table.column_names:
        raise InputError(f"{run / ITEMS} is damaged: it has no column named item")
    return table


def build_model(
    name: str, settings: dict[str, Any], num_items: int, features_VF: Tensor | None = None
) -> Recommender:
    """A new model from its name and the settings named model.*; features as for `new_model`."""
    config = from_dict(model_class(name).Config, settings, "model")
    return new_model(name, config, num_items, features_VF)


def load_model(
    run: Path,
    device: torch.device | str = "cpu",
    *,
    features_VF: Tensor | None = None,
    mmap: bool = False,
) -> Recommender:
    """The trained model of a run folder, in evaluation mode. `mmap` leaves weights in the file
    until they are read.

    features_VF [V+1, F], row 0 for padding, puts another catalogue in the place of the run's own:
    InputError unless the model knows items by their vectors alone.
    """
    config = read_config(run, MODEL_FACTS)
    settings = dict(config["model"])
    name = settings.pop("name")
    tensors, _ = read_tensors(run / WEIGHTS)
    num_items = config["dataset"]["items"]
    # Fixed vectors lie among the weights: a run folder needs neither the texts nor their encoder.
    fixed = [key for key, x in tensors.items() if _is_features(key) and x.dim() == 2]
    if not all(tensors[key].isfinite().all() for key in fixed):
        raise InputError(f"{run / WEIGHTS} is damaged: vectors of items are not finite")
    if features_VF is not None:
        if not knows_by_text(config["model"]):
            raise InputError(
                f"{run} knows items by learned vectors of their own, which another catalogue has"
                " not: only runs with model.item_encoder=text go over to other data"
            )
        tensors.update(dict.fromkeys(fixed, features_VF))
        # What is kept of the run's own items is computed anew below, in its own shape.
        tensors = {key: x for key, x in tensors.items() if key.rpartition(".")[2] != "table"}
        num_items = len(features_VF) - 1
    try:
        model = build_model(name, settings, num_items, tensors[fixed[0]] if fixed else None)
    except (InputError, RuntimeError) as error:  # the latter: sizes that no memory holds
        raise InputError(f"{run / CONFIG} is damaged: {str(error).splitlines()[0]}") from None
    expected = model.state_dict()
    if features_VF is not None:
        tensors = {key: x for key, x in expected.items() if key not in tensors} | tensors
    _check_fit(run, name, tensors, expected, num_items)
    model.load_state_dict(tensors, assign=mmap)
    model = model.to(device).eval()
    if features_VF is not None and isinstance(model, SequenceModel):
        model.renew()
    return model


def write_encoder(run: Path) -> None:
    """Write RUN/encoder, from which other trainings start: encoder and tokenizer of the best
    weights, whole or not at all."""
    model = load_model(run)
    assert isinstance(model, ReadsTexts)
    with folder_written_whole(run / ENCODER) as aside:
        model.save_encoder(aside, len(Tokenizer.load(run)))
        shutil.copy(run / TOKENIZER, aside / TOKENIZER)


def data_folder(run: Path, config: dict[str, Any]) -> Path:
    """Where the data of a run lay when it was trained. InputError where it is gone from there."""
    folder = Path(config["dataset"]["path"])
    if not (folder / "dataset.json").is_file():
        raise InputError(
            f"the data of {run} is no longer in {folder}: name its place with --data DIR"
        )
    return folder


def refitted(run: Path, config: dict[str, Any]) -> bool:
    """Whether the weights of a run have learned from the valid targets: a training that was to be
    refitted and was stopped before has not. InputError where it was stopped in its refit."""
    if not config["refit"] or (run / METRICS).is_file():
        return config["refit"]
    records = read_history(run) if (run / HISTORY).is_file() else []
    stages = [record.get("stage") for record in records]
    if "refit" in stages:
        raise InputError(
            f"the refit of {run} is not complete: go on with `recsys train --resume --out {run}`"
        )
    return None in stages  # a counting model is fitted in one go


def data_of_run(
    run: Path, config: dict[str, Any], dataset: SequenceDataset | None, other: bool = False
) -> SequenceDataset:
    """The data set a run was trained on, `dataset` where its folder has moved; or, where that is
    asked for, `other` data. InputError where it is not what the run was trained on."""
    about = config["dataset"]
    if dataset is None:
        dataset = SequenceDataset.load(data_folder(run, config))
    if dataset.fingerprint != about["fingerprint"] and not other:
        raise InputError(
            f"{run} was trained on data {about['name']} {about['fingerprint'][:12]}, this is"
            f" {dataset.name} {dataset.fingerprint[:12]}"
        )
    return dataset


def knows_by_text(described: dict[str, Any]) -> bool:
    """Whether the model of a config.json knows items by nothing but what is said of them."""
    by_tokens = bool(model_class(described["name"]).reads_tokens)
    return by_tokens or described.get("item_encoder") == "text"


def _is_features(key: str) -> bool:
    return key.rpartition(".")[2] == "features"


def _check_fit(
    run: Path, name: str, tensors: dict[str, Tensor], expected: dict[str, Tensor], num_items: int
) -> None:
    """InputError unless the tensors are those of the model that config.json describes."""
    if wrong := set(tensors) ^ set(expected):
        raise InputError(
            f"{run / WEIGHTS} does not belong to model {name}: tensor {min(wrong)!r} does not match"
        )
    for key, tensor in tensors.items():
        shape = tuple(expected[key].shape)
        if _is_features(key):
            shape = (num_items + 1, *shape[1:])
        if tensor.shape != shape:
            raise InputError(
                f"{run / WEIGHTS} belongs to other settings or another catalogue: {key!r} is"
                f" {tuple(tensor.shape)}, config.json says {shape}"
            )


def load_vocab(run: Path) -> Vocab:
    """Raw item ids of a run."""
    return Vocab(read_items(run)["item"])
