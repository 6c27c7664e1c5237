"""Commands for webhooks: a tenant's with --tenant, otherwise the operator's own."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Annotated, Any, TypeVar
from uuid import UUID

import typer

from gateway.cli.amounts import parse_duration
from gateway.cli.output import (
    JsonOption,
    console,
    fields,
    invoker,
    print_json,
    read,
    run,
    show,
)
from gateway.core import Core, Reader
from gateway.tenancy import lookups
from gateway.webhooks import deliveries, endpoints
from gateway.webhooks.deliveries import Delivery
from gateway.webhooks.endpoints import NewSecret, Session, WebhookEndpoint
from gateway.webhooks.events import EventType

T = TypeVar("T")
webhooks = typer.Typer(help="Webhooks and their deliveries.", no_args_is_help=True)
SHOWN_AT_MOST = 1000

OwnerOption = Annotated[
    str | None,
    typer.Option("--tenant", help="Name or id of the tenant. Default: the operator's own."),
]
IdArgument = Annotated[
    str,
    typer.Argument(metavar="WEBHOOK", help="Id of the webhook, or its last four characters."),
]


class Mode(StrEnum):
    """The mode of the calls that the events are about."""

    LIVE = "live"
    TEST = "test"
    BOTH = "both"


class Status(StrEnum):
    """The state of a delivery."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


@webhooks.command("create")
def create_webhook(
    url: Annotated[str, typer.Argument(help="https://…, without a password.")],
    tenant: OwnerOption = None,
    events: Annotated[
        str | None, typer.Option(help=f"Comma-separated: {', '.join(EventType)}. Default: all.")
    ] = None,
    mode: Annotated[Mode, typer.Option(help="Events of live or test calls.")] = Mode.BOTH,
    description: Annotated[str, typer.Option(help="Shown in lists.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Create a webhook for an address. Its secret is shown only once."""

    async def work(core: Core, session: Session, tenant_id: UUID | None) -> NewSecret:
        return await endpoints.create(
            session,
            tenant_id,
            sealing=core.webhook_sealing,
            url=url,
            event_types=None if events is None else [one.strip() for one in events.split(",")],
            livemode=None if mode is Mode.BOTH else mode is Mode.LIVE,
            description=description,
            allow_private=core.settings.webhook_allow_private,
            max_endpoints=core.settings.max_webhooks,
        )

    _show_secret(_run(tenant, work), as_json=as_json)


@webhooks.command("list")
def list_webhooks(tenant: OwnerOption = None, as_json: JsonOption = False) -> None:
    """List the webhooks of a tenant, or the operator's own, without secrets."""

    async def work(session: Session, tenant_id: UUID | None) -> list[WebhookEndpoint]:
        page = await endpoints.list_page(session, tenant_id, limit=SHOWN_AT_MOST)
        return list(page.items)

    found = _read(tenant, work)
    if as_json:
        print_json([_row(endpoint) for endpoint in found])
        return
    show(
        [
            {
                "id": endpoint.id,
                "url": endpoint.url,
                "events": endpoint.event_types or "all",
                "mode": _mode(endpoint.livemode),
                "secrets": len(endpoint.secrets),
                "state": "on"
                if endpoint.disabled_at is None
                else f"off ({endpoint.disabled_reason})",
                "description": endpoint.description,
            }
            for endpoint in found
        ],
        as_json=False,
        empty="No webhooks yet: events are only logged.",
    )


@webhooks.command("roll")
def roll_secret(
    webhook_id: IdArgument,
    tenant: OwnerOption = None,
    grace: Annotated[
        str, typer.Option(help="Time for which earlier secrets keep signing too.")
    ] = "24h",
    as_json: JsonOption = False,
) -> None:
    """Create a new secret for a webhook. It is shown only once."""
    grace_time = parse_duration(grace)

    async def work(core: Core, session: Session, tenant_id: UUID | None) -> NewSecret:
        return await endpoints.roll(
            session,
            tenant_id,
            await _find(session, tenant_id, webhook_id),
            sealing=core.webhook_sealing,
            grace=grace_time,
        )

    _show_secret(_run(tenant, work), as_json=as_json)


@webhooks.command("disable")
def disable_webhook(
    webhook_id: IdArgument, tenant: OwnerOption = None, as_json: JsonOption = False
) -> None:
    """Disable a webhook. Pending deliveries are marked dead."""
    _switch(webhook_id, tenant, disabled=True, as_json=as_json)


@webhooks.command("enable")
def enable_webhook(
    webhook_id: IdArgument, tenant: OwnerOption = None, as_json: JsonOption = False
) -> None:
    """Enable a webhook, for events from now on."""
    _switch(webhook_id, tenant, disabled=False, as_json=as_json)


@webhooks.command("delete")
def delete_webhook(
    webhook_id: IdArgument, tenant: OwnerOption = None, as_json: JsonOption = False
) -> None:
    """Delete a webhook, its secrets and its deliveries."""

    async def work(_core: Core, session: Session, tenant_id: UUID | None) -> UUID:
        found = await _find(session, tenant_id, webhook_id)
        await endpoints.remove(session, tenant_id, found)
        return found

    removed = _run(tenant, work)
    if as_json:
        print_json({"id": removed, "deleted": True})
    else:
        console.print("Deleted.")


@webhooks.command("test")
def send_test(
    webhook_id: IdArgument, tenant: OwnerOption = None, as_json: JsonOption = False
) -> None:
    """Send a `webhook.test` event to a webhook; the running gateway delivers it within seconds."""

    async def work(_core: Core, session: Session, tenant_id: UUID | None) -> Delivery:
        found = await _find(session, tenant_id, webhook_id)
        return await deliveries.send_test(session, tenant_id, found)

    sent = _run(tenant, work)
    if as_json:
        print_json(sent)
    else:
        console.print(f"Delivery {sent.id} is on its way: gateway webhooks deliveries {webhook_id}")


@webhooks.command("deliveries")
def list_deliveries(
    webhook_id: IdArgument,
    tenant: OwnerOption = None,
    status: Annotated[Status | None, typer.Option(help="Only deliveries in this state.")] = None,
    limit: Annotated[int, typer.Option(help="Maximum number.", min=1, max=SHOWN_AT_MOST)] = 50,
    as_json: JsonOption = False,
) -> None:
    """List the deliveries of a webhook, newest first, including dead ones."""

    async def work(session: Session, tenant_id: UUID | None) -> list[Delivery]:
        found = await _find(session, tenant_id, webhook_id)
        page = await deliveries.list_page(session, tenant_id, found, limit=limit, status=status)
        return list(page.items)

    found = _read(tenant, work)
    if as_json:
        print_json(found)
        return
    show(
        [
            {
                **fields(delivery, "id", "event_type", "status", "attempts"),
                "last": delivery.last_error or delivery.last_status,
                **fields(delivery, "next_attempt_at", "created_at"),
            }
            for delivery in found
        ],
        as_json=False,
        empty="No deliveries to this webhook.",
    )


@webhooks.command("redeliver")
def redeliver(
    webhook_id: IdArgument,
    delivery_id: Annotated[
        str,
        typer.Argument(metavar="DELIVERY", help="Id of the delivery, or its last four characters."),
    ],
    tenant: OwnerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a delivery again that is dead, or that was delivered and lost."""

    async def work(_core: Core, session: Session, tenant_id: UUID | None) -> Delivery:
        found = await _find(session, tenant_id, webhook_id)
        page = await deliveries.list_page(session, tenant_id, found, limit=SHOWN_AT_MOST)
        known = [delivery.id for delivery in page.items]
        one = lookups.find_among(known, delivery_id, noun="delivery", param="delivery_id")
        return await deliveries.redeliver(session, tenant_id, found, one)

    sent = _run(tenant, work)
    if as_json:
        print_json(sent)
    else:
        console.print(f"Delivery {sent.id} will be attempted again within seconds.")


async def _find(session: Session, tenant_id: UUID | None, text: str) -> UUID:
    page = await endpoints.list_page(session, tenant_id, limit=SHOWN_AT_MOST)
    known = [endpoint.id for endpoint in page.items]
    return lookups.find_among(known, text, noun="webhook", param="webhook_id")


def _switch(webhook_id: str, tenant: str | None, *, disabled: bool, as_json: bool) -> None:
    async def work(core: Core, session: Session, tenant_id: UUID | None) -> WebhookEndpoint:
        return await endpoints.change(
            session,
            tenant_id,
            await _find(session, tenant_id, webhook_id),
            disabled=disabled,
            allow_private=core.settings.webhook_allow_private,
        )

    changed = _run(tenant, work)
    if as_json:
        print_json(_row(changed))
    else:
        console.print("Disabled." if disabled else "Enabled.")


def _run(tenant: str | None, work: Callable[[Core, Session, UUID | None], Awaitable[T]]) -> T:
    """Run `work` in one transaction for the tenant, or for the operator if none is named."""

    async def opened(core: Core) -> T:
        async with _session(core, tenant) as (session, tenant_id):
            return await work(core, session, tenant_id)

    return run(opened)


def _read(tenant: str | None, work: Callable[[Session, UUID | None], Awaitable[T]]) -> T:
    """Run read-only work in the same way."""

    async def opened(core: Reader) -> T:
        async with _session(core, tenant) as (session, tenant_id):
            return await work(session, tenant_id)

    return read(opened)


@asynccontextmanager
async def _session(core: Reader, tenant: str | None) -> AsyncIterator[tuple[Session, UUID | None]]:
    async with core.database.operator(by=invoker()) as session:
        if tenant is None:
            yield session, None
            return
        tenant_id = (await lookups.find_tenant(session, tenant)).id
    async with core.database.tenant(tenant_id, by=invoker()) as tenant_session:
        yield tenant_session, tenant_id


def _show_secret(made: NewSecret, *, as_json: bool) -> None:
    if as_json:
        print_json({**_row(made.endpoint), "secret": made.secret.reveal()})
        return
    console.print(f"Webhook {made.endpoint.id}")
    console.print(f"Secret, shown only once: {made.secret.reveal()}")


def _mode(livemode: bool | None) -> str:
    return "both" if livemode is None else "live" if livemode else "test"


def _row(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        **fields(endpoint, "id", "tenant_id", "url"),
        "events": None if endpoint.event_types is None else list(endpoint.event_types),
        **fields(endpoint, "livemode", "description", "disabled_at", "disabled_reason"),
        "secrets_valid_until": [secret.valid_until for secret in endpoint.secrets],
        **fields(endpoint, "created_at", "updated_at"),
    }
