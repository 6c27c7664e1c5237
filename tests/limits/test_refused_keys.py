"""Refused keys are counted, slowed, audited and cheap; valid keys are not affected."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from prometheus_client import REGISTRY

from gateway.config import Settings
from gateway.db.cache import Cache
from gateway.db.engine import Database, DatabaseUnavailable, OperatorSession
from gateway.domain import new_id
from gateway.errors import Unauthenticated
from gateway.tenancy import admin_keys, refused_keys
from gateway.tenancy.key_lookup import (
    MAX_UNKNOWN,
    UNKNOWN_SECONDS,
    CallerCaches,
    KeyLookup,
    UnknownKeys,
)
from gateway.tenancy.refused_keys import RefusedKeys, source_of
from gateway.vault import key_format
from tests.admin_helpers import ROOT, admin_secret, entries
from tests.harness import Served, make_settings, served_gateway

ADMIN_ROUTE = f"{ROOT}/tenants"
HEARD_WITHIN_SECONDS = 5
"""Before the unknown keys are forgotten by themselves (10 s), with patience for a busy machine."""


class WatchedDatabase:
    """A database that counts statements and the keys of each, and can be made to fail."""

    def __init__(self, real: Database) -> None:
        self._real = real
        self.calls = 0
        self.most_at_once = 0
        self.is_away = False

    async def call(self, statement: str, parameters: Mapping[str, object] | None = None) -> Any:
        self.calls += 1
        digests = (parameters or {}).get("digests", [])
        assert isinstance(digests, list)
        self.most_at_once = max(self.most_at_once, len(digests))
        return await self._real.call(statement, parameters)

    def operator(self) -> AbstractAsyncContextManager[OperatorSession]:
        if self.is_away:
            raise DatabaseUnavailable
        return self._real.operator()


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def caches() -> CallerCaches:
    return CallerCaches(
        Cache(ttl_seconds=30, max_entries=100, load_seconds=5),
        Cache(ttl_seconds=30, max_entries=100, load_seconds=5),
        Cache(ttl_seconds=30, max_entries=100, load_seconds=5),
    )


def bad_key(kind: key_format.Kind = "admin") -> str:
    return key_format.new_key(kind).reveal()


def refused_total(kind: str) -> float:
    return REGISTRY.get_sample_value("gateway_keys_refused_total", {"kind": kind}) or 0.0


async def ask(served: Served, key: str, path: str = ADMIN_ROUTE) -> tuple[int, float]:
    """The status of an answer and its duration."""
    async with served.http(key) as http:
        started = time.monotonic()
        status = (await http.get(path)).status_code
        return status, time.monotonic() - started


@pytest.fixture
async def slowing(settings: Settings) -> AsyncIterator[Served]:
    """A gateway that slows refused admin keys, by one second at most."""
    assert settings.database_url is not None
    own = make_settings(
        settings.database_url.get_secret_value(),
        settings.data_dir,
        refused_key_max_delay_seconds=1,
    )
    async with served_gateway(own) as running:
        yield running


async def test_refused_keys_are_counted_by_kind(served: Served) -> None:
    names = ("admin", "live", "test", "malformed")
    before = {kind: refused_total(kind) for kind in names}
    for key in (bad_key(), "igw_admin_x", bad_key("live"), bad_key("test"), "sk-1", "igw_live_1"):
        assert (await ask(served, key))[0] == 401
    counts = {kind: refused_total(kind) - before[kind] for kind in names}
    assert counts == {"admin": 2, "live": 1, "test": 1, "malformed": 2}


async def test_refused_admin_keys_wait_longer_each_time_and_good_keys_never(
    slowing: Served,
) -> None:
    waits = [(await ask(slowing, bad_key()))[1] for _ in range(5)]
    for wait, least in zip(waits, (0.1, 0.2, 0.4, 0.8, 1.0), strict=True):
        assert least <= wait
    tasks = [asyncio.create_task(ask(slowing, bad_key())) for _ in range(10)]
    key = (await slowing.key()).secret.reveal()
    for good, path in ((admin_secret(slowing), ADMIN_ROUTE), (key, "/v1/models")) * 3:
        status, _ = await ask(slowing, good, path)
        assert status == 200
    # They are answered while those that were refused before them still wait.
    assert not any(task.done() for task in tasks)
    assert {status for status, _ in await asyncio.gather(*tasks)} == {401}


async def test_requests_beyond_the_waiting_bound_are_refused_at_once(slowing: Served) -> None:
    for _ in range(4):
        await ask(slowing, bad_key())
    answers = await asyncio.gather(*(ask(slowing, bad_key()) for _ in range(100)))
    statuses = [status for status, _ in answers]
    assert set(statuses) == {401, 429}
    assert statuses.count(401) <= refused_keys.MAX_WAITING
    assert (await ask(slowing, admin_secret(slowing)))[0] == 200


async def test_an_address_is_forgiven_after_a_minute(served: Served) -> None:
    clock = Clock()
    refused = RefusedKeys(served.gateway.database, max_delay_seconds=0.4, clock=clock)

    async def wait() -> float:
        started = time.monotonic()
        await refused.refuse("admin", "192.0.2.1")
        return time.monotonic() - started

    assert [await wait() for _ in range(3)][2] >= 0.4
    clock.now += refused_keys.FORGIVEN_AFTER_SECONDS + 1
    assert 0.1 <= await wait() < 0.2
    await refused.close()


async def test_the_trail_has_one_row_for_each_address_and_minute(served: Served) -> None:
    refused = RefusedKeys(served.gateway.database, max_delay_seconds=0)
    before = len(await entries(served))
    for number in range(300):
        await refused.refuse("admin", f"192.0.2.{number % 3}")
        await refused.refuse("live", "192.0.2.77")
    await refused.audit()
    await refused.audit()
    found = (await entries(served))[before:]
    assert {entry["action"] for entry in found} == {"operator_key.refused"}
    counts = {entry["object_id"]: entry["after"]["count"] for entry in found}
    assert counts == {"192.0.2.0": 100, "192.0.2.1": 100, "192.0.2.2": 100}
    assert found[0]["actor"] == {"type": "gateway", "id": "gateway", "name": None}


async def test_many_addresses_fill_neither_the_trail_nor_the_memory(served: Served) -> None:
    refused = RefusedKeys(served.gateway.database, max_delay_seconds=0)
    before = len(await entries(served))
    for number in range(5000):
        await refused.refuse("admin", f"2001:db8:{number:x}::1")
    await refused.audit()
    found = (await entries(served))[before:]
    assert len(found) == refused_keys.MAX_AUDITED_SOURCES + 1
    assert sum(entry["after"]["count"] for entry in found) == 5000
    assert len(refused._sources) <= refused_keys.MAX_SOURCES  # noqa: SLF001 - the bound itself


async def test_refusals_that_could_not_be_audited_are_audited_later(served: Served) -> None:
    database = WatchedDatabase(served.gateway.database)
    refused = RefusedKeys(database, max_delay_seconds=0)  # type: ignore[arg-type]  # a fake
    before = len(await entries(served))
    await refused.refuse("admin", "192.0.2.9")
    database.is_away = True
    with pytest.raises(DatabaseUnavailable):
        await refused.audit()
    await refused.refuse("admin", "192.0.2.9")
    await refused.close()
    database.is_away = False
    await refused.audit()
    [entry] = (await entries(served))[before:]
    assert (entry["object_id"], entry["after"]["count"]) == ("192.0.2.9", 2)


async def test_the_gateway_audits_pending_refusals_when_it_ends(
    served: Served, settings: Settings
) -> None:
    async with served_gateway(settings) as other:
        for _ in range(3):
            await ask(other, bad_key())
    [entry] = await entries(served, action="operator_key.refused")
    assert (entry["object_id"], entry["after"]["count"]) == ("127.0.0.1", 3)


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("", "unknown"),
        ("x" * 500, "x" * 64),
    ],
)
def test_an_address_counts_with_its_network(address: str, source: str) -> None:
    assert source_of(address) == source


async def test_an_unknown_key_is_looked_up_once(served: Served) -> None:
    database = WatchedDatabase(served.gateway.database)
    lookup = KeyLookup(
        database,  # type: ignore[arg-type]  # a fake
        served.gateway.core.secrets,
        caches(),
        RefusedKeys(served.gateway.database, max_delay_seconds=0),
        seconds=60,
    )
    for kind in ("live", "admin"):
        database.calls = 0
        key = key_format.new_key(kind).reveal()
        for _ in range(50):
            with pytest.raises(Unauthenticated):
                await lookup.authenticate(key, address="192.0.2.1")
        # The key, and whether there is a pepper that is not known yet.
        assert database.calls == 2
    good = (await served.key()).secret.reveal()
    for _ in range(50):
        await lookup.authenticate(good, address="192.0.2.1")
    assert database.calls == 3


async def test_a_key_of_another_form_or_checksum_is_never_looked_up(served: Served) -> None:
    database = WatchedDatabase(served.gateway.database)
    lookup = KeyLookup(
        database,  # type: ignore[arg-type]  # a fake
        served.gateway.core.secrets,
        caches(),
        RefusedKeys(served.gateway.database, max_delay_seconds=0),
        seconds=60,
    )
    good = bad_key("live")
    mistyped = good[:-1] + ("1" if good.endswith("0") else "0")
    bodies = ["igw_guest_" + good[9:-6], good[:-7], good[:-6] + "0", "igw_live_" + "é" * 30]
    for key in (mistyped, *(body + key_format.checksum(body) for body in bodies), "sk-1", ""):
        with pytest.raises(Unauthenticated):
            await lookup.authenticate(key, address="192.0.2.1")
    assert database.calls == 0


async def test_few_keys_of_an_address_that_guesses_are_looked_up_at_once(served: Served) -> None:
    database = WatchedDatabase(served.gateway.database)
    lookup = KeyLookup(
        database,  # type: ignore[arg-type]  # a fake
        served.gateway.core.secrets,
        caches(),
        RefusedKeys(served.gateway.database, max_delay_seconds=0),
        seconds=60,
    )

    async def guess(address: str) -> None:
        with pytest.raises(Unauthenticated):
            await lookup.authenticate(bad_key("live"), address=address)

    for _ in range(refused_keys.SUSPECT_AFTER):
        await guess("192.0.2.1")
    database.most_at_once = 0
    await asyncio.gather(*(guess("192.0.2.1") for _ in range(20)))
    assert database.most_at_once == refused_keys.SUSPECTS_LOOKUPS
    database.most_at_once = 0
    await asyncio.gather(*(guess("192.0.2.2") for _ in range(6)))
    assert database.most_at_once == 6


async def test_a_key_that_was_unknown_works_as_soon_as_it_is_made(
    served: Served, settings: Settings
) -> None:
    admin_key, live_key = key_format.new_key("admin"), bad_key("live")
    model = await served.key()
    async with served_gateway(settings) as other:
        for gateway in (served, other):
            assert (await ask(gateway, admin_key.reveal()))[0] == 401
            assert (await ask(gateway, live_key, "/v1/models"))[0] == 401
        pepper = other.gateway.core.pepper
        async with other.gateway.database.operator() as session:
            await admin_keys.create(
                session, "late", pepper=pepper, origin="command", secret=admin_key
            )
        await served.owner_sql(
            "WITH entry AS ("
            " INSERT INTO key_directory (digest, tenant_id, api_key_id)"
            " SELECT :digest, tenant_id, :new FROM api_key WHERE id = :model)"
            " INSERT INTO api_key (id, root_id, tenant_id, last4, livemode, scopes)"
            " SELECT :new, :new, tenant_id, last4, livemode, scopes FROM api_key"
            " WHERE id = :model",
            new=new_id(),
            digest=key_format.digest(pepper, live_key),
            model=model.id,
        )
        for gateway in (served, other):
            for key, path in ((admin_key.reveal(), ADMIN_ROUTE), (live_key, "/v1/models")):
                async with asyncio.timeout(HEARD_WITHIN_SECONDS):
                    while (await ask(gateway, key, path))[0] != 200:
                        pass


def test_unknown_digests_are_bounded_in_number_and_time() -> None:
    clock = Clock()
    unknown = UnknownKeys(clock)
    for number in range(MAX_UNKNOWN + 10):
        unknown.add(number.to_bytes(4), epoch=unknown.epoch)
    assert (9).to_bytes(4) not in unknown
    assert (10).to_bytes(4) in unknown
    clock.now += UNKNOWN_SECONDS
    assert (10).to_bytes(4) not in unknown


def test_a_key_looked_up_before_a_change_is_not_cached_as_unknown() -> None:
    unknown = UnknownKeys(Clock())
    epoch = unknown.epoch
    unknown.clear()
    unknown.add(b"digest", epoch=epoch)
    assert b"digest" not in unknown
