"""The request log of all tenants: the list, and the page of one request with its whole way."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated
from urllib.parse import quote, urlencode
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from gateway.billing import call_terms, reconciliation
from gateway.billing.call_terms import CallTerms
from gateway.billing.reconciliation import CallRecord
from gateway.billing.usage import parse_moment
from gateway.bootstrap import Gateway
from gateway.console.dependencies import OperatorReader, redirect
from gateway.console.forms import REFUSALS, UNTOUCHED, FormState, refused, uuid_or_none
from gateway.console.render import Crumb, Flash, page
from gateway.console.searches import SEARCHED_NOTE, usual_start
from gateway.console.shell import shell_of
from gateway.db.engine import OperatorSession
from gateway.db.searches import searching
from gateway.errors import InvalidRequest, NotFound
from gateway.identity.transactions import reading_as_operator
from gateway.identity.viewers import Permission, Viewer
from gateway.library import made_images
from gateway.library.made_images import StoredResult
from gateway.request_ids import CLIENT_ID, REQUEST_ID
from gateway.request_log import queries
from gateway.request_log.queries import (
    LoggedRequest,
    RequestDetail,
    RequestFilter,
    RequestReservation,
)
from gateway.rest.dependencies import GatewayDep
from gateway.tenancy import lookups
from gateway.tenancy.lookups import KeyScope
from gateway.webhooks import around
from gateway.webhooks.around import SentEvent

PATH = "/console/requests"
PAGE_SIZE = 50
DAY_CHARACTERS = len("2026-11-20")
STATUSES: dict[str, tuple[int, int]] = {
    "ok": (200, 399),
    "errors": (400, 599),
    "4xx": (400, 499),
    "5xx": (500, 599),
}
STATUS_CHOICES = (
    ("", "Any status"),
    ("ok", "Succeeded"),
    ("errors", "Failed"),
    ("4xx", "4xx: refused"),
    ("5xx", "5xx: failed here or upstream"),
)
MODES = (("", "Live and test"), ("live", "Live"), ("test", "Test"))
CODES = (
    *("budget_exceeded", "client_disconnected", "credential_rejected", "insufficient_scope"),
    *("invalid_api_key", "invalid_value", "model_not_found", "moderation_blocked"),
    *("outcome_unknown", "overloaded", "provider_error", "provider_unreachable"),
    *("rate_limit_exceeded", "storage_failed"),
)
"""Error codes that the form offers; any other one may be typed."""
AFTER_CALL = timedelta(minutes=2)
"""Alerts are sent within seconds of what caused them."""
DONE = {"resolved": Flash("The call was resolved. The ledger and the audit trail have it.")}

router = APIRouter()


class RequestForm(BaseModel):
    """The fields of the form, all in the address. An empty field is none."""

    model_config = ConfigDict(extra="forbid", str_max_length=255, str_strip_whitespace=True)

    id: str = ""
    tenant: str = ""
    key: str = ""
    mode: str = ""
    status: str = ""
    error_code: str = ""
    model: str = ""
    start: str = ""
    end: str = ""
    pages: str = ""
    after: str = ""

    def address(self, **changes: str) -> str:
        """Write the address of this form with some fields changed."""
        fields = {name: value for name, value in (self.model_dump() | changes).items() if value}
        return f"{PATH}?{urlencode(fields)}" if fields else PATH


@dataclass(frozen=True, slots=True)
class RequestWay:
    """All that is known of one request. Each part is None where it did not get so far."""

    detail: RequestDetail | None
    booked: RequestReservation | None
    call: CallRecord | None
    terms: CallTerms | None
    images: Sequence[StoredResult]
    events: Sequence[SentEvent]


def request_path(request_id: object) -> str:
    """The address of a request's page, by any of its ids."""
    return f"{PATH}/{quote(str(request_id), safe='')}"


@router.get(PATH)
async def show_requests(
    request: Request,
    viewer: OperatorReader,
    gateway: GatewayDep,
    form: Annotated[RequestForm, Query()],
) -> Response:
    """List requests, newest first; a complete id leads to its request."""
    if REQUEST_ID.fullmatch(form.id) or uuid_or_none(form.id) is not None:
        return redirect(request_path(form.id))
    found: tuple[LoggedRequest, ...] = ()
    state, older, zone = UNTOUCHED, "", viewer.time_zone
    try:
        async with reading_as_operator(gateway, viewer) as session, searching():
            tenant = await lookups.find_tenant(session, form.tenant) if form.tenant else None
            zone = viewer.time_zone if tenant is None else tenant.time_zone
            tenant_id = None if tenant is None else tenant.id
            listed = await queries.list_all(
                session,
                await _chosen(session, form, tenant_id, zone),
                tenant_id=tenant_id,
                livemode=_mode(form),
                limit=PAGE_SIZE,
                after=form.after or None,
            )
        found = listed.items
        older = form.address(after=found[-1].row.id) if listed.has_more else ""
    except REFUSALS as error:
        state = refused("filters", form.model_dump(), error)
    return page(
        shell_of(viewer, request),
        "operator/requests.html",
        title="Requests",
        lead="What became of each request, over all tenants. A request appears seconds after its "
        "answer.",
        status=state.status,
        form=form,
        state=state,
        found=found,
        older=older,
        zone=zone,
        note=SEARCHED_NOTE if _is_recent(form) else "",
        start=_local(form.start, is_end=False),
        end=_local(form.end, is_end=True),
        statuses=_with_own(STATUS_CHOICES, form.status),
        modes=MODES,
        codes=CODES,
        models=sorted(gateway.core.catalog.models),
        is_filtered=any(form.model_copy(update={"after": "", "pages": ""}).model_dump().values()),
    )


@router.get(PATH + "/{request_id}")
async def show_request(
    request_id: str, request: Request, viewer: OperatorReader, gateway: GatewayDep, done: str = ""
) -> Response:
    """Show one request with its whole way, by any of its ids."""
    return await request_page(request, gateway, viewer, request_id, flash=DONE.get(done))


async def request_page(
    request: Request,
    gateway: Gateway,
    viewer: Viewer,
    request_id: str,
    *,
    flash: Flash | None = None,
    state: FormState = UNTOUCHED,
) -> Response:
    """Render the page of a request, or of a call whose request is no longer in the log."""
    async with reading_as_operator(gateway, viewer) as session:
        way = await _read_way(session, gateway, request_id)
    is_open = way.call is not None and way.call.state in {"unknown", "estimated"}
    return page(
        shell_of(viewer, request, flash=flash),
        "operator/request.html",
        title="Request" if way.detail is not None else "Call",
        crumbs=[Crumb("Requests", PATH)],
        status=state.status,
        way=way,
        log=None if way.detail is None else way.detail.request,
        row=None if way.detail is None else way.detail.request.row,
        can_resolve=is_open and viewer.may(Permission.OPERATOR_CHANGE),
        state=state,
        now=datetime.now(UTC),
    )


async def _read_way(session: OperatorSession, gateway: Gateway, request_id: str) -> RequestWay:
    """Read all parts.

    Raises:
        NotFound: neither the log nor the ledger has this id.
    """
    given = uuid_or_none(request_id)
    detail, call = None, None
    try:
        detail = await queries.find_any(session, request_id)
    except NotFound:
        if given is None:
            raise
    call_id = given if detail is None else detail.request.row.generation_id
    if call_id is not None:
        # A generation that was refused before its reservation has an id alone.
        with suppress(*((NotFound,) if detail is not None else ())):
            call = await reconciliation.show(session, gateway.core.catalog.models, call_id)
    if call is None:
        return RequestWay(detail, None, None, None, (), ())
    ended = call.resolved_at or call.deadline_at
    return RequestWay(
        detail,
        await queries.find_reservation(session, call.tenant_id, call.id),
        call,
        await call_terms.read_terms(session, call.tenant_id, call.id),
        await made_images.list_made(session, call.tenant_id, call.id),
        await around.list_around(
            session, call.tenant_id, start=call.admitted_at, end=ended + AFTER_CALL
        ),
    )


async def _chosen(
    session: OperatorSession, form: RequestForm, tenant_id: UUID | None, zone: str
) -> RequestFilter:
    """Read the form.

    Raises:
        InvalidRequest: a field has an unknown value; the message names it.
        NotFound: there is no such key.
    """
    if form.id and not CLIENT_ID.fullmatch(form.id):
        raise InvalidRequest(
            "An id has at most 128 letters, digits and . _ ~ : + = @ , - characters.", param="id"
        )
    for name, value in form.model_dump().items():
        if not value.isprintable():
            raise InvalidRequest(f"{name} must be printable characters.", param=name)
    status, statuses = None, STATUSES.get(form.status)
    if form.status and statuses is None:
        status = _status(form.status)
    key_id = None
    start = parse_moment(form.start, "start", zone, is_end=False) if form.start else None
    end = parse_moment(form.end, "end", zone, is_end=True) if form.end else None
    if form.key:
        among = KeyScope(livemode=_mode(form))
        key_id = await lookups.find_line(session, tenant_id, form.key, among=among)
    return RequestFilter(
        status=status,
        statuses=statuses,
        error_code=form.error_code or None,
        model=form.model or None,
        api_key_id=key_id,
        client_request_id=form.id or None,
        start=usual_start(end) if _is_recent(form) else start,
        end=end,
        is_api=form.pages != "yes",
    )


def _is_recent(form: RequestForm) -> bool:
    """Tell whether a search gets the usual start: it has filters, and no index helps it."""
    has_filter = any((form.key, form.mode, form.status, form.error_code, form.model))
    return has_filter and not (form.start or form.tenant or form.id)


def _status(text: str) -> int:
    lowest, highest = 100, 599
    if not (text.isascii() and text.isdigit() and lowest <= int(text[:4]) <= highest):
        raise InvalidRequest(
            f"status must be {', '.join(STATUSES)} or from {lowest} to {highest} "
            f"(got {text[:20]!r}).",
            param="status",
        )
    return int(text)


def _mode(form: RequestForm) -> bool | None:
    if form.mode not in {value for value, _ in MODES}:
        raise InvalidRequest(f"mode must be live or test (got {form.mode[:20]!r}).", param="mode")
    return None if not form.mode else form.mode == "live"


def _with_own(choices: Sequence[tuple[str, str]], value: str) -> list[tuple[str, str]]:
    """Add the value of the address to the choices that a form offers."""
    known = {one for one, _ in choices}
    return [*choices, *([] if value in known else [(value, value)])]


def _local(text: str, *, is_end: bool) -> str:
    """Write a bound as a browser's field of date and time wants it; a last day ends with it."""
    if len(text) != DAY_CHARACTERS:
        return text[: len("2026-11-20T08:00")]
    try:
        day = date.fromisoformat(text) + timedelta(days=is_end)
    except (ValueError, OverflowError):
        return text
    return f"{day.isoformat()}T00:00"
