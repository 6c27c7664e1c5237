"""The two forms of an edit: multipart files, and JSON with references to images."""

import base64
import binascii
from dataclasses import dataclass

from tests.stub_openai.config import StubConfig
from tests.stub_openai.errors import (
    IMAGE_USER_ERROR,
    ApiError,
    invalid_type,
    invalid_value,
    missing_parameter,
    unknown_parameter,
)
from tests.stub_openai.images import measure
from tests.stub_openai.parameters import Json
from tests.stub_openai.usage import REMOTE_IMAGE_TOKENS, image_input_tokens
from tests.stub_openai.validation import ImageCall, find_model, read_call

MAX_IMAGES = 16
MAX_IMAGE_BYTES = 50 * 2**20
MAX_MASK_BYTES = 4 * 2**20
MAX_DATA_URL_CHARACTERS = 20_971_520

_MIMETYPES = ("image/jpeg", "image/png", "image/webp")
_FORMATS = ("png", "jpeg", "webp")
_INTEGERS = ("n", "partial_images", "output_compression", "frame_count", "frame_duration_ms")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart body; `filename` is None for a plain field."""

    name: str
    filename: str | None
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class _Image:
    width: int
    height: int
    alpha: bool
    tokens: int


_UNSEEN = _Image(width=0, height=0, alpha=True, tokens=REMOTE_IMAGE_TOKENS)


def split_multipart(content_type: str, body: bytes) -> list[Part]:
    """The parts of a multipart/form-data body; raises `ApiError` if it cannot be read."""
    boundary = _header_field(content_type, "boundary")
    if boundary is None:
        raise ApiError(400, "Missing boundary in multipart Content-Type.")
    mark = b"\r\n--" + boundary.encode("latin-1")
    chunks = (b"\r\n" + body).split(mark)
    if len(chunks) < 2 or not chunks[-1].startswith(b"--"):
        raise ApiError(400, "Could not parse multipart form.")
    return [_read_part(chunk) for chunk in chunks[1:-1]]


def _read_part(chunk: bytes) -> Part:
    head, separator, data = chunk.partition(b"\r\n\r\n")
    if not separator:
        raise ApiError(400, "Could not parse multipart form.")
    name, filename, content_type = None, None, "text/plain"
    for line in head.decode("utf-8", "replace").split("\r\n"):
        label, _, value = line.partition(":")
        if label.strip().lower() == "content-disposition":
            name = _header_field(value, "name")
            filename = _header_field(value, "filename")
        elif label.strip().lower() == "content-type":
            content_type = value.strip().lower()
    if name is None:
        raise ApiError(400, "Could not parse multipart form.")
    return Part(name, filename, content_type, data)


def _header_field(value: str, field: str) -> str | None:
    for piece in value.split(";")[1:]:
        label, _, text = piece.partition("=")
        if label.strip().lower() == field:
            return text.strip().strip('"')
    return None


def read_form_edit(parts: list[Part], config: StubConfig, request_id: str) -> ImageCall:
    """Read a multipart edit. One file is sent as `image`, several as repeated `image[]`."""
    fields = {part.name: _plain(part) for part in parts if part.filename is None}
    find_model(fields, config)
    uploads: list[Part] = []
    extra: dict[str, Part] = {}
    for part in parts:
        if part.name in ("image", "image[]"):
            if part.filename is None:
                raise invalid_type("image", "a file", "")
            uploads.append(part)
        elif part.name in ("mask", "markup"):
            if part.filename is None:
                raise invalid_type(part.name, "a file", "")
            extra[part.name] = part
        elif part.filename is not None:
            raise unknown_parameter(part.name)
    _check_count("image", len(uploads))
    inputs = [_open("image", n, part) for n, part in enumerate(uploads, start=1)]
    # Parameters are checked before masks: an error in one is more useful to the client.
    tokens = sum(entry.tokens for entry in inputs)
    call = read_call(
        fields, config, endpoint="edits", request_id=request_id, input_image_tokens=tokens
    )
    if len(extra) == 2:
        raise invalid_value("markup", "'markup' cannot be combined with 'mask'.")
    if "markup" in extra and call.facts.family not in ("gpt-image-2.5", "gpt-image-2.6"):
        text = f"The model '{call.model}' does not support the 'markup' parameter."
        raise invalid_value("markup", text)
    for name, part in extra.items():
        _check_overlay(name, part, inputs[0])
    return call


def _plain(part: Part) -> object:
    text = part.data.decode("utf-8", "replace")
    if part.name in _INTEGERS:
        try:
            return int(text)
        except ValueError:
            return text
    if part.name == "stream" and text in ("true", "false"):
        return text == "true"
    return text


def _open(field: str, number: int, part: Part) -> _Image:
    if part.content_type not in _MIMETYPES:
        text = (
            f"Invalid file '{field}': unsupported mimetype ('{part.content_type}'). Supported file "
            "formats are 'image/jpeg', 'image/png', and 'image/webp'."
        )
        raise invalid_value(field, text, code="unsupported_file_mimetype")
    if len(part.data) >= MAX_IMAGE_BYTES:
        raise invalid_value(field, f"Invalid file '{field}': file too large.")
    found = measure(part.data)
    if found is None or found[0] not in _FORMATS:
        raise _invalid_image(number)
    _, width, height, alpha = found
    return _Image(width, height, alpha, image_input_tokens(width, height))


def _check_overlay(name: str, part: Part, image: _Image) -> None:
    found = measure(part.data)
    code = f"invalid_{name}_image_format"
    if found is None or found[0] != "png":
        raise invalid_value(name, f"Invalid {name} image format - must be a PNG.", code=code)
    if len(part.data) >= MAX_MASK_BYTES:
        raise invalid_value(name, f"Invalid {name} image - must be less than 4 MB.", code=code)
    if not found[3]:
        text = f"Invalid {name} image format - {name} image missing alpha channel"
        raise invalid_value(name, text, code=code)
    if image is not _UNSEEN and (found[1], found[2]) != (image.width, image.height):
        text = f"Invalid {name} image - {name} size does not match image size."
        raise invalid_value(name, text, code=f"invalid_{name}_image_size")


def _check_count(field: str, count: int) -> None:
    if count == 0:
        raise missing_parameter(field)
    if count > MAX_IMAGES:
        text = (
            f"Invalid '{field}': array too long. Expected an array with maximum length "
            f"{MAX_IMAGES}, but got an array with length {count} instead."
        )
        raise invalid_value(field, text, code="array_above_max_length")


def _invalid_image(number: int) -> ApiError:
    text = f"Invalid image file or mode for image {number}, please check your image file."
    return ApiError(400, text, kind=IMAGE_USER_ERROR, code="invalid_image_file")


def read_json_edit(body: Json, config: StubConfig, request_id: str) -> ImageCall:
    """Read a JSON edit: `images` and `mask` hold objects with either `image_url` or `file_id`."""
    find_model(body, config)
    images = body.get("images")
    if images is None:
        images = []
    if not isinstance(images, list):
        raise invalid_type("images", "an array", images)
    _check_count("images", len(images))
    inputs = [_resolve(f"images[{at}]", at + 1, image) for at, image in enumerate(images)]
    mask = body.get("mask")
    rest = {name: value for name, value in body.items() if name not in ("images", "mask")}
    tokens = sum(entry.tokens for entry in inputs)
    call = read_call(
        rest, config, endpoint="edits", request_id=request_id, input_image_tokens=tokens
    )
    if mask is not None:
        data = _reference("mask", mask)
        if data is not None:
            _check_overlay("mask", Part("mask", "mask", "image/png", data), inputs[0])
    return call


def _resolve(where: str, number: int, reference: object) -> _Image:
    data = _reference(where, reference)
    if data is None:
        return _UNSEEN
    found = measure(data)
    if found is None or found[0] not in _FORMATS:
        raise _invalid_image(number)
    return _Image(found[1], found[2], found[3], image_input_tokens(found[1], found[2]))


def _reference(where: str, reference: object) -> bytes | None:
    """The bytes of a data: URL, or None for an image that lies elsewhere."""
    if not isinstance(reference, dict):
        raise invalid_type(where, "an object", reference)
    if len(reference) != 1 or not reference.keys() <= {"image_url", "file_id"}:
        raise invalid_value(where, f"'{where}' needs exactly one of 'image_url' and 'file_id'.")
    url = reference.get("image_url")
    if url is None:
        return None
    if not isinstance(url, str):
        raise invalid_type(f"{where}.image_url", "a string", url)
    if not url.startswith("data:"):
        return None
    if len(url) > MAX_DATA_URL_CHARACTERS:
        text = f"Invalid '{where}.image_url': string too long."
        raise invalid_value(f"{where}.image_url", text, code="string_above_max_length")
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except binascii.Error as error:
        text = f"Invalid '{where}.image_url': not valid base64."
        raise invalid_value(f"{where}.image_url", text, code="invalid_base64") from error
