"""An installation by the page alone works: every front, its images, books, traces and metrics."""

import re
import ssl
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.console.test_playground import PLAYGROUND, form_of
from tests.console_helpers import OWN
from tests.deploy.test_alerts import ask, is_silent, queries, until
from tests.harness import GPT2
from tests.limits_helpers import BODY
from tests.mcp_helpers import call, content_of
from tests.money_helpers import eventually
from tests.otlp_receiver import Receiver
from tests.rehearsal.books import expect_agreeing_books
from tests.rehearsal.installation import Installation
from tests.rehearsal.reports import Report
from tests.stub_openai import Fault

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]
PNG = b"\x89PNG"


@pytest.fixture
async def http(
    installation: Installation, tls: ssl.SSLContext
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of nginx, with the tenant's key."""
    headers = {"Authorization": f"Bearer {installation.key}"}
    async with httpx2.AsyncClient(
        base_url=installation.url, headers=headers, verify=tls, timeout=60
    ) as client:
        yield client


async def by_rest(installation: Installation) -> str:
    """Make an image with the official SDK; its link."""
    async with openai.AsyncOpenAI(
        api_key=installation.key, base_url=f"{installation.url}/v1", max_retries=0
    ) as client:
        made = await client.images.generate(
            model=GPT2, prompt="a red circle", quality="low", response_format="url"
        )
    assert made.data is not None
    return str(made.data[0].url)


async def by_mcp(installation: Installation, http: httpx2.AsyncClient) -> str:
    """Make an image with the official MCP client; its link."""
    transport = streamable_http_client(f"{installation.url}/mcp", http_client=http)
    async with Client(transport) as client:
        result = await call(client, "generate_image", prompt="a red circle", model=GPT2)
    return str(content_of(result)["images"][0]["url"])


async def by_console(installation: Installation, tls: ssl.SSLContext) -> str:
    """Sign in to the console with the key and make an image by its form; its link."""
    async with httpx2.AsyncClient(
        base_url=installation.url, headers=OWN | {"Accept": "text/html"}, verify=tls, timeout=60
    ) as browser:
        came = await browser.post("/console/login/api-key", data={"key": installation.key})
        assert came.status_code == 303, came.text
        page = await browser.get(PLAYGROUND)
        filled = form_of(page, prompt="a red circle", quality="low")
        made = await browser.post(PLAYGROUND, files=filled)
        assert made.status_code == 303, made.text
        shown = await browser.get(made.headers["location"])
    found = re.search(r'<img src="([^"]*/images/[^"]+)" alt="Result 1"', shown.text)
    assert found is not None, shown.text
    return found[1].replace("&amp;", "&")


async def test_each_front_makes_an_image_behind_nginx_and_the_books_agree(
    installation: Installation, http: httpx2.AsyncClient, tls: ssl.SSLContext, report: Report
) -> None:
    links = {
        "REST": await by_rest(installation),
        "MCP": await by_mcp(installation, http),
        "console": await by_console(installation, tls),
    }
    async with httpx2.AsyncClient(base_url=installation.url, verify=tls, timeout=60) as reader:
        for front, link in links.items():
            image = await reader.get(link)
            assert (image.status_code, image.content[:4]) == (200, PNG), (front, link)
    await expect_agreeing_books(installation.database_url, installation.stub.bill())
    report.add("images, one over each front", ", ".join(links))


async def test_a_call_of_each_gateway_is_a_trace_in_the_collector(
    installation: Installation, http: httpx2.AsyncClient, traces: Receiver, report: Report
) -> None:
    async def arrived() -> bool:
        answer = await http.post("/v1/images/generations", json=BODY)
        assert answer.status_code == 200, answer.text
        return len({str(service.get("service.instance.id")) for service in traces.services}) == 2

    await eventually(arrived, 60)
    names = {span.name for span in traces.spans}
    assert {"POST /v1/images/generations", "reserve", "settle", f"generate_content {GPT2}"} <= names
    report.add("spans in the collector", f"{len(traces.spans)}, of both gateways")


async def use(installation: Installation, http: httpx2.AsyncClient) -> None:
    """Buy, fail, be refused, and look things up."""
    for changes in ({}, {"response_format": "url"}, {"n": 0}):
        await http.post("/v1/images/generations", json=BODY | changes)
    installation.stub.add_faults(Fault("status", status=500))
    await http.post("/v1/images/generations", json=BODY)
    await http.get("/v1/usage")


async def test_prometheus_scrapes_both_gateways_and_answers_every_board_and_alert(
    installation: Installation, http: httpx2.AsyncClient, report: Report
) -> None:
    cost = 'gateway_tenant_cost_nano_usd_total{tenant="acme"}'
    async with httpx2.AsyncClient(base_url=installation.prometheus, timeout=30) as prometheus:
        await use(installation, http)
        await until(prometheus, 'sum(up{job="image-gateway"}) == 2')
        await until(prometheus, f"{cost} > 0")
        await use(installation, http)
        await until(prometheus, f"rate({cost}[1m]) > 0")
        for status in ("4xx", "5xx"):
            refused = f'gateway_tenant_requests_total{{status="{status}"}}'
            await until(prometheus, f"rate({refused}[1m])")
        await until(prometheus, "rate(gateway_errors_total[1m])")
        await until(prometheus, "gateway:errors:ratio_rate6h")
        answers = {place: await ask(prometheus, query) for place, query in queries().items()}
    assert [place for place, found in answers.items() if not found and not is_silent(place)] == []
    assert (await http.get("/metrics")).status_code == 404
    report.add("gateways that Prometheus scrapes", len(installation.replicas))
    report.add("queries of boards, alerts and runbooks", f"{len(answers)} answered")
