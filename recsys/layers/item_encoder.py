"""Items as vectors: from a table, from what is known of them, or from both.

What is known of an item (its text, its picture) is a fixed vector of F numbers, found before
training; an adaptor that is trained makes D of them.
"""

import copy
import math
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.batch import PAD
from recsys.errors import InputError

ItemEncoderName = Literal["id", "text", "id+text"]
VECTOR_SCALE = 0.1
"""Length of an item's vector before training. Short ones let the softmax start near uniform, and
the first steps are not wasted on taking back random preferences."""


class ItemEncoder(nn.Module):
    """A vector for each item 1..V. What a model reads of a history is scaled up by sqrt(D)."""

    def forward(self, items: Tensor) -> Tensor:
        """int64 [...] -> [..., D], sqrt(D) times the items' vectors."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def vectors(self) -> Tensor:
        """[V+1, D]; row 0 is padding and means nothing."""
        raise NotImplementedError(f"{type(self).__name__} does not define vectors")

    def with_items(self, place_N: Tensor, features_NF: Tensor) -> "ItemEncoder":
        """The same with other fixed vectors of the items place_N int64; numbers above V are new
        items, without a gap. ValueError where items are known by learned vectors alone.
        """
        raise ValueError(f"{type(self).__name__} knows items by learned vectors alone")


class ItemTable(ItemEncoder):
    """A learned vector for each item; `weight` [V+1, D] holds padding in row 0."""

    def __init__(self, num_items: int, dim: int, draw: bool = True):
        super().__init__()
        # Not left empty: measured recipes depend on the order of the draws.
        self.weight = nn.Parameter(torch.empty(num_items + 1, dim).normal_())
        if draw:
            self.draw()

    def draw(self) -> None:
        """Fresh vectors of the right length."""
        nn.init.normal_(self.weight, std=self.dim**-0.5 * VECTOR_SCALE)
        nn.init.zeros_(self.weight[PAD])

    @property
    def dim(self) -> int:
        """D."""
        return self.weight.shape[1]

    def forward(self, items: Tensor) -> Tensor:
        """int64 [...] -> [..., D], sqrt(D) times the items' vectors."""
        return F.embedding(items, self.weight, padding_idx=PAD) * self.dim**0.5

    def vectors(self) -> Tensor:
        """[V+1, D] the table."""
        return self.weight


class FeatureItems(ItemEncoder):
    """`adaptor` over fixed vectors `features` [V+1, F] float32, row 0 for padding."""

    features: Tensor

    def __init__(self, features_VF: Tensor, adaptor: nn.Module):
        super().__init__()
        self.register_buffer("features", features_VF)
        self.adaptor = adaptor

    def forward(self, items: Tensor) -> Tensor:
        """int64 [...] -> [..., D], sqrt(D) times the items' vectors."""
        if items.numel() < len(self.features):
            x = self.adaptor(self.features[items])
        else:
            x = F.embedding(items, self.vectors())
        return x * x.shape[-1] ** 0.5

    def vectors(self) -> Tensor:
        """[V+1, D] of the whole catalogue, computed anew at each call."""
        return self.adaptor(self.features)

    def with_items(self, place_N: Tensor, features_NF: Tensor) -> "FeatureItems":
        """The same with other fixed vectors of some items, or of new ones."""
        features_VF = grown(self.features, place_N).index_put((place_N,), features_NF)
        return FeatureItems(features_VF, self.adaptor)


class TableAndFeatures(ItemEncoder):
    """The sum of a learned vector and of what the adaptor makes of the fixed one."""

    def __init__(self, table: ItemTable, features: FeatureItems):
        super().__init__()
        self.table = table
        self.of_features = features

    def forward(self, items: Tensor) -> Tensor:
        """int64 [...] -> [..., D], sqrt(D) times the items' vectors."""
        return self.table(items) + self.of_features(items)

    def vectors(self) -> Tensor:
        """[V+1, D]."""
        return self.table.vectors() + self.of_features.vectors()

    def with_items(self, place_N: Tensor, features_NF: Tensor) -> "TableAndFeatures":
        """The same with other fixed vectors; new items have none of their own beside them."""
        table = ItemTable(0, self.table.dim)
        table.weight = nn.Parameter(grown(self.table.weight.detach(), place_N))
        return TableAndFeatures(table, self.of_features.with_items(place_N, features_NF))


MOVED = 4
"""From so many times their spread on, the mean of vectors asks for full precision."""
ALIKE = 1e-6
"""Below this spread vectors are equal but for rounding."""


class Whitening(nn.Module):
    """(x - b) W, an adaptor (Hou et al. 2022, UniSRec, equation 2): b and W are learned.

    b starts at the mean of the catalogue, and W at a scale at which its vectors come out as long as
    those of an `ItemTable`.
    """

    def __init__(self, features_VF: Tensor, dim: int):
        super().__init__()
        known_NF = features_VF[1:]
        mean_F = known_NF.mean(0)
        length = float((known_NF - mean_F).square().sum(1).mean().sqrt())
        if not math.isfinite(length):
            raise InputError("the vectors of the items' features are not finite")
        # Of what is far from 0, low precision leaves little of the differences.
        self.precise = float(mean_F.norm()) > MOVED * length
        if length < ALIKE:  # nothing to scale up
            length = 1.0
        self.mean = nn.Parameter(mean_F)
        self.weight = nn.Parameter(torch.empty(features_VF.shape[1], dim))
        nn.init.normal_(self.weight, std=VECTOR_SCALE * dim**-0.5 / length)

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] -> [..., D]."""
        # b W is taken off at the end: its gradient then costs no product over the catalogue.
        with torch.autocast(x.device.type, enabled=False) if self.precise else nullcontext():
            return F.linear(x, self.weight.T, -(self.mean @ self.weight))


class WhiteningExperts(nn.Module):
    """A gated sum of whitenings (Hou et al. 2022, UniSRec, equations 3 and 4).

    The gate is softmax(x W1 + noise softplus(x W2)); the noise is there in training alone.
    """

    def __init__(self, features_VF: Tensor, dim: int, experts: int):
        super().__init__()
        self.experts = nn.ModuleList(Whitening(features_VF, dim) for _ in range(experts))
        self.gate = nn.Linear(features_VF.shape[1], experts, bias=False)
        self.noise = nn.Linear(features_VF.shape[1], experts, bias=False)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.noise.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., F] -> [..., D]."""
        score = self.gate(x)
        if self.training:
            score = score + torch.randn_like(score) * F.softplus(self.noise(x))
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return (outputs @ score.softmax(dim=-1)[..., None])[..., 0]


def know_by_features(
    model: nn.Module, name: ItemEncoderName, features_VF: Tensor, experts: int
) -> None:
    """Let a model know its items as `name` says: every table in it gives way to an encoder.

    features_VF float32 [V+1, F], row 0 for padding.
    """
    if name == "id":
        return
    for parent in list(model.modules()):
        for child_name, table in list(parent.named_children()):
            if isinstance(table, ItemTable):
                adaptor = (
                    Whitening(features_VF, table.dim)
                    if experts == 1
                    else WhiteningExperts(features_VF, table.dim, experts)
                )
                known = FeatureItems(features_VF, adaptor)
                both = TableAndFeatures(table, known) if name == "id+text" else known
                parent.register_module(child_name, both)


def knows_by_features(model: nn.Module) -> bool:
    """Whether a model knows its items by more than learned vectors."""
    encoders = [module for module in model.modules() if isinstance(module, ItemEncoder)]
    return any(not isinstance(encoder, ItemTable) for encoder in encoders)


def with_items(model: nn.Module, place_N: Tensor, features_NF: Tensor) -> nn.Module:
    """A copy of a model in which the items place_N have other fixed vectors; numbers above V are
    new items. ValueError where the model knows items by learned vectors alone.
    """
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        if isinstance(parent, ItemEncoder):
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, ItemEncoder):
                parent.register_module(name, child.with_items(place_N, features_NF))
    return model


def grown(table_VD: Tensor, place_N: Tensor) -> Tensor:
    """The table with rows of zeros behind it, up to the largest place."""
    more = max(0, int(place_N.max()) + 1 - len(table_VD))
    return torch.cat([table_VD, table_VD.new_zeros(more, table_VD.shape[1])])
