"""The tenant's own pages: models, quotes, usage and budgets, judged by the stub's bill."""

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from gateway.catalog.loading import load_catalog
from gateway.money import format_usd
from tests.harness import GPT2, Served, error_of
from tests.stub_openai import Fault, Stub

PATH = "/v1/images/generations"
LOW = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
MONEY = ("cost_usd", "estimated_usd", "open_usd")
COUNTS = ("requests", "failed_requests", "estimated_requests", "open_requests")
SUMS = (*COUNTS, "images", "input_tokens", "output_tokens", *MONEY)
EVERY_FIELD = "day,model,requested_model,key,user"


async def test_models_are_listed_as_openai_lists_them(served: Served) -> None:
    known = list(load_catalog().models)
    async with served.http(await served.key()) as http:
        answer = (await http.get("/v1/models")).json()
        alone = [(await http.get(f"/v1/models/{name}")).json() for name in known]
    assert answer == {"object": "list", "data": alone}
    assert [model["id"] for model in answer["data"]] == known
    served_by = {model["id"]: model["served_model"] for model in answer["data"]}
    assert served_by["gpt-image-2"] == "gpt-image-2"
    assert {served_by[name] for name in ("dall-e-2", "dall-e-3", "gpt-image-1")} == {
        "gpt-image-2.5-sunburst"
    }
    for model in answer["data"]:
        assert {"id", "object", "created", "owned_by", "shutdown_date", "successor"} < set(model)
        provider = load_catalog().models[model["id"]].provider
        assert (model["object"], model["owned_by"]) == ("model", provider)
        assert 0 < model["created"] < datetime.now(UTC).timestamp()
    async with served.openai(await served.key()) as client:
        assert [model.id async for model in client.models.list()] == known


async def test_an_invalid_model_name_is_not_found(served: Served) -> None:
    async with served.http(await served.key()) as http:
        for name in ("dall-e-4", "gpt-image-1 ", "gpt-99", "%00", "%ed%a0%80", "x" * 3000):
            response = await http.get(f"/v1/models/{name}")
            assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n": 10},
        {"quality": "high"},
        {"quality": "auto", "size": "auto"},
        {"size": "3840x2160", "quality": "high"},
        {"prompt": "猫" * 2000},
        {"model": "gpt-image-2.5-sunburst", "quality": "max"},
        {"model": "gpt-image-2.6-flare", "quality": "max", "complexity": "high"},
    ],
)
async def test_a_quote_bounds_the_bill_and_buys_nothing(
    served: Served, stub: Stub, changes: dict[str, Any]
) -> None:
    body = LOW | changes
    async with served.http(await served.key()) as http:
        quote = (await http.post("/v1/images/quotes", json=body)).json()
        assert stub.calls == []
        assert list(await served.owner_sql("SELECT 1 FROM reservation")) == []
        assert (await http.post(PATH, json=body)).status_code == 200
    assert quote == {
        "object": "quote",
        "model": body["model"],
        "served_model": body["model"],
        "cost_usd_max": quote["cost_usd_max"],
    }
    assert Decimal(quote["cost_usd_max"]).scaleb(9) >= stub.bill[0].cost_nano_usd > 0


async def test_usage_adds_up_to_the_providers_bill_to_the_nano(served: Served, stub: Stub) -> None:
    shared, alice = await served.key(), await served.key(user="alice")
    bodies = [LOW, LOW | {"n": 3}, LOW | {"model": "gpt-image-2.5-flare", "prompt": "猫"}]
    for key in (shared, alice):
        async with served.http(key) as http:
            for body in bodies:
                assert (await http.post(PATH, json=body)).status_code == 200
            stub.faults.add(Fault("status", preset="moderation_blocked"))
            assert (await http.post(PATH, json=LOW)).status_code == 400
    async with served.http(shared) as http:
        report = (await http.get("/v1/usage", params={"group_by": EVERY_FIELD})).json()
        table = (await http.get("/v1/usage", params={"group_by": "model", "format": "csv"})).text
        by_model = (await http.get("/v1/usage", params={"group_by": "model"})).json()
    bill = stub.bill
    assert report["total"] == {
        "requests": len(bill),
        "failed_requests": 2,
        "estimated_requests": 0,
        "open_requests": 0,
        "images": sum(line.n for line in bill),
        "input_tokens": sum(line.input_text_tokens for line in bill),
        "output_tokens": sum(line.output_tokens for line in bill),
        "cost_usd": format_usd(sum(line.cost_nano_usd for line in bill)),
        "estimated_usd": format_usd(0),
        "open_usd": format_usd(0),
    }
    assert (report["object"], report["currency"]) == ("usage_report", "usd")
    assert report["group_by"] == EVERY_FIELD.split(",")
    day = datetime.now(UTC).date().isoformat()
    groups = [tuple(row[field] for field in report["group_by"]) for row in report["data"]]
    models = {(m, m) for m in (GPT2, "gpt-image-2.5-flare")}
    owners = ((str(shared.id), None), (str(alice.id), "alice"))
    assert set(groups) == {(day, *m, *owner) for m in models for owner in owners}
    for field in SUMS:
        summed = sum(Decimal(row[field]) for row in report["data"])
        assert summed == Decimal(report["total"][field])
    rows = list(csv.DictReader(io.StringIO(table)))
    assert rows == [{k: str(v) for k, v in row.items()} for row in by_model["data"]]


async def test_bounds_are_days_the_last_included_or_instants(served: Served) -> None:
    today = datetime.now(UTC).date().isoformat()
    async with served.http(await served.key(livemode=False)) as http:
        assert (await http.post(PATH, json=LOW)).status_code == 200
        counts = {}
        for start, end in (
            (today, today),
            (None, today),
            (today, None),
            ("2020-01-01", "2020-12-31"),
            (f"{today}T00:00:00Z", f"{today}T23:59:59.999999Z"),
            (today, f"{today}T00:00:01"),
            ("0001-01-01", "9999-12-30"),
        ):
            bounds = {n: v for n, v in (("start", start), ("end", end)) if v is not None}
            answer = await http.get("/v1/usage", params=bounds)
            assert answer.status_code == 200, answer.text
            counts[start, end] = answer.json()["total"]["requests"]
    midnight = datetime.now(UTC).strftime("%H:%M:%S") < "00:00:02"
    assert list(counts.values()) == [1, 1, 1, 0, 1, int(midnight), 1]


BAD_QUERIES = {
    "start=": None,
    "start=yesterday": "start",
    "start=2026-13-01": "start",
    "start=2026-02-30": "start",
    "start=%00": "start",
    "start=9999-12-31": "start",
    "end=9999-12-31": "end",
    "start=0001-01-01T00:00:00%2B23:59": "start",
    "end=9999-12-31T23:59:59-23:59": "end",
    "start=2026-11-20&end=2026-11-18": "start",
    "start=2026-11-20T00:00:00Z&end=2026-11-20T00:00:00Z": "start",
    "group_by=tenant": "group_by",
    "group_by=day,day": "group_by",
    "group_by=day;model": "group_by",
    "group_by=cost_usd": "group_by",
    "group_by=1": "group_by",
    "format=xml": "format",
    "format=": "format",
}


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
async def test_bad_bounds_and_groups_are_refused_by_name(served: Served, zone: str) -> None:
    tenant_id = await served.tenant("far away", time_zone=zone)
    answers = {}
    async with served.http(await served.key(tenant_id=tenant_id)) as http:
        for query in BAD_QUERIES:
            response = await http.get(f"/v1/usage?{query}")
            answers[query] = error_of(response)["param"] if response.is_error else None
            assert response.status_code in {200, 400}, (query, response.status_code)
    assert answers == BAD_QUERIES


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
async def test_the_first_and_last_possible_days_cause_no_server_error(
    served: Served, zone: str
) -> None:
    tenant_id = await served.tenant("far away", time_zone=zone)
    async with served.http(await served.key(tenant_id=tenant_id)) as http:
        for query in ("start=0001-01-01", "end=9999-12-30", "start=0001-01-02&end=9999-12-29"):
            assert (await http.get(f"/v1/usage?{query}")).status_code in {200, 400}, query


async def test_a_name_that_looks_like_a_formula_is_no_formula_in_csv(served: Served) -> None:
    key = await served.key(livemode=False, user='=HYPERLINK("http://evil","x")')
    async with served.http(key) as http:
        assert (await http.post(PATH, json=LOW)).status_code == 200
        answer = await http.get("/v1/usage?group_by=user&format=csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["user"] for row in rows] == ['\'=HYPERLINK("http://evil","x")']


async def test_an_empty_report_has_its_header_and_a_total_of_nothing(served: Served) -> None:
    async with served.http(await served.key()) as http:
        table = (await http.get("/v1/usage?format=csv")).text
        grouped = (await http.get("/v1/usage?format=csv&group_by=day,model")).text
    assert table == f"{','.join(SUMS)}\n{'0,' * len(COUNTS)}0,0,0{',0.000000000' * len(MONEY)}\n"
    assert grouped.splitlines()[0] == f"day,model,{','.join(SUMS)}"
    assert all(len(row) == 2 + len(SUMS) for row in csv.reader(io.StringIO(grouped)))


async def test_a_budget_shows_what_is_spent_held_and_left(served: Served, stub: Stub) -> None:
    key = await served.key()
    await served.budget("1.5", window="month")
    async with served.http(key) as http:
        before = (await http.get("/v1/budgets")).json()["data"][0]
        assert (await http.post(PATH, json=LOW)).status_code == 200
        after = (await http.get("/v1/budgets")).json()["data"][0]
    spent = stub.bill[0].cost_nano_usd
    expected = {
        "object": "budget",
        "id": before["id"],
        "owner": "tenant",
        "livemode": True,
        "window": "month",
        "limit_usd": "1.50",
        "raise": None,
        "enforcement": "hard",
        "alert_percents": [50, 80, 100],
        "spent_usd": "0.000000000",
        "held_usd": "0.000000000",
        "remaining_usd": "1.500000000",
        "period_start": before["period_start"],
        "resets_at": before["resets_at"],
    }
    assert before == expected
    left = format_usd(1_500_000_000 - spent)
    assert after == expected | {"spent_usd": format_usd(spent), "remaining_usd": left}
    starts = datetime.fromisoformat(after["period_start"])
    assert starts <= datetime.now(UTC) < datetime.fromisoformat(after["resets_at"])
    assert (starts.day, starts.hour) == (1, 0)


async def test_metrics_count_answers_and_money_and_tell_no_id(served: Served, stub: Stub) -> None:
    key, admin = await served.key(), served.gateway.core.new_admin_key
    assert admin is not None
    async with served.http(admin.reveal()) as http:

        async def money() -> float:
            lines = (await http.get("/metrics")).text.splitlines()
            name = "gateway_cost_nano_usd_total{"
            live = [line for line in lines if line.startswith(name) and 'livemode="true"' in line]
            return sum(float(line.rpartition(" ")[2]) for line in live)

        before = await money()
        async with served.http(key) as tenant:
            assert (await tenant.post(PATH, json=LOW)).status_code == 200
            await tenant.get("/v1/models/of-my-own-invention")
            await tenant.get(f"/{served.tenant_id}/{key.id}")
        assert await money() - before == stub.bill[0].cost_nano_usd
        answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert f'gateway_requests_total{{method="POST",route="{PATH}",status="200"}}' in answer.text
    for private in (str(served.tenant_id), str(key.id), "invention"):
        assert private not in answer.text
