"""The installation that the rehearsals share, and the collector of its traces."""

import ssl
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from sqlalchemy import make_url

from tests.otlp_receiver import Receiver, running_receiver
from tests.rehearsal.installation import Installation, installed
from tests.rehearsal.programs import expect_registry
from tests.rehearsal.reports import Report, report
from tests.tls_helpers import Authority

__all__ = ["report"]


@pytest.fixture(scope="session")
def installation(
    tmp_path_factory: pytest.TempPathFactory, one_authority: Authority, report: Report
) -> Iterator[Installation]:
    """Two gateways behind nginx, installed by the page."""
    expect_registry(tmp_path_factory.mktemp("registry"))
    begun = time.monotonic()
    with installed(tmp_path_factory.mktemp("empty"), one_authority) as made:
        report.add("installed by docs/deploy.md, seconds", round(time.monotonic() - begun))
        yield made


@pytest.fixture(scope="session")
def tls(one_authority: Authority) -> ssl.SSLContext:
    """The TLS context of the clients of nginx."""
    return ssl.create_default_context(cafile=one_authority.file)


@pytest_asyncio.fixture
async def traces(installation: Installation) -> AsyncIterator[Receiver]:
    """A collector at the address that the installation sends to, for one test."""
    address = make_url(installation.environment["OTEL_EXPORTER_OTLP_ENDPOINT"])
    assert address.port is not None
    async with running_receiver(address.port) as receiver:
        yield receiver
