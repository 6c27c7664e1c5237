"""The data behind pages and screenshots: consistent books, at any size."""

from datetime import timedelta

from gateway.billing import usage
from gateway.billing.usage_queries import EVERYTHING, Period, ReportQuery
from tests.console_seed import seed
from tests.harness import Served


async def test_seeded_data_keep_every_invariant_of_money(served: Served) -> None:
    seeded = await seed(served, calls=1500)
    await served.check_invariants()
    async with served.gateway.database.operator() as session:
        period = Period(seeded.start, seeded.end + timedelta(minutes=1))
        query = ReportQuery(None, EVERYTHING, livemode=True, period=period, group_by=("tenant",))
        report = await usage.report(session, query)
    assert report.total.cost_nano == await served.ledger_total()
    assert {row.group[0] for row in report.rows} == set(seeded.tenants)
    assert report.total.estimated_requests > 0
    assert report.total.failed_requests > 0
    assert report.total.open_requests == 7
