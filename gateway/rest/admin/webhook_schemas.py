"""The bodies and answers of the webhook routes."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictInt
from pydantic.config import JsonDict

from gateway.net.outbound import MAX_URL_CHARACTERS
from gateway.rest.admin.schemas import (
    TENANT_ID,
    Body,
    Identified,
    PageQuery,
    left_as_it_is,
    with_example,
)
from gateway.webhooks.endpoints import MAX_DESCRIPTION_CHARACTERS, MAX_GRACE
from gateway.webhooks.events import OF_OPERATORS, OF_TENANTS

_WEBHOOK_ID = "019aa5f5-3c00-7000-8000-000000000000"
Status = Literal["pending", "delivered", "dead"]
_EVENTS: JsonDict = {"items": {"type": "string", "enum": [*OF_TENANTS]}}
_ALL_EVENTS = f"null: all. The operator's own webhooks may name {', '.join(OF_OPERATORS)} too."
_EXAMPLE: dict[str, JsonValue] = {
    "id": _WEBHOOK_ID,
    "object": "webhook",
    "tenant_id": TENANT_ID,
    "url": "https://example.com/hooks/images",
    "events": ["budget.exceeded", "budget.threshold_reached"],
    "livemode": True,
    "description": "the team's pager",
    "disabled_at": None,
    "disabled_reason": None,
    "secrets": [{"created_at": "2026-11-21T09:32:00Z", "valid_until": None}],
    "created_at": "2026-11-21T09:32:00Z",
    "updated_at": "2026-11-21T09:32:00Z",
}


def _left_events(schema: JsonDict) -> None:
    left_as_it_is(schema)
    schema.update(_EVENTS)


class SecretObject(BaseModel):
    """A signing secret and its validity."""

    model_config = ConfigDict(from_attributes=True)

    created_at: datetime
    valid_until: datetime | None = Field(description="null: until it is rolled.")


class WebhookObject(Identified):
    """A webhook, without its secrets."""

    model_config = with_example(**_EXAMPLE)

    id: UUID
    object: Literal["webhook"] = "webhook"
    tenant_id: UUID | None = Field(description="null: the operator's own.")
    url: str
    events: list[str] | None = Field(description="null: every event.")
    livemode: bool | None = Field(description="null: live and test.")
    description: str
    disabled_at: datetime | None
    disabled_reason: Literal["operator", "gone"] | None = Field(
        description="`gone`: the receiver answered 410 Gone."
    )
    secrets: list[SecretObject]
    created_at: datetime
    updated_at: datetime


class SignedWebhookObject(WebhookObject):
    """A webhook with its new signing secret."""

    model_config = with_example(**_EXAMPLE, secret="whsec_…")  # noqa: S106 - an example

    secret: str = Field(repr=False, description="Store it now: it is not shown again.")


class WebhookBody(Body):
    """A webhook to create."""

    model_config = with_example(
        url="https://example.com/hooks/images",
        events=["budget.exceeded", "budget.threshold_reached"],
        livemode=True,
        description="the team's pager",
    )

    url: str = Field(
        max_length=MAX_URL_CHARACTERS,
        description="https, on the public internet; redirects are not followed.",
    )
    events: list[str] | None = Field(
        None, min_length=1, max_length=50, description=_ALL_EVENTS, json_schema_extra=_EVENTS
    )
    livemode: StrictBool | None = Field(None, description="null: events of live and test calls.")
    description: str = Field("", max_length=MAX_DESCRIPTION_CHARACTERS)


class WebhookChange(Body):
    """Changes to a webhook; omitted fields keep their value."""

    model_config = with_example(disabled=True)

    url: str = Field("", max_length=MAX_URL_CHARACTERS, json_schema_extra=left_as_it_is)
    events: list[str] | None = Field(
        None,
        min_length=1,
        max_length=50,
        description=_ALL_EVENTS,
        json_schema_extra=_left_events,
    )
    livemode: StrictBool | None = Field(
        None, description="null: both.", json_schema_extra=left_as_it_is
    )
    description: str = Field(
        "", max_length=MAX_DESCRIPTION_CHARACTERS, json_schema_extra=left_as_it_is
    )
    disabled: StrictBool = Field(
        default=False,
        description="true: deliveries stop, and pending ones are marked dead.",
        json_schema_extra=left_as_it_is,
    )


class RollSecretBody(Body):
    """Options for rolling a webhook's secret."""

    model_config = with_example(grace_seconds=86_400)

    grace_seconds: StrictInt = Field(
        86_400,
        ge=0,
        le=int(MAX_GRACE.total_seconds()),
        description="Time for which earlier secrets keep signing too.",
    )


class DeliveryObject(Identified):
    """The delivery of one event to one webhook, and its result."""

    model_config = with_example(
        id="019aa5f6-4d00-7000-8000-000000000000",
        object="webhook_delivery",
        event_id="1f6f6f57-43fb-4a64-8f2c-5dd21ee2a5a1",
        event_type="budget.exceeded",
        status="dead",
        attempts=9,
        next_attempt_at=None,
        last_status=503,
        last_error="bad_status",
        created_at="2026-11-21T09:40:00Z",
        finished_at="2026-11-22T09:31:12Z",
    )

    id: UUID
    object: Literal["webhook_delivery"] = "webhook_delivery"
    event_id: UUID = Field(description="The header `webhook-id`, the same in each attempt.")
    event_type: str
    status: Status
    attempts: int
    next_attempt_at: datetime | None
    last_status: int | None = Field(description="The receiver's last HTTP status, if it answered.")
    last_error: str | None
    created_at: datetime
    finished_at: datetime | None


class DeliveriesQuery(PageQuery):
    """Filters of the delivery list."""

    status: Status | None = None
