"""Commands for tenants and their options."""

import shlex
from enum import StrEnum
from typing import Annotated

import typer

from gateway.cli.amounts import format_bytes, format_seconds, parse_bytes, parse_duration
from gateway.cli.output import (
    JsonOption,
    confirm,
    console,
    fields,
    invoker,
    print_json,
    read,
    run,
    show,
)
from gateway.core import Core, Reader
from gateway.db.pages import Page
from gateway.tenancy import erasure, lookups
from gateway.tenancy import tenants as tenancy
from gateway.tenancy.tenants import UNCHANGED, Tenant

tenants = typer.Typer(help="Tenants: the customers that own everything.", no_args_is_help=True)


TenantArgument = Annotated[
    str, typer.Argument(metavar="TENANT", help="Name, id, or the id's last four characters.")
]


class Prompts(StrEnum):
    """The form in which prompts are kept."""

    STORED = "stored"
    HASHED = "hashed"


@tenants.command("create")
def create_tenant(
    name: Annotated[str, typer.Argument(help="A unique name.")],
    time_zone: Annotated[
        str, typer.Option(help="Time zone of the tenant's days and months, e.g. Europe/Madrid.")
    ] = "UTC",
    as_json: JsonOption = False,
) -> None:
    """Create a tenant."""

    async def work(core: Core) -> Tenant:
        async with core.database.operator(by=invoker()) as session:
            return await tenancy.create(session, name, time_zone=time_zone)

    tenant = run(work)
    if as_json:
        print_json(tenant)
    else:
        console.print(f"Tenant {tenant.name} is created: {tenant.id}")
        console.print(f"Next: gateway keys create --tenant {tenant.name}")


@tenants.command("list")
def list_tenants(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number.")] = 100,
    after: Annotated[
        str | None, typer.Option(help="Only tenants whose name sorts behind this one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List tenants by name."""

    async def work(core: Reader) -> Page[Tenant]:
        async with core.database.operator() as session:
            return await tenancy.list_by_name(session, limit=limit, after=after)

    page = read(work)
    if as_json:
        print_json(page.items)
        return
    show([_row(tenant) for tenant in page.items], as_json=False, empty="No tenants.")
    if page.has_more:
        console.print(f"For the next tenants: --after {shlex.quote(page.items[-1].name)}")


def _row(tenant: Tenant) -> dict[str, object]:
    kept, cap = tenant.image_retention_seconds, tenant.max_image_bytes
    return {
        **fields(tenant, "name", "id", "status", "time_zone", "continuity", "fallback"),
        "prompts": "stored" if tenant.stores_prompts else "hashed",
        "images_kept": "default" if kept is None else format_seconds(kept),
        "images_cap": "none" if cap is None else format_bytes(cap),
        "created_at": tenant.created_at,
    }


@tenants.command("show")
def show_tenant(tenant: TenantArgument, as_json: JsonOption = False) -> None:
    """Show one tenant."""
    _show(_find(tenant), as_json=as_json)


@tenants.command("delete")
def delete_tenant(
    tenant: TenantArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a tenant permanently: keys, secrets, images, prompts and names; costs are kept."""
    found = _find(tenant)
    if not yes:
        confirm(
            f"Tenant {found.name}, its users, keys, secrets and images are deleted permanently.",
            found.name,
        )

    async def work(core: Core) -> Tenant:
        async with core.database.operator(by=invoker()) as session:
            return await erasure.delete_tenant(session, found.id)

    deleted = run(work)
    if as_json:
        print_json(deleted)
    else:
        console.print(
            f"Tenant {found.name} is deleted; its images follow within minutes. Costs are kept."
        )


def _find(tenant: str) -> Tenant:
    async def work(reader: Reader) -> Tenant:
        async with reader.database.operator() as session:
            return await lookups.find_tenant(session, tenant)

    return read(work)


def _show(tenant: Tenant, *, as_json: bool) -> None:
    if as_json:
        print_json(tenant)
    else:
        show([_row(tenant)], as_json=False)


@tenants.command("set")
def set_tenant(
    tenant: TenantArgument,
    continuity: Annotated[
        bool | None,
        typer.Option("--continuity/--no-continuity", help="Serve retired models by a successor."),
    ] = None,
    fallback: Annotated[
        bool | None,
        typer.Option(
            "--fallback/--no-fallback", help="Let another model serve where one does not."
        ),
    ] = None,
    prompts: Annotated[
        Prompts | None, typer.Option(help="Store prompts in readable form, or only hashed.")
    ] = None,
    image_retention: Annotated[
        str | None, typer.Option(help="Retention of new images: 30d, 12h, or `default`.")
    ] = None,
    max_image_bytes: Annotated[
        str | None,
        typer.Option(help="Delete the oldest images beyond this size: 10GB, 512MiB, or `none`."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Change a tenant's options; omitted ones keep their value."""
    given = (continuity, fallback, prompts, image_retention, max_image_bytes)
    if all(one is None for one in given):
        raise typer.BadParameter("give at least one option to change; --help lists them")
    kept = UNCHANGED if image_retention is None else _retention_seconds(image_retention)
    cap = UNCHANGED if max_image_bytes is None else _cap_bytes(max_image_bytes)

    async def work(core: Core) -> Tenant:
        async with core.database.operator(by=invoker()) as session:
            found = await lookups.find_tenant(session, tenant)
            return await tenancy.set_settings(
                session,
                str(found.id),
                continuity=UNCHANGED if continuity is None else continuity,
                fallback=UNCHANGED if fallback is None else fallback,
                stores_prompts=UNCHANGED if prompts is None else prompts is Prompts.STORED,
                image_retention_seconds=kept,
                max_image_bytes=cap,
            )

    _show(run(work), as_json=as_json)


def _retention_seconds(text: str) -> int | None:
    return None if text == "default" else int(parse_duration(text).total_seconds())


def _cap_bytes(text: str) -> int | None:
    return None if text == "none" else parse_bytes(text)


@tenants.command("suspend")
def suspend_tenant(tenant: TenantArgument, as_json: JsonOption = False) -> None:
    """Suspend a tenant: all its keys are refused from now on."""
    _set_status(tenant, "suspended", as_json=as_json)


@tenants.command("resume")
def resume_tenant(tenant: TenantArgument, as_json: JsonOption = False) -> None:
    """Resume a suspended tenant: its keys work again."""
    _set_status(tenant, "active", as_json=as_json)


def _set_status(name: str, status: str, *, as_json: bool) -> None:
    async def work(core: Core) -> Tenant:
        async with core.database.operator(by=invoker()) as session:
            found = await lookups.find_tenant(session, name)
            return await tenancy.set_status(session, str(found.id), status)

    tenant = run(work)
    if as_json:
        print_json(tenant)
    else:
        console.print(f"Tenant {tenant.name} is {tenant.status}.")
