"""The tenants that ask for a model, the most frequent first: ordered and limited by Postgres."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import DBAPIError

from gateway.billing.usage import too_large
from gateway.billing.usage_queries import OwnDays, ReportQuery, UsageFilters, most_frequent
from gateway.db.engine import QUERY_CANCELED, OperatorSession

ASKED_DAYS = 30


@dataclass(frozen=True, slots=True)
class ModelAsker:
    """A tenant that asked for a model in the last 30 days. Cost in nano-USD."""

    tenant: str
    tenant_id: str
    requests: int
    failed: int
    cost_nano: int


@dataclass(frozen=True, slots=True)
class ModelAskers:
    """The most frequent tenants of one model; `more`: the number of others."""

    first: tuple[ModelAsker, ...] = ()
    more: int = 0


def asked_days() -> OwnDays:
    """Return the last 30 days, with tomorrow where it is tomorrow already."""
    today = datetime.now(UTC).date()
    return OwnDays(today - timedelta(days=ASKED_DAYS - 1), today + timedelta(days=1))


async def list_askers(
    session: OperatorSession, models: Sequence[str], *, of_each: int
) -> dict[str, ModelAskers]:
    """List the tenants with the most live requests for each model; a model without any is absent.

    Raises:
        InvalidRequest: it takes too long (`report_too_large`).
    """
    days = asked_days()
    query = ReportQuery(
        None,
        UsageFilters(requested_models=tuple(models)),
        livemode=True,
        period=days.period,
        group_by=("requested_model", "tenant"),
        own_days=days,
    )
    try:
        rows = (await session.execute(most_frequent(query, of_each=of_each))).all()
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != QUERY_CANCELED:
            raise
        raise too_large("takes too long", "Ask for a shorter period") from error
    first: dict[str, list[ModelAsker]] = {}
    numbers: dict[str, int] = {}
    for model, tenant, tenant_id, requests, failed, cost_nano, number in rows:
        asker = ModelAsker(tenant, tenant_id, int(requests), int(failed), int(cost_nano))
        first.setdefault(model, []).append(asker)
        numbers[model] = number
    return {
        model: ModelAskers(tuple(found), numbers[model] - len(found))
        for model, found in first.items()
    }
