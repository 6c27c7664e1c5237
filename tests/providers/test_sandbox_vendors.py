"""Test keys rehearse each vendor's traits, refusals that are billed, and fallbacks."""

import base64
import io
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from gateway.config import Settings
from tests.harness import GPT2, Served, error_of
from tests.image_helpers import png
from tests.money_helpers import books

BANANA = "gemini-nano-banana-2.1"
PATH = "/v1/images/generations"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    file = tmp_path / "models.toml"
    file.write_text(f'[[fallbacks]]\nmodel = "{GPT2}"\nto = ["{BANANA}"]\n')
    return settings.model_copy(update={"models_file": file})


async def draw(served: Served, prompt: str = "a red fox", **changes: Any) -> httpx2.Response:
    body = {"model": BANANA, "prompt": prompt, "size": "1536x1024", "quality": "low", **changes}
    async with served.http(await served.key(livemode=False)) as http:
        return await http.post(PATH, json=body)


async def test_geminis_models_have_its_sizes_format_and_usage(served: Served) -> None:
    answer = (await draw(served, n=2, quality="high")).json()
    images = [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))) for one in answer["data"]]
    assert [(image.size, image.format) for image in images] == [((1264, 848), "JPEG")] * 2
    assert (answer["size"], answer["output_format"], answer["quality"]) == (
        *("1264x848", "jpeg"),
        None,
    )
    assert answer["usage"]["input_tokens"] == 2 * 3
    assert answer["usage"]["output_tokens_details"] == {
        "text_tokens": 2 * 900,
        "image_tokens": 2 * 1120,
    }
    form = {"model": BANANA, "prompt": "a red fox", "quality": "low"}
    files = [("image", ("a.png", png(32, 32)))] * 2
    async with served.http(await served.key(livemode=False)) as http:
        edited = (await http.post("/v1/images/edits", data=form, files=files)).json()
    assert edited["usage"]["input_tokens_details"]["image_tokens"] == 2 * 1120
    assert [one for one in await books(served) if (one.final_nano or 0) > one.held_nano] == []


async def test_a_refusal_in_a_200_is_billed_at_geminis_models_alone(served: Served) -> None:
    answers = [await draw(served, "[sandbox:moderation]", model=model) for model in (BANANA, GPT2)]
    assert [error_of(answer)["code"] for answer in answers] == ["moderation_blocked"] * 2
    billed, free = await books(served)
    assert (billed.state, billed.outcome, bool(billed.final_nano)) == (
        *("posted", "refused_charged"),
        True,
    )
    assert (free.state, free.outcome, free.final_nano) == ("void", "moderation", 0)


async def test_a_word_for_one_model_rehearses_a_fallback(served: Served) -> None:
    words = ["rate_limited", "unreachable", "credential", "unknown"]
    answers = [await draw(served, f"a fox [sandbox:{word} {GPT2}]", model=GPT2) for word in words]
    *helped, unknown = answers
    for answer in helped:
        assert answer.headers["x-gateway-served-model"] == BANANA
        assert answer.headers["x-gateway-provider"] == "sandbox"
    assert error_of(unknown)["code"] == "outcome_unknown"
    other = await draw(served, f"a fox [sandbox:rate_limited {BANANA}]", model=GPT2)
    assert other.headers["x-gateway-served-model"] == GPT2
    states = [(one.state, len(one.lines)) for one in await books(served)]
    assert states == [("posted", 1)] * 3 + [("unknown", 0), ("posted", 1)]
    await served.check_invariants()
