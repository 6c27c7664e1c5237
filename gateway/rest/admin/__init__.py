"""The operators' REST routes under /admin/v1, for admin keys only: thin translations to the core.

Every change writes a row to the audit trail, in its own transaction. Only `gateway.main` imports
the router; `rest.tenant` shares the schemas.
"""

from fastapi import APIRouter, Depends

from gateway.rest.admin import (
    admin_keys,
    audit,
    budgets,
    credentials,
    keys,
    limits,
    models,
    prices,
    reconciliation,
    requests,
    sessions,
    tenants,
    usage,
    users,
    webhooks,
)
from gateway.rest.dependencies import get_operator

router = APIRouter(
    prefix="/admin/v1",
    # The middleware refuses other keys already; the routes do not rely on its list of paths.
    dependencies=[Depends(get_operator)],
)
for noun in (
    *(tenants, users, keys, credentials, budgets, limits),
    *(webhooks, usage, requests, prices, reconciliation, audit, admin_keys),
    *(sessions, models),
):
    router.include_router(noun.router)
router.include_router(budgets.house_router)
