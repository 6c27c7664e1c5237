"""A noisy neighbour: one tenant at twenty times its limit beside five quiet tenants."""

import asyncio
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
QUIET_TENANTS = 5
QUIET_PER_SECOND = 40.0
"""The total of all quiet tenants."""
NOISY_LIMIT_PER_MINUTE = 600
TIMES = 20
SECONDS = 20
PROVIDER_SECONDS = 0.2
BODY = {
    "model": "gpt-image-2",
    "prompt": "a red circle",
    "size": "1024x1024",
    "quality": "low",
    "response_format": "url",
}


@dataclass(frozen=True)
class Noticed:
    """The results of one group of tenants."""

    what: str
    statuses: dict[int, int]
    success: float
    p50_ms: float
    p99_ms: float


async def measure(folder: Path, scale: float) -> list[Noticed]:
    """Measure the quiet tenants alone, then beside the noisy one."""
    with ExitStack() as stack:
        stub_port = stack.enter_context(servers.stub(folder))
        url = stack.enter_context(servers.valkey())
        port, _, _ = stack.enter_context(servers.gateway(stub_port, folder, GATEWAY_REDIS_URL=url))
        operator = Operator.of(port, folder)
        noisy = operator.tenant("noisy")
        operator.limit(noisy, "requests", NOISY_LIMIT_PER_MINUTE)
        operator.limit(noisy, "concurrent", 20)
        body = json.dumps(BODY).encode()
        quiet = [
            request_bytes("127.0.0.1", PATH, operator.tenant(f"quiet {number}").key, body)
            for number in range(QUIET_TENANTS)
        ]
        loud = [request_bytes("127.0.0.1", PATH, noisy.key, body)]
        for request in quiet:
            await run_load(port, request, connections=8, requests=60)
        servers.configure_stub(stub_port, latency_seconds=PROVIDER_SECONDS)
        seconds = SECONDS * scale
        alone = await run_crowd(port, quiet, per_second=QUIET_PER_SECOND, seconds=seconds)
        beside, noise = await asyncio.gather(
            run_crowd(port, quiet, per_second=QUIET_PER_SECOND, seconds=seconds),
            run_crowd(port, loud, per_second=TIMES * NOISY_LIMIT_PER_MINUTE / 60, seconds=seconds),
        )
        found = [
            _noticed("quiet, alone", alone),
            _noticed("quiet, beside the noise", beside),
            _noticed("the noisy one", noise),
        ]
        print(f"{'what':26} {'success':>9} {'p50 ms':>8} {'p99 ms':>8}  statuses")
        for one in found:
            print(
                f"{one.what:26} {one.success:9.2%} {one.p50_ms:8.1f} {one.p99_ms:8.1f}"
                f"  {one.statuses}"
            )
        operator.check_books()
    return found


def _noticed(what: str, answers: list[Answer]) -> Noticed:
    good = [answer for answer in answers if answer.status == OK]
    return Noticed(
        what,
        statuses(answers),
        len(good) / len(answers),
        percentile(answers, 0.5),
        percentile(answers, 0.99),
    )
