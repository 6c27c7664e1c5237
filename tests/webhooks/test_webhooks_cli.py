"""`gateway webhooks`, and that a running server delivers."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from standardwebhooks import Webhook

from tests.cli.test_cli_manners import RunningGateway, running_gateway
from tests.webhook_helpers import receiving

NO_ID = "01a1f8d9-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    """One server for every test of this module; its receivers are on loopback."""
    with running_gateway(
        GATEWAY_WEBHOOK_ALLOW_PRIVATE="true", GATEWAY_SWEEP_INTERVAL_SECONDS="0.2"
    ) as gateway:
        yield gateway


@pytest.mark.parametrize("owner", [(), ("--tenant", "default")])
async def test_a_test_event_arrives_signed_by_the_secret_that_was_shown(
    running: RunningGateway, owner: tuple[str, ...]
) -> None:
    async def command(*arguments: str) -> str:
        ended = await asyncio.to_thread(running.command, "webhooks", *arguments, *owner)
        assert (ended.status, ended.err) == (0, "")
        return ended.out

    async with receiving() as receiver:
        made = json.loads(
            await command("create", receiver.url, "--events", "budget.exceeded", "--json")
        )
        assert (made["events"], made["livemode"]) == (["budget.exceeded"], None)
        sent = json.loads(await command("test", made["id"], "--json"))
        assert (sent["event_type"], sent["status"]) == ("webhook.test", "pending")
        await receiver.until(1)
        rolled = json.loads(await command("roll", made["id"], "--grace", "1h", "--json"))
        assert [until is None for until in rolled["secrets_valid_until"]] == [False, True]
        while json.loads(await command("deliveries", made["id"], "--json"))[0]["status"] != (
            "delivered"
        ):
            pass
        assert sent["id"] in await command("deliveries", made["id"], "--status", "delivered")
        await command("redeliver", made["id"], sent["id"])
        await receiver.until(2)
    first, again = receiver.received
    Webhook(made["secret"]).verify(first.body, first.headers)
    for secret in (made["secret"], rolled["secret"]):
        Webhook(secret).verify(again.body, again.headers)
    assert first.headers["webhook-id"] == again.headers["webhook-id"] == sent["event_id"]
    assert "Disabled" in await command("disable", made["id"])
    assert "off (operator)" in await command("list")
    assert "Enabled" in await command("enable", made["id"])
    assert "Deleted" in await command("delete", made["id"])
    assert "No webhooks yet" in await command("list")


def test_the_secret_is_shown_to_people_once(running: RunningGateway) -> None:
    made = running.command("webhooks", "create", "http://127.0.0.1:9/hooks", "--mode", "test")
    assert "whsec_" in made.out
    [listed] = running.command("webhooks", "list", "--json").json()
    assert (listed["url"], listed["livemode"]) == ("http://127.0.0.1:9/hooks", False)
    assert "whsec_" not in json.dumps(listed)
    running.command("webhooks", "delete", listed["id"])


def test_an_invalid_webhook_command_is_refused_in_one_sentence(running: RunningGateway) -> None:
    for refused in (
        *("create ftp://127.0.0.1/", "create https://user:canary@hooks.example/"),
        *("create https://hooks.example/ --events budget.unknown", f"test {NO_ID}"),
        *(
            "create http://169.254.169.254/latest/",
            "create https://hooks.example/ --tenant unknown",
        ),
        *(f"roll {NO_ID}", f"delete {NO_ID}", f"deliveries {NO_ID}", f"redeliver {NO_ID} {NO_ID}"),
        *(f"disable {NO_ID}", f"enable {NO_ID} --tenant default"),
    ):
        ended = running.command("webhooks", *refused.split())
        ended.expect_refusal()
        assert "canary" not in ended.err
    running.command("webhooks", "roll", "x").expect_refusal()
