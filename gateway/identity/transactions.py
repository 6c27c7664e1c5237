"""Transactions of the console: each asks for a permission, and names its actor.

Pages have no other way to the database. A tenant's person gets a transaction of that tenant, in
which row-level security hides all others; only operators get one that sees all.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol
from uuid import UUID

from gateway.db.engine import Database, OperatorSession, TenantSession
from gateway.db.pools import Beside
from gateway.errors import Forbidden
from gateway.identity.viewers import Permission, Viewer
from gateway.request_record import current
from gateway.tenancy import tenants


class Opened(Protocol):
    """The parts of the opened gateway that these transactions need."""

    @property
    def database(self) -> Database: ...

    @property
    def clear_caches(self) -> Callable[[str | None], None]: ...


@asynccontextmanager
async def reading_as_operator(
    gateway: Opened, viewer: Viewer, permission: Permission = Permission.OPERATOR_READ
) -> AsyncIterator[OperatorSession]:
    """Open a transaction of operators, to read.

    Raises:
        Forbidden: the viewer lacks the permission, or is no operator.
    """
    _require_operator(viewer, permission)
    async with gateway.database.beside(Beside.OPERATORS).operator() as session:
        yield session


@asynccontextmanager
async def changing_as_operator(
    gateway: Opened,
    viewer: Viewer,
    permission: Permission = Permission.OPERATOR_CHANGE,
    *,
    clears: str | None = None,
) -> AsyncIterator[OperatorSession]:
    """Open a transaction of operators, to change; drop the caches tagged `clears` afterwards.

    Raises:
        Forbidden: the viewer lacks the permission, or is no operator.
    """
    _require_operator(viewer, permission)
    actor = viewer.actor(current().request_id)
    async with gateway.database.beside(Beside.OPERATORS).operator(by=actor) as session:
        yield session
    if clears is not None:
        gateway.clear_caches(clears)


@asynccontextmanager
async def reading_tenant(
    gateway: Opened,
    viewer: Viewer,
    permission: Permission,
    *,
    tenant_id: UUID | None = None,
    is_report: bool = False,
) -> AsyncIterator[TenantSession]:
    """Open a transaction of one tenant, to read: the viewer's, or for operators any.

    `is_report`: it may take long, and uses the connections of reports.

    Raises:
        Forbidden: the viewer lacks the permission, or it is another tenant than the viewer's.
        NotFound: there is no such tenant.
    """
    found = _tenant_of(viewer, permission, tenant_id, of_operator=Permission.OPERATOR_READ)
    pool = _pool_of_reports(viewer) if is_report else _pool(viewer)
    async with gateway.database.beside(pool).tenant(found) as session:
        await tenants.get(session, found)
        yield session


@asynccontextmanager
async def changing_tenant(
    gateway: Opened, viewer: Viewer, permission: Permission, *, tenant_id: UUID | None = None
) -> AsyncIterator[TenantSession]:
    """Open a transaction of one tenant, to change; the very next request sees the change.

    Raises:
        Forbidden: the viewer lacks the permission, or it is another tenant than the viewer's.
        NotFound: there is no such tenant, or it was deleted.
    """
    found = _tenant_of(viewer, permission, tenant_id, of_operator=Permission.OPERATOR_CHANGE)
    actor = viewer.actor(current().request_id)
    async with gateway.database.beside(_pool(viewer)).tenant(found, by=actor) as session:
        await tenants.keep_living(session, found)
        yield session
    gateway.clear_caches(str(found))


def _require_operator(viewer: Viewer, permission: Permission) -> None:
    viewer.require(permission)
    if not viewer.is_operator:
        raise Forbidden("Only operators of this gateway may do this.", code="role_not_allowed")


def _tenant_of(
    viewer: Viewer, permission: Permission, tenant_id: UUID | None, *, of_operator: Permission
) -> UUID:
    """The tenant to open: the viewer's own by `permission`, another one by that of operators."""
    if tenant_id is None or tenant_id == viewer.tenant_id:
        viewer.require(permission)
        if viewer.tenant_id is None:
            raise Forbidden(
                "This page belongs to a tenant. Open the portal of one first.",
                code="role_not_allowed",
            )
        return viewer.tenant_id
    _require_operator(viewer, of_operator)
    return tenant_id


def _pool(viewer: Viewer) -> Beside | None:
    """Operators wait for no tenant, and no tenant for them."""
    return Beside.OPERATORS if viewer.is_operator else None


def _pool_of_reports(viewer: Viewer) -> Beside:
    return Beside.OPERATORS_REPORTS if viewer.is_operator else Beside.REPORTS
