"""Commands write to the audit trail under the login of the person who ran them."""

from collections.abc import Iterator

import psutil  # type: ignore[import-untyped]  # comes with the embedded Postgres
import pytest

from tests.cli.test_cli_manners import RunningGateway, running_gateway

SECRET = "sk-command-canary-7a6b5c4d"
AUDIT = "/admin/v1/audit?limit=100"


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    """One server for every test of this module."""
    with running_gateway() as gateway:
        yield gateway


def test_every_command_that_changes_something_leaves_its_row(running: RunningGateway) -> None:
    command = running.command
    admin_key = running.quickstart["admin_key"]
    before = running.ask("GET", AUDIT, admin_key).json()["data"]
    tenant = command("tenants", "create", "globex", "--json").json()["id"]
    target = ("--tenant", "globex")
    command("tenants", "set", "globex", "--prompts", "stored")
    command("tenants", "suspend", "globex")
    command("tenants", "resume", "globex")
    key = command("keys", "create", *target, "--user", "alice", "--json").json()
    twin = command("keys", "roll", key["id"], "--json").json()
    command("keys", "revoke", twin["id"])
    command("credentials", "set", *target, stdin=SECRET)
    command("credentials", "delete", *target)
    command("budgets", "set", *target, "--limit-usd", "5")
    command("budgets", "set", *target, "--limit-usd", "6", "--window", "month")
    command("limits", "set", *target, "--requests", "60", "--concurrent", "5")
    command("limits", "remove", *target, "--kind", "concurrent")
    rates = ("--text-input", "5", "--image-input", "8", "--image-output", "28")
    command("prices", "add", "--model", "gpt-image-2", *rates)
    command("master-key", "rotate")
    for reading in ("tenants list", "keys list --tenant globex", "prices list", "usage"):
        assert command(*reading.split()).status == 0
    command("tenants", "create", "globex").expect_refusal()
    answer = running.ask("GET", AUDIT, admin_key)
    found = answer.json()["data"]
    new = found[: len(found) - len(before)][::-1]
    assert [(entry["action"], entry["tenant_id"]) for entry in new] == [
        ("tenant.created", tenant),
        ("tenant.updated", tenant),
        ("tenant.suspended", tenant),
        ("tenant.resumed", tenant),
        ("user.created", tenant),
        ("api_key.issued", tenant),
        ("api_key.rolled", tenant),
        ("api_key.revoked", tenant),
        ("credential.stored", tenant),
        ("credential.deleted", tenant),
        ("budget.created", tenant),
        ("budget.updated", tenant),
        ("limit.created", tenant),
        ("limit.created", tenant),
        ("limit.removed", tenant),
        ("price.added", None),
        ("master_key.rotated", None),
    ]
    login = psutil.Process().username()
    assert {(entry["actor"]["type"], entry["actor"]["id"]) for entry in new} == {("cli", login)}
    assert {entry["request_id"] for entry in new} == {None}
    for secret in (SECRET, key["key"], twin["key"]):
        assert secret not in answer.text


def test_the_quick_start_is_told_as_the_gateways_own(running: RunningGateway) -> None:
    first = running.ask("GET", AUDIT, running.quickstart["admin_key"]).json()["data"][-4:]
    assert [(entry["action"], entry["actor"]["type"]) for entry in first] == [
        ("api_key.issued", "gateway"),
        ("api_key.issued", "gateway"),
        ("tenant.created", "gateway"),
        ("operator_key.created", "gateway"),
    ]
