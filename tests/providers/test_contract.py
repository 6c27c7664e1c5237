"""Every provider keeps one contract: what a call may have cost, usage, bounds, cancellation."""

import asyncio
import io
import re
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from gateway.catalog.loading import load_catalog
from gateway.catalog.vendors import VENDORS
from gateway.config.providers import ProviderSettings
from gateway.domain import ImageRequest, InputImage, Operation, SecretText
from gateway.net.downloads import Downloads
from gateway.provider_answers import Outcome, Usage
from gateway.providers.base import (
    CredentialState,
    ProviderFailure,
    Reason,
    VendorProvider,
)
from gateway.providers.opening import HOST_OPENERS, OPENERS, ProviderOptions
from gateway.request_record import RequestRecord, set_current
from gateway.tracing import Trace
from tests.image_helpers import png
from tests.models_files import HOSTS, host_model
from tests.providers.contract import (
    CALL_ID,
    DIALECTS,
    FAILURES,
    HANG,
    IMAGE,
    RESET,
    SECRET,
    VENDORS_OF_CATALOGUE,
    Dialect,
    Failure,
    answer_bytes,
)

MODELS = {
    **load_catalog().models,
    "diffuser": host_model("diffuser", "kserve"),
    "compatible": host_model("compatible", "openai-compatible"),
}
MAX_ANSWER_BYTES = 2_000_000


class Upstream:
    """A raw server: it reads each request whole, sends `content`, and goes on as told."""

    def __init__(self) -> None:
        self.content = b""
        self.then = ""
        self.requests: list[bytes] = []
        self.port = 0
        self.arrived = asyncio.Event()
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                self.requests.append(head + await reader.readexactly(length))
                self.arrived.set()
                writer.write(self.content)
                await writer.drain()
                if self.then == HANG:
                    await reader.read()
                    self.left.set()
                if self.then == RESET:
                    writer.transport.abort()
                if self.then:
                    break
        writer.close()


@asynccontextmanager
async def opened(
    dialect: Dialect, *, scheme: str = "http", port: int | None = None
) -> AsyncIterator[tuple[VendorProvider, Upstream]]:
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=2**24)
    upstream.port = port or server.sockets[0].getsockname()[1]
    options = ProviderOptions(
        base_url=f"{scheme}://127.0.0.1:{upstream.port}{dialect.path}",
        proxy=None,
        connect_timeout_seconds=2,
        read_timeout_seconds=0.5,
        max_connections=10,
        max_answer_bytes=MAX_ANSWER_BYTES,
        downloads=lambda: Downloads(max_bytes=1, total_seconds=1, connect_seconds=1),
    )
    provider: VendorProvider
    if dialect.kind is None:
        provider = OPENERS[dialect.provider](options)
    else:
        host = replace(HOSTS[dialect.kind], base_url=options.base_url)
        provider = HOST_OPENERS[dialect.kind](host, options)
    try:
        yield provider, upstream
    finally:
        await provider.close()
        server.close()


def request_of(dialect: Dialect, operation: Operation = Operation.GENERATION) -> ImageRequest:
    request = ImageRequest(
        model=MODELS[dialect.model],
        requested_model=dialect.model,
        prompt="a red circle",
        size="1024x1024",
        operation=operation,
    )
    if operation is Operation.GENERATION:
        return request
    file = io.BytesIO(png(8, 8))
    image = InputImage(file, "image/png", 8, 8, 100, has_alpha=False, is_transparent=False)
    return replace(request, inputs=(image,))


BY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda one: one.provider)
BOTH = pytest.mark.parametrize("operation", [Operation.GENERATION, Operation.EDIT])


def test_every_vendor_has_its_row() -> None:
    named = set(VENDORS_OF_CATALOGUE)
    assert named == set(OPENERS) == set(VENDORS)
    assert {dialect.kind for dialect in DIALECTS} == {None, *HOST_OPENERS}
    assert named == set(ProviderSettings().provider_addresses)
    assert named <= {model.provider for model in MODELS.values()}


@BY_DIALECT
@BOTH
@pytest.mark.parametrize("failure", FAILURES, ids=lambda one: one.name)
async def test_a_failure_says_what_the_call_may_have_cost(
    dialect: Dialect, operation: Operation, failure: Failure
) -> None:
    if failure.name in dialect.lacks:
        return  # a server without such an answer
    scheme = "https" if "TLS" in failure.name else "http"
    port = 9 if failure.name == "connection refused" else None
    async with opened(dialect, scheme=scheme, port=port) as (provider, upstream):
        if failure.status:
            upstream.content = answer_bytes(dialect, failure.status, failure.error, cut=failure.cut)
        upstream.then = failure.then
        with pytest.raises(ProviderFailure) as caught:
            await provider.generate(request_of(dialect, operation), SecretText(SECRET))
    found = caught.value
    assert (found.outcome, found.reason) == (failure.outcome, failure.reason)
    assert found.retry_after_seconds == failure.retry_after_seconds
    assert found.usage is None
    assert (None if found.reply is None else found.reply.status) == (failure.status or None)
    if found.reply is not None:
        is_named = not dialect.names_calls_in_body or failure.error in {"other", "empty"}
        assert found.reply.request_id == (CALL_ID if is_named else None)
    is_sent = failure.outcome is not Outcome.NOT_SENT
    assert len(upstream.requests) == is_sent
    assert SECRET not in "".join(traceback.format_exception(found))


@BY_DIALECT
@BOTH
@pytest.mark.parametrize("compressed", [False, True])
async def test_usage_is_mapped_and_the_image_is_the_vendors_own(
    dialect: Dialect, operation: Operation, *, compressed: bool
) -> None:
    async with opened(dialect) as (provider, upstream):
        upstream.content = answer_bytes(dialect, 200, "good", compressed=compressed)
        for _ in range(2):
            answer = await provider.generate(request_of(dialect, operation), SecretText(SECRET))
    assert answer.images == (IMAGE,)
    if dialect.kind is None:
        assert answer.usage == Usage(15, 1120, 240, 1120)
    else:
        assert (answer.usage, answer.size, answer.output_format) == (None, "8x8", "png")
        assert 0 < (answer.microseconds or 0) < 500_000
    assert answer.reply is not None
    assert (answer.reply.status, answer.reply.request_id) == (200, CALL_ID)
    assert not any(b"cookie" in request.lower() for request in upstream.requests)
    assert all(SECRET.encode() in request for request in upstream.requests)


@BY_DIALECT
async def test_a_refused_prompt_is_moderation_and_costs_what_the_vendor_charges(
    dialect: Dialect,
) -> None:
    if dialect.refusal is None:
        return  # a server without a filter of prompts
    status, outcome = dialect.refusal
    async with opened(dialect) as (provider, upstream):
        upstream.content = answer_bytes(dialect, status, "refusal")
        with pytest.raises(ProviderFailure) as caught:
            await provider.generate(request_of(dialect), SecretText(SECRET))
    found = caught.value
    assert (found.outcome, found.reason) == (outcome, Reason.MODERATION)
    assert found.code == "moderation_blocked"
    assert found.reply is not None
    assert (found.reply.status, found.reply.request_id) == (status, CALL_ID)
    assert (found.usage is not None) == (outcome is Outcome.REFUSED_CHARGED)


@BY_DIALECT
@BOTH
async def test_the_trace_of_a_request_is_passed_on_as_a_new_span(
    dialect: Dialect, operation: Operation
) -> None:
    record = RequestRecord(
        trace=Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "01")
    )
    async with opened(dialect) as (provider, upstream):
        upstream.content = answer_bytes(dialect, 200, "good")
        await provider.generate(request_of(dialect, operation), SecretText(SECRET))
        set_current(record)
        for _ in range(2):
            await provider.generate(request_of(dialect, operation), SecretText(SECRET))
    form = rb"(?i)\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-([0-9a-f]{16})-01\r\n"
    spans = [re.findall(form, request) for request in upstream.requests]
    assert [len(one) for one in spans] == [0, 1, 1]
    assert spans[1] != spans[2]
    assert b"traceparent" not in upstream.requests[0].lower()


@BY_DIALECT
async def test_a_cancelled_call_gives_its_connection_up(dialect: Dialect) -> None:
    async with opened(dialect) as (provider, upstream):
        upstream.then = HANG
        call = asyncio.create_task(provider.generate(request_of(dialect), SecretText(SECRET)))
        await upstream.arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await upstream.left.wait()


@BY_DIALECT
@pytest.mark.parametrize(
    ("status", "name", "state"),
    [
        (200, "good", CredentialState.VALID),
        (429, "limited", CredentialState.VALID),
        (401, "credential", CredentialState.INVALID),
        (500, "invalid", CredentialState.UNREACHABLE),
    ],
)
async def test_a_credential_is_tested_without_a_paid_call(
    dialect: Dialect, status: int, name: str, state: CredentialState
) -> None:
    async with opened(dialect) as (provider, upstream):
        upstream.content = answer_bytes(dialect, status, name)
        assert await provider.test_credential(SecretText(SECRET)) is state
    [request] = upstream.requests
    assert request.startswith(b"GET ")
