"""Every answer of the tenants' routes is one that the API's description promises."""

import pytest

from gateway.domain import Scope
from gateway.image_parameters import PARAMETERS
from tests.conformance import Spoken, examine
from tests.harness import Served, secret_of
from tests.stub_openai import Stub

# Which values go together, and with which model, says the catalogue; `GET /v1/models` shows it.
# These two have the same values for every model.
BY_MODEL = frozenset(parameter.name for parameter in PARAMETERS) - {"user", "response_format"}
# One key, one request.
BOUGHT = BY_MODEL | {"idempotency_key"}
# An image must be one, small enough, and as the model wants it.
IMAGES = frozenset({"image", "mask", "markup", "images", "image_file", "mask_file"})
SPOKEN = Spoken(
    {
        "POST /v1/images/generations": BOUGHT,
        "POST /v1/images/quotes": BY_MODEL,
        "POST /v1/images/edits": BOUGHT | IMAGES,
        "POST /v1/images/variations": BOUGHT | IMAGES,
        "POST /generate_image": BOUGHT,
        "POST /mcp/v1/tools/generate_image": BOUGHT | {"width", "height"},
        "POST /edit_image": BOUGHT | IMAGES | {"params"},
        # Pages begin after an image of the caller's own.
        "GET /v1/images": frozenset({"after"}),
        # Dates of ISO 8601, one before the other; fields that are named once.
        "GET /v1/requests": frozenset({"start", "end"}),
        # A name is of printable characters, an integer written as one, an end in the future; a URL
        # is one that can be read, a description one line.
        "POST /v1/keys": frozenset({"expires_at", "name"}),
        "PATCH /v1/keys/{key_id}": frozenset({"name"}),
        "POST /v1/keys/{key_id}/roll": frozenset({"grace_seconds"}),
        "POST /v1/users": frozenset({"name"}),
        "GET /v1/users": frozenset({"name"}),
        "PATCH /v1/users/{user_id}": frozenset({"name"}),
        "PUT /v1/limits": frozenset({"user_id", "api_key_id", "livemode", "value"}),
        "POST /v1/webhooks": frozenset({"url", "description"}),
        "PATCH /v1/webhooks/{webhook_id}": frozenset({"url", "description"}),
        "POST /v1/webhooks/{webhook_id}/roll": frozenset({"grace_seconds"}),
        "GET /v1/usage": frozenset(
            {"after", "start", "end", "group_by", "time_zone", "key", "user"}
        ),
    }
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("examples", "cases"), [(14, 3_300), pytest.param(45, 3_600, marks=pytest.mark.full)]
)
async def test_every_answer_to_tenants_is_as_described(
    served: Served, stub: Stub, examples: int, cases: int
) -> None:
    key = await served.key(scopes=[*Scope])
    report = await examine(
        served, secret_of(key), operators=False, examples=examples, spoken=SPOKEN
    )
    assert report.findings == [], "\n\n".join(report.findings[:20])
    assert report.cases >= cases
    assert 200 in report.answered("POST /v1/images/generations")
    assert 200 in report.answered("POST /v1/images/edits")
    assert 200 in report.answered("GET /v1/images")
    for operation in ("POST /v1/keys", "POST /v1/users", "POST /v1/webhooks"):
        assert 201 in report.answered(operation)
    open_calls = await served.owner_sql("SELECT id FROM reservation WHERE state = 'held'")
    assert open_calls == []
    [bought] = await served.owner_sql("SELECT count(*) AS calls FROM reservation")
    # To test a stored provider key is to ask for the models, which is free.
    assert bought.calls == sum(call.path.startswith("/v1/images/") for call in stub.calls)
