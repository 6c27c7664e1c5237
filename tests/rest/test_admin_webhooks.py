"""The operators' routes of webhooks: what they answer, refuse and leave in the audit trail."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from gateway.config import Settings
from tests.admin_helpers import (
    NO_ID,
    Refusal,
    admin,
    answered,
    created,
    entries,
    every_page,
    refusal,
)
from tests.harness import Served
from tests.money.test_money_crashes import locked, waiting_for_locks
from tests.money_helpers import eventually
from tests.webhook_helpers import (
    ask,
    deliver,
    deliveries_of,
    make_event,
    make_webhook,
    receiving,
    webhooks_of,
)

URL = "https://hooks.example/T0/secret-path?token=canary"
SHOWN_URL = "https://hooks.example:443"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow_private": True, "max_webhooks": 6})


@pytest.fixture(params=["house", "tenant"])
def owner(request: pytest.FixtureRequest, served: Served) -> UUID | None:
    """The owner of the webhook: each test runs for the operator and for a tenant."""
    return None if request.param == "house" else served.tenant_id


async def test_a_webhook_is_made_shown_changed_and_deleted(
    served: Served, owner: UUID | None
) -> None:
    path = webhooks_of(owner)
    body = {
        "url": URL,
        "events": ["budget.threshold_reached", "budget.exceeded", "budget.exceeded"],
        "livemode": False,
        "description": "the team's pager",
    }
    async with admin(served) as http:
        made = created(await http.post(path, json=body))
        assert made.pop("secret").startswith("whsec_")
        [secret] = made["secrets"]
        assert secret["valid_until"] is None
        known = {name: made[name] for name in ("id", "created_at", "updated_at", "secrets")}
        assert made == known | {
            "object": "webhook",
            "tenant_id": None if owner is None else str(owner),
            "url": URL,
            "events": ["budget.exceeded", "budget.threshold_reached"],
            "livemode": False,
            "description": "the team's pager",
            "disabled_at": None,
            "disabled_reason": None,
        }
        one = f"{path}/{made['id']}"
        assert answered(await http.get(one)) == made
        assert answered(await http.get(path))["data"] == [made]
        change = {"events": None, "livemode": None, "description": "", "disabled": True}
        changed = answered(await http.patch(one, json=change))
        assert changed["updated_at"] > made["updated_at"]
        assert changed["disabled_at"] is not None
        assert changed == made | {
            "events": None,
            "livemode": None,
            "description": "",
            "disabled_at": changed["disabled_at"],
            "disabled_reason": "operator",
            "updated_at": changed["updated_at"],
        }
        assert answered(await http.patch(one, json={})) == changed
        enabled = answered(await http.patch(one, json={"disabled": False, "url": URL + "2"}))
        assert (enabled["disabled_at"], enabled["url"]) == (None, URL + "2")
        assert (await http.delete(one)).status_code == 204
        assert refusal(await http.get(one)) == Refusal(404, "not_found", "webhook_id")
        assert answered(await http.get(path))["data"] == []


async def test_webhooks_and_deliveries_are_listed_page_by_page(
    served: Served, owner: UUID | None
) -> None:
    async with receiving() as receiver:
        made = [await make_webhook(served, receiver.url, tenant_id=owner) for _ in range(5)]
        for _ in range(5):
            await make_event(served, tenant_id=served.tenant_id)
        await deliver(served)
    path = webhooks_of(owner)
    async with admin(served) as http:
        found = await every_page(http, path, limit=2)
        assert [one["id"] for one in found] == [one["id"] for one in made[::-1]]
        deliveries = await every_page(http, f"{path}/{made[0]['id']}/deliveries", limit=2)
        dead = f"{path}/{made[0]['id']}/deliveries?status=dead"
        assert answered(await http.get(dead))["data"] == []
    assert len({one["id"] for one in deliveries}) == 5
    assert {one["status"] for one in deliveries} == {"delivered"}


async def test_there_are_no_more_webhooks_than_allowed(served: Served, owner: UUID | None) -> None:
    for _ in range(6):
        await make_webhook(served, URL, tenant_id=owner)
    answer = await ask(served, "POST", webhooks_of(owner), json={"url": URL})
    assert refusal(answer) == Refusal(409, "too_many_webhooks", None)
    other = None if owner is not None else served.tenant_id
    await make_webhook(served, URL, tenant_id=other)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, Refusal(400, "missing_required_parameter", "url")),
        ({"url": URL, "events": []}, Refusal(400, "invalid_value", "events")),
        ({"url": URL, "events": ["budget.unknown"]}, Refusal(400, "invalid_value", "events")),
        ({"url": URL, "livemode": "yes"}, Refusal(400, "invalid_value", "livemode")),
        ({"url": URL, "description": "a\x00b"}, Refusal(400, "invalid_value", "description")),
        ({"url": URL, "description": "x" * 201}, Refusal(400, "invalid_value", "description")),
        ({"url": URL, "secret": "whsec_x"}, Refusal(400, "unknown_parameter", "secret")),
        ({"url": "https://u:p@hooks.example/"}, Refusal(400, "bad_url", "url")),
    ],
)
async def test_an_invalid_webhook_is_refused(
    served: Served, owner: UUID | None, body: dict[str, object], expected: Refusal
) -> None:
    answer = await ask(served, "POST", webhooks_of(owner), json=body)
    assert refusal(answer) == expected
    assert answered(await ask(served, "GET", webhooks_of(owner)))["data"] == []


async def test_anothers_webhook_is_not_found(served: Served) -> None:
    other = await served.tenant("other")
    mine = await make_webhook(served, URL, tenant_id=served.tenant_id)
    house = await make_webhook(served, URL)
    wrong = [
        *(f"{webhooks_of(other)}/{made['id']}" for made in (mine, house)),
        f"{webhooks_of(None)}/{mine['id']}",
        f"{webhooks_of(served.tenant_id)}/{house['id']}",
        f"{webhooks_of(served.tenant_id)}/{NO_ID}",
    ]
    missing = Refusal(404, "not_found", "webhook_id")
    async with admin(served) as http:
        for path in wrong:
            assert refusal(await http.get(path)) == missing
            assert refusal(await http.patch(path, json={"disabled": True})) == missing
            assert refusal(await http.delete(path)) == missing
            assert refusal(await http.post(f"{path}/roll", json={})) == missing
            assert refusal(await http.post(f"{path}/test")) == missing
            assert refusal(await http.get(f"{path}/deliveries")) == missing
            answer = await http.post(f"{path}/deliveries/{NO_ID}/redeliver")
            assert refusal(answer) == missing
        one = f"{webhooks_of(None)}/{house['id']}/deliveries/{NO_ID}/redeliver"
        assert refusal(await http.post(one)) == Refusal(404, "not_found", "delivery_id")
        no_tenant = Refusal(404, "not_found", "tenant_id")
        assert refusal(await http.get(f"/tenants/{NO_ID}/webhooks")) == no_tenant
        assert (
            refusal(await http.post(f"/tenants/{NO_ID}/webhooks", json={"url": URL})) == no_tenant
        )
        odd = Refusal(400, "invalid_value", "tenant_id")
        assert refusal(await http.get("/tenants/x/webhooks")) == odd
        assert refusal(await http.post("/tenants/x/webhooks", json={"url": URL})) == odd


async def test_a_rolled_secret_signs_along_for_its_grace_and_no_longer(
    served: Served, owner: UUID | None
) -> None:
    made = await make_webhook(served, URL, tenant_id=owner)
    path = f"{webhooks_of(owner)}/{made['id']}"
    async with admin(served) as http:
        rolled = created(await http.post(f"{path}/roll", json={"grace_seconds": 3600}))
        assert rolled["secret"] != made["secret"]
        ends, forever = (secret["valid_until"] for secret in rolled["secrets"])
        wait = datetime.fromisoformat(ends) - datetime.now(UTC)
        assert timedelta(minutes=58) < wait <= timedelta(minutes=61)
        assert forever is None
        longer = created(await http.post(f"{path}/roll", json={"grace_seconds": 86_400}))
        assert longer["secrets"][0] == rolled["secrets"][0]
        for _ in range(2):
            created(await http.post(f"{path}/roll", json={}))
        answer = await http.post(f"{path}/roll", json={})
        assert refusal(answer) == Refusal(409, "too_many_secrets", None)
        last = created(await http.post(f"{path}/roll", json={"grace_seconds": 0}))
        assert [one["valid_until"] for one in last["secrets"]] == [None]
        for grace in (-1, 2_592_001, "60", None, 1.5):
            answer = await http.post(f"{path}/roll", json={"grace_seconds": grace})
            assert refusal(answer) == Refusal(400, "invalid_value", "grace_seconds")
    kept = await served.owner_sql("SELECT count(*) FROM webhook_secret")
    assert kept[0][0] == 1


async def test_a_test_event_during_the_deletion_of_a_webhook_is_not_found(
    served: Served, settings: Settings, owner: UUID | None
) -> None:
    webhook = await make_webhook(served, URL, tenant_id=owner)
    path = f"{webhooks_of(owner)}/{webhook['id']}"
    deleted = f"DELETE FROM webhook_endpoint WHERE id = '{webhook['id']}'"  # noqa: S608 - a UUID
    async with admin(served) as http:
        async with locked(settings, deleted):
            asked = asyncio.create_task(http.post(f"{path}/test"))
            await eventually(lambda: waiting_for_locks(served))
        assert refusal(await asked) == Refusal(404, "not_found", "webhook_id")


async def test_disabling_a_webhook_ends_pending_deliveries(
    served: Served, owner: UUID | None
) -> None:
    async with receiving(500) as receiver:
        made = await make_webhook(served, receiver.url, tenant_id=owner)
        await make_event(served, tenant_id=served.tenant_id)
        await deliver(served)
        path = f"{webhooks_of(owner)}/{made['id']}"
        answered(await ask(served, "PATCH", path, json={"disabled": True}))
        [dead] = await deliveries_of(served, made, owner)
        assert (dead["status"], dead["last_error"]) == ("dead", "disabled")
        again = f"{path}/deliveries/{dead['id']}/redeliver"
        assert refusal(await ask(served, "POST", again)) == Refusal(409, "webhook_disabled", None)
        answered(await ask(served, "PATCH", path, json={"disabled": False}))
        answered(await ask(served, "POST", again))
        await deliver(served)
    assert len(receiver.received) == 2


async def test_every_change_is_in_the_audit_trail_without_secret_path_or_query(
    served: Served, owner: UUID | None
) -> None:
    async with receiving() as receiver:
        secret_url = f"{receiver.url}/secret-path?token=canary"
        made = await make_webhook(served, secret_url, tenant_id=owner)
        path = f"{webhooks_of(owner)}/{made['id']}"
        async with admin(served) as http:
            await http.patch(path, json={})  # changes nothing
            await http.patch(path, json={"url": f"{secret_url}2"})
            rolled = created(await http.post(f"{path}/roll", json={}))
            created(await http.post(f"{path}/test"))
            await deliver(served)
            [sent] = answered(await http.get(f"{path}/deliveries"))["data"]
            answered(await http.post(f"{path}/deliveries/{sent['id']}/redeliver"))
            await http.delete(path)
    told = [entry for entry in await entries(served) if entry["action"].startswith("webhook.")]
    actions = ("created", "updated", "rolled", "tested", "redelivered", "deleted")
    assert [entry["action"] for entry in told] == [f"webhook.{verb}" for verb in actions]
    assert {entry["object_id"] for entry in told} == {made["id"]}
    assert {entry["tenant_id"] for entry in told} == {None if owner is None else str(owner)}
    assert {entry["actor"]["type"] for entry in told} == {"operator_key"}
    assert told[0]["after"]["url"] == f"http://127.0.0.1:{receiver.port}"
    for hidden in ("secret-path", "canary", made["secret"][6:], rolled["secret"][6:]):
        assert hidden not in str(told)
