"""Helpers of the console's tests: browsers that sign in, and what a page led to."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import httpx2

from gateway.console.cookies import SESSION
from gateway.db.actors import Actor
from gateway.db.engine import TenantSession
from gateway.domain import Scope
from gateway.identity import sessions
from gateway.identity.links import make_link
from gateway.identity.sessions import Browser, SignedIn
from gateway.identity.viewers import Role
from gateway.tenancy import users
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import Served

OWN = {"Sec-Fetch-Site": "same-origin"}
"""The headers that a browser sends with a form of the console."""
FIREFOX = Browser("192.0.2.7", "Mozilla/5.0 (X11; Linux) Firefox/151.0")


def browser(served: Served, **options: Any) -> httpx2.AsyncClient:
    """A browser on a page of the console: it keeps cookies, and says where its forms come from."""
    client = served.http(**options)
    client.headers.update({**OWN, "Accept": "text/html"})
    return client


async def new_link(served: Served) -> str:
    """Make a link, as `gateway console-link` does; return it without its host."""
    async with served.gateway.database.operator(by=Actor("cli", "root")) as session:
        link = await make_link(session, Actor("cli", "root"), served.gateway.settings)
    return link.reveal().removeprefix(served.gateway.settings.public_url)


@asynccontextmanager
async def operator(served: Served) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser that a link has signed in as operator-admin."""
    async with browser(served) as client:
        answer = await client.get(await new_link(served))
        assert answer.status_code == 303, answer.text
        yield client


async def begin_session(served: Served, who: SignedIn, *, of: Browser = FIREFOX) -> str:
    """Begin a session, as a sign-in does; return the token of its cookie."""
    gateway = served.gateway
    async with gateway.operators_database.operator(by=Actor("cli", "root")) as session:
        key = gateway.core.secrets.console_key
        token = await sessions.begin(session, who, of, gateway.settings, sealing_key=key)
    return token.reveal()


async def led_to(client: httpx2.AsyncClient, path: str = "/console") -> str:
    """The path to which a page leads; its own if it is shown."""
    answer = await client.get(path)
    return answer.headers.get("location", path) if answer.status_code == 303 else path


def reason(answer: httpx2.Response) -> str:
    """The reason for which a session ended, in the address of the sign-in."""
    return httpx2.URL(answer.headers["location"]).params["ended"]


@asynccontextmanager
async def signed_in_as(
    served: Served, role: Role, *, tenant_id: UUID | None = None, user: str | None = None
) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser with the session of a person of this role, of the usual tenant or another."""
    owner = None if role.is_operator else tenant_id or served.tenant_id
    user_id = None
    if user is not None and owner is not None:
        async with served.gateway.database.operator(by=Actor("cli", "root")) as session:
            user_id = await users.ensure_user(TenantSession(session), owner, user)
    who = SignedIn(f"A {role}", role, "oidc", tenant_id=owner, user_id=user_id)
    token = await begin_session(served, who)
    async with browser(served, cookies={"ig_session": token}) as client:
        yield client


@asynccontextmanager
async def by_key(served: Served, key: IssuedKey) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser that a tenant's API key has signed in."""
    async with browser(served) as client:
        answer = await client.post("/console/login/api-key", data={"key": key.secret.reveal()})
        assert answer.status_code == 303, answer.text
        yield client


@asynccontextmanager
async def person(
    served: Served,
    role: Role,
    *,
    tenant_id: UUID | None = None,
    user_id: UUID | None = None,
    key: IssuedKey | None = None,
) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser of a tenant's person, named after the role, or of the holder of an API key."""
    who = SignedIn(
        f"Ada the {role}",
        role,
        "oidc" if key is None else "api_key",
        tenant_id=tenant_id or served.tenant_id,
        user_id=user_id if key is None else key.user_id,
        api_key_id=None if key is None else key.id,
    )
    token = await begin_session(served, who)
    async with browser(served, cookies={SESSION: token}) as client:
        yield client


async def everyone(
    stack: AsyncExitStack,
    served: Served,
    key: IssuedKey,
    *,
    tenant_id: UUID,
    user_id: UUID | None = None,
) -> dict[str, httpx2.AsyncClient]:
    """Browsers of each role, of `key`, of a key with one scope, and of a visiting operator.

    Those below a tenant's administrator are `user_id`. They close with `stack`.
    """
    enter, found = stack.enter_async_context, {}
    for role in Role:
        own = None if role is Role.TENANT_ADMIN else user_id
        someone = (
            signed_in_as(served, role)
            if role.is_operator
            else person(served, role, tenant_id=tenant_id, user_id=own)
        )
        found[str(role)] = await enter(someone)
    few = await served.key(livemode=False, tenant_id=tenant_id, scopes=[Scope.USAGE_READ])
    found["key"] = await enter(by_key(served, key))
    found["key of usage alone"] = await enter(by_key(served, few))
    found["visitor"] = await enter(operator(served))
    await found["visitor"].post(f"/console/tenants/{tenant_id}/portal")
    return found
