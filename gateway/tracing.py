"""Steps of a request for distributed traces (docs/traces.md). Without traces a step costs nothing.

The span of the request itself is FastAPI's. A step is noted with two times and handed on when it
ends; no library for traces is involved until then, which takes a tenth of the time. Attributes
hold no prompt, key or id of a person: only what is named here and in `gateway.trace_export`.
"""

import random
import time
from collections.abc import Mapping
from contextvars import ContextVar, Token
from functools import lru_cache
from types import TracebackType
from typing import NamedTuple, Protocol, Self

Attribute = str | int


class EndedStep(NamedTuple):
    """A step that has ended. `is_call`: a call of another system. Times in ns since 1970."""

    name: str
    parent: "Parent"
    span_id: int
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, Attribute]
    is_call: bool
    is_failed: bool


class Recorder(Protocol):
    """Takes ended steps."""

    def ended(self, step: EndedStep) -> None:
        """Take one; must not block."""


class Parent(NamedTuple):
    """The span that following steps are parts of."""

    recorder: Recorder
    trace_id: int
    span_id: int

    def traceparent(self) -> str:
        """The header by which another service continues the trace under this span."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"


_parent: ContextVar[Parent | None] = ContextVar("trace_parent", default=None)


def current_parent() -> Parent | None:
    """Return the span that is under way in this task; None where nothing is traced."""
    return _parent.get()


def set_parent(parent: Parent | None) -> None:
    """Set the span of the request for this task, and the tasks that it starts."""
    _parent.set(parent)


@lru_cache(maxsize=256)
def _dotted(name: str) -> str:
    """Return the name of an attribute; those that the code passes are few."""
    return name.replace("__", ".")


class TracedStep:
    """A step under way: a block, or from its creation to `end`."""

    __slots__ = ("_attributes", "_is_call", "_name", "_parent", "_span_id", "_started_ns", "_token")

    def __init__(
        self, parent: Parent, name: str, attributes: dict[str, Attribute], *, is_call: bool
    ) -> None:
        self._parent = parent
        self._name = name
        self._attributes = attributes
        self._is_call = is_call
        self._span_id = random.getrandbits(64) or 1
        self._token: Token[Parent | None] | None = None
        self._started_ns = time.time_ns()

    def set(self, **attributes: Attribute | None) -> None:
        """Add attributes, whose underscores become dots; None is left out."""
        own = self._attributes
        for name, value in attributes.items():
            if value is not None:
                own[_dotted(name)] = value

    def end(self, error: object = None) -> None:
        """End the step, with the error that ended it."""
        if error is not None:
            self._attributes.setdefault("error.type", type(error).__name__)
        parent = self._parent
        parent.recorder.ended(
            EndedStep(
                self._name,
                parent,
                self._span_id,
                self._started_ns,
                time.time_ns(),
                self._attributes,
                self._is_call,
                error is not None,
            )
        )

    def __enter__(self) -> Self:
        parent = self._parent
        self._token = _parent.set(Parent(parent.recorder, parent.trace_id, self._span_id))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            _parent.reset(self._token)
        self.end(error)


class UntracedStep:
    """A step of a request that is not traced."""

    def set(self, **attributes: Attribute | None) -> None:
        """Forget them."""

    def end(self, error: object = None) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


_NO_STEP = UntracedStep()


def postgresql(operation: str) -> dict[str, Attribute]:
    """Return the attributes of a call of Postgres, for `step`; never its values."""
    return {"db__system__name": "postgresql", "db__operation__name": operation}


def step(name: str, *, is_call: bool = False, **attributes: Attribute) -> TracedStep | UntracedStep:
    """Begin a step of the request. Double underscores in names of attributes become dots."""
    parent = _parent.get()
    if parent is None:
        return _NO_STEP
    named = {_dotted(key): value for key, value in attributes.items()}
    return TracedStep(parent, name, named, is_call=is_call)
