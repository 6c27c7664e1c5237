"""Addresses of Postgres, and connections to them."""

from typing import Any

import asyncpg
import orjson
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway.errors import ConfigurationError

CONNECT_TIMEOUT_SECONDS = 2.0
STATEMENT_TIMEOUT_MS = 10_000
UNDERSTOOD_PARAMETERS = frozenset({"sslmode", "host"})
IGNORED_PARAMETERS = frozenset(
    {"channel_binding", "connect_timeout", "application_name", "options"}
)
"""Parameters in the URLs of hosted databases that the driver does not need."""


def database_url(url: str) -> URL:
    """Convert any usual form of a Postgres URL to one for asyncpg.

    Raises:
        ConfigurationError: not a Postgres URL. The message omits it: it holds a password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Their messages quote the URL with its password.
        raise ConfigurationError("GATEWAY_DATABASE_URL is not a database URL") from None
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise ConfigurationError("GATEWAY_DATABASE_URL must start with postgresql://")
    unknown = sorted(set(parsed.query) - UNDERSTOOD_PARAMETERS - IGNORED_PARAMETERS)
    if unknown:
        raise ConfigurationError(
            f"GATEWAY_DATABASE_URL has an unsupported parameter: {unknown[0]}. "
            f"Supported: {', '.join(sorted(UNDERSTOOD_PARAMETERS))}."
        )
    kept = parsed.difference_update_query(IGNORED_PARAMETERS)
    return kept.set(drivername="postgresql+asyncpg")


async def open_connection(url: URL, *, role: str, read_only: bool) -> asyncpg.Connection:
    """Open a connection that no pool holds, with `role`.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError: it cannot be opened.
    """
    arguments = dict(url.translate_connect_args(username="user"))
    arguments |= _connect_arguments(url, role=role, read_only=read_only)
    return await asyncpg.connect(**arguments)


def _connect_arguments(
    url: URL,
    *,
    role: str | None,
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    read_only: bool = False,
) -> dict[str, Any]:
    """Build the arguments of asyncpg beside user, password, host and database."""
    settings = {
        "application_name": "image-gateway",
        "statement_timeout": str(statement_timeout_ms),
        "idle_in_transaction_session_timeout": "15000",
    }
    if read_only:
        settings["default_transaction_read_only"] = "on"
    if role is not None and url.username != role:
        settings["role"] = role
    arguments: dict[str, Any] = {"server_settings": settings, "timeout": connect_timeout_seconds}
    # Users paste libpq's name; asyncpg calls the same parameter `ssl`.
    if sslmode := url.query.get("sslmode"):
        arguments["ssl"] = sslmode
    if host := url.query.get("host"):
        arguments["host"] = host
    return arguments


def create_engine(
    url: URL,
    *,
    role: str | None,
    pool_size: int = 1,
    pool_timeout: float = 10.0,
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    read_only: bool = False,
) -> AsyncEngine:
    """Create an engine whose connections use `role`, or the user of the URL."""
    return create_async_engine(
        url.difference_update_query(["sslmode", "host"]),
        connect_args=_connect_arguments(
            url,
            role=role,
            connect_timeout_seconds=connect_timeout_seconds,
            statement_timeout_ms=statement_timeout_ms,
            read_only=read_only,
        ),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout,
        pool_use_lifo=True,
        # Parameters can be digests or ciphertexts, which an error must not carry into a log.
        hide_parameters=True,
        json_serializer=lambda value: orjson.dumps(value).decode(),
    )
