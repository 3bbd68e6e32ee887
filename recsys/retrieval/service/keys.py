"""API keys and what they allow."""

import hashlib
import hmac
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recsys.errors import InputError

Role = Literal["read", "admin"]
ROLES: tuple[Role, ...] = ("read", "admin")
SHORTEST = 16
"""Characters of a key; shorter ones can be guessed."""


@dataclass(frozen=True)
class Keys:
    """Who may do what. Keys are held as digests, so that no dump of memory shows them."""

    digests: tuple[tuple[Role, bytes], ...]
    """A role and the SHA-256 of its key."""

    def role(self, given: str | None) -> Role | None:
        """What a key allows; admin allows reading too. None for an unknown key.

        Takes as long for a wrong key as for a right one, whichever its place.
        """
        found: Role | None = None
        digest = _digest(given or "")
        for role, known in self.digests:
            if hmac.compare_digest(known, digest):
                found = role
        return found


def read_keys(path: Path) -> Keys:
    """From a TOML file with the lists `read` and `admin`. InputError, which shows no key."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file of keys {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {type(error).__name__}") from None
    except tomllib.TOMLDecodeError:
        raise InputError(f'{path} is not TOML; it holds read = ["…"] and admin = ["…"]') from None
    if unknown := tree.keys() - set(ROLES):
        raise InputError(f"{path}: unknown {sorted(unknown)[0]!r}; keys are read or admin")
    digests = []
    for role in ROLES:
        keys = tree.get(role, [])
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise InputError(f'{path}: {role} is a list of keys, as in {role} = ["…"]')
        for place, key in enumerate(keys, start=1):
            if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(
                    f"{path}: key {place} of {role} must be {SHORTEST} or more ASCII signs without"
                    " spaces"
                )
            digests.append((role, _digest(key)))
    if not digests:
        raise InputError(f"{path} holds no key")
    if len({digest for _, digest in digests}) != len(digests):
        raise InputError(f"{path} names a key twice")
    return Keys(tuple(digests))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
