"""Overload: three times as many requests as can be served; goodput and refusals.

Measured twice: with generations as the bottleneck (a provider that takes a second), and with the
processor (a provider that answers at once).
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import servers
from benchmarks.crowd import Answer, percentile, run_crowd, statuses
from benchmarks.load import request_bytes, run_load
from benchmarks.operator import Operator

PATH = "/v1/images/generations"
OK = 200
PLACES = 100
PLACES_SECONDS = 12
CPU_SECONDS = 10
TIMES = 3
BODY = {
    "model": "gpt-image-2",
    "prompt": "a red circle",
    "size": "1024x1024",
    "quality": "low",
    "response_format": "url",
}


@dataclass(frozen=True)
class Overload:
    """One run: answers per second, and the latency of refusals."""

    what: str
    offered_per_second: float
    good_per_second: float
    statuses: dict[int, int]
    good_p50_ms: float
    good_p99_ms: float
    refused_p50_ms: float
    refused_p99_ms: float


async def measure(folder: Path, scale: float) -> list[Overload]:
    """Measure both against their own peaks; afterwards nothing may be held, and the books agree."""
    with ExitStack() as stack:
        stub_port = stack.enter_context(servers.stub(folder))
        port, _, _ = stack.enter_context(
            servers.gateway(stub_port, folder, GATEWAY_MAX_CONCURRENT_GENERATIONS=str(PLACES))
        )
        operator = Operator.of(port, folder)
        tenants = [operator.tenant(f"tenant {number}") for number in range(8)]
        for tenant in tenants:
            operator.budget(tenant, "1000000")
        body = json.dumps(BODY).encode()
        requests = [request_bytes("127.0.0.1", PATH, tenant.key, body) for tenant in tenants]
        for request in requests:
            await run_load(port, request, connections=8, requests=100)
        servers.configure_stub(stub_port, latency_seconds=1.0)
        runs = [
            _run(
                "places, at 90 %",
                await _crowd(port, requests, 0.9 * PLACES, PLACES_SECONDS * scale),
            ),
            _run(
                f"places, at {TIMES} times",
                await _crowd(port, requests, TIMES * PLACES, PLACES_SECONDS * scale),
            ),
        ]
        servers.configure_stub(stub_port, latency_seconds=0.0)
        closed = await run_load(port, requests[0], connections=32, requests=int(3000 * scale))
        peak = closed.per_second
        runs += [
            _run(
                "processor, at 90 %", await _crowd(port, requests, 0.9 * peak, CPU_SECONDS * scale)
            ),
            _run(
                f"processor, at {TIMES} times",
                await _crowd(port, requests, TIMES * peak, CPU_SECONDS * scale),
            ),
        ]
        _report(runs, peak)
        operator.check_books()
        print("no call is left held, and the books agree")
    return runs


async def _crowd(
    port: int, requests: list[bytes], per_second: float, seconds: float
) -> tuple[float, float, list[Answer]]:
    return (
        per_second,
        seconds,
        await run_crowd(port, requests, per_second=per_second, seconds=seconds),
    )


def _run(what: str, came: tuple[float, float, list[Answer]]) -> Overload:
    per_second, seconds, answers = came
    good = [answer for answer in answers if answer.status == OK]
    refused = [answer for answer in answers if answer.status != OK]
    # Until the last good answer: answers of a queue that is drained late are no peak.
    last = max((a.due + a.milliseconds / 1000 for a in good), default=seconds)
    return Overload(
        what,
        per_second,
        len(good) / max(seconds, last),
        statuses(answers),
        percentile(good, 0.5),
        percentile(good, 0.99),
        percentile(refused, 0.5),
        percentile(refused, 0.99),
    )


def _report(runs: list[Overload], closed_loop: float) -> None:
    print(f"closed loop, 32 connections: {closed_loop:.0f} requests/s")
    print(
        f"{'what':24} {'offered/s':>9} {'good/s':>8} {'good p50':>9} {'p99 ms':>8}"
        f" {'refused p50':>12} {'p99 ms':>8}  statuses"
    )
    for run in runs:
        print(
            f"{run.what:24} {run.offered_per_second:9.0f} {run.good_per_second:8.0f}"
            f" {run.good_p50_ms:9.0f} {run.good_p99_ms:8.0f} {run.refused_p50_ms:12.1f}"
            f" {run.refused_p99_ms:8.1f}  {run.statuses}"
        )
