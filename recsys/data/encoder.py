"""Texts as vectors through a pretrained encoder, from a local folder or the hub."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from recsys.data.text import Report, need_package
from recsys.errors import InputError

BATCH = 64
"""Texts that the encoder reads at once."""
TOKENISED = 64 * BATCH
"""Texts that are tokenised at once."""
MOST_TOKENS = 512
"""Tokens of a text that are read; the costs of attention grow with their square."""

DECIDING = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
"""Files beside the weights that decide what becomes of a text."""
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def encode_texts(path: str, texts: list[str], report: Report) -> np.ndarray:
    """float32 [texts, F] of length 1; zeros for an empty text.

    The mean over a text's tokens, or its first token where the folder's own 1_Pooling says so
    (Reimers and Gurevych 2019, Sentence-BERT). `report` is told how many texts were cut. InputError
    where `path` is no encoder, or its tokenizer is another's.
    """
    tokenizer, encoder = _opened(path)
    limit = _limit(path, tokenizer, encoder)
    first = _reads_first_token(path)
    vectors = np.zeros((len(texts), encoder.config.hidden_size), np.float32)
    rows = np.array([row for row, text in enumerate(texts) if text], np.int64)
    # Texts of like length stand together, so that little is computed for padding: by letters among
    # all, then by tokens among those that are tokenised at once.
    rows = rows[np.argsort([len(texts[row]) for row in rows], kind="stable")]
    cut = 0
    for start in range(0, len(rows), TOKENISED):
        some = rows[start : start + TOKENISED]
        read = tokenizer([texts[row] for row in some], truncation=True, max_length=limit)
        cut += sum(bool(text.overflowing) for text in read.encodings or [])
        tokens = [np.array(ids) for ids in read["input_ids"]]
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        for begin in range(0, len(some), BATCH):
            batch = order[begin : begin + BATCH]
            hidden = _hidden(encoder, [tokens[place] for place in batch], tokenizer.pad_token_id)
            vectors[some[batch]] = _pooled(*hidden, first)
    if cut:
        report(f"{cut:,} of {len(texts):,} texts were cut at the {limit} tokens of {path}")
    return unit(vectors)


def _hidden(encoder: Any, tokens: list[np.ndarray], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [B, L, F], bool [B, L] True for real tokens) of texts as token ids."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids_BL = pad_sequence([torch.from_numpy(ids) for ids in tokens], True, pad)
    lengths_B = torch.tensor([len(ids) for ids in tokens])
    real_BL = torch.arange(ids_BL.shape[1]) < lengths_B[:, None]
    with torch.inference_mode():
        found = encoder(input_ids=ids_BL, attention_mask=real_BL.long())
    return found.last_hidden_state.float().numpy(), real_BL.numpy()


def _pooled(hidden_BLF: np.ndarray, real_BL: np.ndarray, first: bool) -> np.ndarray:
    """[B, F] each text's first token, or the mean of its real ones."""
    if first:
        return hidden_BLF[:, 0]
    real_BL1 = real_BL[:, :, None]
    mean: np.ndarray = (hidden_BLF * real_BL1).sum(1) / real_BL1.sum(1)
    return mean


def encoder_digests(path: str) -> tuple[str, str]:
    """SHA-256 over all that decides its vectors, and over the weights alone, as older runs have it.
    InputError where `path` is no text encoder."""
    folder = Path(path)
    if folder.is_dir():
        weights = sorted(folder.glob("*.safetensors"))
        if not weights or not (folder / "config.json").is_file():
            raise InputError(
                f"{path} is not a text encoder: it needs config.json, a tokenizer and .safetensors"
            )
    else:
        weights = [_file(path, "model.safetensors")]
    digest = hashlib.sha256()
    for file in weights:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    of_weights = digest.hexdigest()
    for name in DECIDING:
        if (found := _optional_file(path, name)) is not None:
            data = found.read_bytes()
            digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest(), of_weights


def encoder_dim(path: str) -> int:
    """F, the width of the encoder's vectors."""
    file = _file(path, "config.json")
    dim = _json(file).get("hidden_size")
    if not isinstance(dim, int) or dim < 1:
        raise InputError(f"{file} names no hidden_size: {path} is not a text encoder")
    return dim


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 [N, F] of length 1, zeros where it was 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = (vectors / np.maximum(length, 1e-12)).astype(np.float32)
    return scaled


def _opened(path: str) -> tuple[Any, Any]:
    """(tokenizer, encoder), whole and fitting each other."""
    need_package("transformers", "transformers")
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        encoder, found = AutoModel.from_pretrained(
            path, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # Of damaged files it raises what each of its parts does.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as a text encoder: {reason}") from None
    # What no file brings is drawn at random; the vectors are taken before the pooler.
    if missing := sorted(key for key in found["missing_keys"] if not key.startswith("pooler.")):
        raise InputError(
            f"the weights of {path} lack {len(missing):,} of its parts, as {missing[0]}"
        )
    config = encoder.config
    if config.is_encoder_decoder or "max_position_embeddings" not in config.to_dict():
        raise InputError(f"{path} is a {config.model_type}, not a text encoder of BERT's kind")
    if len(tokenizer) <= len(tokenizer.all_special_ids) or tokenizer.pad_token is None:
        raise InputError(f"{path} has no tokenizer of its own, or one without padding")
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"the tokenizer of {path} knows {len(tokenizer):,} tokens, its encoder"
            f" {config.vocab_size:,}: one of them is another encoder's"
        )
    return tokenizer, encoder.eval()


def _limit(path: str, tokenizer: Any, encoder: Any) -> int:
    """Most tokens of a text: what the tokenizer, the encoder and its folder say."""
    said = _optional_json(path, "sentence_bert_config.json").get("max_seq_length")
    if said is not None and (type(said) is not int or said < 3):
        raise InputError(f"{path} asks for texts of at most {said!r} tokens")
    # RoBERTa counts its positions from 2.
    places = encoder.config.max_position_embeddings - 2
    return min(tokenizer.model_max_length, places, said or MOST_TOKENS, MOST_TOKENS)


def _reads_first_token(path: str) -> bool:
    """Whether the folder asks for the first token in the place of a mean."""
    pooling = _optional_json(path, "1_Pooling/config.json")
    # Newer folders name one way, older ones set a flag for each.
    flags = [name for name, value in pooling.items() if name in POOLING_FLAGS and value is True]
    asked = pooling.get("pooling_mode", [POOLING_FLAGS[name] for name in flags] or "mean")
    if asked in ("cls", ["cls"]):
        return True
    if asked in ("mean", ["mean"]):
        return False
    raise InputError(f"{path} asks for {asked} of a text's tokens; cls or mean is what there is")


def _file(path: str, name: str) -> Path:
    """A file of the encoder, fetched from the hub where `path` is an id."""
    found = _optional_file(path, name)
    if found is None:
        where = "it has" if Path(path).is_dir() else "no folder, and what can be had of the hub has"
        raise InputError(f"{path} is not a text encoder: {where} no {name}")
    return found


def _optional_file(path: str, name: str) -> Path | None:
    """None where the encoder has no such file."""
    folder = Path(path)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if folder.exists() or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise InputError(
            f"model.item_vectors={path} is neither tfidf, nor a .parquet file, nor the folder or"
            " hub id of a text encoder"
        )
    need_package("transformers", "transformers")
    from transformers.utils import cached_file

    try:
        found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no folder here, and the hub does not give it:"
            f" {(str(error).splitlines() or [''])[0]}"
        ) from None
    return None if found is None else Path(found)


def _optional_json(path: str, name: str) -> dict[str, Any]:
    file = _optional_file(path, name)
    return {} if file is None else _json(file)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{file} is damaged: it holds no JSON object")
    return found
