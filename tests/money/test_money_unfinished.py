"""A paid image that cannot be finished: its known cost is posted."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client import REGISTRY
from pydantic import SecretStr

from gateway.config import Settings
from tests.harness import (
    Served,
    error_of,
    gateway_process,
    process_environment,
    run_sql,
    served_gateway,
)
from tests.image_helpers import file_bytes, mask, png
from tests.mcp_helpers import MODERN, call_by_http, tool_message
from tests.mcp_helpers import error_of as tool_error_of
from tests.money_helpers import GENERATIONS, books, client_of, eventually
from tests.stub_gemini import StubGemini
from tests.stub_gemini.api import KEY as GEMINI_KEY
from tests.stub_openai import Stub

BANANA: dict[str, Any] = {"model": "gemini-nano-banana-2.1", "prompt": "a red fox"}
SMALL: dict[str, Any] = {"model": "dall-e-2", "prompt": "a red fox", "size": "256x256"}
STATES = "SELECT state, final_nano FROM reservation ORDER BY admitted_at"


async def test_a_decoder_that_times_out_does_not_lose_the_cost(
    settings: Settings, stub: Stub
) -> None:
    changes = {"decoder_processes": 1, "decoder_job_seconds": 0.001}
    async with served_gateway(settings.model_copy(update=changes)) as served:
        async with served.openai(await served.key()) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.images.generate(n=10, **SMALL)
        assert (caught.value.status_code, caught.value.code) == (500, "image_unfinished")
        assert caught.value.response.headers["x-should-retry"] == "false"
        [line] = await books(served)
        assert (line.state, line.final_nano) == ("posted", stub.totals.cost_nano_usd)
        await served.check_invariants()


def with_google(settings: Settings, gemini: StubGemini, **changes: Any) -> Settings:
    """The settings of a gateway with a key of Google's."""
    google = {"gemini_api_key": SecretStr(GEMINI_KEY), "gemini_base_url": gemini.base_url}
    return settings.model_copy(update=google | changes)


async def test_a_format_that_cannot_be_made_does_not_lose_the_cost(
    settings: Settings, gemini: StubGemini
) -> None:
    hurried = with_google(settings, gemini, decoder_job_seconds=0.001)
    async with served_gateway(hurried) as served, served.http(await served.key()) as http:
        answer = await http.post(GENERATIONS, json=BANANA | {"output_format": "webp"})
        assert (answer.status_code, error_of(answer)["code"]) == (500, "image_unfinished")
        assert "webp" in error_of(answer)["message"]
        [line] = await books(served)
        assert (line.state, line.final_nano) == ("posted", gemini.bill[0].cost_nano_usd)
        await served.check_invariants()


async def test_a_charged_refusal_whose_cost_is_not_known_is_estimated(
    settings: Settings, gemini: StubGemini
) -> None:
    gemini.faults.append("refused_image")
    google = with_google(settings, gemini)
    async with served_gateway(google) as served, served.http(await served.key()) as http:
        # A price by the second, as an earlier release stored it; Google's answers have no time.
        await served.owner_sql(
            "INSERT INTO price (model, effective_from, text_input_nano, image_input_nano,"
            " image_output_nano, text_output_nano, per_second_nano)"
            " VALUES (:model, now() - interval '1 minute', 0, 0, 0, 0, 1000)",
            model=BANANA["model"],
        )
        answer = await http.post(GENERATIONS, json=BANANA)
        assert error_of(answer)["code"] == "moderation_blocked"
        [line] = await books(served)
        assert (line.state, line.outcome) == ("posted_est", "success_no_usage")
        assert line.final_nano == line.held_nano > 0
        await served.check_invariants()


async def test_a_machine_without_room_for_files_still_posts_the_cost(
    settings: Settings, stub: Stub, served: Served, tmp_path: Path
) -> None:
    room = tmp_path / "temporary"
    room.mkdir()
    key = await served.key()
    environment = process_environment(settings) | {"TMPDIR": str(room)}
    # `from_nothing`: the imports already choose the directory of temporary files.
    with gateway_process(environment, tmp_path / "log", from_nothing=True) as process:
        await process.until_ready()
        async with client_of(process.base_url, key) as http:
            first = await http.post(GENERATIONS, json=SMALL)
            assert first.status_code == 200, first.text
            link = "data:image/png;base64," + base64.b64encode(png(64, 64)).decode()
            room.rmdir()
            second = await http.post(GENERATIONS, json=SMALL)
            edit = tool_message("edit_image", MODERN, prompt="a red fox", image=link)
            third = tool_error_of(await call_by_http(http, edit))
    assert third["code"] == "overloaded"
    assert (second.status_code, error_of(second)["type"]) == (500, "server_error")
    assert settings.database_url is not None
    rows = await run_sql(settings.database_url.get_secret_value(), STATES)
    assert [(row.state, row.final_nano) for row in rows] == [
        ("posted", line.cost_nano_usd) for line in stub.bill
    ]


async def test_a_shutdown_while_images_are_finished_still_posts_the_cost(
    settings: Settings, stub: Stub
) -> None:
    def answered() -> float:
        return sum(
            sample.value
            for metric in REGISTRY.collect()
            for sample in metric.samples
            if sample.name == "gateway_provider_duration_seconds_count"
            and sample.labels["outcome"] == "success"
        )

    async with served_gateway(settings.model_copy(update={"decoder_processes": 1})) as served:
        before = answered()
        async with served.openai(await served.key()) as client:
            asking = asyncio.create_task(
                client.images.edit(
                    model="dall-e-2",
                    image=png(1024, 1024),
                    mask=file_bytes(mask(1024, 1024, (0, 0, 512, 512))),
                    prompt="a red fox",
                    n=10,
                )
            )

            async def has_answered() -> bool:
                await asyncio.sleep(0)
                return answered() > before

            await eventually(has_answered)
            await served.gateway.pipeline.drain(0)
            with pytest.raises(openai.APIStatusError):
                await asking
        [line] = await books(served)
        assert (line.state, line.final_nano) == ("posted", stub.totals.cost_nano_usd)
        await served.check_invariants()
