"""The file of a backup: a tar whose last member says what the others must be.

Members, in this order: `master.key` (unless the key is kept elsewhere), `database.dump` (pg_dump's
custom format), `images/…`, `manifest.json`. A file that was cut off has no manifest.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

from gateway.errors import InvalidRequest

FORMAT = 1
MASTER_KEY, DATABASE, IMAGES, MANIFEST = "master.key", "database.dump", "images/", "manifest.json"
MAX_MANIFEST_BYTES = 65_536
PIECE_BYTES = 1_048_576
# The paths that the store makes: a file of another form would be written outside of its folder.
_IMAGE = re.compile(r"[0-9a-f-]{36}/\d{4}/\d{2}/\d{2}/img_[0-9a-z_]+\.(?:png|jpeg|webp)", re.ASCII)


class BackupRefused(InvalidRequest):
    """The file is no backup, is incomplete or damaged, or cannot be restored here."""

    code = "backup_refused"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of a backup. Digests are SHA-256, that of images over all of them in order.

    `made_at` is the time of the database's snapshot in ISO 8601; `missing_images` had a row in it,
    but no file any more, because they were deleted while the backup was made.
    """

    format: int
    version: str
    revision: str
    made_at: str
    ledger_entries: int
    images: int
    image_bytes: int
    missing_images: int
    database_digest: str
    images_digest: str
    master_key_digest: str | None
    are_images_elsewhere: bool

    def to_json(self) -> bytes:
        """Render the manifest."""
        return json.dumps(asdict(self), indent=2).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read a manifest.

        Raises:
            BackupRefused: it is not one of this format.
        """
        try:
            found = cls(**json.loads(content))
        except (ValueError, TypeError):
            raise BackupRefused("The backup's manifest cannot be read.") from None
        if found.format != FORMAT:
            raise BackupRefused(
                f"The backup has format {found.format}; this release reads {FORMAT}. Restore "
                f"it with release {found.version}."
            )
        return found


class BackupWriter:
    """Writes the members, and computes their digests meanwhile."""

    def __init__(self, out: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - `finish` closes it
        self._images = hashlib.sha256()
        self.image_count = 0
        self.image_bytes = 0

    @property
    def images_digest(self) -> str:
        """The digest of the images so far."""
        return self._images.hexdigest()

    def add(self, name: str, content: IO[bytes], size: int) -> str:
        """Add a member; return its digest."""
        digest = hashlib.sha256()
        self._tar.addfile(_member(name, size), _Hashed(content, digest))
        return digest.hexdigest()

    def add_image(self, path: str, content: IO[bytes], size: int) -> None:
        """Add an image by its path in the store."""
        self._tar.addfile(_member(IMAGES + path, size), _Hashed(content, self._images))
        self.image_count += 1
        self.image_bytes += size

    def finish(self, manifest: Manifest) -> None:
        """Add the manifest, which makes the backup complete."""
        content = manifest.to_json()
        self._tar.addfile(_member(MANIFEST, len(content)), io.BytesIO(content))
        self._tar.close()


class BackupReader:
    """Unpacks the members in order, and checks them against the manifest at the end."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._digests: dict[str, str] = {}
        self._images = hashlib.sha256()
        self._image_count = 0
        self._image_bytes = 0

    def unpack(self, folder: Path, images: Path) -> Manifest:
        """Write the members to `folder`, those of images to `images`; return the manifest.

        Raises:
            BackupRefused: the file is no backup, or not as it was written.
            OSError: the disk does not take it.
        """
        try:
            with tarfile.open(fileobj=self._source, mode="r|") as tar:
                manifest = None
                for member, content in _files(tar):
                    if manifest is not None:
                        raise BackupRefused("The backup goes on after its manifest.")
                    manifest = self._take(member, content, folder, images)
        except (tarfile.TarError, EOFError) as error:
            raise BackupRefused(f"This is no backup, or a damaged one ({error}).") from None
        if manifest is None:
            raise BackupRefused("The backup is incomplete: it has no manifest.")
        self._check(manifest)
        return manifest

    def _take(
        self, member: tarfile.TarInfo, content: IO[bytes], folder: Path, images: Path
    ) -> Manifest | None:
        name = member.name
        if name == MANIFEST and member.size <= MAX_MANIFEST_BYTES:
            return Manifest.from_json(content.read())
        if name in {MASTER_KEY, DATABASE} and name not in self._digests:
            digest = hashlib.sha256()
            _write(folder / name, _Hashed(content, digest))
            self._digests[name] = digest.hexdigest()
        elif _IMAGE.fullmatch(path := name.removeprefix(IMAGES)) and path != name:
            target = images / path
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(target, _Hashed(content, self._images))
            self._image_count += 1
            self._image_bytes += member.size
        else:
            raise BackupRefused(f"The backup has a member that no backup has: {name[:100]!r}.")
        return None

    def _check(self, manifest: Manifest) -> None:
        wrong = {
            "the database": manifest.database_digest != self._digests.get(DATABASE),
            "the master key": manifest.master_key_digest != self._digests.get(MASTER_KEY),
            "the images": (manifest.images_digest, manifest.images, manifest.image_bytes)
            != (self._images.hexdigest(), self._image_count, self._image_bytes),
        }
        if found := [what for what, is_wrong in wrong.items() if is_wrong]:
            raise BackupRefused(f"The backup is damaged: {' and '.join(found)} are not as written.")


class _Hashed(io.RawIOBase):
    """A stream that adds what is read from it to a digest."""

    def __init__(self, content: IO[bytes], digest: "hashlib._Hash") -> None:
        self._content = content
        self._digest = digest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        piece = self._content.read(size)
        self._digest.update(piece)
        return piece


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


def _files(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    for member in tar:
        content = tar.extractfile(member) if member.isreg() else None
        if content is None:
            raise BackupRefused(f"The backup has a member that is no file: {member.name[:100]!r}.")
        yield member, content


def _write(target: Path, content: _Hashed) -> None:
    with target.open("xb") as out:
        target.chmod(0o600)
        while piece := content.read(PIECE_BYTES):
            out.write(piece)
