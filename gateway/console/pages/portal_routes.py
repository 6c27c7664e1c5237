"""The routes of a portal's pages but home, gallery and playground."""

from fastapi import APIRouter

from gateway.console.pages import (
    tenant_audit,
    tenant_budgets,
    tenant_calls,
    tenant_connect,
    tenant_credentials,
    tenant_keys,
    tenant_requests,
    tenant_usage,
    tenant_users,
    tenant_webhooks,
)

router = APIRouter()
for module in (
    *(tenant_usage, tenant_calls, tenant_requests, tenant_keys, tenant_users, tenant_budgets),
    *(tenant_credentials, tenant_webhooks, tenant_connect, tenant_audit),
):
    router.include_router(module.router)
