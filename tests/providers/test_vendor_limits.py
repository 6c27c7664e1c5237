"""A vendor's own rate limits become metrics by credential, and an alarm before one runs out."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from gateway.generation.vendor_limits import MAX_SERIES, VendorLimits
from gateway.provider_answers import ProviderLimit, ProviderReply
from gateway.providers.openai.rate_limits import read_limits
from gateway.telemetry import alarms_total, provider_limit, provider_limit_remaining
from gateway.tenancy.credentials import CredentialChoice
from tests.harness import make_settings, served_gateway
from tests.money_helpers import post_image
from tests.providers.contract import DIALECTS, answer_bytes
from tests.providers.test_contract import Upstream

HOUSE = CredentialChoice("house")


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("12ms", 0.012),
        ("1h2m3.5s", 3723.5),
        ("2d", 172_800),
        ("", 60),
        ("soon", 60),
        ("9999d", 604_800),
        (None, 60),
    ],
)
def test_limits_are_read_from_an_answers_headers(reset: str | None, seconds: float) -> None:
    headers = httpx2.Headers(
        {
            "x-ratelimit-limit-images": "50",
            "x-ratelimit-remaining-images": "7",
            "x-ratelimit-limit-tokens": "a lot",
            "x-ratelimit-remaining-tokens": "1",
            "x-ratelimit-limit-requests": "500",
            **({} if reset is None else {"x-ratelimit-reset-images": reset}),
        }
    )
    assert read_limits(headers) == (ProviderLimit("images", 50, 7, seconds),)


def test_an_alarm_is_raised_once_a_window() -> None:
    now = 100.0
    limits = VendorLimits(lambda: now)

    def raised(remaining: int, kind: str = "images") -> int:
        before = alarms()
        limit = ProviderLimit(kind, 100, remaining, 60.0)
        limits.note("openai", HOUSE, ProviderReply(200, None, (limit,)))
        return int(alarms() - before)

    assert [raised(50), raised(11), raised(10), raised(3), raised(3, "tokens")] == [0, 0, 1, 0, 1]
    now += 61
    assert [raised(50), raised(0), raised(0)] == [0, 1, 0]


def series() -> int:
    [metric] = provider_limit.collect()
    return len(metric.samples)


def alarms() -> float:
    [metric] = alarms_total.collect()
    kind = {"kind": "provider_limit_low"}
    return sum(one.value for one in metric.samples if one.labels == kind and "total" in one.name)


def test_credentials_beyond_the_bound_have_no_series_of_their_own() -> None:
    limits = VendorLimits()
    before = series()
    for number in range(MAX_SERIES + 50):
        limits.note(
            f"vendor-{number}", HOUSE, ProviderReply(200, None, (ProviderLimit("r", 9, 9, 1.0),))
        )
    assert series() == before + MAX_SERIES


async def test_a_call_shows_the_limits_of_its_credential(database: str, tmp_path: Path) -> None:
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    answer = answer_bytes(DIALECTS[0], 200, "good")
    told = b"x-ratelimit-limit-requests: 500\r\nx-ratelimit-remaining-requests: 20\r\n"
    upstream.content = answer.replace(b"set-cookie: a=1\r\n", told)
    port = server.sockets[0].getsockname()[1]
    settings = make_settings(database, tmp_path, OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1")
    async with server, served_gateway(settings) as served:
        before = alarms()
        async with served.http(await served.key()) as http:
            statuses = [(await post_image(http)).status_code for _ in range(3)]
        assert alarms() - before == 1
    assert statuses == [200, 200, 200]
    labels = {"provider": "openai", "credential": "house", "kind": "requests"}
    [metric] = provider_limit_remaining.collect()
    assert [one.value for one in metric.samples if one.labels == labels] == [20]
