"""A served gateway for the tests of operators' pages: believable data, and a few real calls."""

import html
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode
from uuid import UUID

import httpx2

from tests.console_helpers import browser, new_link
from tests.console_seed import Seeded, seed
from tests.harness import PostgresServer, Served, make_settings, served_gateway

LOW = {"model": "gpt-image-2", "size": "1024x1024", "quality": "low", "response_format": "url"}
EVIL = "<script>alert(1)</script>"


@dataclass(frozen=True)
class Scene:
    """A served gateway, an operator's browser, and one tenant with its calls."""

    served: Served
    seeded: Seeded
    http: httpx2.AsyncClient
    tenant_id: UUID
    request_id: str
    unknown_id: UUID
    webhook_id: UUID

    async def get(self, path: str, status: int = 200) -> str:
        """The text of a page."""
        answer = await self.http.get(path)
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text[:2000]}"
        return answer.text

    async def post(self, path: str, expected: int = 303, /, **form: str) -> httpx2.Response:
        """The answer to a form, sent as browsers do."""
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await self.http.post(path, content=urlencode(form), headers=kind)
        assert answer.status_code == expected, f"{path}: {answer.status_code} {answer.text[:2000]}"
        return answer

    async def shown(self, path: str, /, **form: str) -> str:
        """The page that shows the new secret of a form, to which the answer leads."""
        answer = await self.post(path, **form)
        return await self.get(answer.headers["location"])

    @property
    def tenant(self) -> str:
        """The path of the tenant's page."""
        return f"/console/tenants/{self.tenant_id}"

    async def audited(self, action: str) -> list[tuple[str, str, dict[str, object] | None]]:
        """Author and state of the changes of a kind, the oldest first."""
        rows = await self.served.owner_sql(
            "SELECT actor_type, actor_name, after FROM audit WHERE action = :action ORDER BY at",
            action=action,
        )
        return [(row.actor_type, row.actor_name, row.after) for row in rows]


@asynccontextmanager
async def open_scene(postgres: PostgresServer, folder: Path) -> AsyncIterator[Scene]:
    """Serve a gateway with seeded data, with an operator signed in."""
    url = await postgres.create()
    settings = make_settings(url, folder, webhook_allow_private=True)
    async with served_gateway(settings) as served:
        seeded = await seed(served, calls=300)
        tenant_id = seeded.tenants["Northwind Travel"].id
        await served.budget("5", tenant_id=tenant_id, livemode=False, window="day")
        request_id = await _call(served, tenant_id)
        [unknown] = await served.owner_sql(
            "SELECT id FROM reservation WHERE tenant_id = :id AND outcome = 'ambiguous' LIMIT 1",
            id=tenant_id,
        )
        [hook] = await served.owner_sql(
            "SELECT id FROM webhook_endpoint WHERE tenant_id = :id", id=tenant_id
        )
        async with browser(served) as http:
            await http.get(await new_link(served))
            yield Scene(served, seeded, http, tenant_id, request_id, unknown.id, hook.id)
    await postgres.drop(url)


async def _call(served: Served, tenant_id: UUID) -> str:
    """Buy two test images, fail once, and lose one answer; return the id of the first request."""
    key = await served.key(tenant_id=tenant_id, livemode=False, name=f"try {EVIL}")
    async with served.http(key) as http:
        made = await http.post(
            "/v1/images/generations",
            json={**LOW, "prompt": EVIL, "n": 2},
            headers={"X-Request-Id": "order-17"},
        )
        assert made.status_code == 200, made.text
        refused = await http.post(
            "/v1/images/generations", json={**LOW, "prompt": "a", "size": "7x7"}
        )
        assert refused.status_code == 400
        lost = await http.post(
            "/v1/images/generations", json={**LOW, "prompt": "[sandbox:unknown] a"}
        )
        assert lost.status_code == 504
    await served.gateway.request_log.flush()
    return made.headers["x-request-id"]


def text_of(page: str) -> str:
    """The words of a page without its tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def secret_of(page: str) -> str:
    """The new secret that a page shows."""
    found = re.search(r'<code id="new-secret">([^<]+)</code>', page)
    assert found is not None
    return found[1]
