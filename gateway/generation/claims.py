"""The claim of a request that is to be bought once: its key, and a hash of all that it says."""

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
_KEY_FORM = re.compile(r"[\x21-\x7e]{1,255}")


async def claim_for(
    key: str | None,
    route: str,
    fields: Mapping[str, object],
    pictures: Sequence[Upload | InputImageReference] = (),
    *,
    wants_bytes: bool = False,
) -> IdempotencyClaim | None:
    """The claim of a request as it came: `fields` in any order, pictures by their bytes or link.

    `wants_bytes`: whoever asks needs the images themselves, even where links are answered.

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
    request_hash = await asyncio.to_thread(_hash, route, fields, pictures)
    return IdempotencyClaim(key, request_hash, wants_bytes=wants_bytes)


def _hash(
    route: str, fields: Mapping[str, object], pictures: Sequence[Upload | InputImageReference]
) -> bytes:
    named = []
    for picture in pictures:
        if isinstance(picture, InputImageReference):
            named.append([picture.field, picture.url])
            continue
        digest = hashlib.sha256()
        picture.file.seek(0)
        while chunk := picture.file.read(CHUNK_BYTES):
            digest.update(chunk)
        picture.file.seek(0)
        named.append([picture.field, digest.hexdigest()])
    try:
        canonical = orjson.dumps([route, fields, named], option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # half of a surrogate pair, or an integer beyond 64 bits
        canonical = repr([route, sorted(fields.items()), named]).encode()
    return hashlib.sha256(canonical).digest()
