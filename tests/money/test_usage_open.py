"""Usage reports tell facts from estimates and open calls, by the day of admission."""

import asyncio
import csv
import io

from tests.admin_helpers import admin, answered
from tests.harness import GPT2, Served
from tests.money_helpers import age_unknown, books, budget_rows, post_image
from tests.stub_openai import Fault, Stub


def usd(nano: int) -> str:
    return f"{nano // 10**9}.{nano % 10**9:09}"


async def test_estimates_and_open_calls_stand_beside_the_cost(served: Served, stub: Stub) -> None:
    async with served.http(await served.key()) as http:
        stub.faults.add(Fault("reset_after_headers"))
        await post_image(http)
        await age_unknown(served)
        await served.sweep()
        await post_image(http)
        stub.faults.add(Fault("reset_after_headers"))
        await post_image(http)
        report = answered(await http.get("/v1/usage?group_by=model&start=2020-01-01"))
        table = await http.get("/v1/usage?group_by=model&start=2020-01-01&format=csv")
        by_day = answered(await http.get("/v1/usage?group_by=day&start=2020-01-01"))
    found = {booked.state: booked for booked in await books(served)}
    estimated = found["posted_est"].final_nano or 0
    sums = {
        "requests": 2,
        "images": 1,
        "cost_usd": usd(estimated + (found["posted"].final_nano or 0)),
        "estimated_usd": usd(estimated),
        "open_usd": usd(found["unknown"].held_nano),
    }
    [row] = report["data"]
    assert {name: row[name] for name in sums} == sums
    assert row["model"] == GPT2
    assert {name: report["total"][name] for name in sums} == sums
    [line] = csv.DictReader(io.StringIO(table.text))
    assert (line["estimated_usd"], line["open_usd"]) == (sums["estimated_usd"], sums["open_usd"])
    assert [day["open_usd"] for day in by_day["data"]][-1] == sums["open_usd"]


async def test_a_group_of_open_calls_alone_is_reported(served: Served, stub: Stub) -> None:
    stub.faults.add(Fault("reset_after_headers"))
    async with served.http(await served.key()) as http, admin(served) as operator:
        await post_image(http)
        own = answered(await http.get("/v1/usage?group_by=day,key"))
        whole = answered(await operator.get("/usage?group_by=tenant"))
    held = usd((await books(served))[0].held_nano)
    for report in (own, whole):
        [row] = report["data"]
        assert (row["requests"], row["cost_usd"], row["open_usd"]) == (0, "0.000000000", held)


async def test_a_call_over_midnight_counts_on_the_day_of_its_admission(
    served: Served, stub: Stub
) -> None:
    """Admitted yesterday, settled today: the report says what the day's budget says."""
    stub.faults.add(Fault(hold=True))
    await served.budget("1", window="day")
    async with served.http(await served.key()) as http:
        call = asyncio.create_task(post_image(http))
        await stub.until_held(1)
        await served.owner_sql(
            "UPDATE reservation SET admitted_at = admitted_at - interval '1 day'"
        )
        await served.owner_sql(
            "UPDATE budget_period SET period_start = period_start - interval '1 day',"
            " period_end = period_end - interval '1 day'"
        )
        stub.release()
        assert (await call).status_code == 200
        report = answered(await http.get("/v1/usage?group_by=day&start=2020-01-01"))
    [period] = await served.owner_sql(
        "SELECT to_char(period_start AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day FROM budget_period"
    )
    [row] = report["data"]
    assert row["day"] == period.day
    assert row["cost_usd"] == usd((await budget_rows(served))[0][2])
