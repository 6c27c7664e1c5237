"""Message authentication codes under keys that a process uses again and again."""

import hashlib
import hmac
from functools import lru_cache

MAX_KEYS = 256


def mac(key: bytes, message: bytes) -> bytes:
    """Compute the HMAC-SHA256 of a message.

    The prepared key is kept: preparing it takes as long as the rest.
    """
    code = _prepared(key).copy()
    code.update(message)
    return code.digest()


@lru_cache(maxsize=MAX_KEYS)
def _prepared(key: bytes) -> hmac.HMAC:
    return hmac.new(key, digestmod=hashlib.sha256)
