"""Whether the process lives, whether it can serve, and its metrics."""

from http import HTTPStatus

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.db.engine import DatabaseUnavailable, answered_within
from gateway.library.store_health import StoreHealth
from gateway.rest.dependencies import GatewayDep
from gateway.rest.openapi import shared_headers
from gateway.rest.schemas import Health, Readiness

router = APIRouter(tags=["health"])
READY_TIMEOUT_SECONDS = 1.0


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """People who open the address in a browser want the documentation."""
    return RedirectResponse("/docs")


@router.get("/health", summary="The process lives", response_model=Health)
async def health() -> dict[str, str]:
    """Says nothing about the database: a restart would not mend that."""
    return {"status": "ok"}


@router.get(
    "/ready",
    summary="Requests can be served",
    responses={
        200: {"model": Readiness},
        503: {
            "model": Readiness,
            "description": "Postgres does not answer, or the gateway shuts down.",
            "headers": shared_headers("X-Request-Id", "Retry-After"),
        },
    },
)
async def ready(gateway: GatewayDep) -> JSONResponse:
    """503 while Postgres does not answer, and once the gateway shuts down.

    200 with the status `degraded` while the image store is away: every replica shares the store,
    and a balancer that took them all out would stop the requests that need no link too.
    """
    storage = _storage(gateway.keeper.health)
    if gateway.leaving.is_set() or gateway.pipeline.draining:
        return JSONResponse(
            {"status": "draining", "database": "ok", "storage": storage},
            status_code=HTTPStatus.SERVICE_UNAVAILABLE,
        )
    try:
        async with answered_within(READY_TIMEOUT_SECONDS):
            await gateway.database.call("SELECT 1")
    except DatabaseUnavailable:
        return JSONResponse(
            {"status": "unavailable", "database": "unavailable", "storage": storage},
            status_code=HTTPStatus.SERVICE_UNAVAILABLE,
            headers={"Retry-After": "1"},
        )
    status = "ready" if storage == "ok" else "degraded"
    return JSONResponse({"status": status, "database": "ok", "storage": storage})


def _storage(health: StoreHealth) -> str:
    if not health.is_failing:
        return "ok"
    return "failing, spool full" if health.is_spool_full else "failing"


@router.get(
    "/metrics",
    summary="Prometheus metrics; needs an admin key",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(gateway: GatewayDep) -> Response:
    """Of every worker where there are several, else of this process."""
    if gateway.settings.prometheus_multiproc_dir is None:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
    registry = CollectorRegistry()
    MultiProcessCollector(  # type: ignore[no-untyped-call]  # the library has no annotations
        registry, path=str(gateway.settings.prometheus_multiproc_dir)
    )
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
