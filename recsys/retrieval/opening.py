"""A run folder as a snapshot that can serve."""

from pathlib import Path
from typing import Literal

import torch

from recsys.checkpoint import ITEMS, MODEL_FACTS, load_model, read_config, read_items
from recsys.data.item_features import load_item_features
from recsys.errors import InputError
from recsys.layers.item_encoder import knows_by_features
from recsys.models.base import SequenceModel
from recsys.retrieval.faiss_index import placed
from recsys.retrieval.index import HNSW_FROM, INDEX, load_index
from recsys.retrieval.snapshot import Snapshot
from recsys.retrieval.state import fingerprint

Through = Literal["auto", "exact", "index"]


def opened(run: Path, device: torch.device | str, index: Through, mmap: bool) -> Snapshot:
    """The snapshot of a run. InputError where it is not whole, damaged or of parts that do not
    belong together."""
    model, catalogue = load_model(run, device, mmap=mmap), read_items(run)
    trained_on = read_config(run, MODEL_FACTS)["dataset"]["items"]
    if catalogue.num_rows != trained_on:
        raise InputError(
            f"{run / ITEMS} names {catalogue.num_rows:,} items, the model was trained on"
            f" {trained_on:,}: they do not belong together"
        )
    wanted = index == "index" or (
        index == "auto" and catalogue.num_rows >= HNSW_FROM and (run / INDEX).is_file()
    )
    described = isinstance(model, SequenceModel) and knows_by_features(model)
    snapshot = Snapshot(
        model,
        catalogue,
        None,
        device,
        fingerprint=fingerprint(model),
        describe=load_item_features(run).transform if described else None,
    )
    if not wanted:
        return snapshot
    known = isinstance(model, SequenceModel)
    built = load_index(run, vectors=snapshot.vectors_VD[1:].cpu().numpy() if known else None)
    return snapshot.with_index(placed(built, device))
