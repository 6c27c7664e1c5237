"""The models file as workers read it: a private copy that was checked.

A worker that dies must be replaceable while an operator's edit of the file is wrong.
"""

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.catalog.models_file import read_models_file
from gateway.catalog.opening import open_catalog
from gateway.config import Settings, export_to_workers
from gateway.errors import ConfigurationError

NAME = "models.toml"


class ModelsCopy:
    """A folder with the copy. Workers are told of it by `GATEWAY_MODELS_FILE`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = Path(tempfile.mkdtemp(prefix="image-gateway-models-"))

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def take(self) -> None:
        """Check the operator's file and copy it, for the workers that start from now on.

        Raises:
            ConfigurationError: the file is wrong; the earlier copy stays.
        """
        source = self._settings.models_file
        if source is None:
            open_catalog(self._settings)
            return
        # The copy is checked, not the file, which may change in between.
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        copy = folder / NAME
        try:
            try:
                shutil.copyfile(source, copy)
            except OSError as error:
                raise ConfigurationError(f"{source} cannot be read: {error.strerror}.") from None
            for provider in read_models_file(copy).tables.providers:
                if provider.ca_file is not None:
                    _link(source.absolute().parent / provider.ca_file, folder / provider.ca_file)
            open_catalog(self._settings.model_copy(update={"models_file": copy}))
        except ConfigurationError as error:
            shutil.rmtree(folder)
            raise ConfigurationError(str(error).replace(str(copy), str(source))) from None
        export_to_workers(GATEWAY_MODELS_FILE=str(copy))


def _link(certificates: Path, place: Path) -> None:
    """Put a file of certificates beside the copy; one that is missing is refused by the check."""
    if certificates != place and certificates.is_file() and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(certificates)
