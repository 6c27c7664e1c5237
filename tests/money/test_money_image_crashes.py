"""M5 for edits and streams: a gateway killed at any step loses no bill and leaves nothing.

The steps that a request without images does not have: its upload, its check, images on their
way, and what is done to a finished image. The other gateway sweeps up; time is moved.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psutil  # type: ignore[import-untyped]  # ships without types
import pytest

from gateway.config import Settings
from tests.harness import GatewayProcess, Served
from tests.hosting_helpers import Hosted, files_in
from tests.image_helpers import file_bytes, mask
from tests.money.test_money_crashes import (
    expect_every_bill_booked,
    locked,
    victim,
    waiting_for_locks,
)
from tests.money_helpers import books, count_states, eventually
from tests.stub_openai import Fault, Stub

EDITS = "/v1/images/edits"
GPT_EDIT = {"model": "gpt-image-2", "prompt": "a fox", "size": "1024x1024", "quality": "low"}
STREAMED = GPT_EDIT | {"stream": "true", "partial_images": "3"}
DALL_E = {"model": "dall-e-2", "prompt": "a fox", "size": "256x256"}
SQUARE = file_bytes(mask(64, 64, (0, 0, 32, 32)))


async def post_edit(http: httpx2.AsyncClient, fields: dict[str, str]) -> httpx2.Response:
    return await http.post(EDITS, data=fields, files={"image": ("i.png", SQUARE, "image/png")})


def decoders(process: GatewayProcess) -> Sequence[psutil.Process]:
    """The decoder processes of a gateway."""
    children = psutil.Process(process.process.pid).children()
    return [child for child in children if "gateway.media.decoder_process" in child.cmdline()]


async def until_gone(processes: Sequence[psutil.Process]) -> None:
    """Wait until none of the processes runs, or is only not yet reaped."""

    async def gone() -> bool:
        await asyncio.to_thread(psutil.wait_procs, processes, 0.05)
        return all(
            not one.is_running() or one.status() == psutil.STATUS_ZOMBIE for one in processes
        )

    await eventually(gone)


async def expect_no_trace(hosted_by: Settings, served: Served) -> None:
    """After hours and one comparison of store and rows: as many files as living rows."""
    hosted = Hosted(served, files_in(hosted_by.data_dir / "images"), hosted_by)
    await hosted.reconcile()
    assert await hosted.files() == await hosted.living()


@asynccontextmanager
async def frozen(processes: Sequence[psutil.Process]) -> AsyncIterator[None]:
    """Stop these processes (SIGSTOP)."""
    for one in processes:
        one.suspend()
    try:
        yield
    finally:
        for one in processes:
            if one.is_running():
                one.resume()


async def test_a_kill_during_an_upload_leaves_nothing(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    async with victim(settings, served, tmp_path) as (process, http):
        address = urlsplit(process.base_url)
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        head = (
            f"POST {EDITS} HTTP/1.1\r\nhost: {address.netloc}\r\n"
            f"authorization: {http.headers['authorization']}\r\ncontent-length: 900000\r\n"
            "content-type: multipart/form-data; boundary=b\r\n\r\n"
            '--b\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
        )
        writer.write(head.encode() + bytes(300_000))
        await writer.drain()
        await until_busy(process)
        process.kill()
        writer.close()
    assert (stub.calls, await books(served)) == ([], [])


def _nameless(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).endswith("(deleted)")
    except OSError:
        return False


async def test_a_kill_while_an_image_is_checked_leaves_nothing_not_even_the_decoder(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    async with victim(settings, served, tmp_path) as (process, http):
        assert (await post_edit(http, GPT_EDIT)).status_code == 200
        children = decoders(process)
        async with frozen(children):
            task = asyncio.create_task(post_edit(http, GPT_EDIT))
            await until_busy(process)
            process.kill()
            await asyncio.gather(task, return_exceptions=True)
            await until_gone(children)
    assert len(stub.calls) == 1
    await expect_every_bill_booked(served, stub, holds=1)
    await expect_no_trace(settings, served)


async def until_busy(process: GatewayProcess) -> None:
    """Wait until the process has an image in an unlinked file."""

    async def busy() -> bool:
        folder = Path(f"/proc/{process.process.pid}/fd")
        found = await asyncio.to_thread(lambda: [_nameless(one) for one in folder.iterdir()])
        return any(found)

    await eventually(busy)


async def killed_on_the_way(
    settings: Settings, served: Served, stub: Stub, folder: Path, fields: dict[str, str]
) -> None:
    """Kill the gateway between the first partial images and the last."""
    stub.faults.add(Fault("stream_hold", times=None))
    async with victim(settings, served, folder) as (process, http):
        files = {"image": ("i.png", SQUARE, "image/png")}
        async with http.stream("POST", EDITS, data=fields, files=files) as response:
            lines = response.aiter_lines()
            assert (await anext(lines)).startswith("event: image_edit.partial_image")
            await stub.until_held(1)
            process.kill()
            with pytest.raises(httpx2.TransportError):
                [line async for line in lines]
    assert await count_states(served) == {"held": 1}
    stub.faults.clear()
    stub.release()
    await stub.until_idle()
    assert len(stub.bill) == len(stub.calls) == 1
    await expect_every_bill_booked(served, stub, holds=1)
    await expect_no_trace(settings, served)


async def test_a_kill_between_images_on_their_way_is_booked(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    await killed_on_the_way(settings, served, stub, tmp_path, STREAMED)


async def killed_unsettled(
    settings: Settings, served: Served, stub: Stub, folder: Path, fields: dict[str, str]
) -> None:
    """Kill the gateway after the image is stored, while its settlement waits for a lock."""
    async with victim(settings, served, folder) as (process, http):
        stub.faults.add(Fault(hold=True))
        task = asyncio.create_task(post_edit(http, fields))
        await stub.until_held(1)
        async with locked(settings, "SELECT 1 FROM reservation FOR UPDATE"):
            stub.release()
            await eventually(lambda: waiting_for_locks(served))
            hosted = Hosted(served, files_in(settings.data_dir / "images"), settings)

            async def stored() -> bool:
                return len(await hosted.files()) == 1

            await eventually(stored)
            process.kill()
            await asyncio.gather(task, return_exceptions=True)

        async def settled_down() -> bool:
            return not await waiting_for_locks(served)

        await eventually(settled_down)
    assert len(stub.bill) == len(stub.calls) == 1
    await expect_every_bill_booked(served, stub, holds=1)
    await expect_no_trace(settings, served)


@pytest.mark.parametrize("fields", [GPT_EDIT, STREAMED, DALL_E], ids=["edit", "stream", "dall-e"])
async def test_a_kill_between_store_and_settlement_is_booked_and_leaves_no_file(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path, fields: dict[str, str]
) -> None:
    await killed_unsettled(settings, served, stub, tmp_path, fields)


@asynccontextmanager
async def finishing(
    settings: Settings, served: Served, stub: Stub, folder: Path
) -> AsyncIterator[tuple[GatewayProcess, asyncio.Task[httpx2.Response]]]:
    """A gateway whose bought image is being composited by a stopped decoder."""
    async with victim(settings, served, folder) as (process, http):
        stub.faults.add(Fault(hold=True))
        task = asyncio.create_task(post_edit(http, DALL_E))
        await stub.until_held(1)
        children = decoders(process)
        async with frozen(children):
            stub.release()
            await stub.until_idle()
            yield process, task
        await asyncio.gather(task, return_exceptions=True)


async def test_a_kill_while_a_bought_image_is_finished_is_booked(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    async with finishing(settings, served, stub, tmp_path) as (process, _):
        children = decoders(process)
        process.kill()
        await until_gone(children)
    assert len(stub.bill) == len(stub.calls) == 1
    await expect_every_bill_booked(served, stub, holds=1)
    await expect_no_trace(settings, served)


async def test_a_gateway_told_to_stop_while_it_finishes_an_image_writes_down_what_it_cost(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    quick = settings.model_copy(update={"drain_seconds": 1})
    async with finishing(quick, served, stub, tmp_path) as (process, _):
        os.kill(process.process.pid, signal.SIGTERM)
        assert await asyncio.to_thread(process.process.wait, 25) == 0
    assert await count_states(served) == {"posted": 1}
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in stub.bill)
    await expect_no_trace(settings, served)


async def test_a_gateway_told_to_stop_lets_streams_and_edits_finish(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    stub.faults.add(Fault(hold=True, times=None))
    async with victim(settings, served, tmp_path) as (process, http):
        tasks = [
            asyncio.create_task(post_edit(http, fields)) for fields in (GPT_EDIT, STREAMED, DALL_E)
        ]
        await stub.until_held(3)
        os.kill(process.process.pid, signal.SIGTERM)
        stub.release()
        answers = await asyncio.gather(*tasks)
        assert {answer.status_code for answer in answers} == {200}
        assert b"image_edit.completed" in answers[1].content
        assert await asyncio.to_thread(process.process.wait, 25) == 0
    assert await count_states(served) == {"posted": 3}
    assert await served.ledger_total() == sum(line.cost_nano_usd for line in stub.bill)
    await expect_no_trace(settings, served)


async def test_a_gateway_told_to_stop_tells_a_stream_that_its_outcome_is_unknown(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    stub.faults.add(Fault("stream_hold", times=None))
    quick = settings.model_copy(update={"drain_seconds": 1})
    async with victim(quick, served, tmp_path) as (process, http):
        task = asyncio.create_task(post_edit(http, STREAMED))
        await stub.until_held(1)
        os.kill(process.process.pid, signal.SIGTERM)
        assert await asyncio.to_thread(process.process.wait, 25) == 0
        answer = await task
    assert b"event: error" in answer.content
    assert b"outcome_unknown" in answer.content
    assert await count_states(served) == {"unknown": 1}
    stub.faults.clear()
    stub.release()
    await stub.until_idle()
    await expect_every_bill_booked(served, stub, holds=1)


STEPS = ["edit", "stream", "dall-e", "on the way"]


@pytest.mark.full
@pytest.mark.parametrize("step", STEPS * 20)
async def test_twenty_kills_at_each_step_of_an_edit_lose_nothing(
    step: str, settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    if step == "on the way":
        await killed_on_the_way(settings, served, stub, tmp_path, STREAMED)
    else:
        fields = {"edit": GPT_EDIT, "stream": STREAMED, "dall-e": DALL_E}[step]
        await killed_unsettled(settings, served, stub, tmp_path, fields)
