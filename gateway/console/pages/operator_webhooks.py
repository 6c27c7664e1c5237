"""Webhooks of the operator and of all tenants: their deliveries, sent again where they failed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.bootstrap import Gateway
from gateway.console.dependencies import FormDep, OperatorChanger, OperatorReader, redirect
from gateway.console.forms import (
    GRACES,
    REFUSALS,
    UNTOUCHED,
    FormState,
    grace,
    one_of,
    refused,
    typed,
)
from gateway.console.new_secrets import Shown, flash_of_secret, made_once, shown_once
from gateway.console.pages.operator_shared import (
    operator_page,
    parts_of_list,
    tenant_page,
    tenant_path,
)
from gateway.console.render import Crumb, Flash
from gateway.errors import InvalidRequest, NotFound
from gateway.identity.sent_forms import FormSecret
from gateway.identity.transactions import changing_as_operator, changing_tenant, reading_as_operator
from gateway.identity.viewers import Permission, Viewer
from gateway.rest.dependencies import GatewayDep
from gateway.tenancy import tenants
from gateway.webhooks import deliveries, endpoints, overview
from gateway.webhooks.endpoints import Session
from gateway.webhooks.events import EventType

PATH = "/console/webhooks"
TAB = "/webhooks"
PAGE_SIZE = 50
STATUSES = ("", "pending", "delivered", "dead")
OWNERS = (("", "All"), ("operator", "The operator's"))
MODES: dict[str, bool | None] = {"both": None, "live": True, "test": False}
DONE = {
    "deleted": Flash("The webhook was deleted, with its deliveries."),
    "tested": Flash("A test event is on its way. Load the page again in a few seconds."),
    "redelivered": Flash("The event is sent again, under the same id."),
    "disabled": Flash("The webhook is disabled. What was waiting is dead.", "warn"),
    "enabled": Flash("The webhook is enabled. Earlier events are not sent by themselves."),
}
USE = "It signs each delivery (webhook-signature). The receiver needs it to check them."

router = APIRouter()


@router.get(PATH)
async def show_webhooks(
    *,
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    of: Literal["", "operator"] = "",
    after: UUID | None = None,
    done: str = "",
) -> Response:
    """List webhooks, newest first, with their last delivery."""
    return await _list(request, gateway, viewer, of=of, after=after, flash=DONE.get(done))


@router.post(PATH)
async def create_webhook(
    request: Request, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Create a webhook of the operator; the page after it shows its secret once."""
    try:
        mode = MODES[one_of(form, "mode", tuple(MODES))]
        events = [one.value for one in EventType if form.get(f"event-{one}")]
        if not events:
            raise InvalidRequest("Choose at least one event.", param="events")
        async with changing_as_operator(gateway, viewer) as session:

            async def make() -> FormSecret:
                made = await endpoints.create(
                    session,
                    None,
                    sealing=gateway.core.webhook_sealing,
                    url=typed(form, "url"),
                    event_types=events,
                    livemode=mode,
                    description=typed(form, "description"),
                    allow_private=gateway.settings.webhook_allow_private,
                    max_endpoints=gateway.settings.max_webhooks,
                )
                return FormSecret(f"{PATH}/{made.endpoint.id}", "this webhook", made.secret)

            path = await made_once(request, session, form, make)
    except REFUSALS as error:
        return await _list(request, gateway, viewer, state=refused("create", form, error))
    return redirect(path)


@router.get("/console/tenants/{tenant_id}/webhooks")
async def show_tenant_webhooks(
    tenant_id: UUID,
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    after: UUID | None = None,
) -> Response:
    """List the webhooks of one tenant."""
    async with reading_as_operator(gateway, viewer) as session:
        tenant = await tenants.get(session, tenant_id)
        found = await overview.list_states(
            session, limit=PAGE_SIZE, after=after, tenant_id=tenant_id
        )
    here = tenant_path(tenant_id, TAB)
    return tenant_page(
        viewer,
        request,
        "tenant_webhooks.html",
        tenant,
        TAB,
        **parts_of_list(found, here, after),
    )


@router.get(PATH + "/{webhook_id}")
async def show_webhook(
    *,
    webhook_id: UUID,
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    status: Literal["", "pending", "delivered", "dead"] = "",
    after: UUID | None = None,
    done: str = "",
    secret: UUID | None = None,
) -> Response:
    """Show a webhook and its deliveries, newest first; once a new secret."""
    shown = await shown_once(gateway, viewer, secret, use=USE)
    flash = flash_of_secret(secret, shown) or DONE.get(done)
    return await _page(
        *(request, gateway, viewer, webhook_id),
        status=status,
        after=after,
        flash=flash,
        shown=shown,
    )


@router.post(PATH + "/{webhook_id}/deliveries/{delivery_id}/redeliver")
async def redeliver(
    webhook_id: UUID,
    delivery_id: UUID,
    request: Request,
    viewer: OperatorChanger,
    gateway: GatewayDep,
) -> Response:
    """Send a delivery again."""
    try:
        async with _changing(gateway, viewer, webhook_id) as (session, tenant_id):
            await deliveries.redeliver(session, tenant_id, webhook_id, delivery_id)
    except REFUSALS as error:
        state = refused("webhook", {}, error)
        return await _page(request, gateway, viewer, webhook_id, state=state)
    return redirect(f"{PATH}/{webhook_id}?done=redelivered")


@router.post(PATH + "/{webhook_id}/{action}")
async def change_webhook(
    *,
    webhook_id: UUID,
    action: str,
    request: Request,
    viewer: OperatorChanger,
    gateway: GatewayDep,
    form: FormDep,
) -> Response:
    """Test, enable, disable, roll or delete a webhook."""
    here = f"{PATH}/{webhook_id}"
    try:
        async with _changing(gateway, viewer, webhook_id) as (session, tenant_id):
            if action == "test":
                await deliveries.send_test(session, tenant_id, webhook_id)
            elif action in {"enable", "disable"}:
                await endpoints.change(
                    session,
                    tenant_id,
                    webhook_id,
                    disabled=action == "disable",
                    allow_private=gateway.settings.webhook_allow_private,
                )
            elif action == "roll":
                valid = grace(form)

                async def make() -> FormSecret:
                    made = await endpoints.roll(
                        session,
                        tenant_id,
                        webhook_id,
                        sealing=gateway.core.webhook_sealing,
                        grace=valid,
                    )
                    return FormSecret(here, "this webhook", made.secret)

                path = await made_once(request, session, form, make)
            elif action == "delete":
                await endpoints.remove(session, tenant_id, webhook_id)
            else:
                raise NotFound(f"A webhook has no action {action[:20]!r}.")
    except REFUSALS as error:
        state = refused("webhook", form, error)
        return await _page(request, gateway, viewer, webhook_id, state=state)
    if action == "roll":
        return redirect(path)
    if action == "delete":
        return redirect(f"{PATH}?done=deleted")
    return redirect(f"{here}?done={'tested' if action == 'test' else action + 'd'}")


@asynccontextmanager
async def _changing(
    gateway: Gateway, viewer: Viewer, webhook_id: UUID
) -> AsyncIterator[tuple[Session, UUID | None]]:
    """Open a transaction of the webhook's owner."""
    async with reading_as_operator(gateway, viewer) as session:
        tenant_id = await overview.owner_of(session, webhook_id)
    if tenant_id is None:
        async with changing_as_operator(gateway, viewer) as house:
            yield house, None
    else:
        async with changing_tenant(
            gateway, viewer, Permission.OPERATOR_CHANGE, tenant_id=tenant_id
        ) as tenant_session:
            yield tenant_session, tenant_id


async def _list(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    *,
    of: str = "",
    after: UUID | None = None,
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
) -> Response:
    async with reading_as_operator(gateway, viewer) as session:
        found = await overview.list_states(
            session, limit=PAGE_SIZE, after=after, of_operator=of == "operator"
        )
    here = f"{PATH}?of={of}" if of else PATH
    return operator_page(
        viewer,
        request,
        "webhooks.html",
        title="Webhooks",
        lead="Signed events, such as a budget that reaches a threshold. Yours get the events of "
        "all tenants and of the house credentials.",
        flash=flash,
        state=state,
        segments=[
            (text, f"{PATH}?of={value}" if value else PATH, value == of) for value, text in OWNERS
        ],
        **parts_of_list(found, here, after),
        events=[one.value for one in EventType if one is not EventType.WEBHOOK_TEST],
    )


async def _page(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    webhook_id: UUID,
    *,
    status: str = "",
    after: UUID | None = None,
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
    shown: Shown | None = None,
) -> Response:
    async with reading_as_operator(gateway, viewer) as session:
        tenant_id = await overview.owner_of(session, webhook_id)
        endpoint = await endpoints.get(session, tenant_id, webhook_id)
        tenant = None if tenant_id is None else await tenants.get(session, tenant_id)
        found = await deliveries.list_page(
            session, tenant_id, webhook_id, limit=PAGE_SIZE, after=after, status=status or None
        )
    here = f"{PATH}/{webhook_id}"
    base = f"{here}?status={status}" if status else here
    return operator_page(
        viewer,
        request,
        "webhook.html",
        title=endpoint.description or "Webhook",
        crumbs=(Crumb("Webhooks", PATH),),
        flash=flash,
        state=state,
        shown=shown,
        endpoint=endpoint,
        tenant=tenant,
        **parts_of_list(found, base, after),
        tries=deliveries.TRIES,
        graces=GRACES,
        segments=[
            (one.capitalize() or "All", f"{here}?status={one}" if one else here, one == status)
            for one in STATUSES
        ],
        chosen=status,
    )
