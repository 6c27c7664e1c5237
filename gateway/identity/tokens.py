"""Opaque tokens of sessions, links and invitations; only their digests are stored."""

import hashlib
import re
import secrets

from gateway.domain import SecretText

TOKEN_BYTES = 32
FORM = re.compile(r"[A-Za-z0-9_-]{43}")


def new_token() -> SecretText:
    """Generate a token of 256 random bits."""
    return SecretText(secrets.token_urlsafe(TOKEN_BYTES))


def digest_of(text: str) -> bytes:
    """Compute the stored digest of a token.

    A plain SHA-256: a token of 256 random bits cannot be guessed from it.
    """
    return hashlib.sha256(text.encode()).digest()


def is_token(text: str) -> bool:
    """Return True for the form of a token; other texts need no look-up."""
    return FORM.fullmatch(text) is not None
