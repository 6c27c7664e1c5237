"""A store that is away loses no paid image: it waits in the spool and is delivered from there."""

import asyncio
import base64
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mcp.types import BlobResourceContents

from gateway.config import Settings
from gateway.maintenance import Sweeper
from tests.harness import GPT2, error_of
from tests.hosting_helpers import Hosted, hosted_gateway
from tests.mcp_helpers import call, content_of, text_of
from tests.mcp_helpers import error_of as tool_error_of
from tests.money_helpers import client_of, eventually, gateway_processes
from tests.store_helpers import Away, hasty_gateway, make_known, post, spooled
from tests.stub_openai import Fault, Stub

CALLS = 20
RESOURCE = "generated-images://"


@pytest.fixture
async def hosted(settings: Settings, away: Away) -> AsyncIterator[Hosted]:
    """A gateway that gives up a failing store after a moment."""
    async with hasty_gateway(settings, away) as running:
        yield running


async def test_twenty_links_during_a_store_outage_are_paid_once_and_delivered_later(
    hosted: Hosted, away: Away, stub: Stub
) -> None:
    """Calls under way find out that the store is away; what comes after them is not bought."""
    served, key = hosted.served, await hosted.served.key()
    stub.faults.add(Fault(hold=True, times=None))
    async with served.http(key) as http:
        asking = [
            asyncio.create_task(post(http, number, response_format="url"))
            for number in range(CALLS)
        ]
        await stub.until_held(CALLS)
        away.fail()
        stub.faults.clear()
        stub.release()
        answers = await asyncio.gather(*asking)
        assert {answer.status_code for answer in answers} == {500}
        assert {error_of(answer)["code"] for answer in answers} == {"storage_failed"}
        assert {answer.headers["x-should-retry"] for answer in answers} == {"false"}
        refused = await post(http, CALLS, response_format="url")
        assert (refused.status_code, error_of(refused)["code"]) == (503, "storage_unavailable")
        at_once = [await post(http, number, response_format="url") for number in range(3)]
        pixels = [(await hosted.get(one.json()["data"][0]["url"])).content for one in at_once]
        away.mend()
        await served.sweep()
        later = [await post(http, number, response_format="url") for number in range(CALLS)]
        files = [(await hosted.get(one.json()["data"][0]["url"])).content for one in later]
    assert {answer.status_code for answer in later} == {200}
    assert {answer.headers["idempotent-replayed"] for answer in later} == {"true"}
    assert files[:3] == pixels
    assert all(content.startswith(b"\x89PNG") for content in files)
    generations = [answer.headers["x-gateway-generation-id"] for answer in later]
    assert all(
        generation in error_of(answer)["message"]
        for generation, answer in zip(generations, answers, strict=True)
    )
    assert len(stub.bill) == CALLS
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in stub.bill)
    assert (await spooled(served), len(await hosted.files())) == ([], CALLS)


async def test_bytes_are_answered_at_once_and_wait_for_the_store_in_the_spool(
    hosted: Hosted, away: Away, stub: Stub
) -> None:
    served, key = hosted.served, await hosted.served.key()
    away.fail()
    await make_known(hosted, key)
    async with served.http(key) as http:
        first = await post(http, 1)
        content = base64.b64decode(first.json()["data"][0]["b64_json"])
        [row] = await spooled(served)
        again = await post(http, 1)
        listed = (await http.get("/v1/images")).json()["data"]
        one = (await http.get(f"/v1/images/{row.image_id}")).json()
        linked = await hosted.get(one["url"])
        part = await hosted.get(one["url"], headers={"Range": "bytes=1-3"})
        head = await hosted.get(one["url"], "HEAD")
    assert first.status_code == again.status_code == 200
    assert again.json()["data"] == first.json()["data"]
    assert [image["id"] for image in listed] == [row.image_id]
    assert (linked.content, part.content, part.status_code) == (content, content[1:4], 206)
    assert head.headers["content-length"] == str(len(content))
    assert content not in row.sealed
    assert content[:200] not in row.sealed
    async with served.mcp(key) as client:
        read = await client.read_resource(RESOURCE + row.image_id)
    [resource] = read.contents
    assert isinstance(resource, BlobResourceContents)
    assert base64.b64decode(resource.blob) == content
    away.mend()
    await served.sweep()
    assert await spooled(served) == []
    assert await hosted.store.get(row.path) == content
    assert len(stub.bill) == 1


async def test_a_stream_is_finished_though_the_store_is_away(
    hosted: Hosted, away: Away, stub: Stub
) -> None:
    served, key = hosted.served, await hosted.served.key()
    away.fail()
    await make_known(hosted, key)
    async with served.http(key) as http:
        first = await post(http, 1, stream=True, partial_images=1)
        away.mend()
        await served.sweep()
        again = await post(http, 1, stream=True, partial_images=1)
    assert "image_generation.completed" in first.text
    assert first.text.rpartition("event:")[2] == again.text.rpartition("event:")[2]
    assert len(stub.bill) == 1


async def test_mcp_delivers_images_in_memory_and_refuses_link_only_results(
    hosted: Hosted, away: Away, stub: Stub
) -> None:
    served, key = hosted.served, await hosted.served.key()
    asked = {"prompt": "a red fox", "model": GPT2, "quality": "low", "size": "1024x1024"}
    away.fail()
    async with served.mcp(key) as client:
        found_out = await call(client, "generate_image", **asked, idempotency_key="one")
        await make_known(hosted, key)
        refused = await call(client, "generate_image", **asked)
        whole = await call(client, "generate_image", **asked, full_image=True)
        again = await call(client, "generate_image", **asked, idempotency_key="one")
    assert not found_out.is_error
    assert tool_error_of(refused)["code"] == "storage_unavailable"
    assert "Nothing was bought" in text_of(refused)
    assert not whole.is_error
    assert content_of(again)["images"] == content_of(found_out)["images"]
    linked = await hosted.get(content_of(found_out)["url"])
    assert linked.status_code == 200
    assert len(stub.bill) == 2
    away.mend()


async def test_a_store_that_is_back_within_a_minute_costs_no_link(
    settings: Settings, away: Away, stub: Stub
) -> None:
    async with hosted_gateway(settings, away.place) as hosted:
        served, key = hosted.served, await hosted.served.key()
        away.fail()

        async def is_spooled() -> bool:
            return len(await spooled(served)) == 1

        async with served.http(key) as http:
            asking = asyncio.create_task(post(http, 1, response_format="url"))
            await eventually(is_spooled)
            away.mend()
            answer = await asking
        assert answer.status_code == 200
        assert (await hosted.get(answer.json()["data"][0]["url"])).status_code == 200
        assert await spooled(served) == []
        assert len(stub.bill) == 1


async def test_readiness_doctor_and_metrics_say_that_the_store_is_away(
    hosted: Hosted, away: Away
) -> None:
    served, key = hosted.served, await hosted.served.key()
    away.fail()
    await make_known(hosted, key)
    async with served.http(key) as http:
        await post(http, 1)
        degraded = await http.get("/ready")
    await Sweeper(served.gateway).sweep()
    admin = served.gateway.core.new_admin_key
    assert admin is not None
    async with served.http(admin.reveal()) as http:
        metrics = (await http.get("/metrics")).text
    [row] = await spooled(served)
    away.mend()
    await served.sweep()
    async with served.http(key) as http:
        ready = await http.get("/ready")
    assert (degraded.status_code, degraded.json()) == (
        200,
        {"status": "degraded", "database": "ok", "storage": "failing"},
    )
    assert "gateway_image_store_failing 1.0" in metrics
    assert f"gateway_image_spool_bytes {float(row.size_bytes)}" in metrics
    assert ready.json() == {"status": "ready", "database": "ok", "storage": "ok"}


async def test_a_gateway_killed_while_images_wait_loses_none_of_them(
    hosted: Hosted, away: Away, stub: Stub, tmp_path: Path
) -> None:
    served, key = hosted.served, await hosted.served.key()
    environment = hosted.place.environment
    with gateway_processes(hosted.settings, tmp_path, 1, **environment) as [process]:
        await process.until_ready()
        away.fail()
        async with client_of(process.base_url, key) as http:
            first = [await post(http, number) for number in range(5)]
        process.kill()
    assert {answer.status_code for answer in first} == {200}
    assert len(await spooled(served)) == 5
    away.mend()
    with gateway_processes(
        hosted.settings, tmp_path, 1, **environment, GATEWAY_SWEEP_INTERVAL_SECONDS="0.2"
    ) as [process]:
        await process.until_ready()

        async def is_drained() -> bool:
            return not await spooled(served)

        async with client_of(process.base_url, key) as http:
            again = [await post(http, number) for number in range(5)]
            await eventually(is_drained)
    assert [one.json()["data"] for one in again] == [one.json()["data"] for one in first]
    assert len(await hosted.files()) == 5
    assert len(stub.bill) == 5


async def test_a_store_and_a_spool_that_are_away_together_are_tried_again(
    hosted: Hosted, away: Away, stub: Stub
) -> None:
    """The answer has gone with the bytes; the key gives them once one of the two is back."""
    served, key = hosted.served, await hosted.served.key()
    away.fail()
    await make_known(hosted, key)
    await served.owner_sql("ALTER TABLE image_spool RENAME TO image_spool_away")
    async with served.http(key) as http:
        first = await post(http, 1)
        away.mend()

        async def is_stored() -> bool:
            return len(await hosted.files()) == 1

        await eventually(is_stored)
        await served.owner_sql("ALTER TABLE image_spool_away RENAME TO image_spool")
        again = await post(http, 1)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json()["data"] == first.json()["data"]
    assert len(stub.bill) == 1


@pytest.mark.parametrize("away", ["files"], indirect=True)
async def test_a_stop_that_interrupts_storing_an_image_tries_the_spool_once_more(
    hosted: Hosted, away: Away, stub: Stub, tmp_path: Path
) -> None:
    served, key = hosted.served, await hosted.served.key()
    environment = hosted.place.environment | {
        "GATEWAY_DRAIN_SECONDS": "0.1",
        "GATEWAY_STORE_RETRY_SECONDS": "50",
    }
    with gateway_processes(hosted.settings, tmp_path, 1, **environment) as [process]:
        await process.until_ready()
        away.fail()
        await served.owner_sql("ALTER TABLE image_spool RENAME TO image_spool_away")

        async def is_refused() -> bool:
            return "image_not_spooled" in process.log.read_text()

        async with client_of(process.base_url, key) as http:
            asking = asyncio.create_task(post(http, 1, response_format="url"))
            await eventually(is_refused)
            await served.owner_sql("ALTER TABLE image_spool_away RENAME TO image_spool")
            process.process.send_signal(signal.SIGTERM)
            answer = await asking
            await asyncio.to_thread(process.process.wait, 30)
    assert (answer.status_code, error_of(answer)["code"]) == (504, "outcome_unknown")
    [row] = await spooled(served)
    away.mend()
    await served.sweep()
    async with served.http(key) as http:
        again = await post(http, 1, response_format="url")
    assert (again.status_code, await hosted.files()) == (200, [row.path])
    assert len(stub.bill) == 1
