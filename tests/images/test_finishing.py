"""A bought image is finished even if other tenants, the kernel or the disk interfere."""

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil  # type: ignore[import-untyped]  # ships without types

from gateway.config import Settings
from tests.decoding_helpers import processes
from tests.harness import (
    GatewayProcess,
    Served,
    error_of,
    gateway_process,
    make_settings,
    process_environment,
    served_gateway,
)
from tests.image_helpers import expect_one_call_each, file_bytes, mask, png
from tests.money_helpers import books, client_of, eventually
from tests.stub_openai import Fault, Stub

EDITS = "/v1/images/edits"
GENERATIONS = "/v1/images/generations"
SMALL = {"model": "dall-e-2", "prompt": "a fox", "size": "256x256", "response_format": "b64_json"}
HOLED = {"image": ("i.png", file_bytes(mask(64, 64, (0, 0, 32, 32))), "image/png")}
EDIT = {"model": "gpt-image-2", "prompt": "a fox", "size": "1024x1024", "quality": "low"}


@contextmanager
def frozen(stopped: Sequence[psutil.Process]) -> Iterator[None]:
    for one in stopped:
        one.suspend()
    try:
        yield
    finally:
        for one in stopped:
            if one.is_running():
                one.resume()


async def test_a_bought_image_does_not_wait_behind_images_that_are_checked(
    database: str, stub: Stub, tmp_path: Path
) -> None:
    settings = make_settings(
        database,
        tmp_path,
        OPENAI_BASE_URL=stub.base_url,
        decoder_processes=1,
        decoder_queue_seconds=0.5,
    )
    async with served_gateway(settings) as served:
        foreign = await served.key(tenant_id=await served.tenant("other"), livemode=False)
        async with served.http(await served.key()) as http, served.http(foreign) as other:
            before = set(processes())
            files = {"image": png()}
            assert (await other.post(EDITS, data=EDIT, files=files)).status_code == 200
            with frozen(list(set(processes()) - before)):
                checked = [
                    asyncio.create_task(other.post(EDITS, data=EDIT, files=files)) for _ in range(2)
                ]
                done, _ = await asyncio.wait(checked, return_when=asyncio.FIRST_COMPLETED)
                made = await http.post(GENERATIONS, json=SMALL)
            await asyncio.wait(checked)
            put_off = done.pop().result()
    assert (put_off.status_code, error_of(put_off)["code"]) == (503, "overloaded")
    assert made.status_code == 200, made.text


def decoders(process: GatewayProcess) -> set[psutil.Process]:
    children = psutil.Process(process.process.pid).children()
    return {child for child in children if "gateway.media.decoder_process" in child.cmdline()}


async def test_an_image_whose_decoder_is_killed_is_finished_by_another(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    with gateway_process(process_environment(settings), tmp_path / "log") as process:
        await process.until_ready()
        async with client_of(process.base_url, await served.key()) as http:
            assert (await http.post(EDITS, data=SMALL, files=HOLED)).status_code == 200
            stub.faults.add(Fault(hold=True))
            task = asyncio.create_task(http.post(EDITS, data=SMALL, files=HOLED))
            await stub.until_held(1)
            children = decoders(process)
            with frozen(list(children)):
                stub.release()

                async def is_sent() -> bool:
                    return await asyncio.to_thread(has_job, process, children)

                await eventually(is_sent)
                for child in children:
                    child.kill()
            answer = await task
    assert answer.status_code == 200, answer.text
    await expect_one_call_each(served, stub, requests=2)


def has_job(process: GatewayProcess, stopped: set[psutil.Process]) -> bool:
    """Tell if the paid answer is in an unlinked file that a decoder is about to read."""
    names = []
    for descriptor in Path(f"/proc/{process.process.pid}/fd").iterdir():
        try:
            names.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    # The cleaned input, the image that was made, the one to write; and each as it is handed over.
    return bool(stopped) and sum(name.endswith("(deleted)") for name in names) >= 6


async def test_without_room_for_files_uploads_wait_and_bought_images_are_named(
    settings: Settings, served: Served, stub: Stub, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    environment = process_environment(settings) | {"TMPDIR": str(folder)}
    # `from_nothing`: the imports already choose the directory of temporary files.
    with gateway_process(environment, tmp_path / "log", from_nothing=True) as process:
        await process.until_ready()
        async with client_of(process.base_url, await served.key()) as http:
            assert (await http.post(EDITS, data=SMALL, files=HOLED)).status_code == 200
            shutil.rmtree(folder)
            big = {"image": ("i.png", png() + bytes(200_000), "image/png")}
            refused: list[httpx2.Response] = [
                await http.post(EDITS, data=EDIT, files=HOLED),
                await http.post(EDITS, data=EDIT, files=big),
                await http.post(EDITS, json=EDIT | {"images": [{"image_url": "data:,"}]}),
            ]
            made = await http.post(GENERATIONS, json=SMALL)
    assert {(one.status_code, error_of(one)["code"]) for one in refused} == {(503, "overloaded")}
    assert (made.status_code, error_of(made)["code"]) == (500, "image_unfinished")
    assert made.headers["x-should-retry"] == "false"
    assert [line.state for line in await books(served)] == ["posted", "posted"]
