"""`gateway doctor`, `migrate`, `demo` and `master-key`, beside a server that goes on serving."""

import asyncio
import base64
import json
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from gateway.vault.gateway_secrets import SecretPurpose
from tests.cli.test_cli_manners import CommandLine, Finished, RunningGateway, fresh_folder
from tests.cli.test_cli_manners import running_gateway as start_gateway
from tests.harness import MASTER_KEY, Served, run_sql
from tests.limits_helpers import running_valkey
from tests.models_files import write
from tests.money_helpers import post_image
from tests.stub_openai import Fault, Stub, StubControl, stub_process

NEW_MASTER_KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
CHECKS = [
    *("configuration", "database", "ledger", "open calls", "master key", "connections"),
    *("keys at rest", "storage", "openai key", "gemini key", "prompts"),
]


@pytest.fixture(scope="module")
def openai_stub() -> Iterator[StubControl]:
    """OpenAI in a process of its own."""
    with stub_process() as stub:
        yield stub


@pytest.fixture(scope="module")
def running(openai_stub: StubControl) -> Iterator[RunningGateway]:
    """One server without a house key, for every test of this module."""
    with start_gateway(OPENAI_BASE_URL=openai_stub.base_url) as gateway:
        yield gateway


# doctor


def states_of(ended: Finished) -> dict[str, str]:
    """The state of each check of `doctor --json`."""
    return {check["check"]: check["state"] for check in json.loads(ended.out)}


def test_doctor_reports_a_healthy_gateway(running: RunningGateway) -> None:
    as_json, table = running.command.each("doctor --json", "doctor")
    none = {"openai key": "none", "gemini key": "none", "limits": "none"}
    assert states_of(as_json) == dict.fromkeys(CHECKS, "ok") | none
    assert (as_json.status, as_json.err, table.status, table.err) == (0, "", 0, "")
    assert all(check in table.out for check in CHECKS)
    keys = {"OPENAI_API_KEY": "sk-doctor-canary-0123", "GEMINI_API_KEY": "AIza-doctor-canary"}
    away = {"GEMINI_BASE_URL": "http://127.0.0.1:9"}
    with_key = running.command.process("doctor", "--json", **keys, **away)
    asked = {"limits": "none", "gemini key": "unknown"}
    assert states_of(with_key) == dict.fromkeys(CHECKS, "ok") | asked
    assert "canary" not in with_key.out


def test_doctor_asks_the_models_of_own_hosts(running: RunningGateway, tmp_path: Path) -> None:
    text = """
[[providers]]
name = "away"
kind = "kserve"
base_url = "http://127.0.0.1:9"

[[models]]
id = "sd-away"
provider = "away"
sizes = ["512x512"]
price = { per_image_usd = "0.002" }
"""
    path = write(tmp_path, text)
    ended = running.command.process("doctor", "--json", GATEWAY_MODELS_FILE=str(path))
    assert (states_of(ended)["sd-away"], ended.status) == ("waiting", 0)
    path.write_text(text + "wrong = 1\n")
    refused = running.command.process("doctor", "--json", GATEWAY_MODELS_FILE=str(path))
    assert refused.status == 1
    assert "line 12: models[1].wrong: unknown key" in refused.out


def test_doctor_reports_whether_limits_are_shared(running: RunningGateway) -> None:
    with running_valkey() as server:
        shared = running.command("doctor", "--json", GATEWAY_REDIS_URL=server.url)
        url = server.url.replace("//", "//:canary@")
        server.client.config_set("requirepass", "another")
        locked = running.command("doctor", "--json", GATEWAY_REDIS_URL=url)
    assert (shared.status, states_of(shared)["limits"]) == (0, "ok")
    assert (locked.status, states_of(locked)["limits"]) == (1, "wrong")
    assert "canary" not in locked.out + locked.err


@pytest.mark.parametrize(
    "broken",
    [
        {"OPENAI_API_KEY": ""},
        {"GATEWAY_LOG_LEVEL": "LOUD"},
        {"GATEWAY_STORAGE_URL": "ftp://somewhere/images"},
        {"GATEWAY_STORAGE_URL": "file:///proc/no-such-place"},
        {"GATEWAY_MASTER_KEY": MASTER_KEY},
        {"GATEWAY_MASTER_KEY": "too-short"},
        {"GATEWAY_ADMIN_KEY": "igw_admin_mistyped"},
        {"GATEWAY_DATABASE_URL": "postgresql://127.0.0.1:9/gateway"},
    ],
    ids=lambda broken: "=".join(next(iter(broken.items()))),
)
def test_doctor_reports_every_defect(running: RunningGateway, broken: dict[str, str]) -> None:
    as_json = running.command("doctor", "--json", **broken)
    assert (as_json.status, as_json.err) == (1, "")
    wrong = [check for check in json.loads(as_json.out) if check["state"] == "wrong"]
    assert len(wrong) == 1
    assert "GATEWAY_" in wrong[0]["detail"] or "OPENAI_API_KEY" in wrong[0]["detail"]
    table = running.command("doctor", **broken)
    assert (table.status, table.err) == (1, "")


async def test_doctor_reports_books_that_do_not_agree(database: str, tmp_path: Path) -> None:
    command = CommandLine(
        {
            "GATEWAY_DATA_DIR": str(tmp_path),
            "GATEWAY_DATABASE_URL": database,
            "GATEWAY_MASTER_KEY": MASTER_KEY,
        },
        tmp_path,
    )
    well = await asyncio.to_thread(command, "doctor", "--json")
    assert states_of(well)["ledger"] == "ok"
    await run_sql(
        database,
        "WITH t AS (INSERT INTO tenant (id, name) VALUES (gen_random_uuid(), 'x') RETURNING id), "
        "b AS (INSERT INTO budget (tenant_id, livemode, period, limit_nano) "
        "SELECT id, true, 'month', 10 FROM t RETURNING id, tenant_id) "
        "INSERT INTO budget_period (budget_id, tenant_id, period_start, period_end, spent_nano) "
        "SELECT id, tenant_id, now(), now() + interval '1 day', 5 FROM b",
    )
    ill = await asyncio.to_thread(command, "doctor", "--json")
    assert (ill.status, states_of(ill)["ledger"]) == (1, "wrong")


async def test_doctor_reports_live_calls_of_unknown_cost_and_no_rehearsed_ones(
    served: Served, stub: Stub, database: str, tmp_path: Path
) -> None:
    environment = {"GATEWAY_DATABASE_URL": database, "GATEWAY_MASTER_KEY": MASTER_KEY}
    command = CommandLine({"GATEWAY_DATA_DIR": str(tmp_path), **environment}, tmp_path)

    async def examined() -> Finished:
        return await asyncio.to_thread(command, "doctor", "--json")

    async with served.http(await served.key(livemode=False)) as rehearsing:
        assert (await post_image(rehearsing, "[sandbox:unknown]")).status_code == 504
    known = await examined()
    stub.faults.add(Fault("reset_after_headers", times=2))
    async with served.http(await served.key()) as http:
        for _ in range(2):
            assert (await post_image(http)).status_code == 504
    unknown = await examined()
    assert states_of(known)["open calls"] == "ok"
    assert (unknown.status, states_of(unknown)["open calls"]) == (known.status, "open")
    [detail] = [one["detail"] for one in unknown.json() if one["check"] == "open calls"]
    assert detail.startswith("2 unknown, 0.0")
    assert detail.endswith("`gateway reconcile list`")


# migrate


def test_migrating_again_changes_nothing(running: RunningGateway) -> None:
    first, second, plain = running.command.each("migrate --json", "migrate --json", "migrate")
    assert first.json() == second.json()
    assert set(first.json()) == {"revision"}
    assert (plain.status, plain.err) == (0, "")
    assert first.json()["revision"] in plain.out


def test_two_processes_that_start_on_nothing_at_once_make_one_database() -> None:
    with fresh_folder() as folder:
        command = CommandLine({"GATEWAY_DATA_DIR": str(folder / "data")}, folder)
        with ThreadPoolExecutor() as pool:
            ended = list(pool.map(lambda _: command.process("migrate", "--json"), range(2)))
        assert [one.err for one in ended] == ["", ""]
        assert ended[0].json() == ended[1].json()
        quickstart = json.loads((folder / "data/quickstart.json").read_text())
        [tenant] = command("tenants", "list", "--json").json()
        assert (tenant["name"], tenant["id"]) == ("default", quickstart["tenant_id"])
        assert not (folder / "data/postgres/postmaster.pid").exists()


# demo


def test_a_demo_saves_two_images_and_shows_the_usage(
    running: RunningGateway, tmp_path: Path
) -> None:
    ended = running.command.process("demo", "--output-dir", str(tmp_path / "images"))
    assert (ended.status, ended.err) == (0, "")
    saved = sorted((tmp_path / "images").iterdir())
    assert [path.name for path in saved] == ["demo-mcp.png", "demo-openai.png"]
    for path in saved:
        assert path.name in ended.out
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.width >= 1024) == ("PNG", True)
    key = running.quickstart["test_key"]
    [row] = running.ask("GET", "/v1/usage?group_by=day,model", key).json()["data"]
    for name in ("day", "model", "requests", "images", "cost_usd"):
        assert str(row[name]) in ended.out


def test_a_demo_for_programs_prints_one_json_value(running: RunningGateway, tmp_path: Path) -> None:
    found = running.command("demo", "--output-dir", str(tmp_path), "--json").json()
    assert set(found) == {"images", "usage"}
    assert [Path(image["saved"]).exists() for image in found["images"]] == [True, True]


def test_an_impossible_demo_is_refused(running: RunningGateway, tmp_path: Path) -> None:
    out = ("--output-dir", str(tmp_path))
    command = running.command
    command("demo", *out, GATEWAY_DATA_DIR=str(tmp_path / "empty")).expect_refusal()
    command("demo", *out, "--base-url", "http://127.0.0.1:9").expect_refusal()
    command("demo", *out, GATEWAY_API_KEY="igw_test_mistyped").expect_refusal()
    command("demo", *out, GATEWAY_API_KEY=running.quickstart["live_key"]).expect_refusal()
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_cannot_save_is_refused(running: RunningGateway, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    running.command("demo", "--output-dir", str(tmp_path / "file" / "images")).expect_refusal()


# master-key

OWN_SECRETS = set(SecretPurpose) - {SecretPurpose.RETIRED_PEPPER}
"""A new gateway has one version of each; a retired pepper exists only after `retire-pepper`."""


def tenant_with_provider_key(running: RunningGateway, name: str) -> tuple[str, str]:
    """A new tenant's live key, and the provider key that the command line sealed for it."""
    command, provider_key = running.command, f"sk-{name}-0123456789"
    command("tenants", "create", name, "--json").json()
    command("credentials", "set", "--tenant", name, "--json", stdin=provider_key).json()
    return str(command("keys", "create", "--tenant", name, "--json").json()["key"]), provider_key


def expect_image_paid_by(
    running: RunningGateway, openai_stub: StubControl, key: str, provider_key: str
) -> None:
    """The server opens the tenant's provider key."""
    assert running.make_image(key).status_code == 200
    assert openai_stub.bill()[-1].key == provider_key


def test_the_master_key_is_rotated_under_a_server_that_goes_on_serving(
    running: RunningGateway, openai_stub: StubControl
) -> None:
    command, file = running.command, Path(running.command.environment["GATEWAY_DATA_DIR"])
    file /= "master.key"
    [old_line] = file.read_text().split()
    before = tenant_with_provider_key(running, "before")
    with ThreadPoolExecutor(1) as pool:
        rotating = pool.submit(command, "master-key", "rotate", "--json")
        statuses = {running.make_image(running.quickstart["test_key"]).status_code}
        while not rotating.done():
            statuses.add(running.make_image(running.quickstart["test_key"]).status_code)
    assert statuses == {200}
    rotated = rotating.result().json()
    assert rotated == {
        "master_key": rotated["master_key"],
        "rewrapped": 1 + len(OWN_SECRETS),
        "removed": [],
    }
    assert file.read_text().split()[1:] == [old_line]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    expect_image_paid_by(running, openai_stub, *before)
    between = tenant_with_provider_key(running, "between")
    pruned = command("master-key", "rotate", "--prune", "--json").json()
    assert {**pruned, "removed": len(pruned["removed"])} == {
        "master_key": rotated["master_key"],
        "rewrapped": 0,
        "removed": 1,
    }
    assert old_line not in file.read_text().split()
    expect_image_paid_by(running, openai_stub, *between)
    stored = running.ask(
        "PUT", "/v1/credentials/openai", between[0], json={"secret": "sk-after-0123456789"}
    )
    assert stored.status_code == 200
    plain = command("master-key", "rotate")
    assert (plain.status, plain.err) == (0, "")
    expect_image_paid_by(running, openai_stub, between[0], "sk-after-0123456789")
    assert states_of(command("doctor", "--json"))["master key"] == "ok"


async def test_a_master_key_from_the_environment_is_rotated_by_naming_both(
    database: str, tmp_path: Path
) -> None:
    base = {"GATEWAY_DATA_DIR": str(tmp_path), "GATEWAY_DATABASE_URL": database}
    command = CommandLine(base, tmp_path)

    async def run(*arguments: str, keys: str) -> Finished:
        return await asyncio.to_thread(command, *arguments, GATEWAY_MASTER_KEY=keys)

    assert (await run("migrate", keys=MASTER_KEY)).status == 0
    rotate = ("master-key", "rotate", "--json")
    rotated = await run(*rotate, keys=f"{NEW_MASTER_KEY},{MASTER_KEY}")
    assert rotated.json()["rewrapped"] == len(OWN_SECRETS)
    (await run(*rotate, "--prune", keys=NEW_MASTER_KEY)).expect_refusal()
    assert (await run("tenants", "create", "one", keys=NEW_MASTER_KEY)).status == 0
    (await run("tenants", "create", "two", keys=MASTER_KEY)).expect_refusal()
