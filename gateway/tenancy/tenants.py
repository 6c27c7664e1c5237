"""Tenants and their users."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final
from uuid import UUID
from zoneinfo import available_timezones

from sqlalchemy import or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.tables import TenantRow, TenantUserRow
from gateway.domain import new_id
from gateway.errors import Forbidden, InvalidRequest, NotFound

MAX_NAME_CHARACTERS = 100
MIN_RETENTION_SECONDS = 60
MAX_RETENTION_SECONDS = 315_360_000
MAX_IMAGE_BYTES = 2**63 - 1


class Unchanged(Enum):
    """Stands for a setting that stays as it is, where None is a value of its own."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED


@dataclass(frozen=True, slots=True)
class Tenant:
    """A paying customer. None: as long as the gateway keeps images; without a cap."""

    id: UUID
    name: str
    status: str
    time_zone: str
    created_at: datetime
    continuity: bool
    stores_prompts: bool
    image_retention_seconds: int | None
    max_image_bytes: int | None


async def create(session: OperatorSession, name: str, *, time_zone: str = "UTC") -> Tenant:
    """Make a tenant.

    Raises:
        InvalidRequest: the name is empty, too long or taken, or the time zone is not known.
    """
    _check_name(name)
    known = await session.scalar(
        text("SELECT 1 FROM pg_timezone_names WHERE name = :name"), {"name": time_zone}
    )
    if known is None or time_zone not in available_timezones() - {"localtime"}:
        raise InvalidRequest(
            f"{time_zone!r} is not a time zone such as Europe/Madrid.", param="time_zone"
        )
    made = await session.execute(
        insert(TenantRow)
        .values(id=new_id(), name=name, time_zone=time_zone)
        .on_conflict_do_nothing(index_elements=[TenantRow.name])
        .returning(TenantRow.id)
    )
    tenant_id = made.scalar_one_or_none()
    if tenant_id is None:
        raise InvalidRequest(f"There is a tenant {name!r} already.", param="name")
    return await find(session, str(tenant_id))


async def find(session: OperatorSession, name_or_id: str) -> Tenant:
    """The tenant with this name or id.

    Raises:
        NotFound: there is none.
    """
    matches = [TenantRow.name == name_or_id]
    if (tenant_id := as_uuid(name_or_id)) is not None:
        matches.append(TenantRow.id == tenant_id)
    row = await session.scalar(select(TenantRow).where(or_(*matches)))
    if row is None:
        raise NotFound(f"There is no tenant {name_or_id!r}. `gateway tenants list` shows them.")
    return _tenant(row)


async def list_all(session: OperatorSession) -> list[Tenant]:
    """Every tenant, by name."""
    return [
        _tenant(row) for row in await session.scalars(select(TenantRow).order_by(TenantRow.name))
    ]


async def set_status(session: OperatorSession, name_or_id: str, status: str) -> Tenant:
    """Suspend (`suspended`) or resume (`active`) a tenant.

    Raises:
        NotFound: there is no such tenant.
    """
    tenant = await find(session, name_or_id)
    await session.execute(update(TenantRow).where(TenantRow.id == tenant.id).values(status=status))
    return await find(session, name_or_id)


async def set_settings(
    session: OperatorSession,
    name_or_id: str,
    *,
    continuity: bool | Unchanged = UNCHANGED,
    stores_prompts: bool | Unchanged = UNCHANGED,
    image_retention_seconds: int | Unchanged | None = UNCHANGED,
    max_image_bytes: int | Unchanged | None = UNCHANGED,
) -> Tenant:
    """Change what a tenant has chosen; every worker hears of it at once.

    A new retention counts for images that are made from now on; a cap for those that are there.

    Raises:
        NotFound: there is no such tenant.
        InvalidRequest: a number is out of range.
    """
    if isinstance(image_retention_seconds, int) and not (
        MIN_RETENTION_SECONDS <= image_retention_seconds <= MAX_RETENTION_SECONDS
    ):
        raise InvalidRequest(
            "Images are kept for at least a minute and at most ten years "
            f"({MIN_RETENTION_SECONDS} to {MAX_RETENTION_SECONDS} seconds).",
            param="image_retention_seconds",
        )
    if isinstance(max_image_bytes, int) and not 0 <= max_image_bytes <= MAX_IMAGE_BYTES:
        raise InvalidRequest(
            "A cap on stored bytes is a number from 0 on, or none.", param="max_image_bytes"
        )
    tenant = await find(session, name_or_id)
    given = {
        "continuity": continuity,
        "stores_prompts": stores_prompts,
        "image_retention_seconds": image_retention_seconds,
        "max_image_bytes": max_image_bytes,
    }
    changes = {name: value for name, value in given.items() if value is not UNCHANGED}
    if changes:
        await session.execute(update(TenantRow).where(TenantRow.id == tenant.id).values(**changes))
    return await find(session, str(tenant.id))


async def ids_after(session: OperatorSession, after: UUID, *, limit: int) -> list[UUID]:
    """Ids of tenants, in order, from the one behind `after` on."""
    query = select(TenantRow.id).where(TenantRow.id > after).order_by(TenantRow.id).limit(limit)
    return list(await session.scalars(query))


async def ensure_user(session: TenantSession, tenant_id: UUID, name: str) -> UUID:
    """The id of the tenant's user of this name, made on first use.

    Raises:
        InvalidRequest: the name is empty or too long.
    """
    _check_name(name)
    await session.execute(
        insert(TenantUserRow)
        .values(id=new_id(), tenant_id=tenant_id, name=name)
        .on_conflict_do_nothing(index_elements=[TenantUserRow.tenant_id, TenantUserRow.name])
    )
    return (
        await session.scalars(
            select(TenantUserRow.id).where(
                TenantUserRow.tenant_id == tenant_id, TenantUserRow.name == name
            )
        )
    ).one()


async def find_user(session: TenantSession, tenant_id: UUID, name: str) -> UUID:
    """The id of the tenant's user of this name.

    Raises:
        NotFound: there is none; users come into being with their first key.
    """
    user_id = await session.scalar(
        select(TenantUserRow.id).where(
            TenantUserRow.tenant_id == tenant_id, TenantUserRow.name == name
        )
    )
    if user_id is None:
        raise NotFound(
            f"This tenant has no user {name!r}. Users are made with their first key: "
            "`gateway keys create --user`.",
            param="user",
        )
    return user_id


async def user_names(session: TenantSession, tenant_id: UUID) -> dict[UUID, str]:
    """Names of the tenant's users, by id."""
    rows = await session.execute(
        select(TenantUserRow.id, TenantUserRow.name).where(TenantUserRow.tenant_id == tenant_id)
    )
    return dict(rows.all())


def refuse_suspended(status: str) -> None:
    """Raise `Forbidden` where a tenant of this status may do nothing."""
    if status != "active":
        raise Forbidden("This tenant is suspended.", code="tenant_suspended")


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise InvalidRequest(
            f"A name has 1 to {MAX_NAME_CHARACTERS} printable characters.", param="name"
        )


def as_uuid(text: str) -> UUID | None:
    """The id that this text spells, if it does."""
    try:
        return UUID(text)
    except ValueError:
        return None


def _tenant(row: TenantRow) -> Tenant:
    return Tenant(
        id=row.id,
        name=row.name,
        status=row.status,
        time_zone=row.time_zone,
        created_at=row.created_at,
        continuity=row.continuity,
        stores_prompts=row.stores_prompts,
        image_retention_seconds=row.image_retention_seconds,
        max_image_bytes=row.max_image_bytes,
    )
