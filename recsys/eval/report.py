"""From a run folder to the numbers in metrics.json, tables and pictures."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from recsys.checkpoint import (
    Device,
    data_of_run,
    device_of,
    knows_by_text,
    load_model,
    read_config,
    read_split,
    refitted,
)
from recsys.data.item_features import load_item_features
from recsys.data.loader import flat_positions
from recsys.data.sequences import SequenceDataset
from recsys.data.split import Histories, Queries, split
from recsys.errors import InputError
from recsys.eval.evaluator import Evaluation, Seen, check_ks, evaluate, evaluate_through
from recsys.eval.evaluator import paired_difference as difference
from recsys.models.base import CountingModel
from recsys.models.item_knn import ItemKNN
from recsys.models.popular import Popular
from recsys.retrieval.retriever import Retriever

Part = Literal["valid", "test"]
Through = Literal["exact", "index"]
DEFAULT_KS = (5, 10, 20)
RECENT_DAYS = 30
_UNITS_A_DAY = {
    "s": 86_400,
    "ms": 86_400_000,
    "us": 86_400_000_000,
    "ns": 86_400_000_000_000,
}


def evaluate_run(
    run: str | Path,
    part: Part = "test",
    ks: Sequence[int] = DEFAULT_KS,
    seen: Seen | None = None,
    through: Through = "exact",
    *,
    dataset: SequenceDataset | None = None,
    device: Device = "auto",
    refit: bool | None = None,
) -> dict[str, Any]:
    """The contents of metrics.json for a run. `seen` is that of its split where not given.
    `dataset` stands in where the prepared folder has moved; or it is other data, over which a model
    that knows items by their text is tried as it is ("transfer"). `refit` says whether the weights
    have learned from the valid targets; where not given, the run folder does.

    Raises InputError where the data is not what the run was trained on, or where a refit run is
    asked about the valid targets that it has learned from.
    """
    run, ks = Path(run), check_ks(ks)
    for word, known in ((part, Part), (seen or "mask", Seen), (through, Through)):
        if word not in get_args(known):
            raise InputError(f"{word!r} is none of {', '.join(get_args(known))}")
    config = read_config(run)
    split_config = read_split(run, config)
    seen = seen or split_config.seen_items
    other = dataset is not None and knows_by_text(config["model"])
    dataset = data_of_run(run, config, dataset, other=other)
    transfer = dataset.fingerprint != config["dataset"]["fingerprint"]
    parts = split(dataset, split_config)
    refit = refitted(run, config) if refit is None else refit
    if refit and part == "valid" and not transfer:
        raise InputError(
            f"{run} was refitted on train and valid together: only --split test is fair"
        )
    queries = parts.test if part == "test" else parts.valid
    # Beside a refit that is tried on other data, the baselines must not know the valid targets.
    histories = parts.refit if refit and part == "test" else parts.train
    started = time.perf_counter()
    asked = dataset, queries, seen
    if transfer:
        evaluation = _transferred(run, *asked, through, device_of(device))
    elif through == "index":
        evaluation = evaluate_through(Retriever.load(run, index="index"), *asked, max(ks))
    else:
        place = device_of(device)
        evaluation = evaluate(load_model(run, place), *asked, place)
    metrics = evaluation.with_intervals(ks)
    seconds = time.perf_counter() - started
    baselines = _baselines(dataset, histories, queries, seen)
    cold_Q = _never_trained(dataset, histories, queries)
    return {
        "data": dataset.facts,
        "split": {
            **parts.info,
            "part": part,
            "targets_never_trained": int(cold_Q.sum()),
        },
        "protocol": {
            "ranking": "full",
            "ties": "against",
            "seen": seen,
            "refit": refit,
            "through": through,
            **({"transfer_from": config["dataset"]["name"]} if transfer else {}),
        },
        "model": config["model"]["name"],
        "users": evaluation.users,
        "targets": len(queries),
        "seconds": round(seconds, 4),
        "metrics": metrics,
        "baselines": {name: found.metrics(ks) for name, found in baselines.items()},
        **({"cold": _cold(evaluation, baselines, cold_Q, ks)} if cold_Q.any() else {}),
    }


def _transferred(
    run: Path,
    dataset: SequenceDataset,
    queries: Queries,
    seen: Seen,
    through: Through,
    device: torch.device,
) -> Evaluation:
    """Other data, over which a model that knows items by their text is tried as it is."""
    if through == "index":
        raise InputError(f"the index of {run} holds other items: use --through exact")
    features_VF = load_item_features(run).padded(dataset.catalogue)
    model = load_model(run, device, features_VF=torch.from_numpy(features_VF))
    return evaluate(model, dataset, queries, seen, device)


def targets_of_run(
    run: Path, part: Part, dataset: SequenceDataset | None = None
) -> tuple[SequenceDataset, Queries, Seen]:
    """The targets that a run is to be asked about, as `evaluate` takes them; `dataset` stands in
    where the prepared folder has moved. InputError where it is not what the run was trained on."""
    config = read_config(run)
    dataset, split_config = data_of_run(run, config, dataset), read_split(run, config)
    parts = split(dataset, split_config)
    return dataset, parts.test if part == "test" else parts.valid, split_config.seen_items


def _cold(
    evaluation: Evaluation,
    baselines: dict[str, Evaluation],
    cold_Q: np.ndarray,
    ks: Sequence[int],
) -> dict[str, Any]:
    """The same of the targets that no training history holds, among the whole catalogue."""
    return {
        "targets": int(cold_Q.sum()),
        "metrics": evaluation.among(cold_Q).with_intervals(ks),
        "baselines": {name: found.among(cold_Q).metrics(ks) for name, found in baselines.items()},
    }


def compare_runs(
    runs: Sequence[str | Path],
    ks: Sequence[int] = DEFAULT_KS,
    seen: Seen | None = None,
    *,
    dataset: SequenceDataset | None = None,
) -> dict[str, Any]:
    """Test metrics of several runs, and the paired difference of each to the first. `seen` is that
    of the first run's split where not given; `dataset` stands in where the prepared folder has
    moved.

    Raises InputError unless all were trained on the same data under the same split.
    """
    if len(runs) < 2:
        raise InputError("compare takes two runs or more")
    ks, first = check_ks(ks), read_config(Path(runs[0]))
    dataset = data_of_run(Path(runs[0]), first, dataset)
    split_config = read_split(Path(runs[0]), first)
    seen = seen or split_config.seen_items
    wanted, queries = _shared(Path(runs[0]), first), split(dataset, split_config).test
    rows, evaluations = [], []
    for run in map(Path, runs):
        config = read_config(run)
        for name, value in _shared(run, config).items():
            if value != wanted[name]:
                raise InputError(
                    f"{run} cannot be compared with {runs[0]}: its {name} is {value}, not"
                    f" {wanted[name]}"
                )
        evaluations.append(evaluate(load_model(run), dataset, queries, seen))
        rows.append(
            {
                "run": str(run),
                "model": config["model"]["name"],
                "refit": refitted(run, config),
                "metrics": evaluations[-1].with_intervals(ks),
            }
        )
    for row, evaluation in zip(rows[1:], evaluations[1:], strict=True):
        row["difference_to_first"] = difference(evaluations[0], evaluation, ks)
    return {
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "split": {"kind": first["split"]["kind"], "part": "test"},
        "protocol": {"ranking": "full", "ties": "against", "seen": seen},
        "users": evaluations[0].users,
        "runs": rows,
    }


def fit_counting(model: CountingModel, dataset: SequenceDataset, histories: Histories) -> None:
    """Fit a counting model on training histories; ages are measured from the newest of them."""
    _, position = flat_positions(histories.start, histories.end)
    lengths = histories.end - histories.start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ages = np.zeros(len(position))
    unit = _UNITS_A_DAY.get(dataset.info.get("time_unit") or "")
    if dataset.timestamps is not None and unit:
        times = dataset.timestamps[position]
        ages = (times.max() - times) / unit
    items = dataset.items[position].astype(np.int64)
    model.fit(torch.from_numpy(items), torch.from_numpy(offsets), torch.from_numpy(ages))


def _shared(run: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What runs must share to be compared, by name."""
    cut = read_split(run, config).settled()
    return {
        "dataset.fingerprint": config["dataset"]["fingerprint"],
        "split.kind": cut.kind,
        "split.target": cut.target,
        "split.test_share": cut.test_share,
    }


def _never_trained(dataset: SequenceDataset, histories: Histories, queries: Queries) -> np.ndarray:
    """bool [Q], True for targets that occur in no training history."""
    _, position = flat_positions(histories.start, histories.end)
    trained = np.zeros(dataset.num_items + 1, dtype=bool)
    trained[dataset.items[position]] = True
    never: np.ndarray = ~trained[dataset.items[queries.end]]
    return never


def _baselines(
    dataset: SequenceDataset,
    histories: Histories,
    queries: Queries,
    seen: Seen,
) -> dict[str, Evaluation]:
    """What any model must beat, on the same targets, fitted on the same histories as the model."""
    models: dict[str, CountingModel] = {"popular": Popular(Popular.Config(), dataset.num_items)}
    if dataset.info.get("time_unit"):
        recent = Popular.Config(days=RECENT_DAYS)
        models[f"popular, last {RECENT_DAYS} days"] = Popular(recent, dataset.num_items)
    models["item_knn"] = ItemKNN(ItemKNN.Config(), dataset.num_items)
    results = {}
    for name, model in models.items():
        fit_counting(model, dataset, histories)
        results[name] = evaluate(model, dataset, queries, seen)
    return results
