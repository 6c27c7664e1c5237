"""Queries on the request log, by callers (within the scope of usage reports) and by operators.

A request is found by its own id, the client's id or its generation id, and is returned with the
reservation and ledger entries of that generation.
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, or_, select, tuple_

from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.listed_calls import ListedCall, read_calls
from gateway.db.money_tables import LedgerRow, ReservationRow
from gateway.db.pages import Page, page_of
from gateway.db.request_tables import RequestRow
from gateway.db.tables import ApiKeyRow, TenantRow, TenantUserRow
from gateway.domain import Caller
from gateway.errors import InvalidRequest, NotFound
from gateway.request_ids import CLIENT_ID, began_at

MOST_OTHERS = 100
MOST_RECENT = 1000
"""Requests among which a recent failure is looked for: no index has their error codes."""
FIRST_FAILURE = 400
CREDENTIAL_REJECTED = "credential_rejected"
CONSOLE = "/console"
"""The begin of the routes of the console's pages."""


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """A filter of requests; None: no filter. `model`: as requested or as served.

    `statuses`: the lowest and the highest status. `is_failed`: with an error, or without one.
    `is_api`: without the pages of the console, except for what its playground has bought.
    """

    status: int | None = None
    statuses: tuple[int, int] | None = None
    is_api: bool = False
    error_code: str | None = None
    model: str | None = None
    api_key_id: UUID | None = None
    user_id: UUID | None = None
    is_failed: bool | None = None
    client_request_id: str | None = None
    generation_id: UUID | None = None
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request of the log, with the names of the tenant, user and key of its row."""

    row: RequestRow
    tenant: str | None
    user: str | None
    key_name: str | None
    key_last4: str | None


@dataclass(frozen=True, slots=True)
class RequestLedgerLine:
    """One ledger entry of a generation."""

    at: datetime
    kind: str
    amount_nano: int
    images: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class RequestReservation:
    """The reservation and ledger of a generation. `final_nano` is None while it is open.

    `calls`: the provider calls that were made for it; None if they are not listed.
    """

    id: UUID
    state: str
    outcome: str | None
    held_nano: int
    final_nano: int | None
    admitted_at: datetime
    deadline_at: datetime
    resolved_at: datetime | None
    calls: tuple[ListedCall, ...] | None
    lines: tuple[RequestLedgerLine, ...]


@dataclass(frozen=True, slots=True)
class RequestDetail:
    """One request with its generation, and the number of other requests with the same id."""

    request: LoggedRequest
    purchase: RequestReservation | None
    others: int


async def list_own(
    session: TenantSession,
    caller: Caller,
    chosen: RequestFilter,
    *,
    limit: int,
    after: str | None = None,
) -> Page[LoggedRequest]:
    """List one page of the caller's requests, newest first, after `after`.

    Raises:
        InvalidRequest: `after` is not a request id.
    """
    query = _query(caller.tenant_id).where(*_own(caller), *_chosen(chosen))
    return await _page(session, query, limit, after)


async def find_rejecting_provider(
    session: TenantSession, caller: Caller, *, since: datetime
) -> str | None:
    """Find the provider that refused a credential in the caller's last requests since then."""
    recent = (
        select(RequestRow.provider, RequestRow.error_code, RequestRow.at)
        .where(RequestRow.tenant_id == caller.tenant_id, *_own(caller), RequestRow.at >= since)
        .order_by(RequestRow.at.desc(), RequestRow.id.desc())
        .limit(MOST_RECENT)
        .subquery("recent")
    )
    return await session.scalar(
        select(recent.c.provider)
        .where(recent.c.error_code == CREDENTIAL_REJECTED)
        .order_by(recent.c.at.desc())
        .limit(1)
    )


async def list_all(
    session: OperatorSession,
    chosen: RequestFilter,
    *,
    tenant_id: UUID | None = None,
    livemode: bool | None = None,
    limit: int,
    after: str | None = None,
) -> Page[LoggedRequest]:
    """List one page of all requests, with or without a tenant, newest first, after `after`.

    Raises:
        InvalidRequest: `after` is not a request id.
    """
    query = _query(tenant_id).where(*_chosen(chosen))
    if livemode is not None:
        query = query.where(RequestRow.livemode.is_(livemode))
    return await _page(session, query, limit, after)


async def find_own(session: TenantSession, caller: Caller, request_id: str) -> RequestDetail:
    """Find one of the caller's requests by any of its ids.

    Raises:
        NotFound: there is none in the log, or it is not the caller's.
    """
    return await _find(session, _query(caller.tenant_id).where(*_own(caller)), request_id)


async def find_any(session: OperatorSession, request_id: str) -> RequestDetail:
    """Find a request by any of its ids.

    Raises:
        NotFound: there is none in the log.
    """
    return await _find(session, _query(None), request_id)


async def find_own_call(
    session: TenantSession, caller: Caller, generation_id: UUID
) -> RequestReservation:
    """Find one of the caller's generations in the ledger, whose request the log has no more.

    Raises:
        NotFound: there is none, or it is not the caller's.
    """
    query = select(ReservationRow.id).where(
        ReservationRow.tenant_id == caller.tenant_id,
        ReservationRow.id == generation_id,
        ReservationRow.livemode.is_(caller.livemode),
    )
    if caller.user_id is not None:
        query = query.where(ReservationRow.user_id == caller.user_id)
    found = None
    if await session.scalar(query) is not None:
        found = await find_reservation(session, caller.tenant_id, generation_id)
    if found is None:
        raise NotFound("There is no request or call with this id.", param="request_id")
    return found


def _own(caller: Caller) -> list[ColumnElement[bool]]:
    """Build the conditions of usage reports: the user's or the whole tenant's, of one mode."""
    own: list[ColumnElement[bool]] = [RequestRow.livemode.is_(caller.livemode)]
    if caller.user_id is not None:
        own.append(RequestRow.user_id == caller.user_id)
    return own


def _chosen(chosen: RequestFilter) -> list[ColumnElement[bool]]:
    equal = {
        RequestRow.status: chosen.status,
        RequestRow.error_code: chosen.error_code,
        RequestRow.api_key_id: chosen.api_key_id,
        RequestRow.user_id: chosen.user_id,
        RequestRow.client_request_id: chosen.client_request_id,
        RequestRow.generation_id: chosen.generation_id,
    }
    found = [column == value for column, value in equal.items() if value is not None]
    if chosen.model is not None:
        served = RequestRow.served_model == chosen.model
        found.append(or_(RequestRow.requested_model == chosen.model, served))
    if chosen.statuses is not None:
        found.append(RequestRow.status.between(*chosen.statuses))
    if chosen.is_failed is not None:
        # An MCP tool that failed is answered with 200.
        failed = or_(RequestRow.status >= FIRST_FAILURE, RequestRow.error_code.is_not(None))
        found.append(failed if chosen.is_failed else ~failed)
    if chosen.is_api:
        page = RequestRow.route.startswith(CONSOLE, autoescape=True)
        # The playground's calls are the tenant's as much as those of its programs.
        found.append(~and_(page, RequestRow.generation_id.is_(None)))
    if chosen.start is not None:
        found.append(RequestRow.at >= chosen.start)
    if chosen.end is not None:
        found.append(RequestRow.at < chosen.end)
    return found


def _query(tenant_id: UUID | None) -> Select[*tuple[Any, ...]]:
    """Select rows with their names, of one tenant or (None) of all that the session sees."""
    key = and_(ApiKeyRow.tenant_id == RequestRow.tenant_id, ApiKeyRow.id == RequestRow.api_key_id)
    user = and_(
        TenantUserRow.tenant_id == RequestRow.tenant_id, TenantUserRow.id == RequestRow.user_id
    )
    query = (
        select(RequestRow, TenantRow.name, TenantUserRow.name, ApiKeyRow.name, ApiKeyRow.last4)
        .outerjoin(TenantRow, TenantRow.id == RequestRow.tenant_id)
        .outerjoin(TenantUserRow, user)
        .outerjoin(ApiKeyRow, key)
        .order_by(RequestRow.at.desc(), RequestRow.id.desc())
    )
    return query if tenant_id is None else query.where(RequestRow.tenant_id == tenant_id)


async def _page(
    session: TenantSession | OperatorSession,
    query: Select[*tuple[Any, ...]],
    limit: int,
    after: str | None,
) -> Page[LoggedRequest]:
    if after is not None:
        at = began_at(after)
        if at is None:
            raise InvalidRequest("after must be the id of a request (req_…).", param="after")
        query = query.where(tuple_(RequestRow.at, RequestRow.id) < tuple_(at, after))
    rows = (await session.execute(query.limit(limit + 1))).all()
    return page_of([LoggedRequest(*row) for row in rows], limit)


async def _find(
    session: TenantSession | OperatorSession, query: Select[*tuple[Any, ...]], request_id: str
) -> RequestDetail:
    for condition in _meanings(request_id):
        rows = (await session.execute(query.where(condition).limit(MOST_OTHERS))).all()
        if rows:
            # Of several requests with one generation, the first made it; the others were repeats.
            bought = [row for row in rows if not row[0].replayed]
            request = LoggedRequest(*(bought or rows)[0])
            return RequestDetail(request, await _purchase(session, request.row), len(rows) - 1)
    # The id is not quoted: it may be a secret pasted by mistake.
    raise NotFound("There is no request with this id in the log.", param="request_id")


def _meanings(request_id: str) -> list[ColumnElement[bool]]:
    """Build the conditions for each kind of id, each with its own index."""
    meanings = []
    at = began_at(request_id)
    if at is not None:
        meanings.append(and_(RequestRow.at == at, RequestRow.id == request_id))
    with suppress(ValueError):
        meanings.append(RequestRow.generation_id == UUID(request_id))
    if CLIENT_ID.fullmatch(request_id):
        meanings.append(RequestRow.client_request_id == request_id)
    return meanings


async def _purchase(
    session: TenantSession | OperatorSession, request: RequestRow
) -> RequestReservation | None:
    if request.generation_id is None or request.tenant_id is None:
        return None
    return await find_reservation(session, request.tenant_id, request.generation_id)


async def find_reservation(
    session: TenantSession | OperatorSession, tenant_id: UUID, generation_id: UUID
) -> RequestReservation | None:
    """Find a generation in the ledger; None if it was never reserved."""
    row = await session.scalar(
        select(ReservationRow).where(
            ReservationRow.tenant_id == tenant_id, ReservationRow.id == generation_id
        )
    )
    if row is None:
        return None
    lines = await session.scalars(
        select(LedgerRow)
        .where(LedgerRow.tenant_id == tenant_id, LedgerRow.reservation_id == generation_id)
        .order_by(LedgerRow.seq)
    )
    return RequestReservation(
        id=row.id,
        state=row.state,
        outcome=row.outcome,
        held_nano=row.held_nano,
        final_nano=row.final_nano,
        admitted_at=row.admitted_at,
        deadline_at=row.deadline_at,
        resolved_at=row.resolved_at,
        calls=read_calls(row.calls),
        lines=tuple(_line(line) for line in lines),
    )


def _line(row: LedgerRow) -> RequestLedgerLine:
    return RequestLedgerLine(
        at=row.at,
        kind=row.kind,
        amount_nano=row.amount_nano,
        images=row.images,
        input_tokens=row.text_input_tokens + row.image_input_tokens,
        output_tokens=row.text_output_tokens + row.image_output_tokens,
    )
