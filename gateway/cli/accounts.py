"""Commands for API keys and provider credentials."""

import sys
from datetime import UTC, datetime
from typing import Annotated, Any
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
    refuse,
    run,
    show,
)
from gateway.core import Core, Reader
from gateway.db.engine import OperatorSession, TenantSession
from gateway.domain import USUAL_KEY_SCOPES, Scope, SecretText
from gateway.tenancy import api_keys, lookups, users
from gateway.tenancy import credentials as vaulted
from gateway.tenancy.api_keys import IssuedKey, KeyInfo

keys = typer.Typer(help="API keys of tenants and users.", no_args_is_help=True)
credentials = typer.Typer(help="Provider keys of tenants and users.", no_args_is_help=True)

TenantOption = Annotated[str, typer.Option("--tenant", help="Name or id of the tenant.")]
UserOption = Annotated[
    str | None,
    typer.Option("--user", help="A user of the tenant: name, id or its last four characters."),
]
KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="Id, name or last four characters of the key.")
]
OfTenantOption = Annotated[
    str | None, typer.Option("--tenant", help="Search only the keys of this tenant.")
]


@keys.command("create")
def create_key(
    tenant: TenantOption,
    name: Annotated[
        str | None, typer.Option(help="Name in lists and reports, e.g. website.")
    ] = None,
    user: UserOption = None,
    test: Annotated[
        bool,
        typer.Option("--test", help="Create a test key, which uses the sandbox and costs nothing."),
    ] = False,
    scopes: Annotated[
        str | None,
        typer.Option(help=f"Comma-separated: {', '.join(Scope)}. Default: all but the last."),
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Comma-separated models that the key may use. Default: all.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="E.g. 90d. Default: never.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Create an API key. Its secret is shown only once."""
    wanted = _names(scopes)
    unknown = sorted(set(wanted or ()) - set(Scope))
    if unknown:
        raise typer.BadParameter(f"unknown scope {unknown[0]}; choose from {', '.join(Scope)}")
    expires_at = None if expires is None else _moment_in(expires)

    async def work(core: Core) -> IssuedKey:
        allowed = _names(models)
        strange = sorted(set(allowed or ()) - set(core.catalog.models))
        if strange:
            refuse(f"There is no model {strange[0]}. GET /v1/models lists them.")
        async with core.database.operator(by=invoker()) as session:
            owner = await lookups.find_tenant(session, tenant)
            tenant_session = TenantSession(session)
            user_id = (
                None
                if user is None
                else await lookups.find_or_make_user(tenant_session, owner.id, user)
            )
            return await api_keys.issue(
                tenant_session,
                owner.id,
                pepper=core.pepper,
                livemode=not test,
                name=name,
                user_id=user_id,
                scopes=wanted,
                models=allowed,
                expires_at=expires_at,
            )

    _show_issued(run(work), as_json=as_json)


@keys.command("list")
def list_keys(tenant: TenantOption, as_json: JsonOption = False) -> None:
    """List the keys of a tenant, without secrets."""

    async def work(core: Reader) -> list[dict[str, Any]]:
        async with core.database.operator() as session:
            owner = await lookups.find_tenant(session, tenant)
            found = await api_keys.list_keys(TenantSession(session), owner.id)
            names = await users.user_names(TenantSession(session), owner.id)
        return [
            {
                **fields(key, "id", "name", "livemode", "last4", "scopes", "models"),
                "user": None if key.user_id is None else names[key.user_id],
                **fields(key, "expires_at", "revoked_at", "created_at"),
            }
            for key in found
        ]

    found = read(work)
    if as_json:
        print_json(found)
        return
    show(
        [
            {
                "id": key["id"],
                "name": key["name"],
                "key": f"igw_{'live' if key['livemode'] else 'test'}_…{key['last4']}",
                "user": key["user"],
                "scopes": "usual" if set(key["scopes"]) == set(USUAL_KEY_SCOPES) else key["scopes"],
                "models": key["models"] or "all",
                "state": _key_state(key["expires_at"], key["revoked_at"]),
            }
            for key in found
        ],
        as_json=False,
        empty="No keys yet.",
    )


def _key_state(expires_at: datetime | None, revoked_at: datetime | None) -> str:
    if revoked_at is not None:
        return f"revoked {revoked_at:%Y-%m-%d}"
    if expires_at is None:
        return "valid"
    return (
        f"{'expired' if expires_at <= datetime.now(UTC) else 'until'} {expires_at:%Y-%m-%d %H:%M}"
    )


@keys.command("rename")
def rename_key(
    key: KeyArgument,
    name: Annotated[str, typer.Argument(help="The new name; '' removes the name.")],
    tenant: OfTenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rename a key and all keys of its line."""

    async def work(core: Core) -> KeyInfo:
        async with core.database.operator(by=invoker()) as session:
            found = await _find_key(session, key, tenant)
            return await api_keys.rename(session, found, name or None)

    renamed = run(work)
    if as_json:
        print_json(fields(renamed, "id", "name"))
    else:
        state = f"is named {renamed.name}" if renamed.name else "has no name now"
        console.print(f"Key {renamed.id} {state}.")


@keys.command("roll")
def roll_key(
    key: KeyArgument,
    grace: Annotated[str, typer.Option(help="Validity of the old key.")] = "24h",
    tenant: OfTenantOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a successor of a key; the old one ends after the grace period."""
    grace_time = parse_duration(grace)

    async def work(core: Core) -> IssuedKey:
        async with core.database.operator(by=invoker()) as session:
            found = await _find_key(session, key, tenant)
            return await api_keys.roll(session, found, pepper=core.pepper, grace=grace_time)

    _show_issued(run(work), as_json=as_json)


@keys.command("revoke")
def revoke_key(
    key: KeyArgument, tenant: OfTenantOption = None, as_json: JsonOption = False
) -> None:
    """Revoke a key now, on every worker within a second."""

    async def work(core: Core) -> KeyInfo:
        async with core.database.operator(by=invoker()) as session:
            return await api_keys.revoke(session, await _find_key(session, key, tenant))

    revoked = run(work)
    if as_json:
        print_json({"id": revoked.id, "revoked": True})
    else:
        console.print(f"Key {revoked.id}{_called(revoked)} is revoked.")


async def _find_key(session: OperatorSession, key: str, tenant: str | None) -> UUID:
    owner = None if tenant is None else (await lookups.find_tenant(session, tenant)).id
    return (await lookups.find_key(session, owner, key)).id


def _called(key: KeyInfo) -> str:
    return "" if key.name is None else f" ({key.name})"


def _show_issued(issued: IssuedKey, *, as_json: bool) -> None:
    shown = {
        "id": issued.id,
        "name": issued.name,
        "key": issued.secret.reveal(),
        "livemode": issued.livemode,
        "scopes": list(issued.scopes),
        "models": None if issued.models is None else list(issued.models),
        "expires_at": issued.expires_at,
    }
    if as_json:
        print_json(shown)
        return
    console.print(f"Key {issued.id}{_called(issued)}:")
    console.print(f"\n    {issued.secret.reveal()}\n")
    console.print("Store it now; it is not shown again.")


@credentials.command("set")
def set_credential(
    tenant: TenantOption,
    provider: Annotated[str, typer.Option(help="E.g. openai.")] = "openai",
    user: UserOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store a provider key, read from standard input or a prompt; never from the command line."""
    text = (
        typer.prompt(f"{provider} key", hide_input=True)
        if sys.stdin.isatty()
        else sys.stdin.readline()
    )
    secret = SecretText(text.strip())

    async def work(core: Core) -> vaulted.CredentialInfo:
        async with core.database.operator() as session:
            owner = await lookups.find_tenant(session, tenant)
        async with core.database.tenant(owner.id, by=invoker()) as session:
            user_id = (
                None if user is None else await lookups.find_or_make_user(session, owner.id, user)
            )
            return await vaulted.store(
                session,
                owner.id,
                vault=core.vault,
                user_id=user_id,
                provider=provider,
                secret=secret,
                vendors=core.catalog.vendors,
            )

    info = run(work)
    if as_json:
        print_json(fields(info, "provider", "owner", "user_id", "last4", "updated_at"))
    else:
        console.print(f"The {info.owner}'s {info.provider} key …{info.last4} is stored.")


@credentials.command("list")
def list_credentials(tenant: TenantOption, as_json: JsonOption = False) -> None:
    """List the stored provider keys, without secrets."""

    async def work(core: Reader) -> list[dict[str, object]]:
        async with core.database.operator() as session:
            owner = await lookups.find_tenant(session, tenant)
            names = await users.user_names(TenantSession(session), owner.id)
            found = await vaulted.list_credentials(TenantSession(session), owner.id)
        return [
            {
                "provider": info.provider,
                "owner": info.owner,
                "user": None if info.user_id is None else names[info.user_id],
                "key": f"…{info.last4}",
                "updated_at": info.updated_at,
            }
            for info in found
        ]

    show(
        read(work),
        as_json=as_json,
        empty="No provider keys stored: calls use the house credential.",
    )


@credentials.command("delete")
def delete_credential(
    tenant: TenantOption,
    provider: Annotated[str, typer.Option(help="E.g. openai.")] = "openai",
    user: UserOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a stored provider key."""

    async def work(core: Core) -> None:
        async with core.database.operator() as session:
            owner = await lookups.find_tenant(session, tenant)
        async with core.database.tenant(owner.id, by=invoker()) as session:
            user_id = None
            if user is not None:
                user_id = (await lookups.find_user(session, owner.id, user)).id
            await vaulted.delete(session, owner.id, user_id=user_id, provider=provider)

    run(work)
    if as_json:
        print_json({"provider": provider, "deleted": True})
    else:
        console.print(f"The {provider} key is deleted.")


async def find_owner(
    session: TenantSession, tenant_id: UUID, key: str | None, user: str | None
) -> tuple[UUID | None, UUID | None]:
    """Find the owner of a budget or a limit: the first key of a line, or a user."""
    key_id = None if key is None else await lookups.find_line(session, tenant_id, key)
    user_id = None if user is None else (await lookups.find_user(session, tenant_id, user)).id
    return key_id, user_id


def _moment_in(duration: str) -> datetime:
    try:
        return datetime.now(UTC) + parse_duration(duration)
    except OverflowError:
        raise typer.BadParameter(f"{duration!r} ends after the last day of the calendar") from None


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
