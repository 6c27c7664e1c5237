"""Tenants and modes are isolated, by the routes and by row-level security alone."""

# ruff: noqa: S608 - SQL is put together here from this module's own words alone

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.billing import budgets, usage_sums
from gateway.db.addresses import create_engine, database_url
from gateway.db.engine import APP_ROLE, AS_OPERATOR
from gateway.money import NanoUsd
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served
from tests.limits_helpers import limit
from tests.stub_openai import Stub

LOW = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
SECRET_A, SECRET_B = "sk-tenant-a-0123456789", "sk-tenant-b-0123456789"
NEW_ID = "gen_random_uuid()"
# As tenant B: each would put a row into tenant A.
PLANTS = {
    "tenant_user": f"(id, tenant_id, name) VALUES ({NEW_ID}, :a, 'mallory')",
    "api_key": f"(id, tenant_id, last4, livemode, scopes)"
    f" VALUES ({NEW_ID}, :a, 'xxxx', true, '{{images:write}}')",
    "key_directory": f"(digest, tenant_id, api_key_id) VALUES ('\\x00', :a, {NEW_ID})",
    "credential": "(id, tenant_id, provider, version, data_key_version, sealed, last4)"
    f" VALUES ({NEW_ID}, :a, 'openai', 1, 1, '\\x00', 'xxxx')",
    "data_key": "(tenant_id, version, wrapped, master_key_id) VALUES (:a, 2, '\\x00', 'x')",
    "budget": "(tenant_id, livemode, period, limit_nano) VALUES (:a, true, 'total', 0)",
    "image_spool": "(image_id, tenant_id, path, data_key_version, sealed, size_bytes)"
    " VALUES ('img_b', :a, 'b.png', 1, '\\x00', 1)",
    "image_cleanup": "(tenant_id, livemode, cleaned_at, images) VALUES (:a, true, now(), 1)",
    "rate_limit": "(tenant_id, livemode, kind, value) VALUES (:a, true, 'images', 1)",
    "event": "(tenant_id, livemode, type, data) VALUES (:a, true, 'test', '{}')",
    "webhook_endpoint": f"(id, tenant_id, url) VALUES ({NEW_ID}, :a, 'https://b.example/')",
    "webhook_secret": "(id, tenant_id, endpoint_id, data_key_version, sealed)"
    f" VALUES ({NEW_ID}, :a, {NEW_ID}, 1, '\\x00')",
    "request_log": "(at, id, tenant_id, method, route, status, milliseconds)"
    " VALUES (now(), 'req_1', :a, 'GET', '/mcp', 200, 1)",
    "console_person": "(id, tenant_id, issuer, subject, name, role, has_claimed_role)"
    f" VALUES ({NEW_ID}, :a, 'https://idp.example', 'm', 'm', 'tenant-admin', false)",
    "console_session": "(id, digest, name, role, via, tenant_id, idle_seconds, idle_until,"
    " absolute_until, address, agent)"
    f" VALUES ({NEW_ID}, '\\x00', 'm', 'tenant-admin', 'oidc', :a, 60, now(), now(), '', '')",
    "console_invitation": "(id, digest, tenant_id, email, role, invited_by, expires_at)"
    f" VALUES ({NEW_ID}, '\\x00', :a, 'm@b.example', 'tenant-admin', 'm', now())",
    "webhook_delivery": "(id, tenant_id, endpoint_id, event_id)"
    f" VALUES ({NEW_ID}, :a, {NEW_ID}, {NEW_ID})",
}
REFERENCES = {
    "a budget for his key": "INSERT INTO budget"
    " (tenant_id, api_key_id, livemode, period, limit_nano) VALUES (:b, :key, true, 'total', 0)",
    "a budget for his user": "INSERT INTO budget"
    " (tenant_id, user_id, livemode, period, limit_nano) VALUES (:b, :alice, true, 'total', 0)",
    "a limit for his key": "INSERT INTO rate_limit"
    " (tenant_id, api_key_id, livemode, kind, value) VALUES (:b, :key, true, 'images', 1)",
    "a limit for his user": "INSERT INTO rate_limit"
    " (tenant_id, user_id, livemode, kind, value) VALUES (:b, :alice, true, 'images', 1)",
    "a key for his user": "INSERT INTO api_key"
    " (id, tenant_id, user_id, root_id, last4, livemode, scopes)"
    f" VALUES ({NEW_ID}, :b, :alice, {NEW_ID}, 'xxxx', true, '{{}}')",
    "a credential for his user": "INSERT INTO credential"
    " (id, tenant_id, user_id, provider, version, data_key_version, sealed, last4)"
    f" VALUES ({NEW_ID}, :b, :alice, 'openai', 1, 1, '\\x00', 'xxxx')",
    "a secret for his webhook": "INSERT INTO webhook_secret"
    " (id, tenant_id, endpoint_id, data_key_version, sealed)"
    f" VALUES ({NEW_ID}, :b, :hook, 1, '\\x00')",
    "a delivery to his webhook": "INSERT INTO webhook_delivery"
    f" (id, tenant_id, endpoint_id, event_id) VALUES ({NEW_ID}, :b, :hook, :own_event)",
    "a delivery of his event": "INSERT INTO webhook_delivery"
    f" (id, tenant_id, endpoint_id, event_id) VALUES ({NEW_ID}, :b, :own_hook, :event)",
}
EVENT_DELIVERED = f"""
WITH happened AS (
    INSERT INTO event (tenant_id, livemode, type, data)
    VALUES (:tenant_id, true, 'test', '{{}}') RETURNING id
), hook AS (
    INSERT INTO webhook_endpoint (id, tenant_id, url)
    VALUES ({NEW_ID}, :tenant_id, 'https://a.example/') RETURNING id
), secret AS (
    INSERT INTO webhook_secret (id, tenant_id, endpoint_id, data_key_version, sealed)
    SELECT {NEW_ID}, :tenant_id, id, 1, '\\x00' FROM hook
)
INSERT INTO webhook_delivery (id, tenant_id, endpoint_id, event_id)
SELECT {NEW_ID}, :tenant_id, hook.id, happened.id FROM hook, happened
"""
CLEANED_UP = """
INSERT INTO image_cleanup (tenant_id, livemode, cleaned_at, images)
VALUES (:tenant_id, true, now(), 1)
"""
SPOOLED = """
INSERT INTO image_spool (image_id, tenant_id, path, data_key_version, sealed, size_bytes)
VALUES ('img_' || gen_random_uuid(), :tenant_id, 'a.png', 1, '\\x00', 1)
"""
STORED = """
INSERT INTO stored_bytes (tenant_id, counted_to, size_bytes) VALUES (:tenant_id, '-infinity', 0)
"""
PENDING = """
INSERT INTO usage_pending (tenant_id, reservation_id, seq)
VALUES (:tenant_id, gen_random_uuid(), 1)
"""
STALE = "INSERT INTO usage_stale (tenant_id) VALUES (:tenant_id)"
ARCHIVED = """
INSERT INTO archived_usage (
    tenant_id, month, livemode, lines, held_nano, calls, requests, images, text_input_tokens,
    image_input_tokens, text_output_tokens, image_output_tokens, amount_nano
) VALUES (:tenant_id, '2025-01-01', true, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
"""
PEOPLE = f"""
WITH person AS (
    INSERT INTO console_person (id, tenant_id, issuer, subject, name, role, has_claimed_role)
    VALUES ({NEW_ID}, :tenant_id, 'https://idp.example', :subject, 'Ada', 'tenant-admin', false)
), invitation AS (
    INSERT INTO console_invitation (id, digest, tenant_id, email, role, invited_by, expires_at)
    VALUES ({NEW_ID}, sha256(CAST(:subject AS bytea)), :tenant_id, 'a@b.example', 'tenant-member',
        'Ada', now())
)
INSERT INTO console_session (
    id, digest, name, role, via, tenant_id, idle_seconds, idle_until, absolute_until, address, agent
) VALUES ({NEW_ID}, sha256(CAST(:subject AS bytea)), 'Ada', 'tenant-admin', 'oidc', :tenant_id, 60,
    now(), now(), '', '')
"""
MONEY = {
    "budget_period": "spent_nano",
    "house_budget_period": "spent_nano",
    "idempotency_claim": "answer",
    "reservation": "held_nano",
    "ledger": "amount_nano",
    "price": "text_input_nano",
    "image": "size_bytes",
}
HOUSE = ("house_budget", "house_budget_period")
"""The operator's own rows, hidden from every tenant."""
ALLOWED, DENIED = "", "42501"


@dataclass(frozen=True)
class Two:
    """Two tenants; A has a row in every table."""

    served: Served
    a: UUID
    b: UUID
    key_a: IssuedKey
    key_b: IssuedKey
    image_id: str


@pytest.fixture
async def two(served: Served) -> Two:
    b = await served.tenant("other")
    key_a, key_b = await served.key(user="alice"), await served.key(tenant_id=b, user="bob")
    await served.budget("5", window="total")
    await limit(served, "requests", 50)
    async with served.http(key_a) as http:
        await http.put("/v1/credentials/openai", json={"secret": SECRET_A})
        made = await http.post(
            "/v1/images/generations",
            json={**LOW, "response_format": "url"},
            headers={"Idempotency-Key": "one"},
        )
        assert made.status_code == 200
    await usage_sums.roll_up(served.gateway.database)
    for tenant_id in (served.tenant_id, b):
        await served.owner_sql(PENDING, tenant_id=tenant_id)
        await served.owner_sql(STALE, tenant_id=tenant_id)
        await served.owner_sql(STORED, tenant_id=tenant_id)
        await served.owner_sql(EVENT_DELIVERED, tenant_id=tenant_id)
        await served.owner_sql(CLEANED_UP, tenant_id=tenant_id)
        await served.owner_sql(SPOOLED, tenant_id=tenant_id)
        await served.owner_sql(PEOPLE, tenant_id=tenant_id, subject=str(tenant_id))
    await served.owner_sql(ARCHIVED, tenant_id=served.tenant_id)
    await served.gateway.request_log.flush()
    url = httpx2.URL(made.json()["data"][0]["url"])
    return Two(served, served.tenant_id, b, key_a, key_b, url.path.rpartition("/")[2])


@asynccontextmanager
async def as_role(served: Served, **configuration: str) -> AsyncIterator[AsyncConnection]:
    """A transaction of the serving role with these settings and no others."""
    assert served.gateway.settings.database_url is not None
    url = served.gateway.settings.database_url.get_secret_value()
    engine = create_engine(database_url(url), role=APP_ROLE)
    try:
        async with engine.begin() as connection:
            for name, value in configuration.items():
                await connection.execute(
                    text("SELECT set_config(:name, :value, true)"),
                    {"name": f"gateway.{name}", "value": value},
                )
            yield connection
    finally:
        await engine.dispose()


async def state_of(
    served: Served,
    statement: str,
    *,
    tenant_id: UUID | None = None,
    as_operator: bool = False,
    **parameters: object,
) -> str:
    """The SQLSTATE with which the serving role is refused; empty where it is not."""
    configuration = {} if tenant_id is None else {"tenant_id": str(tenant_id)}
    try:
        async with as_role(served, **configuration) as connection:
            if as_operator:
                await connection.execute(AS_OPERATOR)
            await connection.execute(text(statement), parameters)
    except DBAPIError as error:
        return str(getattr(error.orig, "sqlstate", None))
    return ALLOWED


async def tenant_tables(served: Served) -> dict[str, str]:
    """Every table with rows of tenants, and the column that says whose."""
    rows = await served.owner_sql(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE a.attname = 'tenant_id' AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
        " AND c.relnamespace = 'public'::regnamespace"
    )
    return {"tenant": "id"} | {row.relname: "tenant_id" for row in rows}


async def test_another_tenants_ids_are_not_found(two: Two) -> None:
    async with two.served.http(two.key_b) as http:
        usage = (await http.get("/v1/usage?group_by=day,model,requested_model,key,user")).json()
        budgets = (await http.get("/v1/budgets")).json()
        statuses = {
            (method, path): (await http.request(method, path)).status_code
            for method, path in (
                ("GET", "/v1/credentials/openai"),
                ("DELETE", "/v1/credentials/openai"),
                ("GET", f"/v1/images/{two.image_id}"),
                ("DELETE", f"/v1/images/{two.image_id}"),
            )
        }
        history = await http.get("/v1/images")
    assert usage["data"] == []
    assert usage["total"] == {
        "requests": 0,
        "failed_requests": 0,
        "estimated_requests": 0,
        "open_requests": 0,
        "images": 0,
        "input_tokens": 0,
        "output_tokens": 0,
        "cost_usd": "0.000000000",
        "estimated_usd": "0.000000000",
        "open_usd": "0.000000000",
    }
    assert budgets["data"] == []
    assert statuses == dict.fromkeys(statuses, 404)
    assert two.image_id not in history.text
    async with two.served.http(two.key_a) as http:
        assert (await http.get("/v1/credentials/openai")).json()["last4"] == SECRET_A[-4:]


async def test_a_tenants_credential_is_used_for_no_other_tenant(two: Two, stub: Stub) -> None:
    async with two.served.http(two.key_b) as http:
        await http.put("/v1/credentials/openai", json={"secret": SECRET_B})
        assert (await http.post("/v1/images/generations", json=LOW)).status_code == 200
    assert [call.key for call in stub.calls] == [SECRET_A, SECRET_B]


async def test_row_level_security_alone_hides_every_row_of_another_tenant(two: Two) -> None:
    tables = await tenant_tables(two.served)
    owned, seen_by_b, seen_by_no_tenant = {}, {}, {}
    for table, column in tables.items():
        count = f"SELECT count(*) FROM {table} WHERE {column} = :a"
        owned[table] = (await two.served.owner_sql(count, a=two.a))[0][0]
    async with as_role(two.served, tenant_id=str(two.b)) as connection:
        for table, column in tables.items():
            rows = await connection.execute(text(f"SELECT * FROM {table}"))
            seen_by_b[table] = {getattr(row, column) for row in rows} - {two.b}
    # The setting of operators in earlier releases has no effect any more.
    async with as_role(two.served, operator="on") as connection:
        for table in tables:
            seen_by_no_tenant[table] = (
                await connection.execute(text(f"SELECT * FROM {table}"))
            ).all()
    assert [table for table, count in owned.items() if count == 0] == []
    assert seen_by_b == {table: set() for table in tables}
    assert seen_by_no_tenant == {table: [] for table in tables}


async def test_operators_see_every_tenants_rows_and_only_after_becoming_operators(two: Two) -> None:
    tables = await tenant_tables(two.served)
    async with as_role(two.served, tenant_id=str(two.b)) as connection:
        await connection.execute(AS_OPERATOR)
        seen = {
            table: {
                getattr(row, column)
                for row in await connection.execute(text(f"SELECT * FROM {table}"))
            }
            for table, column in tables.items()
        }
    assert {table for table, owners in seen.items() if two.a not in owners} == set()
    [rights] = await two.served.owner_sql(
        "SELECT pg_has_role('image_gateway_app', 'image_gateway_operator', 'MEMBER') AS may_become,"
        " pg_has_role('image_gateway_app', 'image_gateway_operator', 'USAGE') AS inherits"
    )
    assert (rights.may_become, rights.inherits) == (True, False)


async def test_row_level_security_is_a_plain_equality_or_no_condition(two: Two) -> None:
    """The planner can estimate both, and neither hides a statement's own condition from it."""
    rows = await two.served.owner_sql(
        "SELECT c.relname, p.polname, pg_get_expr(p.polqual, p.polrelid) AS condition"
        " FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid"
    )
    found = {(row.relname, row.polname): row.condition for row in rows}
    setting = "(NULLIF(current_setting('gateway.tenant_id'::text, true), ''::text))::uuid"
    expected = {}
    for table, column in (await tenant_tables(two.served)).items():
        expected[table, "tenant_isolation"] = f"({column} = {setting})"
        expected[table, "operator"] = expected[table, "owner"] = "true"
    for table in HOUSE:
        expected[table, "operator"] = expected[table, "owner"] = "true"
    assert found == expected


async def test_no_tenant_sees_the_operators_budgets(two: Two) -> None:
    async with two.served.gateway.database.operator() as session:
        await budgets.set_limit(session, None, window="total", limit_nano=NanoUsd(10**12))
    async with two.served.http(two.key_b) as http:
        assert (await http.post("/v1/images/generations", json=LOW)).status_code == 200
    counts = {}
    for is_operator in (False, True):
        async with as_role(two.served, tenant_id=str(two.a)) as connection:
            if is_operator:
                await connection.execute(AS_OPERATOR)
            for table in HOUSE:
                found = await connection.execute(text(f"SELECT count(*) FROM {table}"))
                counts[table, is_operator] = found.scalar_one()
    assert counts == {
        ("house_budget", False): 0,
        ("house_budget_period", False): 0,
        ("house_budget", True): 1,
        ("house_budget_period", True): 8,
    }


async def test_a_row_cannot_be_planted_in_another_tenant(two: Two) -> None:
    for table, row in PLANTS.items():
        statement = f"INSERT INTO {table} {row}"
        assert await state_of(two.served, statement, tenant_id=two.b, a=two.a) == DENIED, table


async def test_another_tenants_rows_cannot_be_changed(two: Two) -> None:
    changes = (
        "UPDATE tenant SET status = 'suspended' WHERE id = :a",
        "UPDATE api_key SET revoked_at = now() WHERE tenant_id = :a",
        "UPDATE data_key SET wrapped = '' WHERE tenant_id = :a",
        "UPDATE credential SET sealed = '' WHERE tenant_id = :a",
        "UPDATE budget SET limit_nano = 0 WHERE tenant_id = :a",
        "UPDATE image SET deleted_at = now() WHERE tenant_id = :a",
        "DELETE FROM credential WHERE tenant_id = :a",
        "UPDATE rate_limit SET value = 0 WHERE tenant_id = :a",
        "DELETE FROM rate_limit WHERE tenant_id = :a",
        "UPDATE webhook_endpoint SET url = 'https://b.example/' WHERE tenant_id = :a",
        "UPDATE webhook_secret SET valid_until = now() WHERE tenant_id = :a",
        "UPDATE webhook_delivery SET last_status = 200 WHERE tenant_id = :a",
        "DELETE FROM webhook_endpoint WHERE tenant_id = :a",
        "DELETE FROM webhook_secret WHERE tenant_id = :a",
        "DELETE FROM webhook_delivery WHERE tenant_id = :a",
        "UPDATE console_person SET role = 'tenant-admin' WHERE tenant_id = :a",
        "UPDATE console_session SET ended_at = now(), end_reason = 'm' WHERE tenant_id = :a",
        "DELETE FROM console_invitation WHERE tenant_id = :a",
    )
    async with as_role(two.served, tenant_id=str(two.b)) as connection:
        for change in changes:
            result = await connection.execute(text(change), {"a": two.a})
            assert result.rowcount == 0, change


async def test_an_own_row_cannot_be_moved_to_another_tenant(two: Two) -> None:
    async with two.served.http(two.key_b) as http:
        await http.put("/v1/credentials/openai", json={"secret": SECRET_B})
    statement = "UPDATE credential SET tenant_id = :a"
    assert await state_of(two.served, statement, tenant_id=two.b, a=two.a) == DENIED


async def test_a_row_cannot_refer_to_another_tenants_key_or_user(two: Two) -> None:
    rows = await two.served.owner_sql("SELECT id FROM tenant_user WHERE name = 'alice'")
    values = {"b": two.b, "key": two.key_a.id, "alice": rows[0].id}
    rows = await two.served.owner_sql(
        "SELECT tenant_id, endpoint_id, event_id FROM webhook_delivery"
    )
    of_tenant = {row.tenant_id: row for row in rows}
    values |= {"hook": of_tenant[two.a].endpoint_id, "own_hook": of_tenant[two.b].endpoint_id}
    values |= {"event": of_tenant[two.a].event_id, "own_event": of_tenant[two.b].event_id}
    states = {}
    for name, statement in REFERENCES.items():
        used = {name: values[name] for name in re.findall(r":(\w+)", statement)}
        states[name] = await state_of(two.served, statement, tenant_id=two.b, **used)
    assert [name for name, state in states.items() if state == ALLOWED] == []


async def test_the_serving_role_cannot_touch_money_even_as_operator(two: Two) -> None:
    for table, column in MONEY.items():
        for statement in (
            f"UPDATE {table} SET {column} = {column}",
            f"DELETE FROM {table}",
            f"TRUNCATE {table} CASCADE",
        ):
            assert await state_of(two.served, statement, as_operator=True) == DENIED, statement


async def test_the_request_log_is_read_through_its_table_alone_and_never_edited(two: Two) -> None:
    partitions = await two.served.owner_sql(
        "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'"
    )
    assert partitions
    statements = [
        *(f"SELECT * FROM {row.relname}" for row in partitions),
        "UPDATE request_log SET status = 200",
        "DELETE FROM request_log",
        "TRUNCATE request_log",
        "SELECT add_request_log_day(current_date)",
    ]
    for statement in statements:
        assert await state_of(two.served, statement, as_operator=True) == DENIED, statement


async def test_live_and_test_mode_never_see_each_others_usage(served: Served, stub: Stub) -> None:
    live, test = await served.key(), await served.key(livemode=False)
    totals = {}
    for key, count in ((live, 1), (test, 2)):
        async with served.http(key) as http:
            for _ in range(count):
                made = await http.post("/v1/images/generations", json=LOW)
                assert made.status_code == 200
    for name, key in (("live", live), ("test", test)):
        async with served.http(key) as http:
            report = (await http.get("/v1/usage?group_by=key")).json()
        totals[name] = ([row["key"] for row in report["data"]], report["total"]["requests"])
    assert totals == {"live": ([str(live.id)], 1), "test": ([str(test.id)], 2)}
    assert len(stub.calls) == 1


async def test_a_budget_of_one_mode_neither_shows_nor_binds_in_the_other(served: Served) -> None:
    live, test = await served.key(), await served.key(livemode=False)
    await served.budget("0", window="total", livemode=True)
    await served.budget("5", window="day", livemode=False)
    seen = {}
    for name, key in (("live", live), ("test", test)):
        async with served.http(key) as http:
            listed = (await http.get("/v1/budgets")).json()["data"]
            made = await http.post("/v1/images/generations", json=LOW)
        seen[name] = ([(b["window"], b["livemode"]) for b in listed], made.status_code)
    assert seen == {"live": ([("total", True)], 402), "test": ([("day", False)], 200)}


async def test_a_users_key_sees_that_users_usage_and_budgets_only(served: Served) -> None:
    alice, bob, shared = (
        await served.key(user="alice"),
        await served.key(user="bob"),
        await served.key(),
    )
    rows = await served.owner_sql("SELECT id, name FROM tenant_user")
    ids = {row.name: row.id for row in rows}
    await served.budget("5", window="day", user_id=ids["alice"])
    await served.budget("5", window="month", user_id=ids["bob"])
    await served.budget("5", window="week", api_key_id=shared.id)
    for key in (alice, bob):
        async with served.http(key) as http:
            assert (await http.post("/v1/images/generations", json=LOW)).status_code == 200
    seen = {}
    for name, key in (("alice", alice), ("bob", bob), ("shared", shared)):
        async with served.http(key) as http:
            usage = (await http.get("/v1/usage?group_by=user")).json()["data"]
            budgets = (await http.get("/v1/budgets")).json()["data"]
        seen[name] = ([row["user"] for row in usage], [b["window"] for b in budgets])
    assert seen == {
        "alice": (["alice"], ["day"]),
        "bob": (["bob"], ["month"]),
        "shared": (["alice", "bob"], ["week"]),
    }
