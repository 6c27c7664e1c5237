"""Slow and endless senders: their cost to the gateway, and the latency of other clients.

None of them needs a key. Other clients open a new connection for each request.
"""

import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes with the embedded Postgres

from benchmarks import servers

MEGABYTE = 1_000_000
WATCH_SECONDS = 14.0
"""Longer than the gateway waits for a request's headers."""
PROBE_PAUSE_SECONDS = 0.01
PROBE_TIMEOUT_SECONDS = 5.0
DESCRIPTORS = 400
SILENT = 420
START = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@dataclass(frozen=True)
class Cost:
    """The cost of one kind of sender, and the answers to it."""

    what: str
    memory_mb: float
    cpu_seconds: float
    others_p50_ms: float
    others_worst_ms: float
    others_failed: int
    heard: str


@dataclass
class _Probe:
    """A client that sends requests continuously, each on a new connection."""

    port: int
    milliseconds: list[float]
    failed: int = 0
    is_over: bool = False

    def run(self) -> None:
        while not self.is_over:
            began = time.perf_counter()
            client = http.client.HTTPConnection(
                "127.0.0.1", self.port, timeout=PROBE_TIMEOUT_SECONDS
            )
            try:
                client.request("GET", "/health")
                if client.getresponse().status != http.HTTPStatus.OK:
                    self.failed += 1
            except (OSError, http.client.HTTPException):
                self.failed += 1
            finally:
                client.close()
            self.milliseconds.append((time.perf_counter() - began) * 1000)
            time.sleep(PROBE_PAUSE_SECONDS)


def measure(folder: Path, only: Sequence[str] = ()) -> list[Cost]:
    """Measure each kind of sender against a freshly started gateway."""
    kinds: dict[str, Callable[[int], str]] = {
        "24 MB of header lines": _header_lines,
        "one header of 250 MB": _one_header,
        "a URL of 24 MB": _long_url,
        "24 MB of trailers": _trailers,
        "24 MB in chunks of one byte": _small_chunks,
        "100 000 pipelined requests": _pipelined,
        "250 MB of body to an open route": _body,
        "200 silent connections": lambda port: _silent(port, 200),
        "200 connections, a header byte a second": _drip,
        f"{SILENT} silent connections, {DESCRIPTORS} descriptors": lambda port: _silent(
            port, SILENT
        ),
    }
    costs = []
    for what, send in kinds.items():
        if only and not any(part in what for part in only):
            continue
        with ExitStack() as stack:
            limit = DESCRIPTORS if "descriptors" in what else None
            port, running = stack.enter_context(_gateway(folder, limit))
            costs.append(_measure(what, port, running, send))
            _report(costs[-1])
    return costs


@contextmanager
def _gateway(
    folder: Path, descriptors: int | None
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = servers.free_port()
    environment = servers.gateway_environment(9, folder)
    code = "import runpy, sys; sys.argv = ['gateway', *sys.argv[1:]];"
    if descriptors is not None:
        code += f" import resource; n = {descriptors}; resource.setrlimit(7, (n, n));"
    code += " runpy.run_module('gateway', run_name='__main__', alter_sys=True)"
    arguments = ["-c", code, "serve", "--port", str(port)]
    with servers.process(arguments, environment, folder / "gateway.log") as running:
        servers.wait_until_open(f"http://127.0.0.1:{port}/ready", running)
        yield port, running


def _measure(
    what: str, port: int, running: subprocess.Popen[bytes], send: Callable[[int], str]
) -> Cost:
    process = psutil.Process(running.pid)
    probe = _Probe(port, [])
    asking = threading.Thread(target=probe.run)
    peak = before = process.memory_info().rss
    cpu = sum(process.cpu_times()[:2])
    heard: list[str] = []
    sending = threading.Thread(target=lambda: heard.append(send(port)))
    asking.start()
    sending.start()
    while sending.is_alive():
        peak = max(peak, process.memory_info().rss)
        time.sleep(servers.SAMPLE_SECONDS)
    probe.is_over = True
    asking.join()
    delays = sorted(probe.milliseconds)
    return Cost(
        what,
        (peak - before) / MEGABYTE,
        sum(process.cpu_times()[:2]) - cpu,
        delays[len(delays) // 2],
        delays[-1],
        probe.failed,
        heard[0],
    )


def _report(cost: Cost) -> None:
    print(
        f"{cost.what:44} {cost.memory_mb:8.1f} MB {cost.cpu_seconds:7.2f} s CPU   others"
        f" p50 {cost.others_p50_ms:7.1f} worst {cost.others_worst_ms:8.1f} ms,"
        f" {cost.others_failed} failed   {cost.heard}",
        flush=True,
    )


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def _send_all(port: int, first: bytes, piece: bytes, total: int, last: bytes = b"") -> str:
    """Send `first`, then `piece` repeatedly; return the status and the number of bytes sent."""
    sent = 0
    with _connect(port) as client:
        try:
            client.sendall(first)
            while sent < total:
                client.sendall(piece)
                sent += len(piece)
            client.sendall(last)
        except OSError:
            pass
        return f"{_answer(client)} after {sent / MEGABYTE:.1f} MB"


def _answer(client: socket.socket) -> str:
    try:
        line = client.recv(4096).split(b"\r\n", 1)[0].decode()
    except OSError as error:
        return type(error).__name__
    return line.removeprefix("HTTP/1.1 ") or "closed"


def _header_lines(port: int) -> str:
    return _send_all(port, START, b"x-header: value\r\n" * 4096, 24 * MEGABYTE, b"\r\n")


def _one_header(port: int) -> str:
    return _send_all(port, START + b"x-header: ", b"v" * 65_536, 250 * MEGABYTE, b"\r\n\r\n")


def _long_url(port: int) -> str:
    rest = b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    return _send_all(port, b"GET /health?", b"q" * 65_536, 24 * MEGABYTE, rest)


def _trailers(port: int) -> str:
    first = b"POST /health HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    return _send_all(port, first, b"x-trailer: value\r\n" * 4096, 24 * MEGABYTE, b"\r\n")


def _small_chunks(port: int) -> str:
    first = b"POST /health HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    return _send_all(port, first, b"1\r\nx\r\n" * 10_000, 24 * MEGABYTE, b"0\r\n\r\n")


def _pipelined(port: int) -> str:
    one = START + b"\r\n"
    return _send_all(port, b"", one * 1000, 100_000 * len(one))


def _body(port: int) -> str:
    first = START.replace(b"GET", b"POST") + b"Content-Length: 100000000000\r\n\r\n"
    return _send_all(port, first, b"b" * 65_536, 250 * MEGABYTE)


def _silent(port: int, count: int) -> str:
    clients: list[socket.socket] = []
    with suppress(OSError):
        clients.extend(_connect(port) for _ in range(count))
    return _watch(clients, socket.socket.fileno)


def _drip(port: int) -> str:
    clients = [_connect(port) for _ in range(200)]
    for client in clients:
        client.sendall(START + b"x-slow: ")
    return _watch(clients, lambda client: client.send(b"v"))


def _watch(clients: list[socket.socket], each_second: Callable[[socket.socket], object]) -> str:
    """Count the connections that the gateway closed in time."""
    ends = time.perf_counter() + WATCH_SECONDS
    heard: dict[str, int] = {}
    is_open = list(clients)
    while time.perf_counter() < ends and is_open:
        for client in tuple(is_open):
            try:
                each_second(client)
                client.settimeout(0)
                line = client.recv(4096).split(b"\r\n", 1)[0].decode()
                said = line.removeprefix("HTTP/1.1 ") or "closed"
            except BlockingIOError:
                continue
            except OSError:
                said = "closed"
            heard[said] = heard.get(said, 0) + 1
            is_open.remove(client)
        time.sleep(1)
    for client in clients:
        client.close()
    heard[f"open after {WATCH_SECONDS:.0f} s"] = len(is_open)
    return json.dumps(heard)
