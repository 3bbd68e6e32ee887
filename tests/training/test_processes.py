"""Several processes, as torchrun starts them, train one model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import recsys, sets

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRAINING = """
import sys
import torch
from recsys.cli import main
from recsys.training.trainer import Trainer

fit = Trainer.fit

def compared(self, *arguments):
    progress = fit(self, *arguments)
    own = torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])
    first, second = self.accelerator.gather(own[None])
    assert torch.equal(first, second), "the processes have different weights"
    return progress

Trainer.fit = compared
main(sys.argv[1:])
"""
SETTINGS = {
    "model.dim": 8,
    "model.num_layers": 1,
    "model.max_len": 8,
    "model.dropout": 0.3,
    "loss.name": "bce",
    "trainer.batch_size": 4,
    "trainer.accumulate": 3,
    "trainer.lr": 0.01,
}


@pytest.mark.slow
def test_processes_keep_the_same_weights_and_go_on_as_if_never_stopped(tmp_path: Path):
    rows = (f"u{u},i{(u * u + t**3) % 20},{t}\n" for u in range(43) for t in range(3 + u % 9))
    (tmp_path / "log.csv").write_text("user,item,time\n" + "".join(rows))
    recsys("data", "prepare", tmp_path / "log.csv", "--out", tmp_path / "data")
    (tmp_path / "training.py").write_text(TRAINING)

    def train(out: str, epochs: int, *words: str) -> Path:
        place = ["--out", str(tmp_path / out), "--device", "cpu"]
        end = ["--set", f"trainer.epochs={epochs}"]
        command = [*LAUNCH, str(tmp_path / "training.py"), "train", *place, *end, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return tmp_path / out

    begin = ["--model", "sasrec", "--data", str(tmp_path / "data"), *sets(SETTINGS)]
    whole = train("whole", 4, *begin)
    train("run", 2, *begin)
    run = train("run", 4, "--resume")
    losses = [
        [json.loads(line)["loss"] for line in (folder / "history.jsonl").read_text().splitlines()]
        for folder in (whole, run)
    ]
    assert losses[0] == losses[1]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, run)]
    assert weights[0] == weights[1]
