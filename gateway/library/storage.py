"""Where images are kept: files or S3, by the address alone."""

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

from gateway.errors import ConfigurationError, NotFound, StorageFailed

if TYPE_CHECKING:  # what these name is known to type checkers only
    from obstore import GetResult, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig, S3Config

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
THUMBNAIL_SUFFIX = ".thumb.webp"
RANDOM_BYTES = 8
LISTED_AT_ONCE = 1000
STREAM_CHUNK_BYTES = 262_144
UNANSWERED = "The image store does not answer."

READ_SECONDS = 20.0
"""A store that takes longer to hand out an image does not answer, whatever its client hopes for."""
FAILED = (BaseError, OSError)
MISSING = (NotFoundError, FileNotFoundError)
_CLIENT: "ClientConfig" = {
    "connect_timeout": timedelta(seconds=3),
    # Of each read. A bound on the whole would cut off whoever downloads slowly.
    "read_timeout": timedelta(seconds=30),
    "timeout": timedelta(minutes=15),
}
_RETRY: "RetryConfig" = {"max_retries": 2, "retry_timeout": timedelta(seconds=15)}
# How the local store names what it is still writing.
_UNFINISHED = re.compile(r"img_[0-9a-z_]+(\.[a-z]+){1,3}#[0-9]+", re.ASCII)
_ID_FORM = re.compile(r"img_[0-9a-z_]{1,100}", re.ASCII)
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
class Download:
    """A file being read: how long it is as a whole, and the bytes that were asked for."""

    size_bytes: int
    chunks: AsyncIterator[bytes] = field(repr=False)


class ImageStore:
    """Puts and gets files by path; a file is either whole or not there.

    `folder` is where they lie, if they are files of this machine. Every method may raise
    `StorageFailed`: the store does not answer.
    """

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        self.objects = store
        self.folder = folder

    async def put(self, path: str, content: bytes) -> None:
        """Store `content`.

        Raises:
            StorageFailed: it is not stored.
        """
        try:
            await self.objects.put_async(path, content, use_multipart=False)
        except FAILED as error:
            raise StorageFailed(
                f"The image store does not take a file ({type(error).__name__})."
            ) from error

    async def get(self, path: str) -> bytes:
        """The bytes at `path`.

        Raises:
            NotFound: nothing is there, or no longer.
            StorageFailed: the store does not answer in time.
        """
        try:
            async with asyncio.timeout(READ_SECONDS):
                result = await self.objects.get_async(path)
                return bytes(await result.bytes_async())
        except FAILED as error:
            raise _refusal(error) from error

    async def find(self, path: str) -> StoredObject:
        """What is at `path`, without its bytes.

        Raises:
            NotFound: nothing is there, or no longer.
            StorageFailed: the store does not answer in time.
        """
        try:
            async with asyncio.timeout(READ_SECONDS):
                return _object(await self.objects.head_async(path))
        except FAILED as error:
            raise _refusal(error) from error

    async def read(self, path: str, span: tuple[int, int] | None = None) -> Download:
        """Open the file at `path`: all of it, or the bytes from `span[0]` up to `span[1]`.

        Raises:
            NotFound: nothing is there, or no longer.
        """
        try:
            result = await self.objects.get_async(
                path, options={} if span is None else {"range": span}
            )
        except FAILED as error:
            raise _refusal(error) from error
        return Download(result.meta["size"], _chunks(result))

    async def delete(self, path: str) -> None:
        """Forget the file at `path`; one that is gone already is fine."""
        try:
            await self.objects.delete_async(path)
        except MISSING:
            return
        except FAILED as error:
            raise _refusal(error) from error

    async def list(self, folder: str) -> AsyncIterator[Sequence[StoredObject]]:
        """Every file below `folder`, in no order, a bounded number at once."""
        try:
            async for found in self.objects.list(folder, chunk_size=LISTED_AT_ONCE):
                yield [_object(meta) for meta in found]
        except FAILED as error:
            raise StorageFailed(UNANSWERED) from error

    async def delete_unfinished(self, folder: str, before: datetime) -> int:
        """Remove what a killed process left half-written; returns how many files that were.

        S3 has nothing of the kind: an object that was not sent whole is not there.
        """
        if self.folder is None:
            return 0
        try:
            return await asyncio.to_thread(_unlink_unfinished, self.folder / folder, before)
        except OSError as error:
            raise StorageFailed(UNANSWERED) from error


def open_store(url: str, s3: Mapping[str, str] | None = None) -> ImageStore:
    """Open the store at `file:///…` or `s3://bucket/prefix`.

    `s3` may name endpoint, region and keys (`Settings.s3_options`).

    Raises:
        ConfigurationError: the address cannot be used.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme == "file":
            folder = Path(url2pathname(parts.path))
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return ImageStore(LocalStore(folder, automatic_cleanup=True), folder)
        if parts.scheme == "s3" and parts.netloc:
            options = dict(s3 or {})
            # An endpoint in plain HTTP is somebody's decision already: it needs no second one.
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
    """`img_{milliseconds}_{random}`: sorts by time, cannot be guessed."""
    return f"img_{time.time_ns() // 1_000_000:x}_{os.urandom(RANDOM_BYTES).hex()}"


def is_image_id(text: str) -> bool:
    """Whether this can be the id of an image."""
    return _ID_FORM.fullmatch(text) is not None


def image_path(tenant_id: UUID, image_id: str, output_format: str) -> str:
    """Where an image lives: a folder per tenant and day."""
    day = datetime.now(UTC).date().isoformat().replace("-", "/")
    return f"{tenant_id}/{day}/{image_id}.{output_format}"


def image_id_of(path: str) -> str:
    """`…/img_1_a.png.thumb.webp` → `img_1_a`."""
    return path.rpartition("/")[2].partition(".")[0]


def tenant_of(path: str) -> UUID:
    """The tenant whose image lives at `path`."""
    return UUID(path.partition("/")[0])


def thumbnail_path(path: str) -> str:
    """Where the thumbnail of the image at `path` lives."""
    return path + THUMBNAIL_SUFFIX


def image_of(path: str) -> str | None:
    """The path of the image that a file is, or is the thumbnail of; None where it is neither."""
    form = _FILE_FORM.fullmatch(path)
    return None if form is None else form[1]


async def _chunks(result: "GetResult") -> AsyncIterator[bytes]:
    try:
        async for chunk in result.stream(min_chunk_size=STREAM_CHUNK_BYTES):
            yield bytes(chunk)
    except FAILED as error:
        raise _refusal(error) from error


def _object(meta: "ObjectMeta") -> StoredObject:
    return StoredObject(meta["path"], meta["size"], meta["last_modified"])


def _refusal(error: Exception) -> NotFound | StorageFailed:
    if isinstance(error, MISSING):
        return NotFound("This image is no longer stored.", code="image_not_found")
    return StorageFailed(UNANSWERED)


def _unlink_unfinished(folder: Path, before: datetime) -> int:
    count = 0
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names if _UNFINISHED.fullmatch(name)):
            with suppress(FileNotFoundError):  # it was finished at last
                if path.stat().st_mtime < before.timestamp():
                    path.unlink()
                    count += 1
    return count
