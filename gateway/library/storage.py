"""The image store: local files or S3, selected by the URL."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname
from uuid import UUID

from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, S3Store

from gateway import telemetry
from gateway.errors import ConfigurationError, NotFound, StorageFailed
from gateway.library.image_folder import ImageFolder

if TYPE_CHECKING:  # what these name is known to type checkers only
    from obstore import GetResult, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
THUMBNAIL_SUFFIX = ".thumb.webp"
RANDOM_BYTES = 8
LISTED_AT_ONCE = 1000
STREAM_CHUNK_BYTES = 262_144
UNANSWERED = "The image store does not respond. Try again later."

READ_SECONDS = 20.0
"""Timeout of a read as a whole; the store client's own timeouts only bound each part of it."""
FAILED = (BaseError, OSError)
MISSING = (NotFoundError, FileNotFoundError)
_CLIENT: "ClientConfig" = {
    "connect_timeout": timedelta(seconds=3),
    # For each read. A short total timeout would cut off slow downloads.
    "read_timeout": timedelta(seconds=30),
    "timeout": timedelta(minutes=15),
}
_RETRY: "RetryConfig" = {"max_retries": 2, "retry_timeout": timedelta(seconds=15)}
# The local store's names for files that it is still writing.
_UNFINISHED = re.compile(r"img_[0-9a-z_]+(\.[a-z]+){1,3}#[0-9]+", re.ASCII)
_ID_FORM = re.compile(r"img_[0-9a-z_]{1,100}", re.ASCII)
_DAY_FORM = re.compile(r"[0-9a-f-]{36}/[0-9]{4}/(0[1-9]|1[0-2])/(0[1-9]|[12][0-9]|3[01])", re.ASCII)
_FILE_FORM = re.compile(
    r"([0-9a-f-]{36}/[0-9]{4}/[0-9]{2}/[0-9]{2}/img_[0-9a-z_]+\.(?:png|jpeg|webp))"
    rf"(?:{re.escape(THUMBNAIL_SUFFIX)})?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One file in the store."""

    path: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A file being read: its total size, and the requested bytes."""

    size_bytes: int
    chunks: AsyncIterator[bytes] = field(repr=False)


class _Operation:
    """Measures the operations of one kind: those that succeed, and those that the store fails."""

    def __init__(self, name: str) -> None:
        self._seconds = telemetry.image_store_seconds.labels(name)
        self._errors = telemetry.image_store_errors_total.labels(name)

    def measured(self) -> "_Measured":
        """Measure the block."""
        return _Measured(self)

    def ended(self, seconds: float, error: BaseException | None) -> None:
        """Count an operation that succeeded, or that the store failed."""
        if error is None:
            self._seconds.observe(seconds)
        elif isinstance(error, StorageFailed):
            self._errors.inc()


class _Measured:
    """One operation; a generator would take longer than what it measures."""

    __slots__ = ("_operation", "_started")

    def __init__(self, operation: _Operation) -> None:
        self._operation = operation

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._operation.ended(time.perf_counter() - self._started, error)


class ImageStore:
    """Puts and gets files by path; a file is either complete or absent.

    `folder` is their directory if they are local files. Every method may raise `StorageFailed`:
    the store does not respond, or the directory is gone.
    """

    def __init__(self, store: ObjectStore, folder: ImageFolder | None = None) -> None:
        self.objects = store
        self.folder = folder
        self._puts, self._gets, self._deletions = map(_Operation, ("put", "get", "delete"))

    async def put(self, path: str, content: bytes) -> None:
        """Store `content`.

        Raises:
            StorageFailed: the store did not accept it.
        """
        with self._puts.measured():
            try:
                if self.folder is not None:
                    await self.folder.prepare(path)
                    if self.folder.write_quickly(path, content):
                        return
                await self.objects.put_async(path, content, use_multipart=False)
            except FAILED as error:
                raise StorageFailed(
                    f"The image store did not accept a file ({type(error).__name__})."
                ) from error

    async def get(self, path: str) -> bytes:
        """Return the bytes at `path`.

        Raises:
            NotFound: the file does not exist, or no longer.
            StorageFailed: the store does not respond in time.
        """
        with self._gets.measured():
            try:
                async with asyncio.timeout(READ_SECONDS):
                    result = await self.objects.get_async(path)
                    return bytes(await result.bytes_async())
            except FAILED as error:
                raise await self._refusal(error) from error

    async def find(self, path: str) -> StoredObject:
        """Return the metadata of the file at `path`.

        Raises:
            NotFound: the file does not exist, or no longer.
            StorageFailed: the store does not respond in time.
        """
        try:
            async with asyncio.timeout(READ_SECONDS):
                return _object(await self.objects.head_async(path))
        except FAILED as error:
            raise await self._refusal(error) from error

    async def read(self, path: str, span: tuple[int, int] | None = None) -> OpenedFile:
        """Open the file at `path`: all of it, or the bytes from `span[0]` up to `span[1]`.

        Raises:
            NotFound: the file does not exist, or no longer.
        """
        with self._gets.measured():
            try:
                result = await self.objects.get_async(
                    path, options={} if span is None else {"range": span}
                )
            except FAILED as error:
                raise await self._refusal(error) from error
        return OpenedFile(result.meta["size"], self._chunks(result))

    async def delete(self, path: str) -> None:
        """Delete the file at `path`, if it exists."""
        with self._deletions.measured():
            try:
                await self.objects.delete_async(path)
            except FAILED as error:
                refusal = await self._refusal(error)
                if isinstance(refusal, StorageFailed):
                    raise refusal from error

    async def list(self, folder: str) -> AsyncIterator[Sequence[StoredObject]]:
        """Yield every file below `folder`, unordered, in bounded batches."""
        await self._expect_folder()
        try:
            async for found in self.objects.list(folder, chunk_size=LISTED_AT_ONCE):
                yield [_object(meta) for meta in found]
        except FAILED as error:
            raise StorageFailed(UNANSWERED) from error

    async def days(self, tenant_id: UUID) -> Sequence[str]:
        """Return the folders of the tenant's days with images, unordered."""
        await self._expect_folder()
        found = [str(tenant_id)]
        try:
            for _level in ("year", "month", "day"):
                listings = [await self.objects.list_with_delimiter_async(one) for one in found]
                found = [one.rstrip("/") for each in listings for one in each["common_prefixes"]]
        except FAILED as error:
            raise StorageFailed(UNANSWERED) from error
        return [folder for folder in found if _DAY_FORM.fullmatch(folder)]

    async def delete_unfinished(self, folder: str, before: datetime) -> int:
        """Remove partial files of killed processes; return the number.

        S3 has none: an object that was not sent completely does not exist.
        """
        if self.folder is None:
            return 0
        try:
            return await asyncio.to_thread(_unlink_unfinished, self.folder.path / folder, before)
        except OSError as error:
            raise StorageFailed(UNANSWERED) from error

    async def _expect_folder(self) -> None:
        """Refuse to take files for deleted whose whole folder is gone.

        Raises:
            StorageFailed: the folder is gone.
        """
        if self.folder is None:
            return
        try:
            await self.folder.expect()
        except FileNotFoundError as error:
            raise StorageFailed(UNANSWERED) from error

    async def _refusal(self, error: Exception) -> NotFound | StorageFailed:
        if not isinstance(error, MISSING):
            return StorageFailed(UNANSWERED)
        try:
            await self._expect_folder()
        except StorageFailed as refusal:
            return refusal
        return NotFound("This image is no longer stored.", code="image_not_found")

    async def _chunks(self, result: "GetResult") -> AsyncIterator[bytes]:
        try:
            async for chunk in result.stream(min_chunk_size=STREAM_CHUNK_BYTES):
                yield bytes(chunk)
        except FAILED as error:
            raise await self._refusal(error) from error


def open_store(
    url: str, s3: Mapping[str, str] | None = None, *, beside: Path | None = None
) -> ImageStore:
    """Open the store at `file:///…` or `s3://bucket/prefix`.

    `s3` may name endpoint, region and keys (`Settings.s3_options`). `beside`: see `ImageFolder`.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme == "file":
            folder = ImageFolder(Path(url2pathname(parts.path)), beside=beside)
            return ImageStore(LocalStore(folder.path, automatic_cleanup=True), folder)
        if parts.scheme == "s3" and parts.netloc:
            options = dict(s3 or {})
            # An http:// endpoint in the settings is consent to plain HTTP.
            plain = options.get("endpoint", "").startswith("http://")
            return ImageStore(
                S3Store(
                    parts.netloc,
                    prefix=parts.path.strip("/") or None,
                    config=cast("S3Config", options),
                    client_options=_CLIENT | {"allow_http": True} if plain else _CLIENT,
                    retry_config=_RETRY,
                )
            )
    except (BaseError, OSError, ValueError) as error:
        raise ConfigurationError(
            f"GATEWAY_STORAGE_URL cannot be used ({type(error).__name__}): {parts.scheme} store "
            f"at {parts.netloc}{parts.path}"
        ) from error
    raise ConfigurationError("GATEWAY_STORAGE_URL must be file:///folder or s3://bucket/prefix")


def new_image_id() -> str:
    """Return a new id, `img_{milliseconds}_{random}`: sortable by time, not guessable."""
    return f"img_{time.time_ns() // 1_000_000:x}_{os.urandom(RANDOM_BYTES).hex()}"


def is_image_id(text: str) -> bool:
    """Tell whether this has the form of an image id."""
    return _ID_FORM.fullmatch(text) is not None


def image_path(tenant_id: UUID, image_id: str, output_format: str) -> str:
    """Return the store path of an image: a folder per tenant and day."""
    day = datetime.now(UTC).date().isoformat().replace("-", "/")
    return f"{tenant_id}/{day}/{image_id}.{output_format}"


def image_id_of(path: str) -> str:
    """Return the image id of a path: `…/img_1_a.png.thumb.webp` → `img_1_a`."""
    return path.rpartition("/")[2].partition(".")[0]


def tenant_of(path: str) -> UUID:
    """Return the tenant that owns the image at `path`."""
    return UUID(path.partition("/")[0])


def thumbnail_path(path: str) -> str:
    """Return the path of the thumbnail of the image at `path`."""
    return path + THUMBNAIL_SUFFIX


def image_of(path: str) -> str | None:
    """Return the image path of an image or thumbnail file, or None for any other file."""
    form = _FILE_FORM.fullmatch(path)
    return None if form is None else form[1]


def _object(meta: "ObjectMeta") -> StoredObject:
    return StoredObject(meta["path"], meta["size"], meta["last_modified"])


def _unlink_unfinished(folder: Path, before: datetime) -> int:
    count = 0
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names if _UNFINISHED.fullmatch(name)):
            with suppress(FileNotFoundError):  # its writer has finished it meanwhile
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()
                    count += 1
    return count
