"""Keyed hashes of prompts, stored in place of the text by tenants that do not store prompts."""

from uuid import UUID

from gateway.macs import mac

_PURPOSE = b"image-gateway/prompt-hash/v1"


def prompt_hash(prompt_key: bytes, tenant_id: UUID, prompt: str) -> bytes:
    """Return the HMAC-SHA256 of a prompt under a per-tenant key derived from `prompt_key`.

    Equal prompts of one tenant have equal hashes, so they can be searched for. Without the key a
    hash cannot be tested against guesses or compared with another tenant's.
    """
    key = mac(prompt_key, _PURPOSE + tenant_id.bytes)
    return mac(key, prompt.encode(errors="surrogatepass"))
