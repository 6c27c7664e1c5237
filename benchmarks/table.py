"""The gateway's overhead over the floor, for all measures in one run."""

import io
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks import servers
from benchmarks.load import Load, request_bytes, run_load, run_uploads, upload_bytes
from benchmarks.rows import Row

PATH = "/v1/images/generations"
EDITS_PATH = "/v1/images/edits"
BIG_ANSWER_BYTES = 2_000_000
EDITS = 100
NOISE_EDGE_PIXELS = 1180
"""Edge of a square of incompressible pixels of three bytes: a PNG of 4 MB."""


@dataclass(frozen=True)
class Bench:
    """The running servers and the number of requests."""

    stub_port: int
    floor_port: int
    gateway_port: int
    key: str
    rounds: int
    scale: float

    def request(self, port: int, response_format: str) -> bytes:
        """Prepare the request for one of the two servers."""
        body: dict[str, object] = {
            "model": "gpt-image-2",
            "prompt": "a red circle",
            "size": "1024x1024",
            "quality": "low",
        }
        if port == self.gateway_port:
            body["response_format"] = response_format
        return request_bytes("127.0.0.1", PATH, self.key, json.dumps(body).encode())

    async def pair(
        self, connections: int, requests: int, response_format: str = "url"
    ) -> tuple[list[Load], list[Load]]:
        """Measure floor and gateway in turn, so that a slow phase of the machine affects both."""
        count = max(connections, int(requests * self.scale))
        floor: list[Load] = []
        gateway: list[Load] = []
        for _ in range(self.rounds):
            for port, loads in ((self.floor_port, floor), (self.gateway_port, gateway)):
                request = self.request(port, response_format)
                loads.append(await run_load(port, request, connections=connections, requests=count))
        return floor, gateway


def median(loads: list[Load], figure: Callable[[Load], float]) -> float:
    """Compute the median of the rounds."""
    return statistics.median(figure(load) for load in loads)


async def throughput(bench: Bench) -> Row:
    """Measure throughput: 32 connections, one tenant with a budget, links as answers."""
    floor, gateway = await bench.pair(32, 3000)
    low, high = median(floor, lambda x: x.per_second), median(gateway, lambda x: x.per_second)
    return Row(
        "throughput, 32 connections, requests/s", low, high, high / low * 100, "%", ">= 100", "< 65"
    )


async def single_latency(bench: Bench) -> Row:
    """Measure the median latency on one connection."""
    floor, gateway = await bench.pair(1, 400)
    low = median(floor, lambda x: x.percentile(0.5))
    high = median(gateway, lambda x: x.percentile(0.5))
    return Row("median latency, 1 connection, ms", low, high, high / low, "x", "<= 2.0", "> 3.5")


async def big_answers(bench: Bench) -> Row:
    """Measure answers of 2 MB base64 each, stored and passed on."""
    servers.configure_stub(bench.stub_port, min_b64_bytes=BIG_ANSWER_BYTES)
    floor, gateway = await bench.pair(16, 150, "b64_json")
    servers.configure_stub(bench.stub_port, min_b64_bytes=0)
    low, high = median(floor, lambda x: x.per_second), median(gateway, lambda x: x.per_second)
    return Row(
        "2 MB answers, 16 connections, requests/s",
        low,
        high,
        high / low * 100,
        "%",
        ">= 75",
        "< 45",
    )


async def slow_provider(bench: Bench) -> Row:
    """Measure 100 concurrent requests to a provider that takes a second, against a single one."""
    servers.configure_stub(bench.stub_port, latency_seconds=1.0)
    request = bench.request(bench.gateway_port, "url")
    one = await run_load(bench.gateway_port, request, connections=1, requests=3)
    many = await run_load(bench.gateway_port, request, connections=100, requests=300)
    servers.configure_stub(bench.stub_port, latency_seconds=0.0)
    alone, crowded = one.percentile(0.5), many.percentile(0.9)
    return Row(
        "100 at once, provider 1 s: p90 / alone, ms", alone, crowded, crowded / alone, "x",
        "<= 1.05", "> 1.20",
    )  # fmt: skip


async def resampled(bench: Bench) -> Row:
    """Measure a retired model's small images, made by its successor and resampled."""
    body = {"model": "dall-e-2", "prompt": "a red circle", "size": "256x256"}
    request = request_bytes("127.0.0.1", PATH, bench.key, json.dumps(body).encode())
    count = max(20, int(200 * bench.scale))
    loads = [
        await run_load(bench.gateway_port, request, connections=1, requests=count)
        for _ in range(bench.rounds)
    ]
    value = median(loads, lambda x: x.percentile(0.5))
    return Row("DALL·E 2 256x256, url answers, median, ms", None, value, value, "ms", "", "")


async def edits_memory(
    stub_port: int, gateway_port: int, running: subprocess.Popen[bytes], key: str
) -> Row:
    """Measure the peak memory added by 100 concurrent edits of 4 MB."""
    image = noise_png()
    uploads = [
        upload_bytes(
            "127.0.0.1",
            EDITS_PATH,
            key,
            {"model": "gpt-image-2.5-flare", "prompt": f"noise {n}", "quality": "low"},
            image,
        )
        for n in range(EDITS)
    ]
    await run_uploads(gateway_port, uploads[:1])
    before = servers.family_megabytes(running)
    servers.configure_stub(stub_port, latency_seconds=1.0)
    peak = await servers.peak_megabytes(running, run_uploads(gateway_port, uploads))
    servers.configure_stub(stub_port, latency_seconds=0.0)
    return Row(
        "memory added by 100 edits of 4 MB at once, MB", None, peak, peak - before, "MB",
        "<= 150", "> 400",
    )  # fmt: skip


def noise_png() -> bytes:
    """Generate an image of noise, the same in every run."""
    size = (NOISE_EDGE_PIXELS, NOISE_EDGE_PIXELS)
    noise = random.Random(1).randbytes(3 * NOISE_EDGE_PIXELS * NOISE_EDGE_PIXELS)
    out = io.BytesIO()
    Image.frombytes("RGB", size, noise).save(out, "PNG", compress_level=1)
    return out.getvalue()


MEASURES: tuple[Callable[[Bench], Awaitable[Row]], ...] = (
    throughput,
    single_latency,
    big_answers,
    slow_provider,
    resampled,
)


async def measure(folder: Path, rounds: int, scale: float) -> list[Row]:
    """Start the servers, run every measure, and restart the gateway to time a warm start."""
    with servers.stub(folder) as stub_port, servers.floor(stub_port, folder) as floor_port:
        with servers.gateway(stub_port, folder) as (gateway_port, running, _):
            key = prepare_tenant(stub_port, folder)
            bench = Bench(stub_port, floor_port, gateway_port, key, rounds, scale)
            await bench.pair(32, 500)
            rows = []
            for take in MEASURES:
                print(f"  measuring: {take.__doc__}", file=sys.stderr, flush=True)
                rows.append(await take(bench))
            memory = servers.resident_megabytes(running)
        with servers.gateway(stub_port, folder) as (gateway_port, running, seconds):
            rows += [
                Row("memory of the worker after all this, MB", None, memory, memory, "MB",
                    "<= 150", "> 220"),
                Row("warm start to ready, Postgres included, s", None, seconds, seconds, "s",
                    "<= 2", "> 5"),
            ]  # fmt: skip
            # A fresh gateway, so that memory freed by earlier requests cannot be reused.
            print(f"  measuring: {edits_memory.__doc__}", file=sys.stderr, flush=True)
            rows.append(await edits_memory(stub_port, gateway_port, running, key))
    return rows


def prepare_tenant(stub_port: int, folder: Path) -> str:
    """Prepare the quick start's tenant, with a budget so that every call updates a row."""
    environment = servers.gateway_environment(stub_port, folder)
    arguments = ["-m", "gateway", "budgets", "set", "--tenant", "default", "--limit-usd", "1000000"]
    with servers.process(arguments, environment, folder / "budget.log") as running:
        assert running.wait(60) == 0, (folder / "budget.log").read_text()
    quickstart = json.loads((folder / "data" / "quickstart.json").read_text())
    return str(quickstart["live_key"])
