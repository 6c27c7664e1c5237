"""Changes functions of imported modules in place: importing the gateway anew takes seconds."""

import gc
import importlib
import pkgutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType

import gateway

ENTRY_POINTS = ("gateway.__main__",)
"""Modules that start the gateway where they are imported."""


class NotPatchableError(Exception):
    """The change needs a process that imports the module anew."""


class ImportedGateway:
    """Every module of the gateway, imported here for good; patch it in a fork."""

    def __init__(self) -> None:
        self._called: set[CodeType] = set()
        sys.setprofile(self._note_call)
        for module in pkgutil.walk_packages(gateway.__path__, "gateway."):
            if module.name not in ENTRY_POINTS:
                importlib.import_module(module.name)
        sys.setprofile(None)
        self._functions: dict[str, list[FunctionType]] = defaultdict(list)
        for thing in gc.get_objects():
            if isinstance(thing, FunctionType):
                self._functions[thing.__code__.co_filename].append(thing)

    def patch(self, path: Path, before: bytes, after: bytes) -> None:
        """Give the functions of the module at `path` their code from the source `after`.

        Raises:
            NotPatchableError: no function has the changed code, or not with the same closure, or
                it was called during the imports.
        """
        old, new = (compile(source, path, "exec", dont_inherit=True) for source in (before, after))
        try:
            changed = {was: now for was, now in _pairs(old, new) if was != now}
            patched = [thing for thing in self._functions[str(path)] if thing.__code__ in changed]
            if not patched or not self._called.isdisjoint(thing.__code__ for thing in patched):
                raise NotPatchableError
            for function in patched:
                function.__code__ = changed[function.__code__]
        except ValueError as different_shape:
            raise NotPatchableError from different_shape

    def _note_call(self, frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            self._called.add(frame.f_code)


def _pairs(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """Code objects with the ones in their place, nested ones too."""
    yield old, new
    nested = (
        [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for code in (old, new)
    )
    for was, now in zip(*nested, strict=True):
        yield from _pairs(was, now)
