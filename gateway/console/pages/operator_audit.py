"""The audit trail: who changed what and when, by filters, and as a file for spreadsheets."""

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlencode
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from gateway.billing.reports import csv_line, csv_text
from gateway.billing.usage import parse_moment
from gateway.bootstrap import Gateway
from gateway.console.dependencies import OperatorReader
from gateway.console.forms import REFUSALS, UNTOUCHED, refused
from gateway.console.pages.operator_shared import (
    operator_page,
    parts_of_list,
    tenant_page,
    tenant_path,
)
from gateway.console.render import PAGE_HEADERS
from gateway.console.searches import SEARCHED_NOTE, usual_start
from gateway.db.audit import Action, AuditEntry, list_entries
from gateway.db.engine import OperatorSession
from gateway.db.pages import Page
from gateway.db.searches import searching
from gateway.errors import InvalidRequest
from gateway.identity.transactions import reading_as_operator
from gateway.identity.viewers import Viewer
from gateway.rest.dependencies import GatewayDep
from gateway.tenancy import lookups, tenants

PATH = "/console/audit"
TAB = "/audit"
PAGE_SIZE = 50
FILE_PAGE = 1000
MAX_FILE_ROWS = 20_000
"""Changes in one file; earlier ones by another end."""
NOTHING: Page[AuditEntry] = Page((), has_more=False)
COLUMNS = (
    *("at", "actor_type", "actor_id", "actor_name", "action", "tenant_id", "tenant"),
    *("object_id", "object", "request_id", "before", "after"),
)

router = APIRouter()


class AuditForm(BaseModel):
    """The filters of the list, all in the address."""

    model_config = ConfigDict(extra="forbid", str_max_length=255, str_strip_whitespace=True)

    tenant: str = ""
    action: str = ""
    actor: str = ""
    target: str = ""
    start: str = ""
    end: str = ""
    after: UUID | None = None
    format: str = ""

    def address(self, path: str = PATH, **changes: object) -> str:
        """Write the address of this form with some fields changed."""
        fields = {k: v for k, v in (self.model_dump() | {"format": ""} | changes).items() if v}
        return f"{path}?{urlencode(fields)}" if fields else path

    @property
    def is_recent(self) -> bool:
        """Tell whether a search gets the usual start: it has filters, and no index helps it."""
        return any((self.action, self.actor, self.target)) and not (self.start or self.tenant)


@router.get(PATH)
async def show_audit(
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    form: Annotated[AuditForm, Query()],
) -> Response:
    """List changes, newest first, or send them as a file."""
    state, found = UNTOUCHED, NOTHING
    try:
        if form.format == "csv":
            return await _file(gateway, viewer, form)
        async with reading_as_operator(gateway, viewer) as session, searching():
            found = await _entries(session, viewer, form, limit=PAGE_SIZE, after=form.after)
    except REFUSALS as error:
        state = refused("filters", form.model_dump(mode="json"), error)
    return operator_page(
        viewer,
        request,
        "audit.html",
        title="Audit",
        lead="Every change, by people, keys and commands. Entries are never changed.",
        state=state,
        form=form,
        note=SEARCHED_NOTE if form.is_recent else "",
        actions=[("", "Any change"), *((one.value, one.value) for one in Action)],
        found=found.items,
        file=form.address(format="csv", after=None),
        max_rows=MAX_FILE_ROWS,
        is_filtered=bool(form.address(after=None) != PATH),
        newest=form.address(after=None) if form.after else "",
        older=form.address(after=found.items[-1].id) if found.has_more else "",
    )


@router.get("/console/tenants/{tenant_id}/audit")
async def show_tenant_audit(
    *,
    tenant_id: UUID,
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    after: UUID | None = None,
) -> Response:
    """List the changes of one tenant."""
    async with reading_as_operator(gateway, viewer) as session:
        tenant = await tenants.get(session, tenant_id)
        found = await list_entries(session, limit=PAGE_SIZE, after=after, tenant_id=tenant_id)
    here = tenant_path(tenant_id, TAB)
    return tenant_page(
        viewer,
        request,
        "tenant_audit.html",
        tenant,
        TAB,
        **parts_of_list(found, here, after),
        file=AuditForm(tenant=str(tenant_id)).address(format="csv"),
    )


async def _entries(
    session: OperatorSession,
    viewer: Viewer,
    form: AuditForm,
    *,
    limit: int,
    after: UUID | None,
) -> Page[AuditEntry]:
    """Read one page.

    Raises:
        InvalidRequest: a field has an unknown value; the message names it.
        NotFound: there is no such tenant.
    """
    for name in ("actor", "target"):
        if not getattr(form, name).isprintable():
            raise InvalidRequest(f"{name} must be printable characters.", param=name)
    if form.action and form.action not in set(Action):
        raise InvalidRequest(f"There is no change {form.action[:40]!r}.", param="action")
    zone = viewer.time_zone
    tenant = await lookups.find_tenant(session, form.tenant) if form.tenant else None
    start = parse_moment(form.start, "start", zone, is_end=False) if form.start else None
    end = parse_moment(form.end, "end", zone, is_end=True) if form.end else None
    return await list_entries(
        session,
        limit=limit,
        after=after,
        tenant_id=None if tenant is None else tenant.id,
        action=Action(form.action) if form.action else None,
        actor=form.actor or None,
        object_id=form.target or None,
        start=usual_start(end) if form.is_recent else start,
        end=end,
    )


async def _file(gateway: Gateway, viewer: Viewer, form: AuditForm) -> Response:
    """Write the newest changes as CSV, without formulas for spreadsheets."""
    lines = [csv_line(COLUMNS)]
    after: UUID | None = None
    async with reading_as_operator(gateway, viewer) as session, searching():
        while len(lines) <= MAX_FILE_ROWS:
            found = await _entries(session, viewer, form, limit=FILE_PAGE, after=after)
            lines += [csv_line([csv_text(cell) for cell in _cells(one)]) for one in found.items]
            if not found.has_more:
                break
            after = found.items[-1].id
    return Response(
        "".join(lines),
        media_type="text/csv; charset=utf-8",
        headers=PAGE_HEADERS | {"Content-Disposition": 'attachment; filename="audit.csv"'},
    )


def _cells(entry: AuditEntry) -> tuple[str | None, ...]:
    return (
        entry.at.isoformat(),
        entry.actor_type,
        entry.actor_id,
        entry.actor_name,
        entry.action,
        None if entry.tenant_id is None else str(entry.tenant_id),
        entry.tenant_name,
        entry.object_id,
        entry.object_name,
        entry.request_id,
        _json(entry.before),
        _json(entry.after),
    )


def _json(state: Mapping[str, object] | None) -> str:
    return "" if state is None else orjson.dumps(state).decode()
