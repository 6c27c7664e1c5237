"""`gateway tenants`, `keys` and `credentials`, and that a running server obeys them."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.domain import USUAL_KEY_SCOPES
from tests.cli.test_cli_manners import IMAGE, TRIES, RunningGateway, running_gateway
from tests.harness import error_of
from tests.stub_openai import StubControl, stub_process

NO_KEY_ID = "01a1f8d9-0000-7000-8000-000000000000"
PROVIDER_KEY = "sk-own-canary-4b8e2d6f1a"


@pytest.fixture(scope="module")
def openai_stub() -> Iterator[StubControl]:
    """OpenAI in a process of its own."""
    with stub_process() as stub:
        yield stub


@pytest.fixture(scope="module")
def running(openai_stub: StubControl) -> Iterator[RunningGateway]:
    """One server without a house key, for every test of this module."""
    with running_gateway(OPENAI_BASE_URL=openai_stub.base_url) as gateway:
        yield gateway


def make_key(running: RunningGateway, *options: str) -> dict[str, Any]:
    """A new key of the tenant `default`."""
    made: dict[str, Any] = running.command(
        "keys", "create", "--tenant", "default", "--json", *options
    ).json()
    return made


def code_of(running: RunningGateway, key: str, **changes: str) -> str:
    """The error code with which an image is refused to a key."""
    answer = running.ask("POST", "/v1/images/generations", key, json={**IMAGE, **changes})
    return str(error_of(answer)["code"])


def test_tenants_are_made_and_listed(running: RunningGateway) -> None:
    command = running.command
    made = command("tenants", "create", "Ünï & Co", "--time-zone", "Europe/Madrid", "--json").json()
    assert made == {
        "id": made["id"],
        "name": "Ünï & Co",
        "status": "active",
        "time_zone": "Europe/Madrid",
        "created_at": made["created_at"],
        "continuity": True,
        "fallback": True,
        "stores_prompts": False,
        "image_retention_seconds": None,
        "max_image_bytes": None,
        "deleted_at": None,
    }
    assert datetime.fromisoformat(made["created_at"]).tzinfo is not None
    plain = command("tenants", "create", "globex")
    assert (plain.status, plain.err) == (0, "")
    assert "globex" in plain.out
    listed, table = command.each("tenants list --json", "tenants list")
    assert {"default", "globex", "Ünï & Co"} <= {tenant["name"] for tenant in listed.json()}
    assert made in listed.json()
    assert (table.status, table.err) == (0, "")
    for tenant in listed.json():
        assert tenant["name"] in table.out
        assert tenant["id"] in table.out


def test_tenants_are_listed_in_pages(running: RunningGateway) -> None:
    for number in range(3):
        running.command("tenants", "create", f"paged {number}")
    whole = [one["name"] for one in running.command("tenants", "list", "--json").json()]
    pages: list[str] = []
    while len(pages) < len(whole):
        after = ["--after", pages[-1]] if pages else []
        page = running.command("tenants", "list", "--limit", "2", "--json", *after).json()
        assert len(page) <= 2
        pages += [one["name"] for one in page]
    assert pages == whole
    assert (
        "--after 'paged 0'"
        in running.command("tenants", "list", "--limit", "1", "--after", "paged").out
    )


@pytest.mark.parametrize("name", ["[red]brackets[/red]", "[/]"])
def test_a_name_in_square_brackets_is_printed_as_it_is(running: RunningGateway, name: str) -> None:
    for arguments in (("tenants", "create", name), ("tenants", "suspend", name)):
        ended = running.command(*arguments)
        assert (ended.status, ended.err) == (0, "")
        assert name in ended.out
    assert name in running.command("tenants", "list").out


def test_an_invalid_tenant_is_refused(running: RunningGateway) -> None:
    command = running.command
    command("tenants", "create", "").expect_refusal()
    for ended in command.each(
        "tenants create default",
        "tenants create elsewhere --time-zone Mars/Olympus",
        "tenants suspend unknown",
        "tenants resume unknown --json",
        "keys list --tenant unknown",
        "credentials list --tenant unknown",
    ):
        ended.expect_refusal()


def test_a_suspended_tenants_keys_stop_and_start_again(running: RunningGateway) -> None:
    command = running.command
    tenant = command("tenants", "create", "pausing", "--json").json()
    key = command("keys", "create", "--tenant", tenant["id"], "--test", "--json").json()["key"]
    running.expect_soon(key, 200)
    plain = command("tenants", "suspend", "pausing")
    assert (plain.status, plain.err) == (0, "")
    assert error_of(running.expect_soon(key, 403))["code"] == "tenant_suspended"
    assert command("tenants", "resume", "pausing", "--json").json() == tenant
    running.expect_soon(key, 200)


def test_a_key_may_do_what_it_was_made_for(running: RunningGateway) -> None:
    before = datetime.now(UTC)
    made = make_key(
        running,
        *("--name", "Ünï", "--test", "--user", "alice", "--scopes", "images:write,usage:read"),
        *("--models", "gpt-image-2", "--expires", "90d"),
    )
    assert set(made) == {"id", "name", "key", "livemode", "scopes", "models", "expires_at"}
    assert made["key"].startswith("igw_test_")
    assert (made["name"], made["livemode"], made["models"]) == ("Ünï", False, ["gpt-image-2"])
    assert made["scopes"] == ["images:write", "usage:read"]
    lifetime = datetime.fromisoformat(made["expires_at"]) - before
    assert timedelta(days=90) <= lifetime < timedelta(days=90, minutes=5)
    assert running.make_image(made["key"]).status_code == 200
    assert code_of(running, made["key"], model="gpt-image-2.5-flare") == "model_not_allowed"
    denied = running.ask("GET", "/v1/models", made["key"])
    assert error_of(denied)["code"] == "insufficient_scope"
    report = running.ask("GET", "/v1/usage?group_by=user", made["key"]).json()
    assert [(row["user"], row["images"]) for row in report["data"]] == [("alice", 1)]


def test_a_keys_secret_is_shown_once(running: RunningGateway) -> None:
    plain = running.command("keys", "create", "--tenant", "default")
    assert (plain.status, plain.err) == (0, "")
    [secret] = [word for word in plain.out.split() if word.startswith("igw_live_")]
    assert running.ask("GET", "/v1/models", secret).status_code == 200
    listed, table = running.command.each(
        "keys list --tenant default --json", "keys list --tenant default"
    )
    [info] = [key for key in listed.json() if key["last4"] == secret[-4:]]
    assert info == {
        "id": info["id"],
        "name": None,
        "livemode": True,
        "last4": secret[-4:],
        "scopes": sorted(USUAL_KEY_SCOPES),
        "models": None,
        "user": None,
        "expires_at": None,
        "revoked_at": None,
        "created_at": info["created_at"],
    }
    assert info["id"] in table.out
    for ended in (listed, table):
        assert secret not in ended.out
        assert running.quickstart["live_key"] not in ended.out


def test_a_rolled_key_has_a_twin_and_ends_after_its_grace(running: RunningGateway) -> None:
    old = make_key(running, "--test", "--user", "bob", "--scopes", "images:read")
    new = running.command("keys", "roll", old["id"], "--grace", "24h", "--json").json()
    assert new == {**old, "id": new["id"], "key": new["key"]}
    assert (new["id"], new["key"]) != (old["id"], old["key"])
    running.expect_soon(old["key"], 200)
    running.expect_soon(new["key"], 200)
    plain = running.command("keys", "roll", new["id"], "--grace", "0s")
    assert (plain.status, plain.err) == (0, "")
    [newest] = [word for word in plain.out.split() if word.startswith("igw_test_")]
    running.expect_soon(new["key"], 401)
    running.expect_soon(newest, 200)
    running.command("keys", "roll", new["id"]).expect_refusal()


def test_a_revoked_key_ends_at_once(running: RunningGateway) -> None:
    one, other = make_key(running, "--test"), make_key(running)
    running.expect_soon(one["key"], 200)
    revoked = running.command("keys", "revoke", one["id"], "--json").json()
    assert revoked == {"id": one["id"], "revoked": True}
    assert error_of(running.expect_soon(one["key"], 401))["code"] == "invalid_api_key"
    assert running.command("keys", "revoke", other["id"]).status == 0
    running.expect_soon(other["key"], 401)
    listed = running.command("keys", "list", "--tenant", "default", "--json").json()
    ended = {key["id"] for key in listed if key["revoked_at"] is not None}
    assert {one["id"], other["id"]} <= ended


def test_users_are_shown_disabled_enabled_and_deleted(running: RunningGateway) -> None:
    command, target = running.command, ("--tenant", "default")
    key = make_key(running, "--test", "--user", "dora")["key"]
    running.expect_soon(key, 200)
    listed, table = command.each(
        "users list --tenant default --json", "users list --tenant default"
    )
    [dora] = [user for user in listed.json() if user["name"] == "dora"]
    assert dora["id"] in table.out
    assert command("users", "show", dora["id"][-4:], *target, "--json").json() == dora
    disabled = command("users", "disable", "dora", *target, "--json").json()
    assert disabled == {**dora, "status": "disabled"}
    assert error_of(running.expect_soon(key, 403))["code"] == "user_disabled"
    assert command("users", "enable", "dora", *target).status == 0
    running.expect_soon(key, 200)
    for typed in ("alice\n", ""):
        refused = command("users", "delete", "dora", *target, stdin=typed)
        assert (refused.status, refused.out) == (1, "")
        assert "nothing was deleted" in refused.err
    running.expect_soon(key, 200)
    asked = command("users", "delete", "dora", *target, "--json", stdin="dora\n")
    deleted = json.loads(asked.out)
    assert (deleted["status"], deleted["name"]) == ("deleted", f"deleted-{dora['id']}")
    running.expect_soon(key, 401)
    command("users", "show", "dora", *target).expect_refusal()


def test_a_deleted_tenant_needs_its_name_or_yes(running: RunningGateway) -> None:
    command = running.command
    for options, typed in ((("--yes",), ""), ((), "doomed\n")):
        tenant = command("tenants", "create", "doomed", "--json").json()
        key = command("keys", "create", "--tenant", "doomed", "--test", "--json").json()["key"]
        running.expect_soon(key, 200)
        refused = command("tenants", "delete", "doomed", stdin="default\n")
        assert (refused.status, refused.out) == (1, "")
        gone = command("tenants", "delete", "doomed", *options, stdin=typed)
        assert gone.status == 0
        running.expect_soon(key, 401)
        shown = command("tenants", "show", tenant["id"], "--json").json()
        assert (shown["status"], shown["name"]) == ("deleted", f"deleted-{tenant['id']}")
        command("keys", "create", "--tenant", tenant["id"]).expect_refusal()
        assert command("tenants", "delete", tenant["id"], "--yes", "--json").json() == shown


def test_keys_are_meant_by_name_and_last_four_characters(running: RunningGateway) -> None:
    command = running.command
    one = make_key(running, "--test", "--name", "printer")
    renamed = command("keys", "rename", "printer", "Ünï printer", "--json").json()
    assert renamed == {"id": one["id"], "name": "Ünï printer"}
    twin = command("keys", "roll", "Ünï printer", "--json").json()
    assert twin["name"] == "Ünï printer"
    several = command("keys", "revoke", "Ünï printer")
    several.expect_refusal()
    assert one["id"] in several.err
    assert twin["id"] in several.err
    for option in ("set --requests 5", "remove"):
        ended = command("limits", *option.split(), "--tenant", "default", "--key", "Ünï printer")
        assert (ended.status, ended.err) == (0, "")
    plain = command("keys", "revoke", twin["key"][-4:], "--tenant", "default")
    assert (plain.status, plain.err) == (0, "")
    assert "Ünï printer" in plain.out
    # The one that is left is meant now.
    assert command("keys", "revoke", "Ünï printer", "--json").json()["id"] == one["id"]
    tenant = command("tenants", "create", "by last four", "--json").json()
    assert command("tenants", "suspend", tenant["id"][-4:], "--json").json()["id"] == tenant["id"]
    used = command("usage", "--tenant", "default", "--key", "Ünï printer", "--last-month", "--json")
    assert {report["total"]["requests"] for report in used.json()} == {0}
    command("usage", "--key", "unknown").expect_refusal()


def test_a_narrow_terminal_shows_ids_as_a_whole(running: RunningGateway) -> None:
    made = make_key(running, "--test", "--name", "a name that is long enough to be folded")
    running.command.environment["COLUMNS"] = "40"
    try:
        listed = running.command("keys", "list", "--tenant", "default")
    finally:
        del running.command.environment["COLUMNS"]
    assert (listed.status, listed.err) == (0, "")
    assert made["id"] in listed.out


def test_a_narrow_terminal_shows_the_id_of_a_request_as_a_whole(running: RunningGateway) -> None:
    request_id = running.ask("GET", "/v1/images", running.quickstart["test_key"]).headers[
        "x-request-id"
    ]
    narrow, rows = {"COLUMNS": "60"}, ""
    for _ in range(TRIES):  # its row is written a moment later
        rows = running.command("requests", "list", "--json").out
        if request_id in rows:
            break
    assert request_id in rows
    assert request_id in running.command("requests", "list", **narrow).out


def test_an_invalid_key_request_is_refused(running: RunningGateway) -> None:
    for ended in running.command.each(
        "keys create --tenant unknown",
        "keys create --tenant default --models gpt-image-99",
        f"keys revoke {NO_KEY_ID}",
        f"keys roll {NO_KEY_ID} --json",
    ):
        ended.expect_refusal()


def test_a_stored_provider_key_pays_until_it_is_deleted(
    running: RunningGateway, openai_stub: StubControl
) -> None:
    command, live = running.command, running.quickstart["live_key"]
    assert code_of(running, live) == "no_credential"
    target = ("--tenant", "default", "--provider", "openai")
    stored = command("credentials", "set", *target, "--json", stdin=f"{PROVIDER_KEY}\n")
    info = stored.json()
    assert {**info, "updated_at": None} == {
        "provider": "openai",
        "owner": "tenant",
        "user_id": None,
        "last4": PROVIDER_KEY[-4:],
        "updated_at": None,
    }
    running.expect_soon(live, 200)
    assert running.make_image(live).status_code == 200
    assert [line.key for line in openai_stub.bill()] == [PROVIDER_KEY]
    of_user = command("credentials", "set", *target, "--user", "carol", stdin="sk-carol-0123456789")
    assert (of_user.status, of_user.err) == (0, "")
    listed, table = command.each(
        "credentials list --tenant default --json", "credentials list --tenant default"
    )
    assert [(row["owner"], row["user"]) for row in listed.json()] == [
        ("tenant", None),
        ("user", "carol"),
    ]
    for ended in (stored, of_user, listed, table):
        assert PROVIDER_KEY not in ended.out
        assert "sk-carol" not in ended.out
    deleted = command("credentials", "delete", *target, "--json").json()
    assert deleted == {"provider": "openai", "deleted": True}
    assert command("credentials", "delete", *target, "--user", "carol").status == 0
    assert code_of(running, live) == "no_credential"
    assert command("credentials", "list", "--tenant", "default", "--json").json() == []


def test_an_impossible_provider_key_is_refused_and_not_repeated(
    running: RunningGateway,
) -> None:
    command = running.command
    for text in ("", "short\n", "sk-with a space\n", "sk-" + "x" * 600):
        ended = command("credentials", "set", "--tenant", "default", stdin=text)
        ended.expect_refusal()
        assert not text.strip() or text.strip() not in ended.err
    for ended in command.each(
        "credentials set --tenant default --provider acme",
        "credentials delete --tenant default",
        "credentials delete --tenant default --user unknown",
    ):
        ended.expect_refusal()
