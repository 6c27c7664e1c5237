"""Webhooks of a tenant, and the operator's own; the same routes under three paths.

The operator's are at /admin/v1/webhooks and receive the events of all tenants and of the house
credentials. A tenant's are at /admin/v1/tenants/{id}/webhooks for the operator, and at /v1/webhooks
for the tenant.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from fastapi import Query as InQuery

from gateway.bootstrap import Gateway
from gateway.db.actors import Actor
from gateway.db.pools import Beside
from gateway.domain import Caller, Operator, Scope
from gateway.errors import Forbidden, NotFound
from gateway.rest.admin.dependencies import (
    JsonBody,
    NoQuery,
    body_of,
    changing_tenant,
    reading_tenant,
)
from gateway.rest.admin.schemas import Listed, PageQuery
from gateway.rest.admin.webhook_schemas import (
    DeliveriesQuery,
    DeliveryObject,
    RollSecretBody,
    SecretObject,
    SignedWebhookObject,
    WebhookBody,
    WebhookChange,
    WebhookObject,
)
from gateway.rest.dependencies import ActorDep, GatewayDep
from gateway.rest.refusals import refused_with
from gateway.tenancy.tenants import as_uuid
from gateway.web.authentication import require_scope
from gateway.webhooks import deliveries, endpoints
from gateway.webhooks.endpoints import NewSecret, Session, WebhookEndpoint

routes = APIRouter()
NO_TENANT = UUID(int=0)


@dataclass(frozen=True, slots=True)
class WebhookOwner:
    """The owner of the webhooks of a request: a tenant, or the operator (None).

    `work`: the pool of connections, as in `reading_tenant`.
    `test_only`: the caller's key is a test key, which sees and creates webhooks for test calls
    only.
    """

    tenant_id: UUID | None
    test_only: bool = False
    work: Beside | None = Beside.OPERATORS


async def whose(request: Request) -> WebhookOwner:
    """The caller's tenant; for operators the tenant in the path, if there is one.

    Raises:
        InsufficientScope: a tenant's key without `tenant:admin`.
    """
    caller: Caller | Operator = request.state.caller
    if isinstance(caller, Caller):
        require_scope(caller, Scope.TENANT_ADMIN)
        return WebhookOwner(caller.tenant_id, test_only=not caller.livemode, work=None)
    tenant: str | None = request.path_params.get("tenant_id")
    # `known_tenant` refuses an invalid UUID, regardless of which of the two runs first.
    return WebhookOwner(None if tenant is None else as_uuid(tenant) or NO_TENANT)


async def known_tenant(tenant_id: UUID) -> None:
    """Check and document the path of a tenant's webhooks."""


OwnerDep = Annotated[WebhookOwner, Depends(whose)]


@routes.post(
    "",
    summary="Create a webhook",
    status_code=201,
    dependencies=[NoQuery],
    openapi_extra=body_of(WebhookBody),
    responses=refused_with(409),
)
async def create_webhook(
    owner: OwnerDep,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[WebhookBody, Depends(JsonBody(WebhookBody))],
) -> SignedWebhookObject:
    """Create a webhook. The answer contains the signing secret, which is not shown again."""
    async with _changing(gateway, owner, actor) as (session, tenant_id):
        made = await endpoints.create(
            session,
            tenant_id,
            sealing=gateway.core.webhook_sealing,
            url=body.url,
            event_types=body.events,
            livemode=_mode(owner, body, body.livemode),
            description=body.description,
            allow_private=gateway.settings.webhook_allow_private,
            max_endpoints=gateway.settings.max_webhooks,
        )
    return _render_signed(made)


@routes.get("", summary="List webhooks, without secrets")
async def list_webhooks(
    owner: OwnerDep, gateway: GatewayDep, query: Annotated[PageQuery, InQuery()]
) -> Listed[WebhookObject]:
    """List webhooks, newest first, including disabled ones. Those of tenants and the operator are
    listed separately.
    """
    async with _reading(gateway, owner) as (session, tenant_id):
        page = await endpoints.list_page(
            session,
            tenant_id,
            limit=query.limit,
            after=query.after,
            test_only=owner.test_only,
        )
    data = [_render(endpoint) for endpoint in page.items]
    return Listed[WebhookObject].of(data, has_more=page.has_more)


@routes.get("/{webhook_id}", summary="Show a webhook", dependencies=[NoQuery])
async def get_webhook(webhook_id: UUID, owner: OwnerDep, gateway: GatewayDep) -> WebhookObject:
    """Return a webhook; `secrets` lists the secrets that currently sign, with their validity."""
    async with _reading(gateway, owner, webhook_id) as (session, tenant_id):
        return _render(await endpoints.get(session, tenant_id, webhook_id))


@routes.patch(
    "/{webhook_id}",
    summary="Change, disable or enable a webhook",
    dependencies=[NoQuery],
    openapi_extra=body_of(WebhookChange),
)
async def change_webhook(
    webhook_id: UUID,
    owner: OwnerDep,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[WebhookChange, Depends(JsonBody(WebhookChange))],
) -> WebhookObject:
    """Change a webhook. Takes effect from the next delivery attempt, including for pending events.
    Events that occur while a webhook is disabled are not delivered later.
    """
    given = body.model_dump(exclude_unset=True)
    if "livemode" in given:
        _mode(owner, body, body.livemode)
    if "events" in given:
        given["event_types"] = given.pop("events")
    async with _changing(gateway, owner, actor, webhook_id) as (session, tenant_id):
        changed = await endpoints.change(
            session,
            tenant_id,
            webhook_id,
            allow_private=gateway.settings.webhook_allow_private,
            **given,
        )
    return _render(changed)


@routes.delete("/{webhook_id}", summary="Delete a webhook", status_code=204, dependencies=[NoQuery])
async def delete_webhook(
    webhook_id: UUID, owner: OwnerDep, gateway: GatewayDep, actor: ActorDep
) -> Response:
    """Delete a webhook with its secrets and deliveries; pending deliveries are not sent."""
    async with _changing(gateway, owner, actor, webhook_id) as (session, tenant_id):
        await endpoints.remove(session, tenant_id, webhook_id)
    return Response(status_code=204)


@routes.post(
    "/{webhook_id}/roll",
    summary="Roll a webhook's secret",
    status_code=201,
    dependencies=[NoQuery],
    openapi_extra=body_of(RollSecretBody),
    responses=refused_with(409),
)
async def roll_secret(
    webhook_id: UUID,
    owner: OwnerDep,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[RollSecretBody, Depends(JsonBody(RollSecretBody))],
) -> SignedWebhookObject:
    """Replace the signing secret. The answer contains the new secret, which is not shown again.
    During the grace period every delivery is signed with the new secret and the earlier ones.
    """
    async with _changing(gateway, owner, actor, webhook_id) as (session, tenant_id):
        rolled = await endpoints.roll(
            session,
            tenant_id,
            webhook_id,
            sealing=gateway.core.webhook_sealing,
            grace=timedelta(seconds=body.grace_seconds),
        )
    return _render_signed(rolled)


@routes.post(
    "/{webhook_id}/test",
    summary="Send a test event",
    status_code=201,
    dependencies=[NoQuery],
    responses=refused_with(409),
)
async def send_test(
    webhook_id: UUID, owner: OwnerDep, gateway: GatewayDep, actor: ActorDep
) -> DeliveryObject:
    """Send a `webhook.test` event to this webhook only, through normal delivery, within seconds."""
    async with _changing(gateway, owner, actor, webhook_id) as (session, tenant_id):
        delivery = await deliveries.send_test(session, tenant_id, webhook_id)
    return DeliveryObject.model_validate(delivery)


@routes.get("/{webhook_id}/deliveries", summary="List the deliveries of a webhook")
async def list_deliveries(
    webhook_id: UUID,
    owner: OwnerDep,
    gateway: GatewayDep,
    query: Annotated[DeliveriesQuery, InQuery()],
) -> Listed[DeliveryObject]:
    """List deliveries, newest first; `?status=dead`: those that failed finally."""
    async with _reading(gateway, owner, webhook_id) as (session, tenant_id):
        page = await deliveries.list_page(
            session,
            tenant_id,
            webhook_id,
            limit=query.limit,
            after=query.after,
            status=query.status,
        )
    data = [DeliveryObject.model_validate(delivery) for delivery in page.items]
    return Listed[DeliveryObject].of(data, has_more=page.has_more)


@routes.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    summary="Send a delivery again",
    dependencies=[NoQuery],
    responses=refused_with(409),
)
async def redeliver(
    webhook_id: UUID, delivery_id: UUID, owner: OwnerDep, gateway: GatewayDep, actor: ActorDep
) -> DeliveryObject:
    """Send a dead or delivered event again, under the same `webhook-id`, with a fresh set of
    attempts.
    """
    async with _changing(gateway, owner, actor, webhook_id) as (session, tenant_id):
        delivery = await deliveries.redeliver(session, tenant_id, webhook_id, delivery_id)
    return DeliveryObject.model_validate(delivery)


@asynccontextmanager
async def _reading(
    gateway: Gateway, owner: WebhookOwner, webhook_id: UUID | None = None
) -> AsyncIterator[tuple[Session, UUID | None]]:
    if owner.tenant_id is None:
        async with gateway.operators_database.operator() as session:
            yield session, None
    else:
        async with reading_tenant(gateway, owner.tenant_id, work=owner.work) as tenant_session:
            await _check_mode(tenant_session, owner, webhook_id)
            yield tenant_session, owner.tenant_id


@asynccontextmanager
async def _changing(
    gateway: Gateway, owner: WebhookOwner, actor: Actor, webhook_id: UUID | None = None
) -> AsyncIterator[tuple[Session, UUID | None]]:
    if owner.tenant_id is None:
        async with gateway.operators_database.operator(by=actor) as session:
            yield session, None
    else:
        async with changing_tenant(
            gateway, owner.tenant_id, actor, work=owner.work
        ) as tenant_session:
            await _check_mode(tenant_session, owner, webhook_id)
            yield tenant_session, owner.tenant_id


async def _check_mode(session: Session, owner: WebhookOwner, webhook_id: UUID | None) -> None:
    """Raise `NotFound` for a webhook that covers more modes than the caller may see."""
    if webhook_id is None or not owner.test_only:
        return
    found = await endpoints.get(session, owner.tenant_id, webhook_id)
    if found.livemode is not False:
        raise NotFound(f"There is no webhook {webhook_id} here.", param="webhook_id")


def _mode(
    owner: WebhookOwner,
    body: WebhookBody | WebhookChange,
    livemode: bool | None,  # noqa: FBT001 - as in the body
) -> bool | None:
    """The mode of the webhook's events: always test if the caller has a test key."""
    if not owner.test_only:
        return livemode
    if "livemode" in body.model_fields_set and livemode is not False:
        raise Forbidden("livemode: A test key can only create webhooks for events of test calls.")
    return False


def _render(endpoint: WebhookEndpoint) -> WebhookObject:
    return WebhookObject(
        id=endpoint.id,
        tenant_id=endpoint.tenant_id,
        url=endpoint.url,
        events=None if endpoint.event_types is None else list(endpoint.event_types),
        livemode=endpoint.livemode,
        description=endpoint.description,
        disabled_at=endpoint.disabled_at,
        disabled_reason=endpoint.disabled_reason,
        secrets=[SecretObject.model_validate(secret) for secret in endpoint.secrets],
        created_at=endpoint.created_at,
        updated_at=endpoint.updated_at,
    )


def _render_signed(made: NewSecret) -> SignedWebhookObject:
    shown = _render(made.endpoint)
    return SignedWebhookObject(**shown.model_dump(), secret=made.secret.reveal())


router = APIRouter(tags=["admin: webhooks"])
router.include_router(routes, prefix="/webhooks")
router.include_router(
    routes, prefix="/tenants/{tenant_id}/webhooks", dependencies=[Depends(known_tenant)]
)
