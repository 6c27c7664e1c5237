"""Callers that are not cached are found in few statements, with everything a request needs."""

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.db.cache import Cache, RecordedChanges
from gateway.db.engine import Database
from gateway.domain import Caller
from gateway.tenancy.credentials import Credentials
from gateway.tenancy.key_lookup import CallerCaches, KeyLookup
from gateway.tenancy.refused_keys import RefusedKeys
from gateway.vault.sealing import Vault
from tests.harness import Served, owner_connections
from tests.limits_helpers import limit

TENANTS = 20
POLLED_WITHIN_SECONDS = 20
"""Four times the interval of the poll, with patience for a busy machine."""


class Statements:
    """A database that takes single statements only, and counts them."""

    def __init__(self, real: Database) -> None:
        self._real = real
        self.count = 0
        self.asked = asyncio.Event()

    async def call(self, statement: str, parameters: Mapping[str, object] | None = None) -> Any:
        self.count += 1
        self.asked.set()
        return await self._real.call(statement, parameters)


class Worker:
    """The look-ups of a worker that has cached nothing yet."""

    def __init__(self, served: Served, *, max_entries: int = 100) -> None:
        core = served.gateway.core
        self.database = Statements(core.database)
        self.caches = CallerCaches(
            Cache(ttl_seconds=60, max_entries=max_entries, load_seconds=5),
            Cache(ttl_seconds=60, max_entries=max_entries, load_seconds=5),
            Cache(ttl_seconds=60, max_entries=max_entries, load_seconds=5),
        )
        self.keys = KeyLookup(
            self.database,  # type: ignore[arg-type]  # a fake
            core.secrets,
            self.caches,
            RefusedKeys(core.database, max_delay_seconds=0),
            seconds=60,
        )
        self.credentials = Credentials(
            self.database,  # type: ignore[arg-type]  # a fake
            Vault(core.vault.master_keys),
            {},
            self.caches.credentials,
        )

    async def caller(self, key: str) -> Caller:
        found = await self.keys.authenticate(key)
        assert isinstance(found, Caller)
        return found


async def test_first_requests_of_many_tenants_share_a_statement(served: Served) -> None:
    tenants = [await served.tenant(f"tenant {number}") for number in range(TENANTS)]
    keys = [(await served.key(tenant_id=one)).secret.reveal() for one in tenants]
    worker = Worker(served)
    found = await asyncio.gather(*(worker.caller(key) for key in keys))
    assert [caller.tenant_id for caller in found] == tenants
    assert worker.database.count == 1


async def test_limits_and_credentials_are_read_with_the_key(served: Served) -> None:
    owner, alice = await served.key(), await served.key(user="alice")
    await limit(served, "requests", 50)
    for key, secret in ((owner, "sk-of-the-tenant-1234"), (alice, "sk-of-alice-12345678")):
        async with served.http(key) as http:
            stored = await http.put("/v1/credentials/openai", json={"secret": secret})
            assert stored.status_code == 200
    worker = Worker(served)
    secrets = {}
    for name, key in (("tenant", owner), ("user", alice)):
        caller = await worker.caller(key.secret.reveal())
        assert [(one.owner, one.kind, one.value) for one in caller.limits] == [
            ("tenant", "requests", 50)
        ]
        choice = await worker.credentials.choose(caller, "openai")
        assert choice.owner == name
        secrets[name] = (await worker.credentials.open(choice, "openai")).reveal()
    assert secrets == {"tenant": "sk-of-the-tenant-1234", "user": "sk-of-alice-12345678"}
    assert worker.database.count == 2


async def test_the_least_recently_used_caller_is_read_again(served: Served) -> None:
    first, second, third = [(await served.key()).secret.reveal() for _ in range(3)]
    worker = Worker(served, max_entries=2)
    for key in (first, second, first, third, first):
        await worker.caller(key)
    assert worker.database.count == 3
    await worker.caller(second)
    assert worker.database.count == 4
    assert len(worker.caches.by_key) == 2


async def test_a_credential_changed_while_the_key_is_read_is_read_again(served: Served) -> None:
    key = await served.key()
    worker = Worker(served)
    reading = asyncio.create_task(worker.caller(key.secret.reveal()))
    await worker.database.asked.wait()
    worker.caches.credentials.clear(str(served.tenant_id))
    caller = await reading
    assert len(worker.caches.credentials) == 0
    async with served.http(key) as http:
        await http.put("/v1/credentials/openai", json={"secret": "sk-stored-meanwhile"})
    choice = await worker.credentials.choose(caller, "openai")
    assert (await worker.credentials.open(choice, "openai")).reveal() == "sk-stored-meanwhile"


async def test_changes_are_read_in_whatever_order_they_commit(served: Served) -> None:
    add = "INSERT INTO change (tag) VALUES ($1)"
    async with owner_connections(served.gateway.settings, 3) as (reading, slow, quick):
        changes = RecordedChanges(reading)
        unfinished = slow.transaction()
        await unfinished.start()
        await slow.execute(add, "first")
        assert await changes.poll() == set()
        await quick.execute(add, "second")
        assert await changes.poll() == {"second"}
        assert await changes.poll() == set()
        await unfinished.commit()
        assert await changes.poll() == {"first"}
        await quick.execute("INSERT INTO change (tag) SELECT 'many' FROM generate_series(1, 1001)")
        assert await changes.poll() == {None}


async def test_a_revocation_whose_notification_is_lost_is_polled(served: Served) -> None:
    key = await served.key()
    async with served.http(key) as http:
        assert (await http.get("/v1/models")).status_code == 200
        # As the triggers do, without the notification.
        await served.owner_sql("ALTER TABLE api_key DISABLE TRIGGER USER")
        await served.owner_sql("UPDATE api_key SET revoked_at = now() WHERE id = :id", id=key.id)
        await served.owner_sql("INSERT INTO change (tag) VALUES (:tag)", tag=str(served.tenant_id))
        async with asyncio.timeout(POLLED_WITHIN_SECONDS):
            while (await http.get("/v1/models")).status_code == 200:
                pass
