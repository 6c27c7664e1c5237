"""Dependencies of the routes: the opened gateway, the caller with a scope, a bounded JSON body."""

import json
from typing import Annotated

import orjson
from fastapi import Depends, Path, Request

from gateway.bootstrap import Gateway
from gateway.catalog.vendors import VENDORS
from gateway.config import Settings
from gateway.db.actors import Actor
from gateway.domain import Caller, Operator, Scope
from gateway.errors import Forbidden, InvalidRequest
from gateway.request_record import current
from gateway.rest.uploads import UploadReader
from gateway.web.authentication import check_operator, require_scope
from gateway.web.bodies import read_body, refuse_compressed

# Dependencies are coroutines even if they await nothing: the framework would run a plain
# function in a worker thread, at twenty times the cost.


async def get_gateway(request: Request) -> Gateway:
    """Return the opened gateway."""
    gateway: Gateway = request.app.state.gateway
    return gateway


async def get_uploads(request: Request) -> UploadReader:
    """Return the reader of bodies with input images."""
    uploads: UploadReader = request.app.state.uploads
    return uploads


async def get_caller(request: Request) -> Caller:
    """Return the authenticated caller."""
    caller: Caller = request.state.caller
    return caller


def idempotency_key_of(request: Request) -> str | None:
    """Return the request's idempotency key.

    Raises:
        InvalidRequest: there are several. Two equal ones are refused too: a proxy between client
            and gateway may join them to a key that neither has sent.
    """
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1:
        raise InvalidRequest(
            f"The request has {len(keys)} Idempotency-Key headers. Send one.",
            code="invalid_idempotency_key",
            param="idempotency_key",
        )
    return keys[0] if keys else None


def old_sdk_of(request: Request, settings: Settings) -> str:
    """The User-Agent, if SDKs of DALL·E's time are to be served DALL·E; else an empty string."""
    return request.headers.get("user-agent", "") if settings.dall_e_2_for_old_sdks else ""


async def get_operator(request: Request) -> Operator:
    """Return the operator behind the request's admin key.

    Raises:
        Forbidden: the key is a tenant's, or its scopes do not cover the request.
    """
    caller: Caller | Operator = request.state.caller
    if not isinstance(caller, Operator):
        raise Forbidden("This route needs an admin key (igw_admin_…).")
    check_operator(caller, request.method, request.url.path)
    return caller


async def get_actor(request: Request) -> Actor:
    """Return the actor that the audit trail names for the changes of this request."""
    caller: Caller | Operator = request.state.caller
    request_id = current().request_id
    if isinstance(caller, Operator):
        return Actor("operator_key", str(caller.operator_key_id), request_id, caller.name)
    if caller.api_key_id is not None:
        return Actor("api_key", str(caller.api_key_id), request_id)
    return Actor("user", str(caller.user_id), request_id)


class _Scoped:
    """A dependency that returns the caller if the key has the scope."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def __call__(self, request: Request) -> Caller:
        caller = await get_caller(request)
        require_scope(caller, self._scope)
        return caller


image_writer = _Scoped(Scope.IMAGES_WRITE)
GatewayDep = Annotated[Gateway, Depends(get_gateway)]
UploadsDep = Annotated[UploadReader, Depends(get_uploads)]
CallerDep = Annotated[Caller, Depends(get_caller)]
ActorDep = Annotated[Actor, Depends(get_actor)]
ImageWriter = Annotated[Caller, Depends(image_writer)]
ImageFiles = Annotated[Caller, Depends(_Scoped(Scope.IMAGES_READ))]
UsageReader = Annotated[Caller, Depends(_Scoped(Scope.USAGE_READ))]
Provider = Annotated[
    str,
    Path(
        description="The provider of the key: one of these, or a host of the operator's models "
        "file.",
        examples=[*VENDORS],
    ),
]
TenantAdmin = Annotated[Caller, Depends(_Scoped(Scope.TENANT_ADMIN))]
CredentialWriter = Annotated[Caller, Depends(_Scoped(Scope.CREDENTIALS_WRITE))]


async def read_json_object(
    request: Request, settings: Settings, *, refuses_repeated: bool = False
) -> dict[str, object]:
    """Read the body as a JSON object, with at most `settings.max_body_bytes` in memory.

    If a name occurs twice, the last value counts, as at OpenAI; with `refuses_repeated` the body is
    refused.

    Raises:
        InvalidRequest: not JSON, not an object, compressed, or received too slowly.
        PayloadTooLarge: the body is larger than that.
    """
    refuse_compressed(request.scope)
    content = await read_body(
        request.scope,
        request.receive,
        max_bytes=settings.max_body_bytes,
        seconds=settings.upload_seconds,
    )
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise InvalidRequest(
            "We could not parse the JSON body of your request: it must be one JSON object, "
            'such as {"prompt": "a red circle"}.',
            code="invalid_json",
        )
    if refuses_repeated:
        try:
            json.loads(content, object_pairs_hook=_refuse_repeated)
        except RecursionError:
            raise InvalidRequest(
                "The JSON body is nested too deeply.", code="invalid_json"
            ) from None
    return body


def _refuse_repeated(pairs: list[tuple[str, object]]) -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise InvalidRequest(
                f"{name}: This name occurs twice in the body. Send it once.",
                code="invalid_json",
                param=name,
            )
        seen.add(name)
