"""A tenant's API keys: list, create, rename, roll with a grace, and revoke."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from starlette.responses import Response

from gateway.console import forms
from gateway.console.connection_snippets import curl_of
from gateway.console.dependencies import FormDep, redirect
from gateway.console.forms import UNTOUCHED, FormState, typed
from gateway.console.new_secrets import Shown, flash_of_secret
from gateway.console.portal import ChangerPortal, Portal, ReaderPortal
from gateway.console.render import Crumb, Flash
from gateway.console.tenant_forms import (
    PAGE_SIZE,
    REFUSALS,
    ObjectId,
    administrator,
    find_user,
    flash_of,
    state_of,
    with_own_expiry,
)
from gateway.domain import Scope
from gateway.errors import InvalidRequest, NotFound
from gateway.identity.sent_forms import FormSecret
from gateway.identity.viewers import Permission
from gateway.tenancy import api_keys, key_use, self_service, users
from gateway.tenancy.api_keys import IssuedKey, KeyInfo

PATH = "/console/keys"
SCOPES: Mapping[Scope, str] = {
    Scope.IMAGES_WRITE: "Make and edit images",
    Scope.IMAGES_READ: "See images made so far",
    Scope.USAGE_READ: "See usage, costs, budgets and requests",
    Scope.CREDENTIALS_WRITE: "Store credentials of providers",
    Scope.TENANT_ADMIN: "Administer keys, users, limits and webhooks",
}
USUAL_SCOPES = frozenset({Scope.IMAGES_WRITE, Scope.IMAGES_READ, Scope.USAGE_READ})
"""The scopes that the form offers at first: those of an application."""
DONE = {"revoked": "The key was revoked.", "renamed": "The key was renamed."}

router = APIRouter()


@dataclass(frozen=True, slots=True)
class ShownKey:
    """A key with what a page shows beside it. `status`: a word, and the kind of its badge."""

    key: KeyInfo
    user: str | None
    last_used_at: datetime | None
    status: tuple[str, str]

    @property
    def label(self) -> str:
        """The name, or a text for keys without one."""
        return self.key.name or "Key without a name"

    @property
    def is_usable(self) -> bool:
        """Tell whether requests with it are accepted."""
        return self.status[0] == "active"


@router.get(PATH)
async def list_keys(
    portal: ReaderPortal, after: Annotated[UUID | None, Query()] = None, done: str = ""
) -> Response:
    """List the keys of one mode, newest first."""
    tenant_id = portal.tenant_id
    async with portal.reading(Permission.TENANT_READ) as session:
        page = await api_keys.list_page(
            session, tenant_id, limit=PAGE_SIZE, after=after, livemode=portal.livemode
        )
        uses = await key_use.last_uses(session, tenant_id, {key.root_id for key in page.items})
        names = await users.names_of(session, tenant_id, {key.user_id for key in page.items})
    return portal.page(
        "tenant/keys.html",
        title="API keys",
        lead=f"The {portal.mode} keys with which applications call the gateway. A key's secret is "
        "shown once, when it is made.",
        flash=flash_of(DONE, done),
        keys=[_shown(key, names, uses) for key in page.items],
        newest=PATH if after else "",
        older=f"{PATH}?after={page.items[-1].id}" if page.has_more else "",
    )


@router.get(PATH + "/new")
async def show_new(portal: ChangerPortal) -> Response:
    """Show the form of a new key."""
    return await _form(portal, UNTOUCHED)


@router.post(PATH + "/new")
async def create_key(portal: ChangerPortal, form: FormDep) -> Response:
    """Create a key, and show its secret once."""
    caller = await administrator(portal)
    try:
        livemode = forms.one_of(form, "livemode", ("live", "test")) == "live"
        expires_at = forms.moment_or_none(form, "expires_at", portal.viewer.time_zone)
        if expires_at is not None and expires_at <= datetime.now(UTC):
            raise InvalidRequest("The expiry must be in the future.", param="expires_at")
        models = _chosen(form, "model.")
        if unknown := set(models) - set(portal.gateway.core.catalog.models):
            raise NotFound(f"There is no model {min(unknown)!r}.", param="models")
        async with portal.changing(Permission.TENANT_CHANGE) as session:

            async def make() -> FormSecret:
                issued = await self_service.issue_key(
                    session,
                    await with_own_expiry(session, portal, caller),
                    pepper=portal.gateway.core.pepper,
                    livemode=livemode,
                    name=typed(form, "name") or None,
                    user_id=await find_user(session, caller.tenant_id, typed(form, "user")),
                    scopes=_chosen(form, "scope."),
                    models=models or None,
                    expires_at=expires_at,
                )
                return _new_secret(issued)

            path = await portal.made_once(session, form, make)
    except REFUSALS as error:
        return await _form(portal, state_of("key", form, error, fields={"user_id": "user"}))
    return redirect(path)


@router.get(PATH + "/{object_id}")
async def show_key(
    portal: ReaderPortal, object_id: ObjectId, done: str = "", secret: UUID | None = None
) -> Response:
    """Show one key with the forms that change it; once with its new secret."""
    shown = await portal.shown_once(secret)
    if shown is not None:
        return await _secret(portal, object_id, shown, was_rolled=done == "rolled")
    flash = flash_of_secret(secret, shown) or flash_of(DONE, done)
    return await _key_page(portal, object_id, flash=flash)


@router.post(PATH + "/{object_id}/rename")
async def rename_key(portal: ChangerPortal, object_id: ObjectId, form: FormDep) -> Response:
    """Rename a key and its whole line."""
    caller = await administrator(portal)
    try:
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            await self_service.rename_key(session, caller, object_id, typed(form, "name") or None)
    except REFUSALS as error:
        return await _key_page(portal, object_id, state_of("rename", form, error))
    return redirect(f"{PATH}/{object_id}?done=renamed")


@router.post(PATH + "/{object_id}/roll")
async def roll_key(portal: ChangerPortal, object_id: ObjectId, form: FormDep) -> Response:
    """Roll a key, and show the successor's secret once."""
    caller = await administrator(portal)
    try:
        grace = forms.grace(form)
        async with portal.changing(Permission.TENANT_CHANGE) as session:

            async def make() -> FormSecret:
                issued = await self_service.roll_key(
                    session,
                    await with_own_expiry(session, portal, caller),
                    object_id,
                    pepper=portal.gateway.core.pepper,
                    grace=grace,
                )
                return _new_secret(issued, "?done=rolled")

            path = await portal.made_once(session, form, make)
    except REFUSALS as error:
        return await _key_page(portal, object_id, state_of("roll", form, error))
    return redirect(path)


@router.post(PATH + "/{object_id}/revoke")
async def revoke_key(portal: ChangerPortal, object_id: ObjectId) -> Response:
    """Revoke a key, from the next request on."""
    caller = await administrator(portal)
    try:
        async with portal.changing(Permission.TENANT_CHANGE) as session:
            await self_service.revoke_key(session, caller, object_id)
    except REFUSALS as error:
        return await _key_page(portal, object_id, state_of("revoke", {}, error))
    return redirect(f"{PATH}?done=revoked")


async def _form(portal: Portal, state: FormState) -> Response:
    """Render the form of a new key, with the scopes and models that the viewer can grant."""
    caller = await administrator(portal)
    models = sorted(caller.models or portal.gateway.core.catalog.models)
    was_sent = state.is_open("key")
    chosen = set(_chosen(state.values, "scope.")) if was_sent else USUAL_SCOPES
    return portal.page(
        "tenant/key_new.html",
        title="New API key",
        crumbs=[Crumb("API keys", PATH)],
        status=state.status,
        state=state,
        scopes=[
            (scope.value, text, scope in chosen)
            for scope, text in SCOPES.items()
            if scope in caller.scopes
        ],
        models=[(model, model in set(_chosen(state.values, "model."))) for model in models],
        modes=[("live", "Live"), ("test", "Test: the sandbox, free of charge")]
        if portal.viewer.modes[0]
        else [("test", "Test: the sandbox, free of charge")],
        is_limited=caller.models is not None,
    )


async def _key_page(
    portal: Portal, key_id: UUID, state: FormState = UNTOUCHED, *, flash: Flash | None = None
) -> Response:
    """Render the page of a key.

    Raises:
        NotFound: there is no such key that the viewer may see.
    """
    caller = await administrator(portal)
    async with portal.reading(Permission.TENANT_READ) as session:
        key = await self_service.get_key(session, caller, key_id)
        uses = await key_use.last_uses(session, caller.tenant_id, {key.root_id})
        names = await users.names_of(session, caller.tenant_id, {key.user_id})
    shown = _shown(key, names, uses)
    return portal.in_mode(livemode=key.livemode).page(
        "tenant/key.html",
        title=shown.label,
        crumbs=[Crumb("API keys", PATH)],
        status=state.status,
        flash=flash,
        shown=shown,
        key=key,
        state=state,
        graces=forms.GRACES,
        scope_names=SCOPES,
        mode="live" if key.livemode else "test",
    )


def _new_secret(issued: IssuedKey, query: str = "") -> FormSecret:
    return FormSecret(f"{PATH}/{issued.id}{query}", issued.name or "the new key", issued.secret)


async def _secret(portal: Portal, key_id: UUID, shown: Shown, *, was_rolled: bool) -> Response:
    """Show a new secret: on this page alone, which no cache keeps."""
    async with portal.reading(Permission.TENANT_READ) as session:
        key = await api_keys.get(session, portal.tenant_id, key_id)
    return portal.in_mode(livemode=key.livemode).page(
        "tenant/key_secret.html",
        title="Key rolled" if was_rolled else "Key created",
        crumbs=[Crumb("API keys", PATH)],
        key=key,
        secret=shown.secret,
        curl=curl_of(portal.gateway.settings.public_url, shown.secret),
        was_rolled=was_rolled,
    )


def _shown(key: KeyInfo, names: Mapping[UUID, str], uses: Mapping[UUID, datetime]) -> ShownKey:
    user = None if key.user_id is None else names.get(key.user_id, str(key.user_id))
    return ShownKey(key, user, uses.get(key.root_id), _status(key))


def _status(key: KeyInfo) -> tuple[str, str]:
    if key.revoked_at is not None:
        return "revoked", "bad"
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        return "expired", "warn"
    return "active", "good"


def _chosen(form: Mapping[str, str], prefix: str) -> list[str]:
    """The names of the boxes that are ticked: `scope.images:read` is one."""
    return [name.removeprefix(prefix) for name in form if name.startswith(prefix)]
