"""Steps of traces for statements of a pool: their kind alone, never a text or values."""

from functools import lru_cache
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.tracing import postgresql_step

KINDS = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "SET", "OTHER")
NAMES = {kind: f"postgresql {kind}" for kind in KINDS}


def trace_statements(engine: AsyncEngine) -> None:
    """Make each statement a step of the request that runs it."""
    event.listen(engine.sync_engine, "before_cursor_execute", _begin)
    event.listen(engine.sync_engine, "after_cursor_execute", _end)
    event.listen(engine.sync_engine, "handle_error", _fail)


def _begin(
    _connection: object,
    _cursor: object,
    statement: str,
    _values: object,
    context: Any,  # noqa: ANN401 - a place for attributes, as SQLAlchemy means it
    *_: object,
) -> None:
    kind = _kind(statement)
    context.gateway_step = postgresql_step(NAMES[kind], kind)


@lru_cache(maxsize=512)
def _kind(statement: str) -> str:
    first = statement.split(None, 1)[0].upper()
    return first if first in NAMES else "OTHER"


def _end(
    _connection: object,
    _cursor: object,
    _statement: str,
    _values: object,
    context: Any,  # noqa: ANN401 - the same
    *_: object,
) -> None:
    context.gateway_step.end()


def _fail(failure: ExceptionContext) -> None:
    begun = getattr(failure.execution_context, "gateway_step", None)
    if begun is not None:
        begun.end(failure.original_exception)
