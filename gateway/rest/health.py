"""Liveness, readiness and metrics."""

import asyncio
import struct
from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.bootstrap import Gateway
from gateway.db.engine import DatabaseUnavailable, answered_within
from gateway.errors import Unavailable
from gateway.library.store_health import StoreHealth
from gateway.rest.dependencies import GatewayDep
from gateway.rest.openapi import shared_headers
from gateway.rest.schemas import Health, Readiness
from gateway.web.routes import CONSOLE_PATH

router = APIRouter(tags=["health"])
READY_TIMEOUT_SECONDS = 1.0
READ_ATTEMPTS = 5
READ_AGAIN_SECONDS = 0.05


@router.get("/", include_in_schema=False)
async def root(request: Request) -> RedirectResponse:
    """Redirect browsers to the console, programs to the documentation."""
    accepted = request.headers.get("accept", "")
    return RedirectResponse(CONSOLE_PATH if "text/html" in accepted else "/docs")


@router.get("/health", summary="Liveness", response_model=Health)
async def health() -> dict[str, str]:
    """Return 200 while the process runs. The database is not checked: a restart cannot fix it."""
    return {"status": "ok"}


@router.get(
    "/ready",
    summary="Readiness",
    responses={
        200: {"model": Readiness},
        503: {
            "model": Readiness,
            "description": "Postgres does not answer or has not since the start, or the gateway is "
            "shutting down.",
            "headers": shared_headers("X-Request-Id", "Retry-After"),
        },
    },
)
async def ready(gateway: GatewayDep) -> JSONResponse:
    """Return 503 while Postgres does not answer, and during shutdown.

    A process that could not warm up when it started does so now, before it is ready.

    200 with the status `degraded` while the image store is unavailable: all replicas share the
    store, and a load balancer that removed them all would also stop the requests that need no link.
    """
    storage = _storage(gateway.keeper.health)
    if gateway.leaving.is_set() or gateway.pipeline.draining:
        return JSONResponse(
            {"status": "draining", "database": "ok", "storage": storage},
            status_code=HTTPStatus.SERVICE_UNAVAILABLE,
        )
    if not await _has_database(gateway):
        return JSONResponse(
            {"status": "unavailable", "database": "unavailable", "storage": storage},
            status_code=HTTPStatus.SERVICE_UNAVAILABLE,
            headers={"Retry-After": "1"},
        )
    status = "ready" if storage == "ok" else "degraded"
    return JSONResponse({"status": status, "database": "ok", "storage": storage})


async def _has_database(gateway: Gateway) -> bool:
    """Ask Postgres; warm up too if that failed at start."""
    try:
        async with answered_within(READY_TIMEOUT_SECONDS):
            await gateway.database.call("SELECT 1")
            return await gateway.warm_up.again()
    except DatabaseUnavailable:
        return False


def _storage(health: StoreHealth) -> str:
    if not health.is_failing:
        return "ok"
    return "failing, spool full" if health.is_spool_full else "failing"


@router.get(
    "/metrics",
    summary="Prometheus metrics; needs an admin key",
    response_class=Response,
    responses={
        200: {
            "content": {
                kind: {"schema": {"type": "string"}}
                for kind in ("text/plain", "application/openmetrics-text")
            }
        }
    },
)
async def metrics(gateway: GatewayDep, request: Request) -> Response:
    """Return the metrics of all workers, or of this process if there is only one.

    In the format of OpenMetrics, with exemplars, for a client that accepts it.
    """
    generate, media_type = choose_encoder(request.headers.get("accept", ""))
    if gateway.settings.prometheus_multiproc_dir is None:
        return Response(generate(REGISTRY), media_type=media_type)
    for _ in range(READ_ATTEMPTS):
        registry = CollectorRegistry()
        MultiProcessCollector(  # type: ignore[no-untyped-call]  # the library has no annotations
            registry, path=str(gateway.settings.prometheus_multiproc_dir)
        )
        try:
            return Response(generate(registry), media_type=media_type)
        except struct.error:  # a worker that starts has just made a file, which is still empty
            await asyncio.sleep(READ_AGAIN_SECONDS)
    raise Unavailable("The metrics of a worker cannot be read yet.", retry_after_seconds=1)
