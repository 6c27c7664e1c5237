"""A process that has just started is ready once it is warm, and knows the state of its store."""

from dataclasses import replace

import httpx2

from gateway.billing.warming import WarmUp
from gateway.bootstrap import open_gateway
from gateway.config import Settings
from gateway.db.engine import DatabaseUnavailable
from gateway.main import create_app
from tests.harness import error_of, served_gateway
from tests.hosting_helpers import S3Server, bucket_of
from tests.serving import serving
from tests.store_helpers import post
from tests.stub_openai import Stub

READY = {"status": "ready", "database": "ok", "storage": "ok"}
DEGRADED = {"status": "degraded", "database": "ok", "storage": "failing"}
UNAVAILABLE = {"status": "unavailable", "database": "unavailable", "storage": "ok"}


class Failing:
    """A step of the warm-up that fails a number of times."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.runs = 0

    async def __call__(self) -> None:
        self.runs += 1
        if self.runs <= self.times:
            raise DatabaseUnavailable


async def test_a_process_is_not_ready_before_its_warm_up_has_succeeded_once(
    settings: Settings,
) -> None:
    step, last = Failing(3), Failing(0)
    async with open_gateway(settings) as opened:
        warm_up = WarmUp(opened.database, step, last)
        await warm_up.run()
        gateway = replace(opened, warm_up=warm_up)
        async with (
            serving(create_app(settings, gateway), lifespan="on") as base_url,
            httpx2.AsyncClient(base_url=base_url) as http,
        ):
            answers = [await http.get("/ready") for _ in range(4)]
            assert [one.status_code for one in answers] == [503, 503, 200, 200]
    assert [one.json() for one in answers] == [UNAVAILABLE] * 2 + [READY] * 2
    assert answers[0].headers["retry-after"] == "1"
    assert (step.runs, last.runs) == (4, 1)


async def test_a_process_that_starts_without_its_store_knows_it_before_it_buys_anything(
    settings: Settings, stub: Stub
) -> None:
    server = S3Server()
    place = await bucket_of(server)
    server.stop()
    async with served_gateway(place.applied(settings)) as served:
        key = await served.key()
        async with served.http(key) as http:
            first = await http.get("/ready")
            refused = await post(http, 1, response_format="url")
            server.start()
            await served.sweep()
            well = await http.get("/ready")
            bought = await post(http, 2, response_format="url")
    server.stop()
    assert (first.status_code, first.json()) == (200, DEGRADED)
    assert (refused.status_code, error_of(refused)["code"]) == (503, "storage_unavailable")
    assert (well.json(), bought.status_code) == (READY, 200)
    assert len(stub.calls) == 1
