"""Steps of a request for distributed traces (docs/traces.md). Without traces a step costs nothing.

`gateway.trace_export` makes the span of the request itself. A step is noted with two times and
handed on when it ends; no library for traces is involved, which takes a tenth of the time.
Attributes hold no prompt, key or id of a person: only what is named here and in
`gateway.trace_export`.
"""

import random
import time
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import NamedTuple, Protocol, Self

Attribute = str | int
Attributes = tuple[tuple[str, Attribute], ...]


class Recorder(Protocol):
    """Takes ended steps."""

    def ended(self, step: "TracedStep", ended_ns: int, *, is_failed: bool) -> None:
        """Take one, with the time in ns since 1970; must not block."""


class Parent(NamedTuple):
    """The span that following steps are parts of; ids of 16 and 8 bytes."""

    recorder: Recorder
    trace_id: bytes
    span_id: bytes

    def traceparent(self) -> str:
        """The header by which another service continues the trace under this span."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-01"


class TracedRequest(NamedTuple):
    """The facts that a request's span has: none of them the client's own text."""

    name: str
    method: str
    route: str
    scheme: str
    http_version: str
    request_id: str


_parent: ContextVar[Parent | None] = ContextVar("trace_parent", default=None)


def current_parent() -> Parent | None:
    """Return the span that is under way in this task; None where nothing is traced."""
    return _parent.get()


@dataclass(frozen=True, slots=True)
class Trace:
    """The W3C trace that a request belongs to.

    `span_id`: the client's span, or the request's own.
    """

    trace_id: str
    span_id: str
    flags: str

    def traceparent(self) -> str:
        """The `traceparent` header for an outgoing call: under the step that makes it, if it is
        traced, else as a new span of the trace.
        """
        if (parent := current_parent()) is not None:
            return parent.traceparent()
        return f"00-{self.trace_id}-{random.getrandbits(64) or 1:016x}-{self.flags}"


def set_parent(parent: Parent | None) -> None:
    """Set the span of the request for this task, and the tasks that it starts."""
    _parent.set(parent)


@lru_cache(maxsize=256)
def _dotted(name: str) -> str:
    """Return the name of an attribute; those that the code passes are few."""
    return name.replace("__", ".")


class TracedStep:
    """A step under way: a block, or from its creation to `end`.

    `attributes`: those that many steps have in common, and `noted`: its own. `is_call`: a call of
    another system. `started_ns`: in ns since 1970.
    """

    __slots__ = (
        "_token",
        "attributes",
        "is_call",
        "name",
        "noted",
        "parent",
        "span_id",
        "started_ns",
    )

    def __init__(self, parent: Parent, name: str, attributes: Attributes, *, is_call: bool) -> None:
        self.parent = parent
        self.name = name
        self.attributes = attributes
        self.noted: dict[str, Attribute] = {}
        self.is_call = is_call
        self.span_id = (random.getrandbits(64) or 1).to_bytes(8, "big")
        self._token: Token[Parent | None] | None = None
        self.started_ns = time.time_ns()

    def set(self, **attributes: Attribute | None) -> None:
        """Add attributes, whose underscores become dots; None is left out."""
        for name, value in attributes.items():
            if value is not None:
                self.noted[_dotted(name)] = value

    def end(self, error: object = None) -> None:
        """End the step, with the error that ended it."""
        if error is not None:
            self.noted.setdefault("error.type", type(error).__name__)
        self.parent.recorder.ended(self, time.time_ns(), is_failed=error is not None)

    def __enter__(self) -> Self:
        parent = self.parent
        self._token = _parent.set(Parent(parent.recorder, parent.trace_id, self.span_id))
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


@lru_cache(maxsize=64)
def _postgresql(operation: str) -> Attributes:
    return (("db.system.name", "postgresql"), ("db.operation.name", operation))


@lru_cache(maxsize=1024)
def _named(attributes: Attributes) -> Attributes:
    return tuple((_dotted(name), value) for name, value in attributes)


def postgresql_step(name: str, operation: str) -> TracedStep | UntracedStep:
    """Begin the step of a call of Postgres; it never has the call's values."""
    parent = _parent.get()
    if parent is None:
        return _NO_STEP
    return TracedStep(parent, name, _postgresql(operation), is_call=True)


def step(name: str, *, is_call: bool = False, **attributes: Attribute) -> TracedStep | UntracedStep:
    """Begin a step of the request. Double underscores in names of attributes become dots.

    The attributes are few and of few values: `TracedStep.set` takes others.
    """
    parent = _parent.get()
    if parent is None:
        return _NO_STEP
    named = _named(tuple(attributes.items())) if attributes else ()
    return TracedStep(parent, name, named, is_call=is_call)
