"""Shutdown dates from the vendor: a model is handed over on the day that they name."""

from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import pytest
from fastapi import FastAPI, Response

from tests.harness import Served, make_settings, served_gateway
from tests.serving import serving

TODAY = date(2026, 11, 21)


class Vendor:
    """A vendor that announces the models that the test sets."""

    def __init__(self) -> None:
        self.answer: object = {"data": []}
        self.status = 200
        self.base_url = ""


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    vendor, app = Vendor(), FastAPI()

    @app.get("/v1/models")
    async def models(response: Response) -> object:
        response.status_code = vendor.status
        return vendor.answer

    async with serving(app) as address:
        vendor.base_url = f"{address}/v1"
        yield vendor


@pytest.fixture
async def asking(database: str, vendor: Vendor, tmp_path: Path) -> AsyncIterator[Served]:
    settings = make_settings(database, tmp_path, OPENAI_BASE_URL=vendor.base_url)
    async with served_gateway(settings, today=lambda: TODAY) as running:
        yield running


async def shown(served: Served, model: str) -> tuple[str | None, str]:
    async with served.http(await served.key()) as http:
        answer = (await http.get(f"/v1/models/{model}")).json()
    return answer["shutdown_date"], answer["served_model"]


def entry(model: str, shutdown: object) -> dict[str, object]:
    return {"id": model, "object": "model", "shutdown_date": shutdown}


async def test_an_announced_date_is_taken_over(asking: Served, vendor: Vendor) -> None:
    vendor.answer = {
        "data": [
            entry("gpt-image-2", "2027-03-01"),
            entry("gpt-image-2.5-flare", "2026-11-21"),
            entry("gpt-image-2.6-flare", 1_795_219_200),  # 2026-11-21
            entry("gpt-image-1.5", None),
            entry("gpt-image-2.6-sunburst", "soon"),
            entry("gpt-7", "2026-01-01"),
        ]
    }
    await asking.gateway.lifetimes.refresh()
    assert await shown(asking, "gpt-image-2") == ("2027-03-01", "gpt-image-2")
    for closed in ("gpt-image-2.5-flare", "gpt-image-2.6-flare"):
        assert await shown(asking, closed) == ("2026-11-21", "gpt-image-2.5-sunburst")
    assert await shown(asking, "gpt-image-1.5") == ("2026-12-01", "gpt-image-1.5")
    assert await shown(asking, "gpt-image-2.6-sunburst") == (None, "gpt-image-2.6-sunburst")


@pytest.mark.parametrize(
    ("status", "answer"),
    [(500, {}), (401, {"error": {"message": "no"}}), (200, []), (200, {"data": [3]}), (200, "x")],
)
async def test_an_answer_without_dates_changes_nothing(
    asking: Served, vendor: Vendor, status: int, answer: object
) -> None:
    vendor.status, vendor.answer = status, answer
    await asking.gateway.lifetimes.refresh()
    assert await shown(asking, "gpt-image-1.5") == ("2026-12-01", "gpt-image-1.5")


async def test_a_vendor_that_is_away_changes_nothing(database: str, tmp_path: Path) -> None:
    async with served_gateway(make_settings(database, tmp_path), today=lambda: TODAY) as served:
        await served.gateway.lifetimes.refresh()
        assert await shown(served, "gpt-image-2") == (None, "gpt-image-2")
