"""The requirements of `gateway mcp-stdio`: an address, and a key that may be sent there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import ConfigurationError
from gateway.mcp_server.stdio_http import endpoint_url
from tests.harness import Served, free_port, secret_of
from tests.serving import serving
from tests.stdio_helpers import Answering, BridgeCommand, error_of

BRIDGE_ERROR = -32000


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://images.example.com", "any"),
        ("https://images.example.com/mcp?key=secret", "any"),
        ("https://images.example.com", None),
        ("https://images.example.com", "${GATEWAY_API_KEY}"),
    ],
)
async def test_an_impossible_setup_is_reported_on_stderr_and_to_the_client_with_status_1(
    tmp_path: Path, url: str, key: str | None
) -> None:
    command = BridgeCommand(tmp_path, url, key)
    async with command.process() as running:
        answers = [await running.ask(method) for method in ("server/discover", "tools/list")]
        assert await running.close() == 1
    assert [error_of(answer) for answer in answers] == [(1, BRIDGE_ERROR, "not_configured")] * 2
    [line] = command.said()
    assert line == f"Refused: {answers[0]['error']['message']}"
    assert "secret" not in line


@pytest.mark.parametrize(
    "address",
    [
        "http://images.example.com",
        "http://10.0.0.1/mcp",
        "http://localhost.example.com",
        "https://user:secret@images.example.com",
        "https://images.example.com/mcp?key=secret",
        "https://images.example.com/mcp#secret",
        "images.example.com",
        "localhost:8000",
        "ftp://images.example.com",
        "https://[::1",
        "https://",
        "",
    ],
)
def test_an_address_that_a_key_may_not_be_sent_to_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        endpoint_url(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["http://127.0.0.1:80", "http://[::1]:1", "https://a.example"])
def test_an_address_may_name_the_gateway_or_its_endpoint(host: str) -> None:
    expected = endpoint_url(host)
    assert expected.endswith("/mcp")
    for path in ("/", "/mcp", "/mcp/", " "):
        assert endpoint_url(host + path) == expected
    for path in ("/base", "/base/", "/base/mcp"):
        assert endpoint_url(host + path) == expected.replace("/mcp", "/base/mcp")


async def test_a_setting_that_cannot_work_is_refused_in_one_line(tmp_path: Path) -> None:
    command = BridgeCommand(tmp_path, None, "any", (("GATEWAY_DATABASE_URL", "postgresql://x"),))
    async with command.process() as running:
        assert error_of(await running.ask("tools/list"))[2] == "not_configured"
        running.process.terminate()
        assert await running.ended() == 1
    assert len(command.said()) == 1


def quickstart(folder: Path, base_url: str, key: str) -> None:
    """Write the part of a first start's quickstart.json that these tests need."""
    keys = {"base_url": base_url, "test_key": key, "live_key": "live", "admin_key": "admin"}
    (folder / "quickstart.json").write_text(json.dumps(keys))


async def test_on_the_machine_of_a_quick_start_it_needs_no_configuration(
    served: Served, tmp_path: Path
) -> None:
    quickstart(tmp_path, served.base_url, secret_of(await served.key(livemode=False)))
    async with BridgeCommand(tmp_path, None, None).process() as running:
        assert "result" in await running.ask("tools/list")
        assert await running.close() == 0


async def test_the_quick_starts_key_goes_to_no_other_gateway(tmp_path: Path) -> None:
    quickstart(tmp_path, "http://127.0.0.1:8000", "test")
    server = Answering(200, "text/plain", b"")
    async with serving(server) as base_url:
        for command in (
            BridgeCommand(tmp_path, base_url, None),
            BridgeCommand(tmp_path, None, None, (("GATEWAY_PUBLIC_URL", base_url),)),
        ):
            async with command.process() as running:
                assert error_of(await running.ask("tools/list"))[2] == "not_configured"
                assert await running.close() == 1
    assert server.seen == []


async def test_a_project_folders_env_file_does_not_say_where_the_key_goes(tmp_path: Path) -> None:
    server = Answering(404, "text/plain", b"")
    async with serving(server) as base_url:
        (tmp_path / ".env").write_text(f"GATEWAY_PUBLIC_URL={base_url}\n")
        command = BridgeCommand(tmp_path, working_folder=tmp_path)
        async with command.process() as running:
            assert "error" in await running.ask("tools/list")
    assert server.seen == []


async def test_a_proxy_for_plain_http_does_not_see_the_key(tmp_path: Path) -> None:
    proxy = Answering(404, "text/plain", b"")
    async with serving(proxy) as proxy_url:
        variables = [(name, proxy_url) for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY")]
        url = f"http://127.0.0.1:{free_port()}"
        async with BridgeCommand(tmp_path, url, "any", tuple(variables)).process() as running:
            assert error_of(await running.ask("tools/list"))[2] == "gateway_unreachable"
    assert proxy.seen == []


async def test_a_proxy_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    variables = (("HTTPS_PROXY", "gopher://user:secret@127.0.0.1:1"),)
    command = BridgeCommand(tmp_path, "https://images.example.com", "any", variables)
    async with command.process() as running:
        assert error_of(await running.ask("tools/list"))[2] == "not_configured"
        assert await running.close() == 1
    assert "secret" not in command.log.read_text()


def test_it_does_not_import_what_only_a_server_needs() -> None:
    code = (
        "import sys, gateway.cli.mcp; "
        "print(*{'sqlalchemy', 'asyncpg', 'fastapi', 'openai', 'PIL', 'alembic', 'aiohttp'}"
        ".intersection(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert ended.stdout.strip() == ""


def test_mcp_stdio_is_listed_among_the_commands() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "--help"], capture_output=True, check=True, text=True
    )
    assert "mcp-stdio" in ended.stdout
