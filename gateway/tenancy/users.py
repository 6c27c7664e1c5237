"""Users: the persons and applications of a tenant."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

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
    created_at: datetime


async def ensure_user(session: TenantSession, tenant_id: UUID, name: str) -> UUID:
    """The id of the tenant's user of this name, made on first use.

    Raises:
        InvalidRequest: the name is empty or too long.
    """
    made = await _insert_user(session, tenant_id, name)
    return await find_user(session, tenant_id, name) if made is None else made.id


async def create_user(session: TenantSession, tenant_id: UUID, name: str) -> User:
    """Make a user.

    Raises:
        InvalidRequest: the name is empty or too long.
        Conflict: the tenant has a user of this name.
    """
    made = await _insert_user(session, tenant_id, name)
    if made is None:
        raise Conflict(f"This tenant has a user {name!r} already.", param="name")
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


async def list_users(
    session: TenantSession,
    tenant_id: UUID,
    *,
    limit: int,
    after: UUID | None = None,
    name: str | None = None,
) -> Page[User]:
    """The tenant's users (or the one of this name), newest first, from behind `after` on."""
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


def _user(row: TenantUserRow) -> User:
    return User(id=row.id, name=row.name, created_at=row.created_at)
