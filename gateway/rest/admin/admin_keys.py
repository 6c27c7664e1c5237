"""Admin keys: create, roll and revoke. A secret is in one answer and never shown again."""

from datetime import datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends
from fastapi import Query as InQuery
from pydantic import Field, JsonValue

from gateway.domain import AdminScope
from gateway.rest.admin.dependencies import JsonBody, NoQuery, body_of
from gateway.rest.admin.keys import RollKeyBody
from gateway.rest.admin.schemas import (
    Body,
    Identified,
    Instant,
    Listed,
    PageQuery,
    with_example,
)
from gateway.rest.dependencies import ActorDep, GatewayDep
from gateway.rest.refusals import refused_with
from gateway.tenancy import admin_keys
from gateway.tenancy.admin_keys import IssuedAdminKey
from gateway.tenancy.tenants import MAX_NAME_CHARACTERS

router = APIRouter(prefix="/admin-keys", tags=["admin: admin-keys"])
EXAMPLE: dict[str, JsonValue] = {
    "id": "019aa5f0-0100-7000-8000-000000000000",
    "object": "admin_key",
    "name": "prometheus",
    "scopes": ["metrics"],
    "origin": "rest",
    "last4": "x7Qa",
    "created_at": "2026-11-28T09:32:00Z",
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": "2026-11-28T09:40:00Z",
}


class AdminKeyObject(Identified):
    """An admin key, without its secret."""

    model_config = with_example(**EXAMPLE)

    id: UUID
    object: Literal["admin_key"] = "admin_key"
    name: str
    scopes: list[str]
    origin: Literal["first_start", "setting", "command", "rest"] | None = Field(
        description="Origin of the key; null for keys of releases that did not record it."
    )
    last4: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="Accurate to about half a minute.")


class IssuedAdminKeyObject(AdminKeyObject):
    """A new admin key, with its secret."""

    model_config = with_example(**EXAMPLE, secret="igw_admin_…")  # noqa: S106 - an example

    secret: str = Field(repr=False, description="Store it now: it is not shown again.")


class AdminKeyBody(Body):
    """An admin key to create."""

    model_config = with_example(name="prometheus", scopes=["metrics"], expires_at=None)

    name: str = Field(
        min_length=1,
        max_length=MAX_NAME_CHARACTERS,
        description="Its name in the audit trail; unique among usable admin keys.",
    )
    scopes: list[str] = Field(
        min_length=1,
        max_length=3,
        description="`metrics` reads /metrics, `admin:read` that and every GET under /admin/v1, "
        "`admin` does everything.",
        json_schema_extra={"items": {"type": "string", "enum": [*AdminScope]}},
    )
    expires_at: Instant | None = Field(None, description="At most ten years ahead. null: never.")


@router.post(
    "",
    summary="Create an admin key",
    status_code=201,
    dependencies=[NoQuery],
    responses=refused_with(409),
    openapi_extra=body_of(AdminKeyBody),
)
async def create_admin_key(
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[AdminKeyBody, Depends(JsonBody(AdminKeyBody))],
) -> IssuedAdminKeyObject:
    """Create an admin key. The answer contains its secret, which is not shown again."""
    async with gateway.operators_database.operator(by=actor) as session:
        issued = await admin_keys.create(
            session,
            body.name,
            pepper=gateway.core.pepper,
            origin="rest",
            scopes=body.scopes,
            expires_at=body.expires_at,
        )
    gateway.clear_caches("operator_key")
    return _render(issued)


@router.get("", summary="List admin keys, without secrets")
async def list_admin_keys(
    gateway: GatewayDep, query: Annotated[PageQuery, InQuery()]
) -> Listed[AdminKeyObject]:
    """List admin keys, newest first, including revoked and expired ones."""
    async with gateway.operators_database.operator() as session:
        page = await admin_keys.list_page(session, limit=query.limit, after=query.after)
    data = [AdminKeyObject.model_validate(key) for key in page.items]
    return Listed[AdminKeyObject].of(data, has_more=page.has_more)


@router.get(
    "/{admin_key_id}", summary="Show an admin key, without its secret", dependencies=[NoQuery]
)
async def get_admin_key(admin_key_id: UUID, gateway: GatewayDep) -> AdminKeyObject:
    """Return its name, scopes, times and last four characters."""
    async with gateway.operators_database.operator() as session:
        return AdminKeyObject.model_validate(await admin_keys.get(session, admin_key_id))


@router.post(
    "/{admin_key_id}/roll",
    summary="Roll an admin key",
    status_code=201,
    dependencies=[NoQuery],
    openapi_extra=body_of(RollKeyBody),
)
async def roll_admin_key(
    admin_key_id: UUID,
    gateway: GatewayDep,
    actor: ActorDep,
    body: Annotated[RollKeyBody, Depends(JsonBody(RollKeyBody))],
) -> IssuedAdminKeyObject:
    """Create a successor with the same name, scopes and expiry and a new secret; the old key ends
    after the grace period. The answer contains the new secret, which is not shown again.
    """
    async with gateway.operators_database.operator(by=actor) as session:
        twin = await admin_keys.roll(
            session,
            admin_key_id,
            pepper=gateway.core.pepper,
            origin="rest",
            grace=timedelta(seconds=body.grace_seconds),
        )
    gateway.clear_caches("operator_key")
    return _render(twin)


@router.delete(
    "/{admin_key_id}",
    summary="Revoke an admin key",
    dependencies=[NoQuery],
    responses=refused_with(404, 409),
)
async def revoke_admin_key(
    admin_key_id: UUID, gateway: GatewayDep, actor: ActorDep
) -> AdminKeyObject:
    """Revoke an admin key, from the next request on; at other gateways within a second. It stays in
    the list. The last usable key with the scope `admin` cannot be revoked here (`409
    last_admin_key`): create another first, or revoke it by command on the server.
    """
    async with gateway.operators_database.operator(by=actor) as session:
        revoked = await admin_keys.revoke(session, admin_key_id, keeps_one=True)
    gateway.clear_caches("operator_key")
    return AdminKeyObject.model_validate(revoked)


def _render(issued: IssuedAdminKey) -> IssuedAdminKeyObject:
    shown = AdminKeyObject.model_validate(issued)
    return IssuedAdminKeyObject(**shown.model_dump(), secret=issued.secret.reveal())
