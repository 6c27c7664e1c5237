"""`gateway master-key`: keys at rest are replaced by command, and a running server serves on."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.test_cli_manners import RunningGateway, running_gateway

SECRET = "sk-own-canary-4b8e2d6f1a"


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    """One server for every test of this module."""
    with running_gateway() as gateway:
        yield gateway


def status(running: RunningGateway) -> dict[tuple[str, str], dict[str, Any]]:
    rows = running.command("master-key", "status", "--json").json()
    return {(row["key"], row["version"]): row for row in rows}


def test_data_keys_are_replaced_by_command(running: RunningGateway) -> None:
    running.command("credentials", "set", "--tenant", "default", stdin=SECRET)
    done = running.command("master-key", "rotate", "--data-keys", "--json").json()
    assert done == {"tenants": 1, "secrets": 1, "unreadable": [], "resumed": False}
    found = status(running)
    assert found["data keys", "newest"]["state"] == "in use"
    assert found["data keys", "replaced"]["needed_by"] == 1
    shown = running.command("credentials", "list", "--tenant", "default", "--json").json()
    assert shown[0]["key"] == f"…{SECRET[-4:]}"
    assert running.command("master-key", "rotate", "--data-keys", "--prune").status == 2


def test_the_pepper_is_rolled_by_command(running: RunningGateway) -> None:
    live, admin = running.quickstart["live_key"], running.quickstart["admin_key"]
    running.command("master-key", "retire-pepper").expect_refusal()
    rolled = running.command("master-key", "roll", "pepper", "--json").json()
    assert (rolled["secret"], rolled["version"]) == ("pepper", 2)
    before = status(running)["pepper", "1"]["needed_by"]
    running.expect_soon(live, 200)
    assert running.ask("GET", "/admin/v1/tenants", admin).status_code == 200
    new = running.command("keys", "create", "--tenant", "default", "--json").json()
    running.expect_soon(new["key"], 200)
    # The server may hear of the roll a moment later, and then gives the pepper at the next use.
    for _ in range(200):
        if status(running)["pepper", "1"]["needed_by"] < before:
            break
        running.expect_soon(live, 200)
    else:
        raise AssertionError("no key took the new pepper")
    # The test key was not used, so the old pepper stays.
    running.command("master-key", "retire-pepper").expect_refusal()


def test_the_link_key_is_rolled_by_command(running: RunningGateway) -> None:
    rolled = running.command("master-key", "roll", "link-key", "--json").json()
    assert rolled["version"] == 2
    found = status(running)
    assert found["link key", "1"]["state"].startswith("accepted until ")
    assert found["link key", "2"]["state"].startswith("used from ")
    running.command("master-key", "roll", "link-key", "--links-end-now")
    assert status(running)["link key", "3"]["state"] == "in use"
    assert running.command("master-key", "roll", "pepper", "--links-end-now").status == 2
    assert running.command("master-key", "roll", "nothing").status == 2
