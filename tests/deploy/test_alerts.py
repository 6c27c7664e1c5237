"""Alerts, their runbooks and Grafana's dashboards, and what a real Prometheus makes of them."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml  # type: ignore[import-untyped]  # ships without types
from prometheus_client import Counter, Histogram

from gateway.cli.app import COMMANDS, load
from gateway.config import Settings
from tests.harness import GPT2, Served, free_port, served_gateway
from tests.money_helpers import eventually
from tests.stub_openai import Fault, Stub
from tests.tooling.metric_pages import labels_of, metrics, name_of

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy/alerts.yaml"
RULE_TESTS = ROOT / "tests/deploy/alerts.test.yaml"
BOARDS = sorted((ROOT / "deploy/grafana").glob("*.json"))
RUNBOOKS = ROOT / "docs/runbooks"
GUIDES = ROOT / "docs/guides"
SECTIONS = ["Meaning", "Look", "Act", "Done when"]
VARIABLES = {
    "$instance": ".*",
    "$provider": ".*",
    "$tenant": ".*",
    "$__rate_interval": "1m",
    "$__range": "1m",
}
OWN = {"up", "ALERTS"}
"""Series of Prometheus itself."""

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="the Debian package prometheus is not installed",
)


def rules() -> list[dict[str, Any]]:
    """Every rule."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Every rule that alerts."""
    return [rule for rule in rules() if "alert" in rule]


def boards() -> list[dict[str, Any]]:
    """Every dashboard."""
    return [json.loads(path.read_text()) for path in BOARDS]


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels, without the titles of rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Every query of alerts, boards, runbooks and guides, by where it stands."""
    found = {str(rule.get("alert") or rule.get("record")): str(rule["expr"]) for rule in rules()}
    for board in boards():
        for panel in panels(board):
            for target in panel["targets"]:
                place = f"{board['title']}: {panel['title']} {target['refId']}"
                found[place] = target["expr"]
    for page in (*RUNBOOKS.glob("*.md"), *GUIDES.glob("*.md")):
        for number, line in enumerate(blocks(page, "promql")):
            found[f"{page.name} {number}"] = line
    for name, value in VARIABLES.items():
        found = {place: query.replace(name, value) for place, query in found.items()}
    return found


def blocks(page: Path, language: str) -> list[str]:
    """The lines of a page's code blocks in one language."""
    found = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    return [line for block in found for line in block.splitlines() if line]


def promtool(*arguments: str | Path) -> str:
    """Run promtool; what it says, if it is content."""
    ended = subprocess.run(
        ["promtool", *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@needs_prometheus
def test_promtool_accepts_the_rules_and_each_fires_and_rests_as_it_should() -> None:
    assert "SUCCESS" in promtool("check", "rules", ALERTS)
    promtool("test", "rules", RULE_TESTS)


def test_each_alert_is_tested_firing_and_resting() -> None:
    fired: dict[str, set[bool]] = {alert["alert"]: set() for alert in alerts()}
    for test in yaml.safe_load(RULE_TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            fired[case["alertname"]].add(bool(case["exp_alerts"]))
    assert {name for name, cases in fired.items() if cases != {True, False}} == set()


def test_each_alert_has_a_severity_a_summary_and_a_runbook() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}
        assert alert["annotations"]["summary"].endswith(".")
        page = ROOT / alert["annotations"]["runbook"]
        text = page.read_text()
        assert f"`{alert['alert']}`" in text.partition("## ")[0]
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    index = set(re.findall(r"\| `(Gateway\w+)` \| \[.+\]\((.+\.md)\) \|", _index()))
    assert index == {
        (alert["alert"], Path(alert["annotations"]["runbook"]).name) for alert in alerts()
    }
    assert {file for _, file in index} == {page.name for page in RUNBOOKS.glob("[a-z]*.md")}


def _index() -> str:
    return (RUNBOOKS / "README.md").read_text()


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of the gateway that a runbook names, by page."""
    for page in sorted(RUNBOOKS.glob("*.md")):
        inline = re.findall(r"`(gateway [^`]+)`", page.read_text())
        for line in [*blocks(page, "sh"), *inline]:
            words = shlex.split(line.partition(" > ")[0], comments=True)
            if words[0] == "gateway":
                yield page.name, words[1:]


def test_the_commands_of_runbooks_exist() -> None:
    checked = 0
    for page, words in commands():
        assert words[0] in COMMANDS, (page, words)
        command, rest = load(words[0]), words[1:]
        if hasattr(command, "commands"):
            assert rest[0] in command.commands, (page, words)
            command, rest = command.commands[rest[0]], rest[1:]
        known = {name for option in command.params for name in option.opts}
        assert {word for word in rest if word.startswith("--")} - known == set(), (page, words)
        checked += 1
    assert checked > 30


def test_dashboards_have_ids_variables_units_and_descriptions() -> None:
    assert [path.stem for path in BOARDS] == ["money", "overview", "providers", "tenants"]
    assert len({board["uid"] for board in boards()}) == len(BOARDS)
    for board in boards():
        assert board["schemaVersion"] >= 39
        source, *others = board["templating"]["list"]
        assert (source["name"], source["type"]) == ("datasource", "datasource")
        named = {f"${other['name']}" for other in others}
        numbers = [panel["id"] for panel in board["panels"]]
        assert len(set(numbers)) == len(numbers)
        for panel in panels(board):
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            for target in panel["targets"]:
                used = set(re.findall(r"\$[a-z]\w*", target["expr"]))
                assert used <= named, panel["title"]
                assert target["datasource"]["uid"] == "${datasource}"


def test_queries_name_metrics_and_labels_that_exist() -> None:
    known = {}
    for metric in metrics():
        suffixes = ("_bucket", "_sum", "_count") if isinstance(metric, Histogram) else ("",)
        for suffix in suffixes:
            known[name_of(metric) + suffix] = {*labels_of(metric), "instance", "job", "le"}
    asked: set[str] = set()
    for place, query in queries().items():
        for name, chosen in re.findall(r"\b(gateway_\w+)(?:\{([^}]*)\})?", query):
            assert name in known, (place, name)
            labels = set(re.findall(r"(\w+)\s*[=!]~?\s*\"", chosen))
            assert labels <= known[name], (place, name, labels)
            asked.add(name)
        for grouped in re.findall(r"by \(([^)]*)\)", query):
            labels = {label.strip() for label in grouped.split(",") if label.strip()}
            used = [known[name] for name in re.findall(r"\b(gateway_\w+)", query)]
            assert labels <= set().union(*used), (place, labels)
    counters = {name_of(metric) for metric in metrics() if isinstance(metric, Counter)}
    assert len(asked & counters) > 10


# A real Prometheus


@asynccontextmanager
async def running_prometheus(
    folder: Path, served: Served, key: str
) -> AsyncIterator[httpx2.AsyncClient]:
    """Run Prometheus on loopback, which scrapes the gateway twice a second."""
    (folder / "key").write_text(key)
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {
                "job_name": "image-gateway",
                "authorization": {"credentials_file": str(folder / "key")},
                "static_configs": [{"targets": [served.base_url.removeprefix("http://")]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    promtool("check", "config", folder / "prometheus.yml")
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    process = _start(command, folder / "log")
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            await _until_ready(http)
            yield http
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 30)


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, env={"PATH": os.environ["PATH"]})


async def _until_ready(prometheus: httpx2.AsyncClient) -> None:
    async def is_ready() -> bool:
        try:
            return (await prometheus.get("/-/ready")).is_success
        except httpx2.TransportError:  # does not listen yet
            return False

    await eventually(is_ready)


async def ask(prometheus: httpx2.AsyncClient, query: str) -> list[dict[str, Any]]:
    """The series that a query has now."""
    answer = await prometheus.post("/api/v1/query", data={"query": query})
    assert answer.status_code == 200, (query, answer.text)
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


async def until(prometheus: httpx2.AsyncClient, query: str) -> None:
    """Wait until a query has a series."""

    async def has_one() -> bool:
        return bool(await ask(prometheus, query))

    await eventually(has_one)


async def spend(served: Served, stub: Stub) -> None:
    """Buy, fail, be refused, and look things up."""
    async with served.http(await served.key()) as http:
        one = {"prompt": "a red circle", "model": GPT2, "quality": "low"}
        for changes in ({}, {"response_format": "url"}, {"n": 0}):
            await http.post("/v1/images/generations", json=one | changes)
        stub.faults.add(Fault("status", status=500))
        await http.post("/v1/images/generations", json=one)
        await http.get("/v1/usage")


SILENT = (
    "Gateway",  # alerts: no reason to fire
    "Load shedding",
    "Rate limits",
    "No connection in time",
    "Time in queues",
    "In progress C",
    "Errors of the image store",
    "Webhooks B",
    "Alarms",
    "Open circuits",
    "Refused by circuits",
    "Left of the provider's rate limits",
    "Fallbacks",
)
"""The beginnings of panels about what may not happen at all: their queries have no series."""


@needs_prometheus
async def test_a_real_prometheus_answers_every_query_of_alerts_boards_and_runbooks(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    changes = {"metrics_tenants": "acme"}
    async with served_gateway(settings.model_copy(update=changes)) as served:
        admin = served.gateway.core.new_admin_key
        assert admin is not None
        await served.budget("5")
        await served.house_budget("10")
        await served.sweep()
        async with running_prometheus(tmp_path, served, admin.reveal()) as prometheus:
            await spend(served, stub)
            await served.sweep()
            await until(prometheus, 'gateway_tenant_cost_nano_usd_total{tenant="acme"} > 0')
            await spend(served, stub)
            await until(
                prometheus, 'rate(gateway_tenant_cost_nano_usd_total{tenant="acme"}[1m]) > 0'
            )
            await until(prometheus, "gateway:errors:ratio_rate6h")
            answers = {place: await ask(prometheus, query) for place, query in queries().items()}
            firing = await ask(prometheus, 'ALERTS{alertstate="firing"}')
    assert [place for place, found in answers.items() if not found and not is_silent(place)] == []
    # Other tests of this process may have counted them.
    assert {one["metric"]["alertname"] for one in firing} <= {"GatewayAlarm", "GatewayBreakGlass"}


def is_silent(place: str) -> bool:
    """True for a query that may have no series."""
    return place.rpartition(": ")[2].startswith(SILENT) or place.partition(" ")[0].endswith(".md")
