"""A server that is told to stop lets paid calls end while their clients wait for them."""

import asyncio
import signal
from pathlib import Path

import httpx2
import pytest

from gateway.config import Settings
from tests.harness import (
    GPT2,
    Served,
    error_of,
    gateway_process,
    process_environment,
    secret_of,
)
from tests.load_helpers import until_passed
from tests.stub_gemini import StubGemini
from tests.stub_gemini.api import KEY as GEMINI_KEY
from tests.stub_openai import Fault, Stub

WAITING = 150
LOOK_SECONDS = 0.3
"""Longer than the time between two looks of uvicorn's server at the signals it got."""
BODY = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}


async def test_a_call_in_flight_at_sigterm_is_answered_and_settled(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    key = secret_of(await served.key())
    stub.faults.add(Fault(hold=True))
    with gateway_process(process_environment(settings), tmp_path / "log") as running:
        await running.until_ready()
        async with httpx2.AsyncClient(timeout=60) as http:
            call = asyncio.create_task(_post(http, running.base_url, key))
            await stub.until_held(1)
            running.process.send_signal(signal.SIGTERM)
            # Once new connections are refused, the server has heard it.
            await _until_refused(running.base_url)
            stub.release()
            response = await call
        assert response.status_code == 200
        await asyncio.to_thread(running.process.wait, 30)
    assert await served.ledger_total() == stub.bill[0].cost_nano_usd


async def test_a_call_that_outlives_the_drain_is_told_that_its_outcome_is_unknown(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    key = secret_of(await served.key())
    stub.faults.add(Fault(hold=True))
    environment = process_environment(settings) | {"GATEWAY_DRAIN_SECONDS": "0.5"}
    with gateway_process(environment, tmp_path / "log") as running:
        await running.until_ready()
        async with httpx2.AsyncClient(timeout=60) as http:
            call = asyncio.create_task(_post(http, running.base_url, key))
            await stub.until_held(1)
            running.process.send_signal(signal.SIGTERM)
            response = await call
        await asyncio.to_thread(running.process.wait, 30)
    assert (response.status_code, error_of(response)["code"]) == (504, "outcome_unknown")
    assert response.headers["x-should-retry"] == "false"
    rows = await served.owner_sql("SELECT state FROM reservation")
    assert [row.state for row in rows] == ["unknown"]


async def test_no_fallback_is_begun_after_sigterm(
    served: Served, settings: Settings, stub: Stub, gemini: StubGemini, tmp_path: Path
) -> None:
    key = secret_of(await served.key())
    chain = tmp_path / "models.toml"
    chain.write_text(f'[[fallbacks]]\nmodel = "{GPT2}"\nto = ["gemini-nano-banana-2.1"]\n')
    environment = process_environment(settings) | {
        "GEMINI_API_KEY": GEMINI_KEY,
        "GEMINI_BASE_URL": gemini.base_url,
        "GATEWAY_MODELS_FILE": str(chain),
    }
    stub.faults.add(Fault("status", preset="rate_limited", hold=True))
    with gateway_process(environment, tmp_path / "log") as running:
        await running.until_ready()
        async with httpx2.AsyncClient(timeout=60) as http:
            call = asyncio.create_task(_post(http, running.base_url, key))
            await stub.until_held(1)
            running.process.send_signal(signal.SIGTERM)
            await _until_refused(running.base_url)
            stub.release()
            response = await call
        assert (response.status_code, error_of(response)["code"]) == (503, "overloaded")
        assert "shutting down" in error_of(response)["message"]
        assert response.headers["retry-after"] == "1"
        await asyncio.to_thread(running.process.wait, 30)
    assert gemini.calls == []
    [row] = await served.owner_sql("SELECT state, final_nano FROM reservation")
    assert (row.state, row.final_nano) == ("void", 0)


async def test_a_gateway_behind_a_balancer_serves_during_its_shutdown_delay(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    key = secret_of(await served.key())
    environment = process_environment(settings) | {"GATEWAY_SHUTDOWN_DELAY_SECONDS": "300"}
    with gateway_process(environment, tmp_path / "log") as running:
        await running.until_ready()
        running.process.send_signal(signal.SIGTERM)
        await _until_leaving(running.base_url)
        async with httpx2.AsyncClient(timeout=60) as http:
            answer = await _post(http, running.base_url, key)
            assert answer.status_code == 200
            # The client does not keep a connection that is about to end.
            assert answer.headers["connection"] == "close"
        # A second signal ends the wait.
        running.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.process.wait, 60) == 0
    assert len(stub.bill) == 1


async def test_a_connection_that_a_balancer_kept_outlives_the_listener(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    key = secret_of(await served.key())
    environment = process_environment(settings) | {"GATEWAY_SHUTDOWN_DELAY_SECONDS": "0.1"}
    with gateway_process(environment, tmp_path / "log") as running:
        await running.until_ready()
        async with httpx2.AsyncClient(timeout=60) as kept:
            assert (await kept.get(f"{running.base_url}/health")).status_code == 200
            running.process.send_signal(signal.SIGTERM)
            await _until_refused(running.base_url)
            answer = await _post(kept, running.base_url, key)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert await asyncio.to_thread(running.process.wait, 60) == 0
    assert len(stub.bill) == 1


async def test_connections_that_wait_in_the_kernel_at_the_end_are_served(
    settings: Settings, tmp_path: Path
) -> None:
    environment = process_environment(settings) | {"GATEWAY_SHUTDOWN_DELAY_SECONDS": "300"}
    with gateway_process(environment, tmp_path / "log") as running:
        await running.until_ready()
        running.process.send_signal(signal.SIGTERM)
        await _until_leaving(running.base_url)
        # When it goes on, the next look of its server at the signals is due at once, and each turn
        # of its loop accepts a part of them.
        running.process.send_signal(signal.SIGSTOP)
        port = httpx2.URL(running.base_url).port
        waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(WAITING)]
        for _, writer in waiting:
            writer.write(b"GET /health HTTP/1.1\r\nHost: gateway\r\n\r\n")
        await until_passed(LOOK_SECONDS)
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(reader.read() for reader, _ in waiting))
        assert [answer[:15] for answer in answers] == [b"HTTP/1.1 200 OK"] * WAITING
        assert await asyncio.to_thread(running.process.wait, 60) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_gateway_that_is_told_to_stop_while_it_starts_does_not_go_on(
    settings: Settings, tmp_path: Path, workers: str
) -> None:
    asked = asyncio.Event()
    silent = await asyncio.start_server(lambda *_: asked.set(), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    environment = process_environment(settings) | {
        "GATEWAY_DATABASE_URL": f"postgresql://unknown@127.0.0.1:{port}/nothing"
    }
    async with silent:
        with gateway_process(environment, tmp_path / "log", "--workers", workers) as running:
            await asyncio.wait_for(asked.wait(), 60)
            running.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(running.process.wait, 60) == 128 + signal.SIGTERM


async def _post(http: httpx2.AsyncClient, base_url: str, key: str) -> httpx2.Response:
    return await http.post(
        f"{base_url}/v1/images/generations",
        json=BODY,
        headers={"Authorization": f"Bearer {key}"},
    )


async def _until_leaving(base_url: str) -> None:
    async with httpx2.AsyncClient(timeout=60) as http, asyncio.timeout(30):
        while (await http.get(f"{base_url}/ready")).status_code != 503:
            pass


async def _until_refused(base_url: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                async with httpx2.AsyncClient(timeout=5) as http:
                    await http.get(f"{base_url}/health")
            except httpx2.TransportError:
                return
