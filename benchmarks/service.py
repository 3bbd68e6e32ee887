"""The service over HTTP: requests a second, milliseconds, memory.

    RECSYS_DATA=… python benchmarks/service.py                (trains on Beauty for one epoch)
    python benchmarks/service.py --run RUN --event-run RUN    (runs whose data is still there)

`recsys serve` is one process with one worker; one other process (load.py) asks it over kept
connections, from 8 at a time or from 1, with the last 50 items of histories of the data. Events are
reported one by one, each followed by a question for the user's list. Asked of /recommend from 8
connections: 600 requests a second, 99 of 100 within 25 ms. Any answer but 200 with ten items fails
the run, and nothing is written. Run nothing beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import emit, recsys, source
from served import Served

from recsys.checkpoint import DATA_FACTS, read_config
from recsys.data.sequences import SequenceDataset
from recsys.data.vocab import Vocab

LOAD = Path(__file__).with_name("load.py")
WARM_UP_S = 3.0
HISTORIES = 5000
ITEMS = 50
USERS = 2000
"""Who report events, as many each as their history holds."""
Scripts = list[list[tuple[str, dict[str, Any]]]]


def trained(folder: Path, model: str) -> Path:
    """The run of a model after one epoch on Beauty, d = 64."""
    data, run = folder / "data", folder / model
    if not data.exists():
        recsys("data", "prepare", source("beauty"), "--out", data)
    options = ("--set", "model.dim=64", "--set", "trainer.epochs=1")
    recsys("train", "--model", model, "--data", data, "--out", run, *options)
    return run


def histories(run: Path, count: int) -> list[list[Any]]:
    """The last items of `count` users of the run's data, drawn anew where it has fewer."""
    dataset = SequenceDataset.load(read_config(run, DATA_FACTS)["dataset"]["path"])
    vocab = Vocab(dataset.catalogue["item"])
    users = np.flatnonzero(np.diff(dataset.offsets) > 0)
    chosen = np.random.default_rng(0).choice(users, count, replace=count > len(users))
    return [vocab.decode(dataset[user][-ITEMS:]) for user in chosen]


def questions(run: Path) -> Scripts:
    """A list for each history."""
    return [
        [("/recommend", {"history": history, "k": 10})] for history in histories(run, HISTORIES)
    ]


def reports(run: Path) -> Scripts:
    """Each event of a user, and the list behind it."""
    scripts: Scripts = []
    for number, history in enumerate(histories(run, USERS)):
        user = f"user-{number}"
        pairs = [
            (
                ("/events", {"user": user, "events": [{"item": item}]}),
                ("/recommend", {"user": user, "k": 10}),
            )
            for item in history
        ]
        scripts.append([question for pair in pairs for question in pair])
    return scripts


def driven(service: Served, scripts: Scripts, connections: int, seconds: float) -> dict[str, Any]:
    """What load.py found. SystemExit where an answer was not as it should be."""
    plan = {
        "host": service.host,
        "port": service.port,
        "connections": connections,
        "warm_up_seconds": WARM_UP_S,
        "seconds": seconds,
        "scripts": scripts,
    }
    words = [sys.executable, "-S", str(LOAD)]
    done = subprocess.run(words, input=json.dumps(plan), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"load.py failed: {done.stderr[-2000:]}\n{service.last_words()}")
    found = json.loads(done.stdout)
    if found.pop("failed"):
        raise SystemExit(f"the service failed: {found['failures']}\n{service.last_words()}")
    del found["failures"]
    return {"connections": connections, "seconds": seconds, **found}


def measure(what: str, run: Path, scripts: Scripts, connections: list[int], seconds: float) -> None:
    """A line of results for each number of connections, from one service."""
    with tempfile.TemporaryDirectory() as place:
        service = Served([run], Path(place) / "log")
        try:
            for count in connections:
                before = service.resident_mb()
                found = driven(service, scripts, count, seconds)
                memory = {"before": before, "after": service.resident_mb()}
                start = round(service.start_seconds, 2)
                facts = {"start_seconds": start, "resident_mb": memory}
                emit(f"{what}, {count} at a time", {**found, **facts}, "service.jsonl")
        finally:
            code = service.stop()
    if code:
        raise SystemExit(f"the service ended with {code}")


def main() -> None:
    """Both runs, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="asked with histories; else SASRec is trained")
    parser.add_argument("--event-run", type=Path, help="asked by user; else GRU4Rec is trained")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run = given.run or trained(Path(place), "sasrec")
        measure("recommend over HTTP", run, questions(run), [8, 1], given.seconds)
        run = given.event_run or trained(Path(place), "gru4rec")
        what = "an event and the list behind it over HTTP"
        measure(what, run, reports(run), [8, 1], given.seconds)


if __name__ == "__main__":
    main()
