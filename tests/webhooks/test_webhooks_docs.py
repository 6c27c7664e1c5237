"""docs/webhooks.md: its commands do what they say, and its lines tell genuine from forged."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Settings
from gateway.domain import SecretText
from gateway.webhooks.events import EventType
from gateway.webhooks.signatures import sign
from gateway.webhooks.targets import DeliveryFailure
from tests.admin_helpers import ROOT, JsonObject, admin_secret, answered, commands, created
from tests.harness import Served
from tests.webhook_helpers import (
    Received,
    ask,
    deliver,
    make_event,
    make_webhook,
    receiving,
    webhooks_of,
)

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "webhooks.md").read_text()
Verify = Callable[[str, dict[str, str], bytes], JsonObject]
STALE_SECONDS = 301


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow_private": True})


def new_verify() -> Verify:
    """The function on the page, as fresh as a receiver that has just started."""
    [source] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(source.splitlines()) <= 30
    names: dict[str, Any] = {}
    exec(source, names)  # noqa: S102 - our own page
    function: Verify = names["verify"]
    return function


@pytest.fixture
def verify() -> Verify:
    return new_verify()


def is_taken(verify: Verify, secret: str, received: Received) -> bool:
    try:
        verify(secret, received.headers, received.body)
    except ValueError:
        return False
    return True


def with_header(received: Received, name: str, value: str) -> Received:
    return replace(received, headers={**received.headers, name: value})


async def one_delivery(served: Served, **roll: int) -> tuple[list[str], Received]:
    """One received delivery and the webhook's secrets; `roll` rolls the secret first."""
    async with receiving() as receiver:
        made = await make_webhook(served, receiver.url)
        secrets = [made["secret"]]
        if roll:
            path = f"/webhooks/{made['id']}/roll"
            secrets.append(created(await ask(served, "POST", path, json=roll))["secret"])
        await make_event(served)
        await deliver(served)
    [received] = receiver.received
    return secrets, received


async def test_a_delivery_is_accepted_once(served: Served, verify: Verify) -> None:
    [secret], received = await one_delivery(served)
    assert verify(secret, received.headers, received.body) == received.event
    assert not is_taken(verify, secret, received)  # a replay


async def test_header_names_may_come_in_any_case(served: Served, verify: Verify) -> None:
    [secret], received = await one_delivery(served)
    headers = {name.title(): value for name, value in received.headers.items()}
    assert is_taken(verify, secret, replace(received, headers=headers))


async def test_a_body_changed_by_any_one_byte_is_refused(served: Served, verify: Verify) -> None:
    [secret], received = await one_delivery(served)
    for place in range(len(received.body)):
        changed = bytearray(received.body)
        changed[place] ^= 1
        assert not is_taken(verify, secret, replace(received, body=bytes(changed)))
    for body in (received.body[:-1], received.body + b" ", b""):
        assert not is_taken(verify, secret, replace(received, body=body))
    assert is_taken(verify, secret, received)


async def test_a_changed_or_missing_header_is_refused(served: Served, verify: Verify) -> None:
    [secret], received = await one_delivery(served)
    signature = received.headers["webhook-signature"]
    timestamp = int(received.headers["webhook-timestamp"])
    for name, values in {
        "webhook-id": ("", "x", "1f6f6f57-43fb-4a64-8f2c-5dd21ee2a5a1"),
        "webhook-timestamp": ("", "now", str(timestamp + 1), str(timestamp - STALE_SECONDS)),
        "webhook-signature": ("", "v1,", signature[:-2], f"v2{signature[2:]}", "v1,\xe9"),
    }.items():
        without = {key: value for key, value in received.headers.items() if key != name}
        assert not is_taken(verify, secret, replace(received, headers=without))
        for value in values:
            assert not is_taken(verify, secret, with_header(received, name, value)), (name, value)


async def test_an_old_delivery_is_refused_however_well_it_is_signed(
    served: Served, verify: Verify
) -> None:
    [secret], received = await one_delivery(served)
    sent_at = int(received.headers["webhook-timestamp"])
    for timestamp in (sent_at - STALE_SECONDS, sent_at + STALE_SECONDS + 60):
        signature = sign(
            [SecretText(secret)],
            message_id=received.headers["webhook-id"],
            timestamp=timestamp,
            body=received.body,
        )
        moved = with_header(received, "webhook-timestamp", str(timestamp))
        assert not is_taken(verify, secret, with_header(moved, "webhook-signature", signature))
    assert is_taken(verify, secret, received)


async def test_another_secret_is_refused(served: Served, verify: Verify) -> None:
    [secret], received = await one_delivery(served)
    [other], _ = await one_delivery(served)
    assert not is_taken(verify, other, received)
    assert is_taken(verify, secret, received)


async def test_during_a_roll_either_secret_verifies(served: Served) -> None:
    secrets, received = await one_delivery(served, grace_seconds=3600)
    for secret in secrets:
        assert is_taken(new_verify(), secret, received)
    secrets, received = await one_delivery(served, grace_seconds=0)
    assert [is_taken(new_verify(), one, received) for one in secrets] == [False, True]


@pytest.mark.parametrize("owner", ["house", "tenant"])
async def test_every_command_of_the_page_succeeds(served: Served, owner: str) -> None:
    tenant_id = None if owner == "house" else served.tenant_id
    async with receiving() as receiver:
        made = await make_webhook(served, receiver.url, tenant_id=tenant_id)
        await make_event(served, tenant_id=served.tenant_id)
        await deliver(served)
        path = f"{webhooks_of(tenant_id)}/{made['id']}"
        [delivery] = answered(await ask(served, "GET", f"{path}/deliveries"))["data"]
        root = f"{served.base_url}{ROOT}"
        variables = {
            "HOOKS": f"{root}{webhooks_of(tenant_id)}",
            "WEBHOOK": made["id"],
            "DELIVERY": delivery["id"],
            "ADMIN": f"Authorization: Bearer {admin_secret(served)}",
        }
        asked = set()
        for method, url, content in commands(PAGE, variables):
            where = url.removeprefix(root).partition("?")[0]
            body = {} if content is None else {"content": content.encode()}
            answer = await ask(served, method, where + url.partition(where)[2], **body)
            assert answer.is_success, (method, url, answer.text)
            asked.add((method, where))
    async with served.http() as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    documented = set()
    for template, methods in paths.items():
        is_tenants = "{tenant_id}" in template
        of_operators = template.startswith(ROOT) and "/webhooks" in template
        if of_operators and is_tenants == (tenant_id is not None):
            shown = template.removeprefix(ROOT).replace("{tenant_id}", str(tenant_id))
            shown = shown.replace("{webhook_id}", made["id"])
            shown = shown.replace("{delivery_id}", delivery["id"])
            documented |= {(method.upper(), shown) for method in methods}
    assert asked == documented


def test_every_event_and_every_failure_is_on_the_page() -> None:
    for name in (*EventType, *DeliveryFailure):
        assert f"`{name}`" in PAGE


async def test_the_sample_has_the_fields_of_what_is_sent(served: Served) -> None:
    [sample] = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))
    _, received = await one_delivery(served)
    assert set(sample) == set(received.event)
    assert set(sample["data"]) == {*received.event["data"], "threshold_percent"}
