"""Tenants and their settings."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from gateway.db.audit import Action, record
from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.pages import Page, page_of
from gateway.db.tables import TenantRow
from gateway.db.time_zones import check_time_zone
from gateway.domain import new_id
from gateway.errors import Conflict, Forbidden, InvalidRequest, NotFound

MAX_NAME_CHARACTERS = 100
MIN_RETENTION_SECONDS = 60
MAX_RETENTION_SECONDS = 315_360_000
MAX_IMAGE_BYTES = 2**63 - 1
STATUSES = ("active", "suspended")
"""The statuses that an operator can set; a deleted tenant stays `deleted`."""


_REFUSALS = {
    "suspended": (
        "tenant_suspended",
        "This tenant is suspended. Ask the operator of this gateway to resume it.",
    ),
    "deleted": ("tenant_deleted", "This tenant was deleted."),
    "user_disabled": (
        "user_disabled",
        "The user of this key is disabled. Ask an administrator of your tenant to enable the user.",
    ),
    "user_deleted": ("user_deleted", "The user of this key was deleted."),
}


class Unchanged(Enum):
    """A marker for an unchanged setting, where None is a value of its own."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True)
class Tenant:
    """A paying customer. Retention None: the gateway's default; cap None: unlimited."""

    id: UUID
    name: str
    status: str
    time_zone: str
    created_at: datetime
    continuity: bool
    fallback: bool
    stores_prompts: bool
    image_retention_seconds: int | None
    max_image_bytes: int | None
    deleted_at: datetime | None = None


async def create(session: OperatorSession, name: str, *, time_zone: str = "UTC") -> Tenant:
    """Create a tenant.

    Raises:
        InvalidRequest: an invalid name, or an unknown time zone.
        Conflict: the name is taken.
    """
    check_name(name)
    await check_time_zone(session, time_zone)
    made = await session.execute(
        insert(TenantRow)
        .values(id=new_id(), name=name, time_zone=time_zone)
        .on_conflict_do_nothing(index_elements=[TenantRow.name])
        .returning(TenantRow.id)
    )
    tenant_id = made.scalar_one_or_none()
    if tenant_id is None:
        raise name_taken(name)
    tenant = await get(session, tenant_id)
    await record(
        session,
        Action.TENANT_CREATED,
        tenant_id=tenant_id,
        object_id=tenant_id,
        after=shown(tenant),
    )
    return tenant


async def get(
    session: OperatorSession | TenantSession, tenant_id: UUID, *, param: str = "tenant_id"
) -> Tenant:
    """Return the tenant with this id, given in the request's `param`.

    Raises:
        NotFound: there is none that this session sees.
    """
    row = await session.get(TenantRow, tenant_id)
    if row is None:
        raise unknown_tenant(tenant_id, param=param)
    return _tenant(row)


async def names_of(
    session: OperatorSession | TenantSession, tenant_ids: Collection[UUID | None]
) -> dict[UUID, str]:
    """Return the names of those of these tenants that this session sees, by their ids."""
    found = await session.execute(
        select(TenantRow.id, TenantRow.name).where(TenantRow.id.in_(tenant_ids))
    )
    return {row.id: row.name for row in found}


async def find(session: OperatorSession, name_or_id: str) -> Tenant:
    """Find a tenant by its id, else by its name.

    Raises:
        NotFound: there is none.
    """
    tenant_id = as_uuid(name_or_id)
    row = None if tenant_id is None else await session.get(TenantRow, tenant_id)
    if row is None:
        row = await session.scalar(select(TenantRow).where(TenantRow.name == name_or_id))
    if row is None:
        raise NotFound(f"There is no tenant {name_or_id!r}. `gateway tenants list` shows them.")
    return _tenant(row)


async def has_any(session: OperatorSession) -> bool:
    """Tell if there is a tenant."""
    return await session.scalar(select(TenantRow.id).limit(1)) is not None


async def list_by_name(
    session: OperatorSession, *, limit: int, after: str | None = None
) -> Page[Tenant]:
    """List one page of tenants by name, those behind the name `after`."""
    query = select(TenantRow).order_by(TenantRow.name).limit(limit + 1)
    if after is not None:
        query = query.where(TenantRow.name > after)
    return page_of([_tenant(row) for row in await session.scalars(query)], limit)


async def list_page(
    session: OperatorSession, *, limit: int, after: UUID | None = None, name: str | None = None
) -> Page[Tenant]:
    """List one page of tenants (or the one of this name), newest first, after `after`."""
    query = select(TenantRow).order_by(TenantRow.id.desc()).limit(limit + 1)
    if name is not None:
        check_name(name)
        query = query.where(TenantRow.name == name)
    if after is not None:
        query = query.where(TenantRow.id < after)
    return page_of([_tenant(row) for row in await session.scalars(query)], limit)


async def search(
    session: OperatorSession,
    *,
    limit: int,
    after: UUID | None = None,
    text: str = "",
    status: str | None = None,
) -> Page[Tenant]:
    """List one page of tenants whose name contains `text`, or whose id is, newest first."""
    query = select(TenantRow).order_by(TenantRow.id.desc()).limit(limit + 1)
    if text:
        if not text.isprintable():
            return Page((), has_more=False)  # Postgres refuses NUL, and no name contains it
        found = TenantRow.name.icontains(text, autoescape=True)
        given = as_uuid(text)
        query = query.where(found if given is None else (TenantRow.id == given) | found)
    if status is not None:
        query = query.where(TenantRow.status == status)
    if after is not None:
        query = query.where(TenantRow.id < after)
    return page_of([_tenant(row) for row in await session.scalars(query)], limit)


async def set_status(session: OperatorSession, name_or_id: str, status: str) -> Tenant:
    """Suspend (`suspended`) or resume (`active`) a tenant.

    Raises:
        NotFound: there is no such tenant.
    """
    return await set_settings(session, name_or_id, status=status)


async def set_settings(
    session: OperatorSession,
    name_or_id: str,
    *,
    name: str | Unchanged = UNCHANGED,
    status: str | Unchanged = UNCHANGED,
    time_zone: str | Unchanged = UNCHANGED,
    continuity: bool | Unchanged = UNCHANGED,
    fallback: bool | Unchanged = UNCHANGED,
    stores_prompts: bool | Unchanged = UNCHANGED,
    image_retention_seconds: int | Unchanged | None = UNCHANGED,
    max_image_bytes: int | Unchanged | None = UNCHANGED,
) -> Tenant:
    """Change a tenant's settings; every worker applies them at once.

    A new retention applies to images made from now on, a new cap to existing images as well, and
    a new time zone from the end of each budget's current period.

    Raises:
        NotFound: there is no such tenant.
        InvalidRequest: an invalid name, status or time zone, or a number out of range.
        Conflict: the new name is taken.
    """
    given = {
        "name": name,
        "status": status,
        "time_zone": time_zone,
        "continuity": continuity,
        "fallback": fallback,
        "stores_prompts": stores_prompts,
        "image_retention_seconds": image_retention_seconds,
        "max_image_bytes": max_image_bytes,
    }
    changes = {field: value for field, value in given.items() if value is not UNCHANGED}
    await _check_changes(session, changes)
    tenant_id = (await find(session, name_or_id)).id
    row = await session.get_one(TenantRow, tenant_id, with_for_update=True, populate_existing=True)
    _refuse_deleted(row)
    before = _tenant(row)
    if changes:
        await _update(session, tenant_id, changes)
    after = _tenant(await session.get_one(TenantRow, tenant_id, populate_existing=True))
    action = {
        ("active", "suspended"): Action.TENANT_SUSPENDED,
        ("suspended", "active"): Action.TENANT_RESUMED,
    }.get((before.status, after.status), Action.TENANT_UPDATED)
    await record(
        session,
        action,
        tenant_id=tenant_id,
        object_id=tenant_id,
        before=shown(before),
        after=shown(after),
    )
    return after


async def _update(session: OperatorSession, tenant_id: UUID, changes: Mapping[str, object]) -> None:
    try:
        async with session.begin_nested():
            await session.execute(
                update(TenantRow).where(TenantRow.id == tenant_id).values(**changes)
            )
    except IntegrityError:
        # Everything else was checked above: only the name can have been taken meanwhile.
        raise name_taken(str(changes["name"])) from None


async def _check_changes(session: OperatorSession, changes: Mapping[str, object]) -> None:
    if isinstance(name := changes.get("name"), str):
        check_name(name)
    if (status := changes.get("status", STATUSES[0])) not in STATUSES:
        raise InvalidRequest(
            f"status must be {' or '.join(STATUSES)} (got {status!r}).", param="status"
        )
    if isinstance(time_zone := changes.get("time_zone"), str):
        await check_time_zone(session, time_zone)
    seconds = changes.get("image_retention_seconds")
    if isinstance(seconds, int) and not MIN_RETENTION_SECONDS <= seconds <= MAX_RETENTION_SECONDS:
        raise InvalidRequest(
            "The retention of images must be between a minute and ten years "
            f"({MIN_RETENTION_SECONDS} to {MAX_RETENTION_SECONDS} seconds).",
            param="image_retention_seconds",
        )
    max_bytes = changes.get("max_image_bytes")
    if isinstance(max_bytes, int) and not 0 <= max_bytes <= MAX_IMAGE_BYTES:
        raise InvalidRequest(
            f"The cap on stored bytes must be from 0 to {MAX_IMAGE_BYTES}, or none.",
            param="max_image_bytes",
        )


async def ids_after(session: OperatorSession, after: UUID, *, limit: int) -> list[UUID]:
    """List ids of tenants in order, after `after`."""
    query = select(TenantRow.id).where(TenantRow.id > after).order_by(TenantRow.id).limit(limit)
    return list(await session.scalars(query))


async def keep_living(session: OperatorSession | TenantSession, tenant_id: UUID) -> None:
    """Lock a tenant against deletion until the end of the transaction.

    Raises:
        NotFound: there is none that this session sees, or it was deleted.
    """
    row = await session.get(
        TenantRow, tenant_id, with_for_update={"read": True}, populate_existing=True
    )
    if row is None:
        raise unknown_tenant(tenant_id)
    _refuse_deleted(row)


def _refuse_deleted(row: TenantRow) -> None:
    if row.status == "deleted":
        raise NotFound(
            f"Tenant {row.id} was deleted and cannot be changed any more.",
            code="tenant_deleted",
            param="tenant_id",
        )


def refuse_suspended(status: str) -> None:
    """Raise `Forbidden` if the status of a tenant or a user refuses all its requests."""
    if status != "active":
        raise not_active(status)


def not_active(status: str) -> Forbidden:
    """Build the refusal of every request of a tenant or a user with this status."""
    code, message = _REFUSALS.get(status, _REFUSALS["suspended"])
    return Forbidden(message, code=code)


def unknown_tenant(tenant_id: UUID, *, param: str | None = "tenant_id") -> NotFound:
    """Build the refusal of a tenant's id that does not exist."""
    return NotFound(f"There is no tenant {tenant_id}.", param=param)


def check_name(name: str) -> None:
    """Raise `InvalidRequest` for an invalid name of a tenant or a user."""
    if not name.strip() or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise InvalidRequest(
            f"name must have 1 to {MAX_NAME_CHARACTERS} printable characters (got {len(name)}).",
            param="name",
        )


def as_uuid(text: str) -> UUID | None:
    """Parse a UUID; None if the text is not one."""
    try:
        return UUID(text)
    except ValueError:
        return None


def name_taken(name: str) -> Conflict:
    """Build the refusal of a name that another tenant has."""
    return Conflict(f"There is a tenant {name!r} already.", param="name")


def shown(tenant: Tenant) -> dict[str, object]:
    """Render a tenant for the audit trail."""
    return {
        "name": tenant.name,
        "status": tenant.status,
        "time_zone": tenant.time_zone,
        "continuity": tenant.continuity,
        "fallback": tenant.fallback,
        "stores_prompts": tenant.stores_prompts,
        "image_retention_seconds": tenant.image_retention_seconds,
        "max_image_bytes": tenant.max_image_bytes,
    }


def _tenant(row: TenantRow) -> Tenant:
    return Tenant(
        id=row.id,
        name=row.name,
        status=row.status,
        time_zone=row.time_zone,
        created_at=row.created_at,
        continuity=row.continuity,
        fallback=row.fallback,
        stores_prompts=row.stores_prompts,
        image_retention_seconds=row.image_retention_seconds,
        max_image_bytes=row.max_image_bytes,
        deleted_at=row.deleted_at,
    )
