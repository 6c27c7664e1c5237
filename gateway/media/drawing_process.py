"""The subprocess that draws the images of test keys, with the limits of a decoder.

Started as `gateway.media.decoder_process` is. It runs at a low priority: a drawing, which is
free, must not slow anybody's paid call.
"""

import os
import sys
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps

from gateway.media import decoder_process
from gateway.media.decoder_process import JobLimits, JobOutput, decode, in_mode
from gateway.media.drawings.drawing import coarsen, encode, paint
from gateway.media.drawings.inputs import EditInputs, open_inputs

NICENESS = 10


@dataclass(frozen=True, slots=True)
class DrawingJob:
    """One image to draw.

    `prompt` is the beginning of the prompt, `seed` (hexadecimal) that of all of it. `stage` is the
    number of a partial image, None for the whole one. The files of the job are the input images of
    an edit, then its mask and its markup.
    """

    prompt: str
    seed: str
    index: int
    width: int
    height: int
    transparent: bool
    output_format: Literal["png", "jpeg", "webp"]
    compression: int | None
    stage: int | None
    has_mask: bool
    has_markup: bool


def draw(sources: list[bytes], arguments: list[object], limits: JobLimits) -> JobOutput:
    """Paint and encode one image."""
    (fields,) = arguments
    job = DrawingJob(**fields)  # type: ignore[arg-type]  # the gateway's own, of this version
    image = paint(
        job.prompt,
        index=job.index,
        size=(job.width, job.height),
        transparent=job.transparent,
        inputs=_inputs(sources, job, limits) if sources else None,
        seed=bytes.fromhex(job.seed),
    )
    if job.stage is not None:
        image = coarsen(image, job.stage)
    content = encode(image, job.output_format, job.compression)
    return JobOutput(content, f"image/{job.output_format}", image)


def _inputs(sources: list[bytes], job: DrawingJob, limits: JobLimits) -> EditInputs:
    def read(file: bytes, width: int, height: int) -> Image.Image:
        return ImageOps.fit(in_mode(decode(file, limits).image, "RGBA"), (width, height))

    files = list(sources)
    markup = files.pop() if job.has_markup else None
    mask = files.pop() if job.has_mask else None
    return open_inputs(files, read, mask=mask, markup=markup, size=(job.width, job.height))


if __name__ == "__main__":
    os.nice(NICENESS)
    decoder_process.main(sys.argv[1:], {**decoder_process.TASKS, "draw": draw})
