"""Traces: spans and parents over REST and MCP, their attributes, and nothing private in them."""

import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.config import Settings
from tests.harness import GPT2, Served, process_environment, served_gateway
from tests.image_helpers import png
from tests.limits_helpers import limit, running_valkey, with_redis
from tests.otlp_receiver import Receiver, Span, running_receiver
from tests.stub_openai import Fault, Stub

PATH = "/v1/images/generations"
CALL = f"generate_content {GPT2}"
STEPS = ["admission", "reserve", CALL, "settle", "store"]
SERVER, CLIENT, INTERNAL = 2, 3, 1
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """An OTLP receiver on loopback."""
    async with running_receiver() as running:
        yield running


@pytest.fixture
def traced(settings: Settings, receiver: Receiver) -> Settings:
    """Settings that send traces to it."""
    return settings.model_copy(update={"otel_exporter_otlp_endpoint": f"{receiver.url}/"})


@dataclass(frozen=True)
class Canaries:
    """Texts that must not leave the process in a trace."""

    prompt: str = f"prompt-canary-{secrets.token_hex(8)}"
    user: str = f"user-canary-{secrets.token_hex(8)}"
    query: str = f"query-canary-{secrets.token_hex(8)}"


async def test_a_generation_over_rest_has_a_span_for_each_step_below_the_clients_own(
    traced: Settings, receiver: Receiver, stub: Stub
) -> None:
    body = {"prompt": "a circle", "model": GPT2, "n": 2}
    async with served_gateway(traced) as served, served.http(await served.key()) as http:
        answer = await http.post(PATH, json=body, headers=TRACEPARENT)
        assert answer.status_code == 200
    server = receiver.named(f"POST {PATH}")
    assert (server.trace_id, server.parent_id, server.kind) == (TRACE, SPAN, SERVER)
    steps = [name for name in receiver.children(server) if not name.startswith("postgresql")]
    assert sorted(steps) == sorted(STEPS)
    assert "postgresql reserve" in receiver.children(receiver.named("reserve"))
    assert {span.trace_id for span in receiver.spans} == {TRACE}
    call = receiver.named(CALL)
    usage = answer.json()["usage"]
    assert call.kind == CLIENT
    assert call.attributes == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": GPT2,
        "gen_ai.request.choice.count": 2,
        "gen_ai.output.type": "image",
        "gen_ai.usage.input_tokens": usage["input_tokens"],
        "gen_ai.usage.output_tokens": usage["output_tokens"],
        "http.response.status_code": 200,
    }
    assert server.attributes | {"network.protocol.version": "1.1"} == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": PATH,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "gateway.request.id": answer.headers["x-request-id"],
    }
    assert receiver.services[0]["service.name"] == "image-gateway"
    # The provider continues the trace below the call.
    assert stub.calls[0].stainless["traceparent"] == f"00-{TRACE}-{call.span_id}-01"


async def test_a_tool_call_over_mcp_has_the_same_steps(
    traced: Settings, receiver: Receiver, stub: Stub
) -> None:
    async with served_gateway(traced) as served, served.mcp(await served.key()) as client:
        result = await client.call_tool("generate_image", {"prompt": "a circle", "model": GPT2})
        assert not result.is_error
    call = receiver.named(CALL)
    server = by_id(receiver, call.parent_id)
    assert (server.kind, server.name) == (SERVER, "POST /mcp")
    assert set(STEPS) <= set(receiver.children(server))
    assert server.parent_id == ""
    assert stub.calls[0].stainless["traceparent"] == f"00-{server.trace_id}-{call.span_id}-01"


def by_id(receiver: Receiver, span_id: str) -> Span:
    """The span with an id."""
    [found] = [span for span in receiver.spans if span.span_id == span_id]
    return found


async def test_failures_are_marked_and_no_span_holds_a_prompt_a_key_or_a_user(
    traced: Settings, receiver: Receiver, stub: Stub
) -> None:
    canaries = Canaries()
    async with served_gateway(traced) as served:
        key = await served.key(user=canaries.user)
        body = {"prompt": canaries.prompt, "model": GPT2, "user": canaries.user}
        async with served.http(key) as http:
            await http.post(PATH, json=body | {"response_format": "url"})
            stub.faults.add(Fault("status", status=500))
            assert (await http.post(PATH, json=body)).status_code >= 500
            await http.post(PATH, json=body | {"size": canaries.prompt})
            files = {"image": ("a.png", png(), "image/png")}
            await http.post("/v1/images/edits", data=body, files=files)
            await http.get(f"/v1/users/{canaries.user}", params={"q": canaries.query})
            await http.get(f"/v1/images/{canaries.query}")
            await http.request(canaries.query.upper(), "/v1/models")
        async with served.http(f"igw_live_{canaries.query}") as other:
            await other.get("/v1/models", params={"key": canaries.query})
        async with served.mcp(key) as client:
            await client.call_tool("generate_image", {"prompt": canaries.prompt, "model": GPT2})
            await client.call_tool("generate_image", {"prompt": canaries.prompt, "n": "many"})
        secret = key.secret.reveal()
    sent = b"".join(receiver.bodies)
    private = [
        *(canaries.prompt, canaries.user, canaries.query, canaries.query.upper()),
        *(secret, str(key.id), str(served.tenant_id), stub.calls[0].key),
    ]
    assert [text for text in private if text.encode() in sent] == []
    assert [span.name for span in receiver.spans if span.events] == []
    failed = [span for span in receiver.spans if span.name == CALL and span.is_failed]
    assert [span.attributes["error.type"] for span in failed] == ["ambiguous"]
    assert failed[0].attributes["http.response.status_code"] == 500
    codes = {span.attributes.get("gateway.error.code") for span in receiver.spans}
    assert {"outcome_unknown", "invalid_api_key"} <= codes


async def test_statements_and_redis_are_steps_without_values(
    traced: Settings, receiver: Receiver
) -> None:
    with running_valkey() as valkey:
        async with served_gateway(with_redis(traced, valkey)) as served:
            await limit(served, "requests", 100)
            async with served.http(await served.key()) as http:
                assert (await http.post(PATH, json={"prompt": "a", "model": GPT2})).is_success
                assert (await http.get("/v1/budgets")).is_success
    redis = receiver.named("redis take")
    assert redis.attributes == {"db.system.name": "redis"}
    assert by_id(receiver, redis.parent_id).name == "reserve"
    budgets = receiver.named("GET /v1/budgets")
    assert "postgresql SELECT" in receiver.children(budgets)
    known = {"db.system.name", "db.operation.name"}
    for span in receiver.spans:
        if span.name.startswith("postgresql "):
            assert set(span.attributes) <= known
            assert span.kind == CLIENT


async def test_requests_that_are_not_sampled_and_probes_have_no_spans(
    traced: Settings, receiver: Receiver, stub: Stub
) -> None:
    async with served_gateway(traced) as served:
        unsampled = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
        async with served.http(await served.key()) as http:
            body = {"prompt": "a", "model": GPT2}
            assert (await http.post(PATH, json=body, headers=unsampled)).is_success
        async with served.http() as probe:
            await probe.get("/health")
            await probe.get("/ready")
    assert receiver.spans == []
    assert stub.calls[0].stainless["traceparent"].startswith(f"00-{TRACE}-")


async def test_metrics_have_the_traces_id_as_an_exemplar(
    traced: Settings, receiver: Receiver
) -> None:
    async with served_gateway(traced) as served:
        admin = served.gateway.core.new_admin_key
        assert admin is not None
        async with served.http(await served.key()) as http:
            await http.get("/v1/budgets", headers=TRACEPARENT)
        accepted = {"accept": "application/openmetrics-text; version=1.0.0"}
        async with served.http(admin.reveal()) as http:
            page = await http.get("/metrics", headers=accepted)
    assert page.headers["content-type"].startswith("application/openmetrics-text")
    assert f'# {{trace_id="{TRACE}"}}' in page.text


async def test_without_traces_nothing_is_passed_on(served: Served, stub: Stub) -> None:
    async with served.http(await served.key()) as http:
        assert (await http.post(PATH, json={"prompt": "a", "model": GPT2})).is_success
    assert "traceparent" not in stub.calls[0].stainless


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "without_sdk.py").write_text(
        "import sys\nsys.modules['opentelemetry.sdk'] = None\n"
        "from gateway.cli import main\nsys.argv = ['gateway', 'serve', '--port', '9']\nmain()\n"
    )
    environment = process_environment(settings) | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "GATEWAY_PORT": "9",
    }
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "without_sdk.py")],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "pip install 'image-gateway[otel]'" in ended.stderr
