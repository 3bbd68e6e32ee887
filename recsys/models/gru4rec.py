"""GRU4Rec (Hidasi et al. 2016; Hidasi & Karatzoglou 2018): a GRU over item vectors."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

from torch import Tensor, nn

from recsys.batch import Batch
from recsys.layers.block import Stack
from recsys.layers.dropout import Dropout
from recsys.layers.item_encoder import ItemEncoder, ItemTable
from recsys.layers.mixer import State
from recsys.layers.recurrence import GRULayer, LSTMLayer
from recsys.models.base import ItemConfig, SequenceModel, check_sizes

LAYERS = {"gru": GRULayer, "lstm": LSTMLayer}


class GRU4Rec(SequenceModel):
    """Recurrent layers; one walk over a history trains every position of it.

    That takes the place of the paper's session-parallel mini-batches. The losses of the 2018 paper
    are loss.name=bpr_max, top1_max and sampled_softmax.
    """

    paper = "Hidasi et al., Session-based Recommendations with Recurrent Neural Networks, ICLR 2016"
    good_at = "sessions: short histories and repeats; a small state for a service"
    cost = "layers 6 hidden_dim^2 products, step after step; state 4 layers hidden_dim bytes"

    @dataclass(frozen=True)
    class Config(ItemConfig):
        """Settings named model.* on the command line."""

        dim: int = 64
        """Width of item vectors."""
        hidden_dim: int | None = None
        """Width of the recurrent layers; dim where not given."""
        num_layers: int = 1
        """Recurrent layers."""
        cell: Literal["gru", "lstm"] = "gru"
        """Kind of the layers; an lstm has twice the state."""
        item_tables: Literal["shared", "separate"] = "shared"
        """One table of item vectors for input and scores (constrained embeddings, 2018) or two."""
        max_len: int = 50
        """Longest history in training and evaluation, in items; a state forgets no event."""
        dropout: float = 0.2
        """Share of values dropped in item vectors, in [0, 1)."""
        hidden_dropout: float = 0.2
        """Share of values dropped behind each layer, in [0, 1)."""

        def __post_init__(self) -> None:
            check_sizes(self)

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.max_len = config.max_len
        layer = LAYERS[config.cell]
        hidden_dim = config.dim if config.hidden_dim is None else config.hidden_dim
        widths = [config.dim] + [hidden_dim] * config.num_layers
        # The first table is read from, the last is scored with.
        tables = 1 if config.item_tables == "shared" else 2
        self.tables = nn.ModuleList(ItemTable(num_items, config.dim) for _ in range(tables))
        self.layers = Stack(
            layer(dim_in, dim_out, config.hidden_dropout) for dim_in, dim_out in pairwise(widths)
        )
        same = hidden_dim == config.dim
        self.project_out = nn.Identity() if same else nn.Linear(hidden_dim, config.dim)
        self.dropout = Dropout(config.dropout)

    def encode(self, batch: Batch) -> Tensor:
        """[B, T, D] a vector for each position, from the items up to and including it."""
        x_BTD = self.dropout(self.tables[0](batch.items_BT))
        return self.project_out(self.layers(x_BTD))

    def item_vectors(self) -> Tensor:
        """[V+1, D] the table of the scores."""
        return cast(ItemEncoder, self.tables[-1]).vectors()

    def init_state(self, batch_size: int) -> State:
        """The state of each layer: 4 num_layers hidden_dim bytes a history, twice that of an lstm,
        whatever its length."""
        return self.layers.init_state(batch_size)

    def step(
        self, items_B: Tensor, state: State, times_B: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """(query [B, D] of the history with items_B int64 [B] behind it, the new state)."""
        x_BD, state = self.layers.step(self.dropout(self.tables[0](items_B)), state)
        return self.project_out(x_BD), state


MODEL = GRU4Rec
