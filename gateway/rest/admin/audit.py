"""The audit trail, read-only: who changed what, when, with old and new values."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from fastapi import Query as InQuery
from pydantic import BaseModel, Field, JsonValue

from gateway.billing.usage import parse_moment
from gateway.db.actors import ActorType
from gateway.db.audit import Action, AuditEntry, list_entries
from gateway.rest.admin.schemas import (
    KEY_ID,
    TENANT_ID,
    Identified,
    Listed,
    PageQuery,
    with_example,
)
from gateway.rest.dependencies import GatewayDep

router = APIRouter(prefix="/audit", tags=["admin: audit"])
Snapshot = dict[str, JsonValue]


class ActorObject(BaseModel):
    """The author of a change."""

    type: ActorType
    id: str = Field(
        description="An admin key's id; an API key's (the first of its line); the id of a user "
        "with a token; the login of an operator's command; a session of the console "
        "(`operator_session`: of an operator; `break_glass`: opened by an admin key); `gateway` "
        "for its own first start."
    )
    name: str | None = Field(description="The key's name at the time; null if it had none.")


class AuditObject(Identified):
    """One change. It never contains secrets."""

    model_config = with_example(
        id="019aa5f7-5e00-7000-8000-000000000000",
        object="audit_entry",
        at="2026-11-21T09:40:00Z",
        actor={
            "type": "operator_key",
            "id": "019aa5f0-0100-7000-8000-000000000000",
            "name": "deploy",
        },
        request_id="req_5c0f6e0f9c1d4e2b8a7d3f61",
        action="api_key.revoked",
        tenant_id=TENANT_ID,
        tenant_name="acme",
        object_id=KEY_ID,
        object_name="website",
        before={"last4": "x7Qa", "revoked_at": None},
        after={"last4": "x7Qa", "revoked_at": "2026-11-21T09:40:00+00:00"},
    )

    id: UUID
    object: Literal["audit_entry"] = "audit_entry"
    at: datetime
    actor: ActorObject
    request_id: str | None = Field(description="The request's `X-Request-Id`; null for commands.")
    action: str
    tenant_id: UUID | None = Field(description="null if the object belongs to no tenant.")
    tenant_name: str | None = Field(description="Its current name.")
    object_id: str
    object_name: str | None = Field(description="Current name of a tenant, user or key.")
    before: Snapshot | None = Field(description="null: the object was created.")
    after: Snapshot | None = Field(description="null: the object was deleted.")


class AuditQuery(PageQuery):
    """Filters of the audit trail."""

    tenant: UUID | None = Field(None, description="Only changes of this tenant.")
    action: Action | None = Field(None, description="Only changes of this kind.")
    start: str | None = Field(None, description="ISO date (of UTC) or date-time.")
    end: str | None = Field(None, description="ISO date (included) or date-time.")


@router.get("", summary="List changes")
async def list_audit(
    gateway: GatewayDep, query: Annotated[AuditQuery, InQuery()]
) -> Listed[AuditObject]:
    """List changes, newest first: all changes through REST and the command line, by operators and
    tenants.
    """
    start = parse_moment(query.start, "start", "UTC", is_end=False) if query.start else None
    end = parse_moment(query.end, "end", "UTC", is_end=True) if query.end else None
    async with gateway.operators_database.operator() as session:
        page = await list_entries(
            session,
            limit=query.limit,
            after=query.after,
            tenant_id=query.tenant,
            action=query.action,
            start=start,
            end=end,
        )
    data = [_render(entry) for entry in page.items]
    return Listed[AuditObject].of(data, has_more=page.has_more)


def actor_of(entry: AuditEntry) -> ActorObject:
    """Build the author of an audit entry."""
    return ActorObject.model_validate(
        {"type": entry.actor_type, "id": entry.actor_id, "name": entry.actor_name}
    )


def _render(entry: AuditEntry) -> AuditObject:
    return AuditObject.model_validate(
        {
            "id": entry.id,
            "at": entry.at,
            "actor": actor_of(entry),
            "request_id": entry.request_id,
            "action": entry.action,
            "tenant_id": entry.tenant_id,
            "tenant_name": entry.tenant_name,
            "object_id": entry.object_id,
            "object_name": entry.object_name,
            "before": entry.before,
            "after": entry.after,
        }
    )
