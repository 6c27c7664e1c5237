"""Calls to a provider through the proxy that the environment names."""

import asyncio
from base64 import b64encode
from pathlib import Path

import pytest

from gateway.config import Settings
from tests.harness import Served, error_of, gateway_process, process_environment
from tests.money_helpers import books, client_of, post_image
from tests.stub_openai import Stub

REFUSAL = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n"
KNOWN = b"proxy-authorization: basic " + b64encode(b"user:pass").lower()


class Proxy:
    """Forwards plain HTTP, opens no tunnel, and records its requests."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one request."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.lower())
        if head.startswith(b"CONNECT"):
            writer.write(REFUSAL)
        else:
            length = int(self.heads[-1].split(b"content-length:")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            origin, onward = await asyncio.open_connection("127.0.0.1", self._stub.port)
            path = head.replace(b"http://provider.example", b"", 1)
            onward.write(path.replace(b"\r\n", b"\r\nconnection: close\r\n", 1) + body)
            writer.write(await origin.read())
            onward.close()
        writer.close()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_providers_are_called_through_the_environments_proxy(
    scheme: str, served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    proxy = Proxy(stub)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    address = f"http://user:pass@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    environment = process_environment(settings) | {
        "OPENAI_BASE_URL": f"{scheme}://provider.example/v1",
        f"{scheme}_proxy": address,
    }
    async with server:
        with gateway_process(environment, tmp_path / "log") as running:
            await running.until_ready()
            async with client_of(running.base_url, await served.key()) as http:
                answer = await post_image(http)
    [booked] = await books(served)
    [head] = [head for head in proxy.heads if b"/v1/models" not in head][:1]
    assert KNOWN in head
    if scheme == "http":
        assert head.startswith(b"post http://provider.example/v1/images/generations ")
        assert (answer.status_code, booked.state) == (200, "posted")
        assert len(stub.bill) == 1
    else:
        # No tunnel, so nothing was sent.
        assert head.startswith(b"connect provider.example:443 ")
        assert b"authorization: bearer" not in head
        assert (answer.status_code, error_of(answer)["code"]) == (502, "provider_unreachable")
        assert (booked.state, booked.outcome) == ("void", "not_sent")
        assert stub.bill == []


async def test_no_proxy_is_heeded(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    environment = process_environment(settings) | {
        "http_proxy": "http://127.0.0.1:9",
        "no_proxy": "127.0.0.1",
    }
    with gateway_process(environment, tmp_path / "log") as running:
        await running.until_ready()
        async with client_of(running.base_url, await served.key()) as http:
            assert (await post_image(http)).status_code == 200
    assert len(stub.bill) == 1
