"""Frozen dataclasses <-> JSON and TOML, and typed `--set a.b=1`. An unknown key is an error."""

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from recsys.errors import InputError, nearest

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Build `kind` from plain values. `where` names the section in errors, as in `model`."""
    fields = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    checked = {}
    for key, value in values.items():
        if key not in names:
            known = ", ".join(f"{where}.{name}" for name in names) or "none"
            raise InputError(
                f"unknown setting {where}.{key}{nearest(key, names)} (settings: {known})"
            )
        checked[key] = _coerce(value, fields[key], f"{where}.{key}")
    return kind(**checked)


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`["model.dim=64", "loss.name=bce"]` as nested dictionaries of strings."""
    tree: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and section and name):
            raise InputError(f"--set takes SECTION.NAME=VALUE, as in model.dim=64; got {pair!r}")
        tree.setdefault(section, {})[name] = value.strip()
    return tree


def read_settings(path: Path) -> dict[str, Any]:
    """A .toml or .json file of settings as nested dictionaries."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"settings file {path} does not exist") from None
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"settings file {path} cannot be read: {error}") from None
    try:
        if path.suffix == ".toml":
            import tomllib

            tree = tomllib.loads(text)
        else:
            tree = json.loads(text)
    except ValueError as error:  # both decoders raise a ValueError that names the place
        raise InputError(f"settings file {path} cannot be read: {error}") from None
    if not isinstance(tree, dict) or not all(isinstance(part, dict) for part in tree.values()):
        raise InputError(
            f"settings file {path} must hold sections of settings, as in [model] dim = 64"
        )
    return tree


def merge(*trees: dict[str, Any]) -> dict[str, Any]:
    """Sections of settings laid over each other; later ones win."""
    merged: dict[str, Any] = {}
    for tree in trees:
        for section, values in tree.items():
            merged[section] = {**merged.get(section, {}), **values}
    return merged


def describe_fields(kind: type, section: str) -> list[dict[str, Any]]:
    """Name, type and default of each setting of a config class, for `--set section.name=value`."""
    hints = typing.get_type_hints(kind)
    return [
        {
            "name": f"{section}.{field.name}",
            "type": _type_name(hints[field.name]),
            "default": None if field.default is dataclasses.MISSING else field.default,
        }
        for field in dataclasses.fields(kind)
    ]


def _coerce(value: Any, kind: Any, key: str) -> Any:
    """`value` (plain JSON, or a string from the command line) as `kind`, or an InputError."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        (kind,) = [part for part in typing.get_args(kind) if part is not type(None)]
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value in choices:
            return value
        raise InputError(
            f"{key} must be one of {', '.join(map(str, choices))}, got {value!r}"
            f"{nearest(str(value), map(str, choices))}"
        )
    if kind is bool:
        word = (
            {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
        )
        if isinstance(word, bool):
            return word
    elif kind is str and isinstance(value, str):
        return value
    elif kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if kind is float and math.isfinite(number):
            return number
        # From 2^53 on a float is one whole number for many.
        if kind is int and number.is_integer() and abs(number) < 2**53:
            return int(number)
    raise InputError(f"{key} must be {_type_name(kind)}, got {value!r}")


def _type_name(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(_type_name(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    return "none" if kind is type(None) else names.get(kind, str(kind))
