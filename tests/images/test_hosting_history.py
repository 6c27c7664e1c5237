"""The history of a caller's own images: pages, the fields of an image, and deletion."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx2
import pytest

from gateway.config import Settings
from gateway.library.links import LinkKind
from gateway.library.prompt_hashes import prompt_hash
from gateway.library.storage import thumbnail_path
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served, error_of
from tests.hosting_helpers import Hosted, S3Server, bucket_of, hosted_gateway, image_bytes
from tests.stub_openai import Stub

NO_IMAGE = "img_19a00000000_0123456789abcdef"
GONE = (404, "image_not_found")
files_only = pytest.mark.parametrize("place", ["files"], indirect=True)
"""For what has nothing to do with the store."""


async def ask(
    hosted: Hosted, key: IssuedKey, path: str, method: str = "GET", **params: Any
) -> httpx2.Response:
    async with hosted.served.http(key) as http:
        return await http.request(method, path, params=params)


async def listed_ids(hosted: Hosted, key: IssuedKey, **params: Any) -> list[str]:
    answer = await ask(hosted, key, "/v1/images", **params)
    assert answer.status_code == 200, answer.text
    return [image["id"] for image in answer.json()["data"]]


def refusal(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, error_of(answer)["code"]


@pytest.fixture
async def key(hosted: Hosted) -> IssuedKey:
    return await hosted.served.key()


async def test_an_image_is_shown_with_its_cost_and_its_link(
    hosted: Hosted, key: IssuedKey, stub: Stub
) -> None:
    before = int(datetime.now(UTC).timestamp())
    image_id = await hosted.make(key, n=2)
    shown = (await ask(hosted, key, f"/v1/images/{image_id}")).json()
    row = await hosted.row(image_id)
    assert shown == {
        "id": image_id,
        "object": "image",
        "created_at": shown["created_at"],
        "expires_at": shown["created_at"] + 86_400,
        "model": GPT2,
        "served_model": GPT2,
        "operation": "generation",
        "width": row.width,
        "height": row.height,
        "media_type": "image/png",
        "provenance": "original",
        "seed": None,
        "size_bytes": len(await hosted.store.get(row.path)),
        "prompt": row.prompt,
        "prompt_hash": None if row.prompt_hash is None else row.prompt_hash.hex(),
        "url": shown["url"],
        "thumbnail_url": shown["thumbnail_url"],
        "generation": {
            "id": str(row.reservation_id),
            "cost_usd": f"0.{stub.bill[0].cost_nano_usd:09d}",
            "cost_status": "actual",
            "images": 2,
            "provider_calls": 1,
            "model_version": None,
        },
    }
    assert before <= shown["created_at"] <= datetime.now(UTC).timestamp()
    for url in (shown["url"], shown["thumbnail_url"]):
        assert url.startswith(hosted.settings.public_url)
        assert (await hosted.get(url)).status_code == 200
    listed = (await ask(hosted, key, "/v1/images")).json()
    assert listed["data"][0]["generation"] == shown["generation"]


@files_only
async def test_the_history_shows_everything_recorded_of_an_image(
    hosted: Hosted, key: IssuedKey
) -> None:
    digest = prompt_hash(b"k" * 32, hosted.tenant_id, "a cat")
    image = await hosted.put(key, width=64, height=48, prompt="a \x00c\ud800at", prompt_hash=digest)
    shown = (await ask(hosted, key, f"/v1/images/{image.id}")).json()
    assert {name: shown[name] for name in ("width", "height", "prompt", "prompt_hash")} == {
        "width": 64,
        "height": 48,
        "prompt": "a c?at",
        "prompt_hash": digest.hex(),
    }


def test_a_prompts_hash_tells_equal_prompts_of_one_tenant_and_nothing_else() -> None:
    one, other = UUID(int=1), UUID(int=2)
    digest = prompt_hash(b"k" * 32, one, "a cat")
    assert digest == prompt_hash(b"k" * 32, one, "a cat")
    others = {
        prompt_hash(b"k" * 32, one, "a Cat"),
        prompt_hash(b"k" * 32, other, "a cat"),
        prompt_hash(b"l" * 32, one, "a cat"),
    }
    assert len(others | {digest}) == 4
    assert {len(value) for value in others} == {32}
    prompt_hash(b"k" * 32, one, "\ud800")


@files_only
async def test_pages_follow_each_other_from_the_newest_to_the_oldest(
    hosted: Hosted, key: IssuedKey
) -> None:
    made = [await hosted.put_all(key, [(b"x", {})] * count) for count in (1, 3, 2, 1)]
    expected = [
        image
        for generation in reversed(made)
        for image in sorted((stored.id for stored in generation), reverse=True)
    ]
    assert await listed_ids(hosted, key) == expected
    for limit in (1, 2, 3, 7, 100):
        seen: list[str] = []
        pages = 0
        cursor: dict[str, Any] = {}
        while True:
            page = (await ask(hosted, key, "/v1/images", limit=limit, **cursor)).json()
            ids = [image["id"] for image in page["data"]]
            seen += ids
            pages += 1
            assert (page["object"], page["first_id"], page["last_id"]) == ("list", ids[0], ids[-1])
            if not page["has_more"]:
                break
            cursor = {"after": page["last_id"]}
        assert seen == expected
        assert pages == -(-len(expected) // limit)


@files_only
async def test_a_page_goes_on_behind_an_image_that_is_gone(hosted: Hosted, key: IssuedKey) -> None:
    ids = [(await hosted.put(key)).id for _ in range(3)]
    assert (await ask(hosted, key, f"/v1/images/{ids[1]}", "DELETE")).status_code == 200
    assert await listed_ids(hosted, key, after=ids[1]) == [ids[0]]
    assert await listed_ids(hosted, key, after=ids[0]) == []
    empty = (await ask(hosted, key, "/v1/images", after=ids[0])).json()
    assert empty == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


@files_only
async def test_the_default_page_has_twenty_images_and_a_model_can_be_named(
    hosted: Hosted, key: IssuedKey
) -> None:
    await hosted.put_all(key, [(b"x", {})] * 21)
    page = (await ask(hosted, key, "/v1/images")).json()
    assert (len(page["data"]), page["has_more"]) == (20, True)
    flare = await hosted.make(key, model="gpt-image-2.5-flare")
    assert await listed_ids(hosted, key, model="gpt-image-2.5-flare") == [flare]
    assert flare not in await listed_ids(hosted, key, model=GPT2)
    assert await listed_ids(hosted, key, model="dall-e-2") == []


@files_only
async def test_an_invalid_page_is_refused(hosted: Hosted, key: IssuedKey) -> None:
    wrong = {
        "limit": ("0", "101", "x", ""),
        "after": ("", "x", NO_IMAGE, f"{NO_IMAGE}\x00"),
        "model": ("", "\x00", "x" * 101),
    }
    for name, values in wrong.items():
        for value in values:
            answer = await ask(hosted, key, "/v1/images", **{name: value})
            assert (answer.status_code, error_of(answer)["param"]) == (400, name), value


@files_only
async def test_an_unknown_parameter_is_refused(hosted: Hosted, key: IssuedKey) -> None:
    answer = await ask(hosted, key, "/v1/images", order="asc")
    assert refusal(answer) == (400, "unknown_parameter")
    assert error_of(answer)["param"] == "order"


@files_only
async def test_the_images_of_others_are_not_found(hosted: Hosted) -> None:
    served = hosted.served
    other_tenant = await served.tenant("other")
    keys = {
        "tenant": await served.key(),
        "alice": await served.key(user="alice"),
        "bob": await served.key(user="bob"),
        "test": await served.key(livemode=False),
        "other": await served.key(tenant_id=other_tenant),
    }
    images = {name: (await hosted.put(key)).id for name, key in keys.items()}
    visible = {name: set(await listed_ids(hosted, key)) for name, key in keys.items()}
    assert visible == {
        "tenant": {images["tenant"], images["alice"], images["bob"]},
        "alice": {images["alice"]},
        "bob": {images["bob"]},
        "test": {images["test"]},
        "other": {images["other"]},
    }
    for name, key in keys.items():
        for image_id in {*images.values(), NO_IMAGE, "img_X", "img_%00"} - visible[name]:
            for method in ("GET", "DELETE"):
                answer = await ask(hosted, key, f"/v1/images/{image_id}", method)
                assert refusal(answer) == GONE, (name, image_id, method)
            after = await ask(hosted, key, "/v1/images", after=image_id)
            assert after.status_code == 400
    assert len(await hosted.living()) == len(images)


@files_only
async def test_a_key_needs_the_scope_to_read_and_the_one_to_delete(hosted: Hosted) -> None:
    reader = await hosted.served.key(scopes=["images:read"])
    writer = await hosted.served.key(scopes=["images:write"])
    image = await hosted.put(reader)
    path = f"/v1/images/{image.id}"
    answers = [
        await ask(hosted, writer, "/v1/images"),
        await ask(hosted, writer, path),
        await ask(hosted, reader, path, "DELETE"),
        await ask(hosted, reader, path),
        await ask(hosted, writer, path, "DELETE"),
    ]
    assert [answer.status_code for answer in answers] == [403, 403, 403, 200, 200]


async def test_a_deleted_image_is_gone_with_its_file_its_thumbnail_and_its_prompt(
    hosted: Hosted, key: IssuedKey
) -> None:
    image = await hosted.put(key, prompt="a cat", prompt_hash=b"x" * 32)
    kept = await hosted.put(key)
    links = [hosted.link(image, kind) for kind in LinkKind]
    assert [(await hosted.get(link)).status_code for link in links] == [200, 200]
    assert thumbnail_path(image.path) in await hosted.files()
    path = f"/v1/images/{image.id}"
    deleted = await ask(hosted, key, path, "DELETE")
    assert deleted.json() == {"id": image.id, "object": "image", "deleted": True}
    assert [refusal(await hosted.get(link)) for link in links] == [GONE] * 2
    assert [refusal(await ask(hosted, key, path, m)) for m in ("GET", "DELETE")] == [GONE] * 2
    assert await listed_ids(hosted, key) == [kept.id]
    assert await hosted.files() == [kept.path]
    row = await hosted.row(image.id)
    assert row.deleted_at is not None
    assert (row.prompt, row.prompt_hash) == (None, None)


@files_only
async def test_an_expired_image_is_gone_before_it_is_swept(hosted: Hosted, key: IssuedKey) -> None:
    image = await hosted.put(key)
    await hosted.served.owner_sql("UPDATE image SET expires_at = now()")
    assert refusal(await ask(hosted, key, f"/v1/images/{image.id}")) == GONE
    assert refusal(await ask(hosted, key, f"/v1/images/{image.id}", "DELETE")) == GONE
    assert await listed_ids(hosted, key) == []


@files_only
async def test_a_link_lives_no_longer_than_its_image(hosted: Hosted, key: IssuedKey) -> None:
    for seconds in (100, 86_400 * 30):
        image = await hosted.put(key, ttl_seconds=seconds)
        shown = (await ask(hosted, key, f"/v1/images/{image.id}")).json()
        for url in (shown["url"], shown["thumbnail_url"]):
            expires_at = int(httpx2.URL(url).params["exp"])
            assert expires_at <= shown["expires_at"]
            now = datetime.now(UTC).timestamp()
            assert min(seconds, 86_400) - 60 < expires_at - now <= min(seconds, 86_400)


async def test_an_image_deleted_while_the_store_is_away_is_removed_when_it_is_back(
    settings: Settings,
) -> None:
    server = S3Server()
    async with hosted_gateway(settings, await bucket_of(server)) as hosted:
        key = await hosted.served.key()
        image = await hosted.put(key, image_bytes())
        server.stop()
        path = f"/v1/images/{image.id}"
        assert (await ask(hosted, key, path, "DELETE")).status_code == 200
        assert refusal(await ask(hosted, key, path)) == GONE
        assert await hosted.living() == [image.path]
        server.start()
        await hosted.served.sweep()
        assert (await hosted.files(), await hosted.living()) == ([], [])
    server.stop()


async def test_other_methods_are_refused(served: Served) -> None:
    async with served.http(await served.key()) as http:
        for path in ("/v1/images", f"/v1/images/{NO_IMAGE}"):
            for method in ("POST", "PUT", "PATCH"):
                answer = await http.request(method, path)
                assert refusal(answer) == (405, "method_not_allowed")
