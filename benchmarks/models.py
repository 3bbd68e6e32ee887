"""Training speed, memory and the cost of one event, for every model that learns.

    RECSYS_DATA=… python benchmarks/models.py                      (all)
    RECSYS_DATA=… python benchmarks/models.py lru_rec sasrec       (some)
    RECSYS_DATA=… python benchmarks/models.py --only ml1m 200      (one data set and length)
    RECSYS_DATA=… python benchmarks/models.py --bf16 lru_rec       (trainer.precision=bf16)
    RECSYS_DATA=… python benchmarks/models.py --in-turn sasrec lru_rec   (the batches of ml1m at 200
                                                through each of them in turn, in one process)

d = 64, 2 layers, full softmax, batches of 128 histories of at most 50 and 200 items, by the trainer
itself; each case in a process of its own. As their recipes do, Beauty gives the last items of every
history, MovieLens-1M all of it in windows. Run nothing beside it.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
from machine import emit, recsys, source
from turns import full_softmax, in_turn, training_step

from recsys.data.loader import TrainLoader, windows
from recsys.data.sequences import SequenceDataset
from recsys.data.split import Histories, SplitConfig, split
from recsys.models.base import SequenceModel, model_class, model_names
from recsys.training.trainer import Precision, Trainer, TrainerConfig

FOLDER = Path(__file__).parents[1] / "runs" / "models"
SHAPE = {"dim": 64, "num_layers": 2, "num_heads": 2, "dropout": 0.2}
BATCH = 128
BATCHES = {"beauty": 40, "ml1m": 24}
"""Timed batches, after as many to warm up."""
LENGTHS = (50, 200)
EVENTS = (10, 50, 200, 2000)
"""Lengths of history at which one event is timed."""
TIMED_STEPS = 200
PASSES = 4
"""Through batches in turn."""


class Silent:
    """Told of everything, keeps nothing."""

    def batch(self, *_: Any) -> None:
        """Nothing."""

    epoch = save = better = batch

    def stop_requested(self) -> bool:
        """Never."""
        return False


def build(name: str, num_items: int, max_len: int) -> Any:
    """A fresh model of the compared shape, or of so many layers: mamba_rec-1."""
    name, _, layers = name.partition("-")
    kind = model_class(name)
    known = {field.name for field in dataclasses.fields(kind.Config)}
    wanted = {**SHAPE, "num_layers": int(layers or SHAPE["num_layers"]), "max_len": max_len}
    shape = {key: value for key, value in wanted.items() if key in known}
    torch.manual_seed(0)
    return kind(kind.Config(**shape), num_items)


def batches_of(data: str, max_len: int) -> tuple[SequenceDataset, TrainLoader]:
    """(a data set, some batches that stand for an epoch)."""
    dataset = SequenceDataset.load(FOLDER / data)
    histories = split(dataset, SplitConfig()).train
    if data == "ml1m":
        histories = windows(histories, max_len + 1)
    every = max(1, len(histories) // (BATCH * BATCHES[data]))
    some = Histories(histories.user[::every], histories.start[::every], histories.end[::every])
    return dataset, TrainLoader(dataset, some, BATCH, max_len + 1, seed=0)


def training(name: str, data: str, max_len: int, wish: Precision) -> dict[str, Any]:
    """Interactions a second and peak memory of some batches that stand for an epoch."""
    from accelerate import Accelerator

    from recsys.training.memory import keep_freed_memory, peak_rss_mb

    keep_freed_memory()
    dataset, loader = batches_of(data, max_len)
    model = build(name, dataset.num_items, max_len)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    objective = full_softmax(dataset.num_items, wish, accelerator.device)
    config = TrainerConfig(epochs=3, batch_size=BATCH, patience=0)
    trainer = Trainer(model, objective, config, loader, accelerator)
    progress = trainer.fit(None, Silent())
    speeds = [record["interactions_per_second"] for record in progress.history[1:]]
    return {"interactions_per_second": round(max(speeds)), "peak_rss_mb": peak_rss_mb()}


@torch.inference_mode()
def one_event(name: str, data: str, max_len: int) -> dict[str, Any]:
    """Median milliseconds of `step` and the best ten of the catalogue, by length of history."""
    dataset = SequenceDataset.load(FOLDER / data)
    model = build(name, dataset.num_items, max_len).eval()
    if not hasattr(model, "step"):
        return {}
    item_vectors = model.item_vectors()[1:]
    found = {}
    items = torch.randint(1, dataset.num_items + 1, (max(EVENTS) + TIMED_STEPS, 1))
    for length in EVENTS:
        state = model.init_state(1)
        for item_B in items[:length]:
            _, state = model.step(item_B, state)
        times = []
        for item_B in items[length : length + TIMED_STEPS]:
            started = time.perf_counter()
            query_BD, _ = model.step(item_B, state)
            torch.topk(query_BD @ item_vectors.T, 10)
            times.append((time.perf_counter() - started) * 1e3)
        found[str(length)] = round(statistics.median(times), 3)
    return {"step_and_top10_ms": found}


def compared(names: list[str], wish: Precision) -> None:
    """Training on MovieLens-1M at length 200, batch by batch in turn: of all batches, and of those
    whose histories all have 200 items; and how many times as fast as the first model."""
    from recsys.training.memory import keep_freed_memory

    keep_freed_memory()
    dataset, loader = batches_of("ml1m", 200)
    batches = list(loader.epoch(0))
    steps = {
        name: training_step(build(name, dataset.num_items, 200), dataset.num_items, wish)
        for name in names
    }
    took = in_turn(steps, batches, PASSES)
    items = [int((batch.lengths_B - 1).sum()) for batch in batches]
    full = [i for i, batch in enumerate(batches) if int(batch.lengths_B.min()) == 201]
    for name in names:
        figures = {}
        for which, chosen in (("all", list(range(len(batches)))), ("full", full)):
            seconds, first = (sum(took[who][i] for i in chosen) for who in (name, names[0]))
            figures[which] = {
                "batches": len(chosen),
                "interactions_per_second": round(sum(items[i] for i in chosen) / seconds),
                "times_as_fast": round(first / seconds, 3),
            }
        how = "" if wish == "auto" else f", precision {wish}"
        emit(
            f"model {name} in turn with {names[0]}, ml1m, length 200{how}", figures, "models.jsonl"
        )


def main(names: list[str], cases: list[tuple[str, int]], wish: Precision) -> None:
    """Every model on every data set and length, each alone in its process."""
    how = "" if wish == "auto" else f", precision {wish}"
    for data, max_len in cases:
        for name in names:
            command = [sys.executable, __file__, "--case", name, data, str(max_len), wish]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures = json.loads(answer.splitlines()[-1])
            emit(f"model {name}, {data}, length {max_len}{how}", figures, "models.jsonl")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        model_name, data_name, length = sys.argv[2], sys.argv[3], int(sys.argv[4])
        case = training(model_name, data_name, length, cast(Precision, sys.argv[5]))
        print(json.dumps(case | one_event(model_name, data_name, length)))
    else:
        learned = [n for n in model_names() if issubclass(model_class(n), SequenceModel)]
        words = [word for word in sys.argv[1:] if word != "--bf16"]
        asked: Precision = "bf16" if "--bf16" in sys.argv else "auto"
        for data_name in BATCHES:
            if not (FOLDER / data_name).exists():
                recsys("data", "prepare", source(data_name), "--out", FOLDER / data_name)
        if words[:1] == ["--in-turn"]:
            compared(words[1:] or learned, asked)
        else:
            chosen = [(data, length) for data in BATCHES for length in LENGTHS]
            if words[:1] == ["--only"]:
                chosen, words = [(words[1], int(words[2]))], words[3:]
            main(words or learned, chosen, asked)
