"""Overload: the gateway refuses at once, fairly between tenants, and leaves nothing behind."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
import pytest
from prometheus_client import REGISTRY

from gateway.config import Settings
from gateway.generation.image_references import LINKS_AT_ONCE
from gateway.load.concurrency import TENANT_SHARE
from tests.download_hosts import (
    NAME,
    PUBLIC,
    Dialled,
    Names,
    certificates,
    downloading,
    sends,
    web_host,
)
from tests.harness import GPT2, Served, error_of, secret_of, served_gateway
from tests.image_helpers import png
from tests.limits_helpers import limit
from tests.load_helpers import Arrivals
from tests.mcp_helpers import MODES, post, served_with_downloads, tool_message
from tests.money.test_money_crashes import locked, waiting_for_locks
from tests.money_helpers import GENERATIONS, client_of, eventually, image_body, statuses
from tests.stub_openai import Fault, Stub

NARROW = {"max_preparing_requests": 4, "max_waiting_requests": 4, "admission_timeout_ms": 60_000}
"""One tenant has two places, and two more to wait in."""


@asynccontextmanager
async def narrow_gateway(settings: Settings, **changes: object) -> AsyncIterator[Served]:
    """A gateway with few places; the invariants are checked at the end."""
    async with served_gateway(settings.model_copy(update=NARROW | changes)) as served:
        yield served
        await served.check_invariants()


@asynccontextmanager
async def stuck(served: Served) -> AsyncIterator[None]:
    """Lock the reservations: a call waits for its own, inside the gate."""
    settings = served.gateway.settings
    async with locked(settings, "LOCK TABLE reservation IN ACCESS EXCLUSIVE MODE"):
        yield


def flood(http: httpx2.AsyncClient, count: int) -> list[asyncio.Task[httpx2.Response]]:
    return [asyncio.create_task(http.post(GENERATIONS, json=image_body())) for _ in range(count)]


async def first_ones(
    tasks: Sequence[asyncio.Task[httpx2.Response]], count: int
) -> list[httpx2.Response]:
    """The first answers that come."""
    coming = asyncio.as_completed(tasks, timeout=30)
    return [await next(coming) for _ in range(count)]


async def until(check: Callable[[], bool]) -> None:
    """Wait for something in this process."""

    async def holds() -> bool:
        await asyncio.sleep(0)
        return check()

    await eventually(holds)


async def reservations(served: Served) -> int:
    [row] = await served.owner_sql("SELECT count(*) FROM reservation")
    return int(row[0])


def expect_busy(answer: httpx2.Response) -> None:
    assert answer.status_code == 503, answer.text
    error = error_of(answer)
    assert (error["code"], error["type"], error["param"]) == ("overloaded", "server_error", None)
    assert answer.headers["Retry-After"] == "1"
    assert "X-Request-Id" in answer.headers


async def test_a_flooding_tenant_is_refused_at_once_and_blocks_no_other(
    settings: Settings, stub: Stub
) -> None:
    async with narrow_gateway(settings) as served:
        await limit(served, "requests", 100)
        other = await served.key(tenant_id=await served.tenant("other"))
        async with (
            client_of(served.base_url, await served.key()) as http,
            served.http(other) as calm,
        ):
            assert (await calm.post(GENERATIONS, json=image_body())).status_code == 200
            async with stuck(served):
                tasks = flood(http, 12)
                for refused in await first_ones(tasks, 8):
                    expect_busy(refused)
                assert (served.gateway.gate.inside, served.gateway.gate.waiting) == (2, 2)
                others = flood(calm, 2)
                await until(lambda: served.gateway.gate.inside == 4)
            assert statuses(await asyncio.gather(*others)) == {200: 2}
            answers = await asyncio.gather(*tasks)
            assert statuses(answers) == {200: 4, 503: 8}
            last = await http.post(GENERATIONS, json=image_body())
        # Refused requests have not been counted anywhere.
        assert last.headers["X-RateLimit-Remaining-Requests"] == "95"
        assert await reservations(served) == len(stub.calls) == 8


async def test_cheap_requests_are_answered_while_all_others_are_refused(
    settings: Settings,
) -> None:
    async with narrow_gateway(settings, max_preparing_requests=1) as served:
        admin = served.gateway.core.new_admin_key
        assert admin is not None
        key = await served.key()
        async with client_of(served.base_url, key) as http, served.http(admin.reveal()) as operator:
            async with stuck(served):
                tasks = flood(http, 3)
                await until(lambda: served.gateway.gate.waiting == 2)
                for path in ("/v1/models", "/v1/usage"):
                    expect_busy(await http.get(path))
                for path in ("/health", "/ready"):
                    assert (await http.get(path)).status_code == 200
                for path in ("/metrics", "/admin/v1/tenants"):
                    assert (await operator.get(path)).status_code == 200
                metrics = (await operator.get("/metrics")).text
            assert statuses(await asyncio.gather(*tasks)) == {200: 3}
    assert 'gateway_shed_total{gate="requests"}' in metrics


async def test_no_request_waits_longer_than_its_limit(settings: Settings, stub: Stub) -> None:
    async with narrow_gateway(settings, max_wait_ms=50) as served:
        async with client_of(served.base_url, await served.key()) as http:
            async with stuck(served):
                tasks = flood(http, 4)
                for refused in await first_ones(tasks, 2):
                    expect_busy(refused)
            assert statuses(await asyncio.gather(*tasks)) == {200: 2, 503: 2}
        assert await reservations(served) == len(stub.calls) == 2


@pytest.mark.parametrize("mode", MODES)
async def test_an_overload_is_a_tool_error_for_an_agent(settings: Settings, mode: str) -> None:
    async with narrow_gateway(settings) as served:
        paint = tool_message("generate_image", mode, prompt="a red fox", model=GPT2)
        async with client_of(served.base_url, await served.key()) as http:
            async with stuck(served):
                tasks = flood(http, 4)
                await until(lambda: served.gateway.gate.waiting == 2)
                refused = await http.post("/mcp", content=paint.body, headers=paint.headers)
            await asyncio.gather(*tasks)
            made = await post(http, paint)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        said = refused.json()
        assert (said["id"], said["error"]["data"]["code"]) == (None, "overloaded")
        assert not made.result.get("isError")


async def test_images_are_not_read_where_they_would_be_refused(settings: Settings) -> None:
    form = {"prompt": "a hat", "model": GPT2}
    async with (
        narrow_gateway(settings) as served,
        client_of(served.base_url, await served.key()) as http,
    ):
        async with stuck(served):
            tasks = flood(http, 4)
            await until(lambda: served.gateway.gate.waiting == 2)
            expect_busy(await http.post("/v1/images/edits", data=form, files={"image": png()}))
        assert statuses(await asyncio.gather(*tasks)) == {200: 4}


async def test_images_keep_their_place_among_uploads_until_they_are_checked(
    settings: Settings,
) -> None:
    form = {"prompt": "a hat", "model": GPT2}
    async with narrow_gateway(settings, max_concurrent_uploads=2) as served:
        other = await served.key(tenant_id=await served.tenant("other"))
        async with (
            client_of(served.base_url, await served.key()) as http,
            client_of(served.base_url, other) as calm,
        ):
            # Its key is looked up when the body has been read.
            http.headers["Idempotency-Key"] = "k"
            async with locked(settings, "LOCK TABLE idempotency_claim IN ACCESS EXCLUSIVE MODE"):
                first = asyncio.create_task(
                    http.post("/v1/images/edits", data=form, files={"image": png()})
                )
                await eventually(lambda: waiting_for_locks(served))
                expect_busy(await http.post("/v1/images/edits", data=form, files={"image": png()}))
            assert (await first).status_code == 200
            answer = await calm.post("/v1/images/edits", data=form, files={"image": png()})
            assert answer.status_code == 200


async def test_links_that_never_answer_keep_no_other_tenants_links_waiting(
    settings: Settings, tmp_path: Path
) -> None:
    made_certificates = certificates(tmp_path, NAME)
    most_of_one = LINKS_AT_ONCE // TENANT_SHARE
    heard, is_over = asyncio.Semaphore(0), asyncio.Event()
    answers = iter([is_over.wait] * most_of_one)

    async def answer(writer: asyncio.StreamWriter) -> None:
        heard.release()
        silence = next(answers, None)
        if silence is None:
            await sends(png())(writer)
        else:
            await silence()

    edit = {"prompt": "a hat", "model": GPT2, "images": [{"image_url": f"https://{NAME}/a.png"}]}
    async with (
        web_host(answer, made_certificates.server) as host,
        downloading(
            ssl_context=made_certificates.client,
            open_socket=Dialled(host.port),
            resolver=Names([[PUBLIC]]),
        ) as downloads,
        served_with_downloads(settings, downloads) as served,
    ):
        other = await served.key(tenant_id=await served.tenant("other"))
        async with (
            client_of(served.base_url, await served.key()) as http,
            client_of(served.base_url, other) as calm,
        ):
            tasks = [
                asyncio.create_task(http.post("/v1/images/edits", json=edit))
                for _ in range(most_of_one + 1)
            ]
            for _ in range(most_of_one):
                await asyncio.wait_for(heard.acquire(), 30)
            assert (await calm.post("/v1/images/edits", json=edit)).status_code == 200
            assert len(host.requests) == most_of_one + 1
            is_over.set()
            await asyncio.gather(*tasks)


async def test_a_client_that_leaves_while_it_waits_buys_nothing(
    settings: Settings, stub: Stub
) -> None:
    async with narrow_gateway(settings) as served:
        key = await served.key()
        async with client_of(served.base_url, key) as http:
            async with stuck(served):
                inside = flood(http, 2)
                await until(lambda: served.gateway.gate.inside == 2)
                leaving = flood(http, 2)
                await until(lambda: served.gateway.gate.waiting == 2)
                for task in leaving:
                    task.cancel()
                await until(lambda: served.gateway.gate.waiting == 0)
            assert statuses(await asyncio.gather(*inside)) == {200: 2}
        assert len(stub.calls) == 2


async def test_a_client_that_is_slow_to_send_keeps_no_place(settings: Settings) -> None:
    async with narrow_gateway(settings) as served:
        key = secret_of(await served.key())
        host, port = served.base_url.removeprefix("http://").split(":")
        writers = []
        for _ in range(6):
            _, writer = await asyncio.open_connection(host, int(port))
            head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            writers.append(writer)
        async with served.http(key) as http:

            async def is_served() -> bool:
                return (await http.post(GENERATIONS, json=image_body())).status_code == 200

            await eventually(is_served)
            await until(lambda: served.gateway.gate.inside == 0)
        for writer in writers:
            writer.close()


async def test_a_client_that_sends_a_byte_now_and_then_keeps_no_place(settings: Settings) -> None:
    async with narrow_gateway(settings) as served:
        key = secret_of(await served.key())
        host, port = served.base_url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        writer.write(f"{head}Content-Length: 1000000\r\n\r\n{{".encode())
        await until(lambda: served.gateway.gate.inside == 1)
        dripping = Arrivals(lambda _: _drip(writer), 0.05)
        dripping.begin()
        await until(lambda: served.gateway.gate.inside == 0)
        await dripping.end()
        writer.close()


async def _drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b" ")
    await writer.drain()


async def test_a_large_burst_is_served_up_to_the_bounds_and_each_answer_is_true(
    settings: Settings, stub: Stub
) -> None:
    async with narrow_gateway(settings, max_wait_ms=200) as served:
        keys = [await served.key(tenant_id=await served.tenant(f"t{at}")) for at in range(4)]
        answers: list[Awaitable[httpx2.Response]] = []
        clients = [client_of(served.base_url, key) for key in keys]
        for http in clients:
            answers += flood(http, 50)
        counts = statuses(await asyncio.gather(*answers))
        for http in clients:
            # Each is served again as soon as there is room.
            assert (await http.post(GENERATIONS, json=image_body())).status_code == 200
            await http.aclose()
        assert set(counts) <= {200, 503}
        assert await reservations(served) == len(stub.calls) == counts[200] + 4
        assert (served.gateway.gate.inside, served.gateway.gate.waiting) == (0, 0)


# Places of generations


async def test_one_tenant_takes_its_share_of_generations_and_test_keys_none_of_the_live(
    settings: Settings, stub: Stub
) -> None:
    changes = {"max_concurrent_generations": 4, "max_concurrent_test_generations": 2}
    async with narrow_gateway(settings, **changes) as served:
        key, test_key = await served.key(), await served.key(livemode=False)
        other = await served.key(tenant_id=await served.tenant("other"))
        async with (
            client_of(served.base_url, key) as http,
            client_of(served.base_url, other) as calm,
            client_of(served.base_url, test_key) as sandbox,
        ):
            stub.faults.add(Fault(hold=True, times=4))
            held = flood(http, 2)
            await stub.until_held(2)
            expect_busy(await http.post(GENERATIONS, json=image_body()))
            assert (await sandbox.post(GENERATIONS, json=image_body())).status_code == 200
            held += flood(calm, 2)
            await stub.until_held(4)
            stub.release()
            assert statuses(await asyncio.gather(*held)) == {200: 4}
        assert await reservations(served) == 5


async def test_the_share_of_one_tenant_can_be_set(settings: Settings, stub: Stub) -> None:
    changes = {"max_concurrent_generations": 3, "max_concurrent_generations_per_tenant": 3}
    async with (
        narrow_gateway(settings, **changes) as served,
        client_of(served.base_url, await served.key()) as http,
    ):
        stub.faults.add(Fault(hold=True, times=3))
        held = flood(http, 2)
        await stub.until_held(2)
        held += flood(http, 1)
        await stub.until_held(3)
        expect_busy(await http.post(GENERATIONS, json=image_body()))
        stub.release()
        assert statuses(await asyncio.gather(*held)) == {200: 3}


# The end


@pytest.mark.parametrize("mode", MODES)
async def test_a_shutdown_refuses_waiting_requests_and_finishes_admitted_ones(
    settings: Settings, stub: Stub, mode: str
) -> None:
    async with narrow_gateway(settings, max_preparing_requests=2) as served:
        key = await served.key()
        paint = tool_message("generate_image", mode, prompt="a red fox", model=GPT2)
        async with client_of(served.base_url, key) as http:
            stub.faults.add(Fault(hold=True))
            held = flood(http, 1)
            await stub.until_held(1)
            served.gateway.clear_caches(None)
            async with stuck(served):
                waiting = flood(http, 3)
                await until(lambda: served.gateway.gate.waiting == 2)
                draining = asyncio.create_task(served.gateway.pipeline.drain(30))
                for refused in await first_ones(waiting, 2):
                    expect_busy(refused)
            stub.release()
            await draining
            # One was inside already: its call is made, and it is waited for.
            answers = await asyncio.gather(*held, *waiting)
            assert statuses(answers) == {200: 2, 503: 2}
            late = await http.post(GENERATIONS, json=image_body())
            told = (await post(http, paint)).result
            assert (await http.get("/v1/models")).status_code == 200
        assert (late.status_code, error_of(late)["code"]) == (503, "overloaded")
        assert late.headers["Retry-After"] == "1"
        assert told["isError"]
        assert told["_meta"]["error"]["code"] == "overloaded"
        assert await reservations(served) == len(stub.calls) == 2


async def test_slow_reports_of_one_tenant_leave_the_database_to_the_others(
    settings: Settings,
) -> None:
    async with served_gateway(settings) as served:
        key, other = await served.key(), await served.key(tenant_id=await served.tenant("other"))
        lock = "LOCK TABLE tenant_user IN ACCESS EXCLUSIVE MODE"
        async with served.http(key) as http, served.http(other) as calm:
            for client in (http, calm):  # whose keys they are is read from the locked table
                assert (await client.get("/v1/images")).status_code == 200
            async with locked(served.gateway.settings, lock):
                reports = [
                    asyncio.create_task(http.get("/v1/usage?group_by=user")) for _ in range(20)
                ]
                await eventually(lambda: waiting_for_locks(served))
                assert (await calm.get("/v1/images")).status_code == 200
                assert (await calm.post(GENERATIONS, json=image_body())).status_code == 200
            # A request that waited too long for a connection is told so; none hangs.
            answers = await asyncio.gather(*reports)
    assert set(statuses(answers)) <= {200, 503}
    assert statuses(answers)[200] >= 4


async def test_a_repeated_request_that_waits_for_its_images_keeps_no_place(
    settings: Settings,
) -> None:
    async with narrow_gateway(settings, max_preparing_requests=2) as served:
        key, other = await served.key(), await served.key(tenant_id=await served.tenant("other"))
        async with served.http(key) as http, served.http(other) as calm:

            async def ask() -> httpx2.Response:
                again = {"Idempotency-Key": "again"}
                return await http.post(GENERATIONS, json=image_body(), headers=again)

            assert (await ask()).status_code == 200
            [(path,)] = await served.owner_sql("SELECT path FROM image")
            file = Path(httpx2.URL(served.gateway.settings.image_storage_url).path) / path
            file.unlink()
            os.mkfifo(file)  # opening it waits for a writer
            before = in_flight()
            waiting = [asyncio.create_task(ask()) for _ in range(2)]
            try:
                await until(lambda: in_flight() == before + 2 and served.gateway.gate.inside == 0)
                assert (await calm.post(GENERATIONS, json=image_body())).status_code == 200
                assert not any(task.done() for task in waiting)
            finally:
                while not all(task.done() for task in waiting):
                    with suppress(OSError):  # no reader has opened it yet
                        os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
                    await asyncio.wait(waiting, timeout=0.1)


def in_flight() -> float:
    """Generations under way in this process."""
    return REGISTRY.get_sample_value("gateway_generations_in_flight") or 0
