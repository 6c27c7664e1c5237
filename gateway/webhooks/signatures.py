"""Signatures of Standard Webhooks (github.com/standard-webhooks/standard-webhooks)."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from gateway.domain import SecretText

PREFIX = "whsec_"
SECRET_BYTES = 32


def new_secret() -> SecretText:
    """Generate a secret in the receiver's form: `whsec_` and the key in base64."""
    return SecretText(PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode())


def sign(signing: Sequence[SecretText], *, message_id: str, timestamp: int, body: bytes) -> str:
    """Build the header `webhook-signature`, with one signature per valid secret.

    `timestamp`: the time of this attempt, in seconds since 1970.
    """
    content = f"{message_id}.{timestamp}.".encode() + body
    digests = (hmac.digest(_key(secret), content, hashlib.sha256) for secret in signing)
    return " ".join("v1," + base64.b64encode(digest).decode() for digest in digests)


def _key(secret: SecretText) -> bytes:
    return base64.b64decode(secret.reveal().removeprefix(PREFIX))
