"""`gateway reconcile`: open calls are listed, shown, swept and resolved at the command line."""

from collections.abc import Iterator

import pytest

from tests.cli.test_cli_manners import GENERATIONS, IMAGE, RunningGateway, running_gateway

NO_CALL = "019aa5f2-7c00-7000-8000-00000000dead"
REASON = ("--reason", "on the invoice")


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    """One server for every test of this module."""
    with running_gateway() as gateway:
        yield gateway


def unknown_call(running: RunningGateway) -> str:
    """A new call of the sandbox whose outcome is not known; its id."""
    body = IMAGE | {"prompt": "a fox [sandbox:unknown]"}
    answer = running.ask("POST", GENERATIONS, running.quickstart["test_key"], json=body)
    assert answer.status_code == 504
    [newest, *_] = running.command("reconcile", "list", "--json").json()
    assert (newest["state"], newest["outcome"]) == ("unknown", "ambiguous")
    return str(newest["id"])


def test_open_calls_are_listed_and_shown_by_any_end_of_their_id(running: RunningGateway) -> None:
    call_id = unknown_call(running)
    listed = running.command("reconcile", "list")
    assert call_id in listed.out
    for name in (call_id, call_id[:-1], call_id[-8:], call_id.upper()):
        shown = running.command("reconcile", "show", name, "--json").json()
        assert shown["id"] == call_id
    assert (shown["state"], shown["cost_usd"]) == ("unknown", None)
    assert [line["kind"] for line in shown["lines"]] == ["hold"]
    table = running.command("reconcile", "show", call_id)
    assert shown["estimate_usd"] in table.out


def test_a_call_is_resolved_once_and_says_why(running: RunningGateway) -> None:
    call_id = unknown_call(running)
    resolved = running.command(
        "reconcile", "resolve", call_id[-8:], "--cost-usd", "0.0042", *REASON, "--json"
    ).json()
    assert (resolved["state"], resolved["cost_usd"]) == ("posted", "0.004200000")
    [said] = resolved["resolutions"]
    assert (said["verdict"], said["reason"]) == ("post", "on the invoice")
    assert said["by"].startswith("cli ")
    for word in ("--void", "--accept"):
        running.command("reconcile", "resolve", call_id, word, *REASON).expect_refusal()
    listed = running.command("reconcile", "list", "--json").json()
    assert call_id not in {call["id"] for call in listed}


def test_estimates_are_accepted_and_doubts_voided(running: RunningGateway) -> None:
    kept, voided = unknown_call(running), unknown_call(running)
    estimate = running.command("reconcile", "show", kept, "--json").json()["estimate_usd"]
    accepted = running.command("reconcile", "resolve", kept, "--accept", *REASON, "--json").json()
    assert accepted["cost_usd"] == estimate
    void = running.command("reconcile", "resolve", voided, "--void", *REASON, "--json").json()
    assert (void["state"], void["cost_usd"]) == ("void", "0.000000000")


def test_an_invalid_resolution_is_refused(running: RunningGateway) -> None:
    command = running.command
    call_id = unknown_call(running)
    for words, status in (
        ((call_id, *REASON), 2),
        ((call_id, "--void", "--accept", *REASON), 2),
        ((call_id, "--cost-usd", "-1", *REASON), 2),
        ((call_id, "--void"), 2),
        ((call_id, "--void", "--reason", " "), 1),
        ((NO_CALL, "--void", *REASON), 1),
        (("dea", "--void", *REASON), 1),
        (("no-id", "--void", *REASON), 1),
        (("0", "--void", *REASON), 1),
    ):
        assert command("reconcile", "resolve", *words).status == status, words
    assert command("reconcile", "show", call_id, "--json").json()["state"] == "unknown"


def test_a_part_that_several_ids_share_is_not_enough(running: RunningGateway) -> None:
    first, second = unknown_call(running), unknown_call(running)
    shared = first[:6]
    assert second.startswith(shared)
    running.command("reconcile", "show", shared).expect_refusal()


def test_a_sweep_can_be_asked_for(running: RunningGateway) -> None:
    swept = running.command("reconcile", "run", "--json").json()
    names = ("settled", "voided", "unknown", "expired", "estimated")
    assert swept == dict.fromkeys(names, 0)
