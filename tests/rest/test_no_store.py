"""No cache keeps an answer that shows a secret, whichever route gives it."""

from collections.abc import Iterator
from typing import Any

from gateway.web.routes import find_route
from tests.admin_helpers import admin
from tests.harness import Served

SHOWN = {"secret", "admin_key", "live_key", "test_key", "token", "password"}
METHODS = {"get", "post", "put", "patch", "delete"}


def names_in(part: Any, page: dict[str, Any], seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """The property names of a schema, through its references."""
    if isinstance(part, list):
        for item in part:
            yield from names_in(item, page, seen)
    if not isinstance(part, dict):
        return
    reference = part.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        found = page["components"]["schemas"][reference.rpartition("/")[2]]
        yield from names_in(found, page, seen | {reference})
    for name, item in part.items():
        if name == "properties":
            yield from item
        yield from names_in(item, page, seen)


async def test_every_route_whose_answer_shows_a_secret_lies_where_nothing_is_stored(
    served: Served,
) -> None:
    async with admin(served) as http:
        page = (await http.get(f"{served.base_url}/openapi.json")).json()
    showing = {
        path
        for path, item in page["paths"].items()
        for method in METHODS & set(item)
        for status, answer in item[method]["responses"].items()
        if status.startswith("2") and SHOWN & set(names_in(answer.get("content", {}), page))
    }
    assert len(showing) >= 8  # keys and webhooks of tenants, admin keys, the operator's webhooks
    assert [path for path in showing if not find_route(path).may_show_secret] == []


async def test_answers_that_show_a_secret_say_no_store_once(served: Served) -> None:
    tenant = f"/tenants/{served.tenant_id}"
    hook = {"url": "https://hooks.example.com/x"}
    async with admin(served) as http:
        for path, body in (
            ("/admin-keys", {"name": "deploy", "scopes": ["metrics"]}),
            (f"{tenant}/keys", {"livemode": False}),
            (f"{tenant}/webhooks", hook),
            ("/webhooks", hook),
        ):
            made = await http.post(path, json=body)
            assert made.status_code == 201, made.text
            rolled = await http.post(f"{path}/{made.json()['id']}/roll", json={})
            assert rolled.is_success, rolled.text
            for answer in (made, rolled, await http.get(path), await http.get(f"{path}/x")):
                assert answer.headers.get_list("cache-control") == ["no-store"]
            assert "secret" in made.json()
            assert "secret" in rolled.json()
