"""Each fault of each provider at one served gateway, as its client and its books see it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx2
import pytest
from pydantic import SecretStr

from gateway.config import Settings
from gateway.tenancy.api_keys import IssuedKey
from tests.compatible_host import Host, running_host
from tests.harness import Served, make_settings
from tests.money_helpers import age_unknown, count_states
from tests.providers.contract import DIALECTS
from tests.providers.faults import COMPATIBLE, FAULTS, GEMINI, KSERVE, OPENAI, Fault
from tests.providers.faulty_upstream import (
    Arrived,
    FaultyUpstream,
    Vendor,
    faulty_upstream,
    prompt_of,
)
from tests.providers.ways import STREAM, Answer, ask
from tests.stub_gemini import StubGemini, running_gemini
from tests.stub_gemini.api import KEY as GEMINI_KEY
from tests.stub_kserve import StubKServe, running_kserve
from tests.stub_openai import Fault as OpenAIFault
from tests.stub_openai import Stub, running_stub

READ_SECONDS = 2
HOST_PRICE_NANO = 4_000_000
MODELS = """
[[providers]]
name = "v1"
kind = "kserve"
base_url = "{v1}"
bearer_env = "CLUSTER_TOKEN"

[[providers]]
name = "v2"
kind = "kserve"
protocol = "v2"
base_url = "{v2}"
bearer_env = "CLUSTER_TOKEN"

[[providers]]
name = "host"
kind = "openai-compatible"
base_url = "{host}/v1"
bearer_env = "CLUSTER_TOKEN"

[[models]]
id = "sd-v1"
provider = "v1"
upstream_name = "openshift"
sizes = ["64x64"]
endpoints = ["generations", "edits"]
input_fields = {{ image = "image" }}
parameters = ["seed", "steps"]
defaults = {{ steps = 25 }}
price = {{ per_image_usd = "0.002" }}

[[models]]
id = "sd-v2"
provider = "v2"
upstream_name = "v2"
endpoints = ["generations", "edits"]
input_fields = {{ image = "image" }}
sizes = ["64x64"]
parameters = ["seed"]
price = {{ per_image_usd = "0.002" }}

[[models]]
id = "hosted"
provider = "host"
endpoints = ["generations", "edits"]
sizes = ["64x64"]
price = {{ per_image_usd = "0.004" }}
"""


@dataclass(frozen=True)
class Entry:
    """One reservation, with the lines of its ledger but for the hold (kind, nano-USD)."""

    state: str
    outcome: str
    held_nano: int
    lines: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Observed:
    """One fault at one vendor. `entry`: after the call; `final`: more than an hour later."""

    fault: Fault
    way: str
    vendor: Vendor
    arrived: Arrived
    answer: Answer
    entry: Entry
    final: Entry


@dataclass(frozen=True)
class _Case:
    """A call on its way through the matrix, by the key that made it."""

    number: int
    fault: Fault
    way: str
    upstream: FaultyUpstream
    key: IssuedKey


@asynccontextmanager
async def upstreams_of(
    trusted: ssl.SSLContext, untrusted: ssl.SSLContext
) -> AsyncIterator[list[FaultyUpstream]]:
    """Run the stub of every provider, each behind an address that misbehaves."""
    async with AsyncExitStack() as stack:
        vendors = [
            _openai(await stack.enter_async_context(running_stub())),
            _gemini(await stack.enter_async_context(running_gemini())),
            _kserve(await stack.enter_async_context(running_kserve()), "v1", KSERVE[0]),
            _kserve(await stack.enter_async_context(running_kserve()), "v2", KSERVE[1]),
            _host(await stack.enter_async_context(running_host())),
        ]
        yield [
            await stack.enter_async_context(faulty_upstream(vendor, trusted, untrusted))
            for vendor in vendors
        ]


_DIALECTS = {dialect.provider: dialect for dialect in DIALECTS}


def _openai(stub: Stub) -> Vendor:
    return Vendor(
        OPENAI,
        "openai",
        _DIALECTS["openai"],
        {"model": "gpt-image-2", "size": "1024x1024", "quality": "low"},
        stub.port,
        lambda: sum(line.cost_nano_usd for line in stub.bill),
        lambda twist: stub.faults.add(OpenAIFault(twist)),  # type: ignore[arg-type]  # a kind of it
        {"stream": True, "partial_images": 1},
    )


def _gemini(stub: StubGemini) -> Vendor:
    return Vendor(
        GEMINI,
        "gemini",
        _DIALECTS["gemini"],
        {"model": "gemini-nano-banana-2.1", "size": "1024x1024", "quality": "low"},
        stub.port,
        lambda: sum(line.cost_nano_usd for line in stub.bill),
        stub.faults.append,
    )


def _kserve(stub: StubKServe, protocol: str, title: str) -> Vendor:
    return Vendor(
        title,
        protocol,
        _DIALECTS["kserve"],
        {"model": f"sd-{protocol}", "size": "64x64"},
        stub.port,
        lambda: sum(line.cost_nano_usd for line in stub.bill),
        stub.faults.append,
    )


def _host(host: Host) -> Vendor:
    port = httpx2.URL(host.base_url).port
    assert port is not None
    return Vendor(
        COMPATIBLE,
        "host",
        _DIALECTS["openai-compatible"],
        {"model": "hosted", "size": "64x64"},
        port,
        lambda: host.images * HOST_PRICE_NANO,
        lambda twist: pytest.fail(f"the host knows no fault {twist}"),
    )


def settings_for(database: str, folder: Path, upstreams: list[FaultyUpstream]) -> Settings:
    """Settings of a gateway that calls these, waits two seconds, and keeps its circuits closed."""
    urls = {upstream.vendor.provider: upstream.base_url for upstream in upstreams}
    file = folder / "models.toml"
    file.write_text(MODELS.format(**urls))
    return make_settings(
        database,
        folder,
        OPENAI_BASE_URL=f"{urls['openai']}/v1",
        GEMINI_BASE_URL=urls["gemini"],
        GEMINI_API_KEY=SecretStr(GEMINI_KEY),
        models_file=file,
        provider_read_timeout_seconds=READ_SECONDS,
        hold_margin_seconds=1,
        provider_max_answer_bytes=2_000_000,
        circuit_failures=1000,
        circuit_window_calls=10_000,
        circuit_max_open_seconds=0.001,
    )


async def observe(served: Served, upstreams: list[FaultyUpstream]) -> list[Observed]:
    """Have each fault happen to a call of each provider that can have it, once in each way."""
    cases: list[_Case] = []
    own = await _tenant_with_keys(served, upstreams)
    for upstream in upstreams:
        for fault in FAULTS:
            if not fault.happens_at(upstream.vendor.title, upstream.vendor.dialect):
                continue
            for way in fault.by:
                key = await served.key(tenant_id=own if fault.own_key else None)
                cases.append(_Case(len(cases), fault, way, upstream, key))
    # Those that wait for a time-out wait together; the others each find the vendor alone.
    slow = [case for case in cases if case.fault.is_slow]
    async with served.http() as http:
        answers = dict(await asyncio.gather(*(_call(served, http, case) for case in slow)))
        answers |= dict(
            [await _call(served, http, case) for case in cases if not case.fault.is_slow]
        )
    entries = await _entries(served)
    await age_unknown(served)
    while "unknown" in await count_states(served):  # a sweep estimates a bounded number
        await served.sweep()
    finals = await _entries(served)
    return [
        Observed(
            case.fault,
            case.way,
            case.upstream.vendor,
            case.upstream.arrived[case.number],
            answers[case.number],
            entries[case.key.id],
            finals[case.key.id],
        )
        for case in cases
    ]


async def _tenant_with_keys(served: Served, upstreams: list[FaultyUpstream]) -> UUID:
    """Make a tenant that has stored a key of its own for each provider."""
    tenant_id = await served.tenant("own keys")
    async with served.http(await served.key(tenant_id=tenant_id)) as http:
        for upstream in upstreams:
            path = f"/v1/credentials/{upstream.vendor.provider}"
            stored = await http.put(path, json={"secret": "key-of-the-tenants-own"})
            assert stored.status_code == 200, stored.text
    return tenant_id


async def _call(served: Served, http: httpx2.AsyncClient, case: _Case) -> tuple[int, Answer]:
    await case.upstream.expect(case.number, case.fault)
    vendor = case.upstream.vendor
    body = vendor.body | {"prompt": prompt_of(case.number)}
    if case.way == STREAM:
        body |= vendor.streamed
    return case.number, await ask(served, http, case.way, case.key, body)


async def _entries(served: Served) -> Mapping[UUID, Entry]:
    """Every reservation, by the API key that made its one call."""
    rows = await served.owner_sql(
        "SELECT r.api_key_id, r.state, r.outcome, r.held_nano, array_agg(l.kind || ' ' ||"
        " l.amount_nano ORDER BY l.seq) AS lines FROM reservation r JOIN ledger l"
        " ON l.reservation_id = r.id GROUP BY r.tenant_id, r.id"
    )
    found = {}
    for row in rows:
        [_, *lines] = [(kind, int(nano)) for kind, nano in map(str.split, row.lines)]
        assert row.api_key_id not in found
        found[row.api_key_id] = Entry(row.state, row.outcome, row.held_nano, tuple(lines))
    return found
