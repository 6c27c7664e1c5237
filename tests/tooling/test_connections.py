"""Bounds on connections: their number, and the bytes and time before a request is understood."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]  # comes with the embedded Postgres
import pytest
from prometheus_client import REGISTRY

from gateway.config import Settings
from gateway.web.connections.bounds import ConnectionBounds, connections_within
from tests.harness import Served, error_of
from tests.serving import serving

BOUNDS = ConnectionBounds.of(Settings(_env_file=None))  # type: ignore[call-arg]
HEAD = b"GET / HTTP/1.1\r\nhost: gateway\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\n\r\n"
NEVER_SECONDS = 3600.0


@dataclass
class App:
    """Answers every request, and remembers what it was asked."""

    scopes: list[Any] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    reads_bodies: bool = True
    answer: bytes = b"ok"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        body, more = b"", self.reads_bodies
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)
        await self.may_answer.wait()
        length = str(len(self.answer)).encode()
        start = {"status": 200, "headers": [(b"content-length", length)]}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": self.answer})


class LateBody(App):
    """Sends its headers at once, and the body when it may answer."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = {"status": 200, "headers": [(b"content-length", b"2")]}
        await send({"type": "http.response.start", **start})
        await self.may_answer.wait()
        await send({"type": "http.response.body", "body": b"ok"})


@dataclass
class Client:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer; status 0: closed without one."""
        async with asyncio.timeout(30):
            line = await self.reader.readline()
            if not line:
                return 0, {}, b""
            headers = {}
            while (header := await self.reader.readline()) not in {b"\r\n", b""}:
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(line.split()[1]), headers, body

    async def is_closed(self) -> bool:
        async with asyncio.timeout(30):
            return await self.reader.read() == b""


class Connecting:
    """Opens connections to a server, closed at the end."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self._address = urlsplit(url)
        self._stack = stack

    async def __call__(self) -> Client:
        reader, writer = await asyncio.open_connection(
            self._address.hostname, self._address.port, limit=2**20
        )
        self._stack.callback(writer.close)
        return Client(reader, writer)


@asynccontextmanager
async def bounded(app: App, **changes: Any) -> AsyncIterator[Connecting]:
    """Serve an application with these bounds changed."""
    app.may_answer.set()
    async with (
        serving(app, bounds=replace(BOUNDS, **changes)) as url,
        AsyncExitStack() as stack,
    ):
        yield Connecting(url, stack)


def refused(reason: str) -> float:
    """The number of connections that were ended for this reason, by the metric."""
    value = REGISTRY.get_sample_value("gateway_connections_refused_total", {"reason": reason})
    return value or 0.0


def open_connections() -> float:
    """The number of open connections, by the metric."""
    return REGISTRY.get_sample_value("gateway_connections_open") or 0.0


async def until(condition: Callable[[], bool]) -> None:
    """Give the server its turns until something holds."""
    while not condition():  # noqa: ASYNC110 - the server sends no event
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("request_bytes", "status", "code", "reason"),
    [
        (HEAD + b"x: " + b"v" * 2000 + b"\r\n" * 2, 431, "headers_too_large", "header_bytes"),
        (HEAD + b"x: v\r\n" * 20 + b"\r\n", 431, "headers_too_large", "headers"),
        (b"GET /" + b"q" * 500 + b" HTTP/1.1\r\n", 414, "url_too_long", "url"),
        (CHUNKED + b"0\r\n" + b"x: v\r\n" * 20_000, 431, "headers_too_large", "framing"),
        (b"\x16\x03\x01 hello", 400, "invalid_http", "malformed"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "invalid_host", "host"),
        (HEAD + b"host: other\r\n\r\n", 400, "invalid_host", "host"),
    ],
)
async def test_a_request_beyond_a_bound_is_refused_before_the_application(
    request_bytes: bytes, status: int, code: str, reason: str
) -> None:
    app, before = App(), refused(reason)
    async with bounded(app, header_bytes=1000, headers=16, url_bytes=400) as connect:
        client = await connect()
        await client.send(request_bytes)
        answered, headers, body = await client.answer()
        assert await client.is_closed()
    assert (answered, json.loads(body)["error"]["code"]) == (status, code)
    assert (headers["connection"], headers["content-type"]) == ("close", "application/json")
    assert refused(reason) == before + 1
    assert app.bodies == []


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (HEAD, b"x-header: value\r\n" * 4096),
        (HEAD + b"x: ", b"v" * 65_536),
        (b"GET /", b"q" * 65_536),
        (b"GET / HTTP/1.1\r\n", b"h" * 65_536),
        (CHUNKED + b"0\r\n", b"x-trailer: value\r\n" * 4096),
        (CHUNKED + b"0\r\nx: ", b"v" * 65_536),
        (CHUNKED + b"1;x=", b"e" * 65_536),
        (CHUNKED, b"1\r\nx\r\n" * 10_000),
    ],
)
async def test_an_endless_sender_costs_less_than_a_megabyte(first: bytes, piece: bytes) -> None:
    async with bounded(App()) as connect:
        clients = [await connect() for _ in range(4)]
        before = psutil.Process().memory_info().rss
        for client in clients:
            for part in (first, *[piece] * 32):
                client.writer.write(part)
        answers = [await client.answer() for client in clients]
        grown = psutil.Process().memory_info().rss - before
    assert {status for status, _, _ in answers} <= {414, 431}
    assert grown < len(clients) * (2**20 + 33 * len(piece))  # what is not sent yet is here too


@pytest.mark.parametrize(
    "host", [b"user@gateway", b"a b", b"a/b", b"[::1", b"a:port", b"", b"a,b", b"\xff", b"a?b"]
)
async def test_a_malformed_host_is_refused(host: bytes) -> None:
    async with bounded(App()) as connect:
        client = await connect()
        await client.send(b"GET / HTTP/1.1\r\nhost: ", host, b"\r\n\r\n")
        status, _, body = await client.answer()
    assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_host")


@pytest.mark.parametrize(
    "host",
    [b"gateway", b"a_b-c.example:8000", b"[::1]:1", b"127.0.0.1", b"EXAMPLE.", b"xn--4gbrim"],
)
async def test_usual_hosts_are_served(host: bytes) -> None:
    async with bounded(App()) as connect:
        client = await connect()
        await client.send(b"GET / HTTP/1.1\r\nhost: ", host, b"\r\n\r\n")
        assert (await client.answer())[0] == 200
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await client.answer())[0] == 200


async def test_a_refusal_of_the_gateway_is_unchanged_by_the_bounds(served: Served) -> None:
    async with served.http() as http:
        long = await http.get("/health", headers={"X-Long": "v" * 70_000})
        odd = await http.get("/v1/models", headers={"Host": "key@gateway"})
    assert (long.status_code, error_of(long)["code"]) == (431, "headers_too_large")
    assert (odd.status_code, error_of(odd)["code"]) == (400, "invalid_host")


async def test_headers_have_their_time_from_the_first_byte_on() -> None:
    app, before = App(), refused("slow")
    async with bounded(app, header_seconds=0.2) as connect:
        client = await connect()
        await client.send(HEAD)
        status, _, body = await client.answer()
        again = await connect()
        await again.send(HEAD, b"\r\n")
        assert (await again.answer())[0] == 200
        await again.send(HEAD)
        second, _, _ = await again.answer()
    assert (status, json.loads(body)["error"]["code"]) == (408, "request_too_slow")
    assert second == 408
    assert refused("slow") == before + 2


async def test_a_silent_connection_is_closed() -> None:
    before = refused("silent")
    async with bounded(App(), header_seconds=0.2) as connect:
        client, drips = await connect(), await connect()
        await drips.send(b"\r\n")  # what may stand before a request is none
        assert await client.is_closed()
        assert await drips.is_closed()
    assert refused("silent") == before + 2


async def test_a_served_connection_may_be_idle_for_longer() -> None:
    async with bounded(App(), header_seconds=0.2) as connect:
        kept, silent = await connect(), await connect()
        await kept.send(HEAD, b"\r\n")
        assert (await kept.answer())[0] == 200
        assert await silent.is_closed()
        await kept.send(HEAD, b"\r\n")
        assert (await kept.answer())[0] == 200


async def test_an_answer_that_takes_long_is_not_cut_off_by_the_next_request() -> None:
    app = App()
    async with bounded(app, header_seconds=0.2) as connect:
        client = await connect()
        app.may_answer.clear()
        await client.send(HEAD, b"\r\n", HEAD)
        silent = await connect()
        assert await silent.is_closed()  # by then the second request is late too
        app.may_answer.set()
        assert (await client.answer())[0] == 200
        assert (await client.answer())[0] == 0


async def test_a_body_that_continues_after_its_answer_ends_its_connection() -> None:
    before = refused("body")
    async with bounded(App(reads_bodies=False), header_seconds=0.2) as connect:
        client = await connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nbegin")
        assert (await client.answer())[0] == 200
        assert await client.is_closed()
    assert refused("body") == before + 1


async def test_a_body_that_comes_after_its_answer_keeps_its_connection() -> None:
    app = App(reads_bodies=False)
    async with bounded(app) as connect:
        client = await connect()
        await client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n")
        assert (await client.answer())[0] == 200
        await client.send(b"b" * 200_000, HEAD, b"\r\n")
        assert (await client.answer())[0] == 200


async def test_headers_do_not_wait_for_a_body_that_is_not_ready() -> None:
    app = LateBody()
    async with bounded(app) as connect:
        client = await connect()
        app.may_answer.clear()
        await client.send(HEAD, b"\r\n")
        async with asyncio.timeout(30):
            head = await client.reader.readuntil(b"\r\n\r\n")
            app.may_answer.set()
            body = await client.reader.readexactly(2)
    assert (head[:12], body) == (b"HTTP/1.1 200", b"ok")


async def test_headers_without_a_body_come_before_the_next_answer() -> None:
    async with bounded(App()) as connect:
        client = await connect()
        await client.send((HEAD.replace(b"GET", b"HEAD") + b"\r\n") * 2 + HEAD + b"\r\n")
        async with asyncio.timeout(30):
            for _ in range(2):
                head = await client.reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
        assert (await client.answer())[0] == 200


async def test_trailers_are_no_headers() -> None:
    app = App()
    async with bounded(app) as connect:
        client = await connect()
        await client.send(CHUNKED, b"2\r\nab\r\n0\r\nx-gateway-user: alice\r\n\r\n")
        assert (await client.answer())[0] == 200
    assert app.bodies == [b"ab"]
    assert [name for name, _ in app.scopes[0]["headers"]] == [b"host", b"transfer-encoding"]


async def test_usual_chunks_of_any_number_are_read() -> None:
    app = App()
    async with bounded(app) as connect:
        client = await connect()
        await client.send(CHUNKED, b"40\r\n%s\r\n" % (b"c" * 64) * 20_000, b"0\r\n\r\n")
        assert (await client.answer())[0] == 200
    assert len(app.bodies[0]) == 64 * 20_000


async def test_a_body_that_begins_right_behind_another_one_is_read() -> None:
    app = App()
    async with bounded(app) as connect:
        client = await connect()
        post = b"POST / HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n\r\n%s"
        await client.send(b"".join(post % (size, b"b" * size) for size in (300_000, 20_000)))
        assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
    assert [len(body) for body in app.bodies] == [300_000, 20_000]


async def test_pipelined_requests_are_answered_up_to_the_bound() -> None:
    app, before = App(), refused("pipelined")
    async with bounded(app, pipelined=4) as connect:
        client = await connect()
        await client.send((HEAD + b"\r\n") * 1000)
        answered = 0
        while (await client.answer())[0] == 200:
            answered += 1
    assert answered == len(app.scopes) == 5  # one is answered while four wait
    assert refused("pipelined") == before + 1


async def test_beyond_the_bound_connections_are_refused_until_one_ends() -> None:
    app, before = App(), refused("connections")
    async with bounded(app, connections=2) as connect:
        app.may_answer.clear()
        busy = [await connect(), await connect()]
        for client in busy:
            await client.send(HEAD, b"\r\n")
        await until(lambda: len(app.scopes) == len(busy))
        status, headers, body = await (await connect()).answer()
        app.may_answer.set()
        assert [(await client.answer())[0] for client in busy] == [200, 200]
        still_open = open_connections()
        busy[0].writer.close()
        await until(lambda: open_connections() == still_open - 1)
        served = await connect()
        await served.send(HEAD, b"\r\n")
        assert (await served.answer())[0] == 200
    assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
    assert (headers["connection"], headers["retry-after"]) == ("close", "1")
    assert refused("connections") == before + 1


async def test_idle_connections_give_way_to_new_ones() -> None:
    before = refused("idle")
    async with bounded(App(), connections=4, header_seconds=NEVER_SECONDS) as connect:
        idle = [await connect() for _ in range(4)]
        longest = asyncio.create_task(idle[0].is_closed())
        while not longest.done():
            client = await connect()
            await client.send(HEAD, b"\r\n")
            await asyncio.wait([longest], timeout=0.05)
        assert (await client.answer())[0] == 200
        await idle[3].send(HEAD, b"\r\n")
        assert (await idle[3].answer())[0] == 200
    assert refused("idle") >= before + 1


async def test_idle_connections_are_bounded_themselves() -> None:
    async with bounded(App(), idle=2, header_seconds=NEVER_SECONDS) as connect:
        first = await connect()
        reading = asyncio.create_task(first.is_closed())
        while not reading.done():
            await connect()
            await asyncio.wait([reading], timeout=0.01)
        assert reading.result()


async def test_one_address_has_its_share_of_the_connections_and_proxies_have_all() -> None:
    before = refused("address")
    async with bounded(App(), per_address=2, proxies=()) as connect:
        for _ in range(2):
            client = await connect()
            await client.send(HEAD, b"\r\n")
            assert (await client.answer())[0] == 200
        status, _, body = await (await connect()).answer()
    assert (status, json.loads(body)["error"]["code"]) == (503, "overloaded")
    assert refused("address") == before + 1
    async with bounded(App(), per_address=2) as connect:
        for _ in range(5):
            client = await connect()
            await client.send(HEAD, b"\r\n")
            assert (await client.answer())[0] == 200


def test_addresses_of_one_ipv6_site_count_as_one() -> None:
    counted = replace(BOUNDS, proxies=()).counted_address
    assert counted("2001:db8::1") == counted("2001:db8::ffff:1") == "2001:db8::/64"
    assert counted("::ffff:192.0.2.1") == counted("192.0.2.1") == "192.0.2.1"
    assert BOUNDS.counted_address("127.0.0.1") is None
    assert BOUNDS.counted_address(None) is None


async def test_a_client_that_takes_nothing_of_its_answer_is_given_up() -> None:
    before = refused("answer")
    app = App(answer=b"a" * 50_000_000)
    async with bounded(app, send_seconds=0.2) as connect:
        client = await connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(HEAD, b"\r\n")
        await until(lambda: refused("answer") == before + 1)


def test_connections_leave_descriptors_for_what_else_the_process_opens() -> None:
    assert connections_within(1024) == 448
    assert connections_within(400) == 136
    assert connections_within(64) == 16
    assert connections_within(None) > 10**6
