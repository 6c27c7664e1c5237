"""Idempotency: a request that is sent again with its key is answered from the first one.

The claim is committed with its reservation (docs/decisions/0011): none is without reserved cost.
It is released where the call was surely not charged; an unknown outcome is never bought again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pybase64
from sqlalchemy import Select, and_, select

from gateway.billing.reservations import Reservations
from gateway.billing.settlement import StoredFile
from gateway.catalog.loading import Catalog
from gateway.db.engine import Database, answered_within
from gateway.db.money_tables import IdempotencyClaimRow, ReservationRow
from gateway.db.tables import ImageRow
from gateway.domain import (
    Caller,
    CostStatus,
    Generation,
    IdempotencyClaim,
    ImageRequest,
    NewClaim,
    Operation,
    RepeatedClaim,
    StoredImage,
)
from gateway.errors import (
    AccountRefused,
    ContentRefused,
    CredentialRejected,
    GatewayError,
    IdempotencyConflict,
    IdempotencyInFlight,
    ImageUnfinished,
    NotFound,
    OutcomeUnknown,
    StorageFailed,
    Unavailable,
)
from gateway.generation import continuity
from gateway.generation.results import STORE_TIMEOUT_SECONDS
from gateway.library.history import COST_STATUS
from gateway.library.links import LinkSigner
from gateway.library.retention import link_expiry
from gateway.library.storage import ImageStore
from gateway.money import NanoUsd, format_usd
from gateway.provider_answers import ProviderAnswer, Usage
from gateway.request_record import current

RETRY_AFTER_SECONDS = 2
_RECORDED_ERRORS: dict[str, type[GatewayError]] = {
    error.code: error
    for error in (
        *(ImageUnfinished, StorageFailed),
        *(ContentRefused, CredentialRejected, AccountRefused),
    )
}


def repeated(request: ImageRequest) -> RepeatedClaim:
    """The claim of a request that came second, as the reservation found it."""
    claim = request.idempotency
    if claim is None:
        raise AssertionError
    return RepeatedClaim(claim.key, claim.request_hash, wants_bytes=claim.wants_bytes)


def record_for(
    caller: Caller,
    request: ImageRequest,
    answer: ProviderAnswer,
    files: Sequence[StoredFile],
    failed: GatewayError | None,
) -> Mapping[str, object] | None:
    """The record for repetitions of a request; None where it has no key."""
    if request.idempotency is None:
        return None
    if failed is not None:
        return record_error(failed)
    return record(answer, files, stores_prompts=caller.tenant_settings.stores_prompts)


def record(
    answer: ProviderAnswer, files: Sequence[StoredFile], *, stores_prompts: bool
) -> dict[str, object]:
    """The part of an answer that a repetition needs beside the images."""
    usage = answer.usage
    return {
        "created": answer.created or int(time.time()),
        "size": answer.size,
        "quality": answer.quality,
        "background": answer.background,
        "output_format": answer.output_format,
        "revised_prompts": list(answer.revised_prompts) if stores_prompts else [],
        **({"seeds": list(answer.seeds)} if answer.seeds else {}),
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
    """The record of a call that was charged and ended with an error."""
    return {"error": {"code": error.code, "message": error.message}}


class Replays:
    """Looks idempotency keys up, and answers repeated requests from the first one's result."""

    def __init__(
        self,
        database: Database,
        reservations: Reservations,
        store: ImageStore,
        links: LinkSigner,
        catalog: Catalog,
        *,
        image_ttl_seconds: int,
        lookup_seconds: float,
    ) -> None:
        self._database = database
        self._reservations = reservations
        self._store = store
        self._links = links
        self._catalog = catalog
        self._image_ttl_seconds = image_ttl_seconds
        self._lookup_seconds = lookup_seconds

    async def look_up(self, caller: Caller, request: ImageRequest) -> IdempotencyClaim | None:
        """Look the request's key up, once: a claim that was looked up is returned as it is.

        Returns a `NewClaim` or a `RepeatedClaim`; None where the request has no key.

        Raises:
            DatabaseUnavailable: no answer in time.
        """
        claim = request.idempotency
        if claim is None or isinstance(claim, NewClaim | RepeatedClaim):
            return claim
        if await self._reservations.is_claimed(caller, request.operation, claim):
            return repeated(request)
        return NewClaim(claim.key, claim.request_hash, wants_bytes=claim.wants_bytes)

    async def replay(
        self,
        caller: Caller,
        request: ImageRequest,
        claim: RepeatedClaim,
        *,
        found: Callable[[], None],
    ) -> Generation:
        """Answer a repeated request from the first one's result.

        `found` is called once its reservation is read: the rest is waiting for the store.

        Raises:
            IdempotencyConflict: the key was used for another request.
            IdempotencyInFlight: its call is still running.
            OutcomeUnknown: its outcome is not known yet, or never will be.
            NotFound: its images are not stored any more.
            Unavailable: the store does not answer, or the first request has just released the key.
            GatewayError: the error that its call ended with.
        """
        async with (
            answered_within(self._lookup_seconds),
            self._database.tenant(caller.tenant_id) as session,
        ):
            found_claim = (
                await session.execute(_claimed(caller, request.operation, claim))
            ).one_or_none()
            if found_claim is None:
                raise _released()
            row, kept = found_claim
            images = await session.scalars(
                select(ImageRow).where(
                    ImageRow.tenant_id == caller.tenant_id, ImageRow.reservation_id == row.id
                )
            )
            stored = {image.id: image for image in images}
        found()
        try:
            return await self._generation(row, kept, stored, request, claim)
        except GatewayError as error:
            error.replayed = True
            raise

    async def _generation(
        self,
        row: ReservationRow,
        kept: IdempotencyClaimRow,
        stored: Mapping[str, ImageRow],
        request: ImageRequest,
        claim: IdempotencyClaim,
    ) -> Generation:
        _refuse_other(kept, claim)
        _note(row)
        answer = _answer_of(row, kept)
        if not answer["images"]:
            raise _not_stored(row.id)
        with_bytes = claim.wants_bytes or request.response_format == "b64_json"
        images = [
            await self._image(row, stored.get(image_id), link_expires_at, with_bytes=with_bytes)
            for image_id, link_expires_at in answer["images"]
        ]
        return _rebuilt(row, answer, images, request, self._served(row, request))

    def _served(self, row: ReservationRow, request: ImageRequest) -> ImageRequest:
        """The request that was bought, of the model that served it at that time."""
        model = self._catalog.models.get(row.served_model, request.model)
        if request.operation is Operation.GENERATION:
            return continuity.serve(request, model)
        return replace(request, model=model)

    async def _image(
        self,
        generation: ReservationRow,
        row: ImageRow | None,
        link_expires_at: int,
        *,
        with_bytes: bool,
    ) -> StoredImage:
        now = int(time.time())
        expires_at = 0 if row is None else int(row.expires_at.timestamp())
        if row is None or row.deleted_at is not None or expires_at <= now:
            raise _not_stored(generation.id)
        content = await self._content(generation, row, with_bytes=with_bytes)
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

    async def _content(
        self, generation: ReservationRow, row: ImageRow, *, with_bytes: bool
    ) -> bytes:
        """The image's bytes; empty where the client asked for a link alone."""
        try:
            if with_bytes:
                return await self._store.get(row.path)
            await self._store.find(row.path)
        except StorageFailed:
            raise Unavailable(
                "The images of this request are made and paid for, but the store does not answer "
                "right now. Nothing is bought again; send the request again.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            ) from None
        except NotFound:
            # Cost and file are written at the same time: the file may still be on its way.
            age = datetime.now(UTC) - row.created_at
            if age < timedelta(seconds=STORE_TIMEOUT_SECONDS):
                raise in_flight() from None
            raise _not_stored(generation.id) from None
        return b""


def _released() -> Unavailable:
    """The answer where the first request failed, without cost, after the key was looked up."""
    return Unavailable(
        "A request with the same idempotency key has just failed without being charged. Try again.",
        retry_after_seconds=1,
    )


def _note(row: ReservationRow) -> None:
    """Note in the request's record which generation answers it, and its cost."""
    record = current()
    record.generation_id, record.replayed = row.id, True
    record.buy(row.served_model, row.provider, row.credential)
    cost = None if row.final_nano is None else NanoUsd(row.final_nano)
    record.cost(cost, COST_STATUS.get(row.state, CostStatus.PENDING))


def _claimed(
    caller: Caller, operation: Operation, claim: IdempotencyClaim
) -> Select[ReservationRow, IdempotencyClaimRow]:
    kept = IdempotencyClaimRow
    return (
        select(ReservationRow, kept)
        .join(
            kept,
            and_(
                kept.tenant_id == ReservationRow.tenant_id,
                kept.reservation_id == ReservationRow.id,
            ),
        )
        .where(
            kept.tenant_id == caller.tenant_id,
            kept.user_id.is_not_distinct_from(caller.user_id),
            kept.livemode.is_(caller.livemode),
            kept.operation == operation.value,
            kept.key == claim.key,
        )
    )


def in_flight() -> IdempotencyInFlight:
    """Build the refusal of a repeated request whose first one is still running."""
    return IdempotencyInFlight(
        "The request with this idempotency key is still being worked on. Ask again later.",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


def _not_stored(generation_id: UUID) -> NotFound:
    return NotFound(
        f"The images of generation {generation_id} are not stored, or no longer. They are not "
        "bought again under this idempotency key; another key buys new ones.",
        code="image_not_found",
    )


def _refuse_other(kept: IdempotencyClaimRow, claim: IdempotencyClaim) -> None:
    if kept.request_hash != claim.request_hash:
        raise used_otherwise()


def used_otherwise() -> IdempotencyConflict:
    """Build the refusal of a key that another request was sent with."""
    return IdempotencyConflict(
        "This idempotency key was used for another request. Send the same request, or another key.",
        param="idempotency_key",
    )


def _answer_of(row: ReservationRow, kept: IdempotencyClaimRow) -> Mapping[str, Any]:
    if kept.answer is None and row.state == "held":
        raise in_flight()
    if kept.answer is None:
        raise _unanswered(row)
    answer: Mapping[str, Any] = kept.answer
    error = answer.get("error")
    if error is not None:
        kind = _RECORDED_ERRORS.get(error["code"], ImageUnfinished)
        raise kind(error["message"])
    return answer


def _unanswered(row: ReservationRow) -> OutcomeUnknown:
    """The refusal to buy a request again whose first call left no answer."""
    name = f"generation {row.id}, the first request with this idempotency key,"
    if row.state == "posted":
        return OutcomeUnknown(
            f"The answer to {name} was lost. It was charged {format_usd(row.final_nano or 0)} USD, "
            "so it is not bought again; another key buys new images."
        )
    return OutcomeUnknown(
        f"What came of {name} is not known, so it is not bought again. Its cost stands in the "
        "usage report."
    )


def _rebuilt(
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
            seeds=tuple(answer.get("seeds", ())),
        ),
        images=tuple(images),
        cost_nano=NanoUsd(row.final_nano or 0),
        cost_status=COST_STATUS.get(row.state, CostStatus.PENDING),
        provider=row.provider,
        replayed=True,
    )
