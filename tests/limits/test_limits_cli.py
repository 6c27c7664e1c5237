"""`gateway limits`, and that a running server obeys it."""

import time
from collections.abc import Iterator

import pytest

from tests.cli.test_cli_manners import RunningGateway, running_gateway

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


def test_a_limit_binds_a_running_server_within_a_second(running: RunningGateway) -> None:
    key = make_key(running, "quick")
    assert running.make_image(key["key"]).status_code == 200
    of_tenant = ("--tenant", "quick", "--test")
    made = running.command("limits", "set", *of_tenant, "--requests", "0", "--json").json()
    assert [(one["owner"], one["kind"], one["value"], one["livemode"]) for one in made] == [
        ("tenant", "requests", 0, False)
    ]
    said_at = time.monotonic()
    while running.make_image(key["key"]).status_code != 429:
        assert time.monotonic() < said_at + 1
    running.command("limits", "remove", *of_tenant)
    said_at = time.monotonic()
    while running.make_image(key["key"]).status_code != 200:
        assert time.monotonic() < said_at + 1


def test_several_limits_are_set_at_once_and_listed_with_their_owners(
    running: RunningGateway,
) -> None:
    key = make_key(running, "many", "--user", "anna")
    command, tenant = running.command, ("--tenant", "many")
    command("limits", "set", *tenant, "--requests", "60", "--images", "20")
    command("limits", "set", *tenant, "--key", key["id"], "--concurrent", "2")
    command("limits", "set", *tenant, "--user", "anna", "--images", "5")
    command("limits", "set", *tenant, "--images", "30")  # changes the one above
    listed = command("limits", "list", *tenant, "--json").json()
    found = {(one["owner"], one["kind"], one["value"], one["livemode"]) for one in listed}
    assert found == {
        ("tenant", "requests", 60, True),
        ("tenant", "images", 30, True),
        ("user", "images", 5, True),
        ("key", "concurrent", 2, False),  # a test key has test calls only
    }
    assert "concurrent generations" in command("limits", "list", *tenant).out
    command("limits", "remove", *tenant, "--kind", "images")
    command("limits", "remove", *tenant, "--key", key["id"])
    left = command("limits", "list", *tenant, "--json").json()
    assert {(one["owner"], one["kind"]) for one in left} == {
        ("tenant", "requests"),
        ("user", "images"),
    }


def test_wrong_use_is_refused_with_a_reason(running: RunningGateway) -> None:
    make_key(running, "wrong")
    command, tenant = running.command, ("--tenant", "wrong")
    assert command("limits", "set", *tenant).status == 2
    assert command("limits", "set", *tenant, "--images=-1").status == 2
    for refused in (
        ("set", *tenant, "--images", "99999999999"),
        ("set", *tenant, "--images", "1", "--key", NO_KEY_ID),
        ("set", *tenant, "--images", "1", "--user", "unknown"),
        ("set", "--tenant", "unknown", "--images", "1"),
        ("remove", *tenant),
        ("list", "--tenant", "unknown"),
    ):
        result = command("limits", *refused)
        assert (result.status, "Refused:" in result.err) == (1, True), refused
