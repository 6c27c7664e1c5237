"""Throughput with a hundred thousand tenants, each request another one, against ten tenants."""

import itertools
import json
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import psutil  # type: ignore[import-untyped]  # comes with the embedded Postgres

from benchmarks import servers
from benchmarks.load import Load, request_bytes, run_load
from benchmarks.operator import Operator
from benchmarks.rows import Row
from gateway.config import Settings
from gateway.db.embedded import EmbeddedPostgres
from gateway.domain import USUAL_KEY_SCOPES, new_id
from gateway.opening import open_core
from gateway.vault import key_format
from gateway.vault.key_format import Pepper

PATH = "/v1/images/generations"
CONNECTIONS = 32
REQUESTS = 3000
TENANTS = 100_000
FEW = 10
AMPLE = 1_000_000_000
BODY = {"model": "gpt-image-2", "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
PATIENT = {"GATEWAY_ADMISSION_TIMEOUT_MS": "10000"}


@dataclass(frozen=True)
class Crowd:
    """The runs of one number of tenants, with the CPU seconds of gateway and Postgres."""

    tenants: int
    requests: Iterator[bytes]
    loads: list[Load] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Compute the median throughput."""
        return statistics.median(load.per_second for load in self.loads)

    @property
    def cpu_milliseconds(self) -> float:
        """Compute the median CPU time of a request."""
        return statistics.median(
            seconds * 1000 / len(load.milliseconds)
            for seconds, load in zip(self.cpu_seconds, self.loads, strict=True)
        )


async def measure(folder: Path, rounds: int, scale: float) -> list[Row]:
    """Measure both crowds in turn on one gateway with a worker."""
    keys = await prepare(folder, TENANTS)
    with (
        servers.stub(folder) as stub,
        servers.gateway(stub, folder, **PATIENT) as (port, running, _),
    ):
        few, many = _crowd(keys[:FEW]), _crowd(keys[FEW:])
        for crowd in (few, many):  # warm-up of connections and plans
            await run_load(port, crowd.requests, connections=CONNECTIONS, requests=500)
        for _ in range(rounds):
            for crowd in (few, many):
                before = cpu_seconds(running)
                load = await run_load(
                    port,
                    crowd.requests,
                    connections=CONNECTIONS,
                    requests=max(CONNECTIONS, int(REQUESTS * scale)),
                )
                crowd.loads.append(load)
                crowd.cpu_seconds.append(cpu_seconds(running) - before)
        memory = servers.resident_megabytes(running)
        Operator.of(port, folder).check_books()
    return _rows(few, many, memory)


def _rows(few: Crowd, many: Crowd, memory: float) -> list[Row]:
    return [
        Row("100 000 tenants against 10, requests/s", few.per_second, many.per_second,
            many.per_second / few.per_second, "x", ">= 0.9", "< 0.7"),
        Row("the same, CPU of gateway and Postgres, ms", few.cpu_milliseconds,
            many.cpu_milliseconds, many.cpu_milliseconds / few.cpu_milliseconds, "x", "", ""),
        Row("memory of the worker afterwards, MB", None, memory, memory, "MB", "", ""),
    ]  # fmt: skip


def _crowd(keys: Sequence[str]) -> Crowd:
    body = json.dumps(BODY | {"response_format": "url"}).encode()
    return Crowd(
        len(keys),
        (request_bytes("127.0.0.1", PATH, key, body) for key in itertools.cycle(keys)),
    )


def cpu_seconds(running: subprocess.Popen[bytes]) -> float:
    """Add up the CPU time of the gateway and its descendants so far, Postgres included."""
    head = psutil.Process(running.pid)
    times = [one.cpu_times() for one in (head, *head.children(recursive=True))]
    return float(sum(time.user + time.system for time in times))


async def prepare(folder: Path, count: int) -> list[str]:
    """Create tenants with a key and a limit each, by COPY; return their keys."""
    settings = Settings(data_dir=folder / "data")
    async with open_core(settings) as core:
        pepper = core.pepper
        postgres = EmbeddedPostgres(settings.data_dir)
        try:
            url = postgres.owner_url().set(drivername="postgresql")
            connection = await asyncpg.connect(url.render_as_string(hide_password=False))
            try:
                return await _write(connection, pepper, count)
            finally:
                await connection.close()
        finally:
            await postgres.close()


async def _write(connection: asyncpg.Connection, pepper: Pepper, count: int) -> list[str]:
    tenants = [new_id() for _ in range(count)]
    keys = [key_format.new_key("live").reveal() for _ in range(count)]
    await connection.copy_records_to_table(
        "tenant",
        records=((one, f"bench-{number}") for number, one in enumerate(tenants)),
        columns=("id", "name"),
    )
    key_ids = [new_id() for _ in range(count)]
    await connection.copy_records_to_table(
        "api_key",
        records=(
            (key_id, tenant, key_id, key[-4:], True, list(USUAL_KEY_SCOPES))
            for key_id, tenant, key in zip(key_ids, tenants, keys, strict=True)
        ),
        columns=("id", "tenant_id", "root_id", "last4", "livemode", "scopes"),
    )
    await connection.copy_records_to_table(
        "key_directory",
        records=(
            (key_format.digest(pepper, key), tenant, key_id, pepper.version)
            for key_id, tenant, key in zip(key_ids, tenants, keys, strict=True)
        ),
        columns=("digest", "tenant_id", "api_key_id", "pepper_version"),
    )
    await connection.copy_records_to_table(
        "rate_limit",
        records=((tenant, True, "requests", AMPLE) for tenant in tenants),
        columns=("tenant_id", "livemode", "kind", "value"),
    )
    await connection.execute("VACUUM ANALYZE")
    return keys
