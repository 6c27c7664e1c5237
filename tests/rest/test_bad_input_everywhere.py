"""Invalid input is refused with a reason on every route of the API's description.

The routes, their fields and good bodies come from the description, so that new ones are tested too.
"""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from gateway.domain import Scope
from tests.admin_helpers import (
    NO_ID,
    ROOT,
    JsonObject,
    Refusal,
    admin,
    admin_secret,
    created,
    every_page,
    refusal,
)
from tests.harness import Served, error_of, secret_of
from tests.stub_openai import Stub

DEEP = "[" * 900 + "]" * 900
TOO_DEEP = "[" * 20_000 + "]" * 20_000
# Invalid values, as JSON text.
ODD_VALUES = (r'"a\u0000b"', r'"\ud800"', DEEP, TOO_DEEP, "NaN", "1e400", "-1", "true", '{"": {}}')
ODD_LIMITS = (
    "+5",
    " 5",
    "5.0",
    "0",
    "-1",
    "101",
    "1e2",
    "9" * 30,
    "",
    "x",
    "\u0663",
    "1_0",
    "10.5",
    "\x00",
    "null",
)
ODD_MOMENTS = (
    *("0000-01-01", "0000-01-01T00:00:00Z", "10000-01-01", "10000-01-01T00:00:00Z", "9999-12-31"),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-13-01", "2026-02-30"),
    *("2026-11-21T24:01:00Z", "2026-11-21T00:00:00+25:00"),
    *("\u0662\u0660\u0662\u0666-11-21", "2026-11-21\x00", "now", "1763683200", "-1", "NaN"),
)
ODD_IDS = ("x", "0", "-1", "9" * 30, "\x00", NO_ID + "0", "img_", "../x", "\U0001f600", "%00")
ODD_AMOUNTS: tuple[object, ...] = (
    *(
        "-1",
        "-0.01",
        "+1",
        "1e3",
        "1E3",
        "1e400",
        "0x10",
        "1,5",
        "1.",
        ".5",
        "1.0000000001",
        "\u0665",
    ),
    *(
        "\uff15",
        "NaN",
        "Infinity",
        "-Infinity",
        "1_000",
        " 1",
        "1 ",
        "1\n",
        "",
        "1\x00",
        "9" * 5000,
    ),
    *(5, 5.5, -1, 2**63, 10**400, True, None, [], {}, ["5"]),
)
ODD_ZONES: tuple[object, ...] = (
    *(
        "",
        " ",
        "utc ",
        "UTC\x00",
        "Mars/Olympus",
        "localtime",
        "../UTC",
        "/etc/localtime",
        "+01:00",
    ),
    *("posixrules", "Europe/Madrid\n", "EUROPE/MADRID", "Factory", "x" * 101, "tzdata.zi"),
    *(0, True, None, [], {}, ["UTC"]),
)


@dataclass(frozen=True)
class Operation:
    """One operation of the description."""

    method: str
    path: str
    query: Sequence[str]
    body: JsonObject | None
    """The example of its JSON body."""


def body_example(document: JsonObject, operation: JsonObject) -> JsonObject | None:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    name = content["schema"]["$ref"].rpartition("/")[2]
    example: JsonObject = document["components"]["schemas"][name]["examples"][0]
    return example


@pytest.fixture
async def operations(served: Served) -> list[Operation]:
    async with served.http() as http:
        document = (await http.get("/openapi.json")).json()
    return [
        Operation(
            method.upper(),
            path,
            [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"],
            body_example(document, operation),
        )
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


@pytest.fixture
async def clients(
    served: Served, stub: Stub
) -> AsyncIterator[tuple[httpx2.AsyncClient, httpx2.AsyncClient]]:
    """A tenant's and an operator's; afterwards nothing was held, bought, or changed."""
    secret = secret_of(await served.key(scopes=frozenset(Scope)))
    before = await contents(served)
    async with served.http(secret) as tenant, served.http(admin_secret(served)) as operator:
        yield tenant, operator
    assert await contents(served) == before
    assert stub.calls == []


async def contents(served: Served) -> dict[str, int]:
    """The number of rows in each table."""
    names = await served.owner_sql(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        " AND NOT relispartition"  # of the request log: what is refused leaves a row there
    )
    return {
        name: (await served.owner_sql(f'SELECT count(*) AS n FROM "{name}"'))[0].n  # noqa: S608
        for [name] in names
        if name != "api_key_use"  # a refused request is a use of its key
    }


def target(served: Served, path: str) -> str:
    for name, value in (
        *(("{tenant_id}", str(served.tenant_id)), ("{provider}", "openai")),
        *(("{model_id}", "gpt-image-2"), ("{rest}", "0_0"), ("{image_id}", "img_0_0")),
        *(("{key_id}", NO_ID), ("{budget_id}", "1"), ("{limit_id}", "1")),
        *(("{webhook_id}", NO_ID), ("{delivery_id}", NO_ID), ("{call_id}", NO_ID)),
    ):
        path = path.replace(name, value)
    return path


def with_value(body: JsonObject, name: str, text: str) -> bytes:
    """The body with this JSON text for one of its values."""
    mark = "@value@"
    return json.dumps({**body, name: mark}).replace(f'"{mark}"', text).encode()


def spoiled(body: JsonObject) -> Iterator[tuple[str, bytes]]:
    for name in body:
        for text in ODD_VALUES:
            # A prompt may hold any character that there is.
            is_fine = name == "prompt" and text == ODD_VALUES[0]
            if not is_fine and not (text in {"true", "-1"} and json.loads(text) == body[name]):
                yield name, with_value(body, name, text)


Clients = tuple[httpx2.AsyncClient, httpx2.AsyncClient]


def of(clients: Clients, path: str) -> httpx2.AsyncClient:
    """The client for this route: the operator's or the tenant's."""
    return clients[path.startswith(ROOT)]


async def test_no_field_accepts_a_value_of_another_type(
    served: Served, operations: list[Operation], clients: Clients
) -> None:
    wrong = []
    for one in operations:
        # An image's fields are many; one body of each way to buy has the same ones.
        if one.body is None or one.path in {"/v1/images/quotes", "/generate_image"}:
            continue
        for name, content in spoiled(one.body):
            response = await of(clients, one.path).request(
                one.method, target(served, one.path), content=content
            )
            error = response.is_client_error and error_of(response)
            if not error or (error["param"] or name).partition(".")[0] != name:
                wrong.append((one.method, one.path, name, content[:80], response.text[:300]))
    assert wrong == []


async def test_a_duplicate_name_is_refused_on_routes_that_set_money_or_access(
    served: Served, operations: list[Operation], clients: Clients
) -> None:
    for one in operations:
        if one.body is None or not one.path.startswith((ROOT, "/v1/credentials")):
            continue
        name = next(iter(one.body))
        content = f'{{"{name}": 1, {json.dumps(one.body)[1:]}'.encode()
        response = await of(clients, one.path).request(
            one.method, target(served, one.path), content=content
        )
        assert refusal(response) == Refusal(400, "invalid_json", name), one


async def test_no_list_takes_an_odd_page(
    served: Served, operations: list[Operation], clients: Clients
) -> None:
    asked = 0
    for one in operations:
        for name, values in (("limit", ODD_LIMITS), ("after", ODD_IDS)):
            if name not in one.query:
                continue
            for odd in values:
                # A page of a report has up to ten thousand groups.
                value = "10001" if odd == "101" and one.path.endswith("/usage") else odd
                query = {name: value} | ({"state": "held"} if "state" in one.query else {})
                response = await of(clients, one.path).get(target(served, one.path), params=query)
                assert response.status_code == 400, (one.path, name, value)
                assert refusal(response) == Refusal(400, "invalid_value", name), (one.path, value)
                asked += 1
    assert asked > 150


async def test_no_report_takes_an_odd_moment(
    served: Served, operations: list[Operation], clients: Clients
) -> None:
    found = [one for one in operations if {"start", "end"} <= set(one.query)]
    assert len(found) >= 3
    for one in found:
        for value in ODD_MOMENTS:
            if value == "9999-12-31":
                continue  # a day like any other, where a period may begin with it
            for name in ("start", "end"):
                response = await of(clients, one.path).get(
                    target(served, one.path), params={name: value}
                )
                answered = (response.status_code, value)
                assert answered == (400, value) or is_far(value), (one.path, name, response.text)
                if response.status_code == 400:
                    assert error_of(response)["param"] in {"start", "end"}


def is_far(value: str) -> bool:
    """A moment that can be, if hardly one of a report."""
    return value.startswith(("0001-", "9999-"))


async def test_no_query_has_a_parameter_that_is_not_known(
    served: Served, operations: list[Operation], clients: Clients
) -> None:
    for one in operations:
        if one.method != "GET" or not one.query or one.path.startswith("/images/"):
            continue
        response = await of(clients, one.path).get(
            target(served, one.path), params={"groupby": "day", "state": "held"}
        )
        assert refusal(response).code == "unknown_parameter", one.path


async def test_no_budget_and_no_price_takes_an_odd_amount(served: Served, clients: Clients) -> None:
    _, operator = clients
    price = {"model": "dall-e-2/256x256"}
    for amount in ODD_AMOUNTS:
        budget = {"window": "month", "limit_usd": amount}
        path = f"{ROOT}/tenants/{served.tenant_id}/budgets"
        answer = refusal(await operator.put(path, content=json.dumps(budget)))
        assert answer.status == 400, amount
        assert answer.param == "limit_usd" or answer.code == "invalid_json", amount
        answer = refusal(
            await operator.post(f"{ROOT}/prices", content=json.dumps(price | {"per_image": amount}))
        )
        assert answer.status == 400, amount


async def test_no_tenant_lives_in_an_odd_time_zone(served: Served, clients: Clients) -> None:
    _, operator = clients
    for zone in ODD_ZONES:
        for method, path in (("POST", "tenants"), ("PATCH", f"tenants/{served.tenant_id}")):
            body = {"name": "x", "time_zone": zone}
            answer = refusal(await operator.request(method, f"{ROOT}/{path}", json=body))
            assert answer == Refusal(400, "invalid_value", "time_zone"), (method, zone)


async def test_objects_of_another_tenant_are_not_found(served: Served) -> None:
    other = await served.tenant("globex")
    async with admin(served) as http:
        theirs = f"/tenants/{other}"
        key = created(await http.post(f"{theirs}/keys", json={}))
        user = created(await http.post(f"{theirs}/users", json={"name": "eve"}))
        budget = created(
            await http.put(f"{theirs}/budgets", json={"window": "day", "limit_usd": "5"})
        )
        limit = created(await http.put(f"{theirs}/limits", json={"kind": "images", "value": 5}))
        before = [
            await every_page(http, f"{theirs}/{noun}")
            for noun in ("keys", "users", "budgets", "limits", "credentials")
        ]
        ours = f"/tenants/{served.tenant_id}"
        requests: list[tuple[str, str, Any, str]] = [
            ("DELETE", f"keys/{key['id']}", None, "key_id"),
            ("POST", f"keys/{key['id']}/roll", {}, "key_id"),
            ("DELETE", f"budgets/{budget['id']}", None, "budget_id"),
            ("DELETE", f"limits/{limit['id']}", None, "limit_id"),
            ("POST", "keys", {"user_id": user["id"]}, "user_id"),
            ("PUT", f"credentials/openai?user_id={user['id']}", {"secret": "sk-" + "x" * 9}, ""),
            ("DELETE", f"credentials/openai?user_id={user['id']}", None, ""),
        ]
        for owner in ({"user_id": user["id"]}, {"api_key_id": key["id"]}):
            [name] = owner
            amount = {"window": "day", "limit_usd": "5"}
            requests.append(("PUT", "budgets", amount | owner, name))
            requests.append(("PUT", "limits", {"kind": "images", "value": 5} | owner, name))
        for method, path, body, param in requests:
            answer = refusal(await http.request(method, f"{ours}/{path}", json=body))
            assert (answer.status, answer.code) == (404, "not_found"), (method, path)
            assert not param or answer.param in {param, None}, (method, path, answer)
        after = [
            await every_page(http, f"{theirs}/{noun}")
            for noun in ("keys", "users", "budgets", "limits", "credentials")
        ]
        assert after == before
        assert await every_page(http, f"{ours}/keys") == []
