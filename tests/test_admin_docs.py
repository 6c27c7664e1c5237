"""docs/admin.md: every command in it does what it says, in the order in which it stands there."""

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
from tests.harness import Served

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "admin.md").read_text()


async def test_every_command_of_the_page_succeeds(served: Served) -> None:
    headers = {"Authorization": f"Bearer {admin_secret(served)}"}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        root = f"{served.base_url}{ROOT}"
        tenant = f"{root}/tenants/{served.tenant_id}"
        user = created(await http.post(f"{tenant}/users", json={"name": "bob"}))
        key = created(await http.post(f"{tenant}/keys", json={}))
        body = {"window": "week", "limit_usd": "5"}
        budget = created(await http.put(f"{tenant}/budgets", json=body))
        house_budget = created(await http.put(f"{root}/budgets", json=body))
        pace = {"kind": "images", "value": 5}
        limit = created(await http.put(f"{tenant}/limits", json=pace))
        admin_key = created(
            await http.post(f"{root}/admin-keys", json={"name": "old", "scopes": ["metrics"]})
        )
        await http.patch(tenant, json={"name": "before"})
        call = await unknown_call(served)
        variables = {
            "GATEWAY": root,
            "CALL": call,
            "TENANT": str(served.tenant_id),
            "USER": user["id"],
            "KEY": key["id"],
            "BUDGET": budget["id"],
            "HOUSE_BUDGET": house_budget["id"],
            "UNTIL": (datetime.now(UTC) + timedelta(days=1)).isoformat(),
            "LIMIT": limit["id"],
            "OLD_ADMIN_KEY": admin_key["id"],
            "ADMIN": headers["Authorization"],
        }
        before = await entries(served)
        asked, writes = set(), 0
        for method, url, content in commands(PAGE, variables):
            answer = await http.request(method, url, content=(content or "").encode())
            assert answer.is_success, (method, url, answer.text)
            asked.add((method, url.removeprefix(root).partition("?")[0]))
            writes += method != "GET"
        paths = (await http.get(f"{served.base_url}/openapi.json")).json()["paths"]
    documented = {
        (method.upper(), path.removeprefix(ROOT))
        for path, methods in paths.items()
        if path.startswith(ROOT) and "/webhooks" not in path  # docs/webhooks.md has those
        for method in methods
    }
    shown = {
        (method, path.replace("{tenant_id}", str(served.tenant_id))) for method, path in documented
    }
    of_house = "/budgets/{budget_id}"
    shown = {
        (method, path.replace(of_house, f"/budgets/{house_budget['id']}"))
        if path.startswith(of_house)
        else (method, path)
        for method, path in shown
    }
    parts = {
        "{key_id}": key["id"],
        "{admin_key_id}": admin_key["id"],
        "{provider}": "openai",
        "{budget_id}": budget["id"],
        "{limit_id}": limit["id"],
        "{call_id}": call,
    }
    for name, value in parts.items():
        shown = {(method, path.replace(name, value)) for method, path in shown}
    assert asked == shown
    told = (await entries(served))[len(before) :]
    operator = await operator_actor(served)
    assert [entry["actor"] for entry in told] == [operator] * writes


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
        [row] = [line for line in PAGE.splitlines() if line.startswith(f"| `{noun}.")]
        assert f".{verb}`" in row, action
