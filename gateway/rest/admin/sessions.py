"""Sessions of the console: who is signed in, and ending a session at once."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from fastapi import Query as InQuery
from pydantic import Field

from gateway.identity import sessions
from gateway.rest.admin.dependencies import NoQuery
from gateway.rest.admin.schemas import Identified, Listed, PageQuery, with_example
from gateway.rest.dependencies import ActorDep, GatewayDep

router = APIRouter(prefix="/sessions", tags=["admin: sessions"])


class SessionObject(Identified):
    """A signed-in browser."""

    model_config = with_example(
        id="019aa5f9-2c00-7000-8000-000000000000",
        object="session",
        name="Ada Lovelace",
        role="operator-admin",
        via="oidc",
        is_break_glass=False,
        tenant_id=None,
        person_id="019aa5f9-1b00-7000-8000-000000000000",
        visited_tenant_id=None,
        created_at="2026-11-30T09:30:00Z",
        last_seen_at="2026-11-30T09:41:00Z",
        expires_at="2026-11-30T10:11:00Z",
        address="203.0.113.7",
        agent="Mozilla/5.0 …",
        ended_at=None,
        end_reason=None,
    )

    id: UUID
    object: Literal["session"] = "session"
    name: str
    role: Literal[
        "operator-admin",
        "operator-viewer",
        "tenant-admin",
        "tenant-member",
        "tenant-billing-viewer",
    ]
    via: Literal["oidc", "link", "admin_key", "api_key"] = Field(description="The way of sign-in.")
    is_break_glass: bool = Field(description="An admin key opened it.")
    tenant_id: UUID | None = Field(description="null for operators.")
    person_id: UUID | None = Field(description="null unless the identity provider signed in.")
    visited_tenant_id: UUID | None = Field(description="The tenant whose portal an operator sees.")
    created_at: datetime
    last_seen_at: datetime = Field(description="Accurate to about a minute.")
    expires_at: datetime = Field(description="Its end, unless it is used before.")
    address: str
    agent: str = Field(description="The browser's User-Agent.")
    ended_at: datetime | None
    end_reason: str | None


class SessionQuery(PageQuery):
    """The page of sessions to show."""

    ended: bool = Field(
        default=False, description="List ended sessions too, while they are kept (30 days)."
    )


@router.get("", summary="List sessions of the console")
async def list_sessions(
    gateway: GatewayDep, query: Annotated[SessionQuery, InQuery()]
) -> Listed[SessionObject]:
    """List who is signed in to the console, newest first."""
    async with gateway.operators_database.operator() as session:
        page = await sessions.list_page(
            session, limit=query.limit, after=query.after, with_ended=query.ended
        )
    data = [SessionObject.model_validate(one) for one in page.items]
    return Listed[SessionObject].of(data, has_more=page.has_more)


@router.delete(
    "/{session_id}", summary="End a session of the console", status_code=204, dependencies=[NoQuery]
)
async def end_session(session_id: UUID, gateway: GatewayDep, actor: ActorDep) -> None:
    """End a session, from its next request on, at every gateway."""
    async with gateway.operators_database.operator(by=actor) as session:
        await sessions.end_one(session, session_id)
