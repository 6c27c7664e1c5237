"""What is kept of a prompt where its text is not: a keyed hash, equal for equal prompts."""

import hashlib
import hmac
from uuid import UUID

_PURPOSE = b"image-gateway/prompt-hash/v1"


def prompt_hash(prompt_key: bytes, tenant_id: UUID, prompt: str) -> bytes:
    """HMAC-SHA256 of a prompt under a key of its tenant, derived from the gateway's link key.

    Equal prompts of one tenant have equal hashes, and can so be found. Without the link key a hash
    cannot be tried against guesses, nor compared with another tenant's.
    """
    key = hmac.digest(prompt_key, _PURPOSE + tenant_id.bytes, hashlib.sha256)
    return hmac.digest(key, prompt.encode(errors="surrogatepass"), hashlib.sha256)
