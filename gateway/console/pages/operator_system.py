"""The system: version, database, examination, sweeps, storage, spool, pools and circuits."""

from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway import __version__
from gateway.billing import usage_sums
from gateway.bootstrap import Gateway
from gateway.console.dependencies import OperatorReader
from gateway.console.pages.operator_shared import operator_page
from gateway.console.shared import Shared
from gateway.db import sweeps
from gateway.db.revisions import newest_revision
from gateway.examination import examine
from gateway.identity.transactions import reading_as_operator
from gateway.identity.viewers import Viewer
from gateway.library.spool import SpoolStats
from gateway.rest.dependencies import GatewayDep
from gateway.webhooks import deliveries

PATH = "/console/system"
LEDGER_SECONDS = 20
KEPT_SECONDS = 10
POOLS = {
    "requests": "Tenants' requests",
    "reports": "Tenants' reports",
    "operators": "Operators' pages and changes",
    "operators_reports": "Operators' reports",
    "background": "Periodic work",
}
SWEEPS = {
    "request_log": "Old requests are forgotten, and partitions of the coming days are made",
    "months": "Partitions of the coming months are made",
    "usage": "Ledger lines are added to the sums of usage",
    "byte_caps": "Images beyond tenants' caps are deleted",
    "secrets": "Keys that are no longer used are retired",
    "invariants": "The books are checked",
    "orphans": "Files without a row are deleted",
    "webhooks": "Old deliveries and events are deleted",
    "erasures": "What deleted tenants and users left is erased",
    "console": "Ended sessions, links and invitations are forgotten",
}

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of the examination."""

    subject: str
    state: str
    details: str


@dataclass(frozen=True, slots=True)
class Examination:
    """All findings at one time."""

    at: datetime
    findings: tuple[Finding, ...]


@router.get(PATH)
async def show_system(request: Request, viewer: OperatorReader, gateway: GatewayDep) -> Response:
    """Show the state of the gateway, without its examination."""
    return await _page(request, gateway, viewer, None)


@router.post(PATH)
async def examine_system(request: Request, viewer: OperatorReader, gateway: GatewayDep) -> Response:
    """Examine the gateway as `gateway doctor` does, once for all who ask, and show the findings."""
    state = request.app.state
    if not hasattr(state, "examination"):
        state.examination = Shared(lambda: _examine(gateway), seconds=KEPT_SECONDS)
    shared: Shared[Examination] = state.examination
    return await _page(request, gateway, viewer, await shared.get())


async def _examine(gateway: Gateway) -> Examination:
    findings: list[Finding] = []

    def note(subject: str, state: str, details: str) -> None:
        findings.append(Finding(subject, state, details))

    await examine(gateway, note, ledger_seconds=LEDGER_SECONDS)
    return Examination(datetime.now(UTC), tuple(findings))


async def _page(
    request: Request, gateway: Gateway, viewer: Viewer, examination: Examination | None
) -> Response:
    async with reading_as_operator(gateway, viewer) as session:
        work = await sweeps.list_all(session)
        pending_lines = await usage_sums.count_pending(session)
        waiting = await deliveries.count_waiting(session)
    spool: SpoolStats = await gateway.keeper.spool.stats()
    health, settings = gateway.keeper.health, gateway.settings
    return operator_page(
        viewer,
        request,
        "system.html",
        title="System",
        lead="Pools and circuits are those of the process that answered this page.",
        version=__version__,
        revision=gateway.core.revision,
        newest=newest_revision(),
        examination=examination,
        sweeps=[(one, SWEEPS.get(one.name, one.name)) for one in work],
        pending_lines=pending_lines,
        waiting=waiting,
        spool=spool,
        spool_max_bytes=settings.spool_max_bytes,
        storage_url=settings.image_storage_url.partition("?")[0],
        is_store_failing=health.is_failing,
        is_spool_full=health.is_spool_full,
        pools=[(POOLS.get(one.name, one.name), one) for one in gateway.database.use()],
        gate=gateway.gate,
        circuits=gateway.pipeline.troubled_circuits(),
        workers=settings.workers,
        is_embedded=settings.uses_embedded_postgres,
        has_redis=settings.redis_url is not None,
        processes=gateway.limiter.processes,
    )
