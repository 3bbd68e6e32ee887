"""A catalogue as key-value sentences in tokens, made once (Li et al. 2023, section 2.1).

An item is "title Big red brush brand ACME": for each attribute that it has, the words of the key
and those of the value. A history is [CLS] and its items, newest first. Letters: V items, B
histories of T items, L tokens, C attributes.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from recsys.data.text import Attributes
from recsys.data.tokenizer import Tokenizer, key_words
from recsys.errors import InputError

FIRST, KEY, VALUE = 0, 1, 2
"""Types of tokens: [CLS], of a key, of a value."""
FORMAT_VERSION = 1
_AT_ONCE = 10_000
"""Items that are put together at once."""


class HistoryTokens(NamedTuple):
    """B histories as texts, padded behind the end."""

    token_BL: np.ndarray
    """int64 tokens; the first of each row is [CLS]."""
    type_BL: np.ndarray
    """int64, FIRST, KEY or VALUE."""
    item_BL: np.ndarray
    """int64 places of the items: 0 for [CLS], 1 for the newest item, 2 for the one before."""
    real_BL: np.ndarray
    """bool, False in padding, where the other three are 0 (tokens: `pad`)."""


@dataclass(frozen=True)
class ItemTokens:
    """The tokens of items 1..V, one after the other; item 0, padding, owns none."""

    token_L: np.ndarray
    """int32."""
    type_L: np.ndarray
    """uint8, KEY or VALUE."""
    offsets: np.ndarray
    """int64 [V+2]: item i owns token_L[offsets[i]:offsets[i+1]]."""
    vocab_size: int
    """Tokens that the tokenizer knows; all of token_L lie below."""
    cut_share: float
    """Share of the attributes of all items that lost tokens to a limit."""

    @property
    def num_items(self) -> int:
        """V, the number of items without padding."""
        return len(self.offsets) - 2

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

    def save(self, file: Path) -> None:
        """Write one Arrow file that `load` maps, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "format": FORMAT_VERSION,
            "vocab_size": self.vocab_size,
            "cut_share": self.cut_share,
        }
        lists = {"tokens": (pa.int32(), self.token_L), "types": (pa.uint8(), self.type_L)}
        table = pa.record_batch(
            {name: _list_array(self.offsets, *part) for name, part in lists.items()}
        ).replace_schema_metadata({"recsys": json.dumps(about)})
        aside = file.with_name(f"{file.name}.part")
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_batch(table)
        os.replace(aside, file)

    @classmethod
    def load(cls, file: Path) -> "ItemTokens":
        """Map a file that `save` wrote. InputError where it is none, or damaged."""
        try:
            with pa.memory_map(str(file)) as source:
                table = pa.ipc.open_file(source).read_all()
        except FileNotFoundError:
            raise InputError(f"the file of tokens {file} does not exist") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{file} is damaged: {error}; make it again") from None
        about = _about(table, file)
        (tokens,), (types,) = table["tokens"].chunks, table["types"].chunks
        found = cls(
            _view(tokens.values, np.int32),
            _view(types.values, np.uint8),
            _view(tokens.offsets, np.int64),
            about["vocab_size"],
            about["cut_share"],
        )
        if not tokens.offsets.equals(types.offsets) or not _is_sound(found):
            raise InputError(f"{file} is damaged: its parts do not fit together; make it again")
        return found


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
    return ItemTokens(token_L, type_L, offsets, len(tokenizer), cut_share)


def history_tokens(
    tokens: ItemTokens, item_BT: np.ndarray, max_tokens: int, cls: int, pad: int = 0
) -> HistoryTokens:
    """[CLS] and then the items, newest first, padded to the longest of the histories.

    item_BT holds item numbers, oldest first, 0 for padding on either side. What goes beyond
    max_tokens, the text of the oldest, is cut.
    """
    newest_BT = item_BT[:, ::-1]
    place_BT = np.cumsum(newest_BT != 0, axis=1)
    count_BT = _within(np.diff(tokens.offsets)[newest_BT], max_tokens - 1)
    count_N = count_BT.ravel()
    at_L = _spread(tokens.offsets[newest_BT].ravel(), count_N)
    length_B = 1 + count_BT.sum(axis=1)
    real_BL = np.arange(length_B.max(initial=1)) < length_B[:, None]
    text_BL = real_BL.copy()
    text_BL[:, 0] = False
    token_BL = np.full(real_BL.shape, pad, np.int64)
    token_BL[:, 0] = cls
    type_BL, item_BL = np.zeros((2, *real_BL.shape), np.int64)
    # Rows of a mask are filled in the order in which the pieces lie: row by row.
    token_BL[text_BL] = tokens.token_L[at_L]
    type_BL[text_BL] = tokens.type_L[at_L]
    item_BL[text_BL] = np.repeat(place_BT.ravel(), count_N)
    return HistoryTokens(token_BL, type_BL, item_BL, real_BL)


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


def _list_array(offsets: np.ndarray, kind: pa.DataType, values: np.ndarray) -> pa.Array:
    """Lists over existing memory."""
    flat, ends = (
        pa.Array.from_buffers(of, len(x), [None, pa.py_buffer(np.ascontiguousarray(x))])
        for of, x in ((kind, values), (pa.int64(), offsets))
    )
    return pa.LargeListArray.from_arrays(ends, flat)


def _view(values: pa.Array, dtype: type) -> np.ndarray:
    """The memory of an Arrow array without nulls."""
    flat: np.ndarray = np.frombuffer(values.buffers()[1], dtype=dtype)
    return flat[values.offset : values.offset + len(values)]


def _about(table: pa.Table, file: Path) -> dict[str, Any]:
    """What a table of tokens says of itself. InputError where it is not such a table."""
    wanted = {"tokens": pa.large_list(pa.int32()), "types": pa.large_list(pa.uint8())}
    kinds = {field.name: field.type for field in table.schema}
    try:
        about = json.loads((table.schema.metadata or {}).get(b"recsys", b""))
        known = (
            about["format"] == FORMAT_VERSION
            and isinstance(about["vocab_size"], int)
            and isinstance(about["cut_share"], float)
        )
    except (ValueError, KeyError, TypeError):
        known = False
    if kinds != wanted or not known:
        raise InputError(f"{file} is not a table of tokens of this version; make it again")
    if table.num_rows == 0 or any(
        column.num_chunks != 1 or column.null_count or column.chunk(0).values.null_count
        for column in table.columns
    ):
        raise InputError(f"{file} is damaged: it has gaps; make it again")
    return about


def _is_sound(tokens: ItemTokens) -> bool:
    """Whether all numbers lie where they may: files from outside are not trusted."""
    offsets, vocab_size = tokens.offsets, tokens.vocab_size
    return bool(
        len(offsets) >= 2
        and offsets[0] == offsets[1] == 0
        and offsets[-1] == len(tokens.token_L) == len(tokens.type_L)
        and np.diff(offsets).min() >= 0
        and tokens.token_L.min(initial=0) >= 0
        and tokens.token_L.max(initial=-1) < vocab_size
        and tokens.type_L.min(initial=KEY) >= KEY
        and tokens.type_L.max(initial=KEY) <= VALUE
    )
