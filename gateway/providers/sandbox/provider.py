"""The provider of test keys: synthetic images, realistic usage, failures on demand, no cost.

Each vendor's models keep its traits. A prompt that contains one of the magic words triggers that
failure (docs/sandbox.md).
"""

import asyncio
import hashlib
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal

import pybase64

from gateway.domain import ImageRequest, InputImage, PartialSink, SecretText
from gateway.image_models import INPUT_PATCH, PARTIAL_IMAGE_TOKENS, Unit, parse_size
from gateway.image_parameters import MAX_SEED
from gateway.provider_answers import Outcome, PartialImage, ProviderAnswer, ProviderReply, Usage
from gateway.providers.base import ProviderFailure, Reason

OutputFormat = Literal["png", "jpeg", "webp"]
PROMPT_CHARACTERS_READ = 2000
"""As many as a drawing shows something of."""
OK = 200
SLOW_SECONDS = 5.0
BYTES_PER_TOKEN = 4
INPUT_PATCHES_MAX = 1536
INPUT_FRAME_TOKENS = 9
MICROSECONDS = 1_000_000
SECONDS_OF_IMAGE = 2
"""The time that an image takes at a model that is billed by the second."""
DEFAULT_SIZE = "1024x1024"
DEFAULT_QUALITY = "medium"
OWN_FORMAT: OutputFormat = "jpeg"
OWN_INPUT_TOKENS = 1120
THINKING_TOKENS = {"low": 60, "medium": 240, "high": 900}
"""Gemini's format, cost of an input and thinking, as observed; none of them is promised."""
MAGIC_MODERATION = "[sandbox:moderation]"
MAGIC_NO_USAGE = "[sandbox:no_usage]"
MAGIC_SLOW = "[sandbox:slow]"
MAGIC_STREAM_ERROR = "[sandbox:stream_error]"

_MAGIC = re.compile(r"\[sandbox:([a-z_]{1,30})(?: ([\w.-]{1,100}))?\]")
"""A word that triggers a failure, perhaps of one model alone."""
_FORMATS: Mapping[str, OutputFormat] = {"png": "png", "jpeg": "jpeg", "webp": "webp"}
_STATUSES = {
    Reason.MODERATION: 400,
    Reason.INVALID: 400,
    Reason.CREDENTIAL: 401,
    Reason.RATE_LIMITED: 429,
}
"""OpenAI's status for each reason; failures with any other reason have no HTTP answer."""
_FAILURES: Mapping[str, tuple[Outcome, Reason, str, str | None]] = {
    MAGIC_MODERATION: (
        Outcome.MODERATION,
        Reason.MODERATION,
        "Your request was rejected by the safety system.",
        "moderation_blocked",
    ),
    "[sandbox:rejected]": (
        Outcome.REJECTED,
        Reason.INVALID,
        "The sandbox refuses this prompt, as its magic word requests.",
        "invalid_value",
    ),
    "[sandbox:rate_limited]": (
        Outcome.REJECTED,
        Reason.RATE_LIMITED,
        "Rate limit reached. Please try again in 1s.",
        "rate_limit_exceeded",
    ),
    "[sandbox:credential]": (
        Outcome.REJECTED,
        Reason.CREDENTIAL,
        "Incorrect API key provided.",
        "invalid_api_key",
    ),
    "[sandbox:unreachable]": (
        Outcome.NOT_SENT,
        Reason.UNREACHABLE,
        "The provider cannot be reached.",
        None,
    ),
    "[sandbox:unknown]": (
        Outcome.AMBIGUOUS,
        Reason.UNKNOWN,
        "The connection to the provider broke during the call.",
        None,
    ),
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """One image to draw.

    `prompt` is the beginning of the prompt, `seed` (hexadecimal) that of all of it. `stage` is the
    number of a partial image, None for the whole one. The files that come with it are the input
    images of an edit, then its mask and its markup.
    """

    prompt: str
    seed: str
    index: int
    width: int
    height: int
    transparent: bool
    output_format: OutputFormat
    compression: int | None
    stage: int | None
    has_mask: bool
    has_markup: bool


Drawer = Callable[[Drawing, Sequence[BinaryIO]], Awaitable[bytes]]
"""Draws an image in a process of its own. Raises `ProviderFailure` if that is not possible now."""


@dataclass(frozen=True)
class _Job:
    """One request with the sandbox's defaults filled in."""

    request: ImageRequest
    size: str
    quality: str
    background: Literal["opaque", "transparent"]
    output_format: OutputFormat
    created: int

    async def draw(self, draw: Drawer, index: int, stage: int | None = None) -> str:
        """Draw an image, or a partial one; return it as base64."""
        request = self.request
        overlays = [one for one in (request.mask, request.markup) if one is not None]
        width, height = parse_size(self.size)
        whole = f"{index}\n{request.prompt}".encode("utf-8", "surrogatepass")
        content = await draw(
            Drawing(
                prompt=request.prompt[:PROMPT_CHARACTERS_READ],
                seed=hashlib.sha256(whole).hexdigest(),
                index=index,
                width=width,
                height=height,
                # JPEG has no alpha channel.
                transparent=self.background == "transparent" and self.output_format != "jpeg",
                output_format=self.output_format,
                compression=request.output_compression,
                stage=stage,
                has_mask=request.mask is not None,
                has_markup=request.markup is not None,
            ),
            [image.file for image in (*request.inputs, *overlays)] if request.inputs else [],
        )
        return pybase64.b64encode(content).decode()

    async def draw_partial(self, draw: Drawer, index: int, stage: int) -> PartialImage:
        return PartialImage(
            index=stage,
            base64=await self.draw(draw, index, stage),
            created=self.created,
            size=self.size,
            quality=self.quality,
            background=self.background,
            output_format=self.output_format,
        )


class Sandbox:
    """The provider `sandbox`."""

    def __init__(self, draw: Drawer) -> None:
        self._draw = draw

    async def generate(
        self, request: ImageRequest, credential: SecretText, partials: PartialSink | None = None
    ) -> ProviderAnswer:
        """Draw the images of `request`; the credential is not used.

        Raises:
            ProviderFailure: the prompt contains a magic word.
        """
        del credential
        if MAGIC_SLOW in request.prompt:
            await asyncio.sleep(SLOW_SECONDS)
        job = _read(request)
        for found in _MAGIC.finditer(request.prompt):
            word, model = f"[sandbox:{found[1]}]", found[2]
            if word in _FAILURES and model in {None, request.model.id}:
                raise (
                    _refusal_in_a_200(job)
                    if _is_refused_in_a_200(job, word)
                    else (magic_failure(word))
                )
        return await self._draw_all(job, partials)

    async def close(self) -> None:
        """Do nothing: the sandbox has no connections."""

    async def _draw_all(self, job: _Job, partials: PartialSink | None) -> ProviderAnswer:
        request = job.request
        images, sent = [], 0
        for index in range(request.n):
            if request.stream and partials is not None:
                for stage in range(request.partial_images):
                    partials(await job.draw_partial(self._draw, index, stage))
                    sent += 1
            if MAGIC_STREAM_ERROR in request.prompt:
                raise ProviderFailure(
                    Outcome.AMBIGUOUS, Reason.UNKNOWN, "The stream broke off.", reply=_reply(OK)
                )
            images.append(await job.draw(self._draw, index))
        return ProviderAnswer(
            images=tuple(images),
            created=job.created,
            usage=_usage(job, sent),
            size=job.size,
            quality=None if request.model.own_format else job.quality,
            background=None if request.model.own_format else job.background,
            output_format=job.output_format,
            reply=_reply(OK),
            model_version=request.model.id if request.model.own_format else None,
            seeds=_seeds(request),
            microseconds=_microseconds(request),
        )


def _microseconds(request: ImageRequest) -> int:
    """Return the time that an operator's own host would bill, at most that of its calls."""
    calls = request.n if request.model.one_image_per_call else 1
    seconds = min(request.n * SECONDS_OF_IMAGE, calls * request.model.read_timeout_seconds)
    return seconds * MICROSECONDS


def _is_refused_in_a_200(job: _Job, word: str) -> bool:
    """Tell if the vendor refuses with an answer that is billed, as Google does."""
    return job.request.model.own_format and word == MAGIC_MODERATION


def _refusal_in_a_200(job: _Job) -> ProviderFailure:
    """Return the failure of an answer without an image; the prompt and the thinking are billed."""
    usage = _usage(job, 0)
    return ProviderFailure(
        Outcome.AMBIGUOUS if usage is None else Outcome.REFUSED_CHARGED,
        Reason.MODERATION,
        "Your request was rejected by the safety system (IMAGE_SAFETY).",
        code="moderation_blocked",
        usage=None if usage is None else replace(usage, image_output_tokens=0),
        reply=_reply(OK),
    )


def magic_failure(word: str) -> ProviderFailure:
    """Build the failure that a magic word such as `[sandbox:unknown]` triggers."""
    outcome, reason, message, code = _FAILURES[word]
    return ProviderFailure(
        outcome,
        reason,
        message,
        code=code,
        retry_after_seconds=1 if reason is Reason.RATE_LIMITED else None,
        reply=_reply(_STATUSES[reason]) if reason in _STATUSES else None,
    )


def _reply(status: int) -> ProviderReply:
    """Return a synthetic reply, with an id in the form of OpenAI's."""
    return ProviderReply(status, f"req_sandbox_{random.getrandbits(64):016x}")


def _read(request: ImageRequest) -> _Job:
    wording = request.model.wording
    size = DEFAULT_SIZE if wording is None else wording.default_size
    return _Job(
        request=request,
        size=size if request.size in {None, "auto"} else str(request.size),
        quality=DEFAULT_QUALITY if request.quality in {None, "auto"} else str(request.quality),
        background="transparent" if request.background == "transparent" else "opaque",
        output_format=_FORMATS[
            request.output_format or (OWN_FORMAT if request.model.own_format else "png")
        ],
        created=int(time.time()),
    )


def _seeds(request: ImageRequest) -> tuple[int, ...]:
    """Return the seeds of the images, at models that have them."""
    if "seed" not in request.model.parameters:
        return ()
    first = random.randrange(MAX_SEED) if request.seed is None else request.seed
    return tuple((first + index) % (MAX_SEED + 1) for index in range(request.n))


def _usage(job: _Job, partial_images: int) -> Usage | None:
    """Return the tokens; None for a model that is not billed by them, or if the prompt asks so."""
    request = job.request
    if MAGIC_NO_USAGE in request.prompt or request.model.unit is not Unit.TOKEN:
        return None
    each = request.model.tokens.output_tokens(job.quality, *parse_size(job.size))
    images = [*request.inputs, request.mask, request.markup]
    if request.model.one_image_per_call:
        # Every call reads the prompt and the inputs, and thinks.
        prompt_tokens = -(-len(request.prompt.encode()) // BYTES_PER_TOKEN)
        return Usage(
            text_input_tokens=request.n * prompt_tokens,
            image_input_tokens=request.n * len(request.inputs) * OWN_INPUT_TOKENS,
            text_output_tokens=request.n * THINKING_TOKENS.get(job.quality, 0),
            image_output_tokens=request.n * each,
        )
    return Usage(
        text_input_tokens=-(-len(request.prompt.encode()) // BYTES_PER_TOKEN),
        image_input_tokens=sum(_input_tokens(image) for image in images if image),
        text_output_tokens=0,
        image_output_tokens=request.n * each + partial_images * PARTIAL_IMAGE_TOKENS,
    )


def _input_tokens(image: InputImage) -> int:
    """Return the observed cost of an input: one token per patch and 9 more (1033 for 1024x1024)."""
    across, down = (-(-edge // INPUT_PATCH) for edge in (image.width, image.height))
    return min(across * down, INPUT_PATCHES_MAX) + INPUT_FRAME_TOKENS
