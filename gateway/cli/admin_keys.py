"""Commands for admin keys. They require the database and the master key, but no admin key."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from gateway.cli.amounts import parse_duration
from gateway.cli.output import JsonOption, console, fields, invoker, print_json, read, run, show
from gateway.core import Core, Reader
from gateway.domain import AdminScope
from gateway.tenancy import admin_keys as keys
from gateway.tenancy.admin_keys import AdminKeyInfo, IssuedAdminKey

admin_keys = typer.Typer(help="Keys of operators and of monitoring.", no_args_is_help=True)
KeyArgument = Annotated[str, typer.Argument(help="Id, name or last four characters of the key.")]


@admin_keys.command("create")
def create_admin_key(
    name: Annotated[str, typer.Option(help="Name in the audit trail.")],
    scopes: Annotated[
        str, typer.Option(help=f"Comma-separated: {', '.join(AdminScope)}.")
    ] = AdminScope.ADMIN.value,
    expires: Annotated[str | None, typer.Option(help="E.g. 90d. Default: never.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Create an admin key, even if all others are lost. Its secret is shown only once."""
    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    expires_at = None if expires is None else _moment_in(expires)

    async def work(core: Core) -> IssuedAdminKey:
        async with core.database.operator(by=invoker()) as session:
            return await keys.create(
                session,
                name,
                pepper=core.pepper,
                origin="command",
                scopes=wanted,
                expires_at=expires_at,
            )

    _show_issued(run(work), as_json=as_json)


@admin_keys.command("list")
def list_admin_keys(as_json: JsonOption = False) -> None:
    """List admin keys, without secrets: usable, expired and revoked ones."""

    async def work(core: Reader) -> list[AdminKeyInfo]:
        async with core.database.operator() as session:
            return await keys.list_all(session)

    found = read(work)
    if as_json:
        print_json([_plain(key) for key in found])
        return
    show(
        [
            {
                "id": key.id,
                "name": key.name,
                "key": f"igw_admin_…{key.last4}",
                "scopes": key.scopes,
                "state": _state(key),
                "last_used": key.last_used_at,
                "created": key.created_at,
            }
            for key in found
        ],
        as_json=False,
        empty="No admin keys. Create one: gateway admin-keys create --name NAME",
    )


@admin_keys.command("roll")
def roll_admin_key(
    key: KeyArgument,
    grace: Annotated[str, typer.Option(help="Validity of the old key.")] = "24h",
    as_json: JsonOption = False,
) -> None:
    """Create a successor of an admin key; the old one ends after the grace period."""
    grace_time = parse_duration(grace)

    async def work(core: Core) -> IssuedAdminKey:
        async with core.database.operator(by=invoker()) as session:
            found = await keys.find(session, key)
            return await keys.roll(
                session, found.id, pepper=core.pepper, origin="command", grace=grace_time
            )

    _show_issued(run(work), as_json=as_json)


@admin_keys.command("revoke")
def revoke_admin_key(key: KeyArgument, as_json: JsonOption = False) -> None:
    """Revoke an admin key now, even the last one: `create` makes another."""

    async def work(core: Core) -> AdminKeyInfo:
        async with core.database.operator(by=invoker()) as session:
            found = await keys.find(session, key)
            return await keys.revoke(session, found.id, keeps_one=False)

    revoked = run(work)
    if as_json:
        print_json(_plain(revoked))
    else:
        console.print(f"The admin key {revoked.name!r} (…{revoked.last4}) is revoked.")


def _show_issued(issued: IssuedAdminKey, *, as_json: bool) -> None:
    if as_json:
        print_json({**_plain(issued), "secret": issued.secret.reveal()})
        return
    console.print(f"Admin key {issued.name!r}, {issued.id}: {', '.join(issued.scopes)}")
    console.print(f"  {issued.secret.reveal()}")
    console.print("Store it now: it is not shown again.")


def _plain(key: AdminKeyInfo) -> dict[str, object]:
    names = ("id", "name", "scopes", "origin", "last4")
    times = ("created_at", "expires_at", "revoked_at", "last_used_at")
    return fields(key, *names, *times)


def _state(key: AdminKeyInfo) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.expires_at is None:
        return "usable"
    has_ended = key.expires_at <= datetime.now(UTC)
    return f"{'expired' if has_ended else 'until'} {key.expires_at:%Y-%m-%d %H:%M}"


def _moment_in(duration: str) -> datetime:
    try:
        return datetime.now(UTC) + parse_duration(duration)
    except OverflowError:
        raise typer.BadParameter(f"{duration!r} ends after the last day of the calendar") from None
