"""`gateway serve` bounds its connections, in one process and with workers."""

import asyncio
import resource
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]  # comes with the embedded Postgres
import pytest

from gateway.config import Settings
from gateway.web.connections.bounds import (
    MOST_DESCRIPTORS,
    ConnectionBounds,
    descriptor_limit,
    raise_descriptor_limit,
)
from tests.harness import gateway_process, process_environment

HEAD = b"GET /health HTTP/1.1\r\nhost: gateway\r\n"
CHUNKED = b"POST /health HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
ENDLESS = [
    (HEAD, b"x-header: value\r\n" * 4096),
    (HEAD + b"x: ", b"v" * 65_536),
    (b"GET /", b"q" * 65_536),
    (CHUNKED, b"x-trailer: value\r\n" * 4096),
]
SENT_BYTES = 24_000_000
ROUNDS = 3
"""One sender kept whole is still nearly twice what all of these may cost."""
REFUSED = {b"431", b"414", b""}
"""Or a connection that is reset: a client that goes on sending may lose the answer."""
ANSWERED = b"405"
"""The route's own answer, where it is given before the trailers exceed their bound; 431 follows."""


async def send(url: str, first: bytes, piece: bytes, total: int = SENT_BYTES) -> bytes:
    """Send until that is done, or refused; the status."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(first)
        for _ in range(total // len(piece)):
            writer.write(piece)
            await writer.drain()
        line = await reader.readline()
    except ConnectionError:
        return b""
    finally:
        writer.close()
    return line[9:12]


async def statuses(url: str, rounds: int) -> set[tuple[bool, bytes]]:
    """Let every sender of `ENDLESS` send; return if they sent trailers, and the statuses."""
    return {(first is CHUNKED, await send(url, first, piece)) for first, piece in ENDLESS * rounds}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 2])
async def test_endless_senders_cost_the_process_a_megabyte_each_at_most(
    settings: Settings, tmp_path: Path, workers: int
) -> None:
    options = () if workers == 1 else ("--workers", str(workers))
    environment = process_environment(settings)
    with gateway_process(
        environment, tmp_path / "log", *options, from_nothing=workers > 1
    ) as running:
        await running.until_ready(tries=2400)
        assert await send(running.base_url, HEAD + b"x: ", b"v" * 70_000, 70_000) == b"431"
        process = psutil.Process(running.process.pid)
        family = [process, *process.children(recursive=True)]
        heard = await statuses(running.base_url, ROUNDS)  # a young process also grows by itself
        before = sum(member.memory_info().rss for member in family)
        heard |= await statuses(running.base_url, ROUNDS)
        grown = sum(member.memory_info().rss for member in family) - before
    assert {status for has_trailers, status in heard if not has_trailers} <= REFUSED
    assert {status for has_trailers, status in heard if has_trailers} <= REFUSED | {ANSWERED}
    assert grown < len(ENDLESS) * ROUNDS * 2**20


@pytest.fixture
def own_descriptor_limit() -> Iterator[None]:
    """A limit of this process, which is as before afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("own_descriptor_limit")
def test_connections_stay_below_the_descriptors_of_the_process() -> None:
    settings = Settings(_env_file=None)  # type: ignore[call-arg]  # pydantic-settings' own
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    bounds = ConnectionBounds.of(settings)
    assert (bounds.connections, bounds.idle, bounds.per_address) == (136, 136, 68)
    raise_descriptor_limit()
    assert descriptor_limit() == min(hard, MOST_DESCRIPTORS)
    assert ConnectionBounds.of(settings).connections == min(4096, (min(hard, 65_536) - 128) // 2)
