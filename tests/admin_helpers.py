"""Helpers for tests of the operators' REST API: a client with the admin key, the audit trail."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2

from tests.harness import GPT2, TLS, Served, error_of

ROOT = "/admin/v1"
NO_ID = "019aa5f2-7c00-7000-8000-00000000dead"
GENERATIONS = "/v1/images/generations"
LOW = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
JsonObject = dict[str, Any]


def admin_secret(served: Served) -> str:
    """The admin key that the first start made."""
    assert served.gateway.core.new_admin_key is not None
    return served.gateway.core.new_admin_key.reveal()


def admin(served: Served) -> httpx2.AsyncClient:
    """An operator's client; its paths are relative to /admin/v1."""
    return httpx2.AsyncClient(
        base_url=f"{served.base_url}{ROOT}",
        headers={"Authorization": f"Bearer {admin_secret(served)}"},
        timeout=60,
        verify=TLS,
    )


@dataclass(frozen=True)
class Refusal:
    """The status, code and parameter of a refused request."""

    status: int
    code: str
    param: str | None


def refusal(response: httpx2.Response) -> Refusal:
    error = error_of(response)
    return Refusal(response.status_code, error["code"], error["param"])


def created(response: httpx2.Response) -> JsonObject:
    """The body of a 201 answer."""
    assert response.status_code == 201, response.text
    answer: JsonObject = response.json()
    return answer


def answered(response: httpx2.Response) -> JsonObject:
    """The body of a 200 answer."""
    assert response.status_code == 200, response.text
    answer: JsonObject = response.json()
    return answer


async def every_page(http: httpx2.AsyncClient, path: str, **query: Any) -> list[JsonObject]:
    """All items of a list, page by page; each page must state its first and last item."""
    found: list[JsonObject] = []
    query = {"limit": 100, **query}
    while True:
        page = answered(await http.get(path, params=query))
        assert set(page) == {"object", "data", "has_more", "first_id", "last_id"}
        assert page["object"] == "list"
        assert len(page["data"]) <= query["limit"]
        ids = [item["id"] for item in page["data"]]
        assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))
        found += page["data"]
        if not page["has_more"]:
            return found
        query["after"] = page["last_id"]


async def entries(served: Served, **query: Any) -> list[JsonObject]:
    """The audit trail, oldest first."""
    async with admin(served) as http:
        return (await every_page(http, "/audit", **query))[::-1]


async def operator_actor(served: Served) -> JsonObject:
    """The first start's admin key, as the audit trail names it."""
    [row] = await served.owner_sql("SELECT id FROM operator_key WHERE origin = 'first_start'")
    return {"type": "operator_key", "id": str(UUID(str(row.id))), "name": "first key"}


def commands(page: str, variables: dict[str, str]) -> Iterator[tuple[str, str, str | None]]:
    """Method, URL and body of each curl on a page of the documentation."""
    for line in page.splitlines():
        if not line.startswith("curl "):
            continue
        for name, value in variables.items():
            line = line.replace(f"'${name}'", value).replace(f"${name}", value)  # noqa: PLW2901
        words = shlex.split(line.replace("sk-proj-…", "sk-proj-0123456789"))
        body = words[words.index("-d") + 1] if "-d" in words else None
        method = (
            words[words.index("-X") + 1] if "-X" in words else "GET" if body is None else "POST"
        )
        [url] = [word for word in words if word.startswith("http")]
        yield method, url, body
