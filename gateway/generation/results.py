"""Turns a provider's answer into stored images: post-process, store, and sign links."""

import asyncio
import binascii
import re
import time
from dataclasses import replace
from typing import BinaryIO
from uuid import UUID

import pybase64

from gateway import telemetry
from gateway.billing.settlement import StoredFile
from gateway.domain import Caller, ImageRequest, StorageState, StoredImage
from gateway.errors import ImageUnfinished
from gateway.generation.continuity import Encoding, PostProcessing
from gateway.library.keeping import Keeper
from gateway.library.links import LinkSigner
from gateway.library.prompt_hashes import prompt_hash
from gateway.library.retention import link_expiry, retention_seconds
from gateway.library.storage import MEDIA_TYPES, image_path, new_image_id
from gateway.media.decoder import Decoder, DecoderBusy, DecoderFailed, UnusableImage
from gateway.media.manifests import ManifestSigner, SigningFailed
from gateway.media.metadata import sniff_format
from gateway.media.source_types import SourceType
from gateway.media.temporary_files import new_spool
from gateway.provider_answers import Provenance, ProviderAnswer

STORE_TIMEOUT_SECONDS = 60.0
BEST_QUALITY = 100
_SIZE_FORM = re.compile(r"([0-9]{1,5})x([0-9]{1,5})", re.ASCII)


class Results:
    """Post-processes, stores and links paid images."""

    def __init__(
        self,
        keeper: Keeper,
        links: LinkSigner,
        decoder: Decoder,
        *,
        signer: ManifestSigner | None,
        prompt_key: bytes,
        image_ttl_seconds: int,
        image_retention_seconds: int,
    ) -> None:
        self._keeper = keeper
        self._links = links
        self._decoder = decoder
        self._signer = signer
        self._prompt_key = prompt_key
        self._image_ttl_seconds = image_ttl_seconds
        self._image_retention_seconds = image_retention_seconds

    async def process(
        self, made: ProviderAnswer, finish: PostProcessing | None, encoding: Encoding | None
    ) -> ProviderAnswer:
        """Give every image the promised size, mask and format; an image that has them is untouched.

        A new file says that a model made the image, and is signed where a certificate is set.

        Raises:
            ImageUnfinished: an image cannot be decoded, or disk space or memory is short.
        """
        answer = await self._encode_all(await self._finish_all(made, finish), encoding)
        if answer is made:
            return made
        if self._signer is None:
            return replace(answer, provenance=Provenance.MARKED)
        is_composite = finish is not None and finish.mask is not None
        source_type = SourceType.COMPOSITE if is_composite else SourceType.MODEL
        return await self._sign_all(self._signer, made, answer, source_type)

    async def _sign_all(
        self,
        signer: ManifestSigner,
        made: ProviderAnswer,
        answer: ProviderAnswer,
        source_type: SourceType,
    ) -> ProviderAnswer:
        """Sign the images; unsigned ones are delivered too, for they are paid for."""

        async def sign(original: str, encoded: str) -> str:
            file, source = pybase64.b64decode(encoded), pybase64.b64decode(original)
            signed = await signer.sign(
                file,
                MEDIA_TYPES[sniff_format(file) or answer.output_format],
                made=source,
                made_type=MEDIA_TYPES[sniff_format(source) or made.output_format],
                source_type=source_type,
            )
            return pybase64.b64encode(signed).decode()

        try:
            images = await asyncio.gather(*map(sign, made.images, answer.images))
        except SigningFailed as error:
            telemetry.alarm("image_not_signed", error=str(error))
            return replace(answer, provenance=Provenance.MARKED)
        return replace(answer, images=tuple(images), provenance=Provenance.SIGNED)

    async def _finish_all(
        self, answer: ProviderAnswer, finish: PostProcessing | None
    ) -> ProviderAnswer:
        """Apply the promised size and mask to every image.

        Raises:
            ImageUnfinished: an image cannot be decoded, or disk space or memory is short.
        """
        if finish is None:
            return answer
        try:
            images = await asyncio.gather(*(self._finish(image, finish) for image in answer.images))
        except (binascii.Error, OSError, UnusableImage, DecoderBusy, DecoderFailed) as error:
            raise unfinished(finish.width, finish.height, type(error).__name__) from error
        size = f"{finish.width}x{finish.height}"
        return replace(answer, images=tuple(images), size=size, output_format="png")

    async def _encode_all(
        self, answer: ProviderAnswer, encoding: Encoding | None
    ) -> ProviderAnswer:
        """Encode the images that have another format than was asked for; others stay untouched.

        Raises:
            ImageUnfinished: an image cannot be decoded, or disk space or memory is short.
        """
        if encoding is None or (
            encoding.format == answer.output_format and encoding.quality in {None, BEST_QUALITY}
        ):
            return answer
        try:
            images = await asyncio.gather(*(self._encode(one, encoding) for one in answer.images))
        except (binascii.Error, OSError, UnusableImage, DecoderBusy, DecoderFailed) as error:
            raise ImageUnfinished(
                "The image was made and its cost recorded, but it could not be encoded as "
                f"{encoding.format}: {type(error).__name__}."
            ) from error
        return replace(answer, images=tuple(images), output_format=encoding.format)

    async def _encode(self, encoded: str, encoding: Encoding) -> str:
        with new_spool() as made, new_spool() as target:
            made.write(pybase64.b64decode(encoded, validate=True))
            made.flush()
            await self._decoder.encode(
                made, target, media_type=MEDIA_TYPES[encoding.format], quality=encoding.quality
            )
            target.seek(0)
            return pybase64.b64encode(target.read()).decode()

    async def _finish(self, encoded: str, finish: PostProcessing) -> str:
        with new_spool() as made, new_spool() as target:
            made.write(pybase64.b64decode(encoded, validate=True))
            made.flush()
            try:
                await self._draw(made, finish, target)
            except (UnusableImage, DecoderFailed):
                # Try once more: the process may have been killed by an earlier job, and the image
                # is paid for.
                await self._draw(made, finish, target)
            target.seek(0)
            return pybase64.b64encode(target.read()).decode()

    async def _draw(self, made: BinaryIO, finish: PostProcessing, target: BinaryIO) -> None:
        width, height = finish.width, finish.height
        if finish.original is None or finish.mask is None:
            await self._decoder.resample(made, target, width=width, height=height)
            return
        await self._decoder.composite(
            finish.original.file, finish.mask.file, made, target, width=width, height=height
        )

    def files(
        self, caller: Caller, request: ImageRequest, answer: ProviderAnswer
    ) -> list[tuple[StoredFile, bytes]]:
        """Return the images' bytes and store paths; an empty list if one is not base64."""
        try:
            contents = [pybase64.b64decode(image, validate=True) for image in answer.images]
        except binascii.Error:
            return []
        seeds = answer.seeds or (None,) * len(contents)
        return [
            (self._file(caller, request, answer, content, seed), content)
            for content, seed in zip(contents, seeds, strict=True)
        ]

    def _file(
        self,
        caller: Caller,
        request: ImageRequest,
        answer: ProviderAnswer,
        content: bytes,
        seed: int | None,
    ) -> StoredFile:
        image_id = new_image_id()
        # OpenAI-compatible hosts may omit or misstate the format, so the bytes decide.
        output_format = sniff_format(content) or answer.output_format
        width, height = dimensions(answer.size)
        settings = caller.tenant_settings
        ttl_seconds = retention_seconds(settings, default_seconds=self._image_retention_seconds)
        now = int(time.time())
        return StoredFile(
            id=image_id,
            path=image_path(caller.tenant_id, image_id, output_format),
            media_type=MEDIA_TYPES[output_format],
            size_bytes=len(content),
            ttl_seconds=ttl_seconds,
            link_expires_at=link_expiry(
                now, link_seconds=self._image_ttl_seconds, image_expires_at=now + ttl_seconds
            ),
            width=width,
            height=height,
            seed=seed,
            prompt=request.prompt if settings.stores_prompts else None,
            prompt_hash=prompt_hash(self._prompt_key, caller.tenant_id, request.prompt),
            provenance=answer.provenance,
        )

    async def check(self, request: ImageRequest) -> None:
        """Refuse a request whose images could not be delivered.

        Raises:
            Unavailable: the store is known to fail, and a link is wanted or the spool is full.
        """
        await self._keeper.health.check(wants_link=request.wants_link)

    async def store(
        self,
        generation_id: UUID,
        caller: Caller,
        request: ImageRequest,
        answer: ProviderAnswer,
        files: list[tuple[StoredFile, bytes]],
    ) -> tuple[tuple[StoredImage, ...], StorageState]:
        """Keep every image; return the images and their place (store, spool or pending).

        Links are valid in every case; an image that is not base64 has none.
        """
        if not files:
            telemetry.alarm("storage_failed", generation=str(generation_id), error="no base64")
            media_type = MEDIA_TYPES[answer.output_format]
            unstored = (
                StoredImage(new_image_id(), encoded, None, media_type) for encoded in answer.images
            )
            return tuple(unstored), StorageState.LOST
        # Only the response format counts: an MCP preview is sent from memory, without the store.
        wants_link = request.response_format == "url"
        kept = await self._keeper.keep(
            generation_id, caller.tenant_id, files, wants_link=wants_link
        )
        images = tuple(
            StoredImage(file.id, encoded, self._link(file), file.media_type)
            for (file, _), encoded in zip(files, answer.images, strict=True)
        )
        return images, kept

    def _link(self, file: StoredFile) -> str:
        return self._links.sign(file.id, file.path, file.link_expires_at)


def dimensions(size: str | None) -> tuple[int | None, int | None]:
    """Parse a size as providers write it into width and height; None if it is not one."""
    form = _SIZE_FORM.fullmatch(size or "")
    return (None, None) if form is None else (int(form[1]), int(form[2]))


def unfinished(width: int, height: int, reason: str) -> ImageUnfinished:
    """Build the error of an image that was bought and cannot be brought to its promised size."""
    return ImageUnfinished(
        "The image was made and its cost recorded, but it could not be resized to "
        f"{width}x{height}: {reason}."
    )
