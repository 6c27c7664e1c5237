"""A program written for DALL·E 2 runs on unchanged, years after its model was shut down."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gateway.tenancy.api_keys import IssuedKey
from tests.harness import Served
from tests.image_helpers import (
    Box,
    answer_images,
    changed_outside,
    changed_share,
    expect_books_to_agree,
    expect_one_call_each,
    file_bytes,
    load_base64,
    mask,
    mean_colour,
    old_client,
    padded_png,
    photo,
    png,
    with_hole,
)
from tests.stub_openai import Stub

MODEL, SUCCESSOR = "dall-e-2", "gpt-image-2.5-sunburst"
PROMPT = "a red fox in the forest"
HEADERS = {
    "x-gateway-requested-model": MODEL,
    "x-gateway-served-model": SUCCESSOR,
    "deprecation": "@1763078400",  # 2025-11-14T00:00:00Z
    "sunset": "Tue, 12 May 2026 00:00:00 GMT",
    "link": f'</v1/models/{SUCCESSOR}>; rel="successor-version"',
    "x-gateway-cost-status": "actual",
}
both_modes = pytest.mark.parametrize("livemode", [False, True], ids=["sandbox", "live"])


def area(side: int) -> Box:
    """A rectangle whose edges fall between no two pixels of a larger image."""
    return side // 4, side // 4, side // 2, side * 3 // 4


async def ask(
    served: Served, key: IssuedKey, method: str, **arguments: Any
) -> tuple[list[Image.Image], set[str]]:
    """Make one call with the old client; return its images and the keys of its data."""

    def run() -> Any:
        with old_client(served, key) as client:
            return getattr(client.images.with_raw_response, method)(**arguments)

    raw = await asyncio.to_thread(run)
    assert {name: raw.headers.get(name) for name in HEADERS} == HEADERS
    body = json.loads(raw.content)
    assert body.keys() == {"created", "data"}
    answer = raw.parse()
    found = await answer_images(served, answer)
    assert {made.format for made in found} == {"PNG"}
    kinds = {tuple(item) for item in body["data"]}
    assert len(kinds) == 1, kinds
    return found, set(kinds.pop())


@both_modes
@pytest.mark.parametrize(
    "arguments",
    [
        {"n": 4, "size": "256x256"},
        {"n": 4, "size": "256x256", "response_format": "url"},
        {"n": 4, "size": "256x256", "response_format": "b64_json"},
        {"n": 2, "size": "512x512"},
        {"size": "1024x1024", "response_format": "b64_json"},
        {"n": 10, "size": "256x256", "user": "user-1"},
        {},
    ],
    ids=str,
)
async def test_it_gets_the_images_it_asks_for(
    served: Served, stub: Stub, arguments: dict[str, Any], *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    found, kinds = await ask(served, key, "generate", model=MODEL, prompt=PROMPT, **arguments)
    edge = int(arguments.get("size", "1024x1024").partition("x")[0])
    n = arguments.get("n", 1)
    assert [made.size for made in found] == [(edge, edge)] * n
    assert kinds == {arguments.get("response_format", "url")}
    sent = {
        "model": SUCCESSOR,
        "prompt": PROMPT,
        "n": n,
        "size": "1024x1024",
        "quality": "medium",
        "output_format": "png",
    }
    sent |= {"user": arguments["user"]} if "user" in arguments else {}
    assert [call.json for call in stub.calls] == ([sent] if livemode else [])
    await expect_books_to_agree(served, stub, key, images=n)
    await expect_one_call_each(served, stub, requests=1)


@both_modes
@pytest.mark.parametrize("edge", [256, 512, 1024])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
async def test_an_edit_changes_nothing_outside_its_mask(
    served: Served, stub: Stub, tmp_path: Path, edge: int, mode: str, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    before = photo(edge, edge, mode=mode)
    (tmp_path / "image.png").write_bytes(file_bytes(before))
    (tmp_path / "mask.png").write_bytes(file_bytes(mask(edge, edge, area(edge))))

    with (tmp_path / "image.png").open("rb") as image, (tmp_path / "mask.png").open("rb") as file:
        found, kinds = await ask(
            served,
            key,
            "edit",
            model=MODEL,
            image=image,
            mask=file,
            prompt=PROMPT,
            n=2,
            size=f"{edge}x{edge}",
            response_format="b64_json",
        )
    assert kinds == {"b64_json"}
    assert [changed_outside(before, after, area(edge)) for after in found] == [0, 0]
    assert min(changed_share(before, after, area(edge)) for after in found) > 0.9
    assert changed_share(found[0], found[1], area(edge)) > 0.5
    if livemode:
        [call] = stub.calls
        assert call.path == "/v1/images/edits"
        assert call.form == {
            "model": SUCCESSOR,
            "prompt": PROMPT,
            "n": "2",
            "size": "1024x1024",
            "quality": "medium",
            "output_format": "png",
        }
        assert [file[:2] for file in call.files] == [("image", "image/png"), ("mask", "image/png")]
    await expect_books_to_agree(served, stub, key, images=2)
    await expect_one_call_each(served, stub, requests=1)


@both_modes
async def test_only_fully_transparent_pixels_of_a_mask_change(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    soft = mask(256, 256, area(256))
    soft.putpixel((area(256)[0], area(256)[1]), (0, 0, 0, 1))
    key, before = await served.key(livemode=livemode), photo(256, 256)
    [after], _ = await ask(
        served,
        key,
        "edit",
        image=png(256, 256),
        mask=file_bytes(soft),
        prompt=PROMPT,
        size="256x256",
    )
    corner = (area(256)[0], area(256)[1], area(256)[0] + 1, area(256)[1] + 1)
    assert changed_share(before, after, corner) == 0
    assert changed_share(before, after, area(256)) > 0.9
    assert changed_outside(before, after, area(256)) == 0


@both_modes
@pytest.mark.parametrize("edge", [256, 1024])
async def test_without_a_mask_the_images_own_transparency_is_the_mask(
    served: Served, stub: Stub, edge: int, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    before = with_hole(photo(edge, edge), area(edge))
    found, _ = await ask(
        served,
        key,
        "edit",
        model=MODEL,
        image=("sunlit_lounge.png", file_bytes(before)),
        prompt=PROMPT,
        n=1,
        size=f"{edge}x{edge}",
    )
    assert [after.size for after in found] == [(edge, edge)]
    assert changed_outside(photo(edge, edge), found[0], area(edge)) == 0
    assert found[0].convert("RGBA").getchannel("A").getextrema() == (255, 255)
    assert changed_share(before, found[0], area(edge)) > 0.9
    await expect_books_to_agree(served, stub, key, images=1)
    await expect_one_call_each(served, stub, requests=1)


@both_modes
async def test_an_edit_can_ask_for_another_size_than_its_image_has(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    key, before = await served.key(livemode=livemode), photo(512, 512)
    for edge in (256, 1024):
        [after], _ = await ask(
            served,
            key,
            "edit",
            model=MODEL,
            image=file_bytes(before),
            mask=file_bytes(mask(512, 512, area(512))),
            prompt=PROMPT,
            size=f"{edge}x{edge}",
        )
        assert after.size == (edge, edge)
        assert changed_share(before.resize(after.size), after, area(edge)) > 0.9
        corner = (0, 0, edge // 5, edge // 5)
        expected = mean_colour(before.resize(after.size), corner)
        assert mean_colour(after, corner) == pytest.approx(expected, abs=2)
    await expect_one_call_each(served, stub, requests=2)


@both_modes
@pytest.mark.parametrize("named", [{"model": MODEL}, {}], ids=["named", "unnamed"])
@pytest.mark.parametrize("response_format", ["url", "b64_json", None])
async def test_variations_live_on(
    served: Served,
    stub: Stub,
    tmp_path: Path,
    named: dict[str, Any],
    response_format: str | None,
    *,
    livemode: bool,
) -> None:
    key = await served.key(livemode=livemode)
    (tmp_path / "image.png").write_bytes(png(512, 512))
    asked: dict[str, Any] = {} if response_format is None else {"response_format": response_format}

    with (tmp_path / "image.png").open("rb") as image:
        found, kinds = await ask(
            served, key, "create_variation", image=image, n=2, size="512x512", **named, **asked
        )
    assert [made.size for made in found] == [(512, 512)] * 2
    assert kinds == {response_format or "url"}
    if livemode:
        [call] = stub.calls
        assert (call.path, call.files[0][:2]) == ("/v1/images/edits", ("image", "image/png"))
        assert call.form is not None
        assert (call.form["model"], call.form["n"]) == (SUCCESSOR, "2")
        assert "variation" in call.form["prompt"]
    await expect_books_to_agree(served, stub, key, images=2)
    await expect_one_call_each(served, stub, requests=1)


@both_modes
async def test_a_variation_takes_an_image_without_any_transparency_or_with(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    for image in (photo(256, 256, mode="L"), with_hole(photo(256, 256), area(256))):
        found, _ = await ask(served, key, "create_variation", image=file_bytes(image))
        assert [made.size for made in found] == [(1024, 1024)]


@both_modes
async def test_a_call_that_names_no_model_but_an_old_size_means_dall_e_2(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    served_by = {}
    async with served.openai(key) as client:
        for size in ("256x256", "512x512", "1024x1024", "auto"):
            raw = await client.images.with_raw_response.generate(prompt=PROMPT, size=size)
            item = json.loads(raw.content)["data"][0]
            served_by[size] = raw.headers["x-gateway-requested-model"], *item
        raw = await client.images.with_raw_response.edit(
            image=png(256, 256, mode="RGBA"),
            mask=file_bytes(mask(256, 256, area(256))),
            prompt=PROMPT,
            size="256x256",
        )
        assert raw.headers["x-gateway-requested-model"] == MODEL
    today = served.gateway.settings.default_model
    assert served_by == {
        "256x256": (MODEL, "url"),
        "512x512": (MODEL, "url"),
        "1024x1024": (today, "b64_json"),
        "auto": (today, "b64_json"),
    }


@both_modes
async def test_reports_show_what_was_asked_for_and_what_was_bought(
    served: Served, stub: Stub, *, livemode: bool
) -> None:
    key = await served.key(livemode=livemode)
    async with served.openai(key) as client:
        await client.images.generate(model=MODEL, prompt=PROMPT, n=2, size="256x256")
        await client.images.generate(model=SUCCESSOR, prompt=PROMPT, quality="low")
    reports = {}
    async with served.http(key) as http:
        for field in ("requested_model", "model"):
            report = (await http.get("/v1/usage", params={"group_by": field})).json()
            reports[field] = {row[field]: row["images"] for row in report["data"]}
    assert reports == {"requested_model": {MODEL: 2, SUCCESSOR: 1}, "model": {SUCCESSOR: 3}}
    await expect_books_to_agree(served, stub, key, images=3)
    await expect_one_call_each(served, stub, requests=2)


@pytest.mark.parametrize("edge", [256, 512, 1024])
async def test_an_image_made_from_text_costs_less_than_it_once_did(
    served: Served, stub: Stub, edge: int
) -> None:
    once_nano = {256: 16_000_000, 512: 18_000_000, 1024: 20_000_000}[edge]
    async with served.openai(await served.key()) as client:
        await client.images.generate(model=MODEL, prompt="é" * 1000, n=1, size=f"{edge}x{edge}")
    assert 0 < await served.ledger_total() <= once_nano


async def test_the_largest_image_that_is_less_than_four_megabytes_is_taken(
    served: Served, stub: Stub
) -> None:
    whole = padded_png(png(256, 256), 4 * 1_048_576 - 1)
    assert len(whole) == 4 * 1_048_576 - 1
    stub.configure(keep_files=True)
    async with served.openai(await served.key()) as client:
        answer = await client.images.create_variation(
            image=whole, size="256x256", response_format="b64_json"
        )
    assert [load_base64(item.b64_json).size for item in answer.data or []] == [(256, 256)]
    [[sent]] = stub.files
    assert len(sent) < 4 * len(png(256, 256))  # what is no image does not go on
