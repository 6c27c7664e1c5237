"""The cost of each part: the same request with one more part, against the floor of the run."""

import itertools
import json
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import servers
from benchmarks.load import Load, request_bytes, run_load
from benchmarks.operator import Operator, Tenant

PATH = "/v1/images/generations"
CONNECTIONS = 32
REQUESTS = 1000
ALONE = 150
AMPLE = 1_000_000_000
AMPLE_USD = "1000000"
PATIENT = {"GATEWAY_ADMISSION_TIMEOUT_MS": "10000"}
"""Long enough that no request is refused as late on a busy machine, which would skew the costs."""
BODY = {
    "model": "gpt-image-2",
    "prompt": "a red circle",
    "size": "1024x1024",
    "quality": "low",
}


@dataclass(frozen=True)
class Part:
    """One row: `per_second` at 32 connections, `milliseconds` at one; medians of the rounds."""

    what: str
    per_second: float
    milliseconds: float


@dataclass
class _Subject:
    """A target of requests, with its results."""

    what: str
    port: int
    requests: Iterator[bytes]
    crowded: list[Load] = field(default_factory=list)
    alone: list[Load] = field(default_factory=list)

    def part(self) -> Part:
        return Part(
            self.what,
            statistics.median(load.per_second for load in self.crowded),
            statistics.median(load.percentile(0.5) for load in self.alone),
        )


async def measure(folder: Path, rounds: int, scale: float) -> list[Part]:
    """Measure all subjects in turn, so that a slow phase of the machine affects all."""
    with ExitStack() as stack:
        subjects, operators = _start(stack, folder)
        for subject in subjects:  # warm-up of connections, plans and caches
            await run_load(subject.port, subject.requests, connections=CONNECTIONS, requests=200)
        for _ in range(rounds):
            for subject in subjects:
                try:
                    await _measure_once(subject, scale)
                except AssertionError as error:
                    error.add_note(f"while measuring: {subject.what}")
                    raise
        for operator in operators:
            operator.check_books()
    return [subject.part() for subject in subjects]


async def _measure_once(subject: _Subject, scale: float) -> None:
    many, few = max(CONNECTIONS, int(REQUESTS * scale)), max(10, int(ALONE * scale))
    port, requests = subject.port, subject.requests
    subject.crowded.append(await run_load(port, requests, connections=CONNECTIONS, requests=many))
    subject.alone.append(await run_load(port, requests, connections=1, requests=few))


def _start(stack: ExitStack, folder: Path) -> tuple[list[_Subject], list[Operator]]:
    """Start servers and subjects. An operator's budget needs a separate database: it binds all."""
    house_folder = folder / "house"
    house_folder.mkdir(mode=0o755)
    stub = stack.enter_context(servers.stub(folder))
    floor = stack.enter_context(servers.floor(stub, folder))
    url = stack.enter_context(servers.valkey())
    plain, _, _ = stack.enter_context(servers.gateway(stub, folder, **PATIENT))
    shared, _, _ = stack.enter_context(
        servers.gateway(stub, folder, GATEWAY_REDIS_URL=url, **PATIENT)
    )
    house, _, _ = stack.enter_context(
        servers.gateway(stub, house_folder, GATEWAY_REDIS_URL=url, **PATIENT)
    )
    operators = [Operator.of(plain, folder), Operator.of(house, house_folder)]
    operators[1].house_budget(AMPLE_USD)
    return [
        *_subjects(operators[0], floor, plain, shared),
        *_house_subjects(operators[1], house),
    ], operators


def _house_subjects(operator: Operator, port: int) -> list[_Subject]:
    capped, full = operator.tenant("house"), operator.tenant("all")
    _limit(operator, full)
    _budget(operator, full)
    return [
        _Subject("+ a budget of the operator", port, _requests(capped.key)),
        _Subject("all of it, with Valkey", port, _requests(full.key, keyed=True)),
    ]


def _subjects(operator: Operator, floor: int, plain: int, shared: int) -> list[_Subject]:
    """Create subjects with one tenant each, so that they share no row."""
    limited, budgeted = operator.tenant("limits"), operator.tenant("budgets")
    nothing, repeatable = operator.tenant("nothing"), operator.tenant("idempotency")
    _limit(operator, limited)
    _budget(operator, budgeted)
    return [
        _Subject("floor", floor, _requests("sk-floor", url=False)),
        _Subject("gateway, without limits and budgets", plain, _requests(nothing.key)),
        _Subject("+ nine rate limits, in the process", plain, _requests(limited.key)),
        _Subject("+ nine rate limits, in Valkey", shared, _requests(limited.key)),
        _Subject("+ idempotency keys", plain, _requests(repeatable.key, keyed=True)),
        _Subject("+ budgets of key, user, tenant", plain, _requests(budgeted.key)),
    ]


def _limit(operator: Operator, tenant: Tenant) -> None:
    for kind in ("requests", "images", "concurrent"):
        operator.limit(tenant, kind, AMPLE)
        operator.limit(tenant, kind, AMPLE, user_id=tenant.user_id)
        operator.limit(tenant, kind, AMPLE, api_key_id=tenant.key_id)


def _budget(operator: Operator, tenant: Tenant) -> None:
    operator.budget(tenant, AMPLE_USD)
    operator.budget(tenant, AMPLE_USD, user_id=tenant.user_id)
    operator.budget(tenant, AMPLE_USD, api_key_id=tenant.key_id)


def _requests(key: str, *, url: bool = True, keyed: bool = False) -> Iterator[bytes]:
    """Yield the same request endlessly, or each with a new idempotency key."""
    body = json.dumps(BODY | ({"response_format": "url"} if url else {})).encode()
    if not keyed:
        return itertools.repeat(request_bytes("127.0.0.1", PATH, key, body))
    return (
        request_bytes("127.0.0.1", PATH, key, body, idempotency_key=f"bench-{key[-6:]}-{number}")
        for number in itertools.count()
    )


def print_parts(parts: list[Part]) -> None:
    """Print throughput as a share of the floor's, and each part's time beyond the bare gateway."""
    floor, plain = parts[0], parts[1]
    print(
        f"{'what':38} {'req/s':>8} {'of floor':>9} {'ms alone':>9} {'added ms':>9} {'of plain':>9}"
    )
    for part in parts:
        of_floor = part.per_second / floor.per_second
        of_plain = part.per_second / plain.per_second
        added = part.milliseconds - plain.milliseconds
        print(
            f"{part.what:38} {part.per_second:8.0f} {of_floor:9.1%} {part.milliseconds:9.2f}"
            f" {added:9.2f} {of_plain:9.1%}"
        )
