"""Every answer of the operators' routes is one that the API's description promises."""

import pytest

from tests.admin_helpers import admin_secret
from tests.conformance import Spoken, examine
from tests.harness import Served

TENANT = "/admin/v1/tenants/{tenant_id}"
# One owner, and a key's own mode; a number is written as an integer, 20 and not 20.0.
OWNED = frozenset({"user_id", "api_key_id", "livemode"})
SPOKEN = Spoken(
    {
        # A name is of printable characters; a time zone is one that is known.
        "POST /admin/v1/tenants": frozenset({"name", "time_zone"}),
        f"PATCH {TENANT}": frozenset(
            {"name", "time_zone", "image_retention_seconds", "max_image_bytes"}
        ),
        "GET /admin/v1/tenants": frozenset({"name"}),
        f"POST {TENANT}/users": frozenset({"name"}),
        f"GET {TENANT}/users": frozenset({"name"}),
        f"PATCH {TENANT}/users/{{user_id}}": frozenset({"name"}),
        f"POST {TENANT}/keys": frozenset({"expires_at", "name"}),
        f"PATCH {TENANT}/keys/{{key_id}}": frozenset({"name"}),
        f"POST {TENANT}/keys/{{key_id}}/roll": frozenset({"grace_seconds"}),
        "POST /admin/v1/admin-keys": frozenset({"expires_at", "name"}),
        "POST /admin/v1/admin-keys/{admin_key_id}/roll": frozenset({"grace_seconds"}),
        f"PUT {TENANT}/budgets": OWNED | {"alert_percents"},
        "PUT /admin/v1/budgets": frozenset({"alert_percents", "time_zone"}),
        # Above the usual limit, and in the future.
        f"PUT {TENANT}/budgets/{{budget_id}}/raise": frozenset({"limit_usd", "until"}),
        "PUT /admin/v1/budgets/{budget_id}/raise": frozenset({"limit_usd", "until"}),
        # A URL is one that can be read, a description one line; and integers as above.
        **{
            f"{operation}{path}{rest}": names
            for path in (f"{TENANT}/webhooks", "/admin/v1/webhooks")
            for operation, rest, names in (
                ("POST ", "", frozenset({"url", "description"})),
                ("PATCH ", "/{webhook_id}", frozenset({"url", "description"})),
                ("POST ", "/{webhook_id}/roll", frozenset({"grace_seconds"})),
            )
        },
        f"PUT {TENANT}/limits": OWNED | {"value"},
        "POST /admin/v1/prices": frozenset({None, "effective_from", "per_image", "text_input"}),
        "GET /admin/v1/usage": frozenset(
            {"after", "start", "time_zone", "end", "group_by", "key", "user"}
        ),
        "GET /admin/v1/requests": frozenset({"start", "end"}),
        # A cost with the verdict post alone; a reason of one line.
        "POST /admin/v1/reconciliation/{call_id}/resolve": frozenset({None, "cost_usd", "reason"}),
        "GET /admin/v1/audit": frozenset({"start", "end", "after"}),
    }
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("examples", "cases"), [(5, 3_000), pytest.param(14, 3_600, marks=pytest.mark.full)]
)
async def test_every_answer_to_operators_is_as_described(
    served: Served, examples: int, cases: int
) -> None:
    report = await examine(
        served, admin_secret(served), operators=True, examples=examples, spoken=SPOKEN
    )
    assert report.findings == [], "\n\n".join(report.findings[:20])
    assert report.cases >= cases
    assert 201 in report.answered("POST /admin/v1/tenants")
    assert 201 in report.answered(f"PUT {TENANT}/budgets")
    assert 200 in report.answered("GET /admin/v1/usage")
