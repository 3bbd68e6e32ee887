"""The composition root: settings, data, model, loss and trainer become a run folder, and back."""

import importlib.metadata
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recsys import checkpoint
from recsys.config import parse_settings
from recsys.data.cache import is_prepared, open_data, source_of
from recsys.data.combine import combine
from recsys.data.prepare import DataConfig
from recsys.data.prepare import prepare as prepare_source
from recsys.data.sequences import SequenceDataset, int_array
from recsys.data.split import Split, split
from recsys.errors import InputError, Interrupted
from recsys.eval.report import evaluate_run as evaluate
from recsys.eval.report import fit_counting
from recsys.learning import Learning, check_data, item_features, training_counts
from recsys.models.base import CountingModel, model_class
from recsys.settings import RunConfig, configure, differences, saved_config
from recsys.training.losses import MLMContrastive
from recsys.training.memory import keep_freed_memory, peak_rss_mb
from recsys.training.watch import (
    PlainReporter,
    Reporter,
    stop_on_signals,
)
from recsys.whole import held_alone

if TYPE_CHECKING:
    from accelerate import Accelerator

Device = checkpoint.Device


def prepare(
    data: Any,
    out: str | Path,
    config: DataConfig | None = None,
    *,
    engine: Literal["duckdb", "spark"] = "duckdb",
    reporter: Reporter | None = None,
) -> SequenceDataset:
    """Turn a source (name, path, pandas DataFrame or Arrow table) into a data set folder."""
    config, report = config or DataConfig(), (reporter or PlainReporter()).line
    source = source_of(data, config, report)
    return prepare_source(source, Path(out), config, engine=engine, report=report)


def train(
    data: Any,
    model: str = "sasrec",
    out: str | Path | None = None,
    *,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    refit: bool = False,
    device: Device = "auto",
) -> Path:
    """Train `model` on a source, prepared folder, pandas DataFrame or Arrow table.

    `settings` are those of `--set`, as in {"model.dim": 128, "loss.name": "bce"}. Returns the run
    folder, which `Retriever.load` and `recsys eval` take.
    """
    tree = parse_settings([f"{name}={value}" for name, value in (settings or {}).items()])
    reporter = PlainReporter()
    run = Path(out) if out is not None else None
    job = plan(model, data, run, tree, seed=seed, refit=refit, reporter=reporter)
    train_run(job.config, job.dataset, job.folder, job.run, device=device, reporter=reporter)
    return job.run


@dataclass(frozen=True)
class Job:
    """A training that is ready to start, or to go on."""

    config: RunConfig
    dataset: SequenceDataset
    folder: Path
    """The prepared data set."""
    run: Path


def plan(
    model: str | None,
    data: Any,
    out: Path | None,
    settings: dict[str, dict[str, Any]],
    *,
    base: RunConfig | None = None,
    seed: int | None = None,
    refit: bool = False,
    resume: bool = False,
    reporter: Reporter,
) -> Job:
    """Settle what to train on what. A resumed run brings whatever is not said again."""
    if resume:
        if out is None:
            raise InputError("--resume needs --out, the run folder to go on with")
        before = checkpoint.read_config(out)
        name = before["model"]["name"]
        if model not in (None, name):
            raise InputError(
                f"--resume with other settings than {out} was begun with: model.name was {name},"
                f" is {model}"
            )
        model = name
        base = base or saved_config(before)
        data = data or checkpoint.data_folder(out, before)
    model = model or (base.model_name if base else None)
    if model is None or data is None:
        raise InputError(
            "train needs --model (see `recsys models`) and --data (see `recsys data list`)"
        )
    config = configure(model, settings, base=base, seed=seed, refit=refit or None)
    vectors = settings.get("model", {}).get("item_vectors")
    default = getattr(type(config.model), "item_vectors", None)
    if vectors not in (None, default) and getattr(config.model, "item_encoder", "id") == "id":
        raise InputError(
            f"model.item_vectors={vectors} is for models that know items by more than their number:"
            " it needs --set model.item_encoder=text or id+text"
        )
    if not resume and model_class(model).reads_tokens:
        # The run folder must say the sizes of its encoder: later it is read without that.
        config = replace(config, model=config.model.resolved())
    options = DataConfig() if resume and is_prepared(data) else config.data
    dataset, folder = open_data(data, options, reporter.line)
    return Job(
        config, dataset, folder, out or free_folder(Path("runs") / f"{model}-{dataset.name}")
    )


def train_run(
    config: RunConfig,
    dataset: SequenceDataset,
    folder: Path,
    run: Path,
    *,
    resume: bool = False,
    device: Device = "auto",
    reporter: Reporter,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Fill the run folder `run`; the contents of its metrics.json. Raises Interrupted on Ctrl-C."""
    keep_freed_memory()
    parts = split(dataset, config.split)
    check_data(config, dataset)
    accelerator = _accelerator(device)
    with ExitStack() as held:
        fresh = False
        if accelerator.is_main_process:
            fresh = _open_run(config, dataset, folder, run, resume, command, held)
        accelerator.wait_for_everyone()
        if (run / checkpoint.METRICS).is_file():
            reporter.line(f"{run} is complete already")
            return checkpoint.read_metrics(run)
        if fresh:
            histories = parts.refit if config.refit else parts.train
            counts = training_counts(dataset, histories)
            place = dataset.catalogue.column_names.index("count")
            catalogue = dataset.catalogue.set_column(place, "count", int_array(counts[1:]))
            checkpoint.write_items(run, catalogue)
        if issubclass(model_class(config.model_name), CountingModel):
            _count(config, dataset, parts, run)
        else:
            _learn(config, dataset, parts, run, accelerator, reporter)
        accelerator.wait_for_everyone()
        result = evaluate(run, dataset=dataset, device=device, refit=config.refit)
        if (run / checkpoint.WITHOUT_REFIT).is_file():
            result["without_refit"] = checkpoint.read_json(run / checkpoint.WITHOUT_REFIT)
        if accelerator.is_main_process:
            if isinstance(config.loss, MLMContrastive):
                checkpoint.write_encoder(run)
            checkpoint.write_json(run / checkpoint.METRICS, result)
        return result


def pretrain_run(
    model: str,
    data: Sequence[Any],
    out: Path,
    settings: dict[str, dict[str, Any]],
    *,
    seed: int | None = None,
    resume: bool = False,
    device: Device = "auto",
    reporter: Reporter,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a model that reads texts on several data sets at once, by `mlm_contrastive`; the
    contents of its metrics.json.

    RUN/encoder is what `model.encoder=RUN` starts from, on any data.
    """
    loss = {"name": MLMContrastive.name, **settings.get("loss", {})}
    if loss["name"] != MLMContrastive.name:
        raise InputError(f"pretrain learns by {MLMContrastive.name}, not by {loss['name']}")
    tree = {**settings, "loss": loss}
    datasets = [open_data(source, DataConfig(), reporter.line)[0] for source in data]
    folder = combine(datasets, reporter.line)
    job = plan(model, folder, out, tree, seed=seed, resume=resume, reporter=reporter)
    return train_run(
        *(job.config, job.dataset, job.folder, job.run),
        resume=resume,
        device=device,
        reporter=reporter,
        command=command,
    )


def is_main_process() -> bool:
    """False in all but one of the processes of a distributed training."""
    from accelerate import PartialState

    return PartialState().is_main_process


def free_folder(wish: Path) -> Path:
    """`wish`, or `wish-2`, `wish-3` … where that is taken."""
    folder, number = wish, 1
    while folder.exists():
        number += 1
        folder = wish.with_name(f"{wish.name}-{number}")
    return folder


def _open_run(
    config: RunConfig,
    dataset: SequenceDataset,
    folder: Path,
    run: Path,
    resume: bool,
    command: Sequence[str],
    held: ExitStack,
) -> bool:
    """Make the folder with its config.json, or check that it can be resumed; whether its items are
    to be written. What is not complete is held alone from here on, until `held` is closed."""
    described = config.as_dict()
    about = {"name": dataset.name, "path": str(folder), **dataset.facts}
    if (run / checkpoint.CONFIG).is_file():
        if not resume:
            raise InputError(
                f"{run} holds a run already: go on with --resume, or choose another --out"
            )
        saved = checkpoint.read_config(run)
        before = saved_config(saved)
        begun = _asked_later(before, config)
        changed = differences(begun, config)
        trained_on = saved["dataset"]["fingerprint"]
        if trained_on != dataset.fingerprint:
            changed.append(f"dataset.fingerprint was {trained_on}, is {dataset.fingerprint}")
        if changed:
            raise InputError(
                f"--resume with other settings than {run} was begun with: {'; '.join(changed)}"
            )
        if begun == before and (run / checkpoint.METRICS).is_file():
            return False
        _hold(config, run, held)
        if saved["dataset"]["path"] != str(folder):  # moved since
            saved = {**saved, "dataset": {**saved["dataset"], "path": str(folder)}}
            checkpoint.write_json(run / checkpoint.CONFIG, saved)
        if begun != before:
            _check_end(begun, run)
            # First it is not complete any more, then it says what it will be.
            (run / checkpoint.METRICS).unlink(missing_ok=True)
            later = {name: described[name] for name in ("trainer", "refit")}
            checkpoint.write_json(run / checkpoint.CONFIG, {**saved, **later})
        return begun.refit != before.refit or not (run / checkpoint.ITEMS).is_file()
    if resume:
        raise InputError(f"{run} cannot be resumed: it has no {checkpoint.CONFIG}")
    if run.exists() and not _is_empty(run):
        raise InputError(f"{run} exists and is not a run folder; choose another --out")
    _hold(config, run, held)
    packages = ("recsys", "torch", "numpy", "accelerate", "pyarrow", "safetensors")
    versions = {name: importlib.metadata.version(name) for name in packages}
    checkpoint.write_json(
        run / checkpoint.CONFIG,
        {
            **described,
            "dataset": about,
            "versions": {"python": platform.python_version(), **versions},
            "command": list(command) or sys.argv,
        },
    )
    return True


def _is_empty(run: Path) -> bool:
    """Whether a run may be begun there: what died before it wrote its settings leaves a lock."""
    lock = run / checkpoint.LOCK
    return run.is_dir() and all(path in (lock, lock.parent) for path in run.rglob("*"))


def _hold(config: RunConfig, run: Path, held: ExitStack) -> None:
    """Keep other processes from training here. Counting, a moment's work, leaves no state."""
    if not issubclass(model_class(config.model_name), CountingModel):
        held.enter_context(held_alone(run / checkpoint.LOCK, f"another process trains {run}"))


def _asked_later(before: RunConfig, config: RunConfig) -> RunConfig:
    """`before` with what a training may be asked for when it is over, or has stopped: a refit; and
    another end, where the learning rate does not depend on it and no refit has taken its place."""
    trainer = before.trainer
    if trainer.schedule == "constant" and not before.refit:
        end = config.trainer
        trainer = replace(trainer, epochs=end.epochs, patience=end.patience)
    return replace(before, trainer=trainer, refit=before.refit or config.refit)


def _check_end(config: RunConfig, run: Path) -> None:
    """InputError where the training has passed its end already, or would end without a validation
    of its last epoch."""
    state = run / checkpoint.STATE
    meta = checkpoint.read_tensors(state)[1] if state.is_file() else {}
    history = meta.get("progress", {}).get("history", [])
    end, done = config.trainer.epochs, len(history)
    if end < done:
        raise InputError(f"{run} has trained for {done} epochs: trainer.epochs cannot be less")
    if done and end == done and "valid" not in history[-1]:
        raise InputError(
            f"{run} has trained for {done} epochs, the last of them without a validation:"
            " trainer.epochs must be more"
        )


def _accelerator(device: Device) -> "Accelerator":
    from accelerate import Accelerator, PartialState
    from accelerate.state import is_initialized

    wanted = checkpoint.device_of(device).type
    # What the first training of a process settles holds for all of its trainings.
    begun = PartialState() if is_initialized() else Accelerator(cpu=wanted == "cpu")
    if begun.device.type != wanted:
        raise InputError(
            f"this process has begun to train on {begun.device.type}: train on {wanted} in another"
        )
    return begun if isinstance(begun, Accelerator) else Accelerator(cpu=wanted == "cpu")


def _learn(
    config: RunConfig,
    dataset: SequenceDataset,
    parts: Split,
    run: Path,
    accelerator: "Accelerator",
    reporter: Reporter,
) -> None:
    """Train by gradient steps. Raises Interrupted on Ctrl-C."""
    features_VF = item_features(config, dataset, run, accelerator, reporter)
    try:
        with stop_on_signals(reporter) as stop:
            Learning(config, dataset, parts, run, accelerator, reporter, stop, features_VF).learn()
    except Interrupted:
        raise Interrupted(
            f"stopped, nothing is lost: go on with `recsys train --resume --out {run}`"
        ) from None
    finally:
        reporter.close()
    accelerator.free_memory()  # the evaluation loads the weights anew


def _count(config: RunConfig, dataset: SequenceDataset, parts: Split, run: Path) -> None:
    """Fit a counting model; there are no epochs."""
    started = time.perf_counter()
    histories = parts.refit if config.refit else parts.train
    model = model_class(config.model_name)(config.model, dataset.num_items)
    fit_counting(model, dataset, histories)
    checkpoint.write_tensors(run / checkpoint.WEIGHTS, model.state_dict())
    seconds = max(time.perf_counter() - started, 1e-9)
    interactions = int((histories.end - histories.start).sum())
    record = {
        "epoch": 1,
        "loss": None,
        "seconds": seconds,
        "interactions": interactions,
        "interactions_per_second": round(interactions / seconds, 1),
        "peak_rss_mb": peak_rss_mb(),
    }
    checkpoint.write_lines(run / checkpoint.HISTORY, [record])
