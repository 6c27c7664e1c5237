"""`gateway tenants set`, and S3 by the environment alone."""

import asyncio
from collections.abc import Iterator

import httpx2
import pytest

from gateway.cli.amounts import format_bytes, format_seconds, parse_bytes
from gateway.config import load_settings
from tests.cli.test_cli_manners import GENERATIONS, IMAGE, RunningGateway, running_gateway
from tests.hosting_helpers import S3Server, bucket_of

DEFAULTS = {
    "continuity": True,
    "fallback": True,
    "stores_prompts": False,
    "image_retention_seconds": None,
    "max_image_bytes": None,
}
MONTH_SECONDS = 30 * 86_400


@pytest.fixture(scope="module")
def running(s3_server: S3Server) -> Iterator[RunningGateway]:
    """One server that stores in S3, told so by its environment and nothing else."""
    place = asyncio.run(bucket_of(s3_server))
    with running_gateway(**place.environment) as gateway:
        yield gateway


def test_images_go_to_the_s3_that_the_environment_names(running: RunningGateway) -> None:
    key = running.quickstart["test_key"]
    made = running.ask("POST", GENERATIONS, key, json={**IMAGE, "response_format": "url"})
    link = httpx2.URL(made.json()["data"][0]["url"]).raw_path.decode()
    served = running.ask("GET", link, "none")
    assert (served.status_code, served.content[:4]) == (200, b"\x89PNG")
    checks = running.command("doctor", "--json").json()
    [storage] = [check for check in checks if check["check"] == "storage"]
    assert (storage["state"], storage["detail"][:5]) == ("ok", "s3://")
    assert "test-secret" not in str(checks)


def test_a_tenants_choices_are_set_and_shown(running: RunningGateway) -> None:
    command = running.command
    made = command("tenants", "create", "hosted", "--json").json()
    assert {name: made[name] for name in DEFAULTS} == DEFAULTS
    changed = command(
        *("tenants", "set", "hosted", "--no-continuity", "--prompts", "stored"),
        *("--image-retention", "30d", "--max-image-bytes", "10GB", "--json"),
    ).json()
    chosen = {
        "continuity": False,
        "stores_prompts": True,
        "image_retention_seconds": MONTH_SECONDS,
        "max_image_bytes": 10_000_000_000,
    }
    assert changed == made | chosen
    assert changed in command("tenants", "list", "--json").json()
    table = command("tenants", "list")
    [line] = [line for line in table.out.splitlines() if "hosted" in line]
    for word in ("stored", "30d", "10 GB", "no"):
        assert word in line.split("  ") or word in line
    back = command(
        *("tenants", "set", made["id"], "--continuity", "--prompts", "hashed"),
        *("--image-retention", "default", "--max-image-bytes", "none", "--json"),
    )
    assert back.json() == made
    plain = command("tenants", "set", "hosted", "--max-image-bytes", "0")
    assert (plain.status, plain.err) == (0, "")
    assert "hosted" in plain.out


def test_an_invalid_choice_is_refused(running: RunningGateway) -> None:
    command = running.command
    for options in (
        "unknown --continuity",
        "default --image-retention 59s",
        "default --image-retention 999999w",
        "default --max-image-bytes 999999999999999999TB",
    ):
        command("tenants", "set", *options.split()).expect_refusal()
    for options in (
        "default",
        "default --image-retention month",
        "default --image-retention -1d",
        "default --max-image-bytes 10XB",
        "default --max-image-bytes -5",
        "default --prompts perhaps",
        "--continuity",
    ):
        command("tenants", "set", *options.split()).expect_wrong_usage()


def test_sizes_are_read_as_they_are_written() -> None:
    sizes = {
        "0": 0,
        "5b": 5,
        "1kB": 1000,
        "1 KiB": 1024,
        "10GB": 10**10,
        "512mib": 512 * 2**20,
        "2TiB": 2**41,
    }
    assert {text: parse_bytes(text) for text in sizes} == sizes
    assert [parse_bytes(format_bytes(size)) for size in sizes.values()] == list(sizes.values())
    shown = [format_seconds(seconds) for seconds in (61, 60, 3600, 86_400, MONTH_SECONDS, 604_800)]
    assert shown == ["61s", "1m", "1h", "1d", "30d", "1w"]


def test_s3_is_described_by_the_environment_and_its_secrets_are_not_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-canary")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-canary")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    settings = load_settings()
    assert settings.s3_options == {
        "endpoint": "http://127.0.0.1:9",
        "region": "eu-west-1",
        "access_key_id": "key-id",
        "secret_access_key": "secret-canary",
        "session_token": "token-canary",
    }
    shown = f"{settings!r} {settings} {settings.model_dump_json()}"
    assert "canary" not in shown
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example")
    assert load_settings().s3_options["endpoint"] == "https://s3.example"
