"""Deadlines of database calls do not count delays of the event loop."""

import asyncio
import time

import pytest

from gateway.config import Settings
from gateway.db.deadlines import Deadline
from tests.harness import GPT2, Served, served_gateway

PATH = "/v1/images/generations"
LOW = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
ADMISSION_MS = 100


def hold_up(seconds: float) -> None:
    """Block the event loop, as a busy machine does."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


async def test_an_answer_that_came_while_the_loop_was_held_up_is_in_time() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"answer")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with Deadline(0.1):
            for _ in range(3):
                asyncio.get_running_loop().call_soon(hold_up, 0.2)
            assert await reader.read() == b"answer"
        writer.close()


@pytest.mark.parametrize("seconds", [0.01, 0.12, 0.3])
async def test_a_statement_without_an_answer_is_given_up_in_time(seconds: float) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with Deadline(seconds):
            await asyncio.Event().wait()
    assert time.monotonic() - began >= seconds


async def test_a_loop_that_is_held_up_again_and_again_still_gives_up() -> None:
    loop = asyncio.get_running_loop()
    is_over = False

    def again() -> None:
        hold_up(0.11)
        if not is_over:
            loop.call_later(0, again)

    again()
    with pytest.raises(TimeoutError):
        async with Deadline(0.3):
            await asyncio.Event().wait()
    is_over = True


async def test_a_cancelled_wait_is_no_timeout() -> None:
    async def wait() -> None:
        async with Deadline(60):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_requests_are_served_though_the_loop_is_held_up_for_longer_than_they_may_wait(
    settings: Settings,
) -> None:
    settings = settings.model_copy(update={"admission_timeout_ms": ADMISSION_MS})
    async with served_gateway(settings) as served:
        key = await served.key()
        loop = asyncio.get_running_loop()
        is_over = False

        def again() -> None:
            hold_up(1.5 * ADMISSION_MS / 1000)
            if not is_over:
                loop.call_later(0.001, again)

        async with served.http(key) as http:
            loop.call_soon(again)
            answer = await http.post(PATH, json=LOW)
            is_over = True
        assert answer.status_code == 200, answer.text
        await served.check_invariants()


async def test_the_first_requests_wait_for_no_connection(served: Served) -> None:
    rows = await served.owner_sql(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'image-gateway'"
        " AND usename IS NOT NULL AND pid <> pg_backend_pid()"
    )
    lanes_and_listener = 5
    assert rows[0][0] >= served.gateway.settings.database_pool_size + lanes_and_listener
    async with served.http() as http:
        assert (await http.get("/ready")).status_code == 200
