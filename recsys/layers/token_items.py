"""Items as the tokens of their texts, and the vectors that an encoder made of them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.data.token_rows import TYPE_BITS
from recsys.layers.item_encoder import ItemEncoder, grown


class TokenItems(ItemEncoder):
    """`features` int32 [V+1, W], packed tokens and zeros behind an item's last; `table` [V+1, D].

    Row 0 of the features holds [CLS], [MASK] and [PAD], of type 0. The table is what the model
    keeps of the items between two calls of its `renew`; no gradient reaches it.
    """

    features: Tensor
    table: Tensor

    def __init__(self, features_VW: Tensor, dim: int):
        super().__init__()
        self.register_buffer("features", features_VW)
        self.register_buffer("table", torch.zeros(len(features_VW), dim))

    def forward(self, items: Tensor) -> Tensor:
        """int64 [...] -> [..., D] the items' vectors as they stand in the table."""
        return F.embedding(items, self.table)

    def vectors(self) -> Tensor:
        """[V+1, D] the table."""
        return self.table

    def with_items(self, place_N: Tensor, features_NF: Tensor) -> "TokenItems":
        """The same with other tokens of some items, or of new ones, whose vectors are zero."""
        features_VW = grown(self.features, place_N).index_put((place_N,), features_NF)
        other = TokenItems(features_VW, self.table.shape[1])
        other.table = grown(self.table, place_N)
        return other

    def special(self) -> tuple[int, int, int]:
        """The numbers of [CLS], [MASK] and [PAD]."""
        cls, mask, pad = (self.features[0, :3] >> TYPE_BITS).tolist()
        return cls, mask, pad

    def text(self, items_BT: Tensor, max_tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(tokens, types, places, real) [B, L] of [CLS] and the items, the first item first.

        items_BT int64, 0 for padding. places int64: 0 for [CLS], 1 for the first item; real is
        bool, False behind the end of a text. The text ends at max_tokens, [CLS] included.
        """
        cls, _, pad = self.special()
        packed = self.features[items_BT].flatten(1).long()
        type_BM = packed & (2**TYPE_BITS - 1)
        width = self.features.shape[1]
        real_BM = (type_BM > 0) & (items_BT > 0).repeat_interleave(width, dim=1)
        count_B = real_BM.sum(1).clamp_max(max_tokens - 1)
        longest = int(count_B.max())
        order_BM = torch.argsort(~real_BM, dim=1, stable=True)[:, :longest]
        real_BL = torch.arange(longest, device=items_BT.device) < count_B[:, None]
        token_BL = (packed.gather(1, order_BM) >> TYPE_BITS).masked_fill(~real_BL, pad)
        type_BL = type_BM.gather(1, order_BM) * real_BL
        place_BL = (order_BM // width + 1) * real_BL
        return (
            F.pad(token_BL, (1, 0), value=cls),
            F.pad(type_BL, (1, 0)),
            F.pad(place_BL, (1, 0)),
            F.pad(real_BL, (1, 0), value=True),
        )
