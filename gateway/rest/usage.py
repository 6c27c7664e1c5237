"""Usage reports and budgets of the caller's tenant."""

import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Annotated, BinaryIO, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from gateway.billing import budgets, usage
from gateway.billing.reports import csv_header, csv_row, render_report, render_row
from gateway.billing.usage import UsageRow
from gateway.billing.usage_queries import GROUP_FIELDS, GroupField, ReportQuery, UsageFilters
from gateway.db.engine import OperatorSession, TenantSession
from gateway.db.pools import Beside
from gateway.domain import Caller
from gateway.errors import InvalidRequest, Unavailable
from gateway.media.temporary_files import new_spool
from gateway.rest.budget_objects import BudgetList, TenantBudget
from gateway.rest.dependencies import GatewayDep, UsageReader
from gateway.rest.refusals import refused_with
from gateway.rest.schemas import IN_DIGITS, UsageReportObject
from gateway.tenancy.lookups import ALL_KEYS, KeyScope, find_key_and_user

router = APIRouter(tags=["usage"])
PART_BYTES = 262_144
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a file system that is full, for everyone or for this process."""
TENANT_FIELDS = tuple(field for field in GROUP_FIELDS if field != "tenant")


class TemporaryFilesFull(Unavailable):
    """A report as a file that the gateway has no room for."""

    code = "temporary_files_full"

    def __init__(self) -> None:
        super().__init__(
            "The gateway has no room for the file of this report. Ask for JSON, a page at a time, "
            "or tell its operator that the directory of temporary files is full.",
            retry_after_seconds=60,
        )


REPORT: dict[int | str, dict[str, object]] = {
    200: {
        "model": UsageReportObject,
        "content": {
            "text/csv": {
                "schema": {"type": "string"},
                "example": "model,requests,failed_requests,estimated_requests,open_requests,"
                "images,input_tokens,output_tokens,cost_usd,estimated_usd,open_usd\n"
                "gpt-image-2,4,1,0,1,4,52,784,0.023680000,0.000000000,0.005920000\n",
            },
            "application/jsonl": {
                "schema": {"type": "string"},
                "example": '{"model":"gpt-image-2","requests":4,"failed_requests":1,'
                '"estimated_requests":0,"open_requests":1,"images":4,"input_tokens":52,'
                '"output_tokens":784,"cost_usd":"0.023680000","estimated_usd":"0.000000000",'
                '"open_usd":"0.005920000"}\n',
            },
        },
    }
}


def grouped(fields: Sequence[GroupField]) -> str:
    """Build the parameter `group_by`, which accepts any of these fields."""
    name = f"({'|'.join(fields)})"
    field: str = Field(
        "",
        description=f"Any of {', '.join(fields)}; each at most once.",
        examples=["day,model"],
        json_schema_extra={"pattern": f"^({name}(,{name})*)?$"},
    )
    return field


class UsageQuery(BaseModel):
    """Period, grouping and filters of a usage report."""

    model_config = ConfigDict(extra="forbid")

    start: str | None = Field(
        None, description="ISO date or date-time. Default: this month.", examples=["2026-11-01"]
    )
    end: str | None = Field(
        None,
        description="ISO date (included) or date-time. Default: now.",
        examples=["2026-11-20"],
    )
    group_by: str = grouped(TENANT_FIELDS)
    time_zone: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="IANA time zone of the dates, days and hours. Default: the tenant's.",
        examples=["Europe/Madrid"],
    )
    key: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Only this key and its rolled line: id, name, or last four characters.",
        examples=["website"],
    )
    user: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="Only this user: id, name, or the id's last four characters.",
        examples=["alice"],
    )
    model: str | None = Field(
        None, min_length=1, max_length=255, description="Only calls served by this model."
    )
    format: Literal["json", "csv", "jsonl"] = Field(
        "json",
        description="`json` is a page of groups; `csv` and `jsonl` (a JSON object per line) have "
        "all of them, up to 1,000,000.",
    )
    limit: Annotated[
        int, Field(ge=1, le=usage.MAX_ROWS, description="Groups of a page."), IN_DIGITS
    ] = usage.MAX_ROWS
    after: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Only groups after this one: the `next_after` of an earlier page.",
    )


@router.get(
    "/v1/usage",
    summary="Report usage and cost",
    response_class=Response,
    responses=REPORT | refused_with(404),
)
async def get_usage(
    gateway: GatewayDep, caller: UsageReader, query: Annotated[UsageQuery, Query()]
) -> Response:
    """Sum the ledger over calls admitted from `start` to `end`: ISO dates (whole days of the
    tenant's time zone, `end` included) or date-times. Default: the current month. A key of one user
    sees that user's usage, any other key the whole tenant's; test and live usage never mix.
    """
    fields = usage.parse_group_by(query.group_by, allowed=TENANT_FIELDS)
    async with gateway.database.beside(Beside.REPORTS).tenant(caller.tenant_id) as session:
        zone = await usage.report_zone(
            session, query.time_zone, await usage.tenant_zone(session, caller.tenant_id)
        )
        asked = ReportQuery(
            caller.tenant_id,
            await _filters_of(session, caller, query),
            caller.livemode,
            usage.parse_period(query.start, query.end, zone),
            fields,
            query.time_zone,
        )
        return await report_answer(session, asked, query)


@router.get(
    "/v1/budgets",
    summary="List budgets and their remainders",
    response_model=None,
    responses={200: {"model": BudgetList}},
)
async def get_budgets(gateway: GatewayDep, caller: UsageReader) -> dict[str, object]:
    """List the budgets that a call with this key counts against."""
    async with gateway.database.tenant(caller.tenant_id) as session:
        applying = await budgets.for_caller(session, caller)
    data = [TenantBudget.of(budget) for budget in applying]
    return BudgetList(data=data).model_dump(by_alias=True)


async def _filters_of(session: TenantSession, caller: Caller, query: UsageQuery) -> UsageFilters:
    """Resolve the filters, among the keys and users that the caller may see."""
    among = KeyScope(user_id=caller.user_id, livemode=caller.livemode)
    filters = await find_filters(
        session, caller.tenant_id, query.key, query.user, query.model, among=among
    )
    return filters if caller.user_id is None else replace(filters, user_id=caller.user_id)


async def find_filters(
    session: TenantSession | OperatorSession,
    tenant_id: UUID | None,
    key: str | None,
    user: str | None,
    model: str | None,
    *,
    among: KeyScope = ALL_KEYS,
) -> UsageFilters:
    """Resolve a report's filters; key and user by id, name or last four characters.

    Raises:
        NotFound: no key or user matches.
        InvalidRequest: several match (code `ambiguous`).
    """
    ids = await find_key_and_user(session, tenant_id, key, user, among=among)
    return UsageFilters(*ids, model)


async def report_answer(
    session: TenantSession | OperatorSession, query: ReportQuery, asked: UsageQuery
) -> Response:
    """Answer a report as a page of JSON, or as a file of any length.

    The file is complete before the answer begins: a slow reader keeps no connection to Postgres,
    and an error is still an error's status.

    Raises:
        InvalidRequest: it is too large (`report_too_large`), or `after` is not a position in it.
        TemporaryFilesFull: there is no room for the file.
    """
    if asked.format == "json":
        after = None if asked.after is None else usage.parse_cursor(asked.after, query)
        page = await usage.report(session, query, after=after, limit=asked.limit)
        return Response(orjson.dumps(render_report(page)), media_type="application/json")
    if asked.after is not None:
        raise InvalidRequest("after takes format=json: files have all groups.", param="after")
    with ExitStack() as undo:
        file = undo.enter_context(new_spool())
        try:
            await _write(file, session, query, asked.format)
        except OSError as error:
            with suppress(OSError):
                file.close()  # which writes what is left, and fails again
            if error.errno not in NO_ROOM:
                raise
            raise TemporaryFilesFull from error
        undo.pop_all()
    length = file.tell()
    file.seek(0)
    return StreamingResponse(
        _parts(file),
        media_type="text/csv; charset=utf-8" if asked.format == "csv" else "application/jsonl",
        headers={
            "Content-Disposition": f'attachment; filename="usage.{asked.format}"',
            "Content-Length": str(length),
        },
    )


async def _write(
    file: BinaryIO,
    session: TenantSession | OperatorSession,
    query: ReportQuery,
    as_format: Literal["csv", "jsonl"],
) -> None:
    if as_format == "csv":
        file.write(csv_header(query).encode())
    async for row in usage.export(session, query):
        file.write(csv_row(row).encode() if as_format == "csv" else _json_line(query, row))
    file.flush()


def _json_line(query: ReportQuery, row: UsageRow) -> bytes:
    return orjson.dumps(render_row(query, row), option=orjson.OPT_APPEND_NEWLINE)


async def _parts(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while part := file.read(PART_BYTES):
            yield part
