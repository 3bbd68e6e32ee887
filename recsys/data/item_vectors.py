"""Fixed vectors of items: from their texts, from an encoder of texts, or from a file.

What makes them is kept in the run folder, in `item_vectors.safetensors`, so that an item that comes
later is described in the same way.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.encoder import encode_texts, encoder_digests, encoder_dim, unit
from recsys.data.item_table import ID_COLUMNS
from recsys.data.text import Report, item_attributes, need_package, sentences
from recsys.errors import InputError
from recsys.whole import written_whole

ITEM_VECTORS = "item_vectors.safetensors"
VECTOR = "vector"
"""A column of lists of numbers, of items that bring their vectors with them."""
TFIDF_DIM = 256
"""Numbers of a vector made from words."""
MOST_WORDS = 50_000
"""Words and pairs of words, the most frequent ones; each costs TFIDF_DIM numbers on disk."""


class ItemVectors:
    """Makes vectors of items that a table describes."""

    dim: int
    """F, numbers of a vector."""

    def transform(self, catalogue: pa.Table) -> np.ndarray:
        """float32 [rows, F], of items old or new; zeros for one of which nothing is known."""
        raise NotImplementedError(f"{type(self).__name__} does not define transform")

    def padded(self, catalogue: pa.Table) -> np.ndarray:
        """float32 [rows + 1, F], row 0 of zeros for padding."""
        known = self.transform(catalogue)
        return np.concatenate([np.zeros((1, known.shape[1]), np.float32), known])

    def save(self, run: Path) -> None:
        """Write what `load_item_vectors` needs into a run folder, whole or not at all."""
        from safetensors.numpy import save_file

        arrays, about = self._parts()
        with written_whole(run / ITEM_VECTORS) as aside:
            save_file(arrays, aside, metadata={"json": json.dumps(about)})

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays, plain values) that make the same again."""
        raise NotImplementedError(f"{type(self).__name__} does not define _parts")


class TfidfVectors(ItemVectors):
    """Words and pairs of words, weighed by tf-idf and reduced by a truncated SVD (latent semantic
    analysis, Deerwester et al. 1990); of length 1."""

    def __init__(self, vocabulary: list[str], idf: np.ndarray, components: np.ndarray):
        self.vocabulary, self.idf, self.components = vocabulary, idf, components
        self.dim = len(components)

    @classmethod
    def fit(cls, catalogue: pa.Table, report: Report | None = None) -> "TfidfVectors":
        """Learn words, weights and directions from the texts of a catalogue. InputError where they
        hold too few words."""
        need_package("sklearn", "scikit-learn")
        from sklearn.decomposition import TruncatedSVD

        texts = sentences(item_attributes(catalogue, report))
        words = _vectorizer(None, 2 if len(texts) >= 1000 else 1)
        try:
            weighed = words.fit_transform(texts)
        except ValueError:
            raise InputError(
                "the texts of the items hold no words: no vectors come of them"
            ) from None
        dim = min(TFIDF_DIM, weighed.shape[0] - 1, weighed.shape[1] - 1)
        if dim < 1:
            raise InputError("vectors from words need two items and two words at least")
        svd = TruncatedSVD(dim, random_state=0).fit(weighed)
        names: list[str] = words.get_feature_names_out().tolist()
        return cls(names, words.idf_.astype(np.float32), svd.components_.astype(np.float32))

    def transform(self, catalogue: pa.Table) -> np.ndarray:
        """float32 [rows, F] of length 1; zeros where no word is known."""
        need_package("sklearn", "scikit-learn")
        words = _vectorizer(self.vocabulary)
        words.idf_ = self.idf
        weighed = words.transform(sentences(item_attributes(catalogue)))
        return unit(np.asarray(weighed @ self.components.T, dtype=np.float32))

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {"idf": self.idf, "components": np.ascontiguousarray(self.components)}
        return arrays, {"kind": "tfidf", "vocabulary": self.vocabulary}


class EncoderVectors(ItemVectors):
    """A pretrained text encoder, from a folder or the hub, over each item's sentence; length 1."""

    def __init__(self, path: str, digest: str, dim: int, report: Report | None = None):
        """`digest` is the SHA-256 of the encoder that `transform` expects."""
        self.path, self.digest, self.dim = path, digest, dim
        self.report = report or _quiet

    @classmethod
    def fit(cls, path: str, report: Report | None = None) -> "EncoderVectors":
        """The encoder as it is now. InputError where there is none."""
        if Path(path).is_dir():
            path = str(Path(path).resolve())
        return cls(path, encoder_digests(path)[0], encoder_dim(path), report)

    def transform(self, catalogue: pa.Table) -> np.ndarray:
        """float32 [rows, F] of length 1. InputError where the encoder is not what it was."""
        if self.digest not in (now := encoder_digests(self.path)):
            raise InputError(
                f"the encoder {self.path} has other weights, or another tokenizer or pooling,"
                f" ({now[0][:12]}) than what the items were encoded with ({self.digest[:12]})"
            )
        texts = sentences(item_attributes(catalogue, self.report))
        return encode_texts(self.path, texts, self.report)

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        about = {"kind": "encoder", "path": self.path, "digest": self.digest, "dim": self.dim}
        return {}, about


class FileVectors(ItemVectors):
    """Vectors from a Parquet file: a column of item ids, and one of lists or a column a number."""

    def __init__(self, path: str, dim: int, missing: frozenset[str] = frozenset()):
        """`missing` are ids, as texts, of items that the file did not have in training."""
        self.path, self.dim, self.missing = path, dim, missing

    @classmethod
    def fit(cls, catalogue: pa.Table, path: str, report: Report | None = None) -> "FileVectors":
        """Of the items of a catalogue; those that the file lacks are counted and get zeros.
        InputError where it has none of them, or holds no vectors."""
        path = str(Path(path).resolve())
        ids, vectors = _read_vectors(Path(path))
        wanted = _texts_of(catalogue["item"])
        lacking = pc.is_null(pc.index_in(wanted, value_set=ids))
        missing = wanted.filter(lacking).to_pylist()
        if len(missing) == len(wanted):
            raise InputError(f"{path} has a vector of none of the {len(wanted):,} items")
        if missing and report is not None:
            report(f"{len(missing):,} of {len(wanted):,} items have no vector in {path}")
        return cls(path, vectors.shape[1], frozenset(missing))

    def transform(self, catalogue: pa.Table) -> np.ndarray:
        """float32 [rows, F]: a column `vector` of lists where there is one, else of the file.

        InputError for a new item that neither of them has: no text says what its vector would be.
        """
        if VECTOR in catalogue.column_names:
            given = _matrix(catalogue.select([VECTOR]), "column 'vector' of the items")
            return self._checked(given, "column 'vector' of the items")
        ids, vectors = _read_vectors(Path(self.path))
        wanted = _texts_of(catalogue["item"])
        place = pc.index_in(wanted, value_set=ids)
        lacking = pc.is_null(place)
        new = [item for item in wanted.filter(lacking).to_pylist() if item not in self.missing]
        if new:
            raise InputError(
                f"{self.path} has no vector of {len(new):,} items, as {new[0]!r}: add them there,"
                " or give them in a column 'vector'"
            )
        found = self._checked(vectors, self.path)[pc.fill_null(place, 0).to_numpy()]
        found[lacking.to_numpy(zero_copy_only=False)] = 0
        return found

    def _checked(self, vectors: np.ndarray, where: str) -> np.ndarray:
        if vectors.shape[1] != self.dim:
            raise InputError(
                f"{where} holds vectors of {vectors.shape[1]} numbers, those of training had"
                f" {self.dim}"
            )
        return vectors

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        about = {"kind": "file", "path": self.path, "dim": self.dim}
        return {}, {**about, "missing": sorted(self.missing)}


def fit_item_vectors(catalogue: pa.Table, source: str, report: Report | None = None) -> ItemVectors:
    """What `model.item_vectors` names: tfidf, a Parquet file, or an encoder's folder or hub id.

    InputError where it is none of these.
    """
    if source == "tfidf":
        return TfidfVectors.fit(catalogue, report)
    if source.endswith(".parquet"):
        return FileVectors.fit(catalogue, source, report)
    return EncoderVectors.fit(source, report)


def load_item_vectors(run: Path) -> ItemVectors:
    """What made the fixed vectors of a run. InputError where the run has none, or it is damaged."""
    from safetensors import SafetensorError, safe_open

    file = run / ITEM_VECTORS
    if not file.is_file():
        raise InputError(f"{run} has no fixed vectors of its items: it has no {ITEM_VECTORS}")
    try:
        with safe_open(file, framework="numpy") as opened:
            about = json.loads(opened.metadata()["json"])
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        kind = about["kind"]
        if kind == "tfidf":
            words = [str(word) for word in about["vocabulary"]]
            known = len(set(words))
            if arrays["idf"].shape != (known,) or arrays["components"].shape[1] != len(words):
                raise ValueError("its parts do not fit together")
            return TfidfVectors(words, arrays["idf"], arrays["components"])
        if kind == "encoder":
            return EncoderVectors(str(about["path"]), str(about["digest"]), int(about["dim"]))
        if kind == "file":
            missing = frozenset(map(str, about["missing"]))
            return FileVectors(str(about["path"]), int(about["dim"]), missing)
        raise ValueError(f"unknown kind {kind!r}")
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError, OSError) as error:
        raise InputError(f"{file} is damaged: {error}") from None


def _read_vectors(file: Path) -> tuple[pa.Array, np.ndarray]:
    """(ids as texts, float32 [ids, F]) of a Parquet file."""
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file).read()
    except FileNotFoundError:
        raise InputError(f"the file of item vectors {file} does not exist") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} cannot be read as Parquet: {error}") from None
    names = [name for name in table.column_names if not name.startswith("__index_level_")]
    key = next((name for name in ID_COLUMNS if name in names), None)
    if key is None:
        raise InputError(
            f"{file} has no column of item ids, as 'item' (columns: {', '.join(map(repr, names))})"
        )
    ids = _texts_of(table[key])
    if ids.null_count:
        raise InputError(f"{file} has a row without an item in its column {key!r}")
    if (different := pc.count_distinct(ids).as_py()) < len(ids):
        raise InputError(f"{file} names {len(ids) - different:,} items twice in {key!r}")
    return ids, _matrix(table.select([name for name in names if name != key]), str(file))


def _texts_of(ids: pa.ChunkedArray) -> pa.Array:
    """Raw ids as they are compared: 7 and "7" are one item, whatever file they stand in."""
    try:
        return ids.cast(pa.string()).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"ids of items with vectors must be texts or numbers: {error}") from None


def _matrix(table: pa.Table, where: str) -> np.ndarray:
    """float32 [rows, F] of the one column of lists, or else of columns that are numbers alone."""
    lists = [name for name in table.column_names if _is_list(table[name].type)]
    if len(lists) > 1:
        raise InputError(f"{where} holds vectors in {', '.join(lists)}: leave one of them")
    if lists:
        matrix = _rows_of(table[lists[0]], f"{where}: {lists[0]!r}")
    else:
        if not table.column_names or not all(map(_is_number, table.schema.types)):
            raise InputError(
                f"{where} must hold a column of lists of numbers, or columns of numbers alone"
                f" (columns: {', '.join(map(repr, table.column_names))})"
            )
        columns = [column.cast(pa.float32(), safe=False).to_numpy() for column in table.columns]
        matrix = np.stack(columns, axis=1)
    if not np.isfinite(matrix).all():
        raise InputError(f"{where} holds a number that is not finite")
    return matrix


def _rows_of(column: pa.ChunkedArray, where: str) -> np.ndarray:
    if not _is_number(column.type.value_type) or column.null_count:
        raise InputError(f"{where} must be a list of numbers in every row")
    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(widths) != 1 or widths[0] < 1:
        raise InputError(f"{where} must hold lists of one length, found {sorted(widths)[:5]}")
    flat = pc.list_flatten(column).cast(pa.float32(), safe=False).to_numpy()
    return np.array(flat, np.float32).reshape(-1, widths[0])


def _is_list(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_one(kind) for is_one in lists)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _vectorizer(vocabulary: list[str] | None, min_df: int = 1) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=min_df,
        max_features=MOST_WORDS if vocabulary is None else None,
        vocabulary=vocabulary,
        dtype=np.float32,
    )


def _quiet(text: str) -> None:
    """Nobody is told."""
