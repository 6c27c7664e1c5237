"""Never bought twice: a key claims a purchase, and whoever sends it again gets what came of it.

The claim stands in the reservation itself (docs/decisions/0011), so there is none without its hold.
It is released where the call was surely not charged; an unknown outcome is never bought again.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson
import pybase64
from sqlalchemy import select

from gateway.billing.reservations import StoredFile
from gateway.db.engine import Database
from gateway.db.tables import ImageRow, ReservationRow
from gateway.domain import (
    Caller,
    CostStatus,
    Generation,
    IdempotencyClaim,
    ImageRequest,
    ProviderAnswer,
    StoredImage,
    Usage,
)
from gateway.errors import (
    GatewayError,
    IdempotencyConflict,
    IdempotencyInFlight,
    ImageUnfinished,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    StorageFailed,
)
from gateway.images.history import COST_STATUS
from gateway.images.inputs import Upload
from gateway.images.links import LinkSigner
from gateway.images.references import PictureReference
from gateway.images.retention import link_expiry
from gateway.images.storage import ImageStore
from gateway.money import NanoUsd

CHUNK_BYTES = 1_048_576
RETRY_AFTER_SECONDS = 2
_KEY_FORM = re.compile(r"[\x21-\x7e]{1,255}")
_RECORDED_ERRORS: dict[str, type[GatewayError]] = {
    error.code: error for error in (ImageUnfinished, StorageFailed)
}


async def claim_for(
    key: str | None,
    route: str,
    fields: Mapping[str, object],
    pictures: Sequence[Upload | PictureReference] = (),
) -> IdempotencyClaim | None:
    """The claim of a request as it came: `fields` in any order, pictures by their bytes or link.

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
    return IdempotencyClaim(key, await asyncio.to_thread(_hash, route, fields, pictures))


def _hash(
    route: str, fields: Mapping[str, object], pictures: Sequence[Upload | PictureReference]
) -> bytes:
    named = []
    for picture in pictures:
        if isinstance(picture, PictureReference):
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


def record(
    answer: ProviderAnswer, files: Sequence[StoredFile], *, stores_prompts: bool
) -> dict[str, object]:
    """What a repeated request is to be answered with, beside the images."""
    usage = answer.usage
    return {
        "created": answer.created or int(time.time()),
        "size": answer.size,
        "quality": answer.quality,
        "background": answer.background,
        "output_format": answer.output_format,
        "revised_prompts": list(answer.revised_prompts) if stores_prompts else [],
        "usage": None
        if usage is None
        else [
            usage.text_input_tokens,
            usage.image_input_tokens,
            usage.text_output_tokens,
            usage.image_output_tokens,
        ],
        "images": [[file.id, file.link_expires_at] for file in files],
    }


def record_error(error: GatewayError) -> dict[str, object]:
    """The same for a call that was paid for and came to nothing that can be shown."""
    return {"error": {"code": error.code, "message": error.message}}


class Replays:
    """Finds what came of a claim that was made before."""

    def __init__(
        self, database: Database, store: ImageStore, links: LinkSigner, *, image_ttl_seconds: int
    ) -> None:
        self._database = database
        self._store = store
        self._links = links
        self._image_ttl_seconds = image_ttl_seconds

    async def find(
        self, caller: Caller, request: ImageRequest, served: ImageRequest
    ) -> Generation | None:
        """The generation that the request's claim stands for; None where nobody has made it.

        Raises:
            IdempotencyConflict: the key was used for another request.
            IdempotencyInFlight: its call is still running.
            OutcomeUnknown: nobody knows yet, or ever, what came of it.
            NotFound: its images are not stored any more.
            GatewayError: the error that its call ended with.
        """
        claim = request.idempotency
        if claim is None:
            return None
        async with self._database.tenant(caller.tenant_id) as session:
            row = await session.scalar(
                select(ReservationRow).where(
                    ReservationRow.tenant_id == caller.tenant_id,
                    ReservationRow.user_id.is_not_distinct_from(caller.user_id),
                    ReservationRow.livemode.is_(caller.livemode),
                    ReservationRow.operation == request.operation.value,
                    ReservationRow.idempotency_key == claim.key,
                )
            )
            if row is None:
                return None
            images = await session.execute(
                select(ImageRow).where(
                    ImageRow.tenant_id == caller.tenant_id, ImageRow.reservation_id == row.id
                )
            )
            stored = {image.id: image for image in images.scalars()}
        _refuse_other(row, claim)
        answer = _answer_of(row)
        if not answer["images"]:
            raise _not_stored(row.id)
        made = [
            await self._image(row.id, stored.get(image_id), link_expires_at)
            for image_id, link_expires_at in answer["images"]
        ]
        return _generation(row, answer, made, request, served)

    async def _image(
        self, generation_id: UUID, row: ImageRow | None, link_expires_at: int
    ) -> StoredImage:
        now = int(time.time())
        expires_at = 0 if row is None else int(row.expires_at.timestamp())
        if row is None or row.deleted_at is not None or expires_at <= now:
            raise _not_stored(generation_id)
        content = await self._store.get(row.path)
        until = link_expires_at
        if until <= now:
            until = link_expiry(
                now, link_seconds=self._image_ttl_seconds, image_expires_at=expires_at
            )
        return StoredImage(
            id=row.id,
            base64=pybase64.b64encode(content).decode(),
            url=self._links.sign(row.id, row.path, until),
            media_type=row.media_type,
        )


def _not_stored(generation_id: UUID) -> NotFound:
    return NotFound(
        f"The images of generation {generation_id} are not stored, or no longer. They are not "
        "bought again under this idempotency key; another key buys new ones.",
        code="image_not_found",
    )


def _refuse_other(row: ReservationRow, claim: IdempotencyClaim) -> None:
    if row.request_hash != claim.request_hash:
        raise IdempotencyConflict(
            "This idempotency key was used for another request. Send the same request, or "
            "another key.",
            param="idempotency_key",
        )


def _answer_of(row: ReservationRow) -> Mapping[str, Any]:
    if row.answer is None and row.state == "held":
        raise IdempotencyInFlight(
            "The request with this idempotency key is still being worked on. Ask again later.",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )
    if row.answer is None:
        raise OutcomeUnknown(
            f"What came of generation {row.id}, the first request with this idempotency key, is "
            "not known, so it is not bought again. Its cost stands in the usage report."
        )
    answer: Mapping[str, Any] = row.answer
    error = answer.get("error")
    if error is not None:
        kind = _RECORDED_ERRORS.get(error["code"], ImageUnfinished)
        raise kind(error["message"])
    return answer


def _generation(
    row: ReservationRow,
    answer: Mapping[str, Any],
    images: Sequence[StoredImage],
    request: ImageRequest,
    served: ImageRequest,
) -> Generation:
    return Generation(
        id=row.id,
        request=request,
        served=served,
        answer=ProviderAnswer(
            images=tuple(image.base64 for image in images),
            created=answer["created"],
            usage=None if answer["usage"] is None else Usage(*answer["usage"]),
            size=answer["size"],
            quality=answer["quality"],
            background=answer["background"],
            output_format=answer["output_format"],
            revised_prompts=tuple(answer["revised_prompts"]),
        ),
        images=tuple(images),
        cost_nano=NanoUsd(row.final_nano or 0),
        cost_status=COST_STATUS.get(row.state, CostStatus.PENDING),
        replayed=True,
    )
