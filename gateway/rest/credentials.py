"""A tenant's (or user's) own provider key: stored, replaced and deleted, never returned."""

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from gateway.domain import Caller, SecretText
from gateway.errors import Forbidden
from gateway.rest.admin.dependencies import NoQuery
from gateway.rest.dependencies import (
    ActorDep,
    CredentialWriter,
    GatewayDep,
    Provider,
    read_json_object,
)
from gateway.rest.openapi import SCHEMAS
from gateway.rest.refusals import refused_with
from gateway.rest.schemas import CredentialAnswer, CredentialBody, CredentialTestAnswer
from gateway.tenancy import credentials
from gateway.tenancy.credentials import CredentialInfo

router = APIRouter(tags=["credentials"])
PATH = "/v1/credentials/{provider}"
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": CredentialBody.model_json_schema(ref_template=SCHEMAS + "{model}")
            }
        },
    }
}


@router.put(PATH, summary="Store or replace your provider key", openapi_extra=BODY)
async def put_credential(
    provider: Provider,
    request: Request,
    gateway: GatewayDep,
    caller: CredentialWriter,
    actor: ActorDep,
) -> CredentialAnswer:
    """Store a provider key. A gateway key bound to a user stores it for that user, any other key
    for the tenant.
    """
    _require_live(caller)
    credentials.check_provider(provider, gateway.core.catalog.vendors)
    raw = await read_json_object(request, gateway.settings, refuses_repeated=True)
    try:
        body = CredentialBody.model_validate(raw)
    except ValidationError as error:
        # Error messages omit the input: it may contain the secret under a mistyped name.
        raise RequestValidationError(error.errors(include_input=False)) from None
    async with gateway.database.tenant(caller.tenant_id, by=actor) as session:
        stored = await credentials.store(
            session,
            caller.tenant_id,
            vault=gateway.core.vault,
            user_id=caller.user_id,
            provider=provider,
            secret=SecretText(body.secret.get_secret_value().strip()),
            vendors=gateway.core.catalog.vendors,
        )
    gateway.clear_caches(str(caller.tenant_id))
    return _render(stored)


@router.get(PATH, summary="Show your provider key, without the secret")
async def get_credential(
    provider: Provider, gateway: GatewayDep, caller: CredentialWriter
) -> CredentialAnswer:
    """Return the last four characters and the times of storing."""
    _require_live(caller)
    credentials.check_provider(provider, gateway.core.catalog.vendors)
    async with gateway.database.tenant(caller.tenant_id) as session:
        stored = await credentials.get(
            session, caller.tenant_id, user_id=caller.user_id, provider=provider
        )
    return _render(stored)


@router.delete(PATH, summary="Delete your provider key", status_code=204)
async def delete_credential(
    provider: Provider, gateway: GatewayDep, caller: CredentialWriter, actor: ActorDep
) -> Response:
    """Delete a provider key. Later calls use the tenant's or the operator's key."""
    _require_live(caller)
    credentials.check_provider(provider, gateway.core.catalog.vendors)
    async with gateway.database.tenant(caller.tenant_id, by=actor) as session:
        await credentials.delete(
            session, caller.tenant_id, user_id=caller.user_id, provider=provider
        )
    gateway.clear_caches(str(caller.tenant_id))
    return Response(status_code=204)


@router.post(
    PATH + "/test",
    summary="Test your provider key",
    dependencies=[NoQuery],
    responses=refused_with(429),
)
async def test_credential(
    provider: Provider, gateway: GatewayDep, caller: CredentialWriter
) -> CredentialTestAnswer:
    """Test a provider key by requesting the provider's list of models, which is free of charge.
    `unreachable` does not mean that the key is invalid.
    """
    _require_live(caller)
    tested = await gateway.credential_tests.run(caller, provider)
    return CredentialTestAnswer(
        provider=provider,
        owner=tested.info.owner,
        last4=tested.info.last4,
        status=tested.state.value,
    )


def _require_live(caller: Caller) -> None:
    if not caller.livemode:
        raise Forbidden("Provider keys are used by live calls only. Use a live key (igw_live_…).")


def _render(info: CredentialInfo) -> CredentialAnswer:
    return CredentialAnswer(
        provider=info.provider,
        owner=info.owner,
        last4=info.last4,
        updated_at=info.updated_at.isoformat(),
    )
