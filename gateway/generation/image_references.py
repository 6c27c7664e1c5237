"""Pictures that a request refers to instead of carrying them: data: URLs, links, images kept here.

All three become files like uploads. A link is fetched under the guards of an untrusted address,
unless it is one of this gateway's own.
"""

import asyncio
import binascii
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

import pybase64

from gateway.db.engine import Database
from gateway.domain import Caller, ImageRequest, Scope
from gateway.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    StorageFailed,
    Unavailable,
)
from gateway.generation.input_images import Upload, check_counts
from gateway.library import history
from gateway.library.links import LinkSigner
from gateway.library.storage import ImageStore
from gateway.load.concurrency import TENANT_SHARE
from gateway.load.gate import Gate, GateLimits
from gateway.media.temporary_files import new_spool
from gateway.net.downloads import DownloadProblem, DownloadRefused, Downloads
from gateway.net.outbound import MAX_URL_CHARACTERS

HOSTED_SCHEME = "generated-images://"
"""What an image of the history is called where it is referred to, followed by its id."""
MAX_DATA_URL_CHARACTERS = 20_971_520
"""https://developers.openai.com/api/reference/resources/images (edits, `image_url`)"""
LINKS_AT_ONCE = 64
"""Half of them at most for one tenant: a host that never answers keeps its link to the end."""
UNREACHABLE = (
    "The link does not lead to a host on the public internet, or that host cannot be reached. "
    "Send the picture itself."
)


@dataclass(frozen=True, slots=True)
class InputImageReference:
    """A picture that is still to be had; `where` names the parameter to the client."""

    where: str
    field: str
    url: str


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What bounds the pictures of one request; see Settings for the meaning of each."""

    max_bytes: int
    seconds: float
    queue_seconds: float


class InputImageFetcher:
    """Turns references into files, which live until the given stack is closed."""

    def __init__(
        self,
        *,
        database: Database,
        store: ImageStore,
        links: LinkSigner,
        downloads: Downloads,
        limits: FetchLimits,
    ) -> None:
        self._database = database
        self._store = store
        self._links = links
        self._downloads = downloads
        self._limits = limits
        self._gate = Gate(
            "links",
            GateLimits(
                most=LINKS_AT_ONCE,
                most_of_one=LINKS_AT_ONCE // TENANT_SHARE,
                max_waiting=LINKS_AT_ONCE,
                wait_seconds=limits.queue_seconds,
            ),
        )

    async def fetch(
        self,
        caller: Caller,
        request: ImageRequest,
        pictures: Sequence[Upload | InputImageReference],
        files: ExitStack,
    ) -> list[Upload]:
        """The pictures of a request as files, all of them in the time of one.

        Nothing is fetched for a request that is wrong in itself.

        Raises:
            InvalidRequest: they are not what the model takes, or one of them cannot be had.
            NotFound, Forbidden: an image kept here is not there, or not for this caller.
            PayloadTooLarge: together they are larger than a body may be.
            Unavailable: too many links are being fetched, or too many of this tenant; or the
                store of the images kept here does not answer.
        """
        check_counts(request, [picture.field for picture in pictures])
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._fetch_all(caller, pictures, files)
        except TimeoutError:
            raise InvalidRequest(
                f"Fetching the pictures took longer than {self._limits.seconds:g} seconds.",
                code="invalid_image_url",
            ) from None

    async def _fetch_all(
        self, caller: Caller, pictures: Sequence[Upload | InputImageReference], files: ExitStack
    ) -> list[Upload]:
        uploads, size_bytes = [], 0
        for picture in pictures:
            upload = (
                picture
                if isinstance(picture, Upload)
                else await self._fetch(caller, picture, files)
            )
            size_bytes += upload.size_bytes
            if size_bytes > self._limits.max_bytes:
                raise PayloadTooLarge(
                    f"The pictures together are larger than {self._limits.max_bytes} bytes."
                )
            uploads.append(upload)
        return uploads

    async def _fetch(
        self, caller: Caller, reference: InputImageReference, files: ExitStack
    ) -> Upload:
        # Among the files before any thread has it: whoever stops waiting closes what is there.
        file = files.enter_context(new_spool())
        if reference.url.startswith("data:"):
            size_bytes = await asyncio.to_thread(_write_data_url, reference, file)
            return Upload(reference.field, file, size_bytes)
        try:
            path = await self._own_path(caller, reference)
            if path is None:
                async with self._gate.place(caller.tenant_id):
                    size_bytes = await self._download(reference, file)
            else:
                size_bytes = await self._copy(path, file)
        except NotFound as error:
            raise NotFound(error.message, code=error.code, param=reference.where) from None
        except StorageFailed:
            raise Unavailable(
                "Stored images cannot be read right now. Nothing was bought; try again.",
                retry_after_seconds=1,
            ) from None
        return Upload(reference.field, file, size_bytes)

    async def _own_path(self, caller: Caller, reference: InputImageReference) -> str | None:
        """Where this gateway keeps what is referred to; None for what lies elsewhere."""
        if reference.url.startswith(HOSTED_SCHEME):
            if Scope.IMAGES_READ not in caller.scopes:
                raise Forbidden(
                    f"'{reference.where}' names an image kept here, which takes the scope "
                    f"{Scope.IMAGES_READ}.",
                    param=reference.where,
                )
            async with self._database.tenant(caller.tenant_id) as session:
                image_id = reference.url.removeprefix(HOSTED_SCHEME)
                return (await history.find_image(session, caller, image_id)).path
        try:
            return self._links.own_path(reference.url, now=int(time.time()))
        except Forbidden as error:
            raise _bad_link(reference, error.message) from None

    async def _copy(self, path: str, file: BinaryIO) -> int:
        download = await self._store.read(path)
        if download.size_bytes > self._limits.max_bytes:
            raise PayloadTooLarge(f"The picture is larger than {self._limits.max_bytes} bytes.")
        async for chunk in download.chunks:
            file.write(chunk)
        return download.size_bytes

    async def _download(self, reference: InputImageReference, file: BinaryIO) -> int:
        try:
            return await self._downloads.fetch(reference.url, file)
        except DownloadRefused as refused:
            # Which names exist inside is nobody's business.
            inside = refused.reason in {
                DownloadProblem.PRIVATE_ADDRESS,
                DownloadProblem.UNREACHABLE,
            }
            raise _bad_link(reference, UNREACHABLE if inside else refused.message) from None


def check_length(reference: InputImageReference) -> None:
    """Refuse a data: URL that is longer than OpenAI takes one, or a link longer than any is.

    Raises:
        InvalidRequest: it is (code `string_above_max_length`).
    """
    is_data = reference.url.startswith("data:")
    most = MAX_DATA_URL_CHARACTERS if is_data else MAX_URL_CHARACTERS
    if len(reference.url) > most:
        raise InvalidRequest(
            f"Invalid '{reference.where}': string too long. Expected a string with maximum length "
            f"{most}.",
            code="string_above_max_length",
            param=reference.where,
        )


def decode_data_url(reference: InputImageReference, files: ExitStack) -> Upload:
    """The picture that a data: URL holds.

    Raises:
        InvalidRequest: it is not base64 (code `invalid_base64`).
    """
    file = files.enter_context(new_spool())
    return Upload(reference.field, file, _write_data_url(reference, file))


def _write_data_url(reference: InputImageReference, file: BinaryIO) -> int:
    head, _, encoded = reference.url.partition(",")
    try:
        content = pybase64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error):
        content = b""
    if not content or not head.endswith(";base64"):
        raise InvalidRequest(
            f"Invalid '{reference.where}': expected data:image/png;base64,… with valid base64.",
            code="invalid_base64",
            param=reference.where,
        )
    return file.write(content)


def _bad_link(reference: InputImageReference, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{reference.where}': {reason}", code="invalid_image_url", param=reference.where
    )
