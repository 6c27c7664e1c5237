"""The configuration file: its names, its place below the environment, and what it refuses."""

import json
import os
from pathlib import Path

import pytest

from gateway.config import Settings, load_settings
from gateway.config.groups import GROUPS, SETTINGS
from gateway.errors import ConfigurationError
from tests.cli.test_cli_manners import CommandLine
from tests.harness import process_environment
from tests.tooling.generated import rendered

CANARY = "canary-value"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without any setting, in a folder without a `.env`."""
    names = {variable for setting in SETTINGS for variable in setting.variables}
    for name in names & os.environ.keys():
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def load(
    environment: pytest.MonkeyPatch, text: str, name: str = "gateway.toml", mode: int = 0o644
) -> Settings:
    """The settings of a file with this text."""
    path = Path(name)
    path.write_text(text)
    path.chmod(mode)
    environment.setenv("GATEWAY_CONFIG_FILE", name)
    return load_settings()


def refusal(
    environment: pytest.MonkeyPatch, text: str, name: str = "gateway.toml", mode: int = 0o644
) -> str:
    """The message that refuses a file with this text. It holds no value of the file."""
    with pytest.raises(ConfigurationError) as caught:
        load(environment, text, name, mode)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_tables_are_groups_and_keys_need_no_prefix(environment: pytest.MonkeyPatch) -> None:
    settings = load(
        environment,
        """
        [storage]
        url = "s3://bucket/prefix"
        image_ttl_seconds = 120
        aws_endpoint_url = "http://minio:9000"
        [webhooks]
        allow_private = true
        [server]
        port = 9000
        """,
    )
    assert settings.image_storage_url == "s3://bucket/prefix"
    assert settings.s3_options == {"endpoint": "http://minio:9000"}
    assert (settings.image_ttl_seconds, settings.webhook_allow_private) == (120, True)
    assert settings.port == 9000


def test_full_names_count_outside_the_tables_and_in_them(environment: pytest.MonkeyPatch) -> None:
    text = 'openai_base_url = "http://127.0.0.1:9/v1"\n[storage]\nstorage_url = "s3://b"\n'
    settings = load(environment, text)
    assert settings.openai_base_url == "http://127.0.0.1:9/v1"
    assert settings.storage_url == "s3://b"


def test_json_is_read_too(environment: pytest.MonkeyPatch) -> None:
    content = {"storage": {"url": "s3://b"}, "log_level": "ERROR", "limits": {"redis_url": None}}
    settings = load(environment, json.dumps(content), "gateway.json")
    assert (settings.storage_url, settings.log_level) == ("s3://b", "ERROR")


def test_the_environment_and_dot_env_win_over_the_file(environment: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("GATEWAY_LOG_LEVEL=ERROR\n")
    environment.setenv("PORT", "9002")
    environment.setenv("GATEWAY_IMAGE_TTL_SECONDS", "")
    settings = load(
        environment,
        """
        [logging]
        level = "DEBUG"
        [server]
        port = 9000
        [storage]
        image_ttl_seconds = 120
        url = ""
        """,
    )
    assert (settings.log_level, settings.port) == ("ERROR", 9002)
    assert (settings.image_ttl_seconds, settings.storage_url) == (120, None)


def test_the_link_of_a_kubernetes_service_hides_no_port(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("GATEWAY_PORT", "tcp://10.96.0.7:8000")
    assert load(environment, "[server]\nport = 9000\n").port == 9000


def test_dot_env_may_name_the_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load(environment, "[server]\nworkers = 3\n")
    environment.delenv("GATEWAY_CONFIG_FILE")
    Path(".env").write_text(f"GATEWAY_CONFIG_FILE={tmp_path / 'gateway.toml'}\n")
    assert load_settings().workers == 3
    assert load_settings(read_env_file=False).workers == 1


def test_unknown_tables_and_keys_are_named_with_their_lines(
    environment: pytest.MonkeyPatch,
) -> None:
    text = f"""ulr = "{CANARY}"
[storage]
url = "s3://b"
ulr = "{CANARY}"
[storage.deep]
x = 1
[stroage]
url = "{CANARY}"
[server]
config_file = "other.toml"
"""
    assert refusal(environment, text).splitlines()[:-1] == [
        "gateway.toml: unknown key ulr (line 1).",
        "gateway.toml: unknown key [storage] ulr (line 4).",
        "gateway.toml: unknown key [storage] deep.",
        "gateway.toml: unknown table [stroage] (line 7).",
        "gateway.toml: unknown key [server] config_file (line 10).",
    ]


def test_a_repeated_setting_is_refused(environment: pytest.MonkeyPatch) -> None:
    text = f'storage_url = "{CANARY}"\n[storage]\nurl = "{CANARY}"\n'
    assert "[storage] url (line 3) repeats storage_url (line 1)" in refusal(environment, text)
    twice = f'{{"storage": {{"url": "a"}}, "storage": {{"url": "{CANARY}"}}}}'
    assert "gateway.json" in refusal(environment, twice, "gateway.json")


def test_a_wrong_value_is_named_by_file_and_key(environment: pytest.MonkeyPatch) -> None:
    text = f"""[storage]
image_ttl_seconds = "{CANARY}"
[logging]
level = "{CANARY}"
[server.port]
x = "{CANARY}"
"""
    said = refusal(environment, text).splitlines()
    assert {line.rpartition(": ")[0] for line in said} == {
        "gateway.toml: [storage] image_ttl_seconds (line 2)",
        "gateway.toml: [logging] level (line 4)",
        "gateway.toml: [server] port",
    }


def test_a_rule_between_settings_names_the_place_in_the_file(
    environment: pytest.MonkeyPatch,
) -> None:
    said = refusal(environment, '[providers]\nlegacy_models = "dall-e-2"\n')
    assert "GATEWAY_LEGACY_MODELS" in said
    assert "Set in gateway.toml: [providers] legacy_models (line 2)." in said
    said = refusal(environment, '[keys]\nadmin_key = "changeme"\n', mode=0o600)
    assert "Set in gateway.toml: [keys] admin_key (line 2)." in said


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_file_with_a_secret_is_its_owners_alone(environment: pytest.MonkeyPatch) -> None:
    text = f'[providers]\nopenai_api_key = "{CANARY}"\n'
    for mode in (0o644, 0o640, 0o604, 0o620):
        said = refusal(environment, text, mode=mode)
        assert "[providers] openai_api_key (line 2)" in said
        assert f"mode {mode:04o}" in said
        assert "chmod 600 gateway.toml" in said
    settings = load(environment, text, mode=0o600)
    assert CANARY not in f"{settings!r}"
    assert settings.openai_api_key is not None
    assert settings.openai_api_key.get_secret_value() == CANARY
    environment.setenv("OPENAI_API_KEY", "of-the-environment")
    assert "chmod" in refusal(environment, text)


def test_an_empty_secret_is_refused(environment: pytest.MonkeyPatch) -> None:
    for value in ("", " "):
        said = refusal(environment, f'[database]\nurl = "{value}"\n', mode=0o600)
        assert said == (
            "gateway.toml: [database] url (line 2) is empty: give it a value, or remove it."
        )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gateway.toml", f'[storage]\nurl = "{CANARY}'),
        ("gateway.toml", f"[storage]\nurl = {CANARY}"),
        ("gateway.json", f'{{"storage": {{"url": "{CANARY}'),
        ("gateway.json", f'["{CANARY}"]'),
        ("gateway.json", "[" * 100_000),
        ("gateway.yaml", f"storage: {CANARY}"),
        ("gateway.toml", "#" * 1_048_577),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    environment: pytest.MonkeyPatch, name: str, text: str
) -> None:
    assert name in refusal(environment, text, name)


def test_a_missing_file_and_another_encoding_are_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("GATEWAY_CONFIG_FILE", "missing.toml")
    with pytest.raises(ConfigurationError, match=r"GATEWAY_CONFIG_FILE: missing\.toml cannot be"):
        load_settings()
    Path("latin.toml").write_bytes(b'[storage]\nurl = "\xe9"\n')
    environment.setenv("GATEWAY_CONFIG_FILE", "latin.toml")
    with pytest.raises(ConfigurationError, match=r"latin\.toml is not UTF-8"):
        load_settings()


def test_commands_read_the_file(settings: Settings, tmp_path: Path) -> None:
    variables = process_environment(settings)
    path = tmp_path / "gateway.toml"
    path.write_text(
        f'[database]\nurl = "{variables.pop("GATEWAY_DATABASE_URL")}"\n'
        f'[keys]\nmaster_key = "{variables.pop("GATEWAY_MASTER_KEY")}"\n'
    )
    path.chmod(0o600)
    command = CommandLine({**variables, "GATEWAY_CONFIG_FILE": str(path)}, tmp_path)
    assert command("tenants", "create", "acme").status == 0
    assert [tenant["name"] for tenant in json.loads(command("tenants", "list", "--json").out)] == [
        "acme"
    ]
    path.chmod(0o644)
    refused = command("tenants", "list")
    assert (refused.status, "chmod 600" in refused.err) == (1, True)


def test_every_setting_is_described_in_one_group() -> None:
    names = [setting.name for setting in SETTINGS]
    assert sorted(names) == sorted(Settings.model_fields)
    assert [s.name for s in SETTINGS if not s.field.description] == []
    assert [group.table for group in GROUPS if not group.fields.__doc__] == []
    assert len([s for s in SETTINGS if s.is_first]) == 12


def test_no_key_means_two_settings_in_its_table() -> None:
    for group in GROUPS:
        meant: dict[str, str] = {}
        for setting in group:
            for key in (setting.key or setting.name, setting.name):
                assert meant.setdefault(key, setting.name) == setting.name


def test_the_generated_files_are_fresh() -> None:
    assert [path.name for path, text in rendered().items() if path.read_text() != text] == []
