"""Keyed hashes of prompts, stored in place of the text by tenants that do not store prompts."""

import hashlib
import hmac
from functools import lru_cache
from uuid import UUID

_PURPOSE = b"image-gateway/prompt-hash/v1"
MAX_TENANTS = 256


def prompt_hash(prompt_key: bytes, tenant_id: UUID, prompt: str) -> bytes:
    """Return the HMAC-SHA256 of a prompt under a per-tenant key derived from `prompt_key`.

    Equal prompts of one tenant have equal hashes, so they can be searched for. Without the key a
    hash cannot be tested against guesses or compared with another tenant's.
    """
    code = _prepared(prompt_key, tenant_id).copy()
    code.update(prompt.encode(errors="surrogatepass"))
    return code.digest()


@lru_cache(maxsize=MAX_TENANTS)  # preparing a key takes longer than hashing a prompt
def _prepared(prompt_key: bytes, tenant_id: UUID) -> hmac.HMAC:
    key = hmac.digest(prompt_key, _PURPOSE + tenant_id.bytes, hashlib.sha256)
    return hmac.new(key, digestmod=hashlib.sha256)
