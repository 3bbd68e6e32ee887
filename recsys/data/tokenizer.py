"""Texts to numbers of tokens: a tokenizer learned from a catalogue, or one of an encoder."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recsys.data.text import Attributes, need_package
from recsys.errors import InputError
from recsys.whole import written_whole

if TYPE_CHECKING:
    import tokenizers

TOKENIZER = "tokenizer.json"
"""The file of a tokenizer, here and in the folders of encoders."""
ENCODER = "encoder"
"""The folder of a run that holds its encoder and tokenizer, after `recsys pretrain`."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_NAMES = {"pad": ("[PAD]", "<pad>"), "cls": ("[CLS]", "<s>"), "mask": ("[MASK]", "<mask>")}
"""Special tokens as the BERT and the RoBERTa families call them."""
_AT_ONCE = 10_000
"""Texts that are tokenised at once."""


def train_tokenizer(*catalogues: Attributes, vocab_size: int = 30_000) -> "Tokenizer":
    """WordPiece (Schuster & Nakajima 2012) of lower-case words, as BERT's, learned from catalogues.

    It has at most vocab_size tokens, and the same catalogues give the same ones. InputError for
    less than 100.
    """
    need_package("tokenizers", "tokenizers")
    from tokenizers import models, trainers

    if vocab_size < 100:
        raise InputError(f"a tokenizer needs 100 tokens at least, vocab_size is {vocab_size}")
    # Each letter takes two places, at the start of a word and within it.
    letters, inner = _letters(_all_texts(catalogues), vocab_size // 4)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # A piece seen once teaches nothing.
        min_frequency=2,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        # Left alone, the trainer numbers the letters within words in another order each time, and
        # pieces that are equally common fall out otherwise. So they have their numbers before.
        special_tokens=[*SPECIAL, *(f"##{letter}" for letter in inner)],
        show_progress=False,
    )
    learner = _like_bert(models.WordPiece(unk_token="[UNK]"))
    learner.train_from_iterator(_all_texts(catalogues), trainer)
    vocabulary = learner.get_vocab(with_added_tokens=False)
    tokenizer = _like_bert(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL))
    return Tokenizer(tokenizer)


def encoder_folder(name: str) -> Path:
    """The local folder of an encoder: the one named, that of a run of `recsys pretrain`, or a copy
    of one of the Hugging Face hub.

    Of the hub nothing is fetched but JSON and safetensors. InputError where `name` is neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / ENCODER if (folder / ENCODER).is_dir() else folder
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{name} is neither the folder nor the hub id of a text encoder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    wanted = ["config.json", TOKENIZER, "model*.safetensors", "1_Pooling/config.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"there is no folder {name}, and the hub does not give it: {reason}"
        ) from None


def key_words(column: str) -> str:
    """The name of a column as words."""
    return column.replace("_", " ")


class Tokenizer:
    """Texts to numbers of tokens, through a tokenizer of the package `tokenizers`.

    `pad`, `cls` and `mask` are the numbers of its special tokens. InputError where it has not all
    of them.
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer", where: str = "the tokenizer"):
        # An encoder's file may ask to cut and to pad for that encoder.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self._where = tokenizer, where
        self.pad, self.cls, self.mask = (
            _special(tokenizer, kind, where) for kind in ("pad", "cls", "mask")
        )
        # Not their count: some encoders leave numbers out.
        self._size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    def __len__(self) -> int:
        """All numbers of tokens lie below."""
        return self._size

    def encode(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [L] of all texts one after the other, their offsets int64 [texts + 1]).

        No special tokens are added.
        """
        texts = list(texts)
        parts, lengths = [], []
        for start in range(0, len(texts), _AT_ONCE):
            some = texts[start : start + _AT_ONCE]
            try:
                found = self._tokenizer.encode_batch_fast(some, add_special_tokens=False)
            except Exception as error:  # The package raises no narrower class.
                raise InputError(f"{self._where} cannot read texts: {error}") from None
            rows = [encoding.ids for encoding in found]
            lengths += [len(row) for row in rows]
            parts.append(np.array([token for row in rows for token in row], dtype=np.int32))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        return np.concatenate([np.zeros(0, np.int32), *parts]), offsets

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, whole or not at all."""
        with written_whole(folder / TOKENIZER) as aside:
            self._tokenizer.save(str(aside))

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer.json of a local folder. InputError where there is none of use."""
        need_package("tokenizers", "tokenizers")
        from tokenizers import Tokenizer as Whole

        file = folder / TOKENIZER
        if not file.is_file():
            raise InputError(
                f"{folder} has no {TOKENIZER}: save the encoder's tokenizer there with"
                " AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers"
            )
        try:
            tokenizer = Whole.from_file(str(file))
        except Exception as error:  # The package raises no narrower class.
            raise InputError(f"{file} is not a tokenizer: {error}") from None
        return cls(tokenizer, str(file))


def _special(tokenizer: "tokenizers.Tokenizer", kind: str, where: str) -> int:
    found = [tokenizer.token_to_id(name) for name in _NAMES[kind]]
    known = [token for token in found if token is not None]
    if not known:
        raise InputError(f"{where} has no token {' or '.join(_NAMES[kind])}")
    return int(known[0])


def _all_texts(catalogues: Iterable[Attributes]) -> Iterator[str]:
    for attributes in catalogues:
        yield from map(key_words, attributes.columns)
        for texts in attributes.values:
            yield from (text for text in texts if text)


def _like_bert(model: "tokenizers.models.Model") -> "tokenizers.Tokenizer":
    """Lower-case words without accents, apart from punctuation, through `model`."""
    from tokenizers import Tokenizer as Whole
    from tokenizers import decoders, normalizers, pre_tokenizers

    whole = Whole(model)
    whole.normalizer = normalizers.BertNormalizer(lowercase=True)
    whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    whole.decoder = decoders.WordPiece()
    return whole


def _letters(texts: Iterable[str], limit: int) -> tuple[list[str], list[str]]:
    """(the commonest letters, those of them that stand within words), both sorted."""
    from tokenizers.normalizers import BertNormalizer

    normalizer = BertNormalizer(lowercase=True)
    words: Counter[str] = Counter()
    for text in texts:
        words.update(normalizer.normalize_str(text).split())
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            counts[letter] += count
    kept = sorted(counts, key=lambda letter: (-counts[letter], letter))[:limit]
    within = {letter for word in words for letter in word[1:]}
    return sorted(kept), sorted(within.intersection(kept))
