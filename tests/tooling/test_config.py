"""Settings that refuse to start, their messages, and that no secret is in one."""

import base64
import json
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.config import Settings, load_settings
from gateway.errors import ConfigurationError
from gateway.opening import open_core
from gateway.vault import key_format
from gateway.vault.sealing import MasterKeys, new_master_key, write_key_file
from tests.harness import GPT2, MASTER_KEY, error_of, make_settings, served_gateway
from tests.stub_openai import Stub

URL = "postgresql://gateway:db-canary-password@127.0.0.1:9/gateway"
KEY_COMMAND = "python3 -c 'import base64,os;"
WELL_KNOWN = ("changeme", "CHANGEME", "secret", "password", "admin", "test", "default", "sk-1234")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without any setting, in a folder without a `.env`."""
    for name in list(os.environ):
        if name.startswith(("GATEWAY_", "OPENAI_", "PROMETHEUS_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_DATA_DIR", str(tmp_path / "data"))
    return monkeypatch


def refusal(environment: pytest.MonkeyPatch, **variables: str) -> str:
    """The message of the refusal to start with these variables."""
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    for name in variables:
        environment.delenv(name)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_nothing_needs_to_be_set() -> None:
    settings = load_settings()
    assert settings.uses_embedded_postgres
    assert settings.openai_api_key is None
    assert settings.public_url == "http://127.0.0.1:8000"
    assert settings.image_ttl_seconds == 86_400


def test_a_database_without_a_master_key_is_told_how_to_make_one(
    environment: pytest.MonkeyPatch,
) -> None:
    said = refusal(environment, GATEWAY_DATABASE_URL=URL)
    assert "GATEWAY_MASTER_KEY" in said
    assert KEY_COMMAND in said
    assert "db-canary-password" not in said


@pytest.mark.parametrize("name", ["GATEWAY_MASTER_KEY", "GATEWAY_ADMIN_KEY", "OPENAI_API_KEY"])
def test_an_empty_or_well_known_secret_refuses_to_boot(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    for value in ("", " ", "\t", *WELL_KNOWN, " changeme "):
        assert name in refusal(environment, **{name: value}), value


def test_an_empty_database_address_is_not_taken_for_none(environment: pytest.MonkeyPatch) -> None:
    assert "GATEWAY_DATABASE_URL" in refusal(environment, GATEWAY_DATABASE_URL="")


@pytest.mark.parametrize(
    "name", ["GATEWAY_API_KEY", "AWS_SECRET_ACCESS_KEY", "GATEWAY_MIGRATION_DATABASE_URL"]
)
def test_other_secrets_refuse_an_empty_value_in_the_file_too(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    Path(".env").write_text(f"{name}=\n")
    with pytest.raises(ConfigurationError, match=f"{name} is set but empty"):
        load_settings()
    environment.setenv(name, "a-value-of-the-environment")
    load_settings()


def test_any_other_empty_variable_counts_as_unset(environment: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("GATEWAY_IMAGE_TTL_SECONDS=120\n")
    for name in (
        *("GATEWAY_IMAGE_TTL_SECONDS", "GATEWAY_LOG_LEVEL", "GATEWAY_REDIS_URL", "PORT"),
        *("GATEWAY_PUBLIC_URL", "OPENAI_BASE_URL", "GATEWAY_OIDC_ISSUER", "GATEWAY_STORAGE_URL"),
    ):
        environment.setenv(name, "")
    settings = load_settings()
    assert settings.image_ttl_seconds == 120
    assert (settings.log_level, settings.port) == ("INFO", 8000)
    assert (settings.redis_url, settings.oidc_issuer, settings.storage_url) == (None, None, None)
    assert settings.openai_base_url == "https://api.openai.com/v1"


def test_host_port_and_workers_can_be_set_by_the_environment(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("GATEWAY_HOST", "::1")
    environment.setenv("GATEWAY_WORKERS", "3")
    environment.setenv("PORT", "9001")
    settings = load_settings()
    assert (settings.host, settings.port, settings.workers) == ("::1", 9001, 3)
    environment.setenv("GATEWAY_PORT", "9002")
    assert load_settings().port == 9002
    assert "GATEWAY_PORT" in refusal(environment, GATEWAY_PORT="70000")


def test_the_link_of_a_kubernetes_service_is_no_port(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("GATEWAY_PORT", "tcp://10.96.0.7:8000")
    assert load_settings().port == 8000


def test_a_redis_address_of_another_kind_is_refused_without_its_password(
    environment: pytest.MonkeyPatch,
) -> None:
    for url in ("127.0.0.1:6379", "http://:canary@redis/0", "redis://", "redis://h/canary"):
        said = refusal(environment, GATEWAY_REDIS_URL=url)
        assert "GATEWAY_REDIS_URL" in said
        assert "canary" not in said
    for url in ("redis://:pw@h:6379/0", "rediss://u:pw@h", "valkey://[::1]:6379", "redis://h/"):
        environment.setenv("GATEWAY_REDIS_URL", url)
        assert "pw" not in repr(load_settings())


def test_a_provider_address_that_cannot_work_is_refused_without_its_password(
    environment: pytest.MonkeyPatch,
) -> None:
    wrong = (
        "api/v1",
        "localhost:9/v1",
        "ftp://h/v1",
        "https://u:canary@h/v1",
        "http://h:99999",
    )
    for url in (*wrong, "https://h/v1?key=canary"):
        said = refusal(environment, OPENAI_BASE_URL=url)
        assert "OPENAI_BASE_URL" in said
        assert "canary" not in said
    said = refusal(
        environment, GATEWAY_LEGACY_BASE_URL="https://u:canary@h", GATEWAY_LEGACY_MODELS="dall-e-2"
    )
    assert "GATEWAY_LEGACY_BASE_URL" in said
    assert "canary" not in said
    environment.setenv("OPENAI_BASE_URL", "http://[::1]:9/openai/v1/")
    assert load_settings().openai_base_url == "http://[::1]:9/openai/v1/"


def test_a_wrong_setting_is_named_and_its_value_is_not_repeated(
    environment: pytest.MonkeyPatch,
) -> None:
    wrong = {
        "GATEWAY_LOG_LEVEL": "canary",
        "GATEWAY_LOG_FORMAT": "canary",
        "GATEWAY_IMAGE_TTL_SECONDS": "canary",
        "GATEWAY_MAX_BODY_BYTES": "-1",
        "GATEWAY_DATABASE_POOL_SIZE": "0",
    }
    for name, value in wrong.items():
        said = refusal(environment, **{name: value})
        assert name.removeprefix("GATEWAY_").lower() in said.lower()
        assert "canary" not in said


def test_several_wrong_settings_are_told_at_once(environment: pytest.MonkeyPatch) -> None:
    said = refusal(environment, GATEWAY_LOG_LEVEL="x", GATEWAY_IMAGE_TTL_SECONDS="1")
    assert {line.split(":")[0] for line in said.splitlines()} == {
        "GATEWAY_LOG_LEVEL",
        "GATEWAY_IMAGE_TTL_SECONDS",
    }


def test_a_dot_env_file_is_read_and_the_environment_wins(
    environment: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text("GATEWAY_LOG_LEVEL=ERROR\nGATEWAY_IMAGE_TTL_SECONDS=120\nUNRELATED=1\n")
    environment.setenv("GATEWAY_LOG_LEVEL", "DEBUG")
    settings = load_settings()
    assert (settings.log_level, settings.image_ttl_seconds) == ("DEBUG", 120)


def test_settings_cannot_print_a_secret(environment: pytest.MonkeyPatch) -> None:
    admin = key_format.new_key("admin").reveal()
    secrets = {
        "GATEWAY_DATABASE_URL": URL,
        "GATEWAY_MIGRATION_DATABASE_URL": URL,
        "GATEWAY_MASTER_KEY": MASTER_KEY,
        "GATEWAY_ADMIN_KEY": admin,
        "OPENAI_API_KEY": "sk-canary-house",
    }
    for name, value in secrets.items():
        environment.setenv(name, value)
    settings = load_settings()
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    for value in ("db-canary-password", MASTER_KEY, admin, "sk-canary-house"):
        assert value not in shown


BAD_MASTER_KEYS = {
    "empty line": "\n",
    "short": base64.urlsafe_b64encode(os.urandom(31)).decode(),
    "long": base64.urlsafe_b64encode(os.urandom(33)).decode(),
    "zeros": base64.urlsafe_b64encode(bytes(32)).decode(),
    "repeated": base64.urlsafe_b64encode(b"ab" * 16).decode(),
    "of seven bytes": base64.urlsafe_b64encode((bytes(range(7)) * 5)[:32]).decode(),
    "hexadecimal": os.urandom(32).hex(),
    "no base64": "!" * 44,
    "not ASCII": "é" * 44,
    "words": "correct horse battery staple",
    "good and bad": f"{MASTER_KEY},short",
    "trailing comma": f"{MASTER_KEY},",
    "junk among good characters": f"!!!{MASTER_KEY}",
}


def test_an_invalid_master_key_is_refused_and_not_repeated(tmp_path: Path) -> None:
    accepted = []
    for name, text in BAD_MASTER_KEYS.items():
        try:
            MasterKeys(text, None)
        except ConfigurationError as error:
            said = str(error)
            assert "GATEWAY_MASTER_KEY" in said
            assert len(text) < 5 or text.strip() not in said
        else:
            accepted.append(name)
    assert accepted == []
    for content in (b"", b"\n", b"short\n", bytes(range(224, 256))):
        path = tmp_path / "keys"
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=str(path)):
            MasterKeys(None, path)
    with pytest.raises(ConfigurationError, match="missing"):
        MasterKeys(None, tmp_path / "missing")


def test_a_key_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    made = MasterKeys.from_new_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert MasterKeys.from_new_file(path).ids == made.ids
    write_key_file(path, [new_master_key(), new_master_key()])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys"]


def test_processes_that_start_at_once_open_the_same_new_key(tmp_path: Path) -> None:
    starters = 8
    barrier = threading.Barrier(starters)

    def start(folder: Path) -> tuple[str, ...]:
        barrier.wait()
        return MasterKeys.from_new_file(folder / "keys").ids

    with ThreadPoolExecutor(starters) as pool:
        for number in range(20):
            folder = tmp_path / str(number)
            folder.mkdir()
            [opened] = set(pool.map(start, [folder] * starters))
            assert MasterKeys.from_new_file(folder / "keys").ids == opened
            assert [entry.name for entry in folder.iterdir()] == ["keys"]


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:db-canary-password@h/d",
        "db-canary-password",
        "postgresql://u:db-canary-password@127.0.0.1:x/d",
        URL,
    ],
)
async def test_an_address_that_cannot_work_is_refused_without_its_password(
    tmp_path: Path, url: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        async with open_core(make_settings(url, tmp_path)):
            pass
    assert "GATEWAY_DATABASE_URL" in str(caught.value)
    assert "db-canary-password" not in str(caught.value)


async def test_an_admin_key_of_the_wrong_form_is_refused(settings: Settings) -> None:
    for text in ("not-a-key-canary", key_format.new_key("live").reveal()):
        changed = make_settings(
            settings.database_url.get_secret_value() if settings.database_url else "",
            settings.data_dir,
            admin_key=text,
        )
        with pytest.raises(ConfigurationError) as caught:
            async with open_core(changed):
                pass
        assert "GATEWAY_ADMIN_KEY" in str(caught.value)
        assert text not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://x/y", "s3://", "images", "", "file:///dev/null/images"])
async def test_a_storage_address_that_cannot_work_is_refused(settings: Settings, url: str) -> None:
    with pytest.raises(ConfigurationError, match="GATEWAY_STORAGE_URL"):
        async with served_gateway(settings.model_copy(update={"storage_url": url or "x:"})):
            pass


async def test_without_a_house_key_live_calls_are_refused_and_test_calls_work(
    settings: Settings, stub: Stub
) -> None:
    body = {"model": GPT2, "prompt": "x", "size": "1024x1024", "quality": "low"}
    without = settings.model_copy(update={"openai_api_key": None})
    async with served_gateway(without) as served:
        async with served.http(await served.key()) as http:
            refused = await http.post("/v1/images/generations", json=body)
            await http.put("/v1/credentials/openai", json={"secret": "sk-own-key-12345"})
            own = await http.post("/v1/images/generations", json=body)
        async with served.http(await served.key(livemode=False)) as http:
            test = await http.post("/v1/images/generations", json=body)
        held = await served.owner_sql("SELECT livemode, state FROM reservation ORDER BY livemode")
    error = error_of(refused)
    assert (refused.status_code, error["code"]) == (503, "no_credential")
    assert "/v1/credentials/openai" in error["message"]
    assert "OPENAI_API_KEY" in error["message"]
    assert (own.status_code, test.status_code) == (200, 200)
    assert [tuple(row) for row in held] == [(False, "posted"), (True, "posted")]
    assert [call.key for call in stub.calls] == ["sk-own-key-12345"]
    assert json.loads(refused.content) == {"error": error}
