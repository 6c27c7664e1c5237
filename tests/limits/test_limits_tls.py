"""Limits in a Valkey behind TLS (`rediss://`), and the report of `gateway doctor` on failure."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.config import Settings
from gateway.domain import LimitKind, RateLimit
from gateway.errors import ConfigurationError
from gateway.limits.enforcement import LimitReached, open_limiter
from tests.cli.test_cli_manners import CommandLine
from tests.harness import free_port, process_environment
from tests.limits_helpers import TENANT_ID, Valkey, caller, running_valkey
from tests.tls_helpers import Authority, tls_in_front_of


@dataclass(frozen=True)
class Secured:
    """A Valkey behind TLS with the authority that signed its certificate, and another authority."""

    port: int
    plain: Valkey
    own: Path
    other: Path


@pytest.fixture
async def secured(tmp_path: Path) -> AsyncIterator[Secured]:
    own, other = Authority(tmp_path, "own"), Authority(tmp_path, "other")
    with running_valkey() as server:
        async with tls_in_front_of(server.port, own) as port:
            yield Secured(port, server, own.file, other.file)


async def doctors_word(settings: Settings, redis_url: str) -> tuple[str, str]:
    """State and detail of the limits in the report of `gateway doctor`."""
    environment = process_environment(settings) | {"GATEWAY_REDIS_URL": redis_url}
    command = CommandLine(environment, settings.data_dir)
    ended = await asyncio.to_thread(command, "doctor", "--json")
    # The limits' own word, or that of what kept the gateway from starting.
    found = [check for check in json.loads(ended.out) if check["check"] in {"limits", "start"}]
    return found[0]["state"], found[0]["detail"]


async def test_limits_are_counted_in_a_valkey_behind_tls(
    settings: Settings, secured: Secured
) -> None:
    url = SecretStr(f"rediss://127.0.0.1:{secured.port}/0?ssl_ca_certs={secured.own}")
    # Over a pipe of this test's own, an exchange may take its time.
    changed = settings.model_copy(update={"redis_url": url, "redis_timeout_ms": 1000})
    limits = RateLimit("tenant", LimitKind.REQUESTS, 1)
    async with open_limiter(changed, process=TENANT_ID) as limiter:
        assert limiter.processes == 1
        async with limiter.admit(caller(limits), images=1, house=None):
            pass
        with pytest.raises(LimitReached):
            async with limiter.admit(caller(limits), images=1, house=None):
                pass
    assert secured.plain.client.keys("*limits:requests*") != []


async def test_a_certificate_of_another_authority_counts_as_valkey_away(
    settings: Settings, secured: Secured
) -> None:
    url = SecretStr(f"rediss://127.0.0.1:{secured.port}/0?ssl_ca_certs={secured.other}")
    async with open_limiter(
        settings.model_copy(update={"redis_url": url}), process=TENANT_ID
    ) as limiter:
        assert limiter.processes is None
    assert secured.plain.client.keys("*") == []


async def test_doctor_reports_an_untrusted_certificate_with_advice(
    settings: Settings, secured: Secured
) -> None:
    url = f"rediss://127.0.0.1:{secured.port}/0?ssl_ca_certs="
    assert (await doctors_word(settings, f"{url}{secured.own}"))[0] == "ok"
    state, detail = await doctors_word(settings, f"{url}{secured.other}")
    assert state == "wrong"
    assert "ssl_ca_certs" in detail


async def test_a_wrong_address_is_reported_without_its_password(
    settings: Settings, secured: Secured
) -> None:
    plain, tls = secured.plain.port, secured.port
    words = {
        f"rediss://:canary@127.0.0.1:{tls}": "ssl_ca_certs",
        f"rediss://:canary@127.0.0.1:{tls}?ssl_ca_certs=/nowhere/ca.pem": "file",
        f"rediss://:canary@127.0.0.1:{plain}": "TLS",
        f"redis://:canary@127.0.0.1:{plain}": "password",
        f"redis://:canary@127.0.0.1:{free_port()}": "running",
    }
    for url, word in words.items():
        trouble = await trouble_with(settings, url)
        assert word in trouble, url
        assert "canary" not in trouble


async def test_an_unknown_option_is_refused_at_start(settings: Settings) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await trouble_with(settings, "redis://:canary@127.0.0.1:6379?time_out=5")
    assert "time_out" in str(refused.value)
    assert "canary" not in str(refused.value)


async def trouble_with(settings: Settings, url: str) -> str:
    """The error that a limiter reports for a Redis that it cannot use."""
    changed = settings.model_copy(update={"redis_url": SecretStr(url)})
    async with open_limiter(changed, process=TENANT_ID) as limiter:
        assert limiter.trouble is not None
        return limiter.trouble
