"""The format of API keys: a prefix, 30 base62 characters, and a CRC32 in 6 more.

With the checksum, a mistyped or invented key is refused without a database query, and secret
scanners can recognise a real one.
"""

import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from typing import Literal

from gateway.domain import SecretText
from gateway.macs import mac

Kind = Literal["live", "test", "admin"]

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_CHARACTERS = 30
CHECKSUM_CHARACTERS = 6
_FORM = re.compile(r"igw_(live|test|admin)_[0-9A-Za-z]{36}")


@dataclass(frozen=True, slots=True)
class Pepper:
    """A version of the secret that keys the digests of API keys; see `GatewaySecrets`."""

    version: int
    value: bytes = field(repr=False)


def new_key(kind: Kind) -> SecretText:
    """Generate a random key of about 178 bits."""
    body = "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARACTERS))
    text = f"igw_{kind}_{body}"
    return SecretText(text + checksum(text))


def checksum(text: str) -> str:
    """Compute the CRC32 of the text as six base62 characters."""
    value = zlib.crc32(text.encode())
    characters = []
    for _ in range(CHECKSUM_CHARACTERS):
        value, digit = divmod(value, len(ALPHABET))
        characters.append(ALPHABET[digit])
    return "".join(reversed(characters))


def key_kind(text: str) -> Kind | None:
    """Return the kind of a key, or None if its format or checksum is wrong."""
    match = _FORM.fullmatch(text)
    if match is None or checksum(text[:-CHECKSUM_CHARACTERS]) != text[-CHECKSUM_CHARACTERS:]:
        return None
    kind = match.group(1)
    return kind if kind in {"live", "test", "admin"} else None  # type: ignore[return-value]


def digest(pepper: Pepper, text: str) -> bytes:
    """Compute the stored digest of a key: HMAC-SHA256 under the pepper."""
    return mac(pepper.value, text.encode())
