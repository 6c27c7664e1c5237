"""A caller's image history: list, find, count and delete images.

A user's key sees that user's images, any other key the whole tenant's; test keys see test images,
live keys live ones. Expired, deleted and other callers' images are reported as not found.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, and_, func, select, tuple_, update
from sqlalchemy.orm import aliased

from gateway import telemetry
from gateway.db.actors import Actor
from gateway.db.audit import Action, record
from gateway.db.engine import Database, TenantSession
from gateway.db.listed_calls import ListedCall, read_calls
from gateway.db.money_tables import LedgerRow, ReservationRow
from gateway.db.tables import ImageCleanupRow, ImageRow, TenantRow
from gateway.domain import Caller, CostStatus
from gateway.errors import InvalidRequest, NotFound, StorageFailed
from gateway.library.retention import delete_files, forget_spooled, mark_deleted
from gateway.library.storage import ImageStore, is_image_id
from gateway.provider_answers import Provenance

COST_STATUS = {"posted": CostStatus.ACTUAL, "posted_est": CostStatus.ESTIMATED}


@dataclass(frozen=True, slots=True)
class HostedImage:
    """One image of the history.

    `generation_images`, `cost_nano` and `calls` refer to its whole generation; `size` and `quality`
    are those that the provider named for it.
    """

    id: str
    path: str
    created_at: datetime
    expires_at: datetime
    requested_model: str
    served_model: str
    operation: str
    width: int | None
    height: int | None
    media_type: str
    size_bytes: int
    seed: int | None
    size: str | None
    quality: str | None
    prompt: str | None = field(repr=False)
    prompt_hash: bytes | None = field(repr=False)
    generation_id: UUID
    generation_images: int
    cost_nano: int | None
    cost_status: CostStatus
    provenance: Provenance
    calls: tuple[ListedCall, ...] | None


@dataclass(frozen=True, slots=True)
class ImageFilter:
    """A filter of images; None: no filter. `key_id`: the first key of a line.

    `generation_id`: the images of one generation.
    """

    user_id: UUID | None = None
    key_id: UUID | None = None
    operation: str | None = None
    before: datetime | None = None
    generation_id: UUID | None = None


EVERY_IMAGE = ImageFilter()


@dataclass(frozen=True, slots=True)
class ImagePage:
    """A page of images, newest first; `has_more` if older ones follow."""

    images: tuple[HostedImage, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class StorageStats:
    """Number and size of a caller's stored images; `max_bytes` is the cap of the whole tenant.

    `cleaned_at` and `cleaned_images`: time of the last clean-up of expired images, and their
    number.
    """

    images: int
    size_bytes: int
    oldest: datetime | None
    newest: datetime | None
    max_bytes: int | None
    cleaned_at: datetime | None
    cleaned_images: int


async def list_images(
    session: TenantSession,
    caller: Caller,
    *,
    limit: int,
    after: str | None = None,
    since: datetime | None = None,
    model: str | None = None,
    chosen: ImageFilter = EVERY_IMAGE,
) -> ImagePage:
    """List the caller's images, newest first, starting behind `after`; `model` as requested.

    Raises:
        InvalidRequest: `after` is not the id of an image that the caller has or had.
    """
    query = _query(caller).where(*_living(), *_chosen(chosen))
    if model is not None:
        query = query.where(ImageRow.requested_model == model)
    if since is not None:
        query = query.where(ImageRow.created_at >= since)
    if after is not None:
        if not is_image_id(after):
            raise _bad_cursor()
        # Deleted and expired images count as cursors too: paging must survive an expiry.
        cursor = (
            await session.execute(
                select(ImageRow.created_at, ImageRow.id).where(ImageRow.id == after, *_own(caller))
            )
        ).first()
        if cursor is None:
            raise _bad_cursor()
        query = query.where(tuple_(ImageRow.created_at, ImageRow.id) < tuple_(*cursor))
    query = query.order_by(ImageRow.created_at.desc(), ImageRow.id.desc()).limit(limit + 1)
    rows = (await session.execute(query)).all()
    return ImagePage(tuple(_image(row) for row in rows[:limit]), len(rows) > limit)


def parse_generation(text: str) -> UUID:
    """Parse the id of a generation.

    Raises:
        NotFound: it has not the form of one.
    """
    try:
        return UUID(text)
    except ValueError:
        raise NotFound("There is no such generation.", param="generation_id") from None


async def find_image(session: TenantSession, caller: Caller, image_id: str) -> HostedImage:
    """Find one image of the caller.

    Raises:
        NotFound: the image does not exist, is gone, or belongs to another caller.
    """
    if not is_image_id(image_id):
        raise _not_found(image_id)
    row = (await session.execute(_query(caller).where(ImageRow.id == image_id, *_living()))).first()
    if row is None:
        raise _not_found(image_id)
    return _image(row)


async def find_images(
    session: TenantSession, caller: Caller, image_ids: Sequence[str]
) -> tuple[HostedImage, ...]:
    """Find several images of the caller, newest first; those that are gone are left out."""
    known = [image_id for image_id in image_ids if is_image_id(image_id)]
    rows = await session.execute(
        _query(caller)
        .where(ImageRow.id.in_(known), *_living())
        .order_by(ImageRow.created_at.desc(), ImageRow.id.desc())
    )
    return tuple(_image(row) for row in rows)


async def storage_stats(session: TenantSession, caller: Caller) -> StorageStats:
    """Return number and size of the caller's stored images."""
    row = (
        await session.execute(
            select(
                func.count(ImageRow.id),
                func.coalesce(func.sum(ImageRow.size_bytes), 0),
                func.min(ImageRow.created_at),
                func.max(ImageRow.created_at),
            ).where(*_own(caller), *_living())
        )
    ).one()
    max_bytes = await session.scalar(
        select(TenantRow.max_image_bytes).where(TenantRow.id == caller.tenant_id)
    )
    cleaned_at, cleaned_images = await _last_cleanup(session, caller)
    return StorageStats(
        images=row[0],
        size_bytes=int(row[1]),
        oldest=row[2],
        newest=row[3],
        max_bytes=max_bytes,
        cleaned_at=cleaned_at,
        cleaned_images=cleaned_images,
    )


async def count_images(session: TenantSession, caller: Caller, *, since: datetime) -> int:
    """Count the caller's images made since then."""
    count = select(func.count(ImageRow.id)).where(
        *_own(caller), *_living(), ImageRow.created_at >= since
    )
    return await session.scalar(count) or 0


async def _last_cleanup(session: TenantSession, caller: Caller) -> tuple[datetime | None, int]:
    """Return the last clean-up; for a key without a user, summed over the tenant's users."""
    own = [
        ImageCleanupRow.tenant_id == caller.tenant_id,
        ImageCleanupRow.livemode.is_(caller.livemode),
    ]
    if caller.user_id is not None:
        own.append(ImageCleanupRow.user_id == caller.user_id)
    row = (
        await session.execute(
            select(ImageCleanupRow.cleaned_at, func.sum(ImageCleanupRow.images))
            .where(*own)
            .group_by(ImageCleanupRow.cleaned_at)
            .order_by(ImageCleanupRow.cleaned_at.desc())
            .limit(1)
        )
    ).first()
    return (None, 0) if row is None else (row[0], int(row[1]))


async def delete_image(
    database: Database, store: ImageStore, caller: Caller, image_id: str, *, by: Actor
) -> None:
    """Delete an image permanently: row, file, thumbnail, prompt, and bytes in the spool.

    The first commit hides it from its owner. If the process or the store fails afterwards, the
    sweeper removes the files.

    Raises:
        NotFound: the image does not exist, is gone, or belongs to another caller.
    """
    async with database.tenant(caller.tenant_id, by=by) as session:
        path = await _expire(session, caller, image_id)
    try:
        await delete_files(store, path)
    except StorageFailed:
        telemetry.alarm("image_not_deleted", id=image_id, error="StorageFailed")
        return
    async with database.tenant(caller.tenant_id) as session:
        await mark_deleted(session, [image_id])


async def _expire(session: TenantSession, caller: Caller, image_id: str) -> str:
    if not is_image_id(image_id):
        raise _not_found(image_id)
    expired = await session.execute(
        update(ImageRow)
        .where(ImageRow.id == image_id, *_own(caller), *_living())
        .values(expires_at=func.now(), prompt=None, prompt_hash=None)
        .returning(ImageRow.path, ImageRow.livemode, ImageRow.user_id, ImageRow.created_at)
        .execution_options(synchronize_session=False)
    )
    row = expired.one_or_none()
    if row is None:
        raise _not_found(image_id)
    await forget_spooled(session, [image_id])
    await record(
        session,
        Action.IMAGE_DELETED,
        tenant_id=caller.tenant_id,
        object_id=image_id,
        before={"livemode": row.livemode, "user_id": row.user_id, "created_at": row.created_at},
    )
    path: str = row.path
    return path


def _query(caller: Caller) -> Select[*tuple[Any, ...]]:
    images = (
        select(func.sum(LedgerRow.images))
        .where(
            LedgerRow.tenant_id == ImageRow.tenant_id,
            LedgerRow.reservation_id == ImageRow.reservation_id,
        )
        .scalar_subquery()
    )
    # The entries of an old generation may be archived.
    sibling = aliased(ImageRow)
    stored = (
        select(func.count())
        .where(
            sibling.tenant_id == ImageRow.tenant_id,
            sibling.reservation_id == ImageRow.reservation_id,
        )
        .scalar_subquery()
    )
    return (
        select(
            *(ImageRow.id, ImageRow.path, ImageRow.created_at, ImageRow.expires_at),
            *(ImageRow.width, ImageRow.height, ImageRow.media_type, ImageRow.size_bytes),
            *(ImageRow.seed, ImageRow.prompt, ImageRow.prompt_hash, ImageRow.reservation_id),
            ImageRow.provenance,
            *(ReservationRow.requested_model, ReservationRow.served_model),
            *(ReservationRow.operation, ReservationRow.state, ReservationRow.final_nano),
            *(ReservationRow.served_size, ReservationRow.served_quality, ReservationRow.calls),
            func.coalesce(images, stored).label("generation_images"),
        )
        .join(
            ReservationRow,
            and_(
                ReservationRow.tenant_id == ImageRow.tenant_id,
                ReservationRow.id == ImageRow.reservation_id,
            ),
        )
        .where(*_own(caller))
    )


def _own(caller: Caller) -> Sequence[ColumnElement[bool]]:
    mine = [ImageRow.tenant_id == caller.tenant_id, ImageRow.livemode.is_(caller.livemode)]
    return mine if caller.user_id is None else [*mine, ImageRow.user_id == caller.user_id]


def _chosen(chosen: ImageFilter) -> list[ColumnElement[bool]]:
    equal = {
        ImageRow.user_id: chosen.user_id,
        ImageRow.reservation_id: chosen.generation_id,
        ReservationRow.api_key_id: chosen.key_id,
        ReservationRow.operation: chosen.operation,
    }
    found = [column == value for column, value in equal.items() if value is not None]
    if chosen.before is not None:
        found.append(ImageRow.created_at < chosen.before)
    return found


def _living() -> Sequence[ColumnElement[bool]]:
    return [ImageRow.deleted_at.is_(None), ImageRow.expires_at > func.now()]


def _image(row: Row[Any]) -> HostedImage:
    return HostedImage(
        id=row.id,
        path=row.path,
        created_at=row.created_at,
        expires_at=row.expires_at,
        requested_model=row.requested_model,
        served_model=row.served_model,
        operation=row.operation,
        width=row.width,
        height=row.height,
        media_type=row.media_type,
        size_bytes=row.size_bytes,
        seed=row.seed,
        size=row.served_size,
        quality=row.served_quality,
        prompt=row.prompt,
        prompt_hash=row.prompt_hash,
        generation_id=row.reservation_id,
        generation_images=int(row.generation_images),
        cost_nano=row.final_nano,
        cost_status=COST_STATUS.get(row.state, CostStatus.PENDING),
        provenance=Provenance(row.provenance),
        calls=read_calls(row.calls),
    )


def _not_found(image_id: str) -> NotFound:
    return NotFound(f"There is no image {image_id!r}.", code="image_not_found", param="image_id")


def _bad_cursor() -> InvalidRequest:
    return InvalidRequest("after must be the id of one of your images.", param="after")
