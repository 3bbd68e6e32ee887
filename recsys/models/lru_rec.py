"""LRURec (Yue et al. 2024): linear recurrent units over item vectors."""

from dataclasses import dataclass

from torch import Tensor, nn

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.layers.block import PostNormBlock, Stack
from recsys.layers.dropout import Dropout
from recsys.layers.feedforward import GELUFeedForward
from recsys.layers.item_encoder import ItemTable
from recsys.layers.lru import LRU
from recsys.layers.mixer import State
from recsys.models.base import ItemConfig, SequenceModel, check_sizes


class LRURec(SequenceModel):
    """Linear recurrent units with complex decays, each followed by a wide feed-forward network.

    Residuals and norms stand as in the paper: norm(x + lru(x)), then norm(x + feedforward(x)).
    """

    paper = "Yue et al., Linear Recurrent Units for Sequential Recommendation, WSDM 2024"
    good_at = "long histories, and services that take events one by one: small state, cheap steps"
    cost = "layers (8 dim^2 + 4 dim state_dim) products; state 8 layers state_dim bytes"

    @dataclass(frozen=True)
    class Config(ItemConfig):
        """Settings named model.* on the command line."""

        dim: int = 64
        """Width of item vectors and of every layer."""
        num_layers: int = 2
        """Recurrent blocks."""
        state_dim: int | None = None
        """Complex channels of a layer's state; the paper's, 2 dim, where not given."""
        max_len: int = 200
        """Longest history in items in training; a state forgets none."""
        hidden_dim: int | None = None
        """Width inside the feed-forward networks; the paper's, 4 dim, where not given."""
        dropout: float = 0.2
        """Share of values dropped in embeddings and branches, in [0, 1)."""
        min_radius: float = 0.8
        """Least modulus of a decay at first, in [0, 1)."""
        max_radius: float = 0.99
        """Largest modulus of a decay at first, in [min_radius, 1) and above 0."""

        def __post_init__(self) -> None:
            check_sizes(self)
            if not (0 <= self.min_radius <= self.max_radius < 1 and self.max_radius > 0):
                raise InputError(
                    "model.min_radius and model.max_radius must rise within [0, 1), got"
                    f" {self.min_radius} and {self.max_radius}; the latter must be above 0"
                )

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        self.items = ItemTable(num_items, config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = Stack(_block(config) for _ in range(config.num_layers))

    def encode(self, batch: Batch) -> Tensor:
        """[B, T, D] a vector for each position, from the items up to and including it."""
        return self.blocks(self.dropout(self.norm(self.items(batch.items_BT))))

    def item_vectors(self) -> Tensor:
        """[V+1, D] the embedding table."""
        return self.items.vectors()

    def init_state(self, batch_size: int) -> State:
        """8 num_layers state_dim bytes a history."""
        return self.blocks.init_state(batch_size)

    def step(
        self, items_B: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """(query [B, D] of the history with items_B int64 [B] behind it, the new state)."""
        return self.blocks.step(self.dropout(self.norm(self.items(items_B))), state)


def _block(config: LRURec.Config) -> PostNormBlock:
    dim = config.dim
    state_dim = 2 * dim if config.state_dim is None else config.state_dim
    hidden_dim = 4 * dim if config.hidden_dim is None else config.hidden_dim
    mixer = LRU(dim, state_dim, config.min_radius, config.max_radius)
    feedforward = GELUFeedForward(dim, hidden_dim, config.dropout)
    return PostNormBlock(dim, mixer, feedforward, config.dropout)


MODEL = LRURec
