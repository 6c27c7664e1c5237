"""The routes of the console as a test finds them, and a tenant that has one of everything.

`every_route` reads the application's own routes. `NEEDS` says who may use each: a new route is
added there, and an id for a new kind of parameter to `Owned.ids`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from gateway.billing import budgets
from gateway.console.assets import PREFIX
from gateway.console.guard import SAFE_METHODS
from gateway.db.actors import Actor
from gateway.db.engine import TenantSession
from gateway.domain import Scope, new_id
from gateway.identity import sessions
from gateway.identity.sessions import Browser, SignedIn
from gateway.identity.viewers import Permission, Role, Viewer
from gateway.money import NanoUsd
from gateway.tenancy import limit_rows
from gateway.tenancy.api_keys import IssuedKey
from gateway.webhooks import deliveries, endpoints
from tests.console_helpers import begin_session
from tests.console_scene import LOW
from tests.harness import Served

CANARY = "canary-4711"
EVIL = f'=1+1"><img src=x onerror="document.title=\'owned\'"><script>alert(1)</script>{CANARY}'
"""A name that is a formula, a tag and a script, and that no one else's page may show."""
OPEN = "open"
"""Pages of the sign-in: no session is needed."""
SESSION = "session"
"""Any session is enough."""
PEOPLE = "people"
"""Who sees people: operators, and administrators of a tenant."""
PEOPLE_CHANGE = "people:change"
"""Who changes people: administrators."""
IN_TENANT = "tenant"
"""Any session in a tenant."""
KEY = "key"
"""The session of an API key."""
OTHER_NAMES = frozenset({"provider", "model_id", "action"})
"""Parameters of paths that name nothing of a tenant."""

NEEDS: Mapping[str, str] = {
    OPEN: """
        GET /console/login
        GET /console/login/callback
        GET /console/login/invitation
        GET /console/login/link
        GET /console/login/oidc
        POST /console/login/admin-key
        POST /console/login/api-key
        POST /console/login/link
    """,
    SESSION: """
        GET /console
        GET /console/sessions
        POST /console/sessions/end-others
        POST /console/sessions/{session_id}/end
        POST /console/sign-out
    """,
    PEOPLE: """
        GET /console/people
        GET /console/people/sessions
    """,
    PEOPLE_CHANGE: """
        POST /console/people/invitations
        POST /console/people/invitations/{invitation_id}/revoke
        POST /console/people/sessions/{session_id}/end
        POST /console/people/{person_id}/role
        POST /console/people/{person_id}/status
    """,
    Permission.OPERATOR_READ: """
        GET /console/admin-keys
        GET /console/audit
        GET /console/budgets
        GET /console/costs
        GET /console/costs/calls
        GET /console/events
        GET /console/models
        GET /console/models/{model_id}
        GET /console/open-calls
        GET /console/requests
        GET /console/requests/{request_id}
        GET /console/system
        GET /console/tenants
        GET /console/tenants/{tenant_id}
        GET /console/tenants/{tenant_id}/audit
        GET /console/tenants/{tenant_id}/budgets
        GET /console/tenants/{tenant_id}/credentials
        GET /console/tenants/{tenant_id}/keys
        GET /console/tenants/{tenant_id}/limits
        GET /console/tenants/{tenant_id}/settings
        GET /console/tenants/{tenant_id}/users
        GET /console/tenants/{tenant_id}/webhooks
        GET /console/webhooks
        GET /console/webhooks/{webhook_id}
        POST /console/system
    """,
    Permission.OPERATOR_CHANGE: """
        POST /console/admin-keys
        POST /console/admin-keys/{key_id}/revoke
        POST /console/admin-keys/{key_id}/roll
        POST /console/budgets
        POST /console/budgets/{budget_id}/{action}
        POST /console/calls/{call_id}/resolve
        POST /console/models/{model_id}/prices
        POST /console/tenants
        POST /console/tenants/{tenant_id}/budgets
        POST /console/tenants/{tenant_id}/budgets/{budget_id}/{action}
        POST /console/tenants/{tenant_id}/credentials/{provider}/delete
        POST /console/tenants/{tenant_id}/keys
        POST /console/tenants/{tenant_id}/keys/{key_id}/revoke
        POST /console/tenants/{tenant_id}/keys/{key_id}/roll
        POST /console/tenants/{tenant_id}/limits
        POST /console/tenants/{tenant_id}/limits/{limit_id}/remove
        POST /console/tenants/{tenant_id}/settings
        POST /console/tenants/{tenant_id}/status
        POST /console/tenants/{tenant_id}/users
        POST /console/tenants/{tenant_id}/users/{user_id}/status
        POST /console/webhooks
        POST /console/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver
        POST /console/webhooks/{webhook_id}/{action}
    """,
    Permission.PORTAL_VISIT: """
        POST /console/portal/leave
        POST /console/tenants/{tenant_id}/portal
    """,
    Permission.TENANT_READ: """
        GET /console/keys
        GET /console/keys/{object_id}
        GET /console/portal/webhooks
        GET /console/portal/webhooks/{object_id}
        GET /console/users
        GET /console/users/{object_id}
    """,
    Permission.TENANT_CHANGE: """
        GET /console/keys/new
        GET /console/portal/webhooks/new
        POST /console/keys/new
        POST /console/keys/{object_id}/rename
        POST /console/keys/{object_id}/revoke
        POST /console/keys/{object_id}/roll
        POST /console/portal/budgets
        POST /console/portal/budgets/limits
        POST /console/portal/budgets/limits/{limit_id}/remove
        POST /console/portal/budgets/{budget_id}/remove
        POST /console/portal/webhooks/new
        POST /console/portal/webhooks/{object_id}/delete
        POST /console/portal/webhooks/{object_id}/deliveries/{delivery_id}/redeliver
        POST /console/portal/webhooks/{object_id}/roll
        POST /console/portal/webhooks/{object_id}/status
        POST /console/portal/webhooks/{object_id}/test
        POST /console/users
        POST /console/users/{object_id}/delete
        POST /console/users/{object_id}/rename
        POST /console/users/{object_id}/status
    """,
    Permission.USAGE_READ: """
        GET /console/portal/budgets
        GET /console/portal/requests
        GET /console/portal/requests/{request_id}
        GET /console/usage
        GET /console/usage/calls
    """,
    Permission.IMAGES_READ: """
        GET /console/gallery
        GET /console/gallery/{image_id}
    """,
    Permission.IMAGES_MAKE: """
        GET /console/playground
        GET /console/playground/results/{generation_id}
        POST /console/gallery/delete
        POST /console/playground
        POST /console/playground/fields
        POST /console/playground/quote
        POST /console/playground/stream
    """,
    Permission.OWN_CREDENTIALS: """
        GET /console/credentials
        POST /console/credentials/{provider}
        POST /console/credentials/{provider}/remove
        POST /console/credentials/{provider}/test
    """,
    IN_TENANT: """
        GET /console/connect
    """,
    # No key has it: the audit trail is for people.
    Permission.MEMBERS_CHANGE: """
        GET /console/portal/audit
    """,
    KEY: """
        GET /console/this-key
    """,
}
"""Who may use each route: a permission of gateway/identity/viewers.py, or a word from above."""


@dataclass(frozen=True, order=True)
class PageRoute:
    """One method of one path of the console."""

    path: str
    method: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def is_safe(self) -> bool:
        """Tell whether it only reads."""
        return self.method in SAFE_METHODS

    @property
    def parameters(self) -> list[str]:
        """The names in braces."""
        return re.findall(r"{(\w+)}", self.path)

    @property
    def names_an_object(self) -> bool:
        """Tell whether the path has the id of an object."""
        return bool(set(self.parameters) - OTHER_NAMES)

    def fill(self, ids: Mapping[str, str]) -> str:
        """Put ids into the path; `object_id` is that of the path's own kind."""
        kind = self.path.split("/{")[0].rpartition("/")[2]
        path = self.path
        for name in self.parameters:
            found = ids.get(f"{kind} {name}", ids.get(name))
            assert found is not None, f"{self}: add an id for {name} of {kind} to Owned.ids"
            path = path.replace("{" + name + "}", found)
        return path


def every_route(app: FastAPI) -> list[PageRoute]:
    """The console's routes of an application, but static files."""
    return sorted(
        PageRoute(re.sub(r":\w+}", "}", context.path or ""), method)
        for context in iter_route_contexts(app.routes)
        for method in (context.methods or ())
        if _is_page(context.path or "") and method != "HEAD"
    )


def _is_page(path: str) -> bool:
    return path.split("/")[1] == "console" and not path.startswith(PREFIX)


def needs() -> dict[str, str]:
    """The right that each route asks for, by method and path."""
    lines = ((line.strip(), need) for need, text in NEEDS.items() for line in text.splitlines())
    return {line: need for line, need in lines if line}


def may(viewer: Viewer, need: str) -> bool:
    """Tell whether a viewer may use routes that need this."""
    match need:
        case "open" | "session":
            return True
        case "tenant":
            return viewer.tenant_id is not None
        case "key":
            return viewer.key is not None
        case "people":
            of_house = Permission.OPERATOR_READ
        case "people:change":
            of_house = Permission.OPERATOR_CHANGE
        case _:
            return viewer.may(Permission(need))
    return viewer.may(of_house if viewer.tenant_id is None else Permission.MEMBERS_CHANGE)


@dataclass(frozen=True)
class Owned:
    """A tenant that has one of everything, each with the hostile name. `ids`: by parameter."""

    tenant_id: UUID
    key: IssuedKey
    ids: Mapping[str, str]


async def tenant_with_everything(served: Served, name: str, text: str = EVIL) -> Owned:
    """Make a tenant with a key, a user, images, calls, budgets, webhooks, people and sessions.

    `text`: the name of each, and the prompt.
    """
    tenant_id = await served.tenant(name)
    await served.owner_sql("UPDATE tenant SET stores_prompts = true WHERE id = :id", id=tenant_id)
    key = await served.key(
        tenant_id=tenant_id, livemode=False, name=text, user=text, scopes=[*Scope]
    )
    ids = {
        **await _buy(served, tenant_id, key, text),
        **await _set_up(served, tenant_id, key, text),
        **await _add_people(served, tenant_id, key, text),
    }
    return Owned(tenant_id, key, ids)


async def _buy(served: Served, tenant_id: UUID, key: IssuedKey, text: str) -> dict[str, str]:
    """Buy an image, and lose the answer to another call; return their ids."""
    async with served.http(key) as http:
        made = await http.post("/v1/images/generations", json={**LOW, "prompt": text})
        assert made.status_code == 200, made.text
        await http.post("/v1/images/generations", json={**LOW, "prompt": "[sandbox:unknown]"})
    await served.gateway.request_log.flush()
    [image] = await served.owner_sql("SELECT id FROM image WHERE tenant_id = :id", id=tenant_id)
    [call] = await served.owner_sql(
        "SELECT id FROM reservation WHERE tenant_id = :id AND state = 'unknown'", id=tenant_id
    )
    return {
        "image_id": str(image.id),
        "generation_id": made.headers["x-gateway-generation-id"],
        "request_id": made.headers["x-request-id"],
        "call_id": str(call.id),
    }


async def _set_up(served: Served, tenant_id: UUID, key: IssuedKey, text: str) -> dict[str, str]:
    """Set a budget and a limit of the key, and a webhook with a delivery; return their ids."""
    gateway = served.gateway
    async with gateway.database.operator(by=Actor("cli", "root")) as operator:
        session = TenantSession(operator)
        hook = await endpoints.create(
            session,
            tenant_id,
            sealing=gateway.core.webhook_sealing,
            url="https://hooks.example.com/hook",
            description=text,
            allow_private=True,
            max_endpoints=5,
            livemode=False,
        )
        delivery = await deliveries.send_test(session, tenant_id, hook.endpoint.id)
        budget = await budgets.set_limit(
            session,
            tenant_id,
            window="month",
            limit_nano=NanoUsd(10**9),
            livemode=False,
            api_key_id=key.id,
        )
        limit = await limit_rows.set_limit(
            session, tenant_id, kind="requests", value=600, livemode=False, api_key_id=key.id
        )
    return {
        "tenant_id": str(tenant_id),
        "key_id": str(key.id),
        "keys object_id": str(key.id),
        "user_id": str(key.user_id),
        "users object_id": str(key.user_id),
        "webhook_id": str(hook.endpoint.id),
        "webhooks object_id": str(hook.endpoint.id),
        "delivery_id": str(delivery.id),
        "budget_id": str(budget.id),
        "limit_id": str(limit.id),
        "provider": "openai",
        "model_id": "gpt-image-2",
        "action": "remove",
    }


async def _add_people(served: Served, tenant_id: UUID, key: IssuedKey, text: str) -> dict[str, str]:
    """Add a person, their session and an invitation; return the ids."""
    person_id, invitation_id = new_id(), new_id()
    await served.owner_sql(
        "INSERT INTO console_person (id, tenant_id, user_id, issuer, subject, name, email, role,"
        " has_claimed_role) VALUES (:id, :tenant, :user, 'https://login.example', :subject, :name,"
        " 'a@b.example', 'tenant-member', false)",
        id=person_id,
        tenant=tenant_id,
        user=key.user_id,
        subject=str(tenant_id),
        name=text,
    )
    await served.owner_sql(
        "INSERT INTO console_invitation (id, digest, tenant_id, email, role, invited_by,"
        " expires_at) VALUES (:id, :digest, :tenant, 'c@d.example', 'tenant-admin', :name,"
        " now() + interval '1 day')",
        id=invitation_id,
        digest=invitation_id.bytes,
        tenant=tenant_id,
        name=text,
    )
    who = SignedIn(
        text,
        Role.TENANT_MEMBER,
        "oidc",
        tenant_id=tenant_id,
        user_id=key.user_id,
        person_id=person_id,
    )
    token = await begin_session(served, who, of=Browser("127.0.0.1", text))
    viewer = await sessions.find(served.gateway.database, token)
    return {
        "person_id": str(person_id),
        "invitation_id": str(invitation_id),
        "session_id": str(viewer.session_id),
    }
