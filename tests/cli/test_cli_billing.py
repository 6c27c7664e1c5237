"""`gateway budgets`, `usage` and `prices`, and that a running server obeys them."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli_manners import IMAGE, RunningGateway, running_gateway
from tests.harness import error_of

MONEY = ["cost_usd", "estimated_usd", "open_usd"]
COUNTS = ["requests", "failed_requests", "estimated_requests", "open_requests"]
SUMS = [*COUNTS, "images", "input_tokens", "output_tokens", *MONEY]
MODEL = "gpt-image-2.5-flare"
DEAR = ("--text-input", "50", "--image-input", "80", "--image-output", "300")
NO_KEY_ID = "01a1f8d9-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    """One server for every test of this module."""
    with running_gateway() as gateway:
        yield gateway


def make_key(running: RunningGateway, tenant: str, *options: str) -> dict[str, str]:
    """A new test key; the tenant is made where it is new."""
    running.command("tenants", "create", tenant)
    made: dict[str, str] = running.command(
        "keys", "create", "--tenant", tenant, "--test", "--json", *options
    ).json()
    return made


def quote(running: RunningGateway, model: str = MODEL) -> Decimal:
    """The current most that one image can cost, in USD."""
    body = {**IMAGE, "model": model}
    key = running.quickstart["test_key"]
    answer = running.ask("POST", "/v1/images/quotes", key, json=body)
    return Decimal(answer.json()["cost_usd_max"])


# Budgets


def test_a_budget_binds_the_next_call_and_so_does_a_higher_one(running: RunningGateway) -> None:
    command, key = running.command, make_key(running, "thrifty")
    of_key = ("--tenant", "thrifty", "--key", key["id"], "--test")
    made = command("budgets", "set", *of_key, "--limit-usd", "0.0001", "--json").json()
    shown = {name: made[name] for name in ("owner", "livemode", "window", "limit_usd", "spent_usd")}
    assert shown == {
        "owner": "key",
        "livemode": False,
        "window": "month",
        "limit_usd": "0.0001",
        "spent_usd": "0.000000000",
    }
    refused = running.make_image(key["key"])
    assert (refused.status_code, error_of(refused)["code"]) == (402, "budget_exceeded")
    raised = command("budgets", "set", *of_key, "--limit-usd", "12.50")
    assert (raised.status, raised.err) == (0, "")
    assert "12.50" in raised.out
    answer = running.make_image(key["key"])
    assert answer.status_code == 200
    [budget] = command("budgets", "list", "--tenant", "thrifty", "--json").json()
    assert (budget["key"], budget["limit_usd"]) == (key["id"], "12.50")
    assert budget["spent_usd"] == answer.headers["x-gateway-cost-usd"]
    assert budget["held_usd"] == "0.000000000"


def test_budgets_of_every_owner_and_window_are_listed(running: RunningGateway) -> None:
    command = running.command
    running.command("tenants", "create", "planner")
    # A user comes into being with a key; a budget for a misspelt one would bind no one's calls.
    [refused] = command.each("budgets set --tenant planner --limit-usd 4 --user dora")
    assert refused.status == 1
    running.command("keys", "create", "--tenant", "planner", "--user", "dora")
    for ended in command.each(
        "budgets set --tenant planner --limit-usd 1 --window day",
        "budgets set --tenant planner --limit-usd 2 --window week",
        "budgets set --tenant planner --limit-usd 3 --window total",
        "budgets set --tenant planner --limit-usd 4 --user dora",
        "budgets set --tenant planner --limit-usd 0 --test",
    ):
        assert (ended.status, ended.err) == (0, "")
    listed, table = command.each(
        "budgets list --tenant planner --json", "budgets list --tenant planner"
    )
    found = {(b["owner"], b["livemode"], b["window"], b["limit_usd"]) for b in listed.json()}
    assert found == {
        ("tenant", True, "day", "1.00"),
        ("tenant", True, "week", "2.00"),
        ("tenant", True, "total", "3.00"),
        ("user", True, "month", "4.00"),
        ("tenant", False, "month", "0.00"),
    }
    assert {b["window"] for b in listed.json() if b["resets_at"] is None} == {"total"}
    assert table.status == 0
    for limit in ("1.00", "2.00", "3.00", "4.00", "0.00"):
        assert limit in table.out


@pytest.mark.parametrize(
    "options",
    [
        "--tenant unknown --limit-usd 5",
        "--tenant default --limit-usd -5",
        "--tenant default --limit-usd lots",
        "--tenant default --limit-usd 0.0000000001",
        "--tenant default --limit-usd 5 --window year",
        f"--tenant default --limit-usd 5 --key {NO_KEY_ID} --user dora",
        f"--tenant default --limit-usd 5 --key {NO_KEY_ID}",
    ],
)
def test_an_invalid_budget_is_refused(running: RunningGateway, options: str) -> None:
    running.command("budgets", "set", *options.split()).expect_refusal()


def test_a_budget_is_made_soft_raised_and_removed(running: RunningGateway) -> None:
    running.command("tenants", "create", "growing")
    of_tenant = "--tenant growing --window week"
    made, listed, raised, table, ended, removed, empty = running.command.each(
        f"budgets set {of_tenant} --limit-usd 5 --soft --alert-at 90,10 --json",
        "budgets list --tenant growing --json",
        f"budgets raise {of_tenant} --to-usd 8 --for 7d --json",
        "budgets list --tenant growing",
        f"budgets remove {of_tenant} --raise --json",
        f"budgets remove {of_tenant}",
        "budgets list --tenant growing --json",
    )
    budget = made.json()
    assert (budget["enforcement"], budget["alert_percents"]) == ("soft", [10, 90])
    assert listed.json() == [budget]
    raise_ = raised.json()["raise"]
    assert raised.json() == budget | {"raise": raise_, "remaining_usd": "8.000000000"}
    assert raise_["limit_usd"] == "8.00"
    assert all(word in table.out for word in ("8.00", "soft", "raised"))
    assert ended.json() == budget
    assert (removed.status, "5.00" in removed.out) == (0, True)
    assert empty.json() == []


def test_a_budget_of_the_house_is_set_listed_and_removed(running: RunningGateway) -> None:
    end = (datetime.now(UTC) + timedelta(days=9)).replace(microsecond=0)
    local = end.astimezone(timezone(timedelta(hours=1)))
    set_, said, raised, listed, removed, empty = running.command.each(
        "budgets set --house --limit-usd 500 --time-zone Europe/Madrid --json",
        "budgets set --house --limit-usd 600",
        f"budgets raise --house --to-usd 700 --until {local.isoformat()}",
        "budgets list --house --json",
        "budgets remove --house",
        "budgets list --house",
    )
    budget = set_.json()
    assert (budget["owner"], budget["time_zone"]) == ("house", "Europe/Madrid")
    assert (said.status, raised.status, removed.status) == (0, 0, 0)
    [shown] = listed.json()
    assert shown == budget | {
        "limit_usd": "600.00",
        "remaining_usd": "700.000000000",
        "raise": {"limit_usd": "700.00", "until": end.isoformat()},
    }
    assert "not limited" in empty.out


@pytest.mark.parametrize(
    "line",
    [
        "set --limit-usd 5",
        "set --house --tenant default --limit-usd 5",
        "set --house --user dora --limit-usd 5",
        "set --tenant default --limit-usd 5 --time-zone UTC",
        "set --house --limit-usd 5 --alert-at soon",
        "list",
        "raise --house --to-usd 5",
        "raise --house --to-usd 5 --for 7d --until 2026-12-01T09:00+01:00",
        "raise --house --to-usd 5 --until 2026-12-01T09:00",
        "raise --house --to-usd 5 --for 999999w",
        "remove --house --test",
    ],
)
def test_invalid_budget_commands_show_their_usage(running: RunningGateway, line: str) -> None:
    [ended] = running.command.each(f"budgets {line}")
    assert ended.status == 2


@pytest.mark.parametrize(
    "line",
    [
        "set --house --limit-usd 5 --time-zone Europe/Atlantis",
        "set --house --limit-usd 5 --alert-at 0",
        "raise --house --window day --to-usd 5 --for 7d",
        "raise --tenant default --key 019aa5f2-7c00-7000-8000-00000000dead --to-usd 5 --for 7d",
        "remove --house --window day",
    ],
)
def test_impossible_budget_commands_are_refused(running: RunningGateway, line: str) -> None:
    running.command("budgets", *line.split()).expect_refusal()


def test_a_budget_for_another_tenants_key_is_refused(running: RunningGateway) -> None:
    key = make_key(running, "other")
    running.command(
        *("budgets", "set", "--tenant", "default", "--key", key["id"], "--limit-usd", "5")
    ).expect_refusal()


# Usage


@pytest.fixture(scope="module")
def used(running: RunningGateway) -> list[dict[str, Any]]:
    """Buy three images for the tenant `painter`, two without a user; return their costs."""
    keys = [make_key(running, "painter", "--user", "eve"), make_key(running, "painter")]
    return [
        {"key": key["id"], "cost": Decimal(answer.headers["x-gateway-cost-usd"])}
        for key in (*keys, keys[0])
        for answer in [running.make_image(key["key"])]
    ]


def test_usage_says_the_same_as_table_json_and_csv(
    running: RunningGateway, used: list[dict[str, Any]]
) -> None:
    report = "usage --tenant painter --mode test --group-by model,user"
    as_json, same, as_csv, table = running.command.each(
        f"{report} --json", f"{report} --format json", f"{report} --format csv", report
    )
    found = as_json.json()
    assert {**same.json(), "end": None} == {**found, "end": None}
    assert (found["livemode"], found["group_by"]) == (False, ["model", "user"])
    assert [(row["user"], row["images"]) for row in found["data"]] == [("eve", 2), (None, 1)]
    assert Decimal(found["total"]["cost_usd"]) == sum(use["cost"] for use in used)
    header, *rows = csv.reader(io.StringIO(as_csv.out))
    assert header == ["model", "user", "user_id", *SUMS]
    assert rows == [
        [row["model"], row["user"] or "", row["user_id"] or "", *(str(row[name]) for name in SUMS)]
        for row in found["data"]
    ]
    assert (table.status, table.err) == (0, "")
    for row in (*found["data"], found["total"]):
        assert row["cost_usd"] in table.out


def test_usage_is_cut_by_days_and_by_mode(
    running: RunningGateway, used: list[dict[str, Any]]
) -> None:
    today = datetime.now(UTC).date()
    yesterday, tomorrow = today - timedelta(days=1), today + timedelta(days=1)
    reports = running.command.each(
        f"usage --tenant painter --mode test --json --from {yesterday} --to {tomorrow}",
        f"usage --tenant painter --mode test --json --from {tomorrow} --to {tomorrow}",
        f"usage --tenant painter --mode live --json --from {yesterday} --to {tomorrow}",
        f"usage --tenant painter --json --from {yesterday} --to {tomorrow} --group-by key",
    )
    cut, later, live, both = (report.json() for report in reports)
    assert [report["total"]["images"] for report in (cut, later, live)] == [3, 0, 0]
    assert [report["livemode"] for report in both] == [True, False]
    assert {row["key"] for row in both[1]["data"]} == {use["key"] for use in used}


def test_the_sums_of_usage_are_compared_with_the_ledger_and_made_anew(
    running: RunningGateway,
) -> None:
    key = make_key(running, "adder")["key"]
    for _ in range(2):
        assert running.ask("POST", "/v1/images/generations", key, json=IMAGE).status_code == 200
    report = "usage --tenant adder --mode test --json --group-by hour,provider"
    before = running.command(*report.split()).json()
    rebuilt = running.command("usage-sums", "rebuild", "--tenant", "adder")
    assert "Added 2 ledger lines up again." in rebuilt.out
    assert running.command(*report.split()).json()["data"] == before["data"]
    assert running.command("usage-sums", "check", "--json").json()["differences"] == []
    by_line = running.command("usage", "--tenant", "adder", "--mode", "test", "--format", "jsonl")
    [line] = [json.loads(text) for text in by_line.out.splitlines()]
    assert (line["livemode"], line["requests"]) == (False, 2)
    elsewhere = running.command(*report.split(), "--zone", "Asia/Kathmandu").json()
    assert elsewhere["total"] == before["total"]
    assert elsewhere["data"][0]["hour"] != before["data"][0]["hour"]


def test_the_operators_usage_is_of_every_tenant(
    running: RunningGateway, used: list[dict[str, Any]]
) -> None:
    other = make_key(running, "sculptor")
    running.make_image(other["key"])
    report = running.command("usage", "--mode", "test", "--group-by", "tenant", "--json").json()
    images = {row["tenant"]: row["images"] for row in report["data"]}
    assert (images["painter"], images["sculptor"]) == (len(used), 1)


def test_every_line_of_a_csv_report_has_the_columns_of_its_header(
    running: RunningGateway,
) -> None:
    running.command("tenants", "create", "idle")
    report = "usage --tenant idle --group-by day,model,user --format csv --mode live"
    header, *rows = csv.reader(io.StringIO(running.command(*report.split()).out))
    assert header == ["day", "model", "user", "user_id", *SUMS]
    assert {len(row) for row in rows} <= {len(header)}


def test_a_csv_report_of_both_modes_is_one_table(
    running: RunningGateway, used: list[dict[str, Any]]
) -> None:
    ended = running.command("usage", "--tenant", "painter", "--group-by", "user", "--format", "csv")
    header, *rows = csv.reader(io.StringIO(ended.out))
    assert header not in rows
    assert {len(row) for row in rows} <= {len(header)}


def test_an_invalid_report_is_refused(running: RunningGateway) -> None:
    for ended in running.command.each(
        "usage --from 2026-99-99",
        "usage --from yesterday",
        "usage --from 2026-11-20 --to 2026-11-19",
        "usage --group-by colour --json",
        "usage --tenant unknown",
    ):
        ended.expect_refusal()
    nothing = running.command("usage", "--from", "2001-01-01", "--to", "2001-01-02")
    assert (nothing.status, nothing.err) == (0, "")
    assert nothing.out.count("\n") == 1


# Prices


def test_prices_are_listed_for_people_and_programs(running: RunningGateway) -> None:
    of_model = f"prices list --model {MODEL}"
    all_prices, listed, table = running.command.each(
        "prices list --json", f"{of_model} --json", of_model
    )
    first = listed.json()[0]
    assert first == {
        "version": first["version"],
        "model": MODEL,
        "effective_from": first["effective_from"],
        "text_input": "5.00",
        "image_input": "8.00",
        "image_output": "30.00",
        "text_output": "30.00",
        "per_image": "0.00",
        "per_second": "0.00",
    }
    assert first in all_prices.json()
    assert len({price["model"] for price in all_prices.json()}) > 5
    assert (table.status, table.err) == (0, "")
    assert all(text in table.out for text in (MODEL, "5.00", "8.00", "30.00"))


def test_a_new_price_counts_from_its_start_on_a_running_server(running: RunningGateway) -> None:
    model = "gpt-image-2.5-sunburst"
    before = quote(running, model)
    future = ("--effective-from", "2099-01-01")
    [version] = running.command("prices", "add", "--model", model, *DEAR, *future, "--json").json()
    assert version["effective_from"].startswith("2099-01-01T00:00:00")
    assert quote(running, model) == before
    added = running.command("prices", "add", "--model", model, *DEAR)
    assert (added.status, added.err) == (0, "")
    found = next((q for _ in range(500) if (q := quote(running, model)) != before), before)
    assert found == 10 * before
    running.command("prices", "add", "--model", model, *DEAR, *future).expect_refusal()
    running.command("prices", "add", "--model", "gpt-image-99", *DEAR).expect_refusal()
    by_image = ("--per-image", "0.05")
    running.command("prices", "add", "--model", model, *by_image).expect_refusal()
    running.command("prices", "add", "--model", model, *DEAR, *by_image).expect_refusal()
    dear = ("--text-input", "10001", "--image-input", "8", "--image-output", "30")
    running.command("prices", "add", "--model", model, *dear).expect_refusal()


def price(start: str, model: str = "gpt-image-2", rate: str = '"7"') -> str:
    return (
        f'[[prices]]\nmodel = "{model}"\ntext_input = "5"\nimage_input = {rate}\n'
        f'image_output = "30"\neffective_from = {start}\n'
    )


def test_a_file_of_prices_is_imported_whole_or_not_at_all(
    running: RunningGateway, tmp_path: Path
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(price("2098-01-01T00:00:00Z") + price("2098-02-01T00:00:00Z"))
    added = running.command("prices", "import", str(file), "--json").json()
    starts = [version["effective_from"][:10] for version in added]
    assert starts == ["2098-01-01", "2098-02-01"]
    # The second of these exists already.
    file.write_text(price("2098-03-01T00:00:00Z") + price("2098-02-01T00:00:00Z"))
    running.command("prices", "import", str(file)).expect_refusal()
    listed = running.command("prices", "list", "--model", "gpt-image-2", "--json").json()
    assert [version["effective_from"][:7] for version in listed][-2:] == ["2098-01", "2098-02"]
    file.write_text(price("2098-03-01T00:00:00Z"))
    plain = running.command("prices", "import", str(file))
    assert (plain.status, plain.err) == (0, "")
    assert "2098-03-01" in plain.out


@pytest.mark.parametrize(
    "content",
    [
        "not toml",
        "prices = 3",
        "prices = [3]",
        "[[prices]]\nmodel = 'gpt-image-2'",
        price("2097-01-01T00:00:00Z", rate='"many"'),
        price("2097-01-01T00:00:00Z", rate='"-1"'),
        price("2097-01-01T00:00:00Z", model="gpt-image-99"),
        price('"soon"'),
        price("2097-01-01"),
        price("2097-01-01T00:00:00Z") + "\neffective_form = 2098-01-01T00:00:00Z",
    ],
)
def test_a_file_that_holds_no_prices_is_refused(
    running: RunningGateway, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(content)
    running.command("prices", "import", str(file)).expect_refusal()
