"""Headers of every answer: the id, the cost, the model that served it and its shutdown date."""

import asyncio
import dataclasses
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from gateway.bootstrap import Gateway
from gateway.config import Settings
from gateway.library.storage import ImageStore, OpenedFile
from gateway.main import create_app
from gateway.money import format_usd
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import (
    GPT2,
    Served,
    error_of,
    gateway_process,
    process_environment,
    secret_of,
    served_gateway,
)
from tests.stub_openai import Fault, Stub

PATH = "/v1/images/generations"
LOW = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
REQUEST_ID = re.compile(r"req_[0-9a-f]{24}")
CLOSING, SUCCESSOR = "gpt-image-1.5", "gpt-image-2.6-sunburst"
BEFORE, AFTER = date(2026, 11, 20), date(2026, 12, 1)


class Defect(Exception):
    """An error that no handler expects."""


class BrokenStore(ImageStore):
    """A store with a defect."""

    def __init__(self) -> None:
        """Set nothing up."""

    async def read(self, path: str, span: tuple[int, int] | None = None) -> OpenedFile:
        raise Defect(path)


@asynccontextmanager
async def application(gateway: Gateway, key: IssuedKey) -> AsyncIterator[httpx2.AsyncClient]:
    """The application around a gateway that was opened (and changed) elsewhere."""
    app = create_app(gateway.settings, gateway)
    app.state.gateway = gateway
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app),
        base_url="http://127.0.0.1",
        headers={"Authorization": f"Bearer {secret_of(key)}"},
    ) as http:
        yield http


def x_gateway(response: httpx2.Response) -> dict[str, str]:
    return {n: v for n, v in response.headers.items() if n.startswith("x-gateway-")}


async def test_every_answer_has_an_id_of_its_own(served: Served) -> None:
    key = await served.key()
    found = {}
    async with served.http() as anonymous, served.http(key) as http:
        for status, client, method, path in (
            (200, anonymous, "GET", "/health"),
            (200, anonymous, "GET", "/docs"),
            (307, anonymous, "GET", "/"),
            (401, anonymous, "GET", "/v1/models"),
            (401, anonymous, "GET", "/nowhere"),
            (403, anonymous, "GET", "/images/x"),
            (400, http, "POST", PATH),
            (403, http, "GET", "/metrics"),
            (404, http, "GET", "/v1/models/x"),
            (404, http, "GET", "/nowhere"),
            (405, http, "GET", PATH),
        ):
            response = await client.request(method, path, headers={"X-Request-Id": "mine"})
            assert response.status_code == status, path
            found[path, status] = response.headers.get_list("x-request-id")
    assert all(len(ids) == 1 and REQUEST_ID.fullmatch(ids[0]) for ids in found.values()), found
    assert len({ids[0] for ids in found.values()}) == len(found)


async def test_a_defect_is_answered_like_every_other_error(served: Served) -> None:
    broken = dataclasses.replace(served.gateway, store=BrokenStore())
    link = served.gateway.links.sign(
        "img_1_2", f"{served.tenant_id}/2026/11/20/img_1_2.png", 4_000_000_000
    )
    async with application(broken, await served.key()) as http:
        response = await http.get(httpx2.URL(link).raw_path.decode())
    error = error_of(response)
    assert (response.status_code, error["type"], error["code"]) == (
        500,
        "server_error",
        "internal_error",
    )
    assert REQUEST_ID.fullmatch(response.headers["x-request-id"])
    assert "Defect" not in response.text
    assert str(served.tenant_id) not in response.text


async def test_a_generation_tells_its_cost_and_its_model(served: Served, stub: Stub) -> None:
    async with served.http(await served.key()) as http:
        response = await http.post(PATH, json=LOW)
    rows = await served.owner_sql("SELECT id FROM reservation")
    assert x_gateway(response) == {
        "x-gateway-generation-id": str(rows[0].id),
        "x-gateway-cost-usd": format_usd(stub.bill[0].cost_nano_usd),
        "x-gateway-cost-status": "actual",
        "x-gateway-provider": "openai",
        "x-gateway-requested-model": GPT2,
        "x-gateway-served-model": GPT2,
    }
    assert "deprecation" not in response.headers
    assert "sunset" not in response.headers


async def test_a_cost_that_was_not_reported_is_called_estimated(served: Served, stub: Stub) -> None:
    stub.faults.add(Fault("usage_missing"))
    async with served.http(await served.key()) as http:
        quote = (await http.post("/v1/images/quotes", json=LOW)).json()["cost_usd_max"]
        response = await http.post(PATH, json=LOW)
    told = x_gateway(response)
    assert told["x-gateway-cost-status"] == "estimated"
    assert told["x-gateway-cost-usd"].rstrip("0") == quote.rstrip("0")
    assert "usage" not in response.json()


async def test_a_closing_model_says_so_wherever_it_serves(settings: Settings, stub: Stub) -> None:
    async with (
        served_gateway(settings, today=lambda: BEFORE) as served,
        served.http(await served.key()) as http,
    ):
        response = await http.post(PATH, json=LOW | {"model": CLOSING})
        shown = (await http.get(f"/v1/models/{CLOSING}")).json()
    assert response.status_code == 200
    assert {name: response.headers[name] for name in ("deprecation", "sunset", "link")} == {
        "deprecation": "@1780358400",  # 2026-06-02T00:00:00Z
        "sunset": "Tue, 01 Dec 2026 00:00:00 GMT",
        "link": f'</v1/models/{SUCCESSOR}>; rel="successor-version"',
    }
    assert (shown["shutdown_date"], shown["successor"]) == ("2026-12-01", SUCCESSOR)
    assert [call.json["model"] for call in stub.calls if call.json] == [CLOSING]


async def test_a_model_is_served_by_its_successor_from_the_day_it_closes(
    settings: Settings, stub: Stub
) -> None:
    async with (
        served_gateway(settings, today=lambda: AFTER) as served,
        served.http(await served.key()) as http,
    ):
        response = await http.post(PATH, json=LOW | {"model": CLOSING})
        shown = (await http.get(f"/v1/models/{CLOSING}")).json()
    assert response.status_code == 200
    told = x_gateway(response)
    assert told["x-gateway-requested-model"] == CLOSING
    assert told["x-gateway-served-model"] == SUCCESSOR
    assert (shown["id"], shown["served_model"]) == (CLOSING, SUCCESSOR)
    assert [call.json["model"] for call in stub.calls if call.json] == [SUCCESSOR]


RETRY_HEADERS = ("retry-after", "x-should-retry")
FAILURES = {
    "[sandbox:moderation]": (400, "moderation_blocked", {}),
    "[sandbox:rejected]": (400, "invalid_value", {}),
    "[sandbox:rate_limited]": (429, "rate_limit_exceeded", {"retry-after": "1"}),
    "[sandbox:credential]": (424, "credential_rejected", {"x-should-retry": "false"}),
    "[sandbox:unreachable]": (502, "provider_unreachable", {}),
    "[sandbox:unknown]": (504, "outcome_unknown", {"x-should-retry": "false"}),
}


async def test_every_failure_tells_whether_to_try_again(served: Served) -> None:
    answers = {}
    async with served.http(await served.key(livemode=False)) as http:
        for word in FAILURES:
            response = await http.post(PATH, json=LOW | {"prompt": word})
            told = {n: response.headers[n] for n in RETRY_HEADERS if n in response.headers}
            answers[word] = (response.status_code, error_of(response)["code"], told)
    assert answers == FAILURES


async def test_a_short_budget_says_not_to_try_again(served: Served, stub: Stub) -> None:
    await served.budget("0", window="total")
    async with served.http(await served.key()) as http:
        response = await http.post(PATH, json=LOW)
    assert (response.status_code, error_of(response)["code"]) == (402, "budget_exceeded")
    assert response.headers["x-should-retry"] == "false"
    assert stub.calls == []


@pytest.mark.parametrize("response_format", ["url", "b64_json"])
async def test_an_image_that_cannot_be_stored_is_paid_once_and_given_if_it_can_be(
    served: Served, stub: Stub, response_format: str
) -> None:
    folder = served.gateway.settings.data_dir / "images"
    shutil.rmtree(folder)
    folder.write_text("no folder any more")
    async with served.http(await served.key()) as http:
        response = await http.post(PATH, json=LOW | {"response_format": response_format})
    assert await served.ledger_total() == stub.bill[0].cost_nano_usd
    if response_format == "b64_json":
        assert response.status_code == 200
        return
    assert (response.status_code, error_of(response)["code"]) == (500, "storage_failed")
    assert response.headers["x-should-retry"] == "false"


async def test_answers_name_neither_server_nor_framework(served: Served) -> None:
    async with served.http(await served.key()) as http:
        for path in ("/health", "/v1/models", "/nowhere"):
            response = await http.get(path)
            assert "x-powered-by" not in response.headers
            assert response.headers.get("server", "") in {"", "uvicorn"}


async def test_no_answer_leads_to_a_host_that_the_client_made_up(served: Served) -> None:
    async with served.http(await served.key()) as http:
        for method, path in (("GET", "/"), ("GET", "/v1/models/"), ("POST", f"{PATH}/")):
            response = await http.request(method, path, headers={"Host": "made-up.example"})
            assert "made-up.example" not in response.headers.get("location", ""), path


async def test_an_idle_connection_is_closed_when_the_operator_says(
    settings: Settings, tmp_path: Path
) -> None:
    environment = process_environment(settings) | {"GATEWAY_KEEPALIVE_SECONDS": "1"}
    with gateway_process(environment, tmp_path / "log") as running:
        await running.until_ready()
        address = urlsplit(running.base_url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for _ in range(2):
            writer.write(b"GET /health HTTP/1.1\r\nhost: gateway\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            await reader.readuntil(b"}")
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
