"""A gateway's database filled with believable data, for pages, screenshots and timings.

Tenants, keys, users, budgets and webhooks are made by the product's own functions. Calls are copied
in as the money functions write them, and the sums of usage are added up as `make scale` does, so
that the books are consistent: the invariants hold, and every page agrees with the ledger. The
amounts, days and failures come from a seeded generator: the same seed gives the same data, ending
now.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import asyncpg

from benchmarks.scale_ledger import PARTITIONS, SUMS, add_sums
from gateway.billing import budgets
from gateway.db.addresses import database_url
from gateway.db.engine import TenantSession
from gateway.money import NANO_PER_USD, NanoUsd
from gateway.tenancy import tenants
from gateway.webhooks import endpoints
from tests.harness import Served

DAYS = 61
INSTANCE = UUID(int=0)


@dataclass(frozen=True)
class SeedTenant:
    """A tenant to make: its part of all calls, its keys, users, and the use of its budget."""

    name: str
    zone: str
    part: int
    keys: tuple[str, ...]
    users: tuple[str, ...] = ()
    used_percent: int = 40
    growth: float = 1.0
    own_credential: bool = False


TENANTS = (
    SeedTenant(
        "Northwind Travel",
        "Europe/Madrid",
        31,
        ("website", "mobile-app", "newsletter"),
        ("Ana Ruiz", "Jon Bakke", "Mei Tanaka"),
        used_percent=84,
        growth=1.4,
    ),
    SeedTenant(
        "Lumen Studio",
        "America/New_York",
        22,
        ("editor", "batch"),
        ("Sam Okoro", "Priya Nair"),
        used_percent=61,
        own_credential=True,
    ),
    SeedTenant(
        "Aster Games", "Asia/Tokyo", 17, ("asset-pipeline",), ("bot",), used_percent=97, growth=1.9
    ),
    SeedTenant("Harbor & Finch", "Europe/London", 12, ("storefront", "catalog"), growth=0.8),
    SeedTenant(
        "Brightleaf Foods",
        "UTC",
        9,
        ("marketing",),
        ("Lea Roth",),
        used_percent=88,
        own_credential=True,
    ),
    SeedTenant("Orbit Learning", "Asia/Kolkata", 6, ("worksheets",), used_percent=23),
    SeedTenant("Kiln Ceramics", "Europe/Vienna", 3, ("shop",), used_percent=12, growth=0.5),
)
MODELS: tuple[tuple[str, str, int, dict[str, int]], ...] = (
    ("gpt-image-2", "openai", 30, {"low": 5_920_000, "medium": 42_350_000, "high": 167_400_000}),
    ("gpt-image-2.6-flare", "openai", 26, {"low": 4_100_000, "medium": 15_800_000}),
    ("gpt-image-2.6-sunburst", "openai", 14, {"medium": 61_000_000, "high": 210_500_000}),
    ("gemini-3.1-flash-image", "gemini", 16, {"": 39_000_000}),
    ("gpt-image-1.5", "openai", 8, {"low": 9_300_000, "medium": 34_000_000}),
    ("gpt-image-1-mini", "openai", 6, {"low": 5_000_000, "medium": 11_000_000}),
)
"""Model, provider, part of the calls, and the usual cost of each quality in nano-USD."""
FAILURES = (
    ("rejected", 400, "moderation_blocked"),
    ("rejected", 400, "invalid_value"),
    ("not_sent", 502, "provider_unreachable"),
    ("rejected", 429, "rate_limit_exceeded"),
)
REFUSALS = ((402, "budget_exceeded"), (429, "rate_limit_exceeded"), (404, "model_not_found"))


@dataclass
class SeededTenant:
    """A tenant that was made, with its keys and users."""

    plan: SeedTenant
    id: UUID
    keys: dict[str, UUID] = field(default_factory=dict)
    users: dict[str, UUID] = field(default_factory=dict)


@dataclass
class Seeded:
    """The data that were made."""

    tenants: dict[str, SeededTenant]
    calls: int
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Call:
    """One call to write."""

    id: UUID
    at: datetime
    tenant: SeededTenant
    key: UUID
    user: UUID | None
    model: str
    provider: str
    quality: str
    operation: str
    state: str
    outcome: str | None
    cost_nano: int | None
    held_nano: int
    milliseconds: int
    status: int
    error: str | None


async def seed(served: Served, *, calls: int = 6000, chance: int = 7) -> Seeded:
    """Fill the gateway's database; about three seconds for the usual number of calls."""
    draw = random.Random(chance)
    end = datetime.now(UTC).replace(microsecond=0)
    start = (end - timedelta(days=DAYS)).replace(hour=0, minute=0, second=0)
    made = [await _tenant(served, plan) for plan in TENANTS]
    written = _calls(draw, made, calls, start, end)
    settings = served.gateway.settings
    given = settings.migration_database_url or settings.database_url
    assert given is not None
    url = database_url(given.get_secret_value()).set(drivername="postgresql")
    connection = await asyncpg.connect(url.render_as_string(hide_password=False))
    try:
        async with connection.transaction():
            await _write_calls(connection, written, start, end)
            await _write_requests(connection, draw, made, written)
            await connection.execute(_LAST_USES)
        await _budgets(served, made, written)
        await connection.execute(_COUNT_BUDGETS)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()
    return Seeded({one.plan.name: one for one in made}, len(written), start, end)


async def _tenant(served: Served, plan: SeedTenant) -> SeededTenant:
    gateway = served.gateway
    async with gateway.database.operator() as session:
        made = SeededTenant(
            plan, (await tenants.create(session, plan.name, time_zone=plan.zone)).id
        )
        await endpoints.create(
            session,
            made.id,
            sealing=gateway.core.webhook_sealing,
            url=f"https://hooks.example.com/{plan.keys[0]}",
            description="Budget alerts",
            allow_private=True,
            max_endpoints=5,
        )
    for name in plan.users:
        key = await served.key(tenant_id=made.id, user=name, name=f"{name.split()[0].lower()}")
        assert key.user_id is not None
        made.users[name], made.keys[name] = key.user_id, key.id
    for name in plan.keys:
        made.keys[name] = (await served.key(tenant_id=made.id, name=name)).id
    await served.key(tenant_id=made.id, name="ci", livemode=False)
    return made


def _calls(
    draw: random.Random, made: Sequence[SeededTenant], number: int, start: datetime, end: datetime
) -> list[Call]:
    """Draw the calls: more by day than by night, fewer at weekends, growing or shrinking."""
    span = (end - start).total_seconds()
    found = []
    for _ in range(number):
        tenant = draw.choices(made, [one.plan.part for one in made])[0]
        while True:
            part = draw.random()
            at = start + timedelta(seconds=part * span)
            weight = 0.25 if at.weekday() > 4 else 1.0
            weight *= 0.35 if at.hour < 6 or at.hour > 21 else 1.0
            weight *= 1 + (tenant.plan.growth - 1) * part
            if draw.random() * 2 < weight:
                break
        found.append(_call(draw, tenant, at, end))
    found += [
        _call(draw, made[at % 3], end - timedelta(minutes=4 * at + 1), end, "unknown")
        for at in range(4)
    ]
    found += [
        _call(draw, made[at % 4], end - timedelta(seconds=5 * at), end, "held") for at in range(3)
    ]
    return sorted(found, key=lambda call: call.id)


def _call(
    draw: random.Random, tenant: SeededTenant, at: datetime, end: datetime, state: str = ""
) -> Call:
    model, provider, _, costs = draw.choices(MODELS, [one[2] for one in MODELS])[0]
    quality = draw.choice(list(costs))
    at = at.replace(microsecond=draw.randrange(1000) * 1000)
    cost: int | None = costs[quality] + draw.randrange(costs[quality] // 6) // 1000 * 1000
    held = costs[quality] * 3 // 2
    by_user = tenant.users and draw.random() < 0.4
    name = draw.choice(list(tenant.users if by_user else tenant.plan.keys))
    chance = draw.random()
    status, error, outcome = 200, None, "success"
    if not state:
        state = "posted" if chance > 0.034 else "posted_est" if chance > 0.03 else "void"
    if state == "void":
        (outcome, status, error), cost = draw.choice(FAILURES), 0
    elif state == "unknown":
        outcome, status, error, cost = "ambiguous", 504, "outcome_unknown", None
    elif state == "held":
        outcome, cost = "", None
    elif state == "posted_est":
        outcome = "success_no_usage"
    return Call(
        id=_id_at(draw, at),
        at=at,
        tenant=tenant,
        key=tenant.keys[name],
        user=tenant.users.get(name),
        model=model,
        provider=provider,
        quality=quality,
        operation="edit" if draw.random() < 0.2 else "generation",
        state=state,
        outcome=outcome or None,
        cost_nano=cost,
        held_nano=max(held, cost or 0),
        milliseconds=int(draw.lognormvariate(9.1, 0.45)) if status == 200 else 900,
        status=status,
        error=error,
    )


def _id_at(draw: random.Random, at: datetime) -> UUID:
    """An id of a moment: version 7, as the gateway makes them."""
    milliseconds = int(at.timestamp() * 1000)
    return UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | draw.getrandbits(60))


_RESERVATION = (
    *("tenant_id", "id", "livemode", "api_key_id", "user_id", "periods", "operation"),
    *("requested_model", "served_model", "provider", "credential", "price_id", "held_nano"),
    *("state", "final_nano", "outcome", "instance", "admitted_at", "deadline_at", "resolved_at"),
    *("served_quality", "served_size"),
)
_LEDGER = (
    *("tenant_id", "reservation_id", "seq", "at", "admitted_at", "livemode", "api_key_id"),
    *("user_id", "requested_model", "served_model", "kind", "amount_nano", "requests", "images"),
    *("text_input_tokens", "image_input_tokens", "text_output_tokens", "image_output_tokens"),
)
_REQUEST = (
    *("at", "id", "tenant_id", "livemode", "api_key_id", "user_id", "method", "route", "status"),
    *("error_code", "requested_model", "served_model", "generation_id", "provider", "credential"),
    *("provider_status", "provider_request_id", "provider_milliseconds", "cost_nano"),
    *("cost_status", "milliseconds", "provider_calls", "replayed"),
)
_KINDS = {"posted": "post", "posted_est": "post_est", "void": "void"}
_ROUTES = {"generation": "/v1/images/generations", "edit": "/v1/images/edits"}
_LAST_USES = """
INSERT INTO api_key_use (tenant_id, api_key_id, last_used_at)
SELECT tenant_id, api_key_id, max(at) FROM request_log
WHERE tenant_id IS NOT NULL AND api_key_id IS NOT NULL GROUP BY 1, 2
"""
_COUNT_BUDGETS = """
SELECT add_period(b.tenant_id, b.id, now()) FROM budget b;
SELECT add_house_period(b.id, now()) FROM house_budget b;
UPDATE reservation r SET periods = ARRAY(
    SELECT p.id FROM budget_period p
    JOIN budget b ON b.tenant_id = p.tenant_id AND b.id = p.budget_id
    WHERE p.tenant_id = r.tenant_id AND b.livemode = r.livemode
        AND p.period_start <= r.admitted_at AND r.admitted_at < p.period_end
        AND (b.api_key_id IS NULL OR b.api_key_id = r.api_key_id)
        AND (b.user_id IS NULL OR b.user_id = r.user_id)
) WHERE r.admitted_at >= (SELECT min(period_start) FROM budget_period);
UPDATE reservation r SET house_shard = x.shard, house_periods = ARRAY[x.id]
FROM house_budget_period x
WHERE r.credential = 'house' AND x.shard = abs(hashtext(r.id::text)) % 8
    AND x.period_start <= r.admitted_at AND r.admitted_at < x.period_end;
UPDATE budget_period p SET spent_nano = q.spent, held_nano = q.held,
    ceiling_nano = greatest(b.limit_nano, q.spent + q.held)
FROM budget b, (
    SELECT u.period, sum(coalesce(r.final_nano, 0)) AS spent,
        coalesce(sum(r.held_nano) FILTER (WHERE r.final_nano IS NULL), 0) AS held
    FROM reservation r CROSS JOIN LATERAL unnest(r.periods) AS u(period) GROUP BY 1
) q
WHERE b.tenant_id = p.tenant_id AND b.id = p.budget_id AND q.period = p.id;
UPDATE house_budget_period p SET spent_nano = q.spent, held_nano = q.held,
    ceiling_nano = greatest(b.limit_nano, q.spent + q.held)
FROM house_budget b, (
    SELECT u.period, sum(coalesce(r.final_nano, 0)) AS spent,
        coalesce(sum(r.held_nano) FILTER (WHERE r.final_nano IS NULL), 0) AS held
    FROM reservation r CROSS JOIN LATERAL unnest(r.house_periods) AS u(period) GROUP BY 1
) q
WHERE b.id = p.budget_id AND q.period = p.id
"""


async def _write_calls(
    connection: asyncpg.Connection, calls: Sequence[Call], start: datetime, end: datetime
) -> None:
    await connection.execute(PARTITIONS, start, 4)
    found = await connection.fetch("SELECT model, min(id) AS id FROM price GROUP BY 1")
    prices = {row["model"]: row["id"] for row in found}
    any_price = next(iter(prices.values()))
    await connection.copy_records_to_table(
        "reservation",
        columns=_RESERVATION,
        records=[_reservation(call, prices.get(call.model, any_price)) for call in calls],
    )
    await connection.copy_records_to_table(
        "ledger", columns=_LEDGER, records=[line for call in calls for line in _lines(call)]
    )
    for table in SUMS:
        await connection.execute(add_sums(table), start, end + timedelta(minutes=1))


def _reservation(call: Call, price_id: int) -> tuple[Any, ...]:
    done = call.at + timedelta(milliseconds=call.milliseconds)
    is_open = call.cost_nano is None
    deadline = call.at + timedelta(minutes=30 if call.state == "held" else 2)
    credential = "tenant" if call.tenant.plan.own_credential else "house"
    return (
        *(call.tenant.id, call.id, True, call.key, call.user, [], call.operation),
        *(call.model, call.model, call.provider, credential, price_id, call.held_nano),
        *(call.state, call.cost_nano, call.outcome, INSTANCE, call.at, deadline),
        *(None if is_open else done, call.quality or None, "1024x1024"),
    )


def _lines(call: Call) -> list[tuple[Any, ...]]:
    owner = (True, call.key, call.user, call.model, call.model)
    hold = (call.tenant.id, call.id, 0, call.at, call.at, *owner, "hold", call.held_nano)
    lines = [(*hold, 0, 0, 0, 0, 0, 0)]
    if call.cost_nano is not None:
        done = call.at + timedelta(milliseconds=call.milliseconds)
        is_made = call.state != "void"
        end = (call.tenant.id, call.id, 1, done, call.at, *owner, _KINDS[call.state])
        tokens = (14, 700 if call.operation == "edit" else 0, 0, 1056) if is_made else (0, 0, 0, 0)
        lines.append((*end, call.cost_nano, int(is_made), int(is_made), *tokens))
    return lines


async def _write_requests(
    connection: asyncpg.Connection,
    draw: random.Random,
    made: Sequence[SeededTenant],
    calls: Sequence[Call],
) -> None:
    """Write a request for each call that has ended, and refusals that reserved nothing."""
    records = [_request(draw, call) for call in calls if call.state != "held"]
    for call in draw.sample(list(calls), len(calls) // 60):
        status, code = draw.choice(REFUSALS)
        tenant = draw.choice(made)
        key = tenant.keys[tenant.plan.keys[0]]
        records.append(
            (
                *(call.at, _request_id(draw, call.at), tenant.id, True, key, None, "POST"),
                *(_ROUTES["generation"], status, code, call.model, *(None,) * 9, 6, None, None),
            )
        )
    for day in sorted({record[0].date() for record in records}):
        await connection.execute("SELECT add_request_log_day($1)", day)
    await connection.copy_records_to_table("request_log", columns=_REQUEST, records=records)


def _request(draw: random.Random, call: Call) -> tuple[Any, ...]:
    credential = "tenant" if call.tenant.plan.own_credential else "house"
    status = {"posted": "actual", "posted_est": "estimated", "unknown": "pending"}
    sent = call.outcome != "not_sent"
    return (
        *(call.at, _request_id(draw, call.at), call.tenant.id, True, call.key, call.user, "POST"),
        *(_ROUTES[call.operation], call.status, call.error, call.model, call.model, call.id),
        *(call.provider, credential, call.status if sent else None),
        *(f"req-{call.id.hex[:20]}" if sent else None, call.milliseconds - 200 if sent else None),
        *(call.cost_nano, status.get(call.state, "actual"), call.milliseconds, int(sent), False),
    )


def _request_id(draw: random.Random, at: datetime) -> str:
    return f"req_{int(at.timestamp() * 1000):012x}{draw.getrandbits(48):012x}"


async def _budgets(served: Served, made: Sequence[SeededTenant], calls: Sequence[Call]) -> None:
    """Set each tenant's budget of the month so that its planned part is used, and some others."""
    spent: dict[UUID, int] = {one.id: 0 for one in made}
    for call in calls:
        now = datetime.now(ZoneInfo(call.tenant.plan.zone))
        if call.at >= now.replace(day=1, hour=0, minute=0, second=0, microsecond=0):
            spent[call.tenant.id] += call.held_nano if call.cost_nano is None else call.cost_nano
    for one in made:
        limit = max(NANO_PER_USD, spent[one.id] * 100 // one.plan.used_percent)
        async with served.gateway.database.tenant(one.id) as session:
            await _set(session, one, limit // 10**7 * 10**7, "month")
            await _set(session, one, limit // 10 // 10**7 * 10**7, "day", soft=True)
            for user in list(one.users.values())[:1]:
                await _set(session, one, limit // 2 // 10**7 * 10**7, "month", user_id=user)
    # Rounded up: rounding down could set a limit below what is spent already.
    house = (sum(spent.values()) * 100 // 70 // NANO_PER_USD + 1) * NANO_PER_USD
    async with served.gateway.database.operator() as operator:
        await budgets.set_limit(operator, None, window="month", limit_nano=NanoUsd(house))


async def _set(
    session: TenantSession,
    one: SeededTenant,
    limit_nano: int,
    window: str,
    *,
    soft: bool = False,
    user_id: UUID | None = None,
) -> None:
    await budgets.set_limit(
        session,
        one.id,
        window=window,
        limit_nano=NanoUsd(max(limit_nano, 10**7)),
        enforcement="soft" if soft else "hard",
        user_id=user_id,
    )
