"""docs/requests.md: from one failed call of each kind to cause, cost and provider id."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.request_record import SHOWN
from tests.cli.test_cli_manners import GENERATIONS, IMAGE, TRIES, RunningGateway, running_gateway

PAGE = Path(__file__).resolve().parents[2] / "docs" / "requests.md"
COMMAND = "$ gateway requests show "
FORMS = {
    "req": r"req_[0-9a-f]{24}",
    "sandbox": r"req_sandbox_[0-9a-f]{16}",
    "uuid": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "time": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d",
    "ms": r"\d+ ms",
    "last4": r"…\w{4}\b",
}


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    """One server with an empty store."""
    with running_gateway() as gateway:
        yield gateway


def ask(running: RunningGateway, name: str, key: str, **changes: Any) -> httpx2.Response:
    """Ask for an image as the client's own request `name`."""
    headers = {"Authorization": f"Bearer {key}", "X-Request-Id": name}
    with httpx2.Client(base_url=running.base_url, headers=headers, timeout=60) as http:
        return http.post(GENERATIONS, json=IMAGE | changes)


def over_budget(running: RunningGateway, name: str, key: str) -> httpx2.Response:
    of_tenant = ("--tenant", "default", "--test")
    running.command("budgets", "set", *of_tenant, "--limit-usd", "0.0001")
    answer = ask(running, name, key)
    running.command("budgets", "remove", *of_tenant)
    return answer


def not_stored(running: RunningGateway, name: str, key: str) -> httpx2.Response:
    images = running.command.folder / "data" / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.write_bytes(b"a file where the folder was")
    return ask(running, name, key, response_format="url")


def prompted(word: str) -> Callable[[RunningGateway, str, str], httpx2.Response]:
    """A call that fails as the sandbox is told to."""
    return lambda running, name, key: ask(running, name, key, prompt=f"[sandbox:{word}]")


CALLS: dict[str, Callable[[RunningGateway, str, str], httpx2.Response]] = {
    "call-400": lambda running, name, key: ask(running, name, key, sise="1024x1024"),
    "call-401": lambda running, name, key: ask(running, name, "igw_live_mistyped"),
    "call-402": over_budget,
    "call-400-moderation": prompted("moderation"),
    "call-424": prompted("credential"),
    "call-429": prompted("rate_limited"),
    "call-502": prompted("unreachable"),
    "call-504": prompted("unknown"),
    "call-500": not_stored,
    # The gateway has found out by now that its store is away.
    "call-503": lambda running, name, key: ask(running, name, key, response_format="url"),
}


def until_logged(running: RunningGateway, name: str) -> None:
    """Return once the request is in the table; those before it are then, too."""
    for _ in range(TRIES):
        if running.ask("GET", f"/v1/requests/{name}", running.quickstart["test_key"]).is_success:
            return
    raise AssertionError(f"{name} was not written")


def masked(text: str) -> str:
    """The text without what differs from run to run."""
    for name, form in FORMS.items():
        text = re.sub(form, f"<{name}>", text)
    return text


def transcripts() -> dict[str, str]:
    """The page's examples: the printed record by the id that is looked up."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    found = {}
    for block in blocks:
        first, _, rest = block.partition("\n")
        if first.startswith(COMMAND):
            found[first.removeprefix(COMMAND)] = rest
    return found


def test_the_page_shows_the_commands_output_for_each_kind_of_failed_call(
    running: RunningGateway,
) -> None:
    key = running.quickstart["test_key"]
    statuses = {name: call(running, name, key).status_code for name, call in CALLS.items()}
    assert statuses == {name: int(name.split("-")[1]) for name in CALLS}
    until_logged(running, list(CALLS)[-1])
    shown = {name: running.command("requests", "show", name) for name in CALLS}
    assert {name: one.status for name, one in shown.items()} == dict.fromkeys(CALLS, 0)
    expected = {name: masked(text) for name, text in transcripts().items()}
    assert {name: masked(one.out) for name, one in shown.items()} == expected


def test_the_commands_list_and_show_for_programs(running: RunningGateway) -> None:
    key = running.quickstart["test_key"]
    made = ask(running, "made", key, response_format="b64_json")
    until_logged(running, "made")
    listed, table, none, shown, missing = running.command.each(
        "requests list --client-id made --test --json",
        "requests list --tenant default --status 200",
        "requests list --live --client-id made",
        f"requests show {made.headers['x-gateway-generation-id']} --json",
        "requests show never-seen",
    )
    [one] = listed.json()
    assert (one["id"], one["cost_usd"]) == (
        made.headers["x-request-id"],
        made.headers["x-gateway-cost-usd"],
    )
    assert made.headers["x-request-id"] in table.out
    assert "No matching requests" in none.out
    detail = shown.json()
    assert {name: detail[name] for name in one} == one
    assert [line["kind"] for line in detail["generation"]["ledger"]] == ["hold", "post"]
    missing.expect_refusal()


def test_the_commands_take_a_key_by_name_or_last_characters(running: RunningGateway) -> None:
    words = ["keys", "create", "--tenant", "default", "--test", "--name", "reader", "--json"]
    made = running.command(*words).json()
    ask(running, "by-reader", made["key"], response_format="b64_json")
    until_logged(running, "by-reader")
    *found, none, other = running.command.each(
        *(
            f"requests list --key {key} --json"
            for key in ("reader", made["key"][-4:], made["id"], "unknown")
        ),
        f"requests list --key {running.quickstart['live_key'][-4:]} --json",
    )
    assert [[one["api_key_id"] for one in answer.json()] for answer in found] == [[made["id"]]] * 3
    none.expect_refusal()
    assert other.json() == []


def test_the_page_names_every_field_of_the_record() -> None:
    assert [name for name in SHOWN if f"`{name}`" not in PAGE.read_text()] == []
