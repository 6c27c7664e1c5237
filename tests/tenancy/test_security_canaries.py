"""Canary secrets planted everywhere do not leak during a day of mixed work with failures."""

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from gateway.config import Settings
from gateway.vault import key_format
from tests.harness import (
    GPT2,
    HOUSE_KEY,
    MASTER_KEY,
    Served,
    gateway_process,
    process_environment,
    secret_of,
)
from tests.stub_openai import Fault, Stub

PATH = "/v1/images/generations"
CREDENTIAL = "/v1/credentials/openai"
LOW = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
TENANT_SECRETS = {
    "tenant key": "sk-tenant-canary-0a1b2c3d4e5f",
    "replaced tenant key": "sk-tenant-canary-f5e4d3c2b1a0",
    "key of no usual form": "tenantcanary0a1b2c3d4e5f6071",
    "user key": "sk-user-canary-998877665544",
    "mistyped key": "sk-mistyped-canary-123456789abc",
}
FAULTS = (
    Fault("status", preset="invalid_api_key"),
    Fault("status", preset="unverified_organization"),
    Fault("status", preset="insufficient_quota"),
    Fault("status", preset="moderation_blocked"),
    Fault("status", status=500),
    Fault("status", status=500, html=True),
    Fault("unreadable_json"),
    Fault("usage_missing"),
    Fault("truncated_body"),
    Fault("reset_after_headers"),
    Fault("close_before_billing"),
)
GARBAGE = (b"", b"{", b"[]", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 5000)


def spellings(secret: bytes) -> Iterator[bytes]:
    """A secret as it is, and as it may be written down."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for encoded in (base64.b64encode(secret), base64.urlsafe_b64encode(secret)):
        yield encoded.rstrip(b"=")
    yield repr(secret)[2:-1].encode()


@dataclass
class Day:
    """A client that keeps every answer of a gateway process whole."""

    base_url: str
    answers: list[bytes] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)

    async def ask(self, key: str | None, method: str, path: str, **options: Any) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        headers |= options.pop("headers", {})
        async with httpx2.AsyncClient(base_url=self.base_url, headers=headers, timeout=60) as http:
            response = await http.request(method, path, **options)
        head = "\n".join(f"{name}: {value}" for name, value in response.headers.items())
        self.answers.append(f"{response.status_code}\n{head}\n".encode() + response.content)
        self.statuses.add(response.status_code)


async def work(day: Day, keys: dict[str, str], stub: Stub) -> None:
    """Make requests of every kind, successful and failing."""
    live, user, test, admin = (keys[name] for name in ("live", "user", "test", "admin"))
    await day.ask(live, "POST", PATH, json=LOW)
    await day.ask(test, "POST", PATH, json=LOW | {"response_format": "url"})
    for fault in FAULTS:
        stub.faults.add(fault)
        await day.ask(live, "POST", PATH, json=LOW)
    for name in ("replaced tenant key", "key of no usual form", "tenant key"):
        await day.ask(live, "PUT", CREDENTIAL, json={"secret": TENANT_SECRETS[name]})
        await day.ask(live, "POST", PATH, json=LOW)
    await day.ask(user, "PUT", CREDENTIAL, json={"api_key": TENANT_SECRETS["user key"]})
    stub.configure(accepted_keys=[])
    for key in (live, user):
        await day.ask(key, "POST", PATH, json=LOW)
    await day.ask(live, "DELETE", CREDENTIAL)
    await day.ask(live, "POST", PATH, json=LOW)
    stub.configure(accepted_keys=None)
    mistyped = TENANT_SECRETS["mistyped key"]
    for body in (
        {"key": mistyped},
        {"secret": [mistyped]},
        {"secret": {"value": mistyped}},
        {"secret": mistyped, "extra": mistyped},
        {"Secret": mistyped},
        mistyped,
        [mistyped],
        {"secret": f"{mistyped} \x00"},
    ):
        await day.ask(live, "PUT", CREDENTIAL, content=json.dumps(body))
    await day.ask(live, "PUT", CREDENTIAL, content=mistyped)
    for content in GARBAGE:
        for path in (PATH, "/v1/images/quotes", "/mcp"):
            await day.ask(live, "POST", path, content=content)
    for wrong in (HOUSE_KEY, mistyped, MASTER_KEY, live[:-1], key_format.new_key("live").reveal()):
        await day.ask(wrong, "GET", "/v1/models")
    for path in ("/v1/models", "/v1/usage", "/v1/budgets", CREDENTIAL, "/nowhere", "/docs"):
        for caller in (live, user, test, admin, None):
            await day.ask(caller, "GET", path)
    await day.ask(admin, "GET", "/metrics")
    await day.ask(live, "GET", "/metrics")
    await day.ask(None, "GET", "/images/img_0?exp=1&sig=x")
    await misplace(day, live, admin)


async def misplace(day: Day, live: str, admin: str) -> None:
    """Send keys where none belongs, and read what the request log has kept of it."""
    named = Day(day.base_url)  # who sends a field is told its name
    for misplaced in (live, TENANT_SECRETS["mistyped key"]):
        await named.ask(live, "POST", PATH, json=LOW | {misplaced: LOW["prompt"]})
        await day.ask(live, "POST", PATH, json=LOW, headers={"X-Request-Id": misplaced})
        await day.ask(live, "GET", f"/v1/requests/{misplaced}")
    await day.ask(live, "GET", "/v1/requests")
    await day.ask(admin, "GET", "/admin/v1/requests")


def documents(text: str) -> list[dict[str, Any]]:
    """The JSON objects that a text consists of, and of nothing else."""
    found, decoder = [], json.JSONDecoder()
    while text := text.strip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


async def dump(served: Served) -> dict[str, bytes]:
    """Every row of every table as text; bytes are in it as hexadecimal digits."""
    names = await served.owner_sql(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'm')"
        " AND relnamespace = 'public'::regnamespace"
    )
    found = {}
    for (name,) in names:
        rows = await served.owner_sql(f'SELECT t::text FROM "{name}" t')  # noqa: S608 - own table
        found[name] = "\n".join(row[0] for row in rows).encode()
    return found


def leaks(places: dict[str, bytes], secrets: dict[str, bytes]) -> set[tuple[str, str]]:
    return {
        (place, name)
        for place, content in places.items()
        for name, secret in secrets.items()
        if any(spelling in content for spelling in spellings(secret))
    }


async def test_no_secret_leaves_in_logs_answers_metrics_or_rows(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    keys = {
        "live": secret_of(await served.key()),
        "user": secret_of(await served.key(user="alice")),
        "test": secret_of(await served.key(livemode=False)),
        "admin": key_format.new_key("admin").reveal(),
    }
    core = served.gateway.core
    environment = process_environment(settings) | {
        "GATEWAY_LOG_LEVEL": "DEBUG",
        "GATEWAY_ADMIN_KEY": keys["admin"],
    }
    with gateway_process(environment, tmp_path / "log") as process:
        await process.until_ready()
        day = Day(process.base_url)
        await work(day, keys, stub)
    assert {200, 204, 400, 401, 403, 404, 424, 503, 504} <= day.statuses
    log = (tmp_path / "log").read_bytes()
    tables = await dump(served)
    assert len(log.splitlines()) > len(day.answers)
    assert {"credential", "sealed_secret", "api_key", "ledger"} <= tables.keys()
    assert len(tables["request_log"].splitlines()) > len(day.answers) // 2
    assert LOW["prompt"].encode() not in tables["request_log"] + log
    secrets = {name: text.encode() for name, text in (keys | TENANT_SECRETS).items()}
    secrets |= {
        "house key": HOUSE_KEY.encode(),
        "master key": base64.urlsafe_b64decode(MASTER_KEY),
        "pepper": core.pepper.value,
        "link key": core.secrets.signing_link_key(time.time()),
    }
    answers = b"\n".join(day.answers)
    assert leaks({"log": log, "answers": answers} | tables, secrets) == set()
    # The first and last characters that a provider leaves of a key it complains of.
    parts = {name: secret[:8] for name, secret in secrets.items() if "no usual form" in name}
    parts["house key"] = HOUSE_KEY[-12:].encode()
    assert leaks({"log": log, "answers": answers}, parts) == set()


async def test_the_log_is_json_for_every_request(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    environment = process_environment(settings) | {"GATEWAY_LOG_LEVEL": "DEBUG"}
    with gateway_process(environment, tmp_path / "log", "--json") as process:
        await process.until_ready()
        day = Day(process.base_url)
        for path in ("/v1/models", "/nowhere\r\nfake", "/%0a%7b%22event%22%3a%22fake%22%7d"):
            await day.ask("igw_live_x", "GET", path.replace("\r\n", "%0d%0a"))
    events = [document.get("event") for document in documents((tmp_path / "log").read_text())]
    assert "request" in events
    assert "fake" not in events
    assert stub.calls == []


async def test_objects_in_memory_cannot_print_their_secrets(served: Served) -> None:
    core = served.gateway.core
    key = await served.key()
    shown = repr((served.gateway, core, served.gateway.settings, served.gateway.links, key))
    secrets = {
        "house key": HOUSE_KEY.encode(),
        "master key": MASTER_KEY.encode(),
        "pepper": core.pepper.value,
        "link key": core.secrets.signing_link_key(time.time()),
        "API key": secret_of(key).encode(),
    }
    assert leaks({"repr": shown.encode()}, secrets) == set()
