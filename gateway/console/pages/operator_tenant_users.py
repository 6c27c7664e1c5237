"""Users, credentials and settings of a tenant, as operators see and change them."""

from collections.abc import Mapping
from functools import partial
from typing import Literal
from uuid import UUID

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.bootstrap import Gateway
from gateway.console.dependencies import FormDep, OperatorChanger, OperatorReader, redirect
from gateway.console.forms import (
    UNTOUCHED,
    FormState,
    one_of,
    sent,
    typed,
    uuid_or_none,
    whole,
)
from gateway.console.pages.operator_shared import (
    changing,
    parts_of_list,
    reading,
    tenant_page,
    tenant_path,
)
from gateway.console.render import Flash
from gateway.errors import InvalidRequest
from gateway.identity.transactions import changing_as_operator
from gateway.identity.viewers import Viewer
from gateway.rest.dependencies import GatewayDep
from gateway.tenancy import credentials, tenants, users

ROOT = "/console/tenants/{tenant_id}"
USERS, CREDENTIALS, SETTINGS = "/users", "/credentials", "/settings"
PAGE_SIZE = 50
TIMES = (("seconds", 1), ("minutes", 60), ("hours", 3600), ("days", 86_400))
SIZES = (("bytes", 1), ("MB", 10**6), ("GB", 10**9))
DONE = {
    "created": Flash("The user was created."),
    "disabled": Flash("The user is disabled: their keys and tokens are refused.", "warn"),
    "active": Flash("The user is enabled again."),
    "deleted": Flash("The credential was deleted. Later calls use the next owner's."),
    "saved": Flash("The settings were saved."),
}

router = APIRouter()


@router.get(ROOT + USERS)
async def show_users(
    *,
    tenant_id: UUID,
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    after: UUID | None = None,
    done: str = "",
) -> Response:
    """List the users of a tenant, newest first."""
    return await _users(request, gateway, viewer, tenant_id, after=after, flash=DONE.get(done))


@router.post(ROOT + USERS)
async def create_user(
    tenant_id: UUID, request: Request, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Create a user."""

    async def change() -> str:
        async with changing(gateway, viewer, tenant_id) as session:
            await users.create_user(session, tenant_id, typed(form, "name"))
        return f"{tenant_path(tenant_id, USERS)}?done=created"

    return await sent("create", form, change, partial(_users, request, gateway, viewer, tenant_id))


@router.post(ROOT + USERS + "/{user_id}/status")
async def set_user_status(
    tenant_id: UUID, user_id: UUID, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Disable or enable a user."""
    chosen = one_of(form, "status", ("active", "disabled"))
    status: Literal["active", "disabled"] = "active" if chosen == "active" else "disabled"
    async with changing(gateway, viewer, tenant_id) as session:
        await users.change(session, tenant_id, user_id, status=status)
    return redirect(f"{tenant_path(tenant_id, USERS)}?done={status}")


@router.get(ROOT + CREDENTIALS)
async def show_credentials(
    *,
    tenant_id: UUID,
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    after: UUID | None = None,
    done: str = "",
) -> Response:
    """List the provider credentials of a tenant and its users, by their last four characters."""
    async with reading(gateway, viewer, tenant_id) as session:
        tenant = await tenants.get(session, tenant_id)
        found = await credentials.list_page(session, tenant_id, limit=PAGE_SIZE, after=after)
        names = await users.names_of(session, tenant_id, (one.user_id for one in found.items))
    here = tenant_path(tenant_id, CREDENTIALS)
    return tenant_page(
        viewer,
        request,
        "tenant_credentials.html",
        tenant,
        CREDENTIALS,
        flash=DONE.get(done),
        **parts_of_list(found, here, after),
        names=names,
        house=[
            (name, name in gateway.settings.house_keys)
            for name in gateway.core.catalog.vendors
            if name not in gateway.core.catalog.hosts
        ],
    )


@router.post(ROOT + CREDENTIALS + "/{provider}/delete")
async def delete_credential(
    tenant_id: UUID, provider: str, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Delete a provider credential of the tenant, or of one of its users."""
    credentials.check_provider(provider, gateway.core.catalog.vendors)
    async with changing(gateway, viewer, tenant_id) as session:
        await credentials.delete(
            session, tenant_id, user_id=uuid_or_none(form.get("user_id", "")), provider=provider
        )
    return redirect(f"{tenant_path(tenant_id, CREDENTIALS)}?done=deleted")


@router.get(ROOT + SETTINGS)
async def show_settings(
    tenant_id: UUID, request: Request, viewer: OperatorReader, gateway: GatewayDep, done: str = ""
) -> Response:
    """Show the settings of a tenant."""
    return await _settings(request, gateway, viewer, tenant_id, flash=DONE.get(done))


@router.post(ROOT + SETTINGS)
async def save_settings(
    tenant_id: UUID, request: Request, viewer: OperatorChanger, gateway: GatewayDep, form: FormDep
) -> Response:
    """Change the settings of a tenant."""

    async def change() -> str:
        retention = _amount(form, "image_retention_seconds", dict(TIMES))
        cap = _amount(form, "max_image_bytes", dict(SIZES))
        async with changing_as_operator(gateway, viewer, clears=str(tenant_id)) as session:
            await tenants.set_settings(
                session,
                str(tenant_id),
                name=typed(form, "name"),
                time_zone=typed(form, "time_zone"),
                continuity="continuity" in form,
                fallback="fallback" in form,
                stores_prompts="stores_prompts" in form,
                image_retention_seconds=retention,
                max_image_bytes=cap,
            )
        return f"{tenant_path(tenant_id, SETTINGS)}?done=saved"

    show = partial(_settings, request, gateway, viewer, tenant_id)
    return await sent("settings", form, change, show)


def _amount(form: Mapping[str, str], name: str, units: Mapping[str, int]) -> int | None:
    """Read a number with its unit; None if the field is empty.

    Raises:
        InvalidRequest: it is no whole number, or the unit is unknown.
    """
    if not typed(form, name):
        return None
    unit = units[one_of(form, f"{name}_unit", tuple(units))]
    amount = whole(form, name) * unit
    if amount > tenants.MAX_IMAGE_BYTES:
        raise InvalidRequest("This number is too large.", param=name)
    return amount


def _split(amount: int | None, units: tuple[tuple[str, int], ...]) -> tuple[str, str]:
    """Write an amount in the largest unit of which it is a whole number."""
    if amount is None:
        return "", units[-1][0]
    name, size = next((n, s) for n, s in reversed(units) if amount % s == 0)
    return str(amount // size), name


def _words(seconds: int) -> str:
    number, unit = _split(seconds, TIMES)
    return f"{number} {unit.removesuffix('s') if number == '1' else unit}"


async def _users(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    tenant_id: UUID,
    *,
    after: UUID | None = None,
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
) -> Response:
    async with reading(gateway, viewer, tenant_id) as session:
        tenant = await tenants.get(session, tenant_id)
        found = await users.list_users(session, tenant_id, limit=PAGE_SIZE, after=after)
    here = tenant_path(tenant_id, USERS)
    return tenant_page(
        viewer,
        request,
        "tenant_users.html",
        tenant,
        USERS,
        flash=flash,
        state=state,
        **parts_of_list(found, here, after),
    )


async def _settings(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    tenant_id: UUID,
    *,
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
) -> Response:
    async with reading(gateway, viewer, tenant_id) as session:
        tenant = await tenants.get(session, tenant_id)
    return tenant_page(
        viewer,
        request,
        "tenant_settings.html",
        tenant,
        SETTINGS,
        flash=flash,
        state=state,
        retention=_split(tenant.image_retention_seconds, TIMES),
        cap=_split(tenant.max_image_bytes, SIZES),
        times=[(name, name) for name, _ in TIMES],
        sizes=[(name, name) for name, _ in SIZES],
        usual=_words(gateway.settings.resolved_image_retention_seconds),
    )
