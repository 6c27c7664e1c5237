"""The decoder processes: their limits, their ends, and the fair order of jobs."""

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships without types
import pytest
import uvloop
from PIL import Image

from gateway.config.uploads import UploadSettings
from gateway.media.decoder import Decoder, DecoderBusy, ImageFacts, ImageProblem, UnusableImage
from tests.decoding_helpers import (
    GOOD,
    GOOD_IMAGE,
    LIMITS,
    clean,
    file,
    problem,
    processes,
    started,
)
from tests.hazards import drawing, encoded, hazards, ihdr, png

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="macOS has no /proc and no waitid")


def on_its_side() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


# Limits of the process


async def test_an_image_beyond_the_memory_ends_its_process_and_the_next_one_works() -> None:
    """One byte a pixel fits, so that decoding begins; four do not."""
    decoder = Decoder(replace(LIMITS, memory_bytes=24 * 1024 * 1024))
    process = await started(decoder)
    large = encoded(Image.new("P", (4000, 4000)), "PNG")
    assert await problem(decoder, large) == ImageProblem.TOO_EXPENSIVE
    assert not process.is_running()
    assert await clean(decoder, GOOD) == (GOOD_IMAGE, GOOD)
    await decoder.close()


@pytest.mark.parametrize(
    ("form", "options"), [("PNG", {}), ("JPEG", {"progressive": True}), ("WEBP", {})]
)
async def test_an_image_that_cannot_fit_is_refused_before_it_is_decoded(
    form: str, options: dict[str, object]
) -> None:
    decoder = Decoder(replace(LIMITS, memory_bytes=24 * 1024 * 1024))
    process = await started(decoder)
    large = encoded(Image.new("RGB", (4000, 4000)), form, **options)
    assert await problem(decoder, large) == ImageProblem.TOO_EXPENSIVE
    assert process.is_running()
    await decoder.close()


@pytest.mark.parametrize(
    ("form", "size", "options", "expected"),
    [
        ("PNG", (8000, 5000), {}, "decoded"),
        ("JPEG", (8000, 5000), {"progressive": True}, "decoded"),
        ("JPEG", (8000, 5000), {"exif": on_its_side()}, "decoded"),
        ("WEBP", (4000, 3000), {}, "decoded"),
        ("WEBP", (6000, 4000), {}, "refused"),
    ],
)
async def test_default_memory_decodes_photographs_and_refuses_large_webp(
    form: str, size: tuple[int, int], options: dict[str, object], expected: str
) -> None:
    memory_bytes = UploadSettings().decoder_memory_bytes
    decoder = Decoder(replace(LIMITS, max_pixels=40_000_000, memory_bytes=memory_bytes))
    large = encoded(Image.new("RGB", size), form, **options)
    if expected == "decoded":
        facts, _ = await clean(decoder, large)
        assert {facts.width, facts.height} == set(size)
    else:
        assert await problem(decoder, large) == ImageProblem.TOO_EXPENSIVE
    await decoder.close()


async def test_a_job_beyond_its_time_ends_its_process_and_the_next_one_works() -> None:
    decoder = Decoder(replace(LIMITS, job_seconds=2))
    process = await started(decoder)
    process.suspend()
    assert await problem(decoder, GOOD) == ImageProblem.TOO_EXPENSIVE
    assert not process.is_running()
    await decoder.close()


@on_linux
async def test_a_process_killed_while_idle_is_replaced() -> None:
    decoder = Decoder(LIMITS)
    process = await started(decoder)
    process.kill()
    # Dead, but not reaped: that is the decoder's to do.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - it is dead
    assert await clean(decoder, GOOD) == (GOOD_IMAGE, GOOD)
    await decoder.close()


@on_linux
def limit(limits: str, name: str) -> int:
    """The hard limit of that name in `/proc/PID/limits`."""
    [line] = [line for line in limits.splitlines() if line.lower().startswith(f"max {name}")]
    return int(line.split()[-2])


async def test_the_process_knows_nothing_of_the_gateway_and_is_limited() -> None:
    decoder = Decoder(LIMITS)
    process = await started(decoder)
    told = Path("/proc") / str(process.pid)
    status, limits = (told / "status").read_text(), (told / "limits").read_text()
    assert "NoNewPrivs:\t1" in status
    if os.geteuid() == 0:
        # The user `65534` (no one): it may open only what every user may.
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        assert "Gid:\t65534\t65534\t65534\t65534" in status
        assert "Groups:\t \n" in status
    else:
        assert process.environ() == {}
        assert process.cwd() == "/"
    found = {name: limit(limits, name) for name in ("core file size", "processes", "open files")}
    assert found == {"core file size": 0, "processes": 0, "open files": 40}
    assert LIMITS.memory_bytes < limit(limits, "address space") < 2 * LIMITS.memory_bytes
    await decoder.close()


async def test_a_terminals_signals_do_not_end_the_process_before_the_gateway_does() -> None:
    decoder = Decoder(LIMITS)
    process = await started(decoder)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert await clean(decoder, GOOD) == (GOOD_IMAGE, GOOD)
    assert process.is_running()
    await decoder.close()


async def test_damaged_files_are_answered_by_one_living_process() -> None:
    """Bits turned in every format: accepted or refused, but the process stays the same."""
    decoder = Decoder(LIMITS)
    process = await started(decoder)
    choices = random.Random(7)
    kept = [h.content for h in hazards() if h.image and len(h.content) < 20_000]
    for _ in range(300):
        content = bytearray(choices.choice(kept))
        for _ in range(choices.randrange(1, 6)):
            content[choices.randrange(len(content))] ^= 1 << choices.randrange(8)
        with suppress(UnusableImage):
            await clean(decoder, bytes(content))
    assert await clean(decoder, GOOD) == (GOOD_IMAGE, GOOD)
    assert process.is_running()
    await decoder.close()


# Many at once


async def test_no_process_starts_before_it_is_needed_and_no_more_than_allowed() -> None:
    before = set(processes())
    decoder = Decoder(replace(LIMITS, processes=2))
    assert set(processes()) == before
    sizes = range(10, 22)
    contents = [encoded(drawing("RGB", (size, size)), "PNG") for size in sizes]
    answers = await asyncio.gather(*(clean(decoder, content) for content in contents))
    assert [(image.width, cleaned) for image, cleaned in answers] == list(
        zip(sizes, contents, strict=True)
    )
    assert len(set(processes()) - before) == 2
    await decoder.close()


async def test_a_job_that_waits_too_long_is_told_that_the_decoder_is_busy() -> None:
    decoder = Decoder(replace(LIMITS, queue_seconds=0.1))
    process = await started(decoder)
    process.suspend()
    first = asyncio.create_task(clean(decoder, GOOD))
    await asyncio.sleep(0)
    with pytest.raises(DecoderBusy):
        await clean(decoder, GOOD)
    process.resume()
    assert await first == (GOOD_IMAGE, GOOD)
    await decoder.close()


async def test_owners_take_turns_however_many_images_one_has_sent() -> None:
    decoder = Decoder(LIMITS)
    process = await started(decoder)
    process.suspend()
    done: list[str] = []

    async def check(owner: str) -> None:
        await decoder.clean(file(GOOD), file(), owner=owner)
        done.append(owner)

    jobs = [asyncio.create_task(check(owner)) for owner in ("many", "many", "many", "one")]
    await asyncio.sleep(0)
    process.resume()
    await asyncio.gather(*jobs)
    assert done == ["many", "many", "one", "many"]
    await decoder.close()


async def test_a_cancelled_job_does_not_answer_the_next_one() -> None:
    decoder = Decoder(LIMITS)
    process = await started(decoder)
    process.suspend()
    source, target = file(encoded(drawing("RGBA"), "WEBP")), file()
    cancelled = asyncio.create_task(decoder.clean(source, target))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    source.close()
    target.close()
    waiting = asyncio.create_task(clean(decoder, GOOD))
    await asyncio.sleep(0)
    process.resume()
    assert await waiting == (GOOD_IMAGE, GOOD)
    await decoder.close()


async def test_a_job_cancelled_while_waiting_ends_no_process() -> None:
    decoder = Decoder(LIMITS)
    process = await started(decoder)
    process.suspend()
    jobs = [asyncio.create_task(clean(decoder, GOOD)) for _ in range(3)]
    await asyncio.sleep(0)
    jobs[1].cancel()
    process.resume()
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    assert answers[0::2] == [(GOOD_IMAGE, GOOD)] * 2
    assert isinstance(answers[1], asyncio.CancelledError)
    await decoder.close()


# The end


async def test_closing_leaves_no_process_and_refuses_more_work() -> None:
    before = set(processes())
    decoder = Decoder(replace(LIMITS, processes=2))
    await asyncio.gather(*(clean(decoder, GOOD) for _ in range(4)))
    await decoder.close()
    assert set(processes()) == before
    with pytest.raises(DecoderBusy):
        await clean(decoder, GOOD)
    await decoder.close()


async def test_closing_ends_running_and_waiting_jobs() -> None:
    decoder = Decoder(LIMITS)
    process = await started(decoder)
    process.suspend()
    jobs = [asyncio.create_task(clean(decoder, GOOD)) for _ in range(3)]
    await asyncio.sleep(0)
    await decoder.close()
    answers = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(answer) for answer in answers] == [DecoderBusy] * 3
    assert not process.is_running()


async def test_no_descriptor_is_left_open() -> None:
    decoder = Decoder(LIMITS)
    await started(decoder)
    good, bad, target = file(GOOD), file(png(ihdr(8, 8))), file()
    gc.collect()  # what earlier tests of this process left open must not be closed in between
    before = psutil.Process().num_fds()
    for _ in range(3):
        await decoder.clean(good, target)
        with pytest.raises(UnusableImage):
            await decoder.clean(bad, target)
    assert psutil.Process().num_fds() == before
    await decoder.close()


KILLED = """
import asyncio, io, os, signal, tempfile
from gateway.media.decoder import Decoder, DecoderLimits, UnusableImage

async def main():
    decoder = Decoder(DecoderLimits(1, 60, 60, 1000, 1 << 28))
    try:
        await decoder.clean(tempfile.TemporaryFile(), tempfile.TemporaryFile())
    except UnusableImage:
        os.write(1, b"it answered")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_a_gateway_that_is_killed_leaves_no_process() -> None:
    """The process holds the same standard error: its end shows only when both are gone."""
    gateway = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, check=False)
    assert (gateway.returncode, gateway.stdout) == (-signal.SIGKILL, b"it answered")


def test_it_works_under_uvloop() -> None:
    async def cleaned() -> tuple[ImageFacts, bytes]:
        decoder = Decoder(LIMITS)
        try:
            return await clean(decoder, GOOD)
        finally:
            await decoder.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(cleaned()) == (GOOD_IMAGE, GOOD)


def peak_bytes(process: psutil.Process) -> int:
    """The most memory that a process has had."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    [peak] = [line for line in lines if line.startswith("VmHWM:")]
    return int(peak.split()[1]) * 1024


@on_linux
@pytest.mark.parametrize("is_progressive", [False, True])
async def test_a_jpeg_that_stays_as_it_is_takes_little_memory_to_check(
    *, is_progressive: bool
) -> None:
    """40 million pixels; drawn whole, they would take 160 MB and more."""
    large = Image.new("RGB", (8000, 5000), "red")
    content = encoded(large, "JPEG", progressive=is_progressive)
    decoder = Decoder(replace(LIMITS, max_pixels=40_000_000))
    process = await started(decoder)
    image, cleaned = await clean(decoder, content)
    assert (image.width, image.height) == (8000, 5000)
    assert cleaned == content
    assert peak_bytes(process) < 150_000_000
    cut_off = content[: len(content) // 2]
    assert await problem(decoder, cut_off) is ImageProblem.UNREADABLE
    await decoder.close()
