"""A tenant's requests: failed ones first, and a page for each with what to do about it."""

from collections.abc import Mapping, Sequence
from typing import Annotated
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from gateway.billing.usage import parse_moment, tenant_zone
from gateway.console.dependencies import redirect
from gateway.console.failure_advice import BY_CODE, advice_on
from gateway.console.forms import UNTOUCHED, refused, uuid_or_none
from gateway.console.portal import UsagePortal
from gateway.console.render import Crumb
from gateway.console.tenant_forms import PAGE_SIZE, REFUSALS
from gateway.db.engine import TenantSession
from gateway.db.searches import searching
from gateway.domain import Caller
from gateway.errors import InvalidRequest, NotFound
from gateway.identity.viewers import Permission
from gateway.request_ids import CLIENT_ID, REQUEST_ID
from gateway.request_log import queries
from gateway.request_log.queries import LoggedRequest, RequestFilter
from gateway.tenancy import lookups
from gateway.tenancy.lookups import KeyScope

PATH = "/console/portal/requests"
SHOWN: Mapping[str, bool | None] = {"all": None, "failed": True, "succeeded": False}
TITLES = {"all": "All", "failed": "Failed", "succeeded": "Succeeded"}

router = APIRouter()


class OwnRequestsForm(BaseModel):
    """The fields of the form, all in the address. An empty field is none."""

    model_config = ConfigDict(extra="forbid", str_max_length=255, str_strip_whitespace=True)

    show: str = "all"
    id: str = ""
    code: str = ""
    model: str = ""
    key: str = ""
    user: str = ""
    start: str = ""
    end: str = ""
    mode: str = ""
    after: str = ""

    def address(self, **changes: str) -> str:
        """Write the address of this form with some fields changed."""
        fields = {name: value for name, value in (self.model_dump() | changes).items() if value}
        if fields.get("show") == "all":
            del fields["show"]
        return f"{PATH}?{urlencode(fields)}" if fields else PATH

    @property
    def is_filtered(self) -> bool:
        """Tell whether any field leaves requests out."""
        return any((self.id, self.code, self.model, self.key, self.user, self.start, self.end))


@router.get(PATH)
async def list_requests(portal: UsagePortal, form: Annotated[OwnRequestsForm, Query()]) -> Response:
    """List requests, newest first; a complete id leads to its request."""
    if REQUEST_ID.fullmatch(form.id) or uuid_or_none(form.id) is not None:
        return redirect(f"{PATH}/{quote(form.id, safe='')}")
    caller = await portal.caller(whole_tenant=True)
    found: Sequence[LoggedRequest] = ()
    state, older = UNTOUCHED, ""
    try:
        async with portal.reading(Permission.USAGE_READ, is_report=True) as session, searching():
            chosen = await _chosen(session, caller, form)
            page = await queries.list_own(
                session, caller, chosen, limit=PAGE_SIZE, after=form.after or None
            )
        found = page.items
        older = form.address(after=found[-1].row.id) if page.has_more else ""
    except REFUSALS as error:
        state = refused("filters", form.model_dump(), error)
    return portal.page(
        "tenant/requests.html",
        title="Requests",
        lead="Each request of an application, and each purchase in the playground, with its "
        "outcome. A request appears seconds after its answer.",
        status=state.status,
        form=form,
        state=state,
        found=found,
        newest=form.address(after="") if form.after else "",
        older=older,
        shown=[
            (TITLES[name], form.address(show=name, after=""), form.show == name) for name in SHOWN
        ],
        codes=sorted(BY_CODE),
        models=sorted(portal.gateway.core.catalog.models),
        sees_users=caller.user_id is None,
        advice=advice_on,
    )


@router.get(PATH + "/{request_id}")
async def show_request(portal: UsagePortal, request_id: str) -> Response:
    """Show one request by any of its ids, with its generation in the ledger."""
    caller = await portal.caller(whole_tenant=True)
    given = uuid_or_none(request_id)
    detail = None
    async with portal.reading(Permission.USAGE_READ) as session:
        try:
            detail = await queries.find_own(session, caller, request_id)
            call = detail.purchase
        except NotFound:
            if given is None:
                raise
            call = await queries.find_own_call(session, caller, given)
    row = None if detail is None else detail.request.row
    return portal.page(
        "tenant/request.html",
        title="Request" if detail is not None else "Call",
        crumbs=[Crumb("Requests", PATH)],
        log=None if detail is None else detail.request,
        others=0 if detail is None else detail.others,
        row=row,
        call=call,
        advice=None if row is None else advice_on(row.status, row.error_code),
        sees_users=caller.user_id is None,
    )


async def _chosen(session: TenantSession, caller: Caller, form: OwnRequestsForm) -> RequestFilter:
    """Read the form, among the keys and users that the caller may see.

    Raises:
        InvalidRequest: a field has an unknown value; the message names it.
        NotFound: there is no such key or user.
    """
    for name, value in form.model_dump().items():
        if not value.isprintable():
            raise InvalidRequest(f"{name} must be printable characters.", param=name)
    if form.show not in SHOWN:
        raise InvalidRequest(f"show must be one of {', '.join(SHOWN)}.", param="show")
    if form.id and not CLIENT_ID.fullmatch(form.id):
        raise InvalidRequest(
            "An id has at most 128 letters, digits and . _ ~ : + = @ , - characters.", param="id"
        )
    zone = await tenant_zone(session, caller.tenant_id)
    among = KeyScope(user_id=caller.user_id, livemode=caller.livemode)
    key_id = user_id = None
    if form.key:
        key_id = await lookups.find_line(session, caller.tenant_id, form.key, among=among)
    if form.user:
        user_id = (await lookups.find_user(session, caller.tenant_id, form.user, among=among)).id
    return RequestFilter(
        is_api=True,
        is_failed=SHOWN[form.show],
        error_code=form.code or None,
        model=form.model or None,
        api_key_id=key_id,
        user_id=user_id,
        client_request_id=form.id or None,
        start=parse_moment(form.start, "start", zone, is_end=False) if form.start else None,
        end=parse_moment(form.end, "end", zone, is_end=True) if form.end else None,
    )
