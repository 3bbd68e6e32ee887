"""Recformer (Li et al. 2023, Text Is All You Need): a history is a text, and so is an item."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.batch import Batch
from recsys.data.token_rows import TYPE_BITS
from recsys.data.tokenizer import Tokenizer, encoder_folder
from recsys.errors import InputError
from recsys.layers.text_encoder import TextEncoder, TextEncoderConfig, pretrained_config
from recsys.layers.token_items import TokenItems
from recsys.models.base import (
    Pairs,
    PretrainingTexts,
    Report,
    SequenceModel,
    check_heads,
    check_sizes,
)

ITEMS_AT_ONCE = 256
"""Items whose texts are encoded in one batch when the table is renewed."""
TOKENS_AT_ONCE = {"cpu": 1_024, "cuda": 65_536}
"""Places in one pass through the encoder: few stay in a CPU's caches and hold little padding, a GPU
wants many."""
SHARE = {"mean": 1.0, "recent": 0.5, "newest": 0.0}
"""By the pooling: what a token weighs beside one of the next newer item."""
LENGTH_STEP = 16
"""Texts are padded to a multiple of it, so that matrix products meet few shapes."""


class Recformer(SequenceModel):
    """Key-value sentences of items, newest first, behind [CLS], through a transformer with local
    attention; an item is what the encoder makes of its sentence alone.

    Scores are cosines over a temperature (section 2.2, equation 5). The table of item vectors is
    renewed before each of the first `refresh_epochs` epochs (stage 1 of section 2.4.2), then it
    stays, and training goes on (stage 2). Beyond the paper, vectors go through a map that moves
    items too at every step; without it, no gradient reaches them between two renewals.
    """

    paper = "Li et al., Text Is All You Need: Learning Language Representations for Sequential"
    paper += " Recommendation, KDD 2023"
    good_at = "new items, new shops, catalogues whose texts say much; needs texts, trains slowly"
    cost = "an encoder over max_tokens tokens for each event"
    reads_tokens = True

    @dataclass(frozen=True)
    class Config:
        """Settings named model.* on the command line."""

        encoder: str | None = None
        """Folder or hub id of a text encoder (BERT, RoBERTa, MiniLM, Longformer, or what `recsys
        pretrain` left) to start from, which then decides the sizes; none, to start from nothing."""
        frozen_layers: int | None = None
        """First blocks of `encoder` that stay as they are, and all embeddings with them (those of
        types and of the places of items as drawn); with all of its blocks, the map over its vectors
        learns alone. None, where all is trained."""
        dim: int = 128
        """Width of every layer and of item vectors."""
        num_layers: int = 2
        """Transformer blocks."""
        num_heads: int = 2
        """Attention heads a block; must divide dim."""
        hidden_dim: int = 512
        """Width inside the feed-forward networks."""
        max_len: int = 50
        """Longest history in items; older items are not seen."""
        max_tokens: int = 512
        """Longest history in tokens; what is older is not read."""
        max_item_tokens: int = 64
        """Longest item in tokens, the keys of its attributes included."""
        max_attribute_tokens: int = 32
        """Longest value of an attribute in tokens."""
        window: int = 64
        """Tokens that a token sees around it, half of them to each side, and [CLS]; in `encoder`
        too, whatever its own window was."""
        vocab_size: int = 30_000
        """Most tokens of a tokenizer that is learned from the catalogue."""
        pooling: Literal["cls", "mean", "recent", "newest"] = "cls"
        """What a text is: its [CLS]; the mean of its tokens, as MiniLM was trained for; a mean in
        which an item's tokens weigh half those of the next newer one; or the mean of [CLS] and the
        newest item's tokens. The last three are one for an item alone."""
        temperature: float = 0.05
        """What cosines are divided by, above 0."""
        targets: int = 1
        """Random places of a history that an epoch asks for; each costs an encoding."""
        refresh_epochs: int = 1_000
        """Epochs before each of which all items are encoded anew."""
        dropout: float = 0.1
        """Share of values dropped in embeddings, attention and branches, in [0, 1)."""
        norm_epsilon: float = 1e-12
        """Added to the variance in layer norms."""
        global_projections: bool = False
        """Whether [CLS] reads the text through projections of its own, as in Longformer."""

        def __post_init__(self) -> None:
            check_sizes(self)
            check_heads(self.dim, self.num_heads)
            if not self.temperature > 0:
                raise InputError(f"model.temperature must be above 0, got {self.temperature}")
            if self.frozen_layers and not self.encoder:
                raise InputError("model.frozen_layers keeps what model.encoder names: name one")
            if self.window < 2:
                raise InputError(f"model.window must be at least 2, got {self.window}")
            if self.max_item_tokens < 3:
                raise InputError(
                    f"model.max_item_tokens must be at least 3, got {self.max_item_tokens}"
                )

        def resolved(self) -> "Recformer.Config":
            """The same with the sizes of `encoder` in the place of those that it decides."""
            if not self.encoder:
                return self
            sizes = pretrained_config(
                encoder_folder(self.encoder),
                max_tokens=self.max_tokens,
                max_items=self.max_len,
                window=self.window,
                dropout=self.dropout,
            )
            _check_held(encoder_folder(self.encoder), sizes)
            if (self.frozen_layers or 0) > sizes.num_layers:
                raise InputError(
                    f"model.frozen_layers: {self.encoder} has {sizes.num_layers} layers, got"
                    f" {self.frozen_layers}"
                )
            decided = {field.name for field in dataclasses.fields(sizes)} - {"max_items"}
            return dataclasses.replace(self, **{name: getattr(sizes, name) for name in decided})

    def __init__(self, config: Config, num_items: int, features_VW: Tensor):
        super().__init__()
        largest = int(features_VW.max()) >> TYPE_BITS
        if features_VW.min() < 0 or largest >= config.vocab_size:
            raise InputError(
                f"the items hold token {largest:,}, model.vocab_size is {config.vocab_size:,}: they"
                " are of another tokenizer"
            )
        self.config = config
        self.max_len = config.max_len
        # Of a learned tokenizer, which may have far fewer tokens than it might.
        self.num_words = largest + 1
        self.items = TokenItems(features_VW, config.dim)
        self.encoder = TextEncoder(_sizes(config))

    def begin(self, report: Report) -> None:
        """Take the weights of the encoder to start from."""
        if self.config.encoder:
            folder = encoder_folder(self.config.encoder)
            own = pretrained_config(folder, max_tokens=1, max_items=1).window
            if own != self.config.window:
                report(f"{folder}: its window of {own} tokens is {self.config.window} here")
            self.encoder = TextEncoder.from_pretrained(
                folder,
                num_tokens=len(Tokenizer.load(folder)),
                max_tokens=self.config.max_tokens,
                max_items=self.config.max_len,
                window=self.config.window,
                dropout=self.config.dropout,
                report=report,
            ).to(self.items.table.device)
            if self.config.frozen_layers:
                self.encoder.freeze(self.config.frozen_layers)

    def start_epoch(self, epoch: int) -> None:
        """Encode the items anew in the first stage of training."""
        if epoch < self.config.refresh_epochs:
            self.renew()

    @torch.no_grad()
    def renew(self, items_N: Tensor | None = None) -> None:
        """Encode items (all, where not said which) with the weights of this moment."""
        trains = self.training
        self.eval()
        features, table = self.items.features, self.items.table
        if items_N is None:
            items_N = torch.arange(1, len(features), device=features.device)
        # Items of like length stand together, so that little is computed for padding.
        items_N = items_N[(features[items_N] > 0).sum(1).argsort(stable=True)]
        for part_N in items_N.split(ITEMS_AT_ONCE):
            table[part_N] = self._encoded(part_N[:, None])
        self.train(trains)

    def encode(self, batch: Batch) -> Tensor:
        """[B, T, D] the mean over each item's tokens within its history; no queries."""
        newest_BT, place_BT = _newest_first(batch)
        token_BL, type_BL, item_BL, real_BL = self.items.text(newest_BT, self.config.max_tokens)
        x_BLD = self.encoder(token_BL, type_BL, item_BL, real_BL)
        own_BTL = (item_BL[:, None] == place_BT[:, :, None] + 1) & real_BL[:, None]
        count_BT1 = own_BTL.sum(2, keepdim=True).clamp_min(1)
        return own_BTL.to(x_BLD.dtype) @ x_BLD / count_BT1

    def item_vectors(self) -> Tensor:
        """[V+1, D] the table through the encoder's adaptor, over the temperature."""
        return self.encoder.adapted(self.items.vectors()) / self.config.temperature

    def training_pairs(self, batch: Batch) -> Pairs:
        """`targets` places of each history, drawn anew, each asked for by all that is before it.

        Histories hold 2 to max_len + 1 items.
        """
        before, target_N = self._drawn(batch)
        weight_N = torch.ones(len(target_N), device=target_N.device)
        return Pairs(self.query(before), target_N, weight_N)

    def pretraining(self, batch: Batch, mask_rate: float) -> PretrainingTexts:
        """Section 2.3: drawn places as in training, next items as texts, hidden words.

        Words are found by the product of their place's vector and the table of tokens.
        """
        before, target_N = self._drawn(batch)
        token_BL, type_BL, item_BL, real_BL = self._text(before)
        _, mask, _ = self.items.special()
        hidden_BL, seen_BL = hide_words(token_BL, type_BL > 0, mask_rate, mask, self.num_words)
        queries, guesses, words, groups = [], [], [], []
        for rows, x_NLD, query_ND in self._read(seen_BL, type_BL, item_BL, real_BL):
            hidden_NL = hidden_BL[rows, : x_NLD.shape[1]]
            queries.append(query_ND)
            guesses.append(x_NLD[hidden_NL] @ self.encoder.tokens.weight.T)
            words.append(token_BL[rows, : x_NLD.shape[1]][hidden_NL])
            groups.append(rows)
        return PretrainingTexts(
            self.encoder.adapted(_in_order(queries, groups)),
            self.encoder.adapted(self._encoded(target_N[:, None])) / self.config.temperature,
            _first_of_a_text(target_N, self.items.features),
            torch.cat(guesses),
            torch.cat(words),
        )

    def save_encoder(self, folder: Path, num_tokens: int) -> None:
        """Write the encoder alone, without rows for tokens that its tokenizer has not learned."""
        encoder = TextEncoder(dataclasses.replace(_sizes(self.config), vocab_size=num_tokens))
        weights = self.encoder.state_dict()
        encoder.load_state_dict(weights | {"tokens.weight": weights["tokens.weight"][:num_tokens]})
        encoder.save(folder)

    def query(self, batch: Batch) -> Tensor:
        """[B, D] of length 1. Histories hold 1 to max_len items."""
        return self.encoder.adapted(self._encoded(_newest_first(batch)[0]))

    def _drawn(self, batch: Batch) -> tuple[Batch, Tensor]:
        """(what is before some places of each history, int64 [N] the items there)."""
        place_N, row_N = draw_targets(batch.lengths_B, self.config.targets)
        steps_T = torch.arange(int(place_N.max()), device=place_N.device)
        items_NT = batch.items_BT[row_N][:, : len(steps_T)] * (steps_T < place_N[:, None])
        return Batch(items_NT, place_N), batch.items_BT[row_N, place_N]

    def _text(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.items.text(_newest_first(batch)[0], self.config.max_tokens)

    def _encoded(self, newest_BT: Tensor) -> Tensor:
        """[B, D] of length 1, of texts whose items are given newest first."""
        text = self.items.text(newest_BT, self.config.max_tokens)
        parts, groups = [], []
        for rows, _, x_ND in self._read(*text):
            parts.append(x_ND)
            groups.append(rows)
        return _in_order(parts, groups)

    def _read(
        self, token_BL: Tensor, type_BL: Tensor, item_BL: Tensor, real_BL: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(int64 [N] rows, [N, L, D] their tokens, cut behind the longest, [N, D] of length 1).

        Texts of like length go through the encoder together: padding is computed like words.
        """
        count_B = real_BL.sum(1)
        for rows in like_length(count_B, TOKENS_AT_ONCE[count_B.device.type]):
            part = slice(_rounded(int(count_B[rows[-1]])))
            text = [x_BL[rows, part] for x_BL in (token_BL, type_BL, item_BL, real_BL)]
            x_NLD = self.encoder(*text)
            yield rows, x_NLD, self._pooled(x_NLD, *text[2:])

    def _pooled(self, x_BLD: Tensor, item_BL: Tensor, real_BL: Tensor) -> Tensor:
        """[B, D] of length 1."""
        if self.config.pooling == "cls":
            return F.normalize(x_BLD[:, 0], dim=-1)
        weight_BL = SHARE[self.config.pooling] ** (item_BL - 1).clamp_min(0) * real_BL
        weight_BL1 = weight_BL[:, :, None].to(x_BLD.dtype)
        return F.normalize((x_BLD * weight_BL1).sum(1) / weight_BL1.sum(1), dim=-1)


def hide_words(
    token_BL: Tensor, word_BL: Tensor, mask_rate: float, mask: int, num_words: int
) -> tuple[Tensor, Tensor]:
    """(bool [B, L] the words to be found again, at least one; [B, L] the tokens that are seen).

    Of those words 8 in 10 are seen as `mask`, 1 as another token and 1 as it is (Devlin et al.
    2019, section 3.1). word_BL is bool, True where a token is a word that may be chosen.
    """
    draw_BL = torch.rand(token_BL.shape, device=token_BL.device).masked_fill(~word_BL, 2.0)
    hidden_BL = draw_BL < mask_rate
    hidden_BL |= draw_BL == draw_BL.min()
    fate_BL = torch.rand(token_BL.shape, device=token_BL.device)
    seen_BL = torch.where(hidden_BL & (fate_BL < 0.8), mask, token_BL)
    other_BL = torch.randint_like(token_BL, num_words)
    return hidden_BL, torch.where(hidden_BL & (fate_BL >= 0.9), other_BL, seen_BL)


def like_length(count_B: Tensor, places: int) -> list[Tensor]:
    """Rows in rising order of their lengths (count_B int64 [B]), cut where rows times the length of
    their longest would pass `places`; a row that is longer stands alone."""
    order_B = count_B.argsort(stable=True)
    lengths = [_rounded(count) for count in count_B[order_B].tolist()]
    starts = [0]
    for row, length in enumerate(lengths):
        if (row + 1 - starts[-1]) * length > places and row > starts[-1]:
            starts.append(row)
    ends = [*starts[1:], len(lengths)]
    return [order_B[start:end] for start, end in zip(starts, ends, strict=True)]


def _in_order(parts: list[Tensor], groups: list[Tensor]) -> Tensor:
    """The rows of all parts in the order that groups had before they were parted."""
    return torch.cat(parts)[torch.cat(groups).argsort()]


def _rounded(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def draw_targets(lengths_B: Tensor, targets: int) -> tuple[Tensor, Tensor]:
    """(places int64 [N], rows int64 [N]): for each history `targets` different places from 1 to its
    last, or all of them where it has fewer."""
    steps_T = torch.arange(int(lengths_B.max()), device=lengths_B.device)
    may_BT = (steps_T > 0) & (steps_T < lengths_B[:, None])
    rank_BT = torch.rand(may_BT.shape, device=lengths_B.device).masked_fill(~may_BT, 2.0)
    chosen_BT = torch.zeros_like(may_BT).scatter(
        1, rank_BT.argsort(1)[:, : min(targets, len(steps_T))], True
    )
    row_N, place_N = (chosen_BT & may_BT).nonzero(as_tuple=True)
    return place_N, row_N


def _first_of_a_text(items_N: Tensor, features_VW: Tensor) -> Tensor:
    """int64 [N]: the least of the items that have the same text as each."""
    text_N = features_VW[items_N].unique(dim=0, return_inverse=True)[1]
    return torch.zeros_like(items_N).scatter_reduce(0, text_N, items_N, "amin", include_self=False)[
        text_N
    ]


def _newest_first(batch: Batch) -> tuple[Tensor, Tensor]:
    """(items [B, T] newest first, 0 behind the oldest; the place in it of each item)."""
    steps_T = torch.arange(batch.items_BT.shape[1], device=batch.items_BT.device)
    place_BT = batch.lengths_B[:, None] - 1 - steps_T
    newest_BT = batch.items_BT.gather(1, place_BT.clamp_min(0)) * (place_BT >= 0)
    return newest_BT, place_BT


def _sizes(config: Recformer.Config) -> TextEncoderConfig:
    names = {field.name for field in dataclasses.fields(TextEncoderConfig)} - {"max_items"}
    return TextEncoderConfig(
        max_items=config.max_len, **{name: getattr(config, name) for name in names}
    )


def _check_held(folder: Path, config: TextEncoderConfig) -> None:
    """InputError where config.json asks for more numbers than the weights can hold, before memory
    is taken for them: a file may ask for any size."""
    block = 4 * config.dim**2 + 2 * config.dim * config.hidden_dim
    wanted = config.vocab_size * config.dim + config.num_layers * block
    held = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    if wanted > held:  # each takes a byte at least
        raise InputError(
            f"{folder}: config.json asks for {wanted:,} numbers and more, the weights have"
            f" {held:,} bytes"
        )


MODEL = Recformer
