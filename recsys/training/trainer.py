"""The one loop: epochs of optimizer steps, validation, early stopping, and a state that resumes.

Resuming is bit-equal on one machine: the state holds weights, optimizer moments, the random
generator, the place in the epoch and every number that decides something later.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from recsys.batch import Batch
from recsys.data.loader import TrainLoader
from recsys.errors import InputError, Interrupted, WorkError
from recsys.models.base import SequenceModel
from recsys.training.average import RunningMean
from recsys.training.memory import peak_rss_mb
from recsys.training.objectives import Objective
from recsys.training.optimizers import Schedule, adamw, learning_rate_factor

Precision = Literal["auto", "float32", "bf16"]


@dataclass(frozen=True)
class TrainerConfig:
    """Settings named trainer.* on the command line."""

    epochs: int = 100
    """Most passes over the training histories; 0 leaves a model as it begins, which is something
    for one that starts from a pretrained encoder."""
    batch_size: int = 256
    """Histories a batch (in each process)."""
    long_histories: Literal["last", "windows", "moving_windows"] = "last"
    """What an epoch sees of a history longer than model.max_len: its last items, or all of it in
    windows that follow each other, where they always are or elsewhere in every epoch."""
    accumulate: int = 1
    """Batches whose gradients are added up for one optimizer step."""
    lr: float = 1e-3
    """Learning rate, which warm-up and schedule take a share of."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW, for matrices and tables."""
    schedule: Schedule = "constant"
    """How its share falls from 1 to 0, from the first step to the last of `epochs`."""
    warmup_steps: int = 0
    """Optimizer steps over which a second share, beside the schedule's, rises to 1."""
    grad_clip: float = 5.0
    """Largest norm of the gradient; 0 for no limit."""
    average: float = 0.0
    """Share of the past in a running mean of the weights, which is validated and kept in their
    place, as 0.99 for the last 100 steps or so; 0 for the weights themselves."""
    precision: Precision = "auto"
    """bf16 runs matrix products in bfloat16; auto does where the hardware has it, on a CPU for the
    loss and for models that read texts alone."""
    validate_every: int = 1
    """Epochs between validations."""
    patience: int = 10
    """Validations without a better `metric` before training stops; 0 trains all epochs."""
    metric: str = "ndcg@10"
    """Validation metric that chooses the best epoch; larger is better."""
    save_every_seconds: float = 300.0
    """A state is saved at the end of an epoch, and within one when the last is older than this."""
    tensorboard: bool = False
    """Write TensorBoard events into RUN/tensorboard (needs the extra `track`)."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "validate_every", "lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"trainer.{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.average < 1:
            raise InputError(f"trainer.average must lie in [0, 1), got {self.average}")
        for name in (
            "epochs",
            "weight_decay",
            "warmup_steps",
            "grad_clip",
            "patience",
            "save_every_seconds",
        ):
            if not getattr(self, name) >= 0:
                raise InputError(f"trainer.{name} must not be negative, got {getattr(self, name)}")


@dataclass
class Progress:
    """Where the loop stands. Plain numbers, so that it is saved as JSON and nothing is lost."""

    epoch: int = 0
    """Whole epochs done."""
    batch: int = 0
    """Batches done in the running epoch."""
    step: int = 0
    """Optimizer steps done."""
    loss_sum: float = 0.0
    """Sum over the pairs of the running epoch."""
    pairs: float = 0.0
    interactions: int = 0
    seconds: float = 0.0
    best_value: float | None = None
    best_epoch: int = 0
    stale: int = 0
    """Validations since the best one."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """A record an epoch, as in history.jsonl."""


class Watcher(Protocol):
    """Who is told how training goes."""

    def batch(self, progress: Progress, num_batches: int) -> None:
        """A batch is done."""
        ...

    def epoch(self, record: dict[str, Any], history: list[dict[str, Any]], best_epoch: int) -> None:
        """An epoch is done and validated; `history` holds its record and those before it."""
        ...

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Keep a state that `Trainer.load_state` takes."""
        ...

    def better(self, model: nn.Module) -> None:
        """The model is the best so far by validation."""
        ...

    def stop_requested(self) -> bool:
        """True when training should save its state and stop."""
        ...


class Trainer:
    """Fits a model to an objective. One instance a training."""

    def __init__(
        self,
        model: SequenceModel,
        objective: Objective,
        config: TrainerConfig,
        loader: TrainLoader,
        accelerator: Accelerator,
        stop_after: int | None = None,
    ):
        """`stop_after` ends training after so many epochs, on the schedule of `config.epochs`."""
        self.config = config
        self._last_epoch = config.epochs if stop_after is None else stop_after
        self.loader = loader
        self.accelerator = accelerator
        self.model = model.to(accelerator.device)
        optimizer = adamw(model, config.lr, config.weight_decay)
        self._step_module, self.optimizer = accelerator.prepare(_Step(model, objective), optimizer)
        self._mean = RunningMean(model, config.average) if config.average else None
        self.progress = Progress()
        self._last_save = time.monotonic()
        self._base_lr = config.lr
        # Reading a loss waits for the device; on a GPU it is done for many steps at once.
        self._check_every = 1 if accelerator.device.type == "cpu" else 50 * config.accumulate

    def fit(self, validate: Callable[[], dict[str, float]] | None, watcher: Watcher) -> Progress:
        """Train until `epochs` or `patience` ends it.

        Raises Interrupted on request, after saving, and WorkError when the loss is not a number.
        """
        while not self._finished():
            self._train_epoch(watcher)
            self._close_epoch(validate, watcher)
        return self.progress

    def _finished(self) -> bool:
        at, patience = self.progress, self.config.patience
        return at.epoch >= self._last_epoch or bool(patience and at.stale >= patience)

    def _train_epoch(self, watcher: Watcher) -> None:
        at = self.progress
        self.model.train()
        started, seconds_before = time.perf_counter(), at.seconds
        if at.batch == 0:
            self.model.start_epoch(at.epoch)
        unread: list[Tensor] = []
        pending = 0.0
        for batch in self.loader.epoch(at.epoch, at.batch):
            last = at.batch + 1 == len(self.loader)
            closes = last or (at.batch + 1) % self.config.accumulate == 0
            self._seed_batch()
            loss, pairs = self._backward(batch, closes)
            pending += pairs
            if closes:
                self._optimizer_step(pending)
                pending = 0.0
            unread.append(loss * pairs)
            at.pairs += pairs
            at.interactions += int(batch.lengths_B.sum())
            at.batch += 1
            at.seconds = seconds_before + time.perf_counter() - started
            if last or len(unread) >= self._check_every:
                self._read(unread)
                unread = []
                watcher.batch(at, len(self.loader))
                if closes:
                    self._save_if_due(watcher)

    def _seed_batch(self) -> None:
        """Of several processes each draws dropout and negatives of its own, batch by batch: a saved
        state, which is that of the first process, is enough to go on from."""
        at, process = self.progress, self.accelerator.process_index
        if self.accelerator.num_processes > 1:
            seeds = np.random.SeedSequence([self.loader.seed, at.epoch, at.batch, process])
            torch.manual_seed(int(seeds.generate_state(1)[0]))

    def _backward(self, batch: Batch, closes: bool) -> tuple[Tensor, float]:
        """Add the gradient of one batch; (its mean loss, its number of pairs)."""
        batch = batch.to(self.accelerator.device)
        if closes:
            loss, logs = self._step_module(batch)
        else:
            with self.accelerator.no_sync(self._step_module):
                loss, logs = self._step_module(batch)
        pairs = logs["pairs"]
        # With accumulation, batches weigh as their pairs do: the sum is divided at the step.
        self.accelerator.backward(loss if self.config.accumulate == 1 else loss * pairs)
        return loss.detach(), pairs

    def _optimizer_step(self, pairs: float) -> None:
        at, config = self.progress, self.config
        if config.accumulate > 1:
            if self.accelerator.num_processes > 1:
                # Gradients are means over the processes, and so is what they are divided by.
                pairs_1 = torch.tensor([pairs], device=self.accelerator.device)
                pairs = float(self.accelerator.reduce(pairs_1, "mean"))
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= pairs
        total = self._steps_an_epoch * config.epochs
        factor = learning_rate_factor(at.step, total, config.warmup_steps, config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self._base_lr * factor
        if config.grad_clip:
            self.accelerator.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        at.step += 1
        if self._mean:
            self._mean.update(at.step)

    @property
    def _steps_an_epoch(self) -> int:
        return math.ceil(len(self.loader) / self.config.accumulate)

    def _step_of(self, batch: int) -> int:
        """The optimizer step, from 1, that batch number `batch` of this epoch belongs to."""
        return self.progress.epoch * self._steps_an_epoch + math.ceil(
            batch / self.config.accumulate
        )

    def _read(self, losses: list[Tensor]) -> None:
        """Add losses to the epoch's sum; refuse one that is not finite."""
        total = float(torch.stack(losses).double().sum())
        if not math.isfinite(total):
            at = self.progress
            first, last = self._step_of(at.batch - len(losses) + 1), self._step_of(at.batch)
            where = f"step {last}" if first == last else f"steps {first} to {last}"
            raise WorkError(
                f"the loss is not a number at {where} (epoch {at.epoch + 1}, batch {at.batch});"
                " try a lower trainer.lr, trainer.warmup_steps or trainer.precision=float32. The"
                " best weights and the last state are kept"
            )
        self.progress.loss_sum += total

    def _close_epoch(
        self, validate: Callable[[], dict[str, float]] | None, watcher: Watcher
    ) -> None:
        at, config = self.progress, self.config
        at.epoch, at.batch = at.epoch + 1, 0
        record: dict[str, Any] = {
            "epoch": at.epoch,
            "loss": at.loss_sum / at.pairs,
            "seconds": round(at.seconds, 4),
            "interactions": at.interactions,
            "interactions_per_second": round(at.interactions / at.seconds, 1),
        }
        at.loss_sum, at.pairs, at.interactions, at.seconds = 0.0, 0.0, 0, 0.0
        due = at.epoch % config.validate_every == 0 or at.epoch == self._last_epoch
        if validate is not None and due:
            record |= self._validate(validate, watcher)
        record["peak_rss_mb"] = peak_rss_mb()
        at.history.append(record)
        watcher.epoch(record, at.history, at.best_epoch)
        self._save(watcher)
        if watcher.stop_requested() and not self._finished():
            raise Interrupted

    def _validate(
        self, validate: Callable[[], dict[str, float]], watcher: Watcher
    ) -> dict[str, Any]:
        """Take the validation metrics and compare them with the best so far."""
        at, metric = self.progress, self.config.metric
        self.model.eval()
        started = time.perf_counter()
        with self.averaged():
            metrics = validate()
        seconds = round(time.perf_counter() - started, 4)
        if metric not in metrics:
            raise InputError(f"trainer.metric must be one of {', '.join(metrics)}, got {metric!r}")
        if at.best_value is None or metrics[metric] > at.best_value:
            at.best_value, at.best_epoch, at.stale = metrics[metric], at.epoch, 0
            self.hand_over(watcher)
        else:
            at.stale += 1
        return {"valid": metrics, "valid_seconds": seconds}

    def averaged(self) -> AbstractContextManager[None]:
        """The model has the mean of its weights for the time of a block, where one is asked for."""
        return self._mean.in_place() if self._mean else nullcontext()

    def hand_over(self, watcher: Watcher) -> None:
        """Give the watcher the model as it is to be kept."""
        with self.averaged():
            watcher.better(self.model)

    def _save_if_due(self, watcher: Watcher) -> None:
        if watcher.stop_requested():
            self._save(watcher)
            raise Interrupted
        if time.monotonic() - self._last_save > self.config.save_every_seconds:
            self._save(watcher)

    def _save(self, watcher: Watcher) -> None:
        watcher.save(*self.state())
        self._last_save = time.monotonic()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values): all that a later `load_state` needs to go on bit-equal."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
        if self._mean:
            tensors |= {f"average.{name}": mean for name, mean in self._mean.state().items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self.accelerator.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        return tensors, dataclasses.asdict(self.progress)

    def load_state(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go back to where a saved state stood."""
        self.progress = Progress(**meta)
        parts: dict[str, dict[str, Tensor]]
        parts = {"model": {}, "optimizer": {}, "average": {}, "random": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self._mean:
            self._mean.load_state(parts["average"])
        torch.set_rng_state(parts["random"]["cpu"])
        if "cuda" in parts["random"] and self.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(parts["random"]["cuda"], self.accelerator.device)


class _Step(nn.Module):
    """Model and objective as one module, so that wrappers of the forward pass see both."""

    def __init__(self, model: SequenceModel, objective: Objective):
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return self.objective(self.model, batch)


def precision(wish: Precision, device: torch.device) -> torch.dtype:
    """Dtype of matrix products: bf16 by request, or where the hardware multiplies it natively."""
    if wish == "auto":
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        )
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if wish == "bf16" else torch.float32
