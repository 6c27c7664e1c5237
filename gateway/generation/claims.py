"""The idempotency claim of a request: its key, and a hash of everything in the request."""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence

import orjson

from gateway.domain import IdempotencyClaim
from gateway.errors import InvalidRequest
from gateway.generation.image_references import InputImageReference
from gateway.generation.input_images import Upload

CHUNK_BYTES = 1_048_576
INLINE_CHARACTERS = 65_536
_KEY_FORM = re.compile(r"[\x21-\x7e]{1,255}")


async def claim_for(
    key: str | None,
    route: str,
    fields: Mapping[str, object],
    images: Sequence[Upload | InputImageReference] = (),
    *,
    wants_bytes: bool = False,
) -> IdempotencyClaim | None:
    """The claim of a request as it came: `fields` in any order, images by their bytes or link.

    `wants_bytes`: the front needs the images themselves, even where the answer has links.

    Raises:
        InvalidRequest: the key has a form that is not taken.
    """
    if key is None:
        return None
    if not _KEY_FORM.fullmatch(key):
        raise InvalidRequest(
            "An idempotency key has 1 to 255 visible ASCII characters, such as a UUID.",
            code="invalid_idempotency_key",
            param="idempotency_key",
        )
    # A thread costs more than the hash of a prompt and its parameters.
    is_short = not images and _is_short(fields)
    request_hash = (
        _hash(route, fields, images)
        if is_short
        else await asyncio.to_thread(_hash, route, fields, images)
    )
    return IdempotencyClaim(key, request_hash, wants_bytes=wants_bytes)


def _is_short(fields: Mapping[str, object]) -> bool:
    """True if there are only texts, numbers and flags, with few characters altogether."""
    texts = [value for value in fields.values() if isinstance(value, str)]
    others = (value for value in fields.values() if not isinstance(value, str))
    return (
        all(value is None or isinstance(value, int | float) for value in others)
        and sum(map(len, texts)) <= INLINE_CHARACTERS
    )


def _hash(
    route: str, fields: Mapping[str, object], images: Sequence[Upload | InputImageReference]
) -> bytes:
    named = []
    for image in images:
        if isinstance(image, InputImageReference):
            named.append([image.field, image.url])
            continue
        digest = hashlib.sha256()
        image.file.seek(0)
        while chunk := image.file.read(CHUNK_BYTES):
            digest.update(chunk)
        named.append([image.field, digest.hexdigest()])
    try:
        canonical = orjson.dumps([route, fields, named], option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # half of a surrogate pair, or an integer beyond 64 bits
        canonical = repr([route, sorted(fields.items()), named]).encode()
    return hashlib.sha256(canonical).digest()
