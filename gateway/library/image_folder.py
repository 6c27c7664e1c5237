"""The folder of local image files: made at start alone, and open to its owner alone."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

OWNER_ONLY = 0o700
_ROOT = Path("/")


class ImageFolder:
    """A folder that is not made again once it is gone, itself or the mount that it is on.

    Otherwise images would go, readable by others, to where no one looks for them: into the empty
    mount point. A folder that is back is used again.
    """

    def __init__(self, path: Path, *, is_mount: Callable[[Path], bool] = Path.is_mount) -> None:
        """Make the folder if it is missing.

        Raises:
            OSError: it cannot be made.
        """
        path.mkdir(parents=True, exist_ok=True, mode=OWNER_ONLY)
        self.path = path
        self._is_mount = is_mount
        real = path.resolve()
        self._mount = next(one for one in (real, *real.parents) if one == _ROOT or is_mount(one))

    def is_there(self) -> bool:
        """Tell whether the folder exists, on the mount on which it was at start."""
        return self.path.is_dir() and (self._mount == _ROOT or self._is_mount(self._mount))

    def prepare(self, name: str) -> None:
        """Make the folders of the file `name`, which is about to be written.

        Raises:
            OSError: they cannot be made, or the folder of all images is gone.
        """
        if not self.is_there():
            raise FileNotFoundError("The folder of images is gone.")
        folder = self.path
        for part in PurePosixPath(name).parts[:-1]:
            folder /= part
            folder.mkdir(mode=OWNER_ONLY, exist_ok=True)
