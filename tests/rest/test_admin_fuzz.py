"""Any request to the operators' routes succeeds or is refused in the envelope."""

import json
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.admin_helpers import NO_ID, admin
from tests.harness import GPT2, Served, error_of

ODD_TEXTS = st.sampled_from(
    [
        *(
            "",
            " ",
            "\x00",
            "a\x00b",
            "\ud7ff",
            "\U0010ffff",
            "'; DROP TABLE tenant; --",
            "%s",
            "{}",
        ),
        *("../..", "null", "-1", "0", "1e999999999", "NaN", "Infinity", "1_0", "\u0663", "9" * 400),
        *("2026-12-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
        *("9223372036854775807", "9223372036854775808", NO_ID, NO_ID.upper(), f"urn:uuid:{NO_ID}"),
    ]
)
ODD_NUMBERS = st.sampled_from(
    [0, -1, 1, 59, 60, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 0.5, 1e308]
)
VALUES = st.recursive(
    st.none() | st.booleans() | ODD_NUMBERS | st.integers() | ODD_TEXTS | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)
NEXT_YEAR = (datetime.now(UTC) + timedelta(days=366)).isoformat()
LIKELY: dict[str, st.SearchStrategy[object]] = {
    "name": st.sampled_from(["acme", "globex", "Ünï"]),
    "status": st.sampled_from(["active", "suspended"]),
    "time_zone": st.sampled_from(["UTC", "Europe/Madrid", "Pacific/Apia"]),
    "continuity": st.booleans(),
    "stores_prompts": st.booleans(),
    "image_retention_seconds": st.sampled_from([None, 60, 315_360_000]),
    "max_image_bytes": st.sampled_from([None, 0, 2**63 - 1]),
    "user_id": st.none(),
    "livemode": st.booleans(),
    "scopes": st.lists(st.sampled_from(["images:read", "usage:read"]), min_size=1, max_size=3),
    "models": st.none() | st.just([GPT2]),
    "expires_at": st.just(NEXT_YEAR),
    "grace_seconds": st.sampled_from([0, 86_400]),
    "secret": st.just("sk-fuzz-0123456789"),
    "window": st.sampled_from(["day", "week", "month", "total"]),
    "limit_usd": st.sampled_from(["5", "0", "1000000000", "0.000000001"]),
    "api_key_id": st.none(),
    "kind": st.sampled_from(["requests", "images", "concurrent"]),
    "value": st.sampled_from([0, 1, 10**9]),
    "model": st.sampled_from([GPT2, "dall-e-2/512x512"]),
    "effective_from": st.integers(0, 99_999).map(lambda n: f"2030-01-01T00:00:00.{n:05}Z"),
    "text_input": st.sampled_from(["5", "0"]),
    "image_input": st.just("8"),
    "image_output": st.just("28"),
    "text_output": st.just("28"),
    "per_image": st.just("0.02"),
    "url": st.just("https://hooks.example/"),
    "events": st.sampled_from([None, ["budget.exceeded"], ["webhook.test"] * 3]),
    "description": st.text(max_size=20),
    "disabled": st.booleans(),
}
TENANT = "/tenants/{tenant}"
WRITES: list[tuple[str, str, tuple[str, ...]]] = [
    ("POST", "/tenants", ("name", "time_zone")),
    (
        "PATCH",
        TENANT,
        (
            *("name", "status", "time_zone", "continuity", "stores_prompts"),
            *("image_retention_seconds", "max_image_bytes"),
        ),
    ),
    ("POST", f"{TENANT}/users", ("name",)),
    ("POST", f"{TENANT}/keys", ("user_id", "livemode", "scopes", "models", "expires_at")),
    ("POST", f"{TENANT}/keys/{{key}}/roll", ("grace_seconds",)),
    ("PUT", f"{TENANT}/credentials/openai", ("secret",)),
    (
        "PUT",
        f"{TENANT}/budgets",
        ("window", "limit_usd", "livemode", "api_key_id", "user_id"),
    ),
    ("PUT", f"{TENANT}/limits", ("kind", "value", "livemode", "api_key_id", "user_id")),
    (
        "POST",
        "/prices",
        ("model", "effective_from", "text_input", "image_input", "image_output", "text_output"),
    ),
    ("POST", "/prices", ("model", "effective_from", "per_image")),
    *(
        ("POST", f"{owner}/webhooks", ("url", "events", "livemode", "description"))
        for owner in ("", TENANT)
    ),
    (
        "PATCH",
        "/webhooks/{hook}",
        ("url", "events", "livemode", "description", "disabled"),
    ),
    ("POST", "/webhooks/{hook}/roll", ("grace_seconds",)),
]
READS = (
    *("/tenants", f"{TENANT}/users", f"{TENANT}/keys", f"{TENANT}/credentials"),
    *(
        f"{TENANT}/budgets",
        f"{TENANT}/limits",
        f"{TENANT}/webhooks",
        f"/webhooks/{NO_ID}/deliveries",
        "/usage",
        "/prices",
        "/reconciliation/calls",
        "/audit",
    ),
)
QUERY_NAMES = (
    *("limit", "after", "name", "model", "tenant", "action", "start", "end", "group_by"),
    *("format", "livemode", "state", "status", "user_id", "x"),
)
PATH_PARTS = st.sampled_from([NO_ID, "x", "%00", "0", "..", "%ff", "9" * 30, "%F0%9F%98%80"])


@st.composite
def writes(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """A body of likely values; then, most times, one or two fields that are odd or missing."""
    method, path, names = draw(st.sampled_from(WRITES))
    fields = {name: draw(LIKELY[name]) for name in names}
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(names) | st.text(max_size=5))
        if draw(st.booleans()):
            fields[name] = draw(VALUES)
        else:
            fields.pop(name, None)
    return method, path, json.dumps(fields).encode()


fuzz = hypothesis_settings(
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def expect_no_defect(
    served: Served,
    method: str,
    path: str,
    *,
    content: bytes | None = None,
    query: dict[str, str] | None = None,
) -> None:
    async with admin(served) as http:
        answer = await http.request(
            method,
            path.replace("{tenant}", str(served.tenant_id)),
            content=content,
            params=query or {},
        )
    assert answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR, answer.text
    if answer.status_code >= HTTPStatus.BAD_REQUEST:
        error = error_of(answer)
        assert error["code"]
        assert error["message"]


@hypothesis_settings(fuzz, max_examples=250)
@given(write=writes())
async def test_no_body_is_a_server_error(served: Served, write: tuple[str, str, bytes]) -> None:
    method, path, content = write
    [newest] = await served.owner_sql(
        "SELECT coalesce((SELECT id FROM api_key ORDER BY id DESC LIMIT 1), :none) AS key,"
        " coalesce((SELECT id FROM webhook_endpoint WHERE tenant_id IS NULL"
        " ORDER BY id DESC LIMIT 1), :none) AS hook",
        none=NO_ID,
    )
    path = path.replace("{key}", str(newest.key)).replace("{hook}", str(newest.hook))
    await expect_no_defect(served, method, path, content=content)


@hypothesis_settings(fuzz, max_examples=150)
@given(
    path=st.sampled_from(READS),
    query=st.dictionaries(
        st.sampled_from(QUERY_NAMES), ODD_TEXTS | st.text(max_size=6), max_size=3
    ),
)
async def test_no_query_is_a_server_error(served: Served, path: str, query: dict[str, str]) -> None:
    await expect_no_defect(served, "GET", path, query=query)


@hypothesis_settings(fuzz, max_examples=80)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE"]),
    parts=st.lists(
        PATH_PARTS
        | st.sampled_from(
            [
                *("tenants", "keys", "roll", "credentials", "budgets", "users", "{tenant}"),
                *("webhooks", "deliveries", "redeliver", "test"),
            ]
        ),
        min_size=1,
        max_size=5,
    ),
)
async def test_no_path_is_a_server_error(served: Served, method: str, parts: list[str]) -> None:
    await expect_no_defect(served, method, f"/{'/'.join(parts)}", content=b"{}")
