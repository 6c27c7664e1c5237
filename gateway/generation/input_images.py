"""Checks and cleans untrusted input images against the rules of the model.

Every image returned was decoded completely, has a format that the model accepts, and carries no
metadata, which often holds the place where a photograph was taken.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import BinaryIO
from uuid import UUID

from gateway import telemetry
from gateway.domain import ImageRequest, InputImage, Operation
from gateway.errors import ImageRefused, InvalidRequest, PayloadTooLarge, Unavailable
from gateway.image_models import InputRule
from gateway.media.decoder import (
    Decoder,
    DecoderBusy,
    DecoderFailed,
    ImageProblem,
    UnusableImage,
)
from gateway.media.temporary_files import new_spool

OVERLAYS = ("mask", "markup")
PNG = "image/png"
ADVICE = {
    ImageProblem.UNREADABLE: "please check your image file.",
    ImageProblem.ANIMATED: "it is animated; send a single frame.",
    ImageProblem.TOO_MANY_PIXELS: "it has too many pixels; send a smaller one.",
    ImageProblem.TOO_EXPENSIVE: "decoding it takes too much time or memory.",
}


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file: its form field (`image`, `mask` or `markup`) and its bytes."""

    field: str
    file: BinaryIO
    size_bytes: int


async def add_inputs(
    request: ImageRequest, uploads: Sequence[Upload], decoder: Decoder, tenant_id: UUID
) -> ImageRequest:
    """Check the input images of an edit or a variation; the returned request owns the files.

    Raises:
        InvalidRequest, ImageRefused, PayloadTooLarge: an image is missing or cannot be used.
        Unavailable: too many images are being checked.
    """
    check_counts(request, [upload.field for upload in uploads])
    for upload in uploads:
        _check_size(request, upload.field, upload.size_bytes)
    with ExitStack() as opened:
        # Sequentially, so that a request with sixteen images does not occupy the whole queue.
        images = [
            await _clean(upload, number, decoder, opened, tenant_id)
            for number, upload in enumerate(uploads, start=1)
        ]
        named = list(zip((upload.field for upload in uploads), images, strict=True))
        inputs = tuple(image for field, image in named if field == "image")
        overlays = {field: image for field, image in named if field != "image"}
        _check_images(request, inputs, overlays)
        opened.pop_all()
        return replace(
            request, inputs=inputs, mask=overlays.get("mask"), markup=overlays.get("markup")
        )


def check_inputs(request: ImageRequest) -> None:
    """Check images that are decoded already by the rules of the model of `request`.

    Raises:
        InvalidRequest, ImageRefused, PayloadTooLarge: the model does not accept one of them.
    """
    named = {"mask": request.mask, "markup": request.markup}
    overlays = {name: image for name, image in named.items() if image is not None}
    check_counts(request, [*("image" for _ in request.inputs), *overlays])
    for image in request.inputs:
        _check_size(request, "image", image.size_bytes)
    for name, overlay in overlays.items():
        _check_size(request, name, overlay.size_bytes)
    _check_images(request, request.inputs, overlays)


def check_counts(request: ImageRequest, fields: Sequence[str]) -> None:
    """Check that the model accepts input images in these fields and in this number.

    Raises:
        InvalidRequest: none, too many, or one in a field that the operation does not have.
    """
    rule = request.model.inputs
    images = fields.count("image")
    if images == 0:
        raise InvalidRequest(
            "Missing required parameter: 'image'.", code="missing_required_parameter", param="image"
        )
    if images > rule.max_images:
        raise InvalidRequest(
            "Invalid 'image': array too long. Expected an array with maximum length "
            f"{rule.max_images}, but got an array with length {images} instead.",
            code="array_above_max_length",
            param="image",
        )
    given = [field for field in fields if field != "image"]
    allowed = {name for name, is_read in (("mask", rule.masks), ("markup", rule.markup)) if is_read}
    if request.operation is Operation.VARIATION:
        allowed = set()
    for name in given:
        if name not in allowed:
            raise InvalidRequest(
                f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name
            )
        if given.count(name) > 1:
            raise InvalidRequest(f"'{name}' was given more than once.", param=name)
    if len(given) > 1:
        raise InvalidRequest("'markup' cannot be combined with 'mask'.", param="markup")


def _check_size(request: ImageRequest, field: str, size_bytes: int) -> None:
    rule = request.model.inputs
    if field in OVERLAYS:
        if size_bytes >= rule.max_mask_bytes:
            raise _bad_overlay(field, f"it must be less than {_megabytes(rule.max_mask_bytes)} MB")
    elif size_bytes >= rule.max_bytes:
        if rule.media_types == (PNG,):
            raise _not_a_small_png(rule)
        raise PayloadTooLarge(
            f"Invalid file 'image': it must be less than {_megabytes(rule.max_bytes)} MB.",
            param="image",
        )


async def _clean(
    upload: Upload, number: int, decoder: Decoder, opened: ExitStack, tenant_id: UUID
) -> InputImage:
    try:
        target = opened.enter_context(new_spool())
        facts = await decoder.clean(upload.file, target, owner=tenant_id)
    except UnusableImage as refused:
        raise _unusable(upload.field, number, refused.problem) from None
    except (OSError, DecoderBusy, DecoderFailed) as error:
        if not isinstance(error, DecoderBusy):
            telemetry.alarm("decoder_failed", error=str(error))
        raise Unavailable(
            "Images cannot be checked right now. Nothing was bought; try again.",
            retry_after_seconds=1,
        ) from None
    return InputImage(
        file=target,
        media_type=facts.media_type,
        width=facts.width,
        height=facts.height,
        size_bytes=facts.size_bytes,
        has_alpha=facts.has_alpha,
        is_transparent=facts.is_transparent,
    )


def _unusable(field: str, number: int, problem: ImageProblem) -> InvalidRequest:
    if field in OVERLAYS:
        return _bad_overlay(field, "it must be a PNG that can be read")
    if problem is ImageProblem.UNSUPPORTED:
        return InvalidRequest(
            f"Invalid file '{field}': unsupported mimetype. Supported file formats are "
            "'image/jpeg', 'image/png', and 'image/webp'.",
            code="unsupported_file_mimetype",
            param=field,
        )
    return ImageRefused(
        f"Invalid image file or mode for image {number}, {ADVICE[problem]}", param=field
    )


def _check_images(
    request: ImageRequest, inputs: Sequence[InputImage], overlays: dict[str, InputImage]
) -> None:
    rule, first = request.model.inputs, inputs[0]
    if any(image.media_type not in rule.media_types for image in inputs):
        raise _not_a_small_png(rule)
    if rule.square and first.width != first.height:
        raise ImageRefused(
            f"Invalid image: it must be square, but is {first.width}x{first.height}.",
            param="image",
        )
    if rule.max_total_bytes is not None:
        total_bytes = sum(image.size_bytes for image in inputs)
        if total_bytes > rule.max_total_bytes:
            raise PayloadTooLarge(
                f"The input images have {total_bytes} bytes together; {request.model.id} accepts "
                f"{rule.max_total_bytes}.",
                param="image",
            )
    for name, overlay in overlays.items():
        if overlay.media_type != PNG:
            raise _bad_overlay(name, "it must be a PNG")
        if not overlay.has_alpha:
            raise _bad_overlay(name, f"{name} image missing alpha channel")
        if (overlay.width, overlay.height) != (first.width, first.height):
            raise InvalidRequest(
                f"Invalid {name} image - {name} size {overlay.width}x{overlay.height} does not "
                f"match image size {first.width}x{first.height}.",
                code=f"invalid_{name}_image_size",
                param=name,
            )
    needs_own_alpha = request.operation is Operation.EDIT and rule.exact_mask and not overlays
    if needs_own_alpha and not first.is_transparent:
        raise ImageRefused(
            "Without a mask, the image itself must have fully transparent pixels: they are the "
            "area to change. Send a mask, or an RGBA image with such an area.",
            param="image",
        )


def _not_a_small_png(rule: InputRule) -> ImageRefused:
    return ImageRefused(
        f"Uploaded image must be a PNG and less than {_megabytes(rule.max_bytes)} MB.",
        param="image",
    )


def _bad_overlay(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid {name} image format - {reason}.",
        code=f"invalid_{name}_image_format",
        param=name,
    )


def _megabytes(size_bytes: int) -> int:
    return size_bytes // 1_048_576
