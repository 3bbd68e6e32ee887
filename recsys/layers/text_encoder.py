"""Recformer's encoder of key-value sentences (Li et al. 2023, Text Is All You Need, section 2.2).

A post-norm transformer as BERT (Devlin et al. 2019), with attention in a window and two embeddings
more for a token: whether it is of a key or of a value, and of which item of the history.
Letters: B batch, L tokens of a text, D width.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recsys.errors import InputError
from recsys.layers.dropout import Dropout
from recsys.layers.feedforward import GELUFeedForward
from recsys.layers.local_attention import LocalAttention, LocalAttentionWithGlobal
from recsys.whole import written_whole

NUM_TYPES = 3
"""Kinds of tokens: 0 [CLS], 1 of a key, 2 of a value."""
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "longformer")
"""Encoders of others that can be read, as config.json names them; MiniLM is a bert."""
OWN_FAMILY = "recsys-text-encoder"
"""What config.json calls an encoder written by `TextEncoder.save`."""
INITIAL_STD = 0.02
"""Spread of new weights, as BERT's."""
SPARE_ROWS = 512
"""Rows that a table of tokens may have beyond its tokenizer: some are rounded up."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of an encoder; the defaults are those of a small one, trained from scratch."""

    vocab_size: int = 30_000
    """Tokens of the tokenizer."""
    dim: int = 128
    """Width of every layer."""
    num_layers: int = 2
    """Transformer blocks."""
    num_heads: int = 2
    """Attention heads a block; must divide dim."""
    hidden_dim: int = 512
    """Width inside the feed-forward networks."""
    max_tokens: int = 512
    """Longest text in tokens, [CLS] included."""
    max_items: int = 50
    """Most items of a history."""
    window: int = 64
    """Tokens that a token sees around it, half of them to each side; at least 2."""
    dropout: float = 0.1
    """Share of values dropped in embeddings, attention and branches, in [0, 1)."""
    norm_epsilon: float = 1e-12
    """Added to the variance in layer norms."""
    global_projections: bool = False
    """Whether [CLS] reads the text through projections of its own, as in Longformer."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            kind: type = type(field.default)
            if type(value) not in ((int, float) if kind is float else (kind,)):
                raise ValueError(f"{field.name} must be of type {kind.__name__}, got {value!r}")
            if kind is int and value < 1:
                raise ValueError(f"{field.name} must be at least 1, got {value}")
        if self.dim % self.num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads, got {self.dim} and {self.num_heads}"
            )
        if self.window < 2:
            raise ValueError(f"window must be at least 2 tokens, got {self.window}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


class TextEncoder(nn.Module):
    """[CLS] and the key-value sentences of items, newest item first, to a vector for each token.

    The input is norm(A + B + C + D), the sum of a token's own embedding, of its position's, its
    type's and its item's (Li et al. 2023, equation 1). `blocks` follow.
    """

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(config.max_tokens, config.dim)
        self.types = nn.Embedding(NUM_TYPES, config.dim)
        # Row 0 is for [CLS], row 1 for the newest item.
        self.items = nn.Embedding(config.max_items + 1, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.num_layers))
        self.apply(_draw)
        self.adaptor = nn.Linear(config.dim, config.dim, bias=False)
        nn.init.zeros_(self.adaptor.weight)

    def forward(
        self, token_BL: Tensor, type_BL: Tensor, item_BL: Tensor, real_BL: Tensor
    ) -> Tensor:
        """[B, L, D] float; what stands at padding means nothing.

        token_BL, type_BL and item_BL are int32 or int64: tokens, their types (below NUM_TYPES) and
        the places of their items (0 for [CLS], 1 for the newest). real_BL is bool, True where a
        token is not padding; the first of each row is [CLS]. ValueError above max_tokens.
        """
        length = token_BL.shape[1]
        if length > self.config.max_tokens:
            raise ValueError(f"a text has {length} tokens, max_tokens is {self.config.max_tokens}")
        x_BLD = self.tokens(token_BL) + self.types(type_BL) + self.items(item_BL)
        x_BLD = self.dropout(self.norm(x_BLD + self.positions.weight[:length]))
        for block in self.blocks:
            x_BLD = block(x_BLD, real_BL)
        return x_BLD

    def adapted(self, x: Tensor) -> Tensor:
        """[..., D] of length 1: what texts are, x + A x. A is zero before training."""
        return F.normalize(x + self.adaptor(x), dim=-1)

    def freeze(self, num_blocks: int) -> None:
        """Train neither the embeddings nor the first blocks."""
        embeddings = [self.tokens, self.positions, self.types, self.items, self.norm]
        for part in (*embeddings, *self.blocks[:num_blocks]):
            part.requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors, from which `from_pretrained` reads it."""
        config = {"model_type": OWN_FAMILY, **asdict(self.config)}
        weights = {name: x.detach().cpu().contiguous() for name, x in self.state_dict().items()}
        with written_whole(folder / "model.safetensors") as aside:
            save_file(weights, aside)
        with written_whole(folder / "config.json") as aside:
            aside.write_text(json.dumps(config, indent=2), encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        *,
        num_tokens: int,
        max_tokens: int,
        max_items: int,
        report: Report,
        window: int | None = None,
        dropout: float | None = None,
    ) -> "TextEncoder":
        """The encoder in a local folder with the config.json and safetensors of one of FAMILIES.

        num_tokens is the size of its tokenizer; the others are sizes as in `pretrained_config`.
        Types and items are new and small, so that the output before training is nearly that of the
        encoder for the plain text. Positions are cut at max_tokens, or repeated up to it, which
        `report` is told. InputError where the folder holds no such encoder, or one for another
        tokenizer.
        """
        config = pretrained_config(
            folder, max_tokens=max_tokens, max_items=max_items, window=window, dropout=dropout
        )
        if not 0 <= config.vocab_size - num_tokens < SPARE_ROWS:
            raise InputError(
                f"{folder}: the encoder knows {config.vocab_size:,} tokens, its tokenizer"
                f" {num_tokens:,}: they do not belong together"
            )
        weights = _weights(folder, config, report)
        # On no device at first: a file may ask for any size.
        with torch.device("meta"):
            shapes = {name: x.shape for name, x in cls(config).state_dict().items()}
        for name, x in weights.items():
            if x.shape != shapes[name]:
                raise InputError(
                    f"{folder}: config.json asks for {name} {list(shapes[name])}, the weights hold"
                    f" {list(x.shape)}"
                )
        encoder = cls(config)
        encoder.load_state_dict(encoder.state_dict() | weights)
        return encoder


class TextBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + feedforward(x)), each branch under dropout."""

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        attention = LocalAttentionWithGlobal if config.global_projections else LocalAttention
        self.attention = attention(config.dim, config.num_heads, config.window, config.dropout)
        self.attention_norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        # BERT drops nothing between the two maps.
        self.feedforward = GELUFeedForward(config.dim, config.hidden_dim, dropout=0.0)
        self.feedforward_norm = nn.LayerNorm(config.dim, eps=config.norm_epsilon)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, real_BL: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]; real_BL as in `LocalAttention`."""
        x_BLD = self.attention_norm(x_BLD + self.dropout(self.attention(x_BLD, real_BL)))
        return self.feedforward_norm(x_BLD + self.dropout(self.feedforward(x_BLD)))


def pretrained_config(
    folder: Path,
    *,
    max_tokens: int,
    max_items: int,
    window: int | None = None,
    dropout: float | None = None,
) -> TextEncoderConfig:
    """The sizes that the encoder in a local folder has here, from its config.json alone.

    window and dropout are the encoder's own where they are not given, the window 64 where it has
    none. InputError where the folder holds no encoder of a known family.
    """
    found = _read_config(folder)
    sizes = _own_sizes(found) if found["model_type"] == OWN_FAMILY else _sizes_of(found, folder)
    sizes |= {"max_tokens": max_tokens, "max_items": max_items}
    sizes |= {} if window is None else {"window": window}
    sizes |= {} if dropout is None else {"dropout": dropout}
    try:
        return TextEncoderConfig(**sizes)
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from None


def _draw(module: nn.Module) -> None:
    """Embeddings as BERT's are before training, and maps that keep the variance at any width.

    At BERT's 0.02 a narrow encoder hears nothing but the token itself: 16 wide, another newest item
    changed a query by 0.0003.
    """
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(module.bias)


def _read_config(folder: Path) -> dict[str, Any]:
    """The contents of config.json, of a known family."""
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{folder} is not a text encoder: it has no config.json") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}") from None
    family = found.get("model_type") if isinstance(found, dict) else None
    if family not in (*FAMILIES, OWN_FAMILY):
        known = ", ".join(FAMILIES)
        raise InputError(f"{file}: an encoder of family {family!r} cannot be read, only {known}")
    return found


def _own_sizes(found: dict[str, Any]) -> dict[str, Any]:
    return {f.name: found[f.name] for f in fields(TextEncoderConfig) if f.name in found}


def _sizes_of(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fields of TextEncoderConfig from the config.json of one of FAMILIES."""
    for name, wanted in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if (value := found.get(name, wanted)) != wanted:
            raise InputError(f"{folder / 'config.json'}: {name} must be {wanted}, got {value!r}")
    longformer = found["model_type"] == "longformer"
    windows = found.get("attention_window", 512) if longformer else TextEncoderConfig.window
    try:
        return {
            "vocab_size": found["vocab_size"],
            "dim": found["hidden_size"],
            "num_layers": found["num_hidden_layers"],
            "num_heads": found["num_attention_heads"],
            "hidden_dim": found["intermediate_size"],
            "norm_epsilon": found.get("layer_norm_eps", TextEncoderConfig.norm_epsilon),
            "dropout": found.get("hidden_dropout_prob", TextEncoderConfig.dropout),
            # A list has one a layer; within the widest a token sees all that it saw before.
            "window": _widest(windows),
            "global_projections": longformer,
        }
    except KeyError as error:
        raise InputError(f"{folder / 'config.json'} does not say {error}") from None


def _widest(windows: Any) -> Any:
    """The greatest of a list of numbers; anything else as it is."""
    numbers = isinstance(windows, list) and windows and all(type(x) is int for x in windows)
    return max(windows) if numbers else windows


def _weights(folder: Path, config: TextEncoderConfig, report: Report) -> dict[str, Tensor]:
    """The weights in a folder under the names in TextEncoder; without those that are new."""
    found, tensors = _read_config(folder), _read_tensors(folder)
    try:
        if found["model_type"] == OWN_FAMILY:
            weights = _own_weights(tensors, config)
        else:
            weights = _renamed(tensors, config)
        positions = weights["positions.weight"][_first_position(found) :]
    except KeyError as error:
        raise InputError(f"{folder}: the weights lack {error}") from None
    except (IndexError, TypeError) as error:  # of a table without rows, or of no table
        raise InputError(f"{folder}: the weights are of other shapes: {error}") from None
    if not len(positions):
        raise InputError(f"{folder}: the weights hold no positions of tokens")
    if config.max_tokens > len(positions):
        report(
            f"{folder}: its {len(positions):,} positions are repeated up to {config.max_tokens:,}"
        )
    rows = torch.arange(config.max_tokens) % len(positions)
    return weights | {"positions.weight": positions[rows]}


def _first_position(found: dict[str, Any]) -> int:
    """The row of the first token: the RoBERTa family counts from behind its padding token."""
    padding = found.get("pad_token_id", 1)
    foreign = found["model_type"] not in ("bert", OWN_FAMILY)
    return padding + 1 if foreign and isinstance(padding, int) else 0


def _own_weights(tensors: dict[str, Tensor], config: TextEncoderConfig) -> dict[str, Tensor]:
    """What `TextEncoder.save` wrote, for as many items as asked for. KeyError for what lacks."""
    with torch.device("meta"):
        names = list(TextEncoder(config).state_dict())
    weights = {name: tensors[name] for name in names}
    # Items farther back than it has seen stand where the farthest stood.
    farthest = len(weights["items.weight"]) - 1
    places = torch.arange(config.max_items + 1).clamp_max(farthest)
    return weights | {"items.weight": weights["items.weight"][places]}


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All float32 tensors of model*.safetensors, which large encoders have several of."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise InputError(
            f"{folder} has no model.safetensors; weights in other formats are not read (they may"
            " run code): save the encoder with save_pretrained of transformers"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is damaged: {error}") from None
    return {name: x.float() for name, x in tensors.items()}


def _renamed(tensors: dict[str, Tensor], config: TextEncoderConfig) -> dict[str, Tensor]:
    """The weights of one of FAMILIES under the names in TextEncoder. KeyError for what lacks."""
    # Encoders with a head in front, and old ones of TensorFlow, name the same weights otherwise.
    tensors = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        ): x
        for name, x in tensors.items()
    }
    word = "embeddings.word_embeddings.weight"
    prefix = next((name for name in tensors if name.endswith(word)), word).removesuffix(word)
    names = {"norm": "embeddings.LayerNorm"}
    projections = ["query", "key", "value"]
    if config.global_projections:
        projections += [f"{name}_global" for name in projections]
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"encoder.layer.{i}"
        names |= {
            f"{ours}.attention.{name}": f"{theirs}.attention.self.{name}" for name in projections
        }
        names |= {
            f"{ours}.attention.project_out": f"{theirs}.attention.output.dense",
            f"{ours}.attention_norm": f"{theirs}.attention.output.LayerNorm",
            f"{ours}.feedforward.net.0": f"{theirs}.intermediate.dense",
            f"{ours}.feedforward.net.3": f"{theirs}.output.dense",
            f"{ours}.feedforward_norm": f"{theirs}.output.LayerNorm",
        }
    weights = {
        f"{ours}.{part}": tensors[f"{prefix}{theirs}.{part}"]
        for ours, theirs in names.items()
        for part in ("weight", "bias")
    }
    embeddings = f"{prefix}embeddings"
    weights["tokens.weight"] = tensors[prefix + word]
    # Their type of a plain text was part of every sum; our types start near nothing.
    weights["positions.weight"] = (
        tensors[f"{embeddings}.position_embeddings.weight"]
        + tensors[f"{embeddings}.token_type_embeddings.weight"][0]
    )
    return weights
