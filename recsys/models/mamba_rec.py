"""Mamba4Rec (Liu et al. 2024): selective state spaces over item vectors, of Mamba or Mamba-2."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.layers.block import PostNormBlock, Stack
from recsys.layers.dropout import Dropout
from recsys.layers.feedforward import GELUFeedForward
from recsys.layers.item_encoder import ItemTable
from recsys.layers.mixer import Mixer, State
from recsys.layers.ssm import Mamba, Mamba2
from recsys.models.base import ItemConfig, SequenceModel, check_sizes

MixerName = Literal["mamba", "mamba2"]


def mixer(config: "MambaRec.Config") -> Mixer:
    """The layer over time that `config.mixer` names."""
    sizes = (config.expand, config.conv_width)
    if config.mixer == "mamba2":
        return Mamba2(config.dim, config.state_dim, config.num_heads, *sizes)
    return Mamba(config.dim, config.state_dim, *sizes)


class MambaRec(SequenceModel):
    """Post-norm blocks of a Mamba layer and a GELU network; no positions."""

    paper = (
        "Liu et al., Mamba4Rec: Towards Efficient Sequential Recommendation with Selective State"
        " Space Models, 2024; Gu & Dao, Mamba, 2023; Dao & Gu, Transformers are SSMs, ICML 2024"
    )
    good_at = "long histories and services: an event costs the same after ten or ten thousand"
    cost = (
        "layers (8 + 3 expand) dim^2 products and 3 expand dim state_dim for states; state"
        " 4 layers expand dim (state_dim + 3) bytes"
    )

    @dataclass(frozen=True)
    class Config(ItemConfig):
        """Settings named model.* on the command line."""

        dim: int = 64
        """Width of item vectors and of every layer."""
        num_layers: int = 1
        """Blocks."""
        mixer: MixerName = "mamba"
        """What mixes over time: mamba has a decay a channel and state, mamba2 one a head."""
        state_dim: int = 32
        """States of each channel."""
        expand: int = 2
        """Channels inside a Mamba layer over dim."""
        conv_width: int = 4
        """Events that the short convolution sees, the newest among them."""
        num_heads: int = 4
        """Heads of mamba2; must divide expand * dim."""
        max_len: int = 50
        """Longest history in items that is encoded at once; step by step there is no limit."""
        hidden_dim: int | None = None
        """Width inside the feed-forward networks; the paper's, 4 dim, where not given."""
        dropout: float = 0.2
        """Share of values dropped in embeddings and branches, in [0, 1)."""

        def __post_init__(self) -> None:
            check_sizes(self)
            if self.mixer not in get_args(MixerName):
                raise InputError(f"model.mixer must be mamba or mamba2, got {self.mixer!r}")
            if self.mixer == "mamba2" and self.expand * self.dim % self.num_heads:
                raise InputError(
                    f"model.expand times model.dim must be a multiple of model.num_heads, got"
                    f" {self.expand} times {self.dim} and {self.num_heads}"
                )

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        self.items = ItemTable(num_items, config.dim)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.dim)
        hidden_dim = 4 * config.dim if config.hidden_dim is None else config.hidden_dim
        self.blocks = Stack(
            PostNormBlock(
                config.dim,
                mixer(config),
                GELUFeedForward(config.dim, hidden_dim, config.dropout),
                config.dropout,
            )
            for _ in range(config.num_layers)
        )

    def encode(self, batch: Batch) -> Tensor:
        """[B, T, D] a vector for each position, from the items up to and including it."""
        return self.blocks(self.norm(self.dropout(self.items(batch.items_BT))))

    def item_vectors(self) -> Tensor:
        """[V+1, D] the embedding table."""
        return self.items.vectors()

    def init_state(self, batch_size: int) -> State:
        """Each layer's last inputs of the convolution and its states, whatever max_len.

        4 num_layers expand dim (state_dim + conv_width - 1) bytes a history; mamba2 also keeps the
        inputs of B and C, 8 num_layers state_dim (conv_width - 1) bytes more.
        """
        return self.blocks.init_state(batch_size)

    def step(
        self, items_B: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """(query [B, D] of the history with items_B int64 [B] behind it, the new state)."""
        return self.blocks.step(self.norm(self.dropout(self.items(items_B))), state, times_B)


MODEL = MambaRec
