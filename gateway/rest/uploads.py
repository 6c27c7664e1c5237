"""Bodies with input images: multipart forms, and JSON with links to them.

Both are spooled to unnamed files, never held in memory whole; such a file is deleted when it is
closed, even if the process is killed.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import BinaryIO
from uuid import UUID

import orjson
from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from gateway import telemetry
from gateway.config import Settings
from gateway.domain import Caller
from gateway.errors import InvalidRequest, Unavailable
from gateway.generation.image_references import InputImageReference, check_length, decode_data_url
from gateway.generation.input_images import Upload
from gateway.generation.parameters import unknown_parameter
from gateway.image_parameters import PARAMETERS, Kind
from gateway.load.concurrency import Bulkhead
from gateway.load.gate import Gate, GateLimits
from gateway.media.temporary_files import new_spool
from gateway.web.bodies import body_parts, refuse_compressed

MAX_FILES = 20
MAX_FIELDS = 40
MAX_FIELD_BYTES = 262_144
PARALLEL_JSON_BODIES = 2
MAX_JSON_PARTS = 100_000
"""Limit on commas and brackets, also within strings. Each may become an object of a hundred
bytes, so a body of the allowed length, full of empty lists, would exhaust the memory."""
CHARSETS = frozenset({b"utf-8", b"utf8", b"us-ascii"})
INTEGER_FIELDS = frozenset(one.name for one in PARAMETERS if one.kind is Kind.INTEGER)
BOOLEAN_FIELDS = frozenset(one.name for one in PARAMETERS if one.kind is Kind.BOOLEAN)
NUMBER_FIELDS = frozenset(one.name for one in PARAMETERS if one.kind is Kind.NUMBER)
BOOLEANS = {"true": True, "false": False}
NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,15})?", re.ASCII)
OPENAI_FILES = {"image": "image", "image[]": "image", "mask": "mask", "markup": "markup"}


@dataclass(frozen=True, slots=True)
class UploadForm:
    """A parsed body: plain fields and input images, images before masks."""

    fields: Mapping[str, object]
    inputs: Sequence[Upload | InputImageReference]


class _SpoolingParser(MultiPartParser):
    """The framework's parser, with a lower threshold for spooling to disk."""

    spool_max_size = 65_536
    has_ended = False
    """True after the last boundary. Without this check, a truncated form would pass as complete."""

    def on_end(self) -> None:
        self.has_ended = True


class UploadReader:
    """Reads bodies with input images; the files live until the given stack is closed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slots = Bulkhead(settings.max_concurrent_uploads, "uploads")
        self._parsing_json = Gate(
            "json_bodies",
            GateLimits(
                most=PARALLEL_JSON_BODIES,
                most_of_one=PARALLEL_JSON_BODIES,
                max_waiting=settings.max_concurrent_uploads,
                wait_seconds=settings.max_wait_seconds,
            ),
        )

    async def read(
        self,
        request: Request,
        caller: Caller,
        files: ExitStack,
        *,
        names: Mapping[str, str] = OPENAI_FILES,
    ) -> UploadForm:
        """Read a multipart form, or JSON with `images`; `names` lists the file fields.

        The request's upload slot is held until the stack is closed.

        Raises:
            InvalidRequest: the body is malformed or too slow, or its images are named wrongly.
            PayloadTooLarge: the body is longer than the gateway reads.
            Unavailable: too many uploads are in progress, in all or for this tenant.
        """
        refuse_compressed(request.scope)
        # Held until the images have been fetched and checked: each request may keep large files.
        files.enter_context(self._slots.taken(caller.tenant_id))
        try:
            return await self._read(request, caller.tenant_id, files, names)
        except OSError as error:
            telemetry.alarm("upload_not_written", error=type(error).__name__)
            raise Unavailable(
                "Uploads cannot be stored right now. Nothing was bought; try again.",
                retry_after_seconds=1,
            ) from error

    async def _read(
        self, request: Request, tenant_id: UUID, files: ExitStack, names: Mapping[str, str]
    ) -> UploadForm:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type == "multipart/form-data":
            return await self._read_form(request, files, names)
        if content_type == "application/json":
            return await self._read_json(request, tenant_id, files)
        raise InvalidRequest(
            "Send a multipart/form-data body with the image in the field 'image', or JSON with "
            "images: [{image_url: …}].",
            code="unsupported_content_type",
        )

    async def _read_form(
        self, request: Request, files: ExitStack, names: Mapping[str, str]
    ) -> UploadForm:
        _refuse_charset(request.headers["content-type"])
        try:
            async with self._parts(request, self._settings.max_upload_bytes) as parts:
                parser = _SpoolingParser(
                    request.headers,
                    parts,
                    max_files=MAX_FILES,
                    max_fields=MAX_FIELDS,
                    max_part_size=MAX_FIELD_BYTES,
                )
                items = (await parser.parse()).multi_items()
        except MultiPartException as error:
            raise InvalidRequest(
                f"The multipart form cannot be read: {error.message}", code="invalid_form"
            ) from None
        for _, value in items:
            if isinstance(value, UploadFile):
                files.callback(value.file.close)
        if items and not parser.has_ended:
            raise InvalidRequest(
                "The multipart form ends without its last boundary.", code="invalid_form"
            )
        fields: dict[str, object] = {}
        uploads = []
        for name, value in items:
            if isinstance(value, UploadFile):
                uploads.append(_upload(name, value, names))
            else:
                fields[name] = _field(name, value, names)
        return UploadForm(fields, _images_first(uploads))

    async def _read_json(self, request: Request, tenant_id: UUID, files: ExitStack) -> UploadForm:
        with new_spool() as spooled:
            async with self._parts(request, self._settings.max_json_upload_bytes) as parts:
                async for part in parts:
                    spooled.write(part)
            spooled.seek(0)
            # A body may be a hundred megabytes of base64, so few are parsed concurrently.
            async with self._parsing_json.slot(tenant_id):
                fields, inputs = await asyncio.to_thread(_take_apart, spooled, files)
        return UploadForm(fields, _images_first(inputs))

    def _parts(self, request: Request, max_bytes: int) -> aclosing[AsyncGenerator[bytes, None]]:
        return aclosing(
            body_parts(
                request.scope,
                request.receive,
                max_bytes=max_bytes,
                seconds=self._settings.upload_seconds,
            )
        )


def _refuse_charset(content_type: str) -> None:
    """Refuse charsets other than UTF-8: some of Python's codecs take minutes, others fail."""
    _, options = parse_options_header(content_type)
    if options.get(b"charset", b"utf-8").lower() not in CHARSETS:
        raise InvalidRequest("The form's charset must be UTF-8.", code="invalid_form")


def _images_first(
    inputs: Sequence[Upload | InputImageReference],
) -> Sequence[Upload | InputImageReference]:
    return sorted(inputs, key=lambda one: one.field != "image")


def _upload(name: str, value: UploadFile, names: Mapping[str, str]) -> Upload:
    if name not in names:
        raise unknown_parameter(name)
    value.file.seek(0, 2)
    return Upload(names[name], value.file, value.file.tell())


def _field(name: str, text: str, names: Mapping[str, str]) -> object:
    """Keep a form's text as it is; a text that does not fit its type is refused later, by name."""
    if name in names:
        raise InvalidRequest(
            f"Invalid type for '{name}': expected a file, but got a string instead.",
            code="invalid_type",
            param=name,
        )
    return read_value(name, text)


def read_value(name: str, text: str) -> object:
    """Read the text of a form's field as the type of its parameter; as text if it does not fit."""
    if name in INTEGER_FIELDS and text.isascii() and text.removeprefix("-").isdecimal():
        return int(text[:20])
    if name in NUMBER_FIELDS and NUMBER.fullmatch(text):
        return float(text)
    if name in BOOLEAN_FIELDS:
        return BOOLEANS.get(text.lower(), text)
    return text


def _take_apart(
    spooled: BinaryIO, files: ExitStack
) -> tuple[dict[str, object], list[Upload | InputImageReference]]:
    """Split a JSON body into the plain fields and the input images, in order."""
    content = spooled.read()
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_JSON_PARTS:
        raise InvalidRequest("The JSON body has too many elements.", code="invalid_json")
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        body = None
    del content
    if not isinstance(body, dict):
        raise InvalidRequest(
            "We could not parse the JSON body of your request: it must be one JSON object.",
            code="invalid_json",
        )
    fields: dict[str, object] = body
    images = fields.pop("images", None) or []
    if not isinstance(images, list):
        raise InvalidRequest(
            "Invalid type for 'images': expected an array.", code="invalid_type", param="images"
        )
    named = [(f"images[{at}]", "image", reference) for at, reference in enumerate(images)]
    named += [
        (name, name, fields.pop(name))
        for name in ("mask", "markup")
        if fields.get(name) is not None
    ]
    if len(named) > MAX_FILES:
        raise InvalidRequest(
            f"The request has {len(named)} images; at most {MAX_FILES} are accepted.",
            code="array_above_max_length",
            param="images",
        )
    inputs: list[Upload | InputImageReference] = []
    for where, field, reference in named:
        linked = InputImageReference(f"{where}.image_url", field, _url(where, reference))
        check_length(linked)
        # Decoded at once, so that the base64 text need not be kept until all links are fetched.
        is_data = linked.url.startswith("data:")
        inputs.append(decode_data_url(linked, files) if is_data else linked)
    return fields, inputs


def _url(where: str, reference: object) -> str:
    if not isinstance(reference, dict) or len(reference) != 1:
        raise InvalidRequest(
            f"'{where}' must be an object with 'image_url' only.", code="invalid_type", param=where
        )
    if "file_id" in reference:
        raise InvalidRequest(
            f"'{where}': file_id is not supported. Send the image as 'image_url', a data: URL.",
            code="unsupported_parameter",
            param=where,
        )
    url = reference.get("image_url")
    if not isinstance(url, str):
        raise InvalidRequest(
            f"Invalid type for '{where}.image_url': expected a string.",
            code="invalid_type",
            param=f"{where}.image_url",
        )
    return url
