"""The loop: what it counts, when it stops, and that stopping changes nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from worlds import world

from recsys.batch import Batch
from recsys.checkpoint import read_tensors, write_tensors
from recsys.data.loader import TrainLoader
from recsys.data.split import SplitConfig, split
from recsys.errors import InputError, Interrupted, WorkError
from recsys.eval.evaluator import evaluate
from recsys.models.base import SequenceModel
from recsys.models.sasrec import SASRec
from recsys.training.average import RunningMean
from recsys.training.losses import SampledSoftmax, Softmax
from recsys.training.objectives import Objective, next_item
from recsys.training.trainer import (
    Progress,
    Trainer,
    TrainerConfig,
    precision,
)

RANDOM = np.random.default_rng(0)
HISTORIES = [RANDOM.integers(1, 13, length).tolist() for length in RANDOM.integers(4, 10, 40)]
DATASET = world(HISTORIES, num_items=12)
PARTS = split(DATASET, SplitConfig())
COUNTS = torch.ones(13, dtype=torch.int64)
MAX_LEN = 4
SHOWN = [history[:-2][-MAX_LEN - 1 :] for history in HISTORIES]
"""What an epoch holds; with batches of 8, it has 5 of them."""
TIMING = {"seconds", "interactions_per_second", "valid_seconds", "peak_rss_mb"}


def trainer(
    seed: int = 0,
    order: int = 0,
    objective: Objective | None = None,
    dropout: float = 0.0,
    stop_after: int | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer of a small model; `order` is the seed of the batches, `seed` of all else."""
    torch.manual_seed(seed)
    sizes = {"dim": 8, "num_layers": 1, "num_heads": 1, "max_len": MAX_LEN}
    model = SASRec(SASRec.Config(**sizes, dropout=dropout), DATASET.num_items)
    config = TrainerConfig(**{"epochs": 2, "batch_size": 8, "lr": 0.01, **settings})
    loader = TrainLoader(DATASET, PARTS.train, config.batch_size, MAX_LEN + 1, order)
    objective = objective or next_item(Softmax(), COUNTS)
    return Trainer(model, objective, config, loader, Accelerator(cpu=True), stop_after)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Notes:
    """A watcher that keeps what it is told, and asks to stop at a step or after an epoch."""

    def __init__(self, step: int | None = None, epoch: int | None = None) -> None:
        self.stop_step, self.stop_epoch = step, epoch
        self.records: list[dict[str, Any]] = []
        self.saved: list[tuple[dict[str, Tensor], dict[str, Any]]] = []
        self.best: list[dict[str, Tensor]] = []
        self.stop = False

    def batch(self, progress: Progress, num_batches: int) -> None:
        self.stop = self.stop_step is not None and progress.step >= self.stop_step

    def epoch(self, record: dict[str, Any], history: list[dict[str, Any]], best_epoch: int) -> None:
        assert history[-1] == record
        self.records.append(record)
        self.stop = record["epoch"] == self.stop_epoch

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        self.saved.append((copies, json.loads(json.dumps(meta))))

    def better(self, model: nn.Module) -> None:
        self.best.append(weights(model))

    def stop_requested(self) -> bool:
        return self.stop


def validation(trainer: Trainer) -> Callable[[], dict[str, float]]:
    return lambda: evaluate(trainer.model, DATASET, PARTS.valid).metrics([10])


def scripted(*values: float) -> Callable[[], dict[str, float]]:
    """A validation with known results."""
    left = iter(values)
    return lambda: {"ndcg@10": next(left)}


def outcome(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that a training leaves but the time it took."""
    tensors, meta = trainer.state()
    for record in meta["history"]:
        for name in TIMING & record.keys():
            del record[name]
    return {name: tensor.clone() for name, tensor in tensors.items()}, meta


def at_each_step(trainer: Trainer, look: Callable[[torch.optim.Optimizer], Any]) -> list[Any]:
    """What `look` sees just before each optimizer step; filled while training goes on."""
    seen: list[Any] = []
    optimizer = trainer.optimizer.optimizer
    optimizer.register_step_pre_hook(lambda *_: seen.append(look(optimizer)))
    return seen


def gradient(optimizer: torch.optim.Optimizer) -> Tensor:
    """All gradients as one vector."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return torch.cat([p.grad.flatten() for p in parameters])


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    (rate,) = {group["lr"] for group in optimizer.param_groups}
    return rate


# ---- the mean of the weights ---------------------------------------------------------------------


class Weights(Notes):
    """Notes that keep the weights after each step."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.model = trainer.model
        self.seen = [weights(self.model)]

    def batch(self, progress: Progress, num_batches: int) -> None:
        self.seen.append(weights(self.model))


def test_the_mean_of_the_weights_is_validated_and_kept_and_training_goes_on_without_it():
    plain, averaged = trainer(), trainer(average=0.5)
    notes = Weights(averaged)
    validated: list[dict[str, Tensor]] = []

    def validate() -> dict[str, float]:
        validated.append(weights(averaged.model))
        return {"ndcg@10": float(len(validated))}

    averaged.fit(validate, notes)
    plain.fit(scripted(1.0, 2.0), Notes())
    assert equal(weights(averaged.model), weights(plain.model))

    mean = notes.seen[0]
    means = []
    for step, seen in enumerate(notes.seen[1:], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        mean = {name: decay * mean[name] + (1 - decay) * seen[name] for name in seen}
        means.append(mean)
    for found, expected in zip(validated, (means[4], means[9]), strict=True):
        torch.testing.assert_close(found, expected)
    assert all(equal(kept, found) for kept, found in zip(notes.best, validated, strict=True))


def test_what_is_not_trained_is_not_averaged():
    small = trainer(average=0.5)
    frozen = next(name for name, _ in small.model.named_parameters())
    small.model.get_parameter(frozen).requires_grad_(False)
    mean = RunningMean(small.model, 0.5)
    assert frozen not in mean.state()
    with pytest.raises(ValueError, match="no mean of these weights"):
        mean.load_state({})


@pytest.mark.parametrize("average", [-0.1, 1.0])
def test_a_mean_needs_a_share_below_one(average: float):
    with pytest.raises(InputError, match=r"trainer\.average must lie in \[0, 1\)"):
        TrainerConfig(average=average)


# ---- stopping and going on ----------------------------------------------------------------------

RESUMED = {"objective": next_item(SampledSoftmax(num_negatives=4), COUNTS), "dropout": 0.3}
"""Dropout and negatives are drawn at every step: going on needs the state of the generator."""


def go_on(saved: tuple[dict[str, Tensor], dict[str, Any]], path: Path, **settings: Any) -> Trainer:
    """A trainer of a new process that takes up a state from disk."""
    write_tensors(path, *saved)
    resumed = trainer(seed=99, **RESUMED, **settings)
    resumed.load_state(*read_tensors(path))
    return resumed


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "stop", [{"step": 1}, {"step": 3}, {"step": 4}, {"step": 5}, {"epoch": 1}, {"epoch": 2}]
)
def test_a_resumed_training_equals_an_unbroken_one_to_the_bit(tmp_path: Path, stop, accumulate):
    settings = {"epochs": 3, "accumulate": accumulate, "schedule": "cosine", "warmup_steps": 4}
    settings["average"] = 0.7
    whole = trainer(**RESUMED, **settings)
    whole.fit(validation(whole), Notes())

    broken, notes = trainer(**RESUMED, **settings), Notes(**stop)
    with pytest.raises(Interrupted):
        broken.fit(validation(broken), notes)
    resumed = go_on(notes.saved[-1], tmp_path / "state", **settings)
    resumed.fit(validation(resumed), Notes())

    (tensors, meta), (whole_tensors, whole_meta) = outcome(resumed), outcome(whole)
    assert equal(tensors, whole_tensors)
    assert meta == whole_meta
    assert len(meta["history"]) == 3


def test_stopping_after_every_single_step_changes_nothing(tmp_path: Path):
    whole = trainer(**RESUMED)
    whole.fit(validation(whole), Notes())

    pieces, stops = trainer(**RESUMED), 0
    for _ in range(20):
        notes = Notes(step=pieces.progress.step + 1)
        try:
            pieces.fit(validation(pieces), notes)
            break
        except Interrupted:
            stops += 1
            pieces = go_on(notes.saved[-1], tmp_path / "state")
    assert stops == 10
    assert equal(outcome(pieces)[0], outcome(whole)[0])
    assert outcome(pieces)[1] == outcome(whole)[1]


def test_a_stop_saves_the_step_it_stopped_at():
    stopped, notes = trainer(), Notes(step=3)
    with pytest.raises(Interrupted):
        stopped.fit(None, notes)
    assert stopped.progress.step == 3
    ((tensors, meta),) = notes.saved
    assert (meta["epoch"], meta["batch"], meta["step"]) == (0, 3, 3)
    for name, tensor in stopped.model.state_dict().items():
        assert torch.equal(tensors[f"model.{name}"], tensor)


def test_a_stop_waits_for_the_optimizer_step():
    stopped, notes = trainer(accumulate=2), Notes(step=0)
    with pytest.raises(Interrupted):
        stopped.fit(None, notes)
    assert (stopped.progress.batch, stopped.progress.step) == (2, 1)


def test_a_stop_when_all_is_done_is_no_interruption():
    done = trainer(epochs=1)
    assert done.fit(None, Notes(epoch=1)).epoch == 1


class Clock(Notes):
    """Notes under which every batch takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def batch(self, progress: Progress, num_batches: int) -> None:
        self.now += 1.0


@pytest.mark.parametrize(
    ("seconds", "places"),
    [
        (99.0, [(1, 0), (2, 0)]),
        (2.5, [(0, 3), (1, 0), (1, 3), (2, 0)]),
        (1.5, [(0, 2), (0, 4), (1, 0), (1, 2), (1, 4), (2, 0)]),
    ],
)
def test_a_state_is_saved_each_epoch_and_within_one_when_it_is_due(
    monkeypatch: pytest.MonkeyPatch, seconds, places
):
    clock = Clock()
    monkeypatch.setattr("recsys.training.trainer.time.monotonic", lambda: clock.now)
    trainer(save_every_seconds=seconds).fit(None, clock)
    assert [(meta["epoch"], meta["batch"]) for _, meta in clock.saved] == places


def test_the_seed_decides_the_weights():
    outcomes = []
    for seed in (1, 1, 2):
        trained = trainer(seed=seed, **RESUMED)
        trained.fit(None, Notes())
        outcomes.append(outcome(trained)[0])
    assert equal(outcomes[0], outcomes[1])
    assert not equal(outcomes[0], outcomes[2])


def test_the_order_of_batches_decides_the_weights():
    one, other = trainer(order=1), trainer(order=2)
    one.fit(None, Notes())
    other.fit(None, Notes())
    assert not equal(weights(one.model), weights(other.model))


# ---- what is counted ----------------------------------------------------------------------------


def test_an_epoch_counts_every_interaction_once():
    notes = Notes()
    trainer().fit(None, notes)
    assert [record["epoch"] for record in notes.records] == [1, 2]
    assert {record["interactions"] for record in notes.records} == {sum(map(len, SHOWN))}
    assert all(record["seconds"] > 0 for record in notes.records)


def test_every_epoch_shows_the_same_histories_in_another_order():
    shown: list[list[int]] = []
    sound = next_item(Softmax(), COUNTS)

    def looking(model: SequenceModel, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        rows = zip(batch.items_BT.tolist(), batch.lengths_B.tolist(), strict=True)
        shown.extend(items[:length] for items, length in rows)
        return sound(model, batch)

    trainer(objective=looking).fit(None, Notes())
    first, second = shown[: len(SHOWN)], shown[len(SHOWN) :]
    assert sorted(first) == sorted(second) == sorted(SHOWN)
    assert first != second


def test_the_loss_of_an_epoch_is_the_mean_over_its_pairs():
    # Steps too small to move a weight: every batch sees the model of the beginning.
    still, notes = trainer(lr=1e-30, epochs=1), Notes()
    still.fit(None, notes)
    total = pairs = 0.0
    for history in SHOWN:
        items = torch.tensor([history])
        query_TD = still.model.encode(Batch(items[:, :-1], torch.tensor([len(history) - 1])))[0]
        logits_TV = query_TD @ still.model.item_vectors()[1:].T
        total += F.cross_entropy(logits_TV, items[0, 1:] - 1, reduction="sum").item()
        pairs += len(history) - 1
    assert notes.records[0]["loss"] == pytest.approx(total / pairs, rel=1e-5)


def exact(model: SequenceModel, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy that keeps the precision of the model."""
    pairs = model.training_pairs(batch)
    loss = F.cross_entropy(pairs.query_ND @ model.item_vectors()[1:].T, pairs.target_N - 1)
    return loss, {"pairs": float(len(pairs.target_N))}


def test_accumulated_batches_are_one_big_batch():
    found = []
    for sizes in ({"batch_size": len(HISTORIES)}, {"batch_size": 9, "accumulate": 5}):
        trained = trainer(objective=exact, epochs=1, grad_clip=0, **sizes)
        trained.model.double()
        gradients = at_each_step(trained, gradient)
        record = trained.fit(None, Notes()).history[0]
        assert trained.progress.step == 1
        found.append((gradients[0], weights(trained.model), record["loss"]))
    (whole, whole_weights, whole_loss), (parts, parts_weights, parts_loss) = found
    torch.testing.assert_close(parts, whole, atol=1e-14, rtol=1e-10)
    assert parts_loss == pytest.approx(whole_loss, rel=1e-12)
    for name, tensor in whole_weights.items():
        torch.testing.assert_close(parts_weights[name], tensor, atol=1e-8, rtol=1e-8)


def test_a_batch_left_over_by_accumulation_makes_a_step_of_its_own():
    # Steps too small to move a weight: the fifth batch alone gives what it gives as the third step.
    found = []
    for accumulate in (1, 2):
        trained = trainer(lr=1e-30, epochs=1, accumulate=accumulate)
        gradients = at_each_step(trained, gradient)
        trained.fit(None, Notes())
        found.append(gradients)
    assert [len(gradients) for gradients in found] == [5, 3]
    torch.testing.assert_close(found[1][-1], found[0][-1])


# ---- the size of steps --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1.0] * 10),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75] + [1.0] * 7),
        ({"schedule": "linear"}, [1 - step / 10 for step in range(10)]),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.5, *(1 - s / 10 for s in range(1, 10))]),
        ({"schedule": "linear", "accumulate": 2}, [1 - step / 6 for step in range(6)]),
        ({"schedule": "linear", "stop_after": 1}, [1 - step / 10 for step in range(5)]),
    ],
)
def test_the_learning_rate_follows_warm_up_and_schedule(settings, expected):
    trained = trainer(lr=0.02, **settings)
    rates = at_each_step(trained, learning_rate)
    trained.fit(None, Notes())
    assert rates == pytest.approx([0.02 * factor for factor in expected])


def first_gradient(**settings: Any) -> Tensor:
    trained = trainer(epochs=1, **settings)
    gradients = at_each_step(trained, gradient)
    trained.fit(None, Notes())
    return gradients[0]


def test_a_gradient_is_shortened_to_the_limit_and_never_stretched():
    free = first_gradient(grad_clip=0)
    norm = free.norm().item()
    clipped = first_gradient(grad_clip=norm / 10)
    torch.testing.assert_close(clipped, free / 10, rtol=1e-4, atol=0)
    assert torch.equal(first_gradient(grad_clip=norm * 10), free)


# ---- early stopping -----------------------------------------------------------------------------


def test_training_stops_when_patience_is_used_up_and_keeps_the_best_epoch():
    trained, notes = trainer(epochs=9, patience=2), Notes()
    validate, seen = scripted(0.1, 0.3, 0.3, 0.2, 0.9), []

    def look() -> dict[str, float]:
        assert not trained.model.training
        seen.append(weights(trained.model))
        return validate()

    progress = trained.fit(look, notes)
    assert (progress.epoch, progress.best_epoch, progress.best_value) == (4, 2, 0.3)
    assert len(notes.best) == 2
    assert equal(notes.best[-1], seen[1])
    assert not equal(notes.best[-1], seen[3])
    assert [record["valid"]["ndcg@10"] for record in notes.records] == [0.1, 0.3, 0.3, 0.2]


def test_a_better_validation_renews_patience():
    values = (0.1, 0.0, 0.2, 0.0, 0.3, 0.0, 0.0, 0.9)
    progress = trainer(epochs=8, patience=2).fit(scripted(*values), Notes())
    assert (progress.epoch, progress.best_epoch) == (7, 5)


def test_patience_of_zero_trains_all_epochs():
    progress = trainer(epochs=6, patience=0).fit(scripted(0.5, *[0.1] * 5), Notes())
    assert (progress.epoch, progress.best_epoch) == (6, 1)


def test_the_metric_of_the_settings_chooses_the_best_epoch():
    rising = iter([1, 2, 3])

    def validate() -> dict[str, float]:
        value = float(next(rising))
        return {"ndcg@10": value, "hr@10": -value}

    assert trainer(epochs=3, metric="hr@10").fit(validate, Notes()).best_epoch == 1


def test_a_metric_that_is_not_measured_is_refused():
    with pytest.raises(InputError, match="must be one of ndcg@10, got 'ndcg@5'"):
        trainer(metric="ndcg@5").fit(scripted(0.1), Notes())


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [({}, [2, 4, 5]), ({"stop_after": 3}, [2, 3]), ({"patience": 1}, [2, 4])],
)
def test_validation_comes_every_so_many_epochs_and_at_the_end(settings, epochs):
    notes = Notes()
    values = scripted(0.3, 0.2, 0.1)
    trainer(**{"epochs": 5, "validate_every": 2, "patience": 9, **settings}).fit(values, notes)
    assert [record["epoch"] for record in notes.records if "valid" in record] == epochs


def test_without_validation_all_epochs_are_trained_and_none_is_best():
    notes = Notes()
    progress = trainer(epochs=3, patience=1).fit(None, notes)
    assert (progress.epoch, progress.best_epoch, notes.best) == (3, 0, [])


# ---- what goes wrong ----------------------------------------------------------------------------


class Broken:
    """An objective whose n-th loss is `value`."""

    def __init__(self, call: int, value: float):
        self.left, self.value = call, value
        self.sound = next_item(Softmax(), COUNTS)

    def __call__(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        self.left -= 1
        loss, logs = self.sound(model, batch)
        return (loss * self.value if self.left == 0 else loss), logs


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("batch", "accumulate", "place"),
    [
        (1, 1, r"step 1 \(epoch 1, batch 1\)"),
        (3, 1, r"step 3 \(epoch 1, batch 3\)"),
        (7, 1, r"step 7 \(epoch 2, batch 2\)"),
        (4, 2, r"step 2 \(epoch 1, batch 4\)"),
        (3, 2, r"step 2 \(epoch 1, batch 3\)"),
        (1, 2, r"step 1 \(epoch 1, batch 1\)"),
    ],
)
def test_a_loss_that_is_not_a_number_stops_training_at_its_step(batch, accumulate, place, value):
    broken = trainer(objective=Broken(batch, value), accumulate=accumulate)
    with pytest.raises(WorkError, match=f"the loss is not a number at {place}"):
        broken.fit(None, Notes())


def test_a_loss_that_is_not_a_number_is_not_saved():
    notes = Notes()
    broken = trainer(objective=Broken(7, math.nan), save_every_seconds=0.0)
    with pytest.raises(WorkError):
        broken.fit(scripted(0.1), notes)
    assert notes.saved[-1][1]["step"] == 6
    for tensors in (notes.saved[-1][0], notes.best[-1]):
        assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize("name", ["batch_size", "accumulate", "validate_every", "lr"])
def test_settings_that_must_be_above_zero(name):
    for value in (0, -1, math.nan):
        with pytest.raises(InputError, match=f"trainer.{name} must be above 0, got {value}"):
            TrainerConfig(**{name: value})


@pytest.mark.parametrize(
    "name", ["weight_decay", "warmup_steps", "grad_clip", "patience", "save_every_seconds"]
)
def test_settings_that_must_not_be_negative(name):
    TrainerConfig(**{name: 0})
    with pytest.raises(InputError, match=f"trainer.{name} must not be negative, got -1"):
        TrainerConfig(**{name: -1})


# ---- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_precision_is_as_wished(device):
    assert precision("float32", torch.device(device)) == torch.float32
    assert precision("bf16", torch.device(device)) == torch.bfloat16


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_is_what_the_hardware_multiplies(
    monkeypatch: pytest.MonkeyPatch, native, dtype
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert precision("auto", torch.device("cpu")) == dtype
    assert precision("auto", torch.device("cuda")) == dtype
    assert precision("auto", torch.device("mps")) == torch.float32
