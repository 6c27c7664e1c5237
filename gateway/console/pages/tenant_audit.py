"""The audit trail of a tenant, for its administrators."""

from typing import Annotated
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from gateway.billing.usage import parse_moment
from gateway.console.forms import UNTOUCHED, refused
from gateway.console.portal import ReaderPortal
from gateway.console.tenant_forms import PAGE_SIZE, REFUSALS
from gateway.db.audit import Action, AuditEntry, list_entries
from gateway.errors import Forbidden, InvalidRequest
from gateway.identity.viewers import Permission

PATH = "/console/portal/audit"
OPERATORS = frozenset({"operator_key", "operator_session", "cli", "break_glass", "gateway"})
"""The kinds of authors that are operators, whose names are no business of a tenant."""

router = APIRouter()


class OwnAuditForm(BaseModel):
    """The fields of the form, all in the address. An empty field is none."""

    model_config = ConfigDict(extra="forbid", str_max_length=100, str_strip_whitespace=True)

    action: str = ""
    start: str = ""
    end: str = ""
    mode: str = ""
    after: UUID | None = None

    def address(self, **changes: str) -> str:
        """Write the address of this form with some fields changed."""
        fields = {name: value for name, value in (self.model_dump() | changes).items() if value}
        return f"{PATH}?{urlencode(fields)}" if fields else PATH


@router.get(PATH)
async def show_audit(portal: ReaderPortal, form: Annotated[OwnAuditForm, Query()]) -> Response:
    """List changes, newest first: who changed what, with the values before and after.

    Raises:
        Forbidden: to an API key, which sees one mode, or less than its tenant.
    """
    if portal.viewer.key is not None:
        raise Forbidden(
            "The audit trail is for people: it names the changes of both modes. Sign in as an "
            "administrator.",
            code="role_not_allowed",
        )
    zone = portal.viewer.time_zone
    found: tuple[AuditEntry, ...] = ()
    state, older = UNTOUCHED, ""
    try:
        if form.action and form.action not in set(Action):
            raise InvalidRequest("There is no such kind of change.", param="action")
        async with portal.reading(Permission.TENANT_READ) as session:
            page = await list_entries(
                session,
                limit=PAGE_SIZE,
                after=form.after,
                tenant_id=portal.tenant_id,
                action=Action(form.action) if form.action else None,
                start=parse_moment(form.start, "start", zone, is_end=False) if form.start else None,
                end=parse_moment(form.end, "end", zone, is_end=True) if form.end else None,
            )
        found = page.items
        older = form.address(after=str(found[-1].id)) if page.has_more else ""
    except REFUSALS as error:
        values = {name: str(value or "") for name, value in form.model_dump().items()}
        state = refused("filters", values, error)
    return portal.page(
        "tenant/audit.html",
        title="Audit trail",
        lead="Each change to this tenant: who made it, when, and the values before and after. "
        "Secrets are never in it.",
        status=state.status,
        state=state,
        form=form,
        found=[(entry, _author(entry), _changes(entry)) for entry in found],
        newest=form.address(after="") if form.after else "",
        older=older,
        actions=[("", "Every change"), *((action.value, action.value) for action in Action)],
    )


def _author(entry: AuditEntry) -> str:
    if entry.actor_type in OPERATORS:
        return "An operator of this gateway"
    return entry.actor_name or f"{entry.actor_type} {entry.actor_id}"


def _changes(entry: AuditEntry) -> list[tuple[str, object, object]]:
    """The fields that differ, with the values before and after."""
    before, after = entry.before or {}, entry.after or {}
    names = [*after, *(name for name in before if name not in after)]
    return [
        (name, before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]
