"""Operators' prices, usage reports and reconciliation over REST."""

import asyncio
import csv
import io
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.exc import IntegrityError

from tests.admin_helpers import (
    GENERATIONS,
    LOW,
    NO_ID,
    JsonObject,
    Refusal,
    admin,
    answered,
    created,
    every_page,
    refusal,
)
from tests.harness import GPT2, Served
from tests.stub_openai import Fault, Stub

RATES = {"text_input": "5", "image_input": "8", "image_output": "28"}
VERSION = {"model": GPT2, **RATES}


def soon(**distance: float) -> str:
    return (datetime.now(UTC) + timedelta(**distance)).isoformat()


async def test_an_added_price_applies_to_the_next_quote(served: Served) -> None:
    key = await served.key()
    async with admin(served) as http, served.http(key) as tenant:
        for factor in range(1, 6):
            price = {name: str(Decimal(rate) * factor) for name, rate in RATES.items()}
            added = created(await http.post("/prices", json={"model": GPT2, **price}))
            quote = answered(await tenant.post("/v1/images/quotes", json=LOW))
            single = Decimal(quote["cost_usd_max"]) / factor
            assert single == pytest.approx(Decimal("0.0059"), abs=Decimal("0.002"))
        start = datetime.fromisoformat(added["effective_from"])
        assert timedelta(0) <= datetime.now(UTC) - start < timedelta(minutes=1)
        dearest = {**VERSION, "effective_from": soon(days=30), "image_output": "10000"}
        future = created(await http.post("/prices", json=dearest))
        assert answered(await tenant.post("/v1/images/quotes", json=LOW)) == quote
        listed = await every_page(http, "/prices", model=GPT2)
    assert listed[:2] == [future, added]
    assert added == {
        "id": added["id"],
        "object": "price",
        "model": GPT2,
        "effective_from": added["effective_from"],
        "text_input": "25.00",
        "image_input": "40.00",
        "image_output": "140.00",
        "text_output": "140.00",
        "per_image": "0.00",
        "per_second": "0.00",
    }


async def test_every_version_is_listed_page_by_page(served: Served) -> None:
    async with admin(served) as http:
        for n in range(60):
            body = {**VERSION, "effective_from": f"2025-01-01T00:{n:02}:00Z"}
            created(await http.post("/prices", json=body))
            body = {
                "model": "dall-e-2/512x512",
                "per_image": "0.02",
                "effective_from": soon(days=n + 1),
            }
            created(await http.post("/prices", json=body))
        everything = await every_page(http, "/prices")
        assert len(everything) > 120
        assert await every_page(http, "/prices", limit=7) == everything
        ids = [int(price["id"]) for price in everything]
        assert ids == sorted(ids, reverse=True)
        assert len(await every_page(http, "/prices", model=GPT2)) == 61
        assert await every_page(http, "/prices", model="nothing") == []
        for query in ("after=x", "after=0", f"after={2**63}", "model=%00", "model="):
            answer = refusal(await http.get(f"/prices?{query}"))
            assert answer == Refusal(400, "invalid_value", query.partition("=")[0])


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "gpt-image-99"}, Refusal(404, "not_found", "model")),
        ({"model": "gpt-image-2-2026-04-21"}, Refusal(400, "invalid_value", "model")),
        ({"model": "\x00"}, Refusal(400, "invalid_value", "model")),
        ({"text_input": None}, Refusal(400, "invalid_value", None)),
        ({"text_input": "-1"}, Refusal(400, "invalid_value", "text_input")),
        ({"image_output": "10000.000000001"}, Refusal(400, "invalid_value", "image_output")),
        ({"image_output": 28}, Refusal(400, "invalid_value", "image_output")),
        ({"per_image": "0.02"}, Refusal(400, "invalid_value", None)),
        (
            {**dict.fromkeys(RATES), "per_image": "0.02"},
            Refusal(400, "invalid_value", "per_image"),
        ),
        (
            {**dict.fromkeys(RATES), "per_image": "0"},
            Refusal(400, "invalid_value", "per_image"),
        ),
        ({"model": "dall-e-2/512x512"}, Refusal(400, "invalid_value", "text_input")),
        (
            {"model": "dall-e-2/512x512", **dict.fromkeys(RATES, "0")},
            Refusal(400, "invalid_value", "text_input"),
        ),
        (
            {"effective_from": "2019-12-31T00:00:00Z"},
            Refusal(400, "invalid_value", "effective_from"),
        ),
        (
            {"effective_from": "2100-01-01T00:00:00Z"},
            Refusal(400, "invalid_value", "effective_from"),
        ),
        ({"effective_from": "2026-12-01"}, Refusal(400, "invalid_value", "effective_from")),
        ({"effective_from": 0}, Refusal(400, "invalid_value", "effective_from")),
        ({"currency": "eur"}, Refusal(400, "unknown_parameter", "currency")),
    ],
)
async def test_an_invalid_price_is_refused(
    unchanged: Served, changes: dict[str, Any], expected: Refusal
) -> None:
    async with admin(unchanged) as http:
        before = await every_page(http, "/prices")
        assert refusal(await http.post("/prices", json={**VERSION, **changes})) == expected
        assert await every_page(http, "/prices") == before


async def test_of_many_versions_with_one_start_one_is_added(served: Served) -> None:
    async with admin(served) as http:
        body = {**VERSION, "effective_from": soon(days=1)}
        answers = await asyncio.gather(*(http.post("/prices", json=body) for _ in range(6)))
    refused = [answer for answer in answers if answer.status_code != 201]
    assert len(refused) == 5
    assert {refusal(answer) for answer in refused} == {
        Refusal(409, "already_exists", "effective_from")
    }


async def test_usage_is_reported_over_all_tenants_or_one(served: Served, stub: Stub) -> None:
    other = await served.tenant("globex", time_zone="Pacific/Auckland")
    keys = [await served.key(), await served.key(tenant_id=other, user="=cmd()")]
    for times, key in enumerate(keys, start=1):
        async with served.http(key) as tenant:
            for _ in range(times):
                answered(await tenant.post(GENERATIONS, json=LOW))
    async with served.http(await served.key(livemode=False)) as tenant:
        answered(await tenant.post(GENERATIONS, json=LOW))
    async with admin(served) as http:
        by_tenant = answered(await http.get("/usage?group_by=tenant"))
        one = answered(await http.get(f"/usage?tenant={other}&group_by=user,model"))
        test = answered(await http.get("/usage?livemode=false"))
        everything = answered(await http.get("/usage"))
        table = await http.get("/usage?group_by=tenant,user&format=csv")
    cost = stub.bill[0].cost_nano_usd
    rows = {row["tenant"]: (row["requests"], row["cost_usd"]) for row in by_tenant["data"]}
    assert rows == {
        "acme": (1, f"0.{cost:09}"),
        "globex": (2, f"0.{2 * cost:09}"),
    }
    assert by_tenant["total"]["cost_usd"] == f"0.{3 * cost:09}"
    assert (by_tenant["object"], by_tenant["currency"]) == ("usage_report", "usd")
    assert [(row["user"], row["model"], row["requests"]) for row in one["data"]] == [
        ("=cmd()", GPT2, 2)
    ]
    # The month begins where the tenant is.
    assert datetime.fromisoformat(one["start"]) != datetime.fromisoformat(everything["start"])
    assert (test["total"]["requests"], test["data"]) == (1, [])
    assert everything["total"] == by_tenant["total"]
    assert table.headers["content-type"].startswith("text/csv")
    assert [row["user"] for row in csv.DictReader(io.StringIO(table.text))] == ["", "'=cmd()"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("group_by=colour", Refusal(400, "invalid_value", "group_by")),
        ("group_by=day,day", Refusal(400, "invalid_value", "group_by")),
        ("start=yesterday", Refusal(400, "invalid_value", "start")),
        ("end=9999-12-31", Refusal(400, "invalid_value", "end")),
        ("start=2026-11-20&end=2026-11-18", Refusal(400, "invalid_value", "start")),
        ("format=xml", Refusal(400, "invalid_value", "format")),
        ("livemode=maybe", Refusal(400, "invalid_value", "livemode")),
        ("tenant=acme", Refusal(400, "invalid_value", "tenant")),
        (f"tenant={NO_ID}", Refusal(404, "not_found", "tenant")),
        ("time_zone=Mars/Olympus", Refusal(400, "invalid_value", "time_zone")),
        ("time_zone=", Refusal(400, "invalid_value", "time_zone")),
        ("tennant=acme", Refusal(400, "unknown_parameter", "tennant")),
    ],
)
async def test_an_invalid_report_is_refused(
    unchanged: Served, query: str, expected: Refusal
) -> None:
    async with admin(unchanged) as http:
        assert refusal(await http.get(f"/usage?{query}")) == expected


def sums(report: JsonObject) -> dict[tuple[str, bool], tuple[int, str]]:
    return {
        (found["state"], found["livemode"]): (found["count"], found["amount_usd"])
        for found in report["open"]
    }


NOTHING = (0, "0.000000000")


async def test_open_calls_are_counted_and_listed(served: Served, stub: Stub) -> None:
    key = await served.key()
    async with admin(served) as http, served.http(key) as tenant:
        quiet = answered(await http.get("/reconciliation"))
        states = ("held", "unknown", "estimated")
        assert sums(quiet) == {(s, live): NOTHING for s in states for live in (True, False)}
        assert quiet["invariants"] == {"checked": True, "breaks": []}
        answered(await tenant.post(GENERATIONS, json=LOW))
        quote = answered(await tenant.post("/v1/images/quotes", json=LOW))
        held = f"{Decimal(quote['cost_usd_max']):.9f}"
        for kind in ("reset_after_headers", "truncated_body", "usage_missing"):
            stub.faults.add(Fault(kind))
            await tenant.post(GENERATIONS, json=LOW)
        stub.faults.add(Fault(hold=True))
        call = asyncio.create_task(tenant.post(GENERATIONS, json=LOW))
        await stub.until_held(1)
        found = answered(await http.get("/reconciliation"))
        assert {state: count for state, count in sums(found).items() if count != NOTHING} == {
            ("held", True): (1, held),
            ("unknown", True): (2, f"{2 * Decimal(held):.9f}"),
            ("estimated", True): (1, held),
        }
        [unknown, older] = await every_page(http, "/reconciliation/calls", state="unknown", limit=1)
        [under_way] = await every_page(http, "/reconciliation/calls", state="held")
        [estimated] = await every_page(http, "/reconciliation/calls", state="estimated")
        stub.release()
        answered(await call)
        assert await every_page(http, "/reconciliation/calls", state="held") == []
    assert unknown == {
        "id": unknown["id"],
        "object": "open_call",
        "tenant_id": str(served.tenant_id),
        "tenant_name": "acme",
        "livemode": True,
        "state": "unknown",
        "provider": "openai",
        "served_model": GPT2,
        "outcome": "ambiguous",
        "amount_usd": held,
        "admitted_at": unknown["admitted_at"],
        "deadline_at": unknown["deadline_at"],
    }
    assert unknown["admitted_at"] > older["admitted_at"]
    assert (under_way["outcome"], estimated["outcome"]) == (None, "success_no_usage")


async def test_books_that_do_not_agree_are_shown(served: Served) -> None:
    key = await served.key()
    await served.budget("5", window="total")
    async with served.http(key) as tenant:
        answered(await tenant.post(GENERATIONS, json=LOW))
    [row] = await served.owner_sql("UPDATE budget_period SET spent_nano = 1 RETURNING id")
    async with admin(served) as http:
        found = answered(await http.get("/reconciliation"))
    assert [one["id"] for one in found["invariants"]["breaks"]] == [str(row.id)]
    await served.owner_sql(
        "UPDATE budget_period SET spent_nano = (SELECT final_nano FROM reservation)"
    )


async def test_open_calls_are_asked_for_by_their_state(served: Served) -> None:
    async with admin(served) as http:
        for query, expected in (
            ("", Refusal(400, "missing_required_parameter", "state")),
            ("?state=posted", Refusal(400, "invalid_value", "state")),
            (f"?state=held&after={UUID(int=0)}x", Refusal(400, "invalid_value", "after")),
        ):
            assert refusal(await http.get(f"/reconciliation/calls{query}")) == expected


async def test_every_column_of_money_has_a_check(served: Served) -> None:
    columns = await served.owner_sql(
        "SELECT table_name, column_name FROM information_schema.columns"
        " JOIN information_schema.tables USING (table_schema, table_name)"
        " WHERE table_schema = 'public' AND column_name LIKE '%\\_nano'"
        " AND table_type = 'BASE TABLE'"
    )
    checks = await served.owner_sql(
        "SELECT conrelid::regclass::text AS table_name, pg_get_constraintdef(oid) AS text"
        " FROM pg_constraint WHERE contype = 'c'"
    )
    texts = {
        (column.table_name, column.column_name): [
            check.text
            for check in checks
            if check.table_name == column.table_name
            and re.search(rf"\b{column.column_name}\b", check.text)
        ]
        for column in columns
    }
    assert len(texts) > 10
    assert {
        (table, name)
        for (table, name), found in texts.items()
        if not any(f"{name} >= 0" in text for text in found)
        # A correction downwards is proposed as a row before it is added to the one that is there.
    } == {(table, "amount_nano") for table in ("usage_slot", "usage_day", "usage_owner_day")}
    # Amounts from outside also have an upper bound; the others are sums of them.
    given = {key for key in texts if key[0] in {"price", "budget"}} | {("reservation", "held_nano")}
    assert {key for key in given if not any("<=" in text for text in texts[key])} == set()


async def test_the_tables_refuse_impossible_amounts(served: Served) -> None:
    await served.budget("5", window="total")
    async with served.http(await served.key()) as tenant:
        answered(await tenant.post(GENERATIONS, json=LOW))
    changes = [
        *("budget SET limit_nano = -1", "budget SET limit_nano = 1000000000000000001"),
        *("budget SET removed_at = now()", "budget_period SET spent_nano = -1"),
        *("budget_period SET held_nano = -1", "budget_period SET ceiling_nano = -1"),
        *("budget_period SET breach_nano = -1", "reservation SET held_nano = -1"),
        "reservation SET final_nano = -1",
    ]
    price = (
        "INSERT INTO price (model, effective_from, text_input_nano, image_input_nano,"
        " image_output_nano, text_output_nano) VALUES ('x', now(), 0, 0, 0, {})"
    )
    line = (
        "INSERT INTO ledger SELECT (jsonb_populate_record(l, jsonb_build_object("
        "'seq', 9, 'amount_nano', -1, 'kind', 'post'))).* FROM ledger l LIMIT 1"
    )
    statements = [f"UPDATE {change}" for change in changes]
    statements += [line, price.format(-1), price.format(10_000_000_000_001)]
    for statement in statements:
        with pytest.raises(IntegrityError) as refused:
            await served.owner_sql(statement)
        assert getattr(refused.value.orig, "sqlstate", None) == "23514", statement
