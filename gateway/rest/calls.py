"""The provider calls of a generation, as the API shows them."""

from collections.abc import Sequence

from pydantic import BaseModel, Field, JsonValue

from gateway.db.listed_calls import ListedCall, count_sent, render_call, version_served

EXAMPLE: dict[str, JsonValue] = {
    "provider_calls": 1,
    "model_version": None,
    "calls": [
        {
            "provider": "openai",
            "model": "gpt-image-2",
            "model_version": None,
            "outcome": "ambiguous",
            "provider_status": 500,
            "provider_request_id": "req_1c0f6e0f9c1d4e2b8a7d3f61aa5f6e0f",
            "images": 0,
            "input_tokens": None,
            "output_tokens": None,
        }
    ],
}


class CallsSum(BaseModel):
    """The number of provider calls of a generation, and the model version that served it."""

    provider_calls: int | None = Field(
        description="Calls that reached a provider for it. null: not listed, because one is under "
        "way, a worker was killed, or an earlier release made them.",
    )
    model_version: str | None = Field(
        description="The model that the vendor says it used, where it says so."
    )


class ProviderCallObject(BaseModel):
    """One provider call: the model that was asked, its outcome, and what it used."""

    provider: str
    model: str
    model_version: str | None
    outcome: str = Field(description="Its outcome class, as `outcome` of the generation.")
    provider_status: int | None = Field(description="null if no answer came.")
    provider_request_id: str | None
    images: int
    input_tokens: int | None = Field(description="null if the provider reported no usage.")
    output_tokens: int | None


class CallsObject(CallsSum):
    """The provider calls of a generation."""

    calls: list[ProviderCallObject] | None = Field(
        description="Each call, in order. They share one reservation and one ledger entry."
    )


def sum_calls(calls: Sequence[ListedCall] | None) -> CallsSum:
    """Render the sum of a generation's calls."""
    return CallsSum(provider_calls=count_sent(calls), model_version=version_served(calls))


def call_objects(calls: Sequence[ListedCall] | None) -> list[ProviderCallObject] | None:
    """Render each of a generation's calls."""
    if calls is None:
        return None
    return [ProviderCallObject.model_validate(render_call(call)) for call in calls]
