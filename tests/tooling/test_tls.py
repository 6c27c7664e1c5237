"""HTTPS without a proxy: bounds before the handshake, and certificates that are replaced."""

import asyncio
import shutil
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.config import Settings
from gateway.errors import ConfigurationError
from gateway.web.connections.tls import Certificate
from tests.harness import GatewayProcess, gateway_process, process_environment
from tests.money_helpers import eventually
from tests.tls_helpers import Authority

HEALTH = b"GET /health HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n"


@contextmanager
def https_gateway(
    settings: Settings, folder: Path, chain: Path, *options: str, **changes: str
) -> Iterator[GatewayProcess]:
    """A gateway of its own process that speaks HTTPS with the chain, whose file has its key too."""
    files = {"GATEWAY_TLS_CERT_FILE": str(chain), "GATEWAY_TLS_KEY_FILE": str(chain)}
    environment = process_environment(settings) | files | changes
    with gateway_process(
        environment, folder / "log", *options, from_nothing=bool(options)
    ) as running:
        running.base_url = running.base_url.replace("http:", "https:")
        yield running


async def serial_of(running: GatewayProcess) -> str:
    """The serial number of the certificate that a new connection gets."""
    address = urlsplit(running.base_url)
    context = ssl.create_default_context()
    _, writer = await asyncio.open_connection(address.hostname, address.port, ssl=context)
    shown = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    return str(shown)


async def plain(running: GatewayProcess, sent: bytes) -> bytes:
    """All that the gateway answers to bytes without TLS."""
    address = urlsplit(running.base_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(sent)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.fixture
def chain(one_authority: Authority, tmp_path: Path) -> Path:
    """A file with a certificate for 127.0.0.1 and its key."""
    return Path(shutil.copy(one_authority.chain_of_server(), tmp_path / "chain.pem"))


async def test_https_serves_requests_and_closes_what_is_not_tls(
    settings: Settings, tmp_path: Path, chain: Path
) -> None:
    with https_gateway(settings, tmp_path, chain, GATEWAY_HEADER_SECONDS="0.5") as running:
        await running.until_ready()
        async with httpx2.AsyncClient(base_url=running.base_url) as http:
            assert (await http.get("/health")).json() == {"status": "ok"}
            answers = await asyncio.gather(*(http.get("/openapi.json") for _ in range(8)))
            assert {len(answer.content) > 100_000 for answer in answers} == {True}
            location = (await http.get("/", headers={"accept": "text/html"})).headers["location"]
            assert location == "/console"
        # Neither an answer without TLS, nor a connection that stays.
        assert await plain(running, HEALTH) == b""
        assert await plain(running, b"") == b""


async def test_a_handshake_may_come_in_pieces(
    settings: Settings, tmp_path: Path, one_authority: Authority, chain: Path
) -> None:
    with https_gateway(settings, tmp_path, chain) as running:
        await running.until_ready()
        address = urlsplit(running.base_url)
        received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(one_authority.file))
        tls = context.wrap_bio(received, sent, server_hostname="127.0.0.1")
        reader, writer = await asyncio.open_connection(address.hostname, address.port)

        async def exchange() -> None:
            """Send what there is a few bytes at a time, then take what comes."""
            data = sent.read()
            for start in range(0, len(data), 50):
                writer.write(data[start : start + 50])
                await writer.drain()
                await asyncio.sleep(0)
            received.write(await reader.read(65_536))

        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await exchange()
        tls.write(HEALTH)
        answer = b""
        while b"status" not in answer:
            try:
                answer += tls.read()
            except ssl.SSLWantReadError:
                await exchange()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200")


async def test_connections_are_bounded_before_their_handshake(
    settings: Settings, tmp_path: Path, chain: Path
) -> None:
    bound = {
        "GATEWAY_MAX_CONNECTIONS_PER_ADDRESS": "3",
        "GATEWAY_PROXY_ADDRESSES": "10.0.0.1",
        "GATEWAY_HEADER_SECONDS": "60",
    }
    with https_gateway(settings, tmp_path, chain, **bound) as running:
        await running.until_ready()
        address = urlsplit(running.base_url)
        silent = [await asyncio.open_connection(address.hostname, address.port) for _ in range(8)]
        closed = asyncio.as_completed([reader.read() for reader, _ in silent])
        for _ in range(5):
            assert await next(closed) == b""
        for _, writer in silent:
            writer.close()
        # Their places are free again.
        await running.until_ready()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_new_certificate_is_used_after_sighup_and_a_wrong_one_is_not(
    settings: Settings, tmp_path: Path, one_authority: Authority, chain: Path, workers: int
) -> None:
    options = () if workers == 1 else ("--workers", str(workers))
    with https_gateway(settings, tmp_path, chain, *options) as running:
        await running.until_ready(tries=2400)
        first = await serial_of(running)
        chain.write_text("not a certificate")  # noqa: ASYNC240 - a line
        running.process.send_signal(signal.SIGHUP)

        async def is_refused() -> bool:
            return "tls_certificate_refused" in running.log.read_text()

        await eventually(is_refused)
        assert await serial_of(running) == first
        shutil.copy(one_authority.chain_of_server(), chain)
        running.process.send_signal(signal.SIGHUP)

        async def is_new() -> bool:
            try:
                return await serial_of(running) != first
            except OSError:  # a worker is being replaced
                return False

        await eventually(is_new)
        assert "not a certificate chain" in running.log.read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"GATEWAY_TLS_KEY_FILE": "/nowhere/key.pem"}, "cannot be read"),
        ({"GATEWAY_TLS_KEY_FILE": ""}, "set both"),
        ({"GATEWAY_TLS_CERT_FILE": __file__}, "not a certificate chain"),
    ],
)
async def test_files_that_cannot_be_used_refuse_to_start(
    settings: Settings, tmp_path: Path, chain: Path, changes: dict[str, str], said: str
) -> None:
    with https_gateway(settings, tmp_path, chain, **changes) as running:
        assert await asyncio.to_thread(running.process.wait, 60) == 1
    log = running.log.read_text()
    assert said in log
    assert "GATEWAY_TLS_CERT_FILE" in log
    assert "Traceback" not in log


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    chain = Authority(tmp_path, "other").chain_of_server()
    with pytest.raises(ConfigurationError, match="passphrase"):
        Certificate(chain, key)
