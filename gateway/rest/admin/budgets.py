"""Budgets of tenants and of the house credentials: set, list, raise for a time, and remove."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Response
from fastapi import Query as InQuery
from pydantic import Field, StrictBool, StrictInt
from pydantic.config import JsonDict

from gateway.billing import budgets
from gateway.billing.budgets import MAX_ALERTS, Budget, Enforcement, Window
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
    Instant,
    Listed,
    NumberedPageQuery,
    RowId,
    Usd,
    left_as_it_is,
    with_example,
)
from gateway.rest.budget_objects import BudgetFields, TenantBudget
from gateway.rest.dependencies import ActorDep, GatewayDep

router = APIRouter(prefix="/tenants/{tenant_id}/budgets", tags=["admin: budgets"])
house_router = APIRouter(prefix="/budgets", tags=["admin: budgets"])
Percent = Annotated[StrictInt, Field(ge=1, le=100)]


NOT_RAISED: JsonDict = {"raise": None}
RAISED: JsonDict = {"raise": {"limit_usd": "6000.00", "until": "2026-11-24T08:00:00Z"}}


class BudgetObject(TenantBudget, Identified):
    """A budget and its use in the current period; US dollars as decimal strings."""

    model_config = with_example(
        id="17",
        object="budget",
        owner="user",
        api_key_id=None,
        api_key_name=None,
        user_id=USER_ID,
        user_name="alice",
        livemode=True,
        window="month",
        limit_usd="50.00",
        enforcement="hard",
        alert_percents=[50, 80, 100],
        spent_usd="12.404160000",
        held_usd="0.005920000",
        remaining_usd="37.589920000",
        period_start="2026-10-31T23:00:00Z",
        resets_at="2026-11-30T23:00:00Z",
        **NOT_RAISED,
    )

    id: str
    api_key_id: UUID | None = Field(
        description="Id of the first key of the line, if it was rolled."
    )
    api_key_name: str | None
    user_id: UUID | None
    user_name: str | None


class HouseBudgetObject(BudgetFields, Identified):
    """A budget for all calls with a house credential."""

    model_config = with_example(
        id="3",
        object="budget",
        owner="house",
        livemode=True,
        time_zone="Europe/Madrid",
        window="month",
        limit_usd="5000.00",
        enforcement="hard",
        alert_percents=[50, 80, 100],
        spent_usd="1204.160000000",
        held_usd="0.592000000",
        remaining_usd="4795.248000000",
        period_start="2026-10-31T23:00:00Z",
        resets_at="2026-11-30T23:00:00Z",
        **RAISED,
    )

    id: str
    owner: Literal["house"]
    time_zone: str = Field(description="Time zone of its days and months.")


class BudgetTerms(Body):
    """The terms of a budget. Omitted fields keep their value."""

    window: Window
    limit_usd: Usd = Field(description="US dollars, from 0 to 1000000000.")
    enforcement: Enforcement | None = Field(
        None,
        description="soft: the budget warns, but refuses no calls. Default for a new budget: hard.",
        json_schema_extra=left_as_it_is,
    )
    alert_percents: list[Percent] | None = Field(
        None,
        max_length=MAX_ALERTS,
        description="Percentages of the limit that trigger a warning, once per period each; [] for "
        "none. Default for a new budget: 50, 80 and 100.",
        json_schema_extra=left_as_it_is,
    )


class BudgetBody(BudgetTerms):
    """A budget to set: of a key, of a user, or of the tenant if neither is named."""

    model_config = with_example(
        window="month", limit_usd="50", user_id=USER_ID, alert_percents=[80, 100]
    )

    livemode: StrictBool = Field(
        default=True, description="false: for test keys. A key's own budget has the key's mode."
    )
    api_key_id: UUID | None = None
    user_id: UUID | None = None


class HouseBudgetBody(BudgetTerms):
    """A budget to set for all calls with a house credential."""

    model_config = with_example(window="month", limit_usd="5000", time_zone="Europe/Madrid")

    time_zone: str | None = Field(
        None,
        max_length=100,
        description="An IANA name. Default: UTC. The current period keeps its end.",
        json_schema_extra=left_as_it_is,
    )


class RaiseBody(Body):
    """A higher limit for a time."""

    model_config = with_example(limit_usd="80", until="2026-12-01T00:00:00Z")

    limit_usd: Usd = Field(description="Must be above the usual limit.")
    until: Instant = Field(description="At most a year ahead; afterwards the usual limit applies.")


@router.put(
    "",
    summary="Set a budget",
    dependencies=[NoQuery],
    openapi_extra=body_of(BudgetBody),
    responses={201: {"model": BudgetObject, "description": "Created."}},
)
async def put_budget(
    tenant_id: UUID,
    gateway: GatewayDep,
    actor: ActorDep,
    response: Response,
    body: Annotated[BudgetBody, Depends(JsonBody(BudgetBody))],
) -> BudgetObject:
    """Set a budget. There is one for each owner, mode and window: setting it again changes its
    limit. It applies from the next call on.
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
            enforcement=body.enforcement,
            alert_percents=body.alert_percents,
        )
    response.status_code = 201 if budget.is_new else 200
    return BudgetObject.of(budget)


@router.get("", summary="List the budgets of a tenant")
async def list_budgets(
    tenant_id: UUID, gateway: GatewayDep, query: Annotated[NumberedPageQuery, InQuery()]
) -> Listed[BudgetObject]:
    """List budgets, newest first, with the amounts spent and reserved in the current period."""
    async with reading_tenant(gateway, tenant_id) as session:
        page = await budgets.list_page(session, tenant_id, limit=query.limit, after=query.after)
    data = [BudgetObject.of(budget) for budget in page.items]
    return Listed[BudgetObject].of(data, has_more=page.has_more)


@router.put(
    "/{budget_id}/raise",
    summary="Raise a budget for a time",
    dependencies=[NoQuery],
    openapi_extra=body_of(RaiseBody),
)
async def raise_budget(
    tenant_id: UUID,
    budget_id: RowId,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[RaiseBody, Depends(JsonBody(RaiseBody))],
) -> BudgetObject:
    """Apply a higher limit until the given time, from the next call on; afterwards the usual limit
    applies.
    """
    async with changing_tenant(gateway, tenant_id, actor) as session:
        return BudgetObject.of(await _raise(session, tenant_id, budget_id, body))


@router.delete("/{budget_id}/raise", summary="End a raise", dependencies=[NoQuery])
async def end_raise(
    tenant_id: UUID, budget_id: RowId, gateway: GatewayDep, actor: ActorDep
) -> BudgetObject:
    """End a raise now; the usual limit applies again."""
    async with changing_tenant(gateway, tenant_id, actor) as session:
        return BudgetObject.of(await budgets.end_raise(session, tenant_id, budget_id))


@router.delete("/{budget_id}", summary="Remove a budget", status_code=204, dependencies=[NoQuery])
async def remove_budget(
    tenant_id: UUID, budget_id: RowId, gateway: GatewayDep, actor: ActorDep
) -> Response:
    """Remove a budget, from the next call on. If it is set again within its period, earlier
    spending still counts.
    """
    async with changing_tenant(gateway, tenant_id, actor) as session:
        await budgets.remove(session, tenant_id, budget_id)
    return Response(status_code=204)


@house_router.put(
    "",
    summary="Set a budget for the house credentials",
    dependencies=[NoQuery],
    openapi_extra=body_of(HouseBudgetBody),
    responses={201: {"model": HouseBudgetObject, "description": "Created."}},
)
async def put_house_budget(
    gateway: GatewayDep,
    actor: ActorDep,
    response: Response,
    body: Annotated[HouseBudgetBody, Depends(JsonBody(HouseBudgetBody))],
) -> HouseBudgetObject:
    """Set a budget for all live calls of all tenants that use a house credential. There is one for
    each window: setting it again changes its limit.
    """
    async with gateway.operators_database.operator(by=actor) as session:
        budget = await budgets.set_limit(
            session,
            None,
            window=body.window,
            limit_nano=parse_usd(body.limit_usd),
            enforcement=body.enforcement,
            alert_percents=body.alert_percents,
            time_zone=body.time_zone,
        )
    response.status_code = 201 if budget.is_new else 200
    return HouseBudgetObject.of(budget)


@house_router.get("", summary="List the budgets of the house credentials")
async def list_house_budgets(
    gateway: GatewayDep, query: Annotated[NumberedPageQuery, InQuery()]
) -> Listed[HouseBudgetObject]:
    """List budgets, newest first, with the amounts spent and reserved in the current period."""
    async with gateway.operators_database.operator() as session:
        page = await budgets.list_page(session, None, limit=query.limit, after=query.after)
    data = [HouseBudgetObject.of(budget) for budget in page.items]
    return Listed[HouseBudgetObject].of(data, has_more=page.has_more)


@house_router.put(
    "/{budget_id}/raise",
    summary="Raise a budget of the house credentials for a time",
    dependencies=[NoQuery],
    openapi_extra=body_of(RaiseBody),
)
async def raise_house_budget(
    budget_id: RowId,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[RaiseBody, Depends(JsonBody(RaiseBody))],
) -> HouseBudgetObject:
    """Apply a higher limit until the given time, from the next call on; afterwards the usual limit
    applies.
    """
    async with gateway.operators_database.operator(by=actor) as session:
        return HouseBudgetObject.of(await _raise(session, None, budget_id, body))


@house_router.delete(
    "/{budget_id}/raise", summary="End a raise of a house budget", dependencies=[NoQuery]
)
async def end_house_raise(
    budget_id: RowId, gateway: GatewayDep, actor: ActorDep
) -> HouseBudgetObject:
    """End a raise now; the usual limit applies again."""
    async with gateway.operators_database.operator(by=actor) as session:
        return HouseBudgetObject.of(await budgets.end_raise(session, None, budget_id))


@house_router.delete(
    "/{budget_id}",
    summary="Remove a budget of the house credentials",
    status_code=204,
    dependencies=[NoQuery],
)
async def remove_house_budget(budget_id: RowId, gateway: GatewayDep, actor: ActorDep) -> Response:
    """Remove a budget, from the next call on."""
    async with gateway.operators_database.operator(by=actor) as session:
        await budgets.remove(session, None, budget_id)
    return Response(status_code=204)


async def _raise(
    session: budgets.Session, tenant_id: UUID | None, budget_id: int, body: RaiseBody
) -> Budget:
    return await budgets.raise_limit(
        session, tenant_id, budget_id, to_nano=parse_usd(body.limit_usd), until=body.until
    )
