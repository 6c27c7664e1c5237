"""`gateway admin-keys`: a running server obeys at once; a lost key is replaced on the server."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from gateway.vault import key_format
from tests.cli.test_cli_manners import TRIES, RunningGateway, running_gateway

TENANTS = "/admin/v1/tenants"


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    """One server for every test of this module."""
    with running_gateway() as gateway:
        yield gateway


def make_key(running: RunningGateway, name: str, *options: str) -> dict[str, Any]:
    made: dict[str, Any] = running.command(
        "admin-keys", "create", "--name", name, "--json", *options
    ).json()
    return made


def status(running: RunningGateway, secret: str, path: str = TENANTS) -> int:
    return running.ask("GET", path, secret).status_code


def until_refused(running: RunningGateway, secret: str) -> None:
    """Wait until the key is refused: the server hears of a revocation by notification."""
    for _ in range(TRIES):
        if status(running, secret) == 401:
            return
    raise AssertionError("the key still works")


def listed(running: RunningGateway) -> dict[str, dict[str, Any]]:
    return {key["id"]: key for key in running.command("admin-keys", "list", "--json").json()}


def test_a_key_is_made_by_command_and_works_at_the_running_server(running: RunningGateway) -> None:
    made = make_key(running, "prometheus", "--scopes", "metrics", "--expires", "90d")
    assert key_format.key_kind(made["secret"]) == "admin"
    assert (made["name"], made["scopes"], made["origin"]) == ("prometheus", ["metrics"], "command")
    assert status(running, made["secret"], "/metrics") == 200
    assert status(running, made["secret"]) == 403
    shown = running.command("admin-keys", "list")
    assert "prometheus" in shown.out
    assert made["secret"] not in shown.out
    assert listed(running)[made["id"]]["last_used_at"] is not None


def test_a_link_opens_the_console_of_the_running_server_once(running: RunningGateway) -> None:
    made = running.command("console-link", "--json").json()
    assert made["url"].startswith(f"{running.base_url}/console/login/link?token=")
    assert made["expires_in_seconds"] == 600
    with httpx2.Client() as browser, httpx2.Client() as late:
        assert browser.get(made["url"]).headers["location"] == "/console"
        assert late.get(made["url"]).status_code == 401
    assert "/console/login/link?token=" in running.command("console-link").out


def test_a_key_is_rolled_and_revoked_by_name_id_or_last_characters(
    running: RunningGateway,
) -> None:
    made = make_key(running, "deploy")
    twin = running.command("admin-keys", "roll", "deploy", "--grace", "1h", "--json").json()
    assert (status(running, made["secret"]), status(running, twin["secret"])) == (200, 200)
    # Two usable keys have the name now.
    running.command("admin-keys", "revoke", "deploy").expect_refusal()
    running.command("admin-keys", "revoke", made["last4"])
    until_refused(running, made["secret"])
    assert status(running, twin["secret"]) == 200
    running.command("admin-keys", "revoke", twin["id"])
    until_refused(running, twin["secret"])
    running.command("admin-keys", "roll", twin["id"]).expect_refusal()
    running.command("admin-keys", "revoke", "unknown").expect_refusal()


def test_a_command_makes_an_admin_key_after_all_are_lost(running: RunningGateway) -> None:
    for key_id, key in listed(running).items():
        if key["revoked_at"] is None:
            running.command("admin-keys", "revoke", key_id)
    until_refused(running, running.quickstart["admin_key"])
    made = make_key(running, "recovered")
    assert status(running, made["secret"]) == 200


def test_an_invalid_key_request_is_refused(running: RunningGateway) -> None:
    create = ("admin-keys", "create", "--name")
    make_key(running, "taken")
    running.command(*create, "taken").expect_refusal()
    running.command(*create, "new", "--scopes", "root").expect_refusal()
    running.command(*create, "").expect_refusal()
    assert running.command(*create, "new", "--expires", "soon").status == 2
