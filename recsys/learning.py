"""Training by gradient steps: the stages of a run, from its histories to its best weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recsys import checkpoint
from recsys.data.item_vectors import ItemVectors, fit_item_vectors
from recsys.data.loader import TrainLoader, flat_positions, windows
from recsys.data.sequences import SequenceDataset
from recsys.data.split import Histories, Split
from recsys.data.text import item_attributes
from recsys.data.token_rows import TokenRows, fit_token_rows
from recsys.errors import InputError
from recsys.eval.evaluator import evaluate as evaluate_model
from recsys.eval.report import DEFAULT_KS
from recsys.models.base import SequenceModel, model_class, new_model
from recsys.settings import RunConfig, metric_cutoff
from recsys.training.objectives import objective_of
from recsys.training.trainer import Trainer, precision
from recsys.training.watch import FolderWatcher, Reporter, StopRequest

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Learning:
    """One training by gradient steps, and once more where a refit is asked for."""

    config: RunConfig
    dataset: SequenceDataset
    parts: Split
    run: Path
    accelerator: "Accelerator"
    reporter: Reporter
    stop: StopRequest
    features_VF: torch.Tensor | None
    """Fixed vectors of the items, for a model that knows them by more than their numbers."""

    def learn(self) -> None:
        """Go through the stages, from a saved state where there is one."""
        saved: dict[str, torch.Tensor] = {}
        meta: dict[str, Any] = {}
        if (self.run / checkpoint.STATE).is_file():
            saved, meta = checkpoint.read_tensors(self.run / checkpoint.STATE)
        records: list[dict[str, Any]] = meta.get("earlier", [])
        if meta.get("stage") != "refit":
            trainer, watcher = self._stage("train", self.parts.train, [])
            if saved:
                self._load_state(trainer, saved, meta)
            trainer.fit(lambda: self._validate(trainer), watcher)
            if self.config.trainer.epochs == 0 and self.accelerator.is_main_process:
                trainer.model.start_epoch(0)
                trainer.hand_over(watcher)
                checkpoint.write_lines(self.run / checkpoint.HISTORY, [])
            saved, records = {}, trainer_records(trainer, "train")
            if self.config.refit and self.accelerator.is_main_process:
                self._evaluate_before_refit()
        if self.config.refit:
            best_epoch = best_record(records, self.config.trainer.metric)["epoch"]
            self.reporter.line(f"refit: once more on train and valid together, {best_epoch} epochs")
            trainer, watcher = self._stage("refit", self.parts.refit, records, best_epoch)
            if saved:
                self._load_state(trainer, saved, meta)
            trainer.fit(None, watcher)
            trainer.hand_over(watcher)

    def _evaluate_before_refit(self) -> None:
        """What the model reaches that has not learned from the valid targets."""
        seen, device = self.config.split.seen_items, self.accelerator.device
        model = checkpoint.load_model(self.run, device)
        found = evaluate_model(model, self.dataset, self.parts.test, seen, device)
        checkpoint.write_json(self.run / checkpoint.WITHOUT_REFIT, found.with_intervals(DEFAULT_KS))

    def _load_state(
        self, trainer: Trainer, saved: dict[str, torch.Tensor], meta: dict[str, Any]
    ) -> None:
        try:
            trainer.load_state(saved, meta["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise InputError(
                f"{self.run / checkpoint.STATE} does not belong to this run: {reason}"
            ) from None

    def _validate(self, trainer: Trainer) -> dict[str, float]:
        ks = sorted({10, metric_cutoff(self.config.trainer.metric)})
        seen, device = self.config.split.seen_items, self.accelerator.device
        found = evaluate_model(trainer.model, self.dataset, self.parts.valid, seen, device)
        return found.metrics(ks)

    def _stage(
        self,
        stage: str,
        histories: Histories,
        earlier: list[dict[str, Any]],
        stop_after: int | None = None,
    ) -> tuple[Trainer, FolderWatcher]:
        """A trainer on some histories, from fresh weights, and the watcher of its run folder."""
        config, accelerator = self.config, self.accelerator
        torch.manual_seed(config.seed)
        model = new_model(config.model_name, config.model, self.dataset.num_items, self.features_VF)
        assert isinstance(model, SequenceModel)
        model.begin(self.reporter.line)
        max_items = model.max_len + 1  # every item but the last has a next one to learn
        if config.trainer.long_histories == "windows":
            histories = windows(histories, max_items)
        loader = TrainLoader(
            self.dataset,
            histories,
            config.trainer.batch_size,
            max_items,
            config.seed,
            accelerator.process_index,
            accelerator.num_processes,
            moving_windows=config.trainer.long_histories == "moving_windows",
        )
        counts = torch.from_numpy(training_counts(self.dataset, histories))
        wish = config.trainer.precision
        dtype = precision(wish, accelerator.device)
        objective = objective_of(config.loss, counts, dtype, everywhere=wish == "bf16")
        trainer = Trainer(model, objective, config.trainer, loader, accelerator, stop_after)
        board = config.trainer.tensorboard
        main = accelerator.is_main_process
        return trainer, FolderWatcher(
            self.run, stage, earlier, self.reporter, self.stop, main, board
        )


def trainer_records(trainer: Trainer, stage: str) -> list[dict[str, Any]]:
    """The lines of history.jsonl that a finished stage leaves."""
    return [{**record, "stage": stage} for record in trainer.progress.history]


def best_record(records: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The first record with the highest validation metric."""
    return max(
        (record for record in records if "valid" in record),
        key=lambda record: record["valid"][metric],
    )


def training_counts(dataset: SequenceDataset, histories: Histories) -> np.ndarray:
    """int64 [V+1] how often each item occurs in the histories."""
    _, position = flat_positions(histories.start, histories.end)
    return np.bincount(dataset.items[position], minlength=dataset.num_items + 1)


def check_data(config: RunConfig, dataset: SequenceDataset) -> None:
    """InputError where the model needs texts, vectors or times, and the data set has none."""
    if getattr(config.model, "time", None) == "gaps" and dataset.timestamps is None:
        raise InputError(
            f"model.time=gaps needs the times of events, and {dataset.name} has none: prepare a log"
            " with times (data.time_column), or train with model.time=events"
        )
    if getattr(config.model, "days", None) is not None and not dataset.info.get("time_unit"):
        raise InputError(
            f"model.days needs to know what a day is, and {dataset.name} has no times, or none of a"
            " known unit: prepare a log with times (data.time_column), or leave model.days out"
        )
    if model_class(config.model_name).reads_tokens:
        item_attributes(dataset.catalogue)
    elif getattr(config.model, "item_encoder", "id") != "id":
        if config.model.item_vectors.endswith(".parquet"):
            fit_item_vectors(dataset.catalogue, config.model.item_vectors)
        else:
            item_attributes(dataset.catalogue)


def item_features(
    config: RunConfig,
    dataset: SequenceDataset,
    run: Path,
    accelerator: "Accelerator",
    reporter: Reporter,
) -> torch.Tensor | None:
    """[V+1, F] the fixed vectors or the tokens of the items, where the model knows them by any.

    What made them stays in the run folder, for items that come later.
    """
    catalogue, report = dataset.catalogue, reporter.line
    if model_class(config.model_name).reads_tokens:
        limits = config.model.max_item_tokens, config.model.max_attribute_tokens
        made: ItemVectors | TokenRows = fit_token_rows(
            catalogue, config.model.encoder, config.model.vocab_size, *limits, report
        )
    elif getattr(config.model, "item_encoder", "id") != "id":
        made = fit_item_vectors(catalogue, config.model.item_vectors, report)
    else:
        return None
    if accelerator.is_main_process:
        made.save(run)
    return torch.from_numpy(made.padded(catalogue))
