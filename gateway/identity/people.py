"""People of the console: list them, change their roles, take and give back their access."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import ColumnElement, select, true

from gateway.db.audit import Action, record
from gateway.db.console_tables import PersonRow
from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.pages import Page, page_of
from gateway.errors import Conflict, Forbidden, InvalidRequest, NotFound
from gateway.identity.transactions import (
    Opened,
    changing_as_operator,
    changing_tenant,
    reading_as_operator,
    reading_tenant,
)
from gateway.identity.viewers import Permission, Role, Viewer

Status = Literal["active", "disabled"]
TENANT_ROLES = tuple(role for role in Role if not role.is_operator)


@dataclass(frozen=True, slots=True)
class Person:
    """A person who has signed in through the identity provider."""

    id: UUID
    tenant_id: UUID | None
    user_id: UUID | None
    issuer: str
    subject: str
    name: str
    email: str | None
    role: Role
    has_claimed_role: bool
    status: Status
    created_at: datetime
    last_sign_in_at: datetime | None


@asynccontextmanager
async def reading_people(
    gateway: Opened, viewer: Viewer
) -> AsyncIterator[OperatorSession | TenantSession]:
    """Open a transaction that sees the people whom the viewer administers.

    Raises:
        Forbidden: the viewer administers no one.
    """
    if viewer.tenant_id is None:
        async with reading_as_operator(gateway, viewer) as session:
            yield session
    else:
        async with reading_tenant(gateway, viewer, Permission.MEMBERS_CHANGE) as own:
            yield own


@asynccontextmanager
async def changing_people(
    gateway: Opened, viewer: Viewer
) -> AsyncIterator[OperatorSession | TenantSession]:
    """Open a transaction that changes the people whom the viewer administers.

    Raises:
        Forbidden: the viewer administers no one.
    """
    if viewer.tenant_id is None:
        async with changing_as_operator(gateway, viewer) as session:
            yield session
    else:
        async with changing_tenant(gateway, viewer, Permission.MEMBERS_CHANGE) as own:
            yield own


def may_change(viewer: Viewer) -> bool:
    """Return True if the viewer may change the people whom they see."""
    needed = Permission.OPERATOR_CHANGE if viewer.tenant_id is None else Permission.MEMBERS_CHANGE
    return viewer.may(needed)


def roles_to_give(viewer: Viewer) -> tuple[Role, ...]:
    """The roles that a viewer may give: in a tenant those of tenants, else all."""
    return tuple(Role) if viewer.tenant_id is None else TENANT_ROLES


def check_role(viewer: Viewer, text: str, *, tenant_id: UUID | None) -> Role:
    """Return the role of this name, if the viewer may give it in this tenant (None: operators).

    Raises:
        InvalidRequest: there is no such role, or it does not fit the tenant.
        Forbidden: the viewer may not give it.
    """
    if text not in set(Role):
        raise InvalidRequest(
            f"Unknown role {text[:50]!r}. Choose from: {', '.join(Role)}.", param="role"
        )
    role = Role(text)
    if role not in roles_to_give(viewer):
        raise Forbidden(f"You cannot give the role {role}.", code="role_not_allowed")
    if role.is_operator == (tenant_id is not None):
        needs = "belongs to no tenant" if role.is_operator else "needs a tenant"
        raise InvalidRequest(f"The role {role} {needs}.", param="tenant")
    return role


async def list_page(
    session: OperatorSession | TenantSession,
    viewer: Viewer,
    *,
    limit: int,
    after: UUID | None = None,
) -> Page[Person]:
    """List one page of the people whom the viewer administers, the newest first."""
    query = select(PersonRow).where(_in_sight(viewer)).order_by(PersonRow.id.desc())
    if after is not None:
        query = query.where(PersonRow.id < after)
    return page_of([_person(row) for row in await session.scalars(query.limit(limit + 1))], limit)


async def change_role(
    session: OperatorSession | TenantSession, viewer: Viewer, person_id: UUID, role_name: str
) -> Person:
    """Give a person another role, at once: their sessions end, the next sign-in has it.

    Raises:
        NotFound: the viewer administers no such person.
        Conflict: the identity provider's claims give this person's role.
        Forbidden: it is the viewer, or a role that the viewer may not give.
        InvalidRequest: an unknown role, or one that does not fit the person's tenant.
    """
    row = await _find(session, viewer, person_id)
    role = check_role(viewer, role_name, tenant_id=row.tenant_id)
    if row.has_claimed_role:
        raise Conflict(
            "The identity provider gives this person's role at each sign-in. Change it there, or "
            "disable the person here.",
            code="role_is_claimed",
            param="role",
        )
    before = shown(row)
    row.role = role
    return await _changed(session, row, before)


async def set_status(
    session: OperatorSession | TenantSession, viewer: Viewer, person_id: UUID, status: Status
) -> Person:
    """Disable a person, whose sessions then end at once, or enable them.

    Raises:
        NotFound: the viewer administers no such person.
        Forbidden: it is the viewer.
    """
    row = await _find(session, viewer, person_id)
    before = shown(row)
    row.status = status
    return await _changed(session, row, before)


async def _find(
    session: OperatorSession | TenantSession, viewer: Viewer, person_id: UUID
) -> PersonRow:
    row = await session.scalar(
        select(PersonRow).where(PersonRow.id == person_id, _in_sight(viewer)).with_for_update()
    )
    if row is None:
        raise NotFound(f"There is no person {person_id}.", param="person_id")
    if row.id == viewer.person_id:
        raise Forbidden("You cannot change your own access. Ask another administrator.")
    return row


def _in_sight(viewer: Viewer) -> ColumnElement[bool]:
    return true() if viewer.tenant_id is None else PersonRow.tenant_id == viewer.tenant_id


async def _changed(
    session: OperatorSession | TenantSession, row: PersonRow, before: dict[str, object]
) -> Person:
    await session.flush()
    await record(
        session,
        Action.PERSON_CHANGED,
        tenant_id=row.tenant_id,
        object_id=row.id,
        before=before,
        after=shown(row),
    )
    return _person(row)


def shown(row: PersonRow) -> dict[str, object]:
    """The public fields of a person, for the audit trail."""
    return {
        "issuer": row.issuer,
        "subject": row.subject,
        "name": row.name,
        "email": row.email,
        "role": str(row.role),
        "has_claimed_role": row.has_claimed_role,
        "status": row.status,
    }


def _person(row: PersonRow) -> Person:
    return Person(
        id=row.id,
        tenant_id=row.tenant_id,
        user_id=row.user_id,
        issuer=row.issuer,
        subject=row.subject,
        name=row.name,
        email=row.email,
        role=Role(row.role),
        has_claimed_role=row.has_claimed_role,
        status=row.status,  # type: ignore[arg-type]  # as the table's check says
        created_at=row.created_at,
        last_sign_in_at=row.last_sign_in_at,
    )
