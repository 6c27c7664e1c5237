"""Secrets of webhooks: two sign while rolling, the master key may change, nothing tells them."""

import base64
from pathlib import Path
from uuid import UUID

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from gateway.config import Settings
from gateway.domain import SecretText
from gateway.vault.rotation import rewrap_all, used_master_key_ids
from gateway.vault.sealing import MasterKeys, new_master_key, write_key_file
from gateway.webhooks.signatures import sign
from tests.admin_helpers import JsonObject, created
from tests.harness import MASTER_KEY, LogAs, Served, served_gateway
from tests.tenancy.test_security_canaries import dump, leaks
from tests.webhook_helpers import (
    Received,
    ask,
    deliver,
    deliveries_of,
    make_event,
    make_webhook,
    receiving,
    webhooks_of,
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow_private": True})


def verifies(secret: str, received: Received) -> bool:
    try:
        Webhook(secret).verify(received.body, received.headers)
    except WebhookVerificationError:
        return False
    return True


def test_the_signature_is_the_specifications_own_example() -> None:
    # https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
    header = sign(
        [SecretText("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")],
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert header == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_old_and_new_secret_sign_until_the_grace_is_over(served: Served) -> None:
    async with receiving() as receiver:
        first = await make_webhook(served, receiver.url)
        path = f"/webhooks/{first['id']}/roll"
        second = created(await ask(served, "POST", path, json={"grace_seconds": 3600}))
        await make_event(served)
        await deliver(served)
        await served.owner_sql(
            "UPDATE webhook_secret SET valid_until = now() WHERE valid_until IS NOT NULL"
        )
        await make_event(served)
        await deliver(served)
        third = created(await ask(served, "POST", path, json={"grace_seconds": 0}))
        await make_event(served)
        await deliver(served)
    secrets = [made["secret"] for made in (first, second, third)]
    assert [[verifies(one, got) for one in secrets] for got in receiver.received] == [
        [True, True, False],
        [False, True, False],
        [False, False, True],
    ]
    signatures = [len(got.headers["webhook-signature"].split()) for got in receiver.received]
    assert signatures == [2, 1, 1]


async def test_deliveries_go_on_when_the_master_key_is_another(
    served: Served, settings: Settings, tmp_path: Path
) -> None:
    old = base64.urlsafe_b64decode(MASTER_KEY)
    path = tmp_path / "keys"
    new = new_master_key()
    async with receiving() as receiver:
        hooks = [
            await make_webhook(served, receiver.url, tenant_id=owner)
            for owner in (None, served.tenant_id)
        ]
        write_key_file(path, [new, old])
        rotated = MasterKeys(None, path)
        await rewrap_all(served.gateway.database, rotated)
        assert await used_master_key_ids(served.gateway.database) == {rotated.ids[0]}
        write_key_file(path, [new])
        changed = settings.model_copy(update={"master_key": None, "master_key_file": path})
        async with served_gateway(changed) as fresh:
            await make_event(served, tenant_id=served.tenant_id)
            await deliver(fresh)
    assert len(receiver.received) == 2
    for hook in hooks:
        assert [verifies(hook["secret"], got) for got in receiver.received].count(True) == 1


MOVES = {
    "to another endpoint": "UPDATE webhook_secret s SET sealed = o.sealed FROM webhook_secret o"
    " WHERE o.id <> s.id AND s.endpoint_id = :id",
    "one bit changed": "UPDATE webhook_secret"
    " SET sealed = set_bit(sealed, 200, 1 - get_bit(sealed, 200)) WHERE endpoint_id = :id",
    "cut to nothing": "UPDATE webhook_secret SET sealed = '' WHERE endpoint_id = :id",
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("of", ["house", "tenant"])
async def test_a_secret_that_was_moved_or_changed_signs_nothing(
    served: Served, move: str, of: str
) -> None:
    owner = None if of == "house" else served.tenant_id
    async with receiving() as receiver, receiving() as other:
        hook = await make_webhook(served, receiver.url, tenant_id=owner)
        await make_webhook(served, other.url, tenant_id=owner)
        await served.owner_sql(MOVES[move], id=UUID(hook["id"]))
        await make_event(served, tenant_id=served.tenant_id)
        await deliver(served)
        [delivery] = await deliveries_of(served, hook, owner)
    assert (delivery["status"], delivery["last_error"]) == ("pending", "secret_unreadable")
    assert (len(receiver.received), len(other.received)) == (0, 1)


async def test_secrets_are_in_no_log_answer_or_table(
    served: Served, log_as: LogAs, capfd: pytest.CaptureFixture[str]
) -> None:
    log_as("DEBUG", "json")
    answers: list[bytes] = []
    secrets: dict[str, bytes] = {}

    async def keep(name: str, made: JsonObject) -> None:
        secrets[name] = made["secret"].encode()
        secrets[f"{name}, as bytes"] = base64.b64decode(made["secret"][6:])

    async with receiving(500, 302, 410) as receiver:
        for name, owner in (("house", None), ("tenant", served.tenant_id)):
            hook = await make_webhook(
                served, f"{receiver.url}/path-canary?token=query-canary", tenant_id=owner
            )
            await keep(name, hook)
            path = f"{webhooks_of(owner)}/{hook['id']}"
            await keep(
                f"{name} rolled", created(await ask(served, "POST", f"{path}/roll", json={}))
            )
            await make_event(served, tenant_id=served.tenant_id)
            await deliver(served)
            answers += [
                (await ask(served, method, f"{path}{rest}", **options)).content
                for method, rest, options in (
                    ("GET", "", {}),
                    ("PATCH", "", {"json": {"secret": hook["secret"]}}),
                    ("PATCH", "", {"json": {"description": "x"}}),
                    ("GET", "/deliveries", {}),
                    ("POST", "/test", {}),
                )
            ]
            await deliver(served)
    answers.append((await ask(served, "GET", "/audit")).content)
    log = capfd.readouterr().err.encode()
    assert log.count(b"webhook_attempt_failed") >= 2
    places = {"log": log, "answers": b"\n".join(answers)} | await dump(served)
    assert leaks(places, secrets) == set()
    url_parts = {"path": b"path-canary", "query": b"query-canary"}
    audit = places["audit"]
    assert leaks({"log": log, "audit": audit}, url_parts) == set()
