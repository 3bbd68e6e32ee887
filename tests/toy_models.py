"""Every model, small, and histories to give it."""

import dataclasses
from typing import Any

import torch

from recsys.batch import PAD, Batch
from recsys.models.base import (
    CountingModel,
    SequenceModel,
    asks_at_every_position,
    model_class,
    model_names,
)

LEARNED = [name for name in model_names() if issubclass(model_class(name), SequenceModel)]
COUNTED = [name for name in model_names() if issubclass(model_class(name), CountingModel)]
STEPWISE = [name for name in LEARNED if hasattr(model_class(name), "step")]
CAUSAL = [name for name in LEARNED if asks_at_every_position(model_class(name))]
"""Models that train on every position at once, each of which asks for the item behind it."""
TINY = {
    "dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "max_len": 6,
    "dropout": 0.0,
    "vocab_size": 32,
    "max_tokens": 32,
    "window": 4,
    "targets": 8,
    "refresh_epochs": 1,
}
NUM_ITEMS = 12
HISTORIES = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 12], [5, 8], [9, 7, 9, 3, 2]]
"""Of 2 to max_len + 1 items, as a model trains on."""
SHORT = [[3, 1, 4], [6], [5, 12]]


def toy_features(name: str, num_items: int = NUM_ITEMS) -> torch.Tensor | None:
    """Texts for a model that reads any: an item's is a key and one of 8 words, twice."""
    if not model_class(name).reads_tokens:
        return None
    items = torch.arange(num_items + 1)
    key, first, second = torch.full_like(items, 4), 5 + items % 8, 13 + items // 8
    rows = torch.stack([key * 4 + 1, first * 4 + 2, second * 4 + 2], dim=1)
    rows[0] = torch.tensor([1 * 4, 2 * 4, 3 * 4])  # [CLS], [MASK], [PAD]
    return rows.to(torch.int32)


def tiny_config(name: str) -> Any:
    """The model's own settings with TINY laid over those it has."""
    kind = model_class(name).Config
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in TINY.items() if key in known})


def batch_of(histories: list[list[int]], padding: int = 0) -> Batch:
    longest = max(map(len, histories)) + padding
    items = [history + [PAD] * (longest - len(history)) for history in histories]
    return Batch(torch.tensor(items), torch.tensor([len(history) for history in histories]))


def stepped(model: Any, items_BT: torch.Tensor, times_BT: Any = None) -> torch.Tensor:
    """[B, T, D] the query behind each event, taken one by one."""
    state, queries = model.init_state(len(items_BT)), []
    for place, items_B in enumerate(items_BT.unbind(1)):
        times_B = None if times_BT is None else times_BT[:, place]
        query_BD, state = model.step(items_B, state, times_B)
        queries.append(query_BD)
    return torch.stack(queries, dim=1)
