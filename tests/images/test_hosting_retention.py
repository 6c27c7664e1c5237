"""Retention of images: how long they are kept, the storage quota, and a tenant's own choices."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest

from gateway.config import Settings
from gateway.db import sweeps
from gateway.domain import Caller, TenantSettings
from gateway.errors import InvalidRequest, NotFound
from gateway.library.links import LinkKind
from gateway.library.retention import link_expiry, retention_seconds
from gateway.library.storage import thumbnail_path
from gateway.tenancy import tenants
from gateway.tenancy.api_keys import IssuedKey
from gateway.tenancy.tenants import Tenant
from tests.harness import Served, make_settings, owner_connections, secret_of
from tests.hosting_helpers import Hosted, files_in, hosted_gateway
from tests.money_helpers import eventually, until_waiting

files_only = pytest.mark.parametrize("place", ["files"], indirect=True)
YEAR_SECONDS = 31_536_000
COUNT = f"SELECT * FROM tenants_beyond_caps('{UUID(int=0)}', 100)"  # noqa: S608 - a constant


async def choose(served: Served, tenant: UUID | str | None = None, **choices: Any) -> Tenant:
    async with served.gateway.database.operator() as session:
        return await tenants.set_settings(session, str(tenant or served.tenant_id), **choices)


async def test_expired_images_are_swept_with_their_thumbnail_and_prompt(hosted: Hosted) -> None:
    key = await hosted.served.key()
    old = await hosted.put(key, prompt="a cat", prompt_hash=b"x" * 32)
    kept = await hosted.put(key, prompt="a dog")
    await hosted.get(hosted.link(old, LinkKind.THUMBNAIL))
    assert await hosted.files() == sorted([old.path, thumbnail_path(old.path), kept.path])
    await hosted.served.owner_sql("UPDATE image SET expires_at = now() WHERE id = :id", id=old.id)
    await hosted.served.sweep()
    assert await hosted.files() == await hosted.living() == [kept.path]
    gone, there = await hosted.row(old.id), await hosted.row(kept.id)
    assert (gone.prompt, gone.prompt_hash, there.prompt) == (None, None, "a dog")
    assert (gone.deleted_at is not None, there.deleted_at) == (True, None)


@files_only
async def test_images_that_were_stored_after_a_count_count_in_the_next(hosted: Hosted) -> None:
    key = await hosted.served.key()
    await choose(hosted.served, max_image_bytes=150)
    first = await hosted.put(key, b"x" * 100)
    await hosted.served.sweep()
    assert await hosted.living() == [first.path]
    second = await hosted.put(key, b"x" * 100)
    await hosted.served.sweep()
    assert await hosted.living() == [second.path]


@files_only
async def test_beyond_a_tenants_cap_the_oldest_images_go(hosted: Hosted) -> None:
    live, test = await hosted.served.key(), await hosted.served.key(livemode=False)
    other = await hosted.served.key(tenant_id=await hosted.served.tenant("other"))
    sizes = [(live, 400), (test, 300), (live, 200), (test, 100)]
    images = [(await hosted.put(key, b"x" * size)).id for key, size in sizes]
    untouched = await hosted.put(other, b"x" * 10_000)

    async def left() -> list[str]:
        await hosted.served.sweep()
        rows = await hosted.served.owner_sql(
            "SELECT id FROM image WHERE deleted_at IS NULL AND id <> :id ORDER BY created_at",
            id=untouched.id,
        )
        return [row.id for row in rows]

    expected = {None: 4, 1000: 4, 999: 3, 600: 3, 599: 2, 100: 1, 99: 0}
    for cap, count in expected.items():
        await choose(hosted.served, max_image_bytes=cap)
        assert await left() == images[len(images) - count :], cap
    assert await hosted.files() == []
    assert await hosted.files((await hosted.row(untouched.id)).tenant_id) == [untouched.path]


@files_only
async def test_stored_bytes_are_counted_once_however_images_come_and_go(hosted: Hosted) -> None:
    served = hosted.served
    key, other = await served.key(), await served.key(livemode=False)
    await choose(served, max_image_bytes=10_000)

    async def counted() -> int:
        """Sweep as if ten minutes had passed; return the counter."""
        for table, column in (("image", "created_at"), ("stored_bytes", "counted_to")):
            await served.owner_sql(
                f"UPDATE {table} SET {column} = {column} - interval '11 minutes'"  # noqa: S608
            )
        await served.sweep()
        await served.check_invariants()
        [row] = await served.owner_sql("SELECT size_bytes FROM stored_bytes")
        return int(row.size_bytes)

    images = [await hosted.put(key, b"x" * size) for size in (100, 200)]
    images.append(await hosted.put(other, b"x" * 400))
    assert await counted() == 700
    assert await counted() == 700
    async with served.http(key) as http:
        assert (await http.delete(f"/v1/images/{images[0].id}")).status_code == 200
    assert await counted() == 600
    await served.owner_sql("UPDATE image SET expires_at = now() WHERE id = :id", id=images[1].id)
    new = await hosted.put(key, b"x" * 50)
    async with served.http(key) as http:  # deleted before it was counted
        assert (await http.delete(f"/v1/images/{new.id}")).status_code == 200
    assert await counted() == 400
    await choose(served, max_image_bytes=399)
    assert await counted() == 0
    await choose(served, max_image_bytes=None)
    await hosted.put(key, b"x" * 900)
    await served.sweep()
    await choose(served, max_image_bytes=1000)
    assert await counted() == 900
    await served.owner_sql("UPDATE stored_bytes SET size_bytes = size_bytes + 1")
    [found] = await served.owner_sql("SELECT what FROM invariant_break")
    assert found.what == "stored bytes are not those of the images"
    await served.owner_sql("UPDATE stored_bytes SET size_bytes = size_bytes - 1")


@files_only
async def test_images_that_two_gateways_count_at_the_same_time_count_once(hosted: Hosted) -> None:
    served = hosted.served
    await choose(served, max_image_bytes=10_000)
    await served.sweep()
    await hosted.put(await served.key(), b"x" * 100)
    await served.owner_sql("UPDATE image SET created_at = created_at - interval '11 minutes'")
    async with owner_connections(served.gateway.settings, 4) as (other, watcher, *gateways):
        async with other.transaction():
            await other.execute("LOCK TABLE image")  # so that both begin before either is done
            counting = [asyncio.create_task(one.execute(COUNT)) for one in gateways]
            await until_waiting(watcher, "tenants_beyond_caps", *counting)
        await asyncio.gather(*counting)
    await served.check_invariants()
    [row] = await served.owner_sql("SELECT size_bytes FROM stored_bytes")
    assert row.size_bytes == 100


@files_only
async def test_an_image_made_exactly_ten_minutes_before_a_count_counts_once(
    hosted: Hosted,
) -> None:
    served, key = hosted.served, await hosted.served.key()
    await choose(served, max_image_bytes=150)
    await hosted.put(key, b"x" * 100)
    await served.owner_sql("UPDATE image SET created_at = now() - interval '11 minutes'")
    exact = await hosted.put(key, b"x" * 50)
    async with owner_connections(served.gateway.settings, 1) as (owner,), owner.transaction():
        # The time of a transaction stands still.
        await owner.execute(
            "UPDATE image SET created_at = now() - interval '10 minutes' WHERE id = $1", exact.id
        )
        assert [row["max_bytes"] for row in await owner.fetch(COUNT)] == [None]  # not beyond
    await served.sweep()
    for expected in (150, 100):
        [row] = await served.owner_sql("SELECT size_bytes FROM stored_bytes")
        assert row.size_bytes == expected
        async with served.http(key) as http:
            await http.delete(f"/v1/images/{exact.id}")


@files_only
async def test_a_tenant_with_a_storage_quota_of_zero_keeps_no_image(hosted: Hosted) -> None:
    await choose(hosted.served, max_image_bytes=0)
    image_id = await hosted.make(await hosted.served.key())
    await hosted.served.sweep()
    assert (await hosted.row(image_id)).deleted_at is not None
    assert await hosted.files() == []


async def test_an_image_due_for_deletion_is_claimed_by_one_of_many_workers(served: Served) -> None:
    async def claim(name: str, seconds: float) -> bool:
        async with served.gateway.database.operator() as session:
            return await sweeps.claim(session, name, seconds=seconds)

    claims = await asyncio.gather(*(claim("orphans", 3600) for _ in range(8)))
    assert sorted(claims) == [False] * 7 + [True]
    assert await claim("byte_caps", 0)
    assert await claim("byte_caps", 0)
    assert not await claim("unheard-of", 0)
    async with served.gateway.database.operator() as session:
        await sweeps.put_off(session, "orphans", seconds=0)
    assert await claim("orphans", 3600)


async def test_a_gateway_sweeps_by_itself(settings: Settings, tmp_path: Path) -> None:
    quick = settings.model_copy(update={"sweep_interval_seconds": 0.05, "orphan_age_seconds": 0})
    async with hosted_gateway(quick, files_in(tmp_path / "store")) as hosted:
        image = await hosted.put(await hosted.served.key())
        orphan = image.path.replace("img_", "img_0")
        await hosted.store.put(orphan, b"x")
        await choose(hosted.served, max_image_bytes=0)
        await hosted.served.owner_sql("UPDATE sweep SET due_at = now()")

        async def is_swept() -> bool:
            due = await hosted.served.owner_sql("SELECT name FROM sweep WHERE due_at <= now()")
            return due == [] and await hosted.files() == []

        await eventually(is_swept)


def test_a_tenants_retention_overrides_the_gateways() -> None:
    assert retention_seconds(TenantSettings(), default_seconds=100) == 100
    chosen = TenantSettings(image_retention_seconds=60)
    assert retention_seconds(chosen, default_seconds=100) == 60
    assert link_expiry(1000, link_seconds=50, image_expires_at=2000) == 1050
    assert link_expiry(1000, link_seconds=5000, image_expires_at=2000) == 2000


def test_images_are_kept_as_long_as_their_links_where_nothing_is_said(settings: Settings) -> None:
    assert settings.image_retention_seconds is None
    assert settings.resolved_image_retention_seconds == settings.image_ttl_seconds
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    kept = make_settings(url, settings.data_dir, image_retention_seconds=YEAR_SECONDS)
    assert kept.resolved_image_retention_seconds == YEAR_SECONDS


async def authenticated(served: Served, key: IssuedKey) -> Caller:
    caller = await served.gateway.api_keys.authenticate(secret_of(key))
    assert isinstance(caller, Caller)
    return caller


async def test_every_caller_carries_the_choices_of_its_tenant(served: Served) -> None:
    key = await served.key()
    other = await served.key(tenant_id=await served.tenant("other"))
    assert (await authenticated(served, key)).tenant_settings == TenantSettings()
    await choose(
        served,
        continuity=False,
        stores_prompts=True,
        image_retention_seconds=3600,
        max_image_bytes=5,
    )
    expected = TenantSettings(continuity=False, stores_prompts=True, image_retention_seconds=3600)

    async def is_known() -> bool:
        return (await authenticated(served, key)).tenant_settings == expected

    await eventually(is_known)
    assert (await authenticated(served, other)).tenant_settings == TenantSettings()


async def test_choices_change_one_by_one_and_back(served: Served) -> None:
    steps: list[dict[str, object]] = [
        {},
        {"stores_prompts": True},
        {"max_image_bytes": 2**63 - 1},
        {"image_retention_seconds": 60},
        {"stores_prompts": False, "continuity": False},
        {"max_image_bytes": None, "image_retention_seconds": None},
        {"continuity": True},
    ]
    state: dict[str, object] = {
        "continuity": True,
        "stores_prompts": False,
        "image_retention_seconds": None,
        "max_image_bytes": None,
    }
    for changes in steps:
        state |= changes
        tenant = await choose(served, "acme", **changes)
        assert {name: getattr(tenant, name) for name in state} == state
        async with served.gateway.database.operator() as session:
            assert await tenants.find(session, "acme") == tenant


async def test_an_invalid_choice_is_refused(served: Served) -> None:
    wrong: list[dict[str, Any]] = [
        {"image_retention_seconds": 59},
        {"image_retention_seconds": 315_360_001},
        {"image_retention_seconds": -1},
        {"max_image_bytes": -1},
        {"max_image_bytes": 2**63},
    ]
    for choice in wrong:
        with pytest.raises(InvalidRequest) as caught:
            await choose(served, **choice)
        assert caught.value.param in choice
    with pytest.raises(NotFound):
        await choose(served, "unknown", continuity=False)


@files_only
async def test_an_image_with_few_known_properties_is_settled(hosted: Hosted) -> None:
    served, key = hosted.served, await hosted.served.key(user="alice")
    [owner] = await served.owner_sql("SELECT * FROM api_key WHERE id = :id", id=key.id)
    file = {"id": "img_1_2", "path": "p", "media_type": "image/png", "size_bytes": 1}
    settlement = {
        "tenant_id": str(owner.tenant_id),
        "id": str(await hosted.reserve(owner)),
        "kind": "post",
        "amount_nano": 5,
        "outcome": "success",
        "stored": [file | {"ttl_seconds": 60}],
    }
    [settled] = await served.owner_sql(
        "SELECT result FROM settle(CAST(:settlements AS jsonb))",
        settlements=orjson.dumps([settlement]).decode(),
    )
    assert settled.result == "ok"
    row = await hosted.row("img_1_2")
    assert (row.width, row.height, row.prompt, row.prompt_hash) == (None,) * 4
    assert row.user_id == owner.user_id
