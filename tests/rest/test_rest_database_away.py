"""Answers while Postgres is away, and recovery once it is back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from pydantic import SecretStr
from sqlalchemy import make_url

from gateway.config import Settings
from gateway.vault import key_format
from tests.harness import GPT2, Served, error_of, served_gateway
from tests.stub_openai import Stub

PATH = "/v1/images/generations"
LOW = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
BACK_WITHIN_SECONDS = 10


class Cable:
    """The connection between the gateway and Postgres: a port on loopback that can be cut."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._port = 0

    @property
    def url(self) -> str:
        """The address at the gateway's end."""
        url = self._url.difference_update_query(["host"]).set(host="127.0.0.1", port=self._port)
        return url.render_as_string(hide_password=False)

    async def plug_in(self) -> None:
        """Let connections through, always at the same port."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Drop every connection and let no new one through."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await self._open()
        self._writers |= {writer, there_writer}
        pumps = [pump(reader, there_writer), pump(there_reader, writer)]
        await asyncio.gather(*pumps)
        self._writers -= {writer, there_writer}

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        folder = self._url.query.get("host") or self._url.host or "127.0.0.1"
        port = self._url.port or 5432
        if str(folder).startswith("/"):
            return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")
        return await asyncio.open_connection(str(folder), port)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes one way until either end is gone."""
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def cable(database: str) -> AsyncIterator[Cable]:
    made = Cable(database)
    await made.plug_in()
    yield made
    await made.cut()


@pytest.fixture
async def far(settings: Settings, cable: Cable) -> AsyncIterator[Served]:
    """A gateway whose Postgres hangs on the cable; migrations and checks go past it."""
    changes = {
        "database_url": SecretStr(cable.url),
        "migration_database_url": settings.database_url,
    }
    async with served_gateway(settings.model_copy(update=changes)) as running:
        yield running
        await running.check_invariants()


async def until_ready(served: Served) -> None:
    async with served.http() as http, asyncio.timeout(BACK_WITHIN_SECONDS):
        while (await http.get("/ready")).status_code != 200:
            pass


async def test_readiness_reports_postgres_away_and_health_does_not(
    far: Served, cable: Cable
) -> None:
    async with far.http() as http:
        well = [(await http.get(path)).status_code for path in ("/health", "/ready")]
        await cable.cut()
        away = [await http.get(path) for path in ("/health", "/ready")]
        await cable.plug_in()
        await until_ready(far)
    assert well == [200, 200]
    assert [answer.status_code for answer in away] == [200, 503]
    assert away[1].headers["retry-after"] == "1"
    assert away[1].headers["x-request-id"]
    assert away[1].json() == {
        "status": "unavailable",
        "database": "unavailable",
        "storage": "ok",
    }


async def test_a_key_with_a_wrong_checksum_never_asks_the_database(
    far: Served, cable: Cable
) -> None:
    good = (await far.key()).secret.reveal()
    unknown = key_format.new_key("live").reveal()
    await cable.cut()
    answers = {}
    for name, key in (
        ("unknown", unknown),
        ("known, not seen yet", good),
        ("wrong checksum", good[:-1] + ("A" if good[-1] != "A" else "B")),
        ("one character changed", ("igw_live_" + "0" * 30 + good[-6:])),
        ("no key of ours", "sk-anything"),
    ):
        async with far.http(key) as http:
            response = await http.get("/v1/models")
            answers[name] = (response.status_code, error_of(response)["code"])
    away, refused = (503, "database_unavailable"), (401, "invalid_api_key")
    assert answers == {
        "unknown": away,
        "known, not seen yet": away,
        "wrong checksum": refused,
        "one character changed": refused,
        "no key of ours": refused,
    }
    await cable.plug_in()
    await until_ready(far)


async def test_nothing_is_bought_while_nothing_can_be_held(
    far: Served, cable: Cable, stub: Stub
) -> None:
    key = await far.key()
    async with far.http(key) as http:
        assert (await http.post(PATH, json=LOW)).status_code == 200
        await cable.cut()
        answers = [await http.post(PATH, json=LOW) for _ in range(2)]
        answers += [
            await http.get("/v1/usage"),
            await http.get("/v1/budgets"),
            await http.get("/v1/credentials/openai"),
            await http.put("/v1/credentials/openai", json={"secret": "sk-while-away-1234"}),
        ]
        await cable.plug_in()
        await until_ready(far)
        again = await http.post(PATH, json=LOW)
    assert [a.status_code for a in answers] == [503] * len(answers)
    assert {error_of(a)["code"] for a in answers} == {"database_unavailable"}
    assert again.status_code == 200
    assert len(stub.calls) == 2
    assert await far.ledger_total() == sum(line.cost_nano_usd for line in stub.bill)


async def test_a_key_revoked_during_the_outage_is_refused_after_it(
    far: Served, cable: Cable
) -> None:
    key = await far.key()
    async with far.http(key) as http:
        assert (await http.get("/v1/models")).status_code == 200
        await cable.cut()
        await far.owner_sql("UPDATE api_key SET revoked_at = now() WHERE id = :id", id=key.id)
        await cable.plug_in()
        await until_ready(far)
        async with asyncio.timeout(BACK_WITHIN_SECONDS):
            while (response := await http.get("/v1/models")).status_code != 401:
                pass
    assert error_of(response)["code"] == "invalid_api_key"
