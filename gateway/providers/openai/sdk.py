"""OpenAI's SDK, imported without its 440 modules of types, which no call of the gateway needs.

The packages below `openai.types` only import their modules by name. Deferring that until a name is
asked for saves each process 9 MB and half a second of its start. `openai.types.Image` and imports
such as `from openai.types.responses import Response` work as ever.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TYPES = "openai.types"


class _Deferred(Loader):
    """Runs a package's `__init__` when the first name is asked of it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        def look_up(name: str) -> object:
            # The import system asks for dunder names that a package may lack.
            if name.startswith("__"):
                raise AttributeError(name)
            if module.__dict__.pop("__getattr__", None) is not None:
                self._loader.exec_module(module)
            return getattr(module, name)

        module.__dict__["__getattr__"] = look_up


class _TypesFinder(MetaPathFinder):
    """Finds the packages of types, and defers them; their modules are found as ever."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TYPES and not fullname.startswith(f"{TYPES}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.submodule_search_locations and spec.loader is not None:
            spec.loader = _Deferred(spec.loader)
        return spec


if TYPES not in sys.modules:
    sys.meta_path.insert(0, _TypesFinder())

from openai import (  # noqa: E402 - the finder must be there first
    APIConnectionError,
    APIError,
    APIStatusError,
    AsyncOpenAI,
    AsyncStream,
    Omit,
    omit,
)
from openai._models import FinalRequestOptions  # noqa: E402 - as above

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "AsyncOpenAI",
    "AsyncStream",
    "FinalRequestOptions",
    "Omit",
    "omit",
]
