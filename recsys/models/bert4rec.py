"""BERT4Rec (Sun et al. 2019): an encoder that fills in hidden items."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.batch import Batch
from recsys.errors import InputError
from recsys.layers.attention import SelfAttention
from recsys.layers.dropout import Dropout
from recsys.layers.encoder import EncoderBlock
from recsys.layers.feedforward import GELUFeedForward
from recsys.layers.item_encoder import ItemTable
from recsys.models.base import ItemConfig, Pairs, SequenceModel, check_heads, check_sizes


def draw_places(
    lengths_B: Tensor, max_items: int, mask_rate: float, last_rate: float
) -> tuple[Tensor, Tensor]:
    """(places int64 [B, M] to hide, bool [B, M] which of them are meant) in histories of 2 to
    `max_items` items.

    A share `mask_rate` of the items behind the first is hidden, at least one; in a share
    `last_rate` of the histories the last item alone. The first item is always seen, so that no
    query stands before an empty history. Draws are made on the CPU, for all places that there could
    be: the same on each device and for each padding.
    """
    draw_BT = torch.rand(len(lengths_B), max_items)[:, : int(lengths_B.max())].to(lengths_B.device)
    last_B1 = (torch.rand(len(lengths_B)) < last_rate).to(lengths_B.device)[:, None]
    place_T = torch.arange(draw_BT.shape[1], device=lengths_B.device)
    length_B1 = lengths_B[:, None]
    # The places with the smallest draws are hidden.
    draw_BT = draw_BT.masked_fill((place_T == 0) | (place_T >= length_B1), 2.0)
    draw_BT = draw_BT.masked_fill(last_B1 & (place_T == length_B1 - 1), -1.0)
    count_B1 = (mask_rate * (length_B1 - 1)).round().long().clamp_min(1).masked_fill(last_B1, 1)
    count_M = torch.arange(int(count_B1.max()), device=lengths_B.device)
    return draw_BT.argsort(dim=1)[:, : len(count_M)], count_M < count_B1


class BERT4Rec(SequenceModel):
    """Transformer that sees both sides of a hidden item; the item table serves input and output.

    Trained by the Cloze task (eq. 8), asked by hiding the item to come. Positions are counted from
    the end of a history: the query stands at the same one in training and in use, however long its
    history is. Two things differ from the paper, both because they learn faster: norms stand before
    the branches of a block (eq. 5 has them behind), and the encoder's output is itself the query
    (eq. 7 puts a GELU layer and a bias for each item between them).
    """

    paper = "Sun et al., BERT4Rec, CIKM 2019"
    good_at = "dense logs where order is loose; needs many epochs, has no step"
    cost = "layers (12 dim^2 + 2 T dim) products for each item of the history, anew for each event"

    @dataclass(frozen=True)
    class Config(ItemConfig):
        """Settings named model.* on the command line."""

        dim: int = 64
        """Width of item vectors and of every layer."""
        num_layers: int = 2
        """Encoder blocks."""
        num_heads: int = 2
        """Attention heads a block; must divide dim."""
        max_len: int = 50
        """Longest history in items; older items are not seen."""
        hidden_dim: int | None = None
        """Width inside the feed-forward networks; the paper's, 4 dim, where not given."""
        dropout: float = 0.2
        """Share of values dropped in embeddings, attention and branches, in [0, 1)."""
        mask_rate: float = 0.3
        """Share of the items of a history hidden in training, in (0, 1); at least one is."""
        last_rate: float = 0.2
        """Share of the histories in which the last item alone is hidden, in [0, 1]."""

        def __post_init__(self) -> None:
            check_sizes(self)
            check_heads(self.dim, self.num_heads)
            if not 0 < self.mask_rate < 1:
                raise InputError(f"model.mask_rate must lie in (0, 1), got {self.mask_rate}")
            if not 0 <= self.last_rate <= 1:
                raise InputError(f"model.last_rate must lie in [0, 1], got {self.last_rate}")

    def __init__(self, config: Config, num_items: int):
        super().__init__()
        self.config = config
        self.max_len = config.max_len
        hidden_dim = 4 * config.dim if config.hidden_dim is None else config.hidden_dim
        self.items = ItemTable(num_items, config.dim)
        self.positions = nn.Embedding(config.max_len + 1, config.dim)
        self.hidden_item = nn.Parameter(torch.empty(config.dim))
        self.blocks = nn.ModuleList(
            EncoderBlock(
                config.dim,
                SelfAttention(config.dim, config.num_heads, config.dropout),
                GELUFeedForward(config.dim, hidden_dim, config.dropout),
                config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.positions.weight, std=0.1)
        nn.init.normal_(self.hidden_item, std=0.1)

    def encode(self, batch: Batch) -> Tensor:
        """[B, T, D] what the encoder makes of each item from all others and itself; no queries."""
        return self._encode(self._embed(batch, None), batch.real_BT, None)

    def item_vectors(self) -> Tensor:
        """[V+1, D] the item table."""
        return self.items.vectors()

    def training_pairs(self, batch: Batch) -> Pairs:
        """Hidden items, each asked for by the query in its place. Histories hold 2 to max_len + 1
        items."""
        rates = self.config.mask_rate, self.config.last_rate
        places_BM, meant_BM = draw_places(batch.lengths_B, self.max_len + 1, *rates)
        hidden_BT = torch.zeros_like(batch.items_BT, dtype=torch.bool)
        hidden_BT = hidden_BT.scatter(1, places_BM, meant_BM)
        x_BMD = self._encode(self._embed(batch, hidden_BT), batch.real_BT, places_BM)
        query_ND = x_BMD[meant_BM]
        target_N = batch.items_BT.gather(1, places_BM)[meant_BM]
        return Pairs(query_ND, target_N, torch.ones(len(target_N), device=target_N.device))

    def query(self, batch: Batch) -> Tensor:
        """[B, D] the vector of a hidden item behind each history. Histories hold 1 to max_len."""
        places_B1 = batch.lengths_B[:, None]
        asked = Batch(F.pad(batch.items_BT, (0, 1)), batch.lengths_B + 1)
        hidden_BT = torch.zeros_like(asked.items_BT, dtype=torch.bool).scatter(1, places_B1, True)
        return self._encode(self._embed(asked, hidden_BT), asked.real_BT, places_B1)[:, 0]

    def _embed(self, batch: Batch, hidden_BT: Tensor | None) -> Tensor:
        """[B, T, D] items, those hidden replaced, with their positions counted from the end."""
        steps_T = torch.arange(batch.items_BT.shape[1], device=batch.items_BT.device)
        from_end_BT = (batch.lengths_B[:, None] - 1 - steps_T).clamp_min(0)
        x_BTD = self.items(batch.items_BT)
        if hidden_BT is not None:
            x_BTD = torch.where(hidden_BT[:, :, None], self.hidden_item, x_BTD)
        return self.dropout(x_BTD + self.positions(from_end_BT))

    def _encode(self, x_BTD: Tensor, real_BT: Tensor, places_BM: Tensor | None) -> Tensor:
        """[B, M, D] at some places; the last block computes nothing else."""
        *first, last = self.blocks
        for block in first:
            x_BTD = block(x_BTD, real_BT)
        return self.norm(last(x_BTD, real_BT, places_BM))


MODEL = BERT4Rec
