"""The state of a model between events, as bytes that a service can keep anywhere.

Bytes carry the fingerprint of the model they came from: another model, or the same one trained
further, refuses them. They are safetensors, so loading them runs nothing.
"""

import hashlib
import json
from collections.abc import Iterator

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from recsys.errors import InputError
from recsys.layers.mixer import State
from recsys.models.base import Stepwise


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the class, names, dtypes, shapes and values of all that a model has learned."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_to_bytes(state: State, model_fingerprint: str) -> bytes:
    """The state with the fingerprint of its model, `fingerprint(model)`."""
    tensors = {str(i): tensor.detach().cpu() for i, tensor in enumerate(_leaves(state))}
    # Leaves may share memory or be views; the format wants each to stand alone.
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    return save(tensors, {"fingerprint": model_fingerprint})


def state_from_bytes(data: bytes, model: Stepwise, model_fingerprint: str) -> State:
    """The state that `state_to_bytes` was given, on the model's device.

    InputError where the bytes are damaged or another model's.
    """
    return tensors_from_bytes(data, model.init_state(1), model_fingerprint)


def tensors_from_bytes(data: bytes, like: State, model_fingerprint: str) -> State:
    """What `state_to_bytes` was given, shaped and placed as `like` but for its batch.

    InputError where the bytes are damaged or another model's.
    """
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise InputError(f"these bytes are not the state of a model: {error}") from None
    theirs = str(header.get("__metadata__", {}).get("fingerprint", "none"))
    if theirs != model_fingerprint:
        raise InputError(
            f"the state belongs to another model (fingerprint {theirs[:12]}, this model has"
            f" {model_fingerprint[:12]}): encode the history anew"
        )
    expected = list(_leaves(like))
    found = [tensors.get(str(i)) for i in range(len(expected))]
    if len(tensors) != len(expected) or not all(map(_fits, found, expected)):
        raise InputError("these bytes are damaged: they do not hold a state of this model")
    if len({len(tensor) for tensor in found if tensor is not None}) > 1:
        raise InputError("these bytes are damaged: they hold parts of different batch sizes")
    placed = (x.to(other.device) for x, other in zip(found, expected, strict=True) if x is not None)
    return _rebuilt(like, placed)


def _leaves(state: State) -> Iterator[Tensor]:
    for part in state:
        if isinstance(part, Tensor):
            yield part
        else:
            yield from _leaves(part)


def _fits(found: Tensor | None, expected: Tensor) -> bool:
    """True for a tensor of the same dtype and, but for the batch, the same shape."""
    return (
        found is not None
        and found.dtype == expected.dtype
        and found.dim() == expected.dim()
        and found.shape[1:] == expected.shape[1:]
    )


def _rebuilt(like: State, leaves: Iterator[Tensor]) -> State:
    """A state built as `like`, with other tensors."""
    parts = [next(leaves) if isinstance(part, Tensor) else _rebuilt(part, leaves) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
