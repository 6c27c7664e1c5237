"""Users: the persons and applications of a tenant."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from gateway.db.audit import Action, record
from gateway.db.engine import TenantSession
from gateway.db.pages import Page, page_of
from gateway.db.tables import TenantUserRow
from gateway.domain import new_id
from gateway.errors import Conflict, NotFound
from gateway.tenancy.tenants import check_name


@dataclass(frozen=True, slots=True)
class User:
    """A person or application of a tenant."""

    id: UUID
    name: str
    status: Literal["active", "disabled", "deleted"]
    created_at: datetime
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class UserChanges:
    """Changes to a user; None: unchanged."""

    name: str | None = None
    status: Literal["active", "disabled"] | None = None


async def ensure_user(session: TenantSession, tenant_id: UUID, name: str) -> UUID:
    """Return the id of the tenant's user of this name, created on first use.

    Raises:
        InvalidRequest: the name is empty or too long.
    """
    made = await _insert_user(session, tenant_id, name)
    return await find_user(session, tenant_id, name) if made is None else made.id


async def create_user(session: TenantSession, tenant_id: UUID, name: str) -> User:
    """Create a user.

    Raises:
        InvalidRequest: the name is empty or too long.
        Conflict: the tenant has a user of this name.
    """
    made = await _insert_user(session, tenant_id, name)
    if made is None:
        raise _name_taken(name)
    return made


async def _insert_user(session: TenantSession, tenant_id: UUID, name: str) -> User | None:
    check_name(name)
    made = await session.execute(
        insert(TenantUserRow)
        .values(id=new_id(), tenant_id=tenant_id, name=name)
        .on_conflict_do_nothing(index_elements=[TenantUserRow.tenant_id, TenantUserRow.name])
        .returning(TenantUserRow)
    )
    row = made.scalar_one_or_none()
    if row is None:
        return None
    await record(
        session,
        Action.USER_CREATED,
        tenant_id=tenant_id,
        object_id=row.id,
        after={"name": name},
    )
    return _user(row)


async def get(
    session: TenantSession, tenant_id: UUID, user_id: UUID, *, for_change: bool = False
) -> User:
    """Return the tenant's user with this id; `for_change` locks it.

    Raises:
        NotFound: the tenant has no such user.
    """
    return _user(await _find(session, tenant_id, user_id, for_change=for_change))


async def change(
    session: TenantSession,
    tenant_id: UUID,
    user_id: UUID,
    *,
    name: str | None = None,
    status: Literal["active", "disabled"] | None = None,
) -> User:
    """Rename, disable or enable a user. Keys and tokens of a disabled user are refused at once.

    Raises:
        InvalidRequest: an invalid name.
        NotFound: the tenant has no such user, or the user was deleted.
        Conflict: the tenant has another user of this name.
    """
    row = await _find(session, tenant_id, user_id, for_change=True)
    if row.status == "deleted":
        raise NotFound(
            f"User {user_id} was deleted and cannot be changed any more.",
            code="user_deleted",
            param="user_id",
        )
    before = _user(row)
    row.status = status or row.status
    if name is not None and name != row.name:
        check_name(name)
        try:
            async with session.begin_nested():
                row.name = name
                await session.flush()
        except IntegrityError:
            raise _name_taken(name) from None
    await session.flush()
    after = _user(row)
    action = {
        ("active", "disabled"): Action.USER_DISABLED,
        ("disabled", "active"): Action.USER_ENABLED,
    }.get((before.status, after.status), Action.USER_UPDATED)
    await record(
        session,
        action,
        tenant_id=tenant_id,
        object_id=user_id,
        before=shown(before),
        after=shown(after),
    )
    return after


async def list_users(
    session: TenantSession,
    tenant_id: UUID,
    *,
    limit: int,
    after: UUID | None = None,
    name: str | None = None,
) -> Page[User]:
    """List one page of users (or the one of this name), newest first, after `after`."""
    query = (
        select(TenantUserRow)
        .where(TenantUserRow.tenant_id == tenant_id)
        .order_by(TenantUserRow.id.desc())
        .limit(limit + 1)
    )
    if name is not None:
        check_name(name)
        query = query.where(TenantUserRow.name == name)
    if after is not None:
        query = query.where(TenantUserRow.id < after)
    return page_of([_user(row) for row in await session.scalars(query)], limit)


async def find_user(session: TenantSession, tenant_id: UUID, name: str) -> UUID:
    """Return the id of the tenant's user of this name.

    Raises:
        NotFound: there is none; users are created with their first key.
    """
    user_id = await session.scalar(
        select(TenantUserRow.id).where(
            TenantUserRow.tenant_id == tenant_id, TenantUserRow.name == name
        )
    )
    if user_id is None:
        raise NotFound(
            f"This tenant has no user {name!r}. Users are created with their first key: "
            "`gateway keys create --user`.",
            param="user",
        )
    return user_id


async def user_names(session: TenantSession, tenant_id: UUID) -> dict[UUID, str]:
    """Return the names of the tenant's users by id."""
    rows = await session.execute(
        select(TenantUserRow.id, TenantUserRow.name).where(TenantUserRow.tenant_id == tenant_id)
    )
    return dict(rows.all())


async def names_of(
    session: TenantSession, tenant_id: UUID, user_ids: Iterable[UUID | None]
) -> dict[UUID, str]:
    """Return the names of some users of the tenant by id."""
    wanted = {one for one in user_ids if one is not None}
    if not wanted:
        return {}
    rows = await session.execute(
        select(TenantUserRow.id, TenantUserRow.name).where(
            TenantUserRow.tenant_id == tenant_id, TenantUserRow.id.in_(wanted)
        )
    )
    return {row.id: row.name for row in rows}


async def _find(
    session: TenantSession, tenant_id: UUID, user_id: UUID, *, for_change: bool
) -> TenantUserRow:
    query = select(TenantUserRow).where(
        TenantUserRow.tenant_id == tenant_id, TenantUserRow.id == user_id
    )
    if for_change:
        query = query.with_for_update(key_share=True)
    row = await session.scalar(query.execution_options(populate_existing=True))
    if row is None:
        raise NotFound(f"This tenant has no user {user_id}.", param="user_id")
    return row


def _name_taken(name: str) -> Conflict:
    return Conflict(f"This tenant has a user {name!r} already.", param="name")


def shown(user: User) -> dict[str, object]:
    """Render a user for the audit trail."""
    return {"name": user.name, "status": user.status}


def _user(row: TenantUserRow) -> User:
    return User(
        id=row.id,
        name=row.name,
        status=cast("Literal['active', 'disabled', 'deleted']", row.status),
        created_at=row.created_at,
        deleted_at=row.deleted_at,
    )
