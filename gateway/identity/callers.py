"""Callers for viewers: the core then treats a page's request as any other of a tenant."""

from gateway.db.engine import Database
from gateway.domain import Caller, TenantSettings
from gateway.errors import Forbidden
from gateway.identity.viewers import Viewer
from gateway.tenancy.limit_rows import read_limits
from gateway.tenancy.tenants import refuse_suspended


async def caller_of(
    database: Database, viewer: Viewer, *, livemode: bool, whole_tenant: bool = False
) -> Caller:
    """Build the caller as which a viewer acts in a tenant, in one mode.

    It has the scopes of the viewer's role. Signed in with an API key, it is that key's caller: its
    scopes, models, user, budgets and limits. Without one, it has no key, like that of a token.

    `whole_tenant`: to read what belongs to all of the tenant's users, for those who may see it; a
    tenant's member, and the key of a user, still see their own alone.

    Raises:
        Forbidden: no tenant's portal is open, the tenant is suspended, or it is a mode that the
            viewer's API key does not have.
        DatabaseUnavailable: Postgres is away.
    """
    if viewer.tenant_id is None:
        raise Forbidden(
            "This needs a tenant. Open the portal of one first.", code="role_not_allowed"
        )
    if livemode not in viewer.modes:
        mode = "live" if livemode else "test"
        raise Forbidden(f"This API key does not see the {mode} mode.", code="role_not_allowed")
    root_id = None if viewer.key is None else viewer.key.root_id
    sees_all = whole_tenant and viewer.key is None and viewer.own_user_id is None
    user_id = None if sees_all else viewer.user_id
    [row] = await database.call(
        "SELECT * FROM console_caller(:tenant_id, :key_id, :user_id, :livemode)",
        {
            "tenant_id": viewer.tenant_id,
            "key_id": root_id,
            "user_id": user_id,
            "livemode": livemode,
        },
    )
    refuse_suspended(row.tenant_status)
    return Caller(
        tenant_id=viewer.tenant_id,
        user_id=user_id,
        api_key_id=root_id,
        livemode=livemode,
        scopes=viewer.scopes,
        models=None if viewer.key is None else viewer.key.models,
        expires_at=viewer.expires_at,
        tenant_status=row.tenant_status,
        tenant_settings=TenantSettings(
            continuity=row.continuity,
            fallback=row.fallback,
            stores_prompts=row.stores_prompts,
            image_retention_seconds=row.image_retention_seconds,
        ),
        limits=read_limits(row.limits),
    )
