"""The MCP endpoint over plain HTTP: keys, hosts, limits, methods and invalid requests."""

from collections.abc import AsyncIterator
from http import HTTPStatus

from gateway.config import Settings
from gateway.vault import key_format
from tests.harness import Served, error_of, served_gateway
from tests.stub_openai import Stub

JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
MODERN = {"MCP-Protocol-Version": "2026-07-28"}
LIST_TOOLS = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


async def test_a_request_without_a_valid_key_is_refused_with_a_challenge(served: Served) -> None:
    unknown = key_format.new_key("test").reveal()
    for key in (None, "not-a-key", unknown):
        async with served.http(key) as http:
            for method in ("POST", "GET", "DELETE"):
                answer = await http.request(method, "/mcp", headers=JSON)
                assert answer.status_code == HTTPStatus.UNAUTHORIZED
                assert answer.headers["www-authenticate"].startswith("Bearer ")
                assert error_of(answer)["code"] == "invalid_api_key"


async def test_a_key_in_the_address_is_not_accepted(served: Served) -> None:
    secret = (await served.key()).secret.reveal()
    async with served.http() as http:
        for name in ("key", "api_key", "access_token"):
            answer = await http.post("/mcp", params={name: secret}, json=LIST_TOOLS, headers=JSON)
            assert answer.status_code == HTTPStatus.UNAUTHORIZED


async def test_a_foreign_host_or_origin_is_refused(served: Served) -> None:
    async with served.http(await served.key()) as http:
        foreign = [{"Host": "evil.example"}, {"Origin": "http://evil.example"}]
        statuses = [
            (await http.post("/mcp", json=LIST_TOOLS, headers={**JSON, **header})).status_code
            for header in foreign
        ]
        own = await http.post(
            "/mcp", json=LIST_TOOLS, headers={**JSON, "Origin": "http://localhost:3000"}
        )
    assert statuses == [HTTPStatus.MISDIRECTED_REQUEST, HTTPStatus.FORBIDDEN]
    assert own.status_code == HTTPStatus.OK


async def test_the_public_host_and_those_the_operator_adds_are_accepted(
    settings: Settings,
) -> None:
    change = {"public_url": "https://images.example.com", "allowed_hosts": "internal.example"}
    hosts = ("images.example.com", "internal.example:8000", "other.example")
    async with served_gateway(settings.model_copy(update=change)) as served:
        key = await served.key()
        async with served.http(key) as http:
            answers = [
                await http.post("/mcp", json=LIST_TOOLS, headers={**JSON, "Host": host})
                for host in hosts
            ]
    statuses = dict(zip(hosts, (answer.status_code for answer in answers), strict=True))
    assert statuses == {
        "images.example.com": HTTPStatus.OK,
        "internal.example:8000": HTTPStatus.OK,
        "other.example": HTTPStatus.MISDIRECTED_REQUEST,
    }


async def test_an_address_of_ipv6_and_names_in_capitals_are_accepted(settings: Settings) -> None:
    change = {
        "public_url": "https://[2001:db8::5]:8000",
        "allowed_hosts": "Internal.Example,2001:db8::6",
    }
    async with (
        served_gateway(settings.model_copy(update=change)) as served,
        served.http(await served.key()) as http,
    ):
        for host in (
            "[2001:db8::5]:8000",
            "internal.example",
            "Internal.Example:8000",
            "[2001:db8::6]",
        ):
            headers = {**JSON, "Host": host}
            answer = await http.post("/mcp", json=LIST_TOOLS, headers=headers)
            assert answer.status_code == HTTPStatus.OK, host


async def chunks() -> AsyncIterator[bytes]:
    """21 kB without a declared length."""
    for _ in range(21):
        yield b" " * 1_000


async def test_a_body_above_the_limit_is_refused_however_it_is_sent(
    settings: Settings, stub: Stub
) -> None:
    change = {"max_mcp_body_bytes": 20_000}
    async with served_gateway(settings.model_copy(update=change)) as served:
        async with served.http(await served.key()) as http:
            for headers in (JSON, {**JSON, **MODERN}):
                whole = await http.post("/mcp", content=b" " * 20_001, headers=headers)
                assert whole.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                parts = await http.post("/mcp", content=chunks(), headers=headers)
                assert parts.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        assert stub.calls == []


async def test_without_sessions_only_post_is_allowed(served: Served) -> None:
    async with served.http(await served.key()) as http:
        for method in ("GET", "PUT", "PATCH", "DELETE"):
            for headers in (JSON, {**JSON, **MODERN}):
                answer = await http.request(method, "/mcp", headers=headers)
                assert answer.status_code == HTTPStatus.METHOD_NOT_ALLOWED
                assert answer.headers["allow"] == "POST"


async def test_a_body_that_is_no_json_rpc_is_a_400(served: Served) -> None:
    bodies = [b"", b"null", b"[]", b"{}", b"\xff", b"{", b'{"jsonrpc":"2.0","id":1}', b"[" * 9_000]
    async with served.http(await served.key()) as http:
        for body in bodies:
            for headers in (JSON, {**JSON, **MODERN, "Mcp-Method": "tools/list"}):
                answer = await http.post("/mcp", content=body, headers=headers)
                assert answer.status_code == HTTPStatus.BAD_REQUEST, (body, headers)
                assert answer.headers["x-request-id"].startswith("req_")
