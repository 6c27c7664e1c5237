"""M10: a client that disconnects at any point changes nothing about the paid call."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest

from tests.harness import Served, secret_of
from tests.money_helpers import (
    GENERATIONS,
    books,
    image_body,
    post_image,
    terse_log,
    until_states,
)
from tests.stub_openai import Fault, Stub


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with terse_log():
        yield


def raw_request(served: Served, secret: str) -> tuple[bytes, bytes]:
    """Head and body of a request for an image, as they go over the wire."""
    body = json.dumps(image_body()).encode()
    host = served.base_url.removeprefix("http://")
    head = (
        f"POST {GENERATIONS} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


async def send_and_leave(
    served: Served, sent: bytes, before_leaving: Callable[[], Awaitable[None]]
) -> None:
    """Send some bytes of a request, wait for an event, and close the connection."""
    host, port = served.base_url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    await writer.drain()
    await before_leaving()
    writer.transport.abort()


async def nothing() -> None:
    """Return at once, for a client that disconnects at once."""


async def expect_settled_with_the_bill(served: Served, stub: Stub, count: int) -> None:
    """Expect each billed call to have its own line of exactly its cost."""
    await stub.until_billed(count)
    await until_states(served, {"posted": count})
    booked = await books(served)
    assert [b.lines for b in booked] == [(("post", b.cost_nano_usd),) for b in stub.bill]
    assert len(stub.calls) == count


@pytest.mark.parametrize("share", [0, 30, 60, 90, 99])
async def test_a_client_that_leaves_before_its_request_is_whole_buys_nothing(
    share: int, served: Served, stub: Stub
) -> None:
    head, body = raw_request(served, secret_of(await served.key()))
    whole = head + body
    await send_and_leave(served, whole[: len(whole) * share // 100], nothing)
    async with served.http(await served.key()) as http:
        assert (await http.get("/health")).status_code == 200
    assert await books(served) == []
    assert stub.calls == []


async def test_a_client_that_leaves_while_the_provider_works_pays_the_cost(
    served: Served, stub: Stub
) -> None:
    await served.budget("1")
    stub.faults.add(Fault(hold=True, times=None))
    key = secret_of(await served.key())
    for count in range(1, 6):
        await send_and_leave(
            served, b"".join(raw_request(served, key)), partial(stub.until_held, count)
        )
    stub.release()
    await expect_settled_with_the_bill(served, stub, 5)


async def test_a_client_that_leaves_after_the_bill_and_before_the_answer_pays_it(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault(hold=True, bill_at_arrival=True))
    sent = b"".join(raw_request(served, secret_of(await served.key())))
    await send_and_leave(served, sent, lambda: stub.until_billed(1))
    stub.release()
    await expect_settled_with_the_bill(served, stub, 1)


async def test_a_client_that_leaves_without_reading_its_answer_pays_it(
    served: Served, stub: Stub
) -> None:
    stub.configure(min_b64_bytes=4_000_000)
    sent = b"".join(raw_request(served, secret_of(await served.key())))
    await send_and_leave(served, sent, lambda: stub.until_billed(1))
    await expect_settled_with_the_bill(served, stub, 1)


async def test_clients_that_send_and_leave_at_once_pay_for_what_was_bought_and_no_more(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    sent = b"".join(raw_request(served, secret_of(key)))
    for _ in range(10):
        await send_and_leave(served, sent, nothing)
    async with served.http(key) as http:
        assert (await post_image(http)).status_code == 200
    await stub.until_idle()
    await expect_settled_with_the_bill(served, stub, len(stub.calls))


@pytest.mark.parametrize("billed_first", [False, True], ids=["before the bill", "after the bill"])
async def test_a_cancelled_tool_call_is_settled_with_its_real_cost(
    served: Served, stub: Stub, *, billed_first: bool
) -> None:
    stub.faults.add(Fault(hold=True, bill_at_arrival=billed_first, times=None))
    async with served.mcp(await served.key()) as client:
        calls = [
            asyncio.create_task(client.call_tool("generate_image", dict(image_body())))
            for _ in range(3)
        ]
        await stub.until_held(3)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert all(call.cancelled() for call in calls)
        stub.release()
        await expect_settled_with_the_bill(served, stub, 3)


async def test_an_mcp_client_that_goes_away_is_charged_what_its_call_cost(
    served: Served, stub: Stub
) -> None:
    stub.faults.add(Fault(hold=True))
    key = await served.key()

    async def talk() -> None:
        async with served.mcp(key) as client:
            await client.call_tool("generate_image", dict(image_body()))

    talking = asyncio.create_task(talk())
    await stub.until_held(1)
    talking.cancel()
    await asyncio.wait([talking])
    stub.release()
    await expect_settled_with_the_bill(served, stub, 1)
