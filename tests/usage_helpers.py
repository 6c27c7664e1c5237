"""A ledger of many calls, written as the money functions write it, and sums made by hand."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson

from gateway.billing.usage import UsageReport
from gateway.billing.usage_queries import ReportQuery
from gateway.domain import new_id
from tests.harness import Served

MODELS = ("gpt-image-2", "gpt-image-1-mini")
PROVIDERS = ("openai", "sandbox")
OPERATIONS = ("generation", "edit", "variation")
CREDENTIALS = ("house", "tenant")
QUALITIES = ("low", "high", None)

RESERVATIONS = """
INSERT INTO reservation (
    id, tenant_id, livemode, api_key_id, user_id, periods, operation, requested_model,
    served_model, provider, credential, price_id, held_nano, state, final_nano, outcome, instance,
    admitted_at, deadline_at, resolved_at, served_quality, served_size
)
SELECT c.id, :tenant_id, c.livemode, c.api_key_id, c.user_id, '{}', c.operation, c.model, c.model,
    c.provider, c.credential, (SELECT min(id) FROM price), c.cost_nano,
    CASE WHEN c.is_failed THEN 'void' WHEN c.is_estimated THEN 'posted_est' ELSE 'posted' END,
    CASE WHEN c.is_failed THEN 0 ELSE c.cost_nano END, 'success', gen_random_uuid(), c.at, c.at,
    c.at, c.quality, c.size
FROM jsonb_to_recordset(CAST(:calls AS jsonb)) AS c(
    id uuid, livemode boolean, api_key_id uuid, user_id uuid, operation text, model text,
    provider text, credential text, cost_nano bigint, is_failed boolean, is_estimated boolean,
    at timestamptz, quality text, size text)
"""
LINES = """
INSERT INTO ledger (
    reservation_id, seq, at, admitted_at, tenant_id, livemode, api_key_id, user_id,
    requested_model, served_model, kind, amount_nano, requests, images, text_input_tokens,
    image_input_tokens, text_output_tokens, image_output_tokens
)
SELECT r.id, s.seq, r.admitted_at, r.admitted_at, r.tenant_id, r.livemode, r.api_key_id,
    r.user_id, r.requested_model, r.served_model,
    CASE WHEN s.seq = 0 THEN 'hold' WHEN r.state = 'void' THEN 'void'
        WHEN r.state = 'posted_est' THEN 'post_est' ELSE 'post' END,
    CASE WHEN s.seq = 0 THEN r.held_nano ELSE r.final_nano END,
    CASE WHEN s.seq = 0 OR r.state = 'void' THEN 0 ELSE 1 END,
    CASE WHEN s.seq = 0 OR r.state = 'void' THEN 0 ELSE 2 END, s.seq, 2 * s.seq, 3 * s.seq,
    4 * s.seq
FROM reservation r CROSS JOIN (VALUES (0), (1)) s(seq) WHERE r.id = ANY (:ids)
"""
QUEUED = """
INSERT INTO usage_pending (tenant_id, reservation_id, seq)
SELECT tenant_id, reservation_id, seq FROM ledger
WHERE kind <> 'hold' AND reservation_id = ANY (:ids)
"""
STATUSES = {"posted": "charged", "posted_est": "estimated", "void": "failed"}
READ = """
SELECT l.*, r.state, r.provider, r.operation, r.credential, r.served_quality AS quality,
    r.served_size AS size FROM ledger l JOIN reservation r ON r.id = l.reservation_id
WHERE l.kind <> 'hold'
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """The tenant, key and user of calls."""

    tenant_id: UUID
    api_key_id: UUID | None = None
    user_id: UUID | None = None


def id_at(moment: datetime) -> UUID:
    """Make an id as a gateway does whose clock shows this moment."""
    return UUID(int=int(moment.timestamp() * 1000) << 80 | new_id().int & ((1 << 80) - 1))


def calls_of(
    owner: Owner, moments: Iterable[datetime], chance: random.Random
) -> list[dict[str, Any]]:
    """Make one call at each moment."""
    return [
        {
            "id": str(new_id()),
            "livemode": chance.random() < 0.9,
            "api_key_id": owner.api_key_id and str(owner.api_key_id),
            "user_id": owner.user_id and str(owner.user_id),
            "operation": chance.choice(OPERATIONS),
            "model": chance.choice(MODELS),
            "provider": chance.choice(PROVIDERS),
            "credential": chance.choice(CREDENTIALS),
            "cost_nano": chance.randrange(1, 10**9),
            "is_failed": chance.random() < 0.1,
            "is_estimated": chance.random() < 0.1,
            "at": moment.isoformat(),
            "quality": chance.choice(QUALITIES),
            "size": "1024x1024",
        }
        for moment in moments
    ]


def expected_sums(
    lines: Sequence[Any], query: ReportQuery, zones: dict[UUID, str]
) -> dict[tuple[str | None, ...], tuple[int, ...]]:
    """Sum the ledger's lines in Python: by group ids, requests, images, both tokens, cost, the
    estimated part of it, and failed requests.
    """
    sums: dict[tuple[str | None, ...], list[int]] = defaultdict(lambda: [0] * 7)
    if not query.group_by:
        sums[()] = [0] * 7  # one row, even of nothing
    for line in lines:
        local = line.admitted_at.astimezone(
            ZoneInfo(query.zone or zones.get(line.tenant_id, "UTC"))
        )
        if not _is_asked_for(line, query, local):
            continue
        group = tuple(_text(field, line, local) for field in query.group_by)
        values = (
            line.requests,
            line.images,
            line.text_input_tokens + line.image_input_tokens,
            line.text_output_tokens + line.image_output_tokens,
            line.amount_nano,
            line.amount_nano if line.state == "posted_est" else 0,
            (line.seq == 1) - line.requests,
        )
        sums[group] = [old + new for old, new in zip(sums[group], values, strict=True)]
    return {group: tuple(found) for group, found in sums.items()}


def reported_sums(report: UsageReport) -> dict[tuple[str | None, ...], tuple[int, ...]]:
    """Return a report's sums in the form of `expected_sums`: ids without names."""
    rows = report.rows if report.query.group_by else (report.total,)
    found: dict[tuple[str | None, ...], tuple[int, ...]] = {}
    for row in rows:
        named = dict(zip(report.query.columns, row.group, strict=False))
        group = tuple(
            named[{"user": "user_id", "tenant": "tenant_id"}.get(field, field)]
            for field in report.query.group_by
        )
        found[group] = (
            row.requests,
            row.images,
            row.input_tokens,
            row.output_tokens,
            row.cost_nano,
            row.estimated_nano,
            row.failed_requests,
        )
    return found


async def write_calls(served: Served, owner: Owner, calls: list[dict[str, Any]]) -> None:
    """Write calls with their lines, each line queued for the sums."""
    ids = [UUID(call["id"]) for call in calls]
    await served.owner_sql(
        RESERVATIONS, tenant_id=owner.tenant_id, calls=orjson.dumps(calls).decode()
    )
    await served.owner_sql(LINES, ids=ids)
    await served.owner_sql(QUEUED, ids=ids)


def _is_asked_for(line: Any, query: ReportQuery, local: datetime) -> bool:
    filters, period, days = query.filters, query.period, query.own_days
    return (
        (days is None or days.first <= local.date() <= days.last)
        and line.livemode == query.livemode
        and period.start <= line.admitted_at < period.end
        and query.tenant_id in {None, line.tenant_id}
        and filters.key_id in {None, line.api_key_id}
        and filters.user_id in {None, line.user_id}
        and filters.model in {None, line.served_model}
    )


def _text(field: str, line: Any, local: datetime) -> str | None:
    if field in {"month", "day", "hour"}:
        return local.strftime(
            {"month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H:00"}[field]
        )
    column = {
        "key": "api_key_id",
        "user": "user_id",
        "tenant": "tenant_id",
        "model": "served_model",
        "credential_owner": "credential",
    }
    if field == "status":
        return STATUSES[line.state]
    value = getattr(line, column.get(field, field))
    return None if value is None else str(value)
