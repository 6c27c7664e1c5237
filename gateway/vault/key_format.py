"""The form of our API keys: prefix, 30 base62 characters, a CRC32 in 6 more.

The checksum lets a mistyped or invented key be refused without asking the database, and lets
secret scanners recognise a real one.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from typing import Literal

from gateway.domain import SecretText

Kind = Literal["live", "test", "admin"]

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_CHARACTERS = 30
CHECKSUM_CHARACTERS = 6
_FORM = re.compile(r"igw_(live|test|admin)_[0-9A-Za-z]{36}")


@dataclass(frozen=True, slots=True)
class Pepper:
    """What digests of keys are made with. Its versions follow one another; see `GatewaySecrets`."""

    version: int
    value: bytes = field(repr=False)


def new_key(kind: Kind) -> SecretText:
    """A new random key: about 178 bits."""
    body = "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARACTERS))
    text = f"igw_{kind}_{body}"
    return SecretText(text + checksum(text))


def checksum(text: str) -> str:
    """CRC32 of the key so far, as six base62 characters."""
    value = zlib.crc32(text.encode())
    characters = []
    for _ in range(CHECKSUM_CHARACTERS):
        value, digit = divmod(value, len(ALPHABET))
        characters.append(ALPHABET[digit])
    return "".join(reversed(characters))


def key_kind(text: str) -> Kind | None:
    """Which kind of key this is, or None where its form or checksum is wrong."""
    match = _FORM.fullmatch(text)
    if match is None or checksum(text[:-CHECKSUM_CHARACTERS]) != text[-CHECKSUM_CHARACTERS:]:
        return None
    kind = match.group(1)
    return kind if kind in {"live", "test", "admin"} else None  # type: ignore[return-value]


def digest(pepper: Pepper, text: str) -> bytes:
    """What the database keeps of a key: HMAC-SHA256 under the pepper."""
    return hmac.digest(pepper.value, text.encode(), hashlib.sha256)
