"""OAuth from a client's side: from a bare 401 to an image, and the challenges on the way."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
)

from gateway.config import Settings
from tests.harness import HOUSE_KEY, Served, error_of, secret_of
from tests.identity_provider import ALL_SCOPES, CALLBACK, CLIENT_SECRET, Issuer
from tests.oauth_helpers import (
    GENERATIONS,
    JSON,
    LIST_TOOLS,
    LOW,
    METADATA,
    Refused,
    challenge,
    challenge_of,
    get,
    list_tools,
    make_image,
    refusal,
    trusting_gateway,
)
from tests.stub_openai import Stub

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}


class Memory:
    """The token storage of an MCP client: its registration and its tokens."""

    def __init__(self, client: OAuthClientInformationFull | None = None, token: str = "") -> None:
        self.client = client
        self.tokens: list[OAuthToken] = []
        if token:
            self.tokens.append(OAuthToken(access_token=token, scope="images:read"))

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens[-1] if self.tokens else None

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens.append(tokens)

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


@asynccontextmanager
async def client_of(served: Served, auth: httpx2.Auth) -> AsyncIterator[Client]:
    """The official MCP client, with one of its own ways to get a token."""
    async with httpx2.AsyncClient(auth=auth, timeout=60) as http:
        transport = streamable_http_client(f"{served.base_url}/mcp", http_client=http)
        async with Client(transport) as client:
            yield client


def machine(served: Served, issuer: Issuer, memory: Memory) -> ClientCredentialsOAuthProvider:
    """An application that is registered at the provider, without a person."""
    return ClientCredentialsOAuthProvider(
        f"{served.base_url}/mcp",
        memory,
        client_id="robot",
        client_secret=CLIENT_SECRET,
        issuer=issuer.url,
    )


async def bookings(served: Served) -> list[tuple[str, str | None, bool]]:
    """Tenant, user and whether there is a key, of each image that was paid for."""
    rows = await served.owner_sql(
        "SELECT t.name AS tenant, u.name AS user_name, l.api_key_id IS NOT NULL AS has_key"
        " FROM ledger l JOIN tenant t ON t.id = l.tenant_id"
        " LEFT JOIN tenant_user u ON u.id = l.user_id WHERE l.kind = 'post' ORDER BY l.at"
    )
    return [(row.tenant, row.user_name, row.has_key) for row in rows]


async def test_the_official_client_gets_from_a_bare_401_to_an_image(
    trusting: Served, issuer: Issuer, stub: Stub
) -> None:
    issuer.add_client("robot", "acme")
    memory = Memory()
    async with client_of(trusting, machine(trusting, issuer, memory)) as client:
        result = await client.call_tool("generate_image", LOW)
    assert not result.is_error
    assert await bookings(trusting) == [("acme", "robot", False)]
    assert {call.key for call in stub.calls} == {HOUSE_KEY}
    token = memory.tokens[0].access_token
    assert all(token not in str(call) for call in stub.calls)
    assert (await get(trusting, token)).status_code == 200


async def test_the_official_client_lets_a_person_sign_in(trusting: Served, issuer: Issuer) -> None:
    issuer.add_client("desktop", "acme")
    memory = Memory(
        OAuthClientInformationFull.model_validate(
            {
                "client_id": "desktop",
                "client_secret": CLIENT_SECRET,
                "redirect_uris": [CALLBACK],
                "token_endpoint_auth_method": "client_secret_post",
            }
        )
    )
    seen: list[str] = []

    async def open_browser(url: str) -> None:
        async with httpx2.AsyncClient() as browser:
            seen.append((await browser.get(url)).headers["location"])

    async def come_back() -> AuthorizationCodeResult:
        query = parse_qs(urlsplit(seen[0]).query)
        return AuthorizationCodeResult(
            code=query["code"][0], state=query["state"][0], iss=query["iss"][0]
        )

    auth = OAuthClientProvider(
        f"{trusting.base_url}/mcp",
        OAuthClientMetadata.model_validate({"redirect_uris": [CALLBACK]}),
        memory,
        open_browser,
        come_back,
    )
    async with client_of(trusting, auth) as client:
        result = await client.call_tool("generate_image", LOW)
    assert not result.is_error
    assert await bookings(trusting) == [("acme", "alice", False)]


async def test_the_official_client_asks_for_the_scope_that_a_tool_needs(
    trusting: Served, issuer: Issuer, stub: Stub
) -> None:
    issuer.add_client("robot", "acme")
    claims = issuer.claims(f"{trusting.base_url}/mcp", sub="robot", scope="images:read")
    memory = Memory(token=issuer.sign(claims))
    async with client_of(trusting, machine(trusting, issuer, memory)) as client:
        assert len((await client.list_tools()).tools) > 0
        assert len(memory.tokens) == 1
        result = await client.call_tool("generate_image", LOW)
    assert not result.is_error
    assert memory.tokens[-1].scope == "images:read images:write"
    assert len(stub.calls) == 1


async def test_a_token_works_for_rest_as_it_does_for_mcp(
    trusting: Served, issuer: Issuer, stub: Stub
) -> None:
    token = issuer.sign(issuer.claims(f"{trusting.base_url}/mcp"))
    made = await make_image(trusting, token, response_format="url")
    assert made.status_code == 200
    async with trusting.openai(token) as client:
        assert len([model async for model in client.models.list()]) > 0
    async with trusting.http(token) as http:
        kept = (await http.get("/v1/images")).json()["data"]
        usage = await http.get("/v1/usage", params={"group_by": "key,user"})
    assert len(kept) == 1
    groups = [(row["key"], row["user"], row["requests"]) for row in usage.json()["data"]]
    assert groups == [(None, "alice", 1)]
    assert await bookings(trusting) == [("acme", "alice", False)]
    assert [call.key for call in stub.calls] == [HOUSE_KEY]


async def test_a_request_without_credentials_is_told_where_to_get_a_token(trusting: Served) -> None:
    async with trusting.http() as http:
        for headers in ({}, {"Authorization": ""}, {"Authorization": "Basic YTpi"}):
            rest = await http.get("/v1/models", headers=headers)
            assert refusal(rest) == Refused(401, "invalid_api_key", challenge(trusting))
            mcp = await http.post("/mcp", json=LIST_TOOLS, headers=JSON | headers)
            expected = challenge(trusting, path="/mcp")
            assert refusal(mcp) == Refused(401, "invalid_api_key", expected)


async def test_a_wrong_api_key_is_told_so(trusting: Served) -> None:
    expected = challenge(trusting, "invalid_token")
    answer = await get(trusting, secret_of(await trusting.key())[:-1])
    assert refusal(answer) == Refused(401, "invalid_api_key", expected)


async def test_an_authorization_that_cannot_be_read_is_a_400(
    trusting: Served, issuer: Issuer
) -> None:
    token = issuer.sign(issuer.claims(trusting.base_url))
    expected = Refused(400, "invalid_request", challenge(trusting, "invalid_request"))
    async with trusting.http() as http:
        for value in ("Bearer", "bearer", f"Bearer {token} {token}", 'Bearer "x"', "Bearer a,b"):
            answer = await http.get("/v1/models", headers={"Authorization": value})
            assert refusal(answer) == expected, value
        twice = [("Authorization", f"Bearer {token}")] * 2
        assert refusal(await http.get("/v1/models", headers=twice)) == expected
        lower = await http.get("/v1/models", headers={"Authorization": f"bEARER {token}"})
        assert lower.status_code == 200


async def test_a_token_in_the_address_or_the_body_is_not_accepted(
    trusting: Served, issuer: Issuer, stub: Stub
) -> None:
    token = issuer.sign(issuer.claims(trusting.base_url))
    async with trusting.http() as http:
        for path in ("/v1/models", "/mcp", GENERATIONS):
            for name in ("access_token", "token", "key"):
                answer = await http.post(path, params={name: token}, json=LOW | {name: token})
                assert answer.status_code == 401
                assert token not in str(answer.headers) + answer.text
    assert stub.calls == []


async def test_too_little_scope_is_a_403_that_names_the_scope(
    trusting: Served, issuer: Issuer, stub: Stub
) -> None:
    reader = issuer.sign(issuer.claims(trusting.base_url, scope="openid images:read"))
    needed = {
        GENERATIONS: "images:write",
        "/v1/usage": "usage:read",
        "/v1/credentials/openai": "credentials:write",
    }
    async with trusting.http(reader) as http:
        for path, scope in needed.items():
            method = "POST" if path == GENERATIONS else "GET"
            expected = challenge(trusting, "insufficient_scope", scope=scope)
            answer = await http.request(method, path, json=LOW)
            assert refusal(answer) == Refused(403, "insufficient_scope", expected)
        assert (await http.get("/v1/images")).status_code == 200
    assert stub.calls == []


async def test_a_tool_call_with_too_little_scope_is_a_403_before_it_is_read(
    trusting: Served, issuer: Issuer, stub: Stub
) -> None:
    reader = issuer.sign(issuer.claims(trusting.base_url, scope="images:read"))
    modern = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call"}
    async with trusting.http(reader) as http:
        named = JSON | modern | {"Mcp-Name": "generate_image"}
        answer = await http.post("/mcp", json=CALL, headers=named)
        expected = challenge(trusting, "insufficient_scope", scope="images:write", path="/mcp")
        assert refusal(answer) == Refused(403, "insufficient_scope", expected)
        other = await http.post("/mcp", json=CALL, headers=JSON | modern | {"Mcp-Name": "x"})
        assert other.status_code == 400
    assert stub.calls == []


async def test_before_the_headers_of_2026_the_tool_reports_its_missing_scope(
    trusting: Served, issuer: Issuer, stub: Stub
) -> None:
    reader = issuer.sign(issuer.claims(trusting.base_url, scope="images:read"))
    async with trusting.mcp(reader, mode="legacy") as client:
        result = await client.call_tool("generate_image", LOW)
    assert result.meta is not None
    assert result.meta["error"]["code"] == "insufficient_scope"
    assert stub.calls == []


async def test_without_a_scope_that_serves_it_the_mcp_endpoint_is_closed(
    trusting: Served, issuer: Issuer
) -> None:
    expected = challenge(trusting, "insufficient_scope", path="/mcp")
    for scope in ("", "openid profile", "credentials:write", None):
        claims = issuer.claims(trusting.base_url, scope=scope)
        answer = await list_tools(trusting, issuer.sign(claims))
        assert refusal(answer) == Refused(403, "insufficient_scope", expected)
    key = await trusting.key(scopes=["credentials:write"])
    assert refusal(await list_tools(trusting, secret_of(key))).status == 403
    claims = issuer.claims(trusting.base_url, scope="usage:read")
    assert (await list_tools(trusting, issuer.sign(claims))).status_code == 200


async def test_a_token_opens_no_route_of_operators(trusting: Served, issuer: Issuer) -> None:
    token = issuer.sign(issuer.claims(trusting.base_url, scope=f"{ALL_SCOPES} admin"))
    for path in ("/metrics", "/admin/v1/tenants"):
        answer = await get(trusting, token, path)
        assert (answer.status_code, challenge_of(answer)) == (403, {})


async def test_the_metadata_name_the_issuer_and_the_scopes(
    trusting: Served, issuer: Issuer
) -> None:
    async with trusting.http() as http:
        for tail in ("", "/mcp"):
            answer = await http.get(f"{METADATA}{tail}", headers={"Origin": "https://app.example"})
            assert answer.json() == {
                "resource": f"{trusting.base_url}{tail}",
                "authorization_servers": [issuer.url],
                "scopes_supported": ["images:read", "images:write", "usage:read"],
                "bearer_methods_supported": ["header"],
                "resource_name": "Image Gateway",
                "resource_documentation": f"{trusting.base_url}/docs",
            }
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["access-control-allow-origin"] == "*"
            asked = await http.request(
                "OPTIONS",
                f"{METADATA}{tail}",
                headers={
                    "Origin": "https://app.example",
                    "Access-Control-Request-Method": "GET",
                    "Access-Control-Request-Headers": "mcp-protocol-version",
                },
            )
            assert asked.status_code == 204
            assert asked.headers["access-control-allow-origin"] == "*"
            assert asked.headers["access-control-allow-headers"] == "*"
        assert (await http.get(f"{METADATA}/v1")).status_code == 401
        assert (await http.post(METADATA)).status_code == 405


async def test_without_a_provider_there_are_no_metadata_and_no_tokens(
    served: Served, issuer: Issuer
) -> None:
    token = issuer.sign(issuer.claims(served.base_url))
    answer = await get(served, token)
    assert refusal(answer) == Refused(401, "invalid_api_key", {"realm": "image-gateway"})
    key = secret_of(await served.key(scopes=[]))
    assert challenge_of(await get(served, key)) == {}
    for tail in ("", "/mcp"):
        answer = await get(served, key, f"{METADATA}{tail}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    assert issuer.asked == {}


async def test_scopes_may_have_a_prefix_of_the_providers_own(
    settings: Settings, issuer: Issuer
) -> None:
    prefix = "api://image-gateway/"
    usual = f"{prefix}images:read {prefix}images:write {prefix}usage:read"
    async with trusting_gateway(settings, issuer, oidc_scope_prefix=prefix) as served:
        async with served.http() as http:
            assert challenge_of(await http.get("/v1/models"))["scope"] == usual
            metadata = (await http.get(METADATA)).json()
        assert metadata["scopes_supported"] == usual.split()
        for name in ("scope", "scp"):
            for scope in ("images:read", f"{prefix}images:read"):
                claims = issuer.claims(served.base_url, scope=None) | {name: scope}
                token = issuer.sign(claims)
                assert (await get(served, token)).status_code == 200
                refused = refusal(await make_image(served, token)).challenge
                assert refused["scope"] == f"{prefix}images:write"
