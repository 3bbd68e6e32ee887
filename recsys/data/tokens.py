"""A catalogue as key-value sentences in tokens, made once (Li et al. 2023, section 2.1).

An item is "title Big red brush brand ACME": for each attribute that it has, the words of the key
and those of the value. Letters: V items, L tokens, C attributes.
"""

from dataclasses import dataclass

import numpy as np

from recsys.data.text import Attributes
from recsys.data.tokenizer import Tokenizer, key_words

KEY, VALUE = 1, 2
"""Types of tokens: of a key, of a value; 0 is for [CLS] and for padding."""
_AT_ONCE = 10_000
"""Items that are put together at once."""


@dataclass(frozen=True)
class ItemTokens:
    """The tokens of items 1..V, one after the other; item 0, padding, owns none."""

    token_L: np.ndarray
    """int32."""
    type_L: np.ndarray
    """uint8, KEY or VALUE."""
    offsets: np.ndarray
    """int64 [V+2]: item i owns token_L[offsets[i]:offsets[i+1]]."""
    cut_share: float
    """Share of the attributes of all items that lost tokens to a limit."""

    def padded(self, width: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32, types uint8), both [V+1, width]: rows end in `pad` and type 0.

        Items longer than `width` lose their end.
        """
        count_V = np.minimum(np.diff(self.offsets), width)
        at_L = _spread(self.offsets[:-1], count_V)
        real_VW = np.arange(width) < count_V[:, None]
        token_VW = np.full(real_VW.shape, pad, np.int32)
        type_VW = np.zeros(real_VW.shape, np.uint8)
        token_VW[real_VW] = self.token_L[at_L]
        type_VW[real_VW] = self.type_L[at_L]
        return token_VW, type_VW


def item_tokens(
    attributes: Attributes,
    tokenizer: Tokenizer,
    max_attribute_tokens: int = 32,
    max_item_tokens: int = 128,
) -> ItemTokens:
    """The key-value sentences of a catalogue.

    A value, without its key, ends at max_attribute_tokens, and an item at max_item_tokens. Values
    of no tokens are left out with their keys.
    """
    pool_L, start_VC, count_VC = _pieces(attributes, tokenizer)
    num_items = len(start_VC)
    is_value = np.arange(start_VC.shape[1]) % 2 == 1
    whole_VC = count_VC[:, is_value].copy()
    count_VC[:, is_value] = np.minimum(count_VC[:, is_value], max_attribute_tokens)
    count_VC = _within(count_VC, max_item_tokens)
    cut = int((count_VC[:, is_value] < whole_VC).sum())
    # Row 0 of the offsets is the padding item, which owns nothing.
    offsets = _offsets(np.concatenate([[0], count_VC.sum(axis=1)]))
    token_L = np.empty(offsets[-1], np.int32)
    type_L = np.empty(offsets[-1], np.uint8)
    type_C = np.where(is_value, VALUE, KEY).astype(np.uint8)
    for start in range(0, num_items, _AT_ONCE):
        rows = slice(start, min(start + _AT_ONCE, num_items))
        own = slice(offsets[rows.start + 1], offsets[rows.stop + 1])
        count_N = count_VC[rows].ravel()
        token_L[own] = pool_L[_spread(start_VC[rows].ravel(), count_N)]
        type_L[own] = np.repeat(np.tile(type_C, rows.stop - rows.start), count_N)
    cut_share = cut / max(int((whole_VC > 0).sum()), 1)
    return ItemTokens(token_L, type_L, offsets, cut_share)


def _pieces(
    attributes: Attributes, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(a pool of tokens, and for each item the start and the length [V, 2C] of its pieces in it).

    The pieces are key, value, key, value ...; those of a missing value have length 0. A text that
    several items share, as a brand, is tokenised once.
    """
    pools, starts, counts, filled = [], [], [], 0
    for column, texts in zip(attributes.columns, attributes.values, strict=True):
        number = {text: i for i, text in enumerate(dict.fromkeys(text for text in texts if text))}
        pool, offsets = tokenizer.encode([key_words(column), *number])
        key_count = offsets[1]
        place_V = np.array([number[text] + 1 if text else 0 for text in texts], dtype=np.int64)
        count_V = np.where(place_V > 0, np.diff(offsets)[place_V], 0)
        starts += [np.full(len(texts), filled), filled + offsets[place_V]]
        counts += [np.where(count_V > 0, key_count, 0), count_V]
        pools.append(pool)
        filled += len(pool)
    return np.concatenate(pools), np.stack(starts, axis=1), np.stack(counts, axis=1)


def _within(count_NC: np.ndarray, limit: int) -> np.ndarray:
    """Lengths of the pieces of N rows, of which what goes beyond `limit` tokens in a row is cut."""
    end_NC = np.minimum(np.cumsum(count_NC, axis=1), limit)
    within: np.ndarray = np.diff(end_NC, axis=1, prepend=0)
    return within


def _spread(start_N: np.ndarray, count_N: np.ndarray) -> np.ndarray:
    """int64 places of N pieces, one after the other: start, start + 1 ... of each."""
    behind_N = np.cumsum(count_N) - count_N
    spread: np.ndarray = np.arange(count_N.sum()) + np.repeat(start_N - behind_N, count_N)
    return spread


def _offsets(count_N: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(count_N, dtype=np.int64)])
