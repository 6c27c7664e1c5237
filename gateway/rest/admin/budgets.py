"""Budgets of a tenant: set, shown and removed."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Response
from fastapi import Query as InQuery
from pydantic import Field, StrictBool

from gateway.billing import budgets
from gateway.billing.budgets import Budget, Window
from gateway.money import parse_usd
from gateway.rest.admin.dependencies import (
    JsonBody,
    NoQuery,
    body_of,
    changing_tenant,
    reading_tenant,
)
from gateway.rest.admin.schemas import (
    USER_ID,
    Body,
    Identified,
    Listed,
    NumberedPageQuery,
    RowId,
    Usd,
    with_example,
)
from gateway.rest.dependencies import ActorDep, GatewayDep
from gateway.rest.usage import render_budget

router = APIRouter(prefix="/tenants/{tenant_id}/budgets", tags=["admin: budgets"])


class BudgetObject(Identified):
    """A budget and how far it is used in its current period; US dollars as decimal strings."""

    model_config = with_example(
        id="17",
        object="budget",
        owner="user",
        api_key_id=None,
        user_id=USER_ID,
        livemode=True,
        window="month",
        limit_usd="50.00",
        spent_usd="12.404160000",
        held_usd="0.005920000",
        remaining_usd="37.589920000",
        period_start="2026-10-31T23:00:00Z",
        resets_at="2026-11-30T23:00:00Z",
    )

    id: str
    object: Literal["budget"] = "budget"
    owner: Literal["tenant", "user", "key"]
    api_key_id: UUID | None = Field(description="The first of the key's line, if it was rolled.")
    user_id: UUID | None
    livemode: bool
    window: Window
    limit_usd: str
    spent_usd: str
    held_usd: str
    remaining_usd: str
    period_start: datetime | None
    resets_at: datetime | None


class BudgetBody(Body):
    """A budget to set: of a key, of a user, or of the tenant where neither is named."""

    model_config = with_example(window="month", limit_usd="50", user_id=USER_ID)

    window: Window
    limit_usd: Usd = Field(description="From 0 to 1000000000 US dollars.")
    livemode: StrictBool = Field(
        default=True, description="false: for test keys. A key's own budget has the key's mode."
    )
    api_key_id: UUID | None = None
    user_id: UUID | None = None


@router.put(
    "",
    summary="Set a budget",
    dependencies=[NoQuery],
    openapi_extra=body_of(BudgetBody),
    responses={201: {"model": BudgetObject, "description": "It was made."}},
)
async def put_budget(
    tenant_id: UUID,
    gateway: GatewayDep,
    actor: ActorDep,
    response: Response,
    body: Annotated[BudgetBody, Depends(JsonBody(BudgetBody))],
) -> BudgetObject:
    """One for each owner, mode and window: a second one changes the limit of the first. The next
    call is held against it.
    """
    async with changing_tenant(gateway, tenant_id, actor) as session:
        budget = await budgets.set_limit(
            session,
            tenant_id,
            window=body.window,
            limit_nano=parse_usd(body.limit_usd),
            livemode=body.livemode,
            api_key_id=body.api_key_id,
            user_id=body.user_id,
        )
    response.status_code = 201 if budget.is_new else 200
    return _render(budget)


@router.get("", summary="Budgets of a tenant")
async def list_budgets(
    tenant_id: UUID, gateway: GatewayDep, query: Annotated[NumberedPageQuery, InQuery()]
) -> Listed[BudgetObject]:
    """Newest first, each with what its current period has spent and holds."""
    async with reading_tenant(gateway, tenant_id) as session:
        page = await budgets.list_page(session, tenant_id, limit=query.limit, after=query.after)
    data = [_render(budget) for budget in page.items]
    return Listed[BudgetObject].of(data, has_more=page.has_more)


@router.delete("/{budget_id}", summary="Remove a budget", status_code=204, dependencies=[NoQuery])
async def remove_budget(
    tenant_id: UUID, budget_id: RowId, gateway: GatewayDep, actor: ActorDep
) -> Response:
    """It binds nobody from the next call on. Set again within its period, it counts on from what
    was spent.
    """
    async with changing_tenant(gateway, tenant_id, actor) as session:
        await budgets.remove(session, tenant_id, budget_id)
    return Response(status_code=204)


def _render(budget: Budget) -> BudgetObject:
    owner = {"api_key_id": budget.api_key_id, "user_id": budget.user_id}
    return BudgetObject.model_validate({**render_budget(budget), **owner})
