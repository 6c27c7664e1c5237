"""Resources over MCP: lists and contents, page by page, and the scopes they need."""

import base64
import shutil
from datetime import datetime
from pathlib import Path

import httpx2
import pytest

from tests.harness import GPT2
from tests.hosting_helpers import Hosted, image_bytes
from tests.image_helpers import download
from tests.mcp_helpers import (
    HISTORY,
    IMAGE,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    MODEL,
    MODES,
    STORAGE,
    Message,
    call,
    content_of,
    post,
    read,
    read_json,
    recent_ids,
    refusal,
    resource_pages,
    told,
)
from tests.stub_openai import Stub

pytestmark = pytest.mark.parametrize("place", ["files"], indirect=True)


async def delete(http: httpx2.AsyncClient, image_id: str) -> None:
    assert (await http.delete(f"/v1/images/{image_id}")).status_code == 200


# The list


@pytest.mark.parametrize("count", [0, 50, 117])
async def test_the_list_goes_on_page_by_page(hosted: Hosted, count: int) -> None:
    key = await hosted.served.key()
    stored = await hosted.put_all(key, [(b"x", {})] * count) if count else []
    for mode in MODES:
        async with hosted.served.http(key) as http:
            found = await resource_pages(http, mode)
            rest = await http.get("/v1/images", params={"limit": 100})
        assert [len(page) for page in found] == {0: [2], 50: [52], 117: [52, 50, 17]}[count]
        uris = [resource["uri"] for page in found for resource in page]
        assert uris[:2] == [HISTORY, STORAGE]
        assert set(uris[2:]) == {IMAGE + image.id for image in stored}
        assert len(uris) == count + 2
        assert [IMAGE + image["id"] for image in rest.json()["data"]] == uris[2:102]


async def test_an_image_is_listed_with_its_properties(hosted: Hosted) -> None:
    key = await hosted.served.key()
    [stored] = await hosted.put_all(key, [(image_bytes(), {"prompt": "a cat", "width": 64})])
    async with hosted.served.http(key) as http:
        [[_, _, image]] = await resource_pages(http)
        row = await hosted.row(stored.id)
        assert image == {
            "uri": IMAGE + stored.id,
            "name": stored.id,
            "title": f"{GPT2}, {row.created_at:%Y-%m-%d %H:%M} UTC",
            "description": "a cat",
            "mimeType": "image/png",
            "size": stored.size_bytes,
        }
        content = await read(http, image["uri"])
    assert len(base64.b64decode(content["blob"])) == image["size"]


async def test_a_page_follows_an_image_that_is_gone_by_now(hosted: Hosted) -> None:
    key = await hosted.served.key()
    await hosted.put_all(key, [(b"x", {})] * 60)
    async with hosted.served.http(key) as http:
        first = (await post(http, Message("resources/list"))).result
        cursor = first["nextCursor"]
        await delete(http, cursor)
        rest = (await post(http, Message("resources/list", {"cursor": cursor}))).result
    assert len(rest["resources"]) == 10
    assert "nextCursor" not in rest


async def test_a_cursor_that_is_not_ones_own_is_refused(hosted: Hosted) -> None:
    served = hosted.served
    other = await served.key(tenant_id=await served.tenant("other"))
    foreign = (await hosted.put(other)).id
    for mode in MODES:
        async with served.http(await served.key()) as http:
            for cursor in (foreign, "", "x", "img_1", "' OR 1=1 --", "\x00", "x" * 100_000):
                answer = await post(http, Message("resources/list", {"cursor": cursor}, mode))
                assert told(answer.error) == (INVALID_PARAMS, "invalid_value", "cursor")


async def test_resources_with_arguments_are_listed_as_templates(hosted: Hosted) -> None:
    for mode in MODES:
        async with hosted.served.http(await hosted.served.key()) as http:
            result = (await post(http, Message("resources/templates/list", {}, mode))).result
        templates = {template["uriTemplate"]: template for template in result["resourceTemplates"]}
        assert set(templates) == {
            IMAGE + "{image_id}",
            HISTORY + "{?limit,days}",
            MODEL + "{model}",
        }
        assert all(template["title"] for template in templates.values())
        assert all(template["description"] for template in templates.values())


# Images


async def test_an_image_is_read_whole_with_its_own_type(hosted: Hosted, stub: Stub) -> None:
    key = await hosted.served.key()
    for mode in MODES:
        async with hosted.served.mcp(key, mode) as client, hosted.served.http(key) as http:
            for output_format in ("png", "jpeg", "webp"):
                arguments = {"prompt": "a red fox", "model": GPT2, "quality": "low"}
                result = await call(
                    client, "generate_image", **arguments, output_format=output_format
                )
                made = content_of(result)
                content = await read(http, made["images"][0]["uri"], mode)
                assert content["mimeType"] == f"image/{output_format}"
                whole = await download(hosted.served, made["url"])
                assert base64.b64decode(content["blob"], validate=True) == whole


async def test_an_image_whose_file_is_away_is_an_error_with_its_code(hosted: Hosted) -> None:
    key = await hosted.served.key()
    missing, unreadable = await hosted.put(key), await hosted.put(key)
    await hosted.store.delete(missing.path)
    gone = (INVALID_PARAMS, "image_not_found", None)
    async with hosted.served.http(key) as http:
        assert [await refusal(http, IMAGE + missing.id, mode) for mode in MODES] == [gone] * 2
        folder = Path(httpx2.URL(hosted.settings.image_storage_url).path) / str(hosted.tenant_id)
        shutil.rmtree(folder)
        folder.write_bytes(b"a file where the folder was")
        failed = (INTERNAL_ERROR, "storage_failed", None)
        assert [await refusal(http, IMAGE + unreadable.id, mode) for mode in MODES] == [failed] * 2


# The history


async def test_the_history_shows_the_ten_newest_of_a_week(hosted: Hosted) -> None:
    key = await hosted.served.key()
    stored = await hosted.put_all(key, [(b"x", {})] * 13)
    aged = [(image.id, days) for image, days in zip(stored, range(13), strict=True)]
    for image_id, days in aged:  # one of each of the last thirteen days
        await hosted.served.owner_sql(
            "UPDATE image SET created_at = now() - make_interval(days => :days, secs => 60),"
            " expires_at = now() + interval '1 year' WHERE id = :id",
            days=days,
            id=image_id,
        )
    ids = [image_id for image_id, _ in aged]
    for mode in MODES:
        async with hosted.served.http(key) as http:
            assert await recent_ids(http, "", mode) == ids[:7]
            assert await recent_ids(http, "?days=100", mode) == ids[:10]
            assert await recent_ids(http, "?limit=100&days=100", mode) == ids
            assert await recent_ids(http, "?days=100&limit=3", mode) == ids[:3]
            assert await recent_ids(http, "?days=1", mode) == ids[:1]
            assert await recent_ids(http, "?", mode) == ids[:7]
            more = [
                (await read_json(http, HISTORY + query, mode))["has_more"]
                for query in ("", "?limit=6", "?limit=7", "?days=100&limit=12")
            ]
            totals = [
                (await read_json(http, HISTORY + query, mode))["total"]
                for query in ("", "?limit=1", "?days=100&limit=3")
            ]
        assert more == [False, True, False, True]
        assert totals == [7, 7, 13]


async def test_an_image_of_the_history_is_as_rest_shows_it(hosted: Hosted, stub: Stub) -> None:
    key = await hosted.served.key()
    image_id = await hosted.make(key, n=2, model="dall-e-2", quality="standard")
    async with hosted.served.http(key) as http:
        shown = (await http.get(f"/v1/images/{image_id}")).json()
        history = await read_json(http, HISTORY)
    [image] = [image for image in history["images"] if image["id"] == image_id]
    assert datetime.fromisoformat(image["created_at"]).timestamp() // 1 == shown["created_at"]
    assert datetime.fromisoformat(image["expires_at"]).timestamp() // 1 == shown["expires_at"]
    same = ("operation", "width", "height", "media_type", "size_bytes", "prompt")
    assert {name: image[name] for name in same} == {name: shown[name] for name in same}
    assert (image["requested_model"], image["model"]) == (shown["model"], shown["served_model"])
    assert image["cost_usd"] == shown["generation"]["cost_usd"]
    assert image["cost_status"] == shown["generation"]["cost_status"] == "actual"
    assert image["images_of_generation"] == shown["generation"]["images"] == 2
    assert image["uri"] == IMAGE + image_id
    await download(hosted.served, image["url"])


QUERIES = {
    "?limit=0": ("invalid_value", "limit"),
    "?limit=101": ("invalid_value", "limit"),
    "?limit=-1": ("invalid_value", "limit"),
    "?limit=ten": ("invalid_value", "limit"),
    "?limit=": ("invalid_value", "limit"),
    "?limit=1.5": ("invalid_value", "limit"),
    "?limit=²": ("invalid_value", "limit"),
    "?limit=" + "9" * 400: ("invalid_value", "limit"),
    "?days=0": ("invalid_value", "days"),
    "?days=3651": ("invalid_value", "days"),
    "?days=1&limit=x": ("invalid_value", "limit"),
    "?model=gpt-image-2": ("unknown_parameter", "model"),
    "?limit=5&day=1": ("unknown_parameter", "day"),
    "?x": ("unknown_parameter", "x"),
}


async def test_the_history_names_the_invalid_part_of_its_address(hosted: Hosted) -> None:
    for mode in MODES:
        async with hosted.served.http(await hosted.served.key()) as http:
            found = {query: await refusal(http, HISTORY + query, mode) for query in QUERIES}
        assert found == {query: (INVALID_PARAMS, *what) for query, what in QUERIES.items()}


# Models


async def test_every_model_has_its_card_retired_ones_too(hosted: Hosted) -> None:
    key = await hosted.served.key()
    for mode in MODES:
        async with hosted.served.mcp(key, mode) as client, hosted.served.http(key) as http:
            found = content_of(await call(client, "list_available_models"))
            cards = [card for provider in found["providers"] for card in provider["models"]]
            read_cards = [await read_json(http, MODEL + card["id"], mode) for card in cards]
            spelled = await read_json(http, MODEL + "dall%2De%2D2", mode)
        assert read_cards == cards
        assert spelled["id"] == "dall-e-2"
        assert spelled["served_by"] != "dall-e-2"
        assert len(cards) > 10


async def test_an_error_of_a_resource_names_its_address(hosted: Hosted) -> None:
    long = IMAGE + "x" * 5_000
    for mode in MODES:
        async with hosted.served.http(await hosted.served.key()) as http:
            for uri in (
                IMAGE + "img_1",
                MODEL + "x",
                "file:///etc/passwd",
                HISTORY + "?limit=0",
                long,
            ):
                message = Message("resources/read", {"uri": uri}, mode)
                assert (await post(http, message)).error["data"]["uri"] == uri[:500]


async def test_unknown_resource_addresses_are_not_found(hosted: Hosted) -> None:
    unknown = ("not_found", "uri")
    no_image, no_model = ("image_not_found", "image_id"), ("model_not_found", "model")
    expected = {
        "": unknown,
        "x": unknown,
        "https://example.com/": unknown,
        "file:///etc/passwd": unknown,
        "image-history://all": unknown,
        "image-history://recent/": unknown,
        "image-history://recent#x": unknown,
        "storage-stats://overview?x=1": unknown,
        "generated-images:": unknown,
        "GENERATED-IMAGES://x": unknown,
        IMAGE: no_image,
        IMAGE + "x": no_image,
        IMAGE + "img_19a00000000_0123456789abcdef": no_image,
        IMAGE + "../../etc/passwd": no_image,
        IMAGE + "%69mg_1": no_image,
        IMAGE + "\x00": no_image,
        MODEL: no_model,
        MODEL + "gpt-image-99": no_model,
        MODEL + "%FF": no_model,
        MODEL + "x" * 480: no_model,
        "x" * 501: ("invalid_value", "uri"),
        IMAGE + "x" * 5_000: ("invalid_value", "uri"),
    }
    for mode in MODES:
        async with hosted.served.http(await hosted.served.key()) as http:
            found = {uri: await refusal(http, uri, mode) for uri in expected}
        assert found == {uri: (INVALID_PARAMS, *what) for uri, what in expected.items()}
