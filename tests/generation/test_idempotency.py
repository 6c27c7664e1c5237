"""A request that is repeated with its key gets the same answer and is bought once."""

import asyncio
import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.billing import ledger
from gateway.config import Settings
from gateway.money import format_usd
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import Served, error_of, served_gateway
from tests.hosting_helpers import S3Server, bucket_of, hosted_gateway
from tests.image_helpers import png
from tests.money_helpers import (
    GENERATIONS,
    books,
    client_of,
    count_states,
    deadlocks,
    eventually,
    gateway_processes,
    image_body,
    make_late,
    quote_nano,
    statuses,
)
from tests.stub_openai import Fault, Stub

KEY = {"Idempotency-Key": "order-4711"}
PATIENCE_MS = 60_000
"""Longer than any wait for a connection on a busy machine: every request must reach the race."""
SHARED = {
    "GATEWAY_ADMISSION_TIMEOUT_MS": str(PATIENCE_MS),
    "GATEWAY_PUBLIC_URL": "https://images.example.com",
}
BODY = image_body(response_format="url")
EDITS = "/v1/images/edits"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The usual settings with longer waits."""
    return settings.model_copy(update={"admission_timeout_ms": PATIENCE_MS})


async def post(
    served: Served, key: IssuedKey, headers: Mapping[str, str] = KEY, **changes: Any
) -> httpx2.Response:
    """Ask for an image with an idempotency key."""
    async with served.http(key) as http:
        return await http.post(GENERATIONS, json=image_body(**changes), headers=dict(headers))


async def edit(served: Served, key: IssuedKey, image: bytes, **fields: str) -> httpx2.Response:
    """Ask for an edit with the same key."""
    form = {"prompt": "a hat", "model": "gpt-image-2", "quality": "low", **fields}
    async with served.http(key) as http:
        files = {"image": ("i.png", image, "image/png")}
        return await http.post(EDITS, data=form, files=files, headers=KEY)


async def race(
    served: Served, stub: Stub, clients: list[httpx2.AsyncClient], requests: int
) -> list[httpx2.Response]:
    """Send all requests at once with one key, while the first call waits at the provider."""
    stub.faults.add(Fault(hold=True, times=None))
    tasks = [
        asyncio.create_task(clients[at % len(clients)].post(GENERATIONS, json=BODY, headers=KEY))
        for at in range(requests)
    ]
    await stub.until_held(1)

    async def all_others_answered() -> bool:
        await asyncio.wait(tasks, timeout=0.05)
        return sum(task.done() for task in tasks) == requests - 1

    await eventually(all_others_answered)
    stub.faults.clear()
    stub.release()
    return list(await asyncio.gather(*tasks))


async def check_race(served: Served, stub: Stub, answers: list[httpx2.Response]) -> None:
    """M8: one call, one bill line, one body; the others are told to wait, then get that body."""
    assert statuses(answers) == {200: 1, 409: len(answers) - 1}
    first = next(answer for answer in answers if answer.status_code == 200)
    for refused in (answer for answer in answers if answer.status_code == 409):
        assert error_of(refused)["code"] == "idempotency_in_flight"
        assert int(refused.headers["retry-after"]) > 0
    assert "idempotent-replayed" not in first.headers
    assert len(stub.calls) == len(stub.bill) == 1
    assert await count_states(served) == {"posted": 1}
    assert await served.ledger_total() == stub.totals.cost_nano_usd


async def test_one_key_sent_by_many_at_once_buys_one_image(
    served: Served, settings: Settings, stub: Stub
) -> None:
    key = await served.key()
    async with served_gateway(settings) as other:
        clients = [client_of(gateway.base_url, key) for gateway in (served, other)]
        # The first call uses the budget up: the others are told of that call, not of the budget.
        await served.budget(format_usd(await quote_nano(clients[0])))
        answers = await race(served, stub, clients, 60)
        await check_race(served, stub, answers)
        [body] = {answer.content for answer in answers if answer.status_code == 200}
        repeated = [await client.post(GENERATIONS, json=BODY, headers=KEY) for client in clients]
        for client in clients:
            await client.aclose()
    assert {(answer.status_code, answer.content) for answer in repeated} == {(200, body)}
    assert {answer.headers["idempotent-replayed"] for answer in repeated} == {"true"}
    assert len(stub.calls) == 1


@pytest.mark.full
async def test_m8_two_hundred_clients_of_four_processes(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    key = await served.key()
    with gateway_processes(settings, tmp_path, 4, **SHARED) as processes:
        for process in processes:
            await process.until_ready()
        clients = [client_of(process.base_url, key) for process in processes for _ in range(50)]
        answers = await race(served, stub, clients, 200)
        await check_race(served, stub, answers)
        repeated = await asyncio.gather(
            *(client.post(GENERATIONS, json=BODY, headers=KEY) for client in clients)
        )
        for client in clients:
            await client.aclose()
    bodies = {answer.content for answer in (*answers, *repeated) if answer.status_code == 200}
    assert (len(bodies), statuses(repeated)) == (1, {200: 200})
    assert len(stub.calls) == 1


@pytest.mark.parametrize("response_format", ["url", "b64_json"])
async def test_the_answer_is_repeated_with_what_it_cost(
    served: Served, stub: Stub, response_format: str
) -> None:
    key = await served.key()
    first = await post(served, key, n=3, response_format=response_format)
    second = await post(served, key, n=3, response_format=response_format)
    assert (second.status_code, second.json()) == (200, first.json())
    unlike = {"idempotent-replayed", "x-request-id", "date"}
    headers = [
        {name: value for name, value in answer.headers.items() if name not in unlike}
        for answer in (first, second)
    ]
    assert headers[0] == headers[1]
    assert second.headers["idempotent-replayed"] == "true"
    assert len(stub.calls) == 1
    assert await served.ledger_total() == stub.totals.cost_nano_usd


async def test_another_request_with_the_key_is_refused(served: Served, stub: Stub) -> None:
    key = await served.key()
    assert (await post(served, key)).status_code == 200
    for changes in ({"prompt": "a blue circle"}, {"n": 2}, {"quality": "medium"}):
        answer = await post(served, key, **changes)
        assert (answer.status_code, error_of(answer)["code"]) == (422, "idempotency_conflict")
        assert answer.headers["x-should-retry"] == "false"
    assert len(stub.calls) == 1


async def test_the_order_of_fields_does_not_count_but_every_byte_of_an_image_does(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    assert (await edit(served, key, png(64, 64), size="1024x1024", n="1")).status_code == 200
    again = await edit(served, key, png(64, 64), n="1", size="1024x1024")
    assert again.headers["idempotent-replayed"] == "true"
    other = await edit(served, key, png(64, 65), size="1024x1024", n="1")
    assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_conflict")
    assert len(stub.calls) == 1


@pytest.mark.parametrize("kind", ["reset_after_billing", "truncated_body", "close_after_billing"])
async def test_an_unknown_outcome_is_never_bought_again(
    served: Served, stub: Stub, kind: Any
) -> None:
    key = await served.key()
    stub.faults.add(Fault(kind))
    answers = [await post(served, key) for _ in range(3)]
    await make_late(served)
    await served.sweep()
    answers.append(await post(served, key))
    assert statuses(answers) == {504: 4}
    assert {error_of(answer)["code"] for answer in answers} == {"outcome_unknown"}
    assert {answer.headers["x-should-retry"] for answer in answers} == {"false"}
    assert len(stub.calls) == 1


@pytest.mark.parametrize("status", [400, 401, 429])
async def test_a_call_that_was_not_charged_may_be_repeated_with_its_key(
    served: Served, stub: Stub, status: int
) -> None:
    key = await served.key()
    # A provider that gives a retry time is not called before it, so give it none.
    stub.faults.add(Fault("status", status=status, retry_after="0"))
    refused = await post(served, key)
    assert refused.status_code >= 400
    bought = await post(served, key)
    assert (bought.status_code, "idempotent-replayed" in bought.headers) == (200, False)
    assert [booked.state for booked in await books(served)] == ["void", "posted"]


async def test_a_budget_that_is_spent_repeats_and_one_that_is_short_claims_nothing(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    async with served.http(key) as http:
        quote = await quote_nano(http)
    await served.budget(format_usd(quote - 1))
    assert (await post(served, key)).status_code == 402
    await served.budget(format_usd(quote))
    assert (await post(served, key)).status_code == 200
    assert (await post(served, key, {"Idempotency-Key": "other"})).status_code == 402
    again = await post(served, key)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert len(stub.calls) == 1


async def test_the_same_key_of_another_caller_is_another_key(served: Served, stub: Stub) -> None:
    tenant = await served.tenant("other")
    owners = [
        await served.key(),
        await served.key(livemode=False),
        await served.key(user="alice"),
        await served.key(user="bob"),
        await served.key(tenant_id=tenant),
    ]
    answers = [await post(served, key) for key in owners]
    assert statuses(answers) == {200: 5}
    assert not any("idempotent-replayed" in answer.headers for answer in answers)
    rolled = await served.key()
    assert (await post(served, rolled)).headers["idempotent-replayed"] == "true"
    assert len(stub.calls) == 4


async def test_images_that_are_deleted_are_not_bought_again(served: Served, stub: Stub) -> None:
    key = await served.key()
    assert (await post(served, key)).status_code == 200
    async with served.http(key) as http:
        [image] = (await http.get("/v1/images")).json()["data"]
        await http.delete(f"/v1/images/{image['id']}")
    answer = await post(served, key)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "image_not_found")
    assert len(stub.calls) == 1


async def test_a_repeated_paid_call_without_an_image_gets_the_same_error(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    stub.faults.add(Fault("unreadable_json"))
    answers = [await post(served, key) for _ in range(2)]
    assert answers[0].status_code == answers[1].status_code >= 500
    assert error_of(answers[0])["code"] == error_of(answers[1])["code"]
    assert len(stub.calls) == 1


@pytest.mark.parametrize("value", ["", "a b", "x" * 256, "schön"])
async def test_a_key_of_another_form_is_refused(served: Served, stub: Stub, value: str) -> None:
    key = await served.key()
    async with served.http(key) as http:
        answer = await http.post(
            GENERATIONS,
            json=image_body(),
            headers=[(b"Idempotency-Key", value.encode())],
        )
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_idempotency_key")
    assert stub.calls == []


async def test_a_stream_is_repeated_as_its_last_event(served: Served, stub: Stub) -> None:
    key = await served.key()
    bodies = []
    for _ in range(2):
        async with served.http(key) as http:
            answer = await http.post(
                GENERATIONS,
                json=image_body(stream=True, partial_images=2),
                headers=KEY,
            )
            bodies.append((answer.headers.get("idempotent-replayed"), answer.text))
    (first_mark, first), (second_mark, second) = bodies
    assert (first_mark, second_mark) == (None, "true")
    assert first.count("partial_image\n") == 2
    assert second.count("event: ") == 1
    assert first.rstrip().rpartition("\n")[2] == second.rstrip().rpartition("\n")[2]
    assert len(stub.calls) == 1


async def test_a_day_later_the_key_is_free_again(served: Served, stub: Stub) -> None:
    key = await served.key()
    assert (await post(served, key)).status_code == 200
    database = served.gateway.database
    assert await ledger.forget_claims(database, after_seconds=86_400, limit=10) == 0
    await served.owner_sql(
        "UPDATE idempotency_claim SET claimed_at = claimed_at - interval '25 hours'"
    )
    await served.sweep()
    assert "idempotent-replayed" not in (await post(served, key)).headers
    rows = await served.owner_sql("SELECT count(*) FROM idempotency_claim WHERE answer IS NOT NULL")
    assert (len(stub.calls), rows[0][0]) == (2, 1)


async def test_a_worker_that_dies_leaves_a_key_that_never_buys_again(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    key = await served.key()
    stub.faults.add(Fault(hold=True))
    with gateway_processes(settings, tmp_path, 1) as [process]:
        await process.until_ready()
        async with client_of(process.base_url, key) as http:
            lost = asyncio.create_task(http.post(GENERATIONS, json=image_body(), headers=KEY))
            await stub.until_held(1)
            process.kill()
            with pytest.raises(httpx2.HTTPError):
                await lost
    stub.release()
    assert (await post(served, key)).status_code == 409
    await make_late(served)
    await served.sweep()
    answer = await post(served, key)
    assert (answer.status_code, error_of(answer)["code"]) == (504, "outcome_unknown")
    assert len(stub.calls) == 1


async def test_a_source_that_is_gone_does_not_take_a_paid_edit_away(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    async with served.http(key) as http:
        await http.post(GENERATIONS, json=image_body())
        [source] = (await http.get("/v1/images")).json()["data"]
        body = {
            "model": "gpt-image-2",
            "prompt": "a hat",
            "quality": "low",
            "images": [{"image_url": f"generated-images://{source['id']}"}],
        }
        first = await http.post(EDITS, json=body, headers=KEY)
        await http.delete(f"/v1/images/{source['id']}")
        again = await http.post(EDITS, json=body, headers=KEY)
        other = await http.post(EDITS, json=body)
    assert (first.status_code, again.content) == (200, first.content)
    assert other.status_code == 404
    assert len(stub.calls) == 2


async def test_a_paid_request_is_answered_again_after_any_later_deletion(
    served: Served, settings: Settings, stub: Stub
) -> None:
    key = await served.key()
    first = await post(served, key)
    without_house_key = settings.model_copy(update={"openai_api_key": None})
    async with served_gateway(without_house_key) as other:
        again = await post(other, key)
        new = await post(other, key, {"Idempotency-Key": "another"})
    assert (again.status_code, again.content) == (200, first.content)
    assert (new.status_code, error_of(new)["code"]) == (503, "no_credential")


async def test_a_repeat_that_comes_while_the_image_is_being_stored_is_told_to_wait(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    assert (await post(served, key)).status_code == 200
    [(path,)] = await served.owner_sql("SELECT path FROM image")
    content = await served.gateway.store.get(path)
    await served.gateway.store.delete(path)
    early = await post(served, key, response_format="url")
    assert early.status_code == 422
    early = await post(served, key)
    assert (early.status_code, error_of(early)["code"]) == (409, "idempotency_in_flight")
    await served.gateway.store.put(path, content)
    assert (await post(served, key)).status_code == 200
    await served.gateway.store.delete(path)
    await served.owner_sql("UPDATE image SET created_at = created_at - interval '2 minutes'")
    late = await post(served, key)
    assert (late.status_code, error_of(late)["code"]) == (404, "image_not_found")
    assert late.headers["idempotent-replayed"] == "true"
    assert len(stub.calls) == 1


async def test_a_store_that_is_away_is_no_reason_to_buy_again(
    settings: Settings, stub: Stub, s3_server: S3Server
) -> None:
    async with hosted_gateway(settings, await bucket_of(s3_server)) as hosted:
        key = await hosted.served.key()
        first = await post(hosted.served, key)
        s3_server.stop()
        away = await post(hosted.served, key)
        s3_server.start()
        again = await post(hosted.served, key)
    assert (away.status_code, "x-should-retry" in away.headers) == (503, False)
    assert (again.status_code, again.content) == (200, first.content)
    assert len(stub.calls) == 1


async def test_claims_of_a_few_users_under_one_key_never_wait_for_each_other(
    served: Served, settings: Settings, stub: Stub
) -> None:
    keys = [await served.key(user=f"user-{at}") for at in range(20)]
    async with served_gateway(settings) as other:
        orders = [(served, keys), (other, keys[::-1])]
        clients = [[client_of(gateway.base_url, key) for key in order] for gateway, order in orders]
        for name in ("one", "two", "three"):
            answers = await asyncio.gather(
                *(post_keyed(client, name) for row in clients for client in row)
            )
            assert set(statuses(answers)) <= {200, 409}
        for client in (client for row in clients for client in row):
            await client.aclose()
    assert len(stub.calls) == 60
    assert await deadlocks(served) == 0


async def test_many_keys_in_any_order_never_wait_for_each_other(
    served: Served, settings: Settings, stub: Stub
) -> None:
    keys = [await served.key(user=f"user-{at}") for at in range(4)]
    async with served_gateway(settings) as other:
        clients = [client_of(gateway.base_url, key) for gateway in (served, other) for key in keys]
        names = [f"order-{at}" for at in range(25)]
        answers = await asyncio.gather(
            *(
                post_keyed(client, name)
                for at, client in enumerate(clients)
                for name in (names if at % 2 else reversed(names))
            )
        )
        for client in clients:
            await client.aclose()
    assert set(statuses(answers)) <= {200, 409}
    assert len(stub.calls) == len(keys) * len(names)
    assert await deadlocks(served) == 0


async def post_keyed(client: httpx2.AsyncClient, name: str) -> httpx2.Response:
    return await client.post(GENERATIONS, json=image_body(), headers={"Idempotency-Key": name})


async def test_the_official_client_repeats_and_keeps_its_exceptions(
    served: Served, stub: Stub
) -> None:
    async with served.openai(await served.key()) as client:
        made = [
            await client.images.generate(
                model="gpt-image-2", prompt="a fox", quality="low", extra_headers=KEY
            )
            for _ in range(2)
        ]
    assert made[0].model_dump() == made[1].model_dump()
    assert base64.b64decode(made[1].data[0].b64_json or "").startswith(b"\x89PNG")  # type: ignore[index]
    assert len(stub.calls) == 1


async def test_the_simple_form_takes_the_key_too(served: Served, stub: Stub) -> None:
    async with served.http(await served.key()) as http:
        answers = [
            await http.post("/generate_image", json={"prompt": "a fox", "params": {}}, headers=KEY)
            for _ in range(2)
        ]
    assert answers[0].json() == answers[1].json()
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert len(stub.calls) == 1


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
async def test_a_tool_called_again_with_its_key_gives_the_same_images(
    served: Served, stub: Stub, mode: str
) -> None:
    arguments = {"prompt": "a fox", "quality": "low", "idempotency_key": "order-4711"}
    async with served.mcp(await served.key(), mode) as client:
        made = [await client.call_tool("generate_image", arguments) for _ in range(2)]
        other = await client.call_tool("generate_image", {**arguments, "prompt": "a wolf"})
    assert not made[0].is_error
    first, again = made[0].structured_content, made[1].structured_content
    assert first is not None
    assert again == {**first, "replayed": True}
    assert [block.type for block in made[1].content] == [block.type for block in made[0].content]
    assert other.is_error
    assert other.meta is not None
    assert other.meta["error"]["code"] == "idempotency_conflict"
    assert len(stub.calls) == 1
