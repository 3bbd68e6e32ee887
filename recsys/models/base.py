"""What a recommender is to the rest of the toolkit."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

import recsys.models
from recsys.batch import Batch
from recsys.config import describe_fields
from recsys.errors import InputError, nearest
from recsys.layers.item_encoder import ItemEncoder, ItemEncoderName, know_by_features
from recsys.layers.mixer import State

Report = Callable[[str], None]
Scorer = Callable[[Batch], Tensor]
"""batch -> [B, V+1] float32 scores; column 0 is padding. The result may be overwritten."""


@dataclass(frozen=True)
class Pairs:
    """What a model hands to a loss: N queries, each with the item it should find. No padding."""

    query_ND: Tensor
    target_N: Tensor
    """int64 item numbers 1..V."""
    weight_N: Tensor
    """float32; the loss of a batch is the weighted mean over its pairs."""


class Recommender(nn.Module):
    """Anything that scores a catalogue for a history; built as MODEL(MODEL.Config(), num_items)."""

    Config: ClassVar[type]
    """Frozen dataclass of the settings named model.* on the command line."""
    paper: ClassVar[str]
    """Where the model comes from."""
    good_at: ClassVar[str]
    """In a few words, when to choose it."""
    cost: ClassVar[str]
    """What an event costs: arithmetic in training and in `step`, and bytes of state."""
    reads_tokens: ClassVar[bool] = False
    """Whether it reads the texts of items: its constructor then takes their tokens, int32 [V+1, W]
    as `TokenItems` has them, behind the number of items."""
    max_len: int
    """Longest history the model takes, in items; callers cut longer ones from the left."""

    def scorer(self) -> Scorer:
        """A function that scores batches with the weights of this moment."""
        raise NotImplementedError(f"{type(self).__name__} does not define scorer")


class SequenceModel(Recommender):
    """A recommender whose scores are inner products of a query and the item vectors.

    A causal model defines `Config`, `__init__(config, num_items)`, `encode` and `item_vectors`.
    """

    def encode(self, batch: Batch) -> Tensor:
        """[B, T, D] a vector for each position, from the items up to and including it."""
        raise NotImplementedError(f"{type(self).__name__} does not define encode")

    def item_vectors(self) -> Tensor:
        """[V+1, D] a vector for each item; row 0 is padding and never scored."""
        raise NotImplementedError(f"{type(self).__name__} does not define item_vectors")

    def training_pairs(self, batch: Batch) -> Pairs:
        """Every position asks for the item behind it. Histories hold 2 to max_len + 1 items."""
        times_BT = batch.timestamps_BT
        history = Batch(
            batch.items_BT[:, :-1],
            batch.lengths_B - 1,
            None if times_BT is None else times_BT[:, :-1],
        )
        real_BT = history.real_BT
        query_ND = self.encode(history)[real_BT]
        target_N = batch.items_BT[:, 1:][real_BT]
        return Pairs(query_ND, target_N, torch.ones(len(target_N), device=target_N.device))

    def query(self, batch: Batch) -> Tensor:
        """[B, D] the vector at the end of each history. Histories hold 1 to max_len items."""
        # Not len(), which would be the same for every batch in an exported graph.
        rows_B = torch.arange(batch.lengths_B.shape[0], device=batch.lengths_B.device)
        return self.encode(batch)[rows_B, batch.lengths_B - 1]

    def begin(self, report: Report) -> None:
        """Before a training: take weights from elsewhere, where there are any."""

    def renew(self, items_N: Tensor | None = None) -> None:
        """Compute anew what is kept of some items (all, where not said which). Mostly nothing."""

    def start_epoch(self, epoch: int) -> None:
        """Before an epoch of training, counted from 0, or in its place where a model is taken as it
        begins: renew what is kept from one to the next.

        Nothing, for most models. What is renewed belongs to the state dict, so that training goes
        on in the middle of an epoch where it was stopped.
        """

    def scorer(self) -> Scorer:
        """Scores are query . item; the item vectors are computed once for all batches."""
        item_vectors = self.item_vectors()
        return lambda batch: self.query(batch).float() @ item_vectors.float().T


class Encoder(Protocol):
    """Items read and mixed over time, as a whole or event by event."""

    items: ItemEncoder

    def __call__(self, items_BT: Tensor, times_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] of int64 items and times [B, T]."""
        ...

    def init_state(self, batch_size: int) -> State:
        """Before the first event."""
        ...

    def step(
        self, items_B: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """([B, D] behind the events items_B int64 [B], the new state)."""
        ...


class EncodedModel(SequenceModel):
    """A causal model that is all `encoder`: `__init__` sets it and max_len, and nothing is left."""

    encoder: Encoder

    def encode(self, batch: Batch) -> Tensor:
        """[B, T, D] a vector for each position, from the items up to and including it."""
        return self.encoder(batch.items_BT, batch.timestamps_BT)

    def item_vectors(self) -> Tensor:
        """[V+1, D] what the encoder knows the items by."""
        return self.encoder.items.vectors()

    def init_state(self, batch_size: int) -> State:
        """The state of so many histories before their first event."""
        return self.encoder.init_state(batch_size)

    def step(
        self, items_B: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """(query [B, D] of the history with items_B int64 [B] behind it, the new state)."""
        return self.encoder.step(items_B, state, times_B)


@runtime_checkable
class Stepwise(Protocol):
    """A sequence model that takes events one by one.

    Its query is that of `encode` over the events so far: up to max_len of them, and the last
    max_len beyond. A recurrent model, whose state does not grow with max_len, forgets no event: its
    query is that of `encode` over all of them.
    """

    def init_state(self, batch_size: int) -> State:
        """The state of so many histories before their first event."""
        ...

    def step(
        self, items_B: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """(query [B, D] behind the events items_B int64 [B], the new state).

        times_B int64 [B] in the unit of the data set, for models that were trained with times.
        """
        ...


@dataclass(frozen=True)
class ItemConfig:
    """Settings that every sequence model has: what it knows an item by."""

    item_encoder: ItemEncoderName = "id"
    """id: a learned vector for each item. text: an adaptor over fixed vectors of the items' text,
    by which new items are known too. id+text: the sum of both."""
    item_vectors: str = "tfidf"
    """Where the fixed vectors come from: tfidf (made from the text here), the folder or hub id of a
    text encoder, or a Parquet file of vectors (of texts, pictures, anything)."""
    item_experts: int = 1
    """Adaptors that a gate mixes for each item; 1 is a single one without a gate."""


@dataclass(frozen=True)
class PretrainingTexts:
    """What a model that reads texts hands to its pretraining: N histories, M hidden words."""

    query_ND: Tensor
    target_ND: Tensor
    """The vector of each history's next item, from its text, with its gradient."""
    target_N: Tensor
    """int64 item numbers of the next items, one number for all of the same text."""
    word_MW: Tensor
    """Logits of the W words of the tokenizer."""
    label_M: Tensor
    """int64 the words that were hidden."""


@runtime_checkable
class ReadsTexts(Protocol):
    """A sequence model that reads the texts of items, and so can be pretrained on them."""

    def pretraining(self, batch: Batch, mask_rate: float) -> PretrainingTexts:
        """Queries, next items and hidden words of a batch; mask_rate is the share of words."""
        ...

    def save_encoder(self, folder: Path, num_tokens: int) -> None:
        """Write the encoder alone, for a tokenizer of so many tokens."""
        ...


class CountingModel(Recommender):
    """A baseline that is fitted by counting instead of by gradient steps.

    Its scorer also takes histories of no items, of length 0.
    """

    max_len = 1_000_000

    def fit(self, items: Tensor, offsets: Tensor, ages: Tensor) -> None:
        """Count. items int64 [interactions], offsets int64 [U+1], ages float64 [interactions] days
        before the newest interaction (zeros for a log without times)."""
        raise NotImplementedError(f"{type(self).__name__} does not define fit")


def check_sizes(config: Any) -> None:
    """InputError unless each whole number of a Config is at least 1 and each dropout in [0, 1)."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if type(value) is int and value < 1:
            raise InputError(f"model.{field.name} must be at least 1, got {value}")
        if field.name.endswith("dropout") and not 0 <= value < 1:
            raise InputError(f"model.{field.name} must lie in [0, 1), got {value}")


def check_heads(dim: int, num_heads: int) -> None:
    """InputError unless heads of one width fill `dim`."""
    if dim % num_heads:
        raise InputError(
            f"model.dim must be a multiple of model.num_heads, got {dim} and {num_heads}"
        )


def asks_at_every_position(kind: type[Recommender]) -> bool:
    """Whether a model trains as causal ones do: each position asks for the item behind it."""
    return issubclass(kind, SequenceModel) and kind.training_pairs is SequenceModel.training_pairs


def model_names() -> list[str]:
    """The names of all models, one for each file beside this one."""
    found = pkgutil.iter_modules(recsys.models.__path__)
    return sorted(module.name for module in found if module.name != "base")


def model_class(name: str) -> type[Any]:
    """The Recommender called `name`, as in `--model NAME`."""
    if name not in model_names():
        known = ", ".join(model_names())
        raise InputError(f"unknown model {name!r}{nearest(name, model_names())} (models: {known})")
    return importlib.import_module(f"recsys.models.{name}").MODEL


def new_model(
    name: str, config: Any, num_items: int, features_VF: Tensor | None = None
) -> Recommender:
    """A model with fresh weights.

    features_VF [V+1, F]: what a model knows items by besides their numbers, fixed vectors (row 0
    for padding) or tokens. InputError where it needs them and has none.
    """
    kind = model_class(name)
    if kind.reads_tokens:
        if features_VF is None:
            raise InputError(f"model {name} needs the tokens of the items")
        model: Recommender = kind(config, num_items, features_VF)
        return model
    model = kind(config, num_items)
    if isinstance(config, ItemConfig) and config.item_encoder != "id":
        if features_VF is None:
            raise InputError(f"model.item_encoder={config.item_encoder} needs vectors of the items")
        know_by_features(model, config.item_encoder, features_VF, config.item_experts)
    return model


def model_list() -> list[dict[str, Any]]:
    """Name, first line of the docstring, paper, use, cost and settings of every model."""
    return [
        {
            "name": name,
            "title": (kind.__doc__ or "").partition("\n")[0],
            "paper": kind.paper,
            "good_at": kind.good_at,
            "cost": kind.cost,
            "settings": describe_fields(kind.Config, "model"),
        }
        for name in model_names()
        for kind in [model_class(name)]
    ]
