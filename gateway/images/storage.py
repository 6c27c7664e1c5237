"""Where images are kept: files or S3, by the address alone."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname
from uuid import UUID

from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from gateway.errors import ConfigurationError, NotFound, StorageFailed

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
RANDOM_BYTES = 8


class ImageStore:
    """Puts and gets files by path; a file is either whole or not there."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def put(self, path: str, content: bytes) -> None:
        """Store `content`.

        Raises:
            StorageFailed: it is not stored.
        """
        try:
            await self._store.put_async(path, content, use_multipart=False)
        except (BaseError, OSError) as error:
            raise StorageFailed(
                "The image was made and its cost recorded, but it could not be stored "
                f"({type(error).__name__})."
            ) from error

    async def get(self, path: str) -> bytes:
        """The bytes at `path`.

        Raises:
            NotFound: nothing is there, or no longer.
            StorageFailed: the store does not answer.
        """
        try:
            result = await self._store.get_async(path)
            return bytes(await result.bytes_async())
        except (NotFoundError, FileNotFoundError):
            raise NotFound("This image is no longer stored.", code="image_not_found") from None
        except (BaseError, OSError) as error:
            raise StorageFailed("The image store does not answer.") from error

    async def delete(self, path: str) -> None:
        """Forget the file at `path`; one that is gone already is fine.

        Raises:
            StorageFailed: the store does not answer.
        """
        try:
            await self._store.delete_async(path)
        except (NotFoundError, FileNotFoundError):
            return
        except (BaseError, OSError) as error:
            raise StorageFailed("The image store does not answer.") from error


def open_store(url: str) -> ImageStore:
    """Open the store at `file:///…` or `s3://bucket/prefix`.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme == "file":
            folder = Path(url2pathname(parts.path))
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return ImageStore(LocalStore(folder))
        if parts.scheme == "s3":
            return ImageStore(from_url(url))
    except (BaseError, OSError, ValueError) as error:
        raise ConfigurationError(
            f"GATEWAY_STORAGE_URL cannot be used ({type(error).__name__}): {parts.scheme} store "
            f"at {parts.netloc}{parts.path}"
        ) from error
    raise ConfigurationError("GATEWAY_STORAGE_URL must start with file:// or s3://")


def new_image_id() -> str:
    """`img_{milliseconds}_{random}`: sorts by time, cannot be guessed."""
    return f"img_{time.time_ns() // 1_000_000:x}_{os.urandom(RANDOM_BYTES).hex()}"


def image_path(tenant_id: UUID, image_id: str, output_format: str) -> str:
    """Where an image lives: a folder per tenant and day."""
    day = datetime.now(UTC).strftime("%Y/%m/%d")
    return f"{tenant_id}/{day}/{image_id}.{output_format}"
