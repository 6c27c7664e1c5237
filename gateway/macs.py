"""Message authentication codes under the few keys that a process uses for every request."""

import hashlib
import hmac
from functools import lru_cache

MAX_KEYS = 16


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
