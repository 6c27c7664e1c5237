"""A token's claims decide the tenant, the user, the budgets and the books."""

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest
from flask import Response

from gateway.config import Settings, load_settings
from gateway.domain import TenantSettings
from gateway.errors import ConfigurationError
from gateway.tenancy import erasure, tenants, users
from tests.cli.test_cli_manners import CommandLine
from tests.harness import Served, error_of, gateway_process, process_environment, secret_of
from tests.hosting_helpers import RESERVE, hold_request
from tests.identity_provider import Issuer, rsa_key
from tests.limits_helpers import limit
from tests.oauth_helpers import (
    GENERATIONS,
    LOW,
    Refused,
    get,
    list_tools,
    make_image,
    refusal,
    trusting_gateway,
)
from tests.stub_openai import Stub
from tests.tenancy.test_security_canaries import Day, dump, leaks

HEARD_WITHIN_SECONDS = 5
"""Long before the cache would look by itself (30 s), with patience for a busy machine."""


def token_of(served: Served, issuer: Issuer, **changes: object) -> str:
    """A good token but for these claims."""
    return issuer.sign(issuer.claims(served.base_url, **changes))


async def user_names(served: Served) -> list[tuple[str, str]]:
    rows = await served.owner_sql(
        "SELECT t.name AS tenant, u.name AS user_name FROM tenant_user u"
        " JOIN tenant t ON t.id = u.tenant_id ORDER BY 1, 2"
    )
    return [(row.tenant, row.user_name) for row in rows]


async def test_a_tenant_is_named_by_its_name_or_its_id(trusting: Served, issuer: Issuer) -> None:
    for tenant in ("acme", str(trusting.tenant_id), str(trusting.tenant_id).upper()):
        token = token_of(trusting, issuer, tenant=tenant, sub=tenant)
        assert (await get(trusting, token)).status_code == 200
    assert {tenant for tenant, _ in await user_names(trusting)} == {"acme"}


async def test_a_tenant_named_like_anothers_id_does_not_hide_it(
    trusting: Served, issuer: Issuer
) -> None:
    await trusting.tenant(str(trusting.tenant_id))
    token = token_of(trusting, issuer, tenant=str(trusting.tenant_id))
    assert (await get(trusting, token)).status_code == 200
    assert await user_names(trusting) == [("acme", "alice")]


async def test_a_tenant_that_is_not_known_is_a_403_and_leaves_nothing_behind(
    trusting: Served, issuer: Issuer, stub: Stub
) -> None:
    for tenant in (
        "unknown",
        str(uuid4()),
        "ACME",
        "acme ",
        "x" * 5000,
        "a\x00b",
        "' OR 1",
    ):
        token = token_of(trusting, issuer, tenant=tenant)
        for answer in (
            await get(trusting, token),
            await make_image(trusting, token),
            await list_tools(trusting, token),
        ):
            assert refusal(answer) == Refused(403, "tenant_unknown", {})
    assert await user_names(trusting) == []
    assert stub.calls == []


async def test_a_tenant_is_found_as_soon_as_it_is_there(trusting: Served, issuer: Issuer) -> None:
    token = token_of(trusting, issuer, tenant="late")
    assert (await get(trusting, token)).status_code == 403
    await trusting.tenant("late")
    assert (await get(trusting, token)).status_code == 200


async def test_a_disabled_users_tokens_are_refused_and_a_deleted_user_is_made_anew(
    trusting: Served, issuer: Issuer
) -> None:
    token, database = token_of(trusting, issuer), trusting.gateway.database
    assert (await get(trusting, token)).status_code == 200
    async with database.tenant(trusting.tenant_id) as session:
        [alice] = (await users.list_users(session, trusting.tenant_id, limit=2)).items
        await users.change(session, trusting.tenant_id, alice.id, status="disabled")
    async with asyncio.timeout(HEARD_WITHIN_SECONDS):
        while (answer := await get(trusting, token)).status_code == 200:
            pass
    assert refusal(answer) == Refused(403, "user_disabled", {})
    async with database.tenant(trusting.tenant_id) as session:
        await erasure.delete_user(session, trusting.tenant_id, alice.id)
    async with asyncio.timeout(HEARD_WITHIN_SECONDS):
        while (await get(trusting, token)).status_code != 200:
            pass
    assert sorted(await user_names(trusting)) == [
        ("acme", "alice"),
        ("acme", f"deleted-{alice.id}"),
    ]


async def test_a_suspended_tenants_tokens_are_refused_until_it_is_resumed(
    trusting: Served, issuer: Issuer
) -> None:
    token = token_of(trusting, issuer)
    assert (await get(trusting, token)).status_code == 200
    async with trusting.gateway.database.operator() as session:
        await tenants.set_status(session, "acme", "suspended")
    async with asyncio.timeout(HEARD_WITHIN_SECONDS):
        while (answer := await get(trusting, token)).status_code == 200:
            pass
    assert refusal(answer) == Refused(403, "tenant_suspended", {})
    other = token_of(trusting, issuer, sub="bob")
    assert refusal(await list_tools(trusting, other)) == Refused(403, "tenant_suspended", {})
    assert await user_names(trusting) == [("acme", "alice")]
    async with trusting.gateway.database.operator() as session:
        await tenants.set_status(session, "acme", "active")
    async with asyncio.timeout(HEARD_WITHIN_SECONDS):
        while (await get(trusting, other)).status_code != 200:
            pass


async def test_a_tenants_choices_hold_for_its_tokens(trusting: Served, issuer: Issuer) -> None:
    provider = trusting.gateway.identity_provider
    assert provider is not None
    token = token_of(trusting, issuer)
    assert (await provider.authenticate(token)).tenant_settings == TenantSettings()
    async with trusting.gateway.database.operator() as session:
        await tenants.set_settings(
            session, "acme", continuity=False, stores_prompts=True, image_retention_seconds=60
        )
    chosen = TenantSettings(continuity=False, stores_prompts=True, image_retention_seconds=60)
    async with asyncio.timeout(HEARD_WITHIN_SECONDS):
        while (await provider.authenticate(token)).tenant_settings != chosen:
            # A cached answer does not yield to the loop: the listener needs a turn.
            await trusting.owner_sql("SELECT 1")


@pytest.mark.parametrize(
    ("claim", "given"),
    [
        ("realm.tenant", {"realm": {"tenant": "acme"}}),
        ("https://example.com/tenant", {"https://example.com/tenant": "acme"}),
        ("organization", {"organization": ["acme"]}),
        ("realm.tenant", {"realm.tenant": "acme", "realm": {"tenant": "other"}}),
    ],
)
async def test_the_operator_says_which_claims_count(
    settings: Settings, issuer: Issuer, claim: str, given: dict[str, object]
) -> None:
    changes = {"oidc_tenant_claim": claim, "oidc_user_claim": "email", "oidc_audience": "api, x"}
    async with trusting_gateway(settings, issuer, **changes) as served:
        claims = issuer.claims("x", tenant=None, email="a@example.com") | given
        assert (await get(served, issuer.sign(claims))).status_code == 200
        assert await user_names(served) == [("acme", "a@example.com")]
        own_address = issuer.sign(claims | {"aud": served.base_url})
        assert refusal(await get(served, own_address)).code == "invalid_token"
        assert refusal(await get(served, token_of(served, issuer))).code == "invalid_token"


async def test_fifty_first_requests_at_once_make_one_user(trusting: Served, issuer: Issuer) -> None:
    token = token_of(trusting, issuer)
    async with trusting.http(token) as http:
        answers = await asyncio.gather(*(http.get("/v1/models") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert await user_names(trusting) == [("acme", "alice")]
    [user] = await trusting.owner_sql("SELECT id FROM tenant_user")
    [told] = await trusting.owner_sql(
        "SELECT actor_type, actor_id, object_id, after FROM audit WHERE action = 'user.created'"
    )
    assert tuple(told) == ("user", str(user.id), str(user.id), {"name": "alice"})


async def test_a_token_and_a_key_of_one_user_are_the_same_user(
    trusting: Served, issuer: Issuer
) -> None:
    key = secret_of(await trusting.key(user="alice"))
    assert (await make_image(trusting, key)).status_code == 200
    token = token_of(trusting, issuer)
    assert len((await get(trusting, token, "/v1/images")).json()["data"]) == 1
    assert await user_names(trusting) == [("acme", "alice")]


async def test_neither_another_tenant_nor_another_user_sees_an_image(
    trusting: Served, issuer: Issuer
) -> None:
    await trusting.tenant("other")
    owner = token_of(trusting, issuer)
    assert (await make_image(trusting, owner)).status_code == 200
    image = (await get(trusting, owner, "/v1/images")).json()["data"][0]["id"]
    others = [
        token_of(trusting, issuer, tenant="other"),
        token_of(trusting, issuer, sub="bob"),
        secret_of(await trusting.key(livemode=False)),
    ]
    for other in others:
        assert (await get(trusting, other, "/v1/images")).json()["data"] == []
        async with trusting.http(other) as http:
            for method in ("GET", "DELETE"):
                answer = await http.request(method, f"/v1/images/{image}")
                assert error_of(answer)["code"] == "image_not_found"
        usage = (await get(trusting, other, "/v1/usage")).json()["total"]
        assert usage["requests"] == 0
    assert (await get(trusting, owner, f"/v1/images/{image}")).status_code == 200


async def test_budgets_of_tenant_and_user_hold_tokens_and_those_of_keys_do_not(
    trusting: Served, issuer: Issuer, stub: Stub
) -> None:
    key = await trusting.key(user="alice")
    await trusting.budget("0", api_key_id=key.id)
    alice, bob = token_of(trusting, issuer), token_of(trusting, issuer, sub="bob")
    assert (await get(trusting, alice, "/v1/budgets")).json()["data"] == []
    assert (await make_image(trusting, alice)).status_code == 200
    rows = await trusting.owner_sql("SELECT id FROM tenant_user WHERE name = 'alice'")
    await trusting.budget("0.000001", user_id=rows[0].id)
    owners = [b["owner"] for b in (await get(trusting, alice, "/v1/budgets")).json()["data"]]
    assert owners == ["user"]
    assert refusal(await make_image(trusting, alice)).code == "budget_exceeded"
    assert (await make_image(trusting, bob)).status_code == 200
    await trusting.budget("0.000001")
    assert refusal(await make_image(trusting, bob)).code == "budget_exceeded"
    assert len(stub.calls) == 2


async def test_a_burst_of_tokens_cannot_overspend_a_users_budget(
    trusting: Served, issuer: Issuer, stub: Stub
) -> None:
    token = token_of(trusting, issuer)
    async with trusting.http(token) as http:
        quote = (await http.post("/v1/images/quotes", json=LOW)).json()["cost_usd_max"]
        rows = await trusting.owner_sql("SELECT id FROM tenant_user WHERE name = 'alice'")
        await trusting.budget(str(Decimal(quote) * 3), window="total", user_id=rows[0].id)
        answers = await asyncio.gather(*(http.post(GENERATIONS, json=LOW) for _ in range(30)))
    made = [answer for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} == {200, 402}
    assert len(made) == len(stub.calls) >= 3
    spent = sum(line.cost_nano_usd for line in stub.bill)
    assert spent <= Decimal(quote) * 3 * 10**9


async def test_callers_without_key_and_user_are_told_apart_in_one_batch(trusting: Served) -> None:
    """Two tenants' calls that share a commit, the second with a budget that is spent."""
    other = await trusting.tenant("other")
    await trusting.budget("0", tenant_id=other)
    prices = await trusting.owner_sql("SELECT min(id) AS id FROM price")
    requests = [
        hold_request(tenant, prices[0].id)
        for tenant in (trusting.tenant_id, other, trusting.tenant_id)
    ]
    rows = await trusting.owner_sql(RESERVE, requests=json.dumps(requests), instance=str(uuid4()))
    outcomes = {str(row.request_id): row.outcome for row in rows}
    asked = [outcomes[str(request["id"])] for request in requests]
    assert asked == ["held", "budget_exceeded", "held"]
    lines = await trusting.owner_sql("SELECT tenant_id, api_key_id FROM ledger")
    assert [(row.tenant_id, row.api_key_id) for row in lines] == [(trusting.tenant_id, None)] * 2


async def test_a_token_is_in_no_log_no_answer_and_no_row(
    trusting: Served, issuer: Issuer, tmp_path: Path
) -> None:
    environment = process_environment(trusting.gateway.settings) | {
        "GATEWAY_LOG_LEVEL": "DEBUG",
        "GATEWAY_OIDC_ISSUER": issuer.url,
        "GATEWAY_OIDC_AUDIENCE": "images",
    }
    tokens = {
        "good": issuer.sign(issuer.claims("images")),
        "expired": issuer.sign(issuer.claims("images", exp=1)),
        "forged": issuer.sign(issuer.claims("images"), key=rsa_key(2)),
        "of an unknown tenant": issuer.sign(issuer.claims("images", tenant="unknown")),
        "weak": issuer.sign(issuer.claims("images", scope="")),
        "no user": issuer.sign(issuer.claims("images", sub="\x00")),
    }
    with gateway_process(environment, tmp_path / "log") as process:
        await process.until_ready()
        day = Day(process.base_url)
        for token in tokens.values():
            for path in ("/v1/models", "/metrics", f"/nowhere?access_token={token}"):
                await day.ask(token, "GET", path)
            await day.ask(token, "POST", GENERATIONS, json=LOW)
            await day.ask(token, "POST", "/mcp", json=LOW)
            await day.ask(f"{token} {token}", "GET", "/v1/models")
            await day.ask(None, "GET", f"/v1/models?access_token={token}")
        issuer.answers = {path: lambda: Response(status=500) for path in issuer.asked}
        await day.ask(issuer.sign(issuer.claims("images"), header={"kid": "x"}), "GET", "/v1/usage")
    assert {200, 400, 401, 403, 404} <= day.statuses
    places = {"log": (tmp_path / "log").read_bytes(), "answers": b"\n".join(day.answers)}
    secrets = {name: token.encode() for name, token in tokens.items()}
    # The signature is what makes a token worth stealing.
    secrets |= {f"signature: {name}": t.rpartition(".")[2].encode() for name, t in tokens.items()}
    assert leaks(places | await dump(trusting), secrets) == set()


# The operator's side


async def test_doctor_examines_the_provider(
    trusting: Served, issuer: Issuer, tmp_path: Path
) -> None:
    environment = process_environment(trusting.gateway.settings)
    command = CommandLine(environment | {"GATEWAY_OIDC_ISSUER": issuer.url}, tmp_path)

    async def examined(**changes: str) -> tuple[int, str, str]:
        ended = await asyncio.to_thread(command, "doctor", "--json", **changes)
        found = [check for check in json.loads(ended.out) if check["check"] == "identity provider"]
        return ended.status, found[0]["state"], found[0]["detail"]

    status, state, detail = await examined()
    assert (status, state) == (0, "ok")
    assert issuer.url in detail
    for wrong in (f"{issuer.url}/", issuer.url.removesuffix("company"), "http://127.0.0.1:9/x"):
        status, state, detail = await examined(GATEWAY_OIDC_ISSUER=wrong)
        assert (status, state) == (1, "wrong")
        assert "GATEWAY_OIDC_ISSUER" in detail


@pytest.mark.parametrize(
    "address",
    [
        *("login.example.com", "ftp://login.example.com", "http://login.example.com/realms/x"),
        *("https://login.example.com/?tenant=x", "https://login.example.com/#x", "https://"),
        *("https://user:pass@login.example.com/", "http://127.0.0.1.example.com/", "https://a b/"),
        *("https://login.example.com:x/", "http://10.0.0.1/", "https://[::1"),
    ],
)
def test_an_issuer_without_tls_refuses_to_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_OIDC_ISSUER", address)
    with pytest.raises(ConfigurationError, match="GATEWAY_OIDC_ISSUER"):
        load_settings()


@pytest.mark.parametrize(
    "address",
    ["https://login.example.com", "https://10.0.0.1:8443/realms/x/", "http://localhost/x"],
)
def test_an_issuer_is_https_or_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_OIDC_ISSUER", address)
    assert load_settings().oidc_issuer == address


async def test_limits_of_a_user_and_of_the_tenant_bind_the_users_token(
    trusting: Served, issuer: Issuer
) -> None:
    tokens = [token_of(trusting, issuer, sub=name) for name in ("anna", "bert")]
    assert [(await get(trusting, token)).status_code for token in tokens] == [200, 200]
    [row] = await trusting.owner_sql("SELECT id FROM tenant_user WHERE name = 'anna'")
    await limit(trusting, "requests", 1, user_id=row.id)
    await limit(trusting, "requests", 3)
    for token, allowed in zip(tokens, (1, 2), strict=True):
        came = [(await make_image(trusting, token)).status_code for _ in range(4)]
        assert came == [200] * allowed + [429] * (4 - allowed)
