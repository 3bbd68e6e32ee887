"""What a run keeps in order to describe an item as it described those of its training."""

from pathlib import Path

from recsys.data.item_vectors import ItemVectors, load_item_vectors
from recsys.data.token_rows import TOKEN_ROWS, TokenRows


def load_item_features(run: Path) -> ItemVectors | TokenRows:
    """What made the fixed vectors, or the tokens, of a run's items.

    InputError where the run knows items by their numbers alone, or its files are damaged.
    """
    return TokenRows.load(run) if (run / TOKEN_ROWS).is_file() else load_item_vectors(run)
