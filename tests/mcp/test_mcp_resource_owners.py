"""Resources are separate by tenant, user and mode; a deleted image is gone for all."""

from dataclasses import dataclass

import httpx2
import pytest

from gateway.domain import Scope
from gateway.tenancy.api_keys import IssuedKey
from tests.hosting_helpers import Hosted
from tests.mcp_helpers import (
    HISTORY,
    IMAGE,
    INVALID_PARAMS,
    MODEL,
    MODES,
    STORAGE,
    Message,
    post,
    read,
    read_json,
    recent_ids,
    refusal,
    resource_pages,
    told,
)

pytestmark = pytest.mark.parametrize("place", ["files"], indirect=True)
NOT_FOUND = (INVALID_PARAMS, "image_not_found", "image_id")
NEVER_CLEANED = {"last_cleanup_at": None, "last_cleanup_images": 0}
NO_SCOPE = (INVALID_PARAMS, "insufficient_scope", None)


@dataclass(frozen=True)
class Seen:
    """The images that a key sees, by each way to see them."""

    listed: set[str]
    recent: set[str]
    readable: set[str]
    counted: tuple[int, int]


async def seen_by(http: httpx2.AsyncClient, mode: str, ids: set[str]) -> Seen:
    """The images out of `ids` that a key can list, find in the history, read and count."""
    uris = [resource["uri"] for page in await resource_pages(http, mode) for resource in page]
    readable = set()
    for image_id in ids:
        answer = await post(http, Message("resources/read", {"uri": IMAGE + image_id}, mode))
        if "error" in answer.messages[-1]:
            assert told(answer.error) == NOT_FOUND
        else:
            readable.add(image_id)
    stats = await read_json(http, STORAGE, mode)
    return Seen(
        {uri.removeprefix(IMAGE) for uri in uris if uri.startswith(IMAGE)},
        set(await recent_ids(http, "?limit=100", mode)),
        readable,
        (stats["images"], stats["bytes"]),
    )


async def test_everyone_sees_their_own_images_and_no_others(hosted: Hosted) -> None:
    served = hosted.served
    other = await served.tenant("other")
    keys: dict[str, IssuedKey] = {
        "alice": await served.key(user="alice"),
        "bob": await served.key(user="bob"),
        "tenant": await served.key(),
        "alice in test mode": await served.key(user="alice", livemode=False),
        "tenant in test mode": await served.key(livemode=False),
        "other": await served.key(tenant_id=other),
        "other alice": await served.key(tenant_id=other, user="alice"),
        "without images": await served.key(tenant_id=await served.tenant("third")),
    }
    own: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for number, (name, key) in enumerate(keys.items(), start=1):
        stored = (
            [] if name == "without images" else await hosted.put_all(key, [(b"x" * number, {})] * 2)
        )
        own[name] = {image.id for image in stored}
        sizes |= {image.id: image.size_bytes for image in stored}
    visible = own | {
        "tenant": own["tenant"] | own["alice"] | own["bob"],
        "tenant in test mode": own["tenant in test mode"] | own["alice in test mode"],
        "other": own["other"] | own["other alice"],
    }
    for mode in MODES:
        found = {}
        for name, key in keys.items():
            async with served.http(key) as http:
                found[name] = await seen_by(http, mode, set(sizes))
        assert found == {
            name: Seen(ids, ids, ids, (len(ids), sum(sizes[image_id] for image_id in ids)))
            for name, ids in visible.items()
        }


async def test_a_deleted_or_expired_image_is_gone_from_every_resource(hosted: Hosted) -> None:
    key = await hosted.served.key()
    deleted, expired, kept = await hosted.put_all(key, [(b"x", {}), (b"yy", {}), (b"zzz", {})])
    ids, left = {deleted.id, expired.id, kept.id}, {kept.id}
    async with hosted.served.http(key) as http:
        before = [await seen_by(http, mode, ids) for mode in MODES]
        assert (await http.delete(f"/v1/images/{deleted.id}")).status_code == 200
        await hosted.served.owner_sql(
            "UPDATE image SET expires_at = now() WHERE id = :id", id=expired.id
        )
        after = [await seen_by(http, mode, ids) for mode in MODES]
    assert before == [Seen(ids, ids, ids, (3, 6))] * 2
    assert after == [Seen(left, left, left, (1, 3))] * 2


async def test_storage_is_told_with_its_bounds(hosted: Hosted) -> None:
    key = await hosted.served.key()
    async with hosted.served.http(key) as http:
        empty = [await read_json(http, STORAGE, mode) for mode in MODES]
        stored = await hosted.put_all(key, [(b"x" * 10, {})] * 3)
        rows = [await hosted.row(image.id) for image in stored]
        await hosted.served.owner_sql(
            "UPDATE tenant SET max_image_bytes = 1000, image_retention_seconds = 3600"
        )
        hosted.served.gateway.clear_caches(None)
        full = [await read_json(http, STORAGE, mode) for mode in MODES]
    nothing = {"images": 0, "bytes": 0, "oldest": None, "newest": None, "max_bytes": None}
    assert empty == [nothing | {"kept_seconds": 86_400} | NEVER_CLEANED] * 2
    told_of_all = {
        "images": 3,
        "bytes": 30,
        "oldest": min(row.created_at for row in rows).isoformat(),
        "newest": max(row.created_at for row in rows).isoformat(),
        "max_bytes": 1000,
        "kept_seconds": 3600,
        **NEVER_CLEANED,
    }
    assert full == [told_of_all] * 2


async def test_the_last_clean_up_is_reported_to_each_owner_with_its_count(hosted: Hosted) -> None:
    served = hosted.served
    keys = {
        "alice": await served.key(user="alice"),
        "bob": await served.key(user="bob"),
        "tenant": await served.key(),
        "test mode": await served.key(livemode=False),
        "other": await served.key(tenant_id=await served.tenant("other")),
    }
    stored = {
        name: await hosted.put_all(keys[name], [(b"x", {})] * count)
        for name, count in (("alice", 3), ("bob", 2), ("tenant", 210), ("other", 1))
    }
    async with served.http(keys["alice"]) as http:
        # Deleted by its owner: this is no clean-up.
        assert (await http.delete(f"/v1/images/{stored['alice'][0].id}")).status_code == 200

    async def told() -> dict[str, int]:
        found = {}
        for name, key in keys.items():
            async with served.http(key) as http:
                stats = await read_json(http, STORAGE)
            assert (stats["last_cleanup_at"] is None) == (stats["last_cleanup_images"] == 0)
            found[name] = stats["last_cleanup_images"]
        return found

    assert set((await told()).values()) == {0}
    await served.owner_sql("UPDATE image SET expires_at = now()")
    await served.sweep()
    first = {"alice": 2, "bob": 2, "tenant": 214, "test mode": 0, "other": 1}
    assert await told() == first
    await hosted.put(keys["bob"])
    await served.owner_sql("UPDATE image SET expires_at = now() WHERE deleted_at IS NULL")
    await served.sweep()
    assert await told() == {**first, "bob": 1, "tenant": 1}


async def test_resources_need_the_scope_to_read(hosted: Hosted) -> None:
    served = hosted.served
    writing = await served.key(scopes=[scope for scope in Scope if scope is not Scope.IMAGES_READ])
    image = await hosted.put(writing)
    for mode in MODES:
        async with served.http(writing) as http:
            for uri in (HISTORY, STORAGE, IMAGE + image.id, MODEL + "gpt-image-2", "x"):
                assert await refusal(http, uri, mode) == NO_SCOPE
            listing = await post(http, Message("resources/list", {}, mode))
            assert told(listing.error) == NO_SCOPE
        reading = await served.key(scopes=[Scope.IMAGES_READ])
        async with served.http(reading) as http:
            for uri in (HISTORY, STORAGE, IMAGE + image.id, MODEL + "gpt-image-2"):
                await read(http, uri, mode)


async def test_a_key_of_some_models_is_told_of_no_others(hosted: Hosted) -> None:
    for mode in MODES:
        key = await hosted.served.key(models=["gpt-image-2"])
        async with hosted.served.http(key) as http:
            assert (await read_json(http, MODEL + "gpt-image-2", mode))["id"] == "gpt-image-2"
            assert await refusal(http, MODEL + "dall-e-3", mode) == (
                INVALID_PARAMS,
                "model_not_allowed",
                "model",
            )


async def test_a_tenant_without_continuity_has_no_card_of_a_retired_model(hosted: Hosted) -> None:
    tenant_id = await hosted.served.tenant("strict")
    await hosted.served.owner_sql(
        "UPDATE tenant SET continuity = false WHERE id = :id", id=tenant_id
    )
    for mode in MODES:
        async with hosted.served.http(await hosted.served.key(tenant_id=tenant_id)) as http:
            assert await refusal(http, MODEL + "dall-e-3", mode) == (
                INVALID_PARAMS,
                "model_not_found",
                "model",
            )
