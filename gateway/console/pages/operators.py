"""All routes of the operators' pages but the overview and the costs."""

from fastapi import APIRouter

from gateway.console.pages import (
    operator_admin_keys,
    operator_audit,
    operator_calls,
    operator_models,
    operator_open_calls,
    operator_requests,
    operator_system,
    operator_tenant_budgets,
    operator_tenant_keys,
    operator_tenant_limits,
    operator_tenant_users,
    operator_tenants,
    operator_webhooks,
)

router = APIRouter()
for module in (
    *(operator_calls, operator_requests, operator_open_calls, operator_tenants),
    *(operator_tenant_keys, operator_tenant_users, operator_tenant_budgets),
    *(operator_tenant_limits, operator_models, operator_webhooks, operator_admin_keys),
    *(operator_audit, operator_system),
):
    router.include_router(module.router)
