"""Events on their way: announced once, delivered to who listens, tried again, given up."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from standardwebhooks import Webhook

from gateway.config import Settings
from gateway.webhooks.deliveries import RETRY_SECONDS, TRIES
from gateway.webhooks.events import announce
from tests.admin_helpers import JsonObject, Refusal, answered, entries, refusal
from tests.harness import LogAs, Served, served_gateway
from tests.webhook_helpers import (
    EXCEEDED,
    SECONDS,
    ask,
    deliver,
    deliveries_of,
    hasten,
    make_event,
    make_webhook,
    receiving,
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Receivers of these tests are on loopback."""
    return settings.model_copy(update={"webhook_allow_private": True})


@pytest.fixture
async def second(served: Served, settings: Settings) -> AsyncIterator[Served]:
    """Another gateway at the same database."""
    async with served_gateway(settings) as running:
        yield running


def outcome(delivery: JsonObject) -> tuple[str, int, int | None, str | None]:
    return (
        delivery["status"],
        delivery["attempts"],
        delivery["last_status"],
        delivery["last_error"],
    )


async def test_an_event_arrives_whole_and_signed(served: Served) -> None:
    async with receiving() as receiver:
        webhook = await make_webhook(served, receiver.url)
        event_id = await make_event(served, tenant_id=served.tenant_id)
        await deliver(served)
    [received] = receiver.received
    event = Webhook(webhook["secret"]).verify(received.body, received.headers)
    created_at = event.pop("timestamp")
    assert event == {
        "id": event_id,
        "type": "budget.exceeded",
        "livemode": True,
        "tenant_id": str(served.tenant_id),
        "data": EXCEEDED,
    }
    assert created_at.endswith("Z")
    assert received.head == "POST /hooks HTTP/1.1"
    assert received.headers["webhook-id"] == event_id
    assert received.headers["content-type"] == "application/json"
    [delivery] = await deliveries_of(served, webhook)
    assert delivery["event_id"] == event_id
    assert delivery["event_type"] == "budget.exceeded"
    assert outcome(delivery) == ("delivered", 1, 204, None)


async def test_each_endpoint_hears_its_own_events_and_the_operators_hear_all(
    served: Served,
) -> None:
    other = await served.tenant("other")
    heard = {}
    async with receiving() as receiver:
        hooks = {
            "house": await make_webhook(served, receiver.url),
            "acme": await make_webhook(served, receiver.url, tenant_id=served.tenant_id),
            "other": await make_webhook(served, receiver.url, tenant_id=other),
            "live": await make_webhook(served, receiver.url, livemode=True),
            "thresholds": await make_webhook(
                served, receiver.url, events=["budget.threshold_reached"]
            ),
        }
        await make_event(served, tenant_id=served.tenant_id)
        await make_event(served, tenant_id=other, livemode=False)
        await make_event(served, "budget.threshold_reached")
        await deliver(served)
    rows = await served.owner_sql(
        "SELECT d.endpoint_id, e.type, e.livemode FROM webhook_delivery d"
        " JOIN event e ON e.id = d.event_id WHERE d.status = 'delivered'"
    )
    for name, hook in hooks.items():
        found = [row for row in rows if str(row.endpoint_id) == hook["id"]]
        heard[name] = sorted((row.type.removeprefix("budget."), row.livemode) for row in found)
    live, test = ("exceeded", True), ("exceeded", False)
    of_house = ("threshold_reached", True)
    assert heard == {
        "house": [test, live, of_house],
        "acme": [live],
        "other": [test],
        "live": [live, of_house],
        "thresholds": [of_house],
    }
    assert len(receiver.received) == len(rows)


async def test_an_event_is_logged_once_even_without_a_webhook(
    served: Served, second: Served, log_as: LogAs, capfd: pytest.CaptureFixture[str]
) -> None:
    log_as("INFO", "json")
    event_id = await make_event(served, tenant_id=served.tenant_id)
    await asyncio.gather(deliver(served), deliver(second), deliver(served))
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    told = [line for line in lines if line["event"] == "event_announced"]
    [line] = told
    assert (line["level"], line["id"], line["type"]) == ("warning", event_id, "budget.exceeded")
    assert (line["tenant_id"], line["data"]) == (str(served.tenant_id), EXCEEDED)


async def test_a_failed_delivery_is_retried_later_under_the_same_id(served: Served) -> None:
    async with receiving(500, 404, 302) as receiver:
        webhook = await make_webhook(served, receiver.url)
        event_id = await make_event(served)
        seen = []
        for _ in range(4):
            await deliver(served)
            await deliver(served)  # not due yet: nothing is sent
            seen += await deliveries_of(served, webhook)
            await hasten(served)
    assert [outcome(delivery) for delivery in seen] == [
        ("pending", 1, 500, "bad_status"),
        ("pending", 2, 404, "bad_status"),
        ("pending", 3, 302, "redirect"),
        ("delivered", 4, 204, None),
    ]
    assert [one.headers["webhook-id"] for one in receiver.received] == [event_id] * 4
    assert len({one.body for one in receiver.received}) == 1
    for one in receiver.received:
        Webhook(webhook["secret"]).verify(one.body, one.headers)


async def test_the_waits_grow_over_about_a_day(served: Served) -> None:
    async with receiving(*[503] * 20) as receiver:
        await make_webhook(served, receiver.url)
        await make_event(served)
        waits = []
        for _ in RETRY_SECONDS:
            await deliver(served)
            [row] = await served.owner_sql(
                "SELECT extract(epoch FROM next_attempt_at - now()) AS wait FROM webhook_delivery"
            )
            waits.append(float(row.wait))
            await hasten(served)
    for wait, planned in zip(waits, RETRY_SECONDS, strict=True):
        assert planned * 0.9 - SECONDS <= wait <= planned * 1.1
    assert 80_000 < sum(RETRY_SECONDS) < 90_000


async def test_an_undeliverable_event_is_marked_dead_and_can_be_sent_again(served: Served) -> None:
    async with receiving(*[503] * TRIES) as receiver:
        webhook = await make_webhook(served, receiver.url, tenant_id=served.tenant_id)
        event_id = await make_event(served, tenant_id=served.tenant_id)
        for _ in range(TRIES + 2):
            await deliver(served)
            await hasten(served)
        assert len(receiver.received) == TRIES
        [dead] = await deliveries_of(served, webhook, served.tenant_id, status="dead")
        assert outcome(dead) == ("dead", TRIES, 503, "bad_status")
        assert dead["next_attempt_at"] is None
        base = f"/tenants/{served.tenant_id}/webhooks/{webhook['id']}/deliveries"
        again = answered(await ask(served, "POST", f"{base}/{dead['id']}/redeliver"))
        assert outcome(again) == ("pending", 0, 503, "bad_status")
        twice = await ask(served, "POST", f"{base}/{dead['id']}/redeliver")
        assert refusal(twice) == Refusal(409, "delivery_pending", None)
        await deliver(served)
    assert receiver.received[-1].headers["webhook-id"] == event_id
    assert await deliveries_of(served, webhook, served.tenant_id, status="dead") == []
    [arrived] = await deliveries_of(served, webhook, served.tenant_id)
    assert outcome(arrived) == ("delivered", 1, 204, None)


async def test_two_workers_do_not_send_the_same_at_once(served: Served, second: Served) -> None:
    async with receiving(silent=True) as receiver:
        await make_webhook(served, receiver.url)
        await make_event(served)
        first = asyncio.create_task(deliver(served))
        await receiver.until(1)
        await deliver(second)
        await deliver(second)
        assert len(receiver.received) == 1
        receiver.opened.set()
        await first
        await deliver(second)
    assert len(receiver.received) == 1


async def test_many_events_reach_each_endpoint_once_from_any_worker(
    served: Served, second: Served
) -> None:
    async with receiving() as receiver:
        for _ in range(3):
            await make_webhook(served, receiver.url)
        ids = [await make_event(served) for _ in range(20)]
        await asyncio.gather(deliver(served), deliver(second))
        await deliver(served)
    assert sorted(one.headers["webhook-id"] for one in receiver.received) == sorted(ids * 3)


async def test_a_delivery_of_a_stopped_worker_is_sent_by_another_after_its_lease(
    served: Served, second: Served
) -> None:
    async with receiving(silent=True) as receiver:
        webhook = await make_webhook(served, receiver.url)
        await make_event(served)
        begun = asyncio.create_task(deliver(second))
        await receiver.until(1)
        await deliver(served)
        assert len(receiver.received) == 1  # the lease
        await hasten(served)
        following = asyncio.create_task(deliver(served))
        await receiver.until(2)
        # The first worker's answer comes too late to count.
        receiver.statuses = [500, 204]
        receiver.opened.set()
        await asyncio.gather(begun, following)
    assert len(receiver.received) == 2
    [delivery] = await deliveries_of(served, webhook)
    assert (delivery["status"], delivery["attempts"]) == ("delivered", 2)


async def test_a_delivery_that_ends_every_worker_is_given_up(served: Served) -> None:
    async with receiving() as receiver:
        webhook = await make_webhook(served, receiver.url)
        await make_event(served)
        async with served.gateway.database.operator() as session:
            await announce(session, limit=1)
        await served.owner_sql("UPDATE webhook_delivery SET attempts = :tries", tries=TRIES)
        await deliver(served)
        [delivery] = await deliveries_of(served, webhook)
    assert outcome(delivery) == ("dead", TRIES + 1, None, "abandoned")
    assert receiver.received == []


async def test_a_slow_endpoint_holds_up_no_other(served: Served) -> None:
    async with receiving(silent=True) as slow, receiving() as quick:
        await make_webhook(served, slow.url)
        await make_webhook(served, quick.url)
        for _ in range(10):
            await make_event(served)
        working = asyncio.create_task(deliver(served))
        await quick.until(10)
        most = served.gateway.settings.webhook_max_parallel_per_endpoint
        assert len(slow.received) <= most
        slow.opened.set()
        await working
    assert len(slow.received) == 10


async def test_hanging_deliveries_do_not_take_every_place(
    settings: Settings, served: Served
) -> None:
    narrow = settings.model_copy(update={"webhook_max_parallel": 4, "webhook_timeout_seconds": 60})
    async with receiving(silent=True) as slow, receiving() as quick, served_gateway(narrow) as few:
        for receiver in (slow, slow, quick):
            await make_webhook(served, receiver.url)
        for _ in range(3):
            await make_event(served)
        working = asyncio.create_task(deliver(few))
        await quick.until(3)
        assert len(slow.received) < 6
        slow.opened.set()
        await working
    assert len(slow.received) == 6


async def test_old_events_are_deleted_even_while_an_endpoint_hangs(
    settings: Settings, served: Served
) -> None:
    patient = settings.model_copy(update={"webhook_timeout_seconds": 60})
    async with receiving(silent=True) as slow, served_gateway(patient) as worker:
        await make_event(served)
        await deliver(served)
        await served.owner_sql("UPDATE event SET announced_at = now() - interval '31 days'")
        await served.owner_sql("UPDATE sweep SET due_at = now() WHERE name = 'webhooks'")
        await make_webhook(served, slow.url)
        for _ in range(3):
            await make_event(served)
        working = asyncio.create_task(deliver(worker))
        async with asyncio.timeout(SECONDS):
            while len(await served.owner_sql("SELECT id FROM event")) > 3:
                assert len(slow.received) < 3
        slow.opened.set()
        await working
    assert len(slow.received) == 3


async def test_a_hanging_delivery_is_given_up_after_the_timeout(
    settings: Settings, served: Served
) -> None:
    hurried = settings.model_copy(update={"webhook_timeout_seconds": 0.5})
    async with receiving(silent=True) as receiver, served_gateway(hurried) as impatient:
        webhook = await make_webhook(served, receiver.url)
        await make_event(served)
        await deliver(impatient)
        [delivery] = await deliveries_of(served, webhook)
    assert outcome(delivery) == ("pending", 1, None, "timeout")


async def test_an_address_that_is_gone_does_not_disable_the_one_that_followed_it(
    served: Served,
) -> None:
    async with receiving(410, silent=True) as former, receiving() as present:
        webhook = await make_webhook(served, former.url)
        await make_event(served)
        delivering = asyncio.create_task(deliver(served))
        await former.until(1)
        answered(
            await ask(served, "PATCH", f"/webhooks/{webhook['id']}", json={"url": present.url})
        )
        former.opened.set()
        await delivering
    kept = answered(await ask(served, "GET", f"/webhooks/{webhook['id']}"))
    assert kept["disabled_reason"] is None
    [delivery] = await deliveries_of(served, webhook)
    assert outcome(delivery) == ("pending", 1, 410, "bad_status")


async def test_an_endpoint_that_is_gone_is_disabled_and_its_deliveries_are_dead(
    served: Served,
) -> None:
    async with receiving(500, 410) as receiver:
        webhook = await make_webhook(served, receiver.url, events=["budget.exceeded"])
        await make_event(served)
        await deliver(served)
        await make_event(served)
        await deliver(served)
        await make_event(served)
        await deliver(served)
    assert len(receiver.received) == 2
    gone = answered(await ask(served, "GET", f"/webhooks/{webhook['id']}"))
    assert gone["disabled_reason"] == "gone"
    assert [outcome(one) for one in await deliveries_of(served, webhook)] == [
        ("dead", 1, 410, "gone"),
        ("dead", 1, 500, "gone"),
    ]
    [entry] = await entries(served, action="webhook.disabled")
    assert (entry["actor"]["type"], entry["object_id"]) == ("gateway", webhook["id"])


async def test_a_disabled_endpoint_gets_nothing_until_it_is_enabled(served: Served) -> None:
    async with receiving() as receiver:
        webhook = await make_webhook(served, receiver.url)
        path = f"/webhooks/{webhook['id']}"
        await make_event(served)
        answered(await ask(served, "PATCH", path, json={"disabled": True}))
        await deliver(served)
        answer = await ask(served, "POST", f"{path}/test")
        assert refusal(answer) == Refusal(409, "webhook_disabled", None)
        answered(await ask(served, "PATCH", path, json={"disabled": False}))
        await deliver(served)
        assert receiver.received == []
        event_id = await make_event(served)
        await deliver(served)
    assert [one.headers["webhook-id"] for one in receiver.received] == [event_id]


async def test_a_test_event_goes_to_one_endpoint_regardless_of_its_event_types(
    served: Served,
) -> None:
    async with receiving() as receiver, receiving() as bystander:
        webhook = await make_webhook(served, receiver.url, events=["budget.exceeded"])
        await make_webhook(served, bystander.url)
        sent = (await ask(served, "POST", f"/webhooks/{webhook['id']}/test")).json()
        assert (sent["event_type"], sent["status"]) == ("webhook.test", "pending")
        await deliver(served)
    [received] = receiver.received
    assert received.event["type"] == "webhook.test"
    assert received.event["data"] == {"webhook_id": webhook["id"]}
    assert bystander.received == []


async def test_old_events_are_deleted_and_pending_ones_are_not(served: Served) -> None:
    async with receiving(204, 500) as receiver:
        await make_webhook(served, receiver.url)
        await make_event(served)
        await deliver(served)
        waiting = await make_event(served)
        await deliver(served)
        await served.owner_sql(
            "UPDATE webhook_delivery SET finished_at = now() - interval '31 days'"
            " WHERE finished_at IS NOT NULL"
        )
        await served.owner_sql("UPDATE event SET announced_at = now() - interval '31 days'")
        await served.owner_sql("UPDATE sweep SET due_at = now() WHERE name = 'webhooks'")
        await deliver(served)
        await deliver(served)
    rows = await served.owner_sql("SELECT event_id FROM webhook_delivery")
    assert [str(row.event_id) for row in rows] == [waiting]
    rows = await served.owner_sql("SELECT id FROM event")
    assert [str(row.id) for row in rows] == [waiting]
