"""The books of a gateway in other processes, compared with those of the stub provider."""

from collections.abc import Sequence

from tests.harness import run_sql
from tests.stub_openai import BillLine

SPENT = """
SELECT count(DISTINCT reservation_id) AS calls, coalesce(sum(amount_nano), 0) AS nano
FROM ledger WHERE kind <> 'hold' AND livemode AND amount_nano > 0
"""
OPEN = "SELECT count(*) AS number FROM reservation WHERE state IN ('held', 'unknown')"


async def expect_agreeing_books(database_url: str, bill: Sequence[BillLine]) -> int:
    """Expect every call to be settled, at the vendor's own amount; the number of calls."""
    assert await run_sql(database_url, "SELECT * FROM invariant_break") == []
    [still_open] = await run_sql(database_url, OPEN)
    assert still_open.number == 0
    [booked] = await run_sql(database_url, SPENT)
    assert (booked.calls, booked.nano) == (len(bill), sum(line.cost_nano_usd for line in bill))
    return len(bill)
