"""Fixed vectors of items: from their texts, from an encoder of texts, or from a file.

What makes them is kept in the run folder, in `item_vectors.safetensors`, so that an item that comes
later is described in the same way.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.text import Report, item_attributes, sentences
from recsys.errors import InputError

ITEM_VECTORS = "item_vectors.safetensors"
TFIDF_DIM = 256
"""Numbers of a vector made from words."""
ENCODER_BATCH = 64
"""Texts that an encoder reads at once."""


class ItemVectors:
    """Makes vectors of items that a table describes."""

    def transform(self, catalogue: pa.Table) -> np.ndarray:
        """float32 [rows, F]; zeros for an item of which nothing is known."""
        raise NotImplementedError(f"{type(self).__name__} does not define transform")

    def padded(self, catalogue: pa.Table) -> np.ndarray:
        """float32 [rows + 1, F], row 0 of zeros for padding."""
        known = self.transform(catalogue)
        return np.concatenate([np.zeros((1, known.shape[1]), np.float32), known])

    def save(self, run: Path) -> None:
        """Write what `load_item_vectors` needs into a run folder, whole or not at all."""
        from safetensors.numpy import save_file

        arrays, about = self._parts()
        run.mkdir(parents=True, exist_ok=True)
        aside = run / f"{ITEM_VECTORS}.part"
        try:
            save_file(arrays, aside, metadata={"json": json.dumps(about)})
            os.replace(aside, run / ITEM_VECTORS)
        finally:
            aside.unlink(missing_ok=True)

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays, plain values) that make the same again."""
        raise NotImplementedError(f"{type(self).__name__} does not define _parts")


class TfidfVectors(ItemVectors):
    """Words and pairs of words, weighed by tf-idf and reduced by a truncated SVD (latent semantic
    analysis, Deerwester et al. 1990); of length 1."""

    def __init__(self, vocabulary: list[str], idf: np.ndarray, components: np.ndarray):
        self.vocabulary, self.idf, self.components = vocabulary, idf, components

    @classmethod
    def fit(cls, catalogue: pa.Table, report: Report | None = None) -> "TfidfVectors":
        """Learn words, weights and directions from the texts of a catalogue."""
        _need("sklearn", "scikit-learn")
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
        _need("sklearn", "scikit-learn")
        words = _vectorizer(self.vocabulary)
        words.idf_ = self.idf
        weighed = words.transform(sentences(item_attributes(catalogue)))
        return _unit(np.asarray(weighed @ self.components.T, dtype=np.float32))

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {"idf": self.idf, "components": np.ascontiguousarray(self.components)}
        return arrays, {"kind": "tfidf", "vocabulary": self.vocabulary}


class EncoderVectors(ItemVectors):
    """A pretrained text encoder, from a folder or the hub, over each item's sentence; length 1."""

    def __init__(self, path: str, digest: str | None = None, report: Report | None = None):
        self.path, self.report = path, report
        self.digest = encoder_digest(path) if digest is None else digest

    def transform(self, catalogue: pa.Table) -> np.ndarray:
        """float32 [rows, F] of length 1. InputError where the encoder is not what it was."""
        if (now := encoder_digest(self.path)) != self.digest:
            raise InputError(
                f"the encoder {self.path} has other weights ({now[:12]}) than those that the items"
                f" were encoded with ({self.digest[:12]})"
            )
        texts = sentences(item_attributes(catalogue))
        return _unit(_encoded(self.path, texts, self.report or _quiet))

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {"none": np.zeros(1, np.float32)}, {
            "kind": "encoder",
            "path": self.path,
            "digest": self.digest,
        }


class FileVectors(ItemVectors):
    """Vectors from a Parquet file: a column of item ids, and a column of lists or one a number."""

    def __init__(self, path: str, report: Report | None = None):
        self.path, self.report = path, report

    def transform(self, catalogue: pa.Table) -> np.ndarray:
        """float32 [rows, F]: of a column `vector`, else of the file; zeros for items not in it."""
        if "vector" in catalogue.column_names:
            return _matrix(catalogue.select(["vector"]), "column 'vector' of the items")
        table = _read_vectors(Path(self.path))
        keys = table["item"].combine_chunks()
        if pc.count_distinct(keys).as_py() < len(keys):
            raise InputError(f"{self.path} names an item twice")
        try:
            keys = keys.cast(catalogue.schema.field("item").type)
        except pa.ArrowInvalid:
            keys = keys.cast(pa.string())
        wanted = catalogue["item"].combine_chunks().cast(keys.type)
        place = pc.index_in(wanted, value_set=keys)
        missing = place.null_count
        if missing == len(wanted):
            raise InputError(f"{self.path} has a vector of none of the items")
        if missing and self.report is not None:
            self.report(f"{missing:,} of {len(wanted):,} items have no vector in {self.path}")
        found = _matrix(table.drop_columns(["item"]), self.path)
        rows = np.array(pc.fill_null(place, 0).to_pylist(), dtype=np.int64)
        vectors: np.ndarray = found[rows]
        vectors[np.array(pc.is_null(place).to_pylist())] = 0
        return vectors

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {"none": np.zeros(1, np.float32)}, {"kind": "file", "path": self.path}


def fit_item_vectors(catalogue: pa.Table, source: str, report: Report | None = None) -> ItemVectors:
    """What `model.item_vectors` names: tfidf, a Parquet file, or an encoder's folder or hub id.

    InputError where it is none of these.
    """
    if source == "tfidf":
        return TfidfVectors.fit(catalogue, report)
    if source.endswith(".parquet"):
        return FileVectors(str(Path(source).resolve()), report)
    return EncoderVectors(source, report=report)


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
            if arrays["idf"].shape != (len(words),) or arrays["components"].shape[1] != len(words):
                raise ValueError("its parts do not fit together")
            return TfidfVectors(words, arrays["idf"], arrays["components"])
        if kind == "encoder":
            return EncoderVectors(str(about["path"]), str(about["digest"]))
        if kind == "file":
            return FileVectors(str(about["path"]))
        raise ValueError(f"unknown kind {kind!r}")
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError, OSError) as error:
        raise InputError(f"{file} is damaged: {error}") from None


def encoder_digest(path: str) -> str:
    """SHA-256 of an encoder's weights in a local folder, or of a hub id's name.

    InputError where a folder holds no encoder.
    """
    folder = Path(path)
    if not folder.is_dir():
        if folder.exists() or path.count("/") != 1 or path.startswith((".", "/", "~")):
            raise InputError(
                f"model.item_vectors={path} is neither tfidf, nor a .parquet file, nor the folder"
                " or hub id of a text encoder"
            )
        return hashlib.sha256(path.encode()).hexdigest()
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise InputError(
            f"{path} is not a text encoder: it needs config.json, a tokenizer and .safetensors"
        )
    digest = hashlib.sha256()
    for file in weights:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _encoded(path: str, texts: list[str], report: Report) -> np.ndarray:
    """float32 [texts, F]: the mean over a text's tokens, or its first token where the folder says
    so."""
    _need("transformers", "transformers")
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        encoder = AutoModel.from_pretrained(path, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as a text encoder: {reason}") from None
    encoder.eval()
    limit = min(tokenizer.model_max_length, encoder.config.max_position_embeddings, 512)
    first = _reads_first_token(Path(path))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: list[np.ndarray] = [np.empty(0)] * len(texts)
    cut = 0
    with torch.inference_mode():
        for start in range(0, len(order), ENCODER_BATCH):
            rows = order[start : start + ENCODER_BATCH]
            batch = tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            cut += int((batch["attention_mask"].sum(1) == limit).sum())
            hidden_BLD = encoder(**batch).last_hidden_state
            real_BL1 = batch["attention_mask"][:, :, None]
            pooled = (hidden_BLD * real_BL1).sum(1) / real_BL1.sum(1)
            for row, vector in zip(rows, hidden_BLD[:, 0] if first else pooled, strict=True):
                found[row] = vector.float().numpy()
    if cut:
        report(f"{cut:,} of {len(texts):,} texts were cut at the encoder's {limit} tokens")
    vectors = np.stack(found)
    vectors[[not text for text in texts]] = 0
    return vectors


def _reads_first_token(folder: Path) -> bool:
    """Whether an encoder's folder asks for its first token in the place of a mean."""
    pooling = folder / "1_Pooling" / "config.json"
    if not pooling.is_file():
        return False
    try:
        return bool(json.loads(pooling.read_text(encoding="utf-8")).get("pooling_mode_cls_token"))
    except (ValueError, AttributeError) as error:
        raise InputError(f"{pooling} is damaged: {error}") from None


def _read_vectors(file: Path) -> pa.Table:
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file).read()
    except FileNotFoundError:
        raise InputError(f"the file of item vectors {file} does not exist") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} cannot be read as Parquet: {error}") from None
    name = next((n for n in ("item", "item_id", "id") if n in table.column_names), None)
    if name is None:
        names = ", ".join(map(repr, table.column_names))
        raise InputError(f"{file} has no column 'item' of item ids (columns: {names})")
    return table.rename_columns(["item" if n == name else n for n in table.column_names])


def _matrix(table: pa.Table, where: str) -> np.ndarray:
    """float32 [rows, F] of one column of lists, or of columns of numbers."""
    columns = [column.combine_chunks() for column in table.columns]
    if len(columns) == 1 and not _is_number(columns[0].type):
        rows = columns[0].to_pylist()
        widths = {len(row) for row in rows if isinstance(row, list)}
        if len(widths) != 1 or not all(isinstance(row, list) for row in rows):
            raise InputError(f"{where} must hold lists of numbers of one length")
        matrix = np.array(rows, dtype=np.float32)
    else:
        if not columns or not all(_is_number(column.type) for column in columns):
            raise InputError(f"{where} must hold a column of lists, or columns of numbers alone")
        matrix = np.stack([np.array(c.to_pylist(), dtype=np.float32) for c in columns], axis=1)
    if not np.isfinite(matrix).all():
        raise InputError(f"{where} holds a number that is not finite")
    return matrix


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _vectorizer(vocabulary: list[str] | None, min_df: int = 1) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=min_df,
        vocabulary=vocabulary,
        dtype=np.float32,
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.maximum(length, 1e-12)
    return unit.astype(np.float32)


def _need(module: str, package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise InputError(f"texts of items need the package {package}: pip install 'recsys[text]'")


def _quiet(text: str) -> None:
    """Nobody is told."""
