"""Credentials, the tenant's and each member's own: stored, tested and removed, never shown."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID

from fastapi import APIRouter
from starlette.responses import Response

from gateway.catalog.vendors import Vendor
from gateway.console import forms
from gateway.console.dependencies import FormDep, redirect
from gateway.console.forms import UNTOUCHED, FormState, typed
from gateway.console.portal import CredentialPortal, Portal
from gateway.console.render import Flash
from gateway.console.tenant_forms import REFUSALS, state_of
from gateway.domain import Caller, SecretText
from gateway.errors import Forbidden
from gateway.identity.viewers import Permission, Viewer
from gateway.providers.base import CredentialState
from gateway.tenancy import credentials, users
from gateway.tenancy.credentials import CredentialInfo

PATH = "/console/credentials"
Owner = Literal["tenant", "user"]
OWNERS: tuple[Owner, Owner] = ("tenant", "user")
DONE: Mapping[str, Flash] = {
    "stored": Flash("The key was stored. Calls use it from now on."),
    "removed": Flash("The key was removed. Calls use the tenant's or the gateway's, if any."),
    CredentialState.VALID: Flash("The provider accepts the key."),
    CredentialState.INVALID: Flash(
        "The provider refuses the key. Replace it by one that is valid there.", "bad"
    ),
    CredentialState.UNREACHABLE: Flash(
        "The provider could not be reached. This says nothing about the key; try again.", "warn"
    ),
}

router = APIRouter()


@dataclass(frozen=True, slots=True)
class KeySlot:
    """The place of one owner's key for one provider. `stored` is None while it is empty."""

    provider: str
    title: str
    stored: CredentialInfo | None


@dataclass(frozen=True, slots=True)
class KeySlots:
    """The places of one owner, and the words for them."""

    owner: Owner
    heading: str
    note: str
    slots: tuple[KeySlot, ...]


@router.get(PATH)
async def show_credentials(portal: CredentialPortal, done: str = "") -> Response:
    """Show which credentials are stored, by their last four characters."""
    return await _page(portal, flash=DONE.get(done))


@router.post(PATH + "/{provider}")
async def store_credential(portal: CredentialPortal, provider: str, form: FormDep) -> Response:
    """Store or replace a key."""
    caller = await _caller(portal, form)
    try:
        async with portal.changing(Permission.OWN_CREDENTIALS) as session:
            await credentials.store(
                session,
                caller.tenant_id,
                vault=portal.gateway.core.vault,
                user_id=caller.user_id,
                provider=provider,
                secret=SecretText(typed(form, "secret")),
                vendors=portal.gateway.core.catalog.vendors,
            )
    except REFUSALS as error:
        # The secret is not sent back.
        shown = {"secret": "", "owner": typed(form, "owner")}
        return await _page(portal, state_of(_name(form, provider), shown, error))
    return redirect(f"{PATH}?done=stored")


@router.post(PATH + "/{provider}/test")
async def test_credential(portal: CredentialPortal, provider: str, form: FormDep) -> Response:
    """Test a key by a call that costs nothing."""
    caller = await _caller(portal, form)
    try:
        tested = await portal.gateway.credential_tests.run(caller, provider)
    except REFUSALS as error:
        return await _page(portal, state_of(_name(form, provider), {}, error))
    return redirect(f"{PATH}?done={tested.state}")


@router.post(PATH + "/{provider}/remove")
async def remove_credential(portal: CredentialPortal, provider: str, form: FormDep) -> Response:
    """Remove a key."""
    caller = await _caller(portal, form)
    try:
        credentials.check_provider(provider, portal.gateway.core.catalog.vendors)
        async with portal.changing(Permission.OWN_CREDENTIALS) as session:
            await credentials.delete(
                session, caller.tenant_id, user_id=caller.user_id, provider=provider
            )
    except REFUSALS as error:
        return await _page(portal, state_of(_name(form, provider), {}, error))
    return redirect(f"{PATH}?done=removed")


async def _caller(portal: Portal, form: FormDep) -> Caller:
    """Build the caller for the owner that a form names.

    Raises:
        Forbidden: the viewer may not change this owner's keys, or has a test key.
        InvalidRequest: there is no such owner.
    """
    owner = forms.one_of(form, "owner", OWNERS)
    if owner not in owners_of(portal.viewer):
        raise Forbidden(
            "You may store credentials of your own only. Ask an administrator for the tenant's."
            if owner == "tenant"
            else "You have no user, to whom a key could belong.",
            code="role_not_allowed",
        )
    if True not in portal.viewer.modes:
        raise Forbidden("Credentials are used by live calls only. Sign in with a live key.")
    caller = await portal.in_mode(livemode=True).caller()
    return caller if owner == "user" else replace(caller, user_id=None)


def owners_of(viewer: Viewer) -> tuple[Owner, ...]:
    """Return the owners whose credentials a viewer may store.

    As over REST, the key of a user stores that user's, any other key the tenant's. Of people, an
    administrator may store the tenant's, and each their own.
    """
    if not viewer.may(Permission.OWN_CREDENTIALS):
        return ()
    if viewer.key is not None:
        return ("tenant",) if viewer.user_id is None else ("user",)
    found: list[Owner] = ["tenant"] if viewer.may(Permission.TENANT_CHANGE) else []
    return (*found, *(("user",) if viewer.user_id is not None else ()))


async def _page(
    portal: Portal, state: FormState = UNTOUCHED, *, flash: Flash | None = None
) -> Response:
    viewer, tenant_id = portal.viewer, portal.tenant_id
    sees_all = viewer.may(Permission.TENANT_READ)
    async with portal.reading(Permission.OWN_CREDENTIALS) as session:
        # They are used by live calls, which a test key does not see.
        is_live = True in viewer.modes
        stored = await credentials.list_credentials(session, tenant_id) if is_live else []
        names = await users.names_of(session, tenant_id, {one.user_id for one in stored})
    vendors = portal.gateway.core.catalog.vendors
    allowed = owners_of(viewer)
    return portal.page(
        "tenant/credentials.html",
        title="Credentials",
        lead="Keys of your own accounts at providers. Live calls use the user's key first, then "
        "the tenant's, then the gateway's.",
        status=state.status,
        flash=flash,
        state=state,
        groups=[_group(owner, viewer, vendors, stored) for owner in allowed],
        vendor_names={name: vendor.title for name, vendor in vendors.items()},
        of_users=[
            (names.get(one.user_id, str(one.user_id)), one)
            for one in stored
            if one.user_id is not None and one.user_id != viewer.user_id
        ]
        if sees_all
        else [],
        can_change=is_live,
    )


def _group(
    owner: Owner,
    viewer: Viewer,
    vendors: Mapping[str, Vendor],
    stored: list[CredentialInfo],
) -> KeySlots:
    user_id: UUID | None = viewer.user_id if owner == "user" else None
    by_provider = {one.provider: one for one in stored if one.user_id == user_id}
    words = {
        "tenant": ("The tenant's keys", "Used by every call of the tenant."),
        "user": ("Your own keys", "Used by your own calls alone, before the tenant's."),
    }
    return KeySlots(
        owner,
        *words[owner],
        tuple(
            KeySlot(name, vendor.title, by_provider.get(name)) for name, vendor in vendors.items()
        ),
    )


def _name(form: FormDep, provider: str) -> str:
    """The name of a slot's form."""
    return f"{typed(form, 'owner')}-{provider}"
