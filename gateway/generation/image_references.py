"""Input images given by reference: data: URLs, links, and images stored by this gateway.

Each becomes a temporary file, as uploads do. Links are fetched with the protections for untrusted
addresses, except this gateway's own.
"""

import asyncio
import binascii
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

import pybase64

from gateway import telemetry
from gateway.config import Settings
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
"""URI scheme of a stored image, followed by the image's id."""
MAX_DATA_URL_CHARACTERS = 20_971_520
"""https://developers.openai.com/api/reference/resources/images (edits, `image_url`)"""
LINKS_AT_ONCE = 64
"""At most half of them for one tenant: a host that never responds occupies its slot until the
timeout."""
UNREACHABLE = (
    "The link does not lead to a host on the public internet, or that host cannot be reached. "
    "Send the image itself."
)


@dataclass(frozen=True, slots=True)
class InputImageReference:
    """An input image that is not fetched yet; `where` names the parameter in error messages."""

    where: str
    field: str
    url: str


class InputImageFetcher:
    """Fetches referenced images into files, which the given stack closes."""

    def __init__(
        self,
        *,
        database: Database,
        store: ImageStore,
        links: LinkSigner,
        downloads: Downloads,
        settings: Settings,
    ) -> None:
        self._database = database
        self._store = store
        self._links = links
        self._downloads = downloads
        self._settings = settings
        self._gate = Gate(
            "links",
            GateLimits(
                most=LINKS_AT_ONCE,
                most_of_one=LINKS_AT_ONCE // TENANT_SHARE,
                max_waiting=LINKS_AT_ONCE,
                wait_seconds=settings.max_wait_seconds,
            ),
        )

    async def fetch(
        self,
        caller: Caller,
        request: ImageRequest,
        given: Sequence[Upload | InputImageReference],
        files: ExitStack,
    ) -> list[Upload]:
        """Return the input images of a request as files; one timeout covers all of them.

        Nothing is fetched for a request that is invalid in itself.

        Raises:
            InvalidRequest: the model does not accept these inputs, or one cannot be fetched.
            NotFound, Forbidden: a stored image does not exist, or the caller may not read it.
            PayloadTooLarge: together they exceed the limit of a body.
            Unavailable: too many links are being fetched, overall or by this tenant; the image
                store does not respond; or there is no room for temporary files.
        """
        check_counts(request, [one.field for one in given])
        seconds = self._settings.download_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._fetch_all(caller, given, files)
        except TimeoutError:
            raise InvalidRequest(
                f"Fetching the images took longer than {seconds:g} seconds.",
                code="invalid_image_url",
            ) from None
        except OSError as error:
            telemetry.alarm("upload_not_written", error=type(error).__name__)
            raise Unavailable(
                "Input images cannot be stored right now. Nothing was bought; try again.",
                retry_after_seconds=1,
            ) from error

    async def _fetch_all(
        self, caller: Caller, given: Sequence[Upload | InputImageReference], files: ExitStack
    ) -> list[Upload]:
        uploads, size_bytes = [], 0
        for one in given:
            upload = one if isinstance(one, Upload) else await self._fetch(caller, one, files)
            size_bytes += upload.size_bytes
            if size_bytes > self._settings.max_upload_bytes:
                raise PayloadTooLarge(
                    f"The images together are larger than {self._settings.max_upload_bytes} bytes."
                )
            uploads.append(upload)
        return uploads

    async def _fetch(
        self, caller: Caller, reference: InputImageReference, files: ExitStack
    ) -> Upload:
        # Registered before a thread gets it, so that a cancelled request closes the file too.
        file = files.enter_context(new_spool())
        if reference.url.startswith("data:"):
            size_bytes = await asyncio.to_thread(_write_data_url, reference, file)
            return Upload(reference.field, file, size_bytes)
        try:
            path = await self._own_path(caller, reference)
            if path is None:
                async with self._gate.slot(caller.tenant_id):
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
        """Return the store path of an image of this gateway, or None for any other address."""
        if reference.url.startswith(HOSTED_SCHEME):
            if Scope.IMAGES_READ not in caller.scopes:
                raise Forbidden(
                    f"'{reference.where}' names a stored image, which requires the scope "
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
        if download.size_bytes > self._settings.max_upload_bytes:
            raise PayloadTooLarge(
                f"The image is larger than {self._settings.max_upload_bytes} bytes."
            )
        async for chunk in download.chunks:
            file.write(chunk)
        return download.size_bytes

    async def _download(self, reference: InputImageReference, file: BinaryIO) -> int:
        try:
            return await self._downloads.fetch(reference.url, file)
        except DownloadRefused as refused:
            # One message for both: a client must not learn which names exist on the inside.
            inside = refused.reason in {
                DownloadProblem.PRIVATE_ADDRESS,
                DownloadProblem.UNREACHABLE,
            }
            raise _bad_link(reference, UNREACHABLE if inside else refused.message) from None


def check_length(reference: InputImageReference) -> None:
    """Check the length of a data: URL against OpenAI's limit, of a link against the gateway's.

    Raises:
        InvalidRequest: it is too long (code `string_above_max_length`).
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
    """Decode the image in a data: URL into a file.

    Raises:
        InvalidRequest: the content is not base64 (code `invalid_base64`).
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
