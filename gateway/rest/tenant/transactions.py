"""Transactions of tenants that administer themselves, on the connections of tenants' requests."""

from contextlib import AbstractAsyncContextManager
from uuid import UUID

from gateway.bootstrap import Gateway
from gateway.db.actors import Actor
from gateway.db.engine import TenantSession
from gateway.rest.admin.dependencies import changing_tenant, reading_tenant


def reading_own(gateway: Gateway, tenant_id: UUID) -> AbstractAsyncContextManager[TenantSession]:
    """Open a transaction that sees the caller's tenant."""
    return reading_tenant(gateway, tenant_id, work=None)


def changing_own(
    gateway: Gateway, tenant_id: UUID, actor: Actor
) -> AbstractAsyncContextManager[TenantSession]:
    """Open a transaction that changes the caller's tenant; the very next request sees it.

    Raises:
        NotFound: the tenant was deleted.
    """
    return changing_tenant(gateway, tenant_id, actor, work=None)
