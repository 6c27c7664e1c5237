"""docs/admin.md: every command in it does what it says, in the order in which it stands there."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2

from gateway.db.audit import Action
from tests.admin_helpers import (
    GENERATIONS,
    LOW,
    ROOT,
    admin_secret,
    commands,
    created,
    entries,
    operator_actor,
)
from tests.console_browser import session_cookies
from tests.harness import Served

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "admin.md").read_text()


async def test_every_command_of_the_page_succeeds(served: Served) -> None:
    headers = {"Authorization": f"Bearer {admin_secret(served)}"}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        root = f"{served.base_url}{ROOT}"
        variables = {"ADMIN": headers["Authorization"], **await objects(served, http, root)}
        paths = (await http.get(f"{served.base_url}/openapi.json")).json()["paths"]
        documented = {
            (method.upper(), path.removeprefix(ROOT))
            for path, methods in paths.items()
            if path.startswith(ROOT) and "/webhooks" not in path  # docs/webhooks.md has those
            for method in methods
        }
        before = await entries(served)
        asked, writes = set(), 0
        for method, url, content in commands(PAGE, variables):
            answer = await http.request(method, url, content=(content or "").encode())
            assert answer.is_success, (method, url, answer.text)
            path = url.removeprefix(root).partition("?")[0]
            asked.add((method, template_of(path, {one for verb, one in documented})))
            writes += method != "GET"
    assert asked == documented
    told = (await entries(served))[len(before) :]
    operator = await operator_actor(served)
    assert [entry["actor"] for entry in told] == [operator] * writes


async def objects(served: Served, http: httpx2.AsyncClient, root: str) -> dict[str, str]:
    """The objects that the page's commands refer to, by variable name."""
    tenant = f"{root}/tenants/{served.tenant_id}"
    week = {"window": "week", "limit_usd": "5"}
    metrics = {"name": "old", "scopes": ["metrics"]}
    made = {
        "USER": await http.post(f"{tenant}/users", json={"name": "bob"}),
        "LEAVING": await http.post(f"{tenant}/users", json={"name": "leaving"}),
        "OLD_TENANT": await http.post(f"{root}/tenants", json={"name": "old"}),
        "KEY": await http.post(f"{tenant}/keys", json={}),
        "BUDGET": await http.put(f"{tenant}/budgets", json=week),
        "HOUSE_BUDGET": await http.put(f"{root}/budgets", json=week),
        "LIMIT": await http.put(f"{tenant}/limits", json={"kind": "images", "value": 5}),
        "OLD_ADMIN_KEY": await http.post(f"{root}/admin-keys", json=metrics),
    }
    renamed = await http.patch(tenant, json={"name": "before"})
    await session_cookies(served)
    [session] = (await http.get(f"{root}/sessions")).json()["data"]
    await served.gateway.request_log.flush()
    # A name may begin with another: the longer one is replaced first.
    variables = {name: str(created(answer)["id"]) for name, answer in made.items()} | {
        "GATEWAY": root,
        "CALL": await unknown_call(served),
        "SESSION": session["id"],
        "REQUEST": renamed.headers["x-request-id"],
        "TENANT": str(served.tenant_id),
        "UNTIL": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
    }
    return dict(sorted(variables.items(), key=lambda item: -len(item[0])))


def template_of(path: str, templates: set[str]) -> str:
    """The documented path that this one is an instance of."""
    if path in templates:
        return path
    [template] = [one for one in templates if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", one), path)]
    return template


async def unknown_call(served: Served) -> str:
    """The id of a call whose outcome is not known."""
    prompt = "a fox [sandbox:unknown]"
    async with served.http(await served.key(livemode=False)) as http:
        await http.post(GENERATIONS, json=LOW | {"prompt": prompt})
    [row] = await served.owner_sql("SELECT id FROM reservation")
    return str(row.id)


def test_every_action_is_on_the_page() -> None:
    for action in Action:
        noun, verb = action.split(".")
        rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{noun}.")]
        assert any(f".{verb}`" in row for row in rows), action
