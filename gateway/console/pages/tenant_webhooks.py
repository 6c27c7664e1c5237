"""A tenant's webhooks: create, test, disable, roll the secret, and redeliver."""

from collections.abc import Mapping
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.responses import Response

from gateway.console import forms
from gateway.console.dependencies import FormDep, redirect
from gateway.console.forms import UNTOUCHED, FormState, typed
from gateway.console.new_secrets import Shown, flash_of_secret
from gateway.console.portal import ChangerPortal, Portal, ReaderPortal
from gateway.console.render import Crumb, Flash
from gateway.console.tenant_forms import PAGE_SIZE, REFUSALS, ObjectId, flash_of, state_of
from gateway.db.engine import TenantSession
from gateway.errors import InvalidRequest, NotFound
from gateway.identity.sent_forms import FormSecret
from gateway.identity.viewers import Permission
from gateway.webhooks import deliveries, endpoints
from gateway.webhooks.endpoints import NewSecret, WebhookEndpoint
from gateway.webhooks.events import EventType

PATH = "/console/portal/webhooks"
EVENTS: Mapping[EventType, str] = {
    EventType.BUDGET_THRESHOLD_REACHED: "A budget reached one of its warnings",
    EventType.BUDGET_EXCEEDED: "A budget refused a call",
}
MODES: Mapping[str, bool | None] = {"live": True, "test": False, "both": None}
MODE_NAMES = {"live": "Live calls", "test": "Test calls", "both": "Live and test calls"}
STATUSES = ("pending", "delivered", "dead")
DONE = {
    "deleted": "The webhook was deleted.",
    "disabled": "The webhook was disabled. Events that occur meanwhile are not delivered later.",
    "enabled": "The webhook was enabled.",
    "tested": "A test event is on its way. Its delivery appears below in a few seconds.",
    "redelivered": "The delivery is sent again.",
}

router = APIRouter()


@router.get(PATH)
async def list_webhooks(portal: ReaderPortal, done: str = "") -> Response:
    """List webhooks, newest first."""
    async with portal.reading(Permission.TENANT_READ) as session:
        page = await endpoints.list_page(
            session,
            portal.tenant_id,
            limit=portal.gateway.settings.max_webhooks,
            test_only=_is_test_only(portal),
        )
    return portal.page(
        "tenant/webhooks.html",
        title="Webhooks",
        lead="Addresses of yours that are told when something happens, in signed requests.",
        flash=flash_of(DONE, done),
        hooks=[hook for hook in page.items if hook.livemode in {None, portal.livemode}],
        event_names=EVENTS,
    )


@router.get(PATH + "/new")
async def show_new(portal: ChangerPortal) -> Response:
    """Show the form of a new webhook."""
    return _form(portal, UNTOUCHED)


@router.post(PATH + "/new")
async def create_webhook(portal: ChangerPortal, form: FormDep) -> Response:
    """Create a webhook, and show its signing secret once."""
    try:
        livemode = MODES[forms.one_of(form, "livemode", _modes(portal))]
        events = [event for event in EVENTS if f"event.{event}" in form]
        if not events:
            raise InvalidRequest("Choose at least one event.", param="events")
        async with portal.changing(Permission.TENANT_CHANGE) as session:

            async def make() -> FormSecret:
                made = await endpoints.create(
                    session,
                    portal.tenant_id,
                    sealing=portal.gateway.core.webhook_sealing,
                    url=typed(form, "url"),
                    event_types=None if len(events) == len(EVENTS) else events,
                    livemode=livemode,
                    description=typed(form, "description"),
                    allow_private=portal.gateway.settings.webhook_allow_private,
                    max_endpoints=portal.gateway.settings.max_webhooks,
                )
                return _new_secret(made)

            path = await portal.made_once(session, form, make)
    except REFUSALS as error:
        return _form(portal, state_of("webhook", form, error))
    return redirect(path)


@router.get(PATH + "/{object_id}")
async def show_webhook(
    *,
    portal: ReaderPortal,
    object_id: ObjectId,
    status: str = "",
    after: Annotated[UUID | None, Query()] = None,
    done: str = "",
    secret: UUID | None = None,
) -> Response:
    """Show one webhook with its deliveries; once its new secret."""
    shown = await portal.shown_once(secret)
    if shown is not None:
        return _secret(portal, object_id, shown, was_rolled=done == "rolled")
    flash = flash_of_secret(secret, shown) or flash_of(DONE, done)
    return await _hook_page(portal, object_id, status=status, after=after, flash=flash)


@router.post(PATH + "/{object_id}/test")
async def send_test(portal: ChangerPortal, object_id: ObjectId) -> Response:
    """Send a test event."""
    try:
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            await _find(session, portal, object_id)
            await deliveries.send_test(session, portal.tenant_id, object_id)
    except REFUSALS as error:
        return await _hook_page(portal, object_id, state_of("hook", {}, error))
    return redirect(f"{PATH}/{object_id}?done=tested")


@router.post(PATH + "/{object_id}/status")
async def set_status(portal: ChangerPortal, object_id: ObjectId, form: FormDep) -> Response:
    """Disable or enable a webhook."""
    is_disabled = forms.one_of(form, "status", ("enabled", "disabled")) == "disabled"
    try:
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            await _find(session, portal, object_id)
            await endpoints.change(
                session,
                portal.tenant_id,
                object_id,
                disabled=is_disabled,
                allow_private=portal.gateway.settings.webhook_allow_private,
            )
    except REFUSALS as error:
        return await _hook_page(portal, object_id, state_of("hook", form, error))
    return redirect(f"{PATH}/{object_id}?done={'disabled' if is_disabled else 'enabled'}")


@router.post(PATH + "/{object_id}/roll")
async def roll_secret(portal: ChangerPortal, object_id: ObjectId, form: FormDep) -> Response:
    """Roll the signing secret, and show the new one once."""
    try:
        grace = forms.grace(form)
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            await _find(session, portal, object_id)

            async def make() -> FormSecret:
                made = await endpoints.roll(
                    session,
                    portal.tenant_id,
                    object_id,
                    sealing=portal.gateway.core.webhook_sealing,
                    grace=grace,
                )
                return _new_secret(made, "?done=rolled")

            path = await portal.made_once(session, form, make)
    except REFUSALS as error:
        return await _hook_page(portal, object_id, state_of("hook", form, error))
    return redirect(path)


@router.post(PATH + "/{object_id}/delete")
async def delete_webhook(portal: ChangerPortal, object_id: ObjectId) -> Response:
    """Delete a webhook with its deliveries."""
    async with portal.changing(Permission.TENANT_CHANGE) as session:
        await _find(session, portal, object_id)
        await endpoints.remove(session, portal.tenant_id, object_id)
    return redirect(f"{PATH}?done=deleted")


@router.post(PATH + "/{object_id}/deliveries/{delivery_id}/redeliver")
async def redeliver(portal: ChangerPortal, object_id: ObjectId, delivery_id: str) -> Response:
    """Send a delivery again."""
    given = forms.uuid_or_none(delivery_id)
    if given is None:
        raise NotFound("There is no such delivery.", param="delivery_id")
    try:
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            await _find(session, portal, object_id)
            await deliveries.redeliver(session, portal.tenant_id, object_id, given)
    except REFUSALS as error:
        return await _hook_page(portal, object_id, state_of("hook", {}, error))
    return redirect(f"{PATH}/{object_id}?done=redelivered")


def _is_test_only(portal: Portal) -> bool:
    """As over REST, a test key sees and makes webhooks for test calls alone."""
    return True not in portal.viewer.modes


def _modes(portal: Portal) -> tuple[str, ...]:
    return ("test",) if _is_test_only(portal) else tuple(MODES)


async def _find(session: TenantSession, portal: Portal, hook_id: UUID) -> WebhookEndpoint:
    """Return a webhook that the viewer may see.

    Raises:
        NotFound: there is none.
    """
    found = await endpoints.get(session, portal.tenant_id, hook_id)
    if _is_test_only(portal) and found.livemode is not False:
        raise NotFound(f"There is no webhook {hook_id} here.", param="webhook_id")
    return found


def _form(portal: Portal, state: FormState) -> Response:
    was_sent = state.is_open("webhook")
    return portal.page(
        "tenant/webhook_new.html",
        title="New webhook",
        crumbs=[Crumb("Webhooks", PATH)],
        status=state.status,
        state=state,
        events=[
            (event.value, text, not was_sent or f"event.{event}" in state.values)
            for event, text in EVENTS.items()
        ],
        modes=[(mode, MODE_NAMES[mode]) for mode in _modes(portal)],
    )


async def _hook_page(
    portal: Portal,
    hook_id: UUID,
    state: FormState = UNTOUCHED,
    *,
    status: str = "",
    after: UUID | None = None,
    flash: Flash | None = None,
) -> Response:
    if status and status not in STATUSES:
        raise InvalidRequest(f"status must be one of {', '.join(STATUSES)}.", param="status")
    async with portal.reading(Permission.TENANT_READ) as session:
        hook = await _find(session, portal, hook_id)
        page = await deliveries.list_page(
            session,
            portal.tenant_id,
            hook_id,
            limit=PAGE_SIZE,
            after=after,
            status=status or None,
        )
    path = f"{PATH}/{hook_id}"
    query = f"&status={status}" if status else ""
    return portal.page(
        "tenant/webhook.html",
        title=hook.description or "Webhook",
        crumbs=[Crumb("Webhooks", PATH)],
        status=state.status,
        flash=flash,
        state=state,
        hook=hook,
        event_names=EVENTS,
        mode_name=next(MODE_NAMES[name] for name, one in MODES.items() if one is hook.livemode),
        graces=forms.GRACES,
        deliveries=page.items,
        shown=[
            (name.capitalize(), f"{path}?status={name}" if name != "all" else path, name == asked)
            for asked in [status or "all"]
            for name in ("all", *STATUSES)
        ],
        newest=f"{path}?{query[1:]}" if after else "",
        older=f"{path}?after={page.items[-1].id}{query}" if page.has_more else "",
    )


def _new_secret(made: NewSecret, query: str = "") -> FormSecret:
    return FormSecret(f"{PATH}/{made.endpoint.id}{query}", "this webhook", made.secret)


def _secret(portal: Portal, hook_id: UUID, shown: Shown, *, was_rolled: bool) -> Response:
    """Show a new signing secret: on this page alone, which no cache keeps."""
    return portal.page(
        "tenant/webhook_secret.html",
        title="Signing secret rolled" if was_rolled else "Webhook created",
        crumbs=[Crumb("Webhooks", PATH)],
        secret=shown.secret,
        path=f"{PATH}/{hook_id}",
    )
