"""The tokens of a catalogue as one table of numbers, for models that read texts themselves."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.data.text import Report, item_attributes
from recsys.data.tokenizer import Tokenizer, encoder_folder, train_tokenizer
from recsys.data.tokens import item_tokens
from recsys.errors import InputError
from recsys.whole import written_whole

TOKEN_ROWS = "item_tokens.json"
"""What a run folder keeps beside its tokenizer."""
TYPE_BITS = 2
"""Bits of a packed token that hold its type; the number of the token stands above them."""


class TokenRows:
    """Makes rows of packed tokens of items that a table describes: token * 4 + type, then zeros."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_item_tokens: int,
        max_attribute_tokens: int,
        report: Report | None = None,
    ):
        self.tokenizer, self.report = tokenizer, report
        self.max_item_tokens, self.max_attribute_tokens = max_item_tokens, max_attribute_tokens

    def transform(self, catalogue: pa.Table) -> np.ndarray:
        """int32 [rows, max_item_tokens]."""
        attributes = item_attributes(catalogue, self.report)
        tokens = item_tokens(
            attributes, self.tokenizer, self.max_attribute_tokens, self.max_item_tokens
        )
        if tokens.cut_share and self.report is not None:
            self.report(f"{tokens.cut_share:.1%} of the texts of items were cut at their limit")
        token_VW, type_VW = tokens.padded(self.max_item_tokens, 0)
        packed: np.ndarray = ((token_VW << TYPE_BITS) + type_VW)[1:]
        return packed

    def padded(self, catalogue: pa.Table) -> np.ndarray:
        """int32 [rows + 1, max_item_tokens]; row 0 holds [CLS], [MASK] and [PAD], of type 0."""
        first = np.zeros((1, self.max_item_tokens), np.int32)
        special = [self.tokenizer.cls, self.tokenizer.mask, self.tokenizer.pad]
        first[0, :3] = np.array(special) << TYPE_BITS
        return np.concatenate([first, self.transform(catalogue)])

    def save(self, run: Path) -> None:
        """Write what `load` needs into a run folder."""
        self.tokenizer.save(run)
        about = {
            "max_item_tokens": self.max_item_tokens,
            "max_attribute_tokens": self.max_attribute_tokens,
        }
        with written_whole(run / TOKEN_ROWS) as aside:
            aside.write_text(json.dumps(about) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, run: Path) -> "TokenRows":
        """What made the rows of a run. InputError where it is damaged."""
        try:
            about = json.loads((run / TOKEN_ROWS).read_text(encoding="utf-8"))
            limits = [about["max_item_tokens"], about["max_attribute_tokens"]]
            if not all(type(limit) is int and limit >= 3 for limit in limits):
                raise ValueError(f"its limits are {limits}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{run / TOKEN_ROWS} is damaged: {error}") from None
        return cls(Tokenizer.load(run), *limits)


def fit_token_rows(
    catalogue: pa.Table,
    encoder: str | None,
    vocab_size: int,
    max_item_tokens: int,
    max_attribute_tokens: int,
    report: Report | None = None,
) -> TokenRows:
    """With an encoder's tokenizer, or, where there is none, one learned from the catalogue."""
    if encoder:
        tokenizer = Tokenizer.load(encoder_folder(encoder))
    else:
        tokenizer = train_tokenizer(item_attributes(catalogue), vocab_size=vocab_size)
    return TokenRows(tokenizer, max_item_tokens, max_attribute_tokens, report)
