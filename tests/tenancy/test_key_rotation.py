"""Keys at rest, replaced while gateways serve: data keys, the pepper, the link key."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from gateway.config import Settings
from gateway.db.addresses import database_url
from gateway.db.cache import Cache
from gateway.domain import Caller
from gateway.errors import Forbidden, InvalidRequest
from gateway.library.links import LinkSigner
from gateway.tenancy import admin_keys, api_keys, credentials
from gateway.tenancy.credentials import Credentials
from gateway.vault import gateway_secrets, key_format, key_status
from gateway.vault.rotation import KEPT_SECONDS, retire_data_keys, rotate_data_keys
from gateway.vault.sealing import DataKeyMissing, Vault
from gateway.webhooks import sealing
from gateway.webhooks.sealing import SealedSecret
from tests.admin_helpers import ROOT, admin, admin_secret, created
from tests.forks import fork_gateway
from tests.harness import Served, process_environment, served_gateway
from tests.stub_openai import Stub
from tests.tenancy.test_vault import TENANT_SECRET, USER_SECRET, all_serve, call, store

RESEALERS = (credentials.reseal, sealing.reseal, sealing.reseal_house)
HEARD_WITHIN_SECONDS = 20
HOOK = {"url": "https://93.184.216.34/gateway"}


async def versions(served: Served) -> dict[str, list[int]]:
    """The versions of each tenant's data keys, by its name."""
    rows = await served.owner_sql(
        "SELECT t.name, array_agg(d.version ORDER BY d.version) AS versions"
        " FROM data_key d JOIN tenant t ON t.id = d.tenant_id GROUP BY t.name"
    )
    return {row.name: list(row.versions) for row in rows}


async def sealed_bytes(served: Served) -> set[bytes]:
    rows = await served.owner_sql(
        "SELECT sealed FROM credential UNION ALL SELECT sealed FROM webhook_secret"
    )
    return {bytes(row.sealed) for row in rows}


async def signing_secrets(served: Served) -> list[str]:
    """The signing secrets of all webhooks, opened as the dispatcher opens them."""
    rows = await served.owner_sql("SELECT * FROM webhook_secret ORDER BY id")
    opened = [
        await served.gateway.core.webhook_sealing.open(
            served.gateway.database,
            SealedSecret(
                UUID(str(row.id)),
                None if row.tenant_id is None else UUID(str(row.tenant_id)),
                UUID(str(row.endpoint_id)),
                row.data_key_version,
                row.sealed,
            ),
        )
        for row in rows
    ]
    return [secret.reveal() for secret in opened]


async def until(condition: Callable[[], bool]) -> None:
    """Give the gateways of this process turns until they have heard of a change."""
    async with asyncio.timeout(HEARD_WITHIN_SECONDS):
        while not condition():  # noqa: ASYNC110 - nothing says when a worker has heard
            await asyncio.sleep(0)


async def waiting(served: Served) -> bool:
    """Tell if a statement waits for a lock on a row."""
    rows = await served.owner_sql(
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )
    return bool(rows)


async def unfinished(served: Served) -> int:
    rows = await served.owner_sql("SELECT id FROM key_rotation WHERE finished_at IS NULL")
    return len(rows)


async def let_old_keys_go(served: Served) -> int:
    """Remove replaced data keys as if the time for which they stay were over."""
    await served.owner_sql(
        "UPDATE data_key SET created_at = created_at - make_interval(secs => :seconds)",
        seconds=KEPT_SECONDS + 1,
    )
    async with served.gateway.database.operator() as session:
        return await retire_data_keys(session)


# Data keys


async def test_data_keys_are_replaced_while_two_gateways_serve(
    served: Served, settings: Settings, stub: Stub
) -> None:
    core = served.gateway.core
    key, alice = await served.key(), await served.key(user="alice")
    quiet = await served.key(tenant_id=await served.tenant("quiet"))
    await store(served, key, TENANT_SECRET)
    await store(served, alice, USER_SECRET)
    await store(served, quiet, "sk-quiet-canary-55556666")
    async with admin(served) as http:
        hooks = [
            created(await http.post("/webhooks", json=HOOK))["secret"],
            created(await http.post(f"/tenants/{served.tenant_id}/webhooks", json=HOOK))["secret"],
        ]
    before = await sealed_bytes(served)
    assert sorted(await signing_secrets(served)) == sorted(hooks)
    async with served_gateway(settings) as other:
        assert await all_serve(stub, call(other, key)) == [TENANT_SECRET]
        rotating = asyncio.create_task(rotate_data_keys(core.database, core.vault, RESEALERS))
        calls = [call(gateway, key) for gateway in (served, other) for _ in range(5)]
        assert await all_serve(stub, *calls) == [TENANT_SECRET] * 10
        done = await rotating
        assert (done.tenants, done.secrets, done.unreadable, done.resumed) == (2, 5, (), False)
        assert await versions(served) == {"acme": [1, 2], "quiet": [1, 2]}
        assert before.isdisjoint(await sealed_bytes(served))
        async with core.database.operator() as session:  # a worker may have the old one in hand
            assert await retire_data_keys(session) == 0
        assert await let_old_keys_go(served) == 2
        assert await versions(served) == {"acme": [2], "quiet": [2]}
        for gateway in (served, other):
            assert await all_serve(stub, call(gateway, alice)) == [USER_SECRET]
            assert await all_serve(stub, call(gateway, quiet)) == ["sk-quiet-canary-55556666"]
            assert sorted(await signing_secrets(gateway)) == sorted(hooks)
        # Secrets stored from now on are sealed with the new keys.
        await store(other, key, "sk-after-rotation-9999")
        assert await all_serve(stub, call(served, key)) == ["sk-after-rotation-9999"]
    again = await rotate_data_keys(core.database, core.vault, RESEALERS)
    assert (again.tenants, again.resumed) == (2, False)
    assert await versions(served) == {"acme": [2, 3], "quiet": [2, 3]}


async def test_a_stale_ciphertext_is_read_again(served: Served) -> None:
    key = await served.key()
    await store(served, key, TENANT_SECRET)
    core = served.gateway.core
    # A worker that hears of no change, and has opened nothing yet.
    deaf = Credentials(
        core.database,
        Vault(core.vault.master_keys),
        {},
        Cache(ttl_seconds=60, max_entries=10, load_seconds=5),
    )
    caller = await served.gateway.api_keys.authenticate(key.secret.reveal())
    assert isinstance(caller, Caller)
    chosen = await deaf.choose(caller, "openai")
    async with core.database.tenant(served.tenant_id) as session:
        _, tested = await credentials.start_test(
            session, served.tenant_id, user_id=None, provider="openai"
        )
    await rotate_data_keys(core.database, core.vault, RESEALERS)
    assert await let_old_keys_go(served) == 1
    assert await deaf.choose(caller, "openai") == chosen
    # By the resealed row, and by the data key that was read with it.
    assert (await deaf.open(tested, "openai")).reveal() == TENANT_SECRET
    assert (await deaf.open(chosen, "openai")).reveal() == TENANT_SECRET


async def test_a_killed_rotation_goes_on_where_it_was(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    tenants = [await served.tenant(f"tenant {number}") for number in range(6)]
    keys = [await served.key(tenant_id=tenant) for tenant in tenants]
    for number, key in enumerate(keys):
        await store(served, key, f"sk-tenant-canary-{number:08d}")
    assert settings.database_url is not None
    # The last credential is being changed, so that the rotation stops before it.
    url = database_url(settings.database_url.get_secret_value()).set(drivername="postgresql")
    other = await asyncpg.connect(url.render_as_string(hide_password=False))
    lock = other.transaction()
    await lock.start()
    await other.execute("SELECT 1 FROM credential WHERE tenant_id = $1 FOR UPDATE", tenants[-1])
    rotation = fork_gateway(
        ["master-key", "rotate", "--data-keys"],
        process_environment(settings),
        out=tmp_path / "out",
        err=tmp_path / "err",
    )
    async with asyncio.timeout(60):
        while (await versions(served)).get("tenant 5") != [1, 2] or not await waiting(served):
            assert rotation.poll() is None, (tmp_path / "err").read_text()
    rotation.kill()
    rotation.wait(30)
    await other.close()
    assert await unfinished(served) == 1
    core = served.gateway.core
    done = await rotate_data_keys(core.database, core.vault, RESEALERS)
    assert (done.tenants, done.resumed) == (0, True)
    assert await unfinished(served) == 0
    # No tenant was given a second new key.
    assert await versions(served) == {f"tenant {number}": [1, 2] for number in range(6)}
    assert await let_old_keys_go(served) == 6
    for number, key in enumerate(keys):
        assert await all_serve(stub, call(served, key)) == [f"sk-tenant-canary-{number:08d}"]


async def test_a_secret_that_does_not_open_is_left_and_named(served: Served, stub: Stub) -> None:
    key, other = await served.key(), await served.key(tenant_id=await served.tenant("other"))
    await store(served, key, TENANT_SECRET)
    await store(served, other, USER_SECRET)
    await served.owner_sql(
        "UPDATE credential SET sealed = set_bit(sealed, 200, 1 - get_bit(sealed, 200))"
        " WHERE tenant_id <> :acme",
        acme=served.tenant_id,
    )
    core = served.gateway.core
    done = await rotate_data_keys(core.database, core.vault, RESEALERS)
    assert (done.tenants, done.secrets, len(done.unreadable)) == (2, 1, 1)
    # Its data key stays: a backup may hold the row as it was.
    assert await let_old_keys_go(served) == 1
    assert await versions(served) == {"acme": [2], "other": [1, 2]}
    assert await all_serve(stub, call(served, key)) == [TENANT_SECRET]


async def test_an_opened_data_key_leaves_memory(served: Served) -> None:
    key = await served.key()
    await store(served, key, TENANT_SECRET)
    [row] = await served.owner_sql("SELECT * FROM credential")
    vault = Vault(served.gateway.core.vault.master_keys, data_key_seconds=0.2)
    place = ("credential", row.id, row.user_id, row.provider, row.version)

    async def opened() -> str:
        database = served.gateway.database
        secret = await vault.open_for_tenant(database, served.tenant_id, 1, row.sealed, *place)
        return secret.reveal()

    assert await opened() == TENANT_SECRET
    assert len(vault.opened) == 1
    await served.owner_sql("UPDATE data_key SET version = 7")
    assert await opened() == TENANT_SECRET
    await until(lambda: len(vault.opened) == 0)
    with pytest.raises(DataKeyMissing):
        await opened()


# The pepper


async def peppers_of(served: Served) -> list[int]:
    """Under which pepper each key of tenants and operators is known."""
    rows = await served.owner_sql(
        "SELECT pepper_version FROM key_directory UNION ALL SELECT pepper_version FROM operator_key"
    )
    return sorted(row.pepper_version for row in rows)


async def roll_pepper(served: Served) -> None:
    async with served.gateway.database.operator() as session:
        await gateway_secrets.roll_pepper(session, served.gateway.core.vault)


async def status_of(served: Served, secret: str, path: str = "/v1/models") -> int:
    async with served.http(secret) as http:
        return (await http.get(path)).status_code


async def test_each_key_takes_a_new_pepper_at_its_next_use(
    served: Served, settings: Settings
) -> None:
    keys = [(await served.key()).secret.reveal() for _ in range(3)]
    operator = admin_secret(served)
    for key in keys:
        assert await status_of(served, key) == 200
    await roll_pepper(served)
    async with served_gateway(settings) as other:
        assert other.gateway.core.pepper.version == 2
        new = (await other.key()).secret.reveal()
        # One gateway was open when the pepper was rolled, the other was not.
        for gateway in (served, other):
            for key in (keys[0], keys[1], new):
                assert await status_of(gateway, key) == 200
            assert await status_of(gateway, operator, f"{ROOT}/tenants") == 200
        await until(lambda: served.gateway.core.pepper.version == 2)
        for gateway in (served, other):
            for key in (keys[0], keys[1], new):
                assert await status_of(gateway, key) == 200
            assert await status_of(gateway, operator, f"{ROOT}/tenants") == 200
        # The key that was not used is still on the old one.
        assert await peppers_of(served) == [1, 2, 2, 2, 2]
        async with served.gateway.database.operator() as session:
            assert await key_status.count_on_old_peppers(session, 2) == 1
        assert await status_of(other, keys[2]) == 200
        assert await peppers_of(served) == [2] * 5


async def test_keys_are_used_by_many_at_once_while_the_pepper_is_rolled(
    served: Served, settings: Settings
) -> None:
    keys = [(await served.key()).secret.reveal() for _ in range(8)]
    statuses: list[int] = []
    done = asyncio.Event()

    async def use(gateway: Served, key: str) -> None:
        async with gateway.http(key) as http:
            while not done.is_set():
                statuses.append((await http.get("/v1/models")).status_code)

    def more_than(count: int) -> Callable[[], bool]:
        return lambda: len(statuses) > count

    async with served_gateway(settings) as other:

        def both_know(version: int) -> Callable[[], bool]:
            return lambda: {one.gateway.core.pepper.version for one in (served, other)} == {version}

        users = [asyncio.create_task(use(one, key)) for one in (served, other) for key in keys]
        for version in (2, 3, 4):
            before = len(statuses)
            await roll_pepper(served)
            await until(both_know(version))
            await until(more_than(before + 200))
        done.set()
        await asyncio.gather(*users)
    assert set(statuses) == {200}
    assert len(statuses) > 600
    assert (await peppers_of(served)).count(4) >= 8


async def test_a_revoked_key_stays_revoked_under_a_new_pepper(
    served: Served, settings: Settings
) -> None:
    key = await served.key()
    async with served.gateway.database.operator() as session:
        await api_keys.revoke(session, key.id)
    await roll_pepper(served)
    async with served_gateway(settings) as other:
        for gateway in (served, other):
            assert await status_of(gateway, key.secret.reveal()) == 401
            assert await status_of(gateway, key_format.new_key("live").reveal()) == 401


async def test_an_old_pepper_is_retired_and_keys_that_need_it_end(
    served: Served, settings: Settings
) -> None:
    used, unused = [(await served.key()).secret.reveal() for _ in range(2)]
    vault = served.gateway.core.vault
    async with served.gateway.database.operator() as session:
        with pytest.raises(InvalidRequest, match="one pepper"):
            await gateway_secrets.retire_peppers(session, vault, ended_keys=0)
        await gateway_secrets.roll_pepper(session, vault)
        with pytest.raises(InvalidRequest, match="younger"):
            await gateway_secrets.retire_peppers(session, vault, ended_keys=0)
    async with served_gateway(settings) as other:
        assert await status_of(other, used) == 200
        assert await status_of(other, admin_secret(served), f"{ROOT}/tenants") == 200
    await served.owner_sql(
        "UPDATE sealed_secret SET created_at = now() - interval '2 days' WHERE name = 'pepper.2'"
    )
    async with served.gateway.database.operator() as session:
        # The gateway itself removes no pepper that a usable key needs.
        newest = await gateway_secrets.newest_pepper_version(session)
        left = await key_status.count_on_old_peppers(session, newest)
        assert (newest, left) == (2, 1)
        assert await gateway_secrets.retire_due(session, vault, is_pepper_unused=left == 0) == []
        assert await key_status.end_keys_on_old_peppers(session, 2) == 1
        assert await key_status.count_on_old_peppers(session, 2) == 0
        assert await gateway_secrets.retire_due(session, vault, is_pepper_unused=True) == [
            "pepper 1"
        ]
    async with served_gateway(settings) as other:
        assert [pepper.version for pepper in other.gateway.core.secrets.peppers] == [2]
        assert await status_of(other, used) == 200
        assert await status_of(other, unused) == 401
        assert await status_of(other, admin_secret(served), f"{ROOT}/tenants") == 200


async def test_the_settings_admin_key_is_known_under_an_older_pepper(
    served: Served, settings: Settings
) -> None:
    secret = key_format.new_key("admin")
    peppers = served.gateway.core.secrets.peppers
    for _ in range(2):
        async with served.gateway.database.operator() as session:
            await admin_keys.adopt_setting(session, secret, peppers=peppers)
        await roll_pepper(served)
        async with served_gateway(settings) as other:
            peppers = other.gateway.core.secrets.peppers
    rows = await served.owner_sql("SELECT id FROM operator_key WHERE origin = 'setting'")
    assert len(rows) == 1


# The link key

IMAGE_ID = "img_0"
PATH = "019aa5f2-7c00-7000-8000-000000000000/2026/11/28/img_0.png"


def links_of(served: Served) -> LinkSigner:
    return served.gateway.links


def opens(link: str, served: Served) -> bool:
    """Tell if a gateway accepts this link's signature."""
    try:
        return links_of(served).own_path(link, now=int(time.time())) == PATH
    except Forbidden:
        return False


async def test_links_of_the_old_key_are_accepted_until_the_longest_has_ended(
    served: Served, settings: Settings
) -> None:
    until_time = int(time.time()) + 3600
    old = links_of(served).sign(IMAGE_ID, PATH, until_time)
    async with served.gateway.database.operator() as session:
        version, used_from = await gateway_secrets.roll_link_key(
            session, served.gateway.core.vault, lifetime=timedelta(days=1)
        )
    assert version == 2
    assert used_from.timestamp() > time.time()
    async with served_gateway(settings) as other:
        # No worker signs with it before every worker has read it.
        early = links_of(other).sign(IMAGE_ID, PATH, until_time)
        assert early == old.replace(served.gateway.settings.public_url, links_of(other).public_url)
        await served.owner_sql(
            "UPDATE sealed_secret SET used_from = now() - interval '1 second'"
            " WHERE name = 'link_key.2'"
        )
        await until(lambda: links_of(served).sign(IMAGE_ID, PATH, until_time) != old)
        new = links_of(served).sign(IMAGE_ID, PATH, until_time)
        await until(lambda: opens(new, other))
        assert opens(old, served)
        assert opens(old, other)
        # A day and a little later the old key is over.
        secrets = other.gateway.core.secrets
        assert len(secrets.link_keys(time.time())) == 2
        assert len(secrets.link_keys(time.time() + 86_400 + 3600)) == 1
        await served.owner_sql(
            "UPDATE sealed_secret SET accepted_until = now() - interval '1 second'"
            " WHERE name = 'link_key'"
        )
        await until(lambda: not opens(old, served) and not opens(old, other))
        assert opens(new, served)
    async with served.gateway.database.operator() as session:
        assert await gateway_secrets.retire_due(
            session, served.gateway.core.vault, is_pepper_unused=False
        ) == ["link_key"]
    async with served_gateway(settings) as other:
        assert opens(new, other)
        assert not opens(old, other)


async def test_rolling_the_link_key_after_a_leak_ends_old_links_at_once(served: Served) -> None:
    until_time = int(time.time()) + 3600
    old = links_of(served).sign(IMAGE_ID, PATH, until_time)
    assert opens(old, served)
    async with served.gateway.database.operator() as session:
        await gateway_secrets.roll_link_key(session, served.gateway.core.vault, lifetime=None)
    await until(lambda: not opens(old, served))
    assert opens(links_of(served).sign(IMAGE_ID, PATH, until_time), served)


async def test_hashes_of_prompts_stay_equal_when_the_link_key_is_rolled(
    served: Served, settings: Settings
) -> None:
    before = served.gateway.core.secrets.prompt_key
    assert before == served.gateway.core.secrets.link_keys(time.time())[0]
    async with served.gateway.database.operator() as session:
        await gateway_secrets.roll_link_key(session, served.gateway.core.vault, lifetime=None)
    async with served_gateway(settings) as other:
        assert other.gateway.core.secrets.prompt_key == before
        assert other.gateway.core.secrets.signing_link_key(time.time()) != before


async def test_the_status_tells_versions_and_what_needs_them(served: Served) -> None:
    key = await served.key()
    await store(served, key, TENANT_SECRET)
    core = served.gateway.core
    await roll_pepper(served)
    await rotate_data_keys(core.database, core.vault, RESEALERS)
    async with core.database.operator() as session:
        found = await key_status.read_status(session, core.vault.master_keys.ids)
    shown = {(one.name, one.version): (one.state, one.needed_by) for one in found}
    assert shown == {
        ("master key", core.vault.master_keys.ids[0]): ("wraps", 9),
        ("data keys", "newest"): ("in use", 1),
        ("data keys", "replaced"): ("to be removed", 1),
        ("pepper", "2"): ("in use", 0),
        ("pepper", "1"): ("accepted", 2),
        ("link key", "1"): ("in use", None),
        ("prompt key", "1"): ("in use", None),
        ("console key", "1"): ("in use", None),
        ("webhook key", "2"): ("in use", None),
        ("webhook key", "1"): (shown["webhook key", "1"][0], None),
    }
    assert shown["webhook key", "1"][0].startswith("accepted until ")
