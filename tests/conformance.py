"""Thousands of requests generated from the API's description, whose answers must agree with it.

The engine of `schemathesis run` drives a served gateway from a thread: examples, the bounds of
every field and their other side, random bodies, and sequences in which one answer feeds the next.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder

from tests.harness import Served

SEED = 20_261_121
OPERATORS = r"^(/admin/|/metrics$)"
NOT_BLANK = r"(?=\S)"
STAYS = re.compile(rb'"status":"deleted"|"revoked_at":"')
LIKELY = 0.7
"""The share of ids in paths that exist."""


@dataclass(frozen=True)
class Spoken:
    """Refusals of valid data: rules that are stated in prose, since no schema can express them.

    By operation, the parameters that such a refusal may name; None stands for the body as a whole.
    """

    by_operation: Mapping[str, frozenset[str | None]]

    def allows(self, operation: str, content: bytes) -> bool:
        """Tell if a request that fits the schema may be refused for this parameter."""
        param = orjson.loads(content)["error"]["param"]
        name = None if param is None else re.split(r"[.\[]", param)[0]
        return name in self.by_operation.get(operation, ())


@dataclass
class Report:
    """Counts of the requests and answers, and the answers that broke the contract."""

    cases: int = 0
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    """One of each kind, with the request that shows it."""
    kinds: set[tuple[object, ...]] = field(default_factory=set)

    def answered(self, operation: str) -> set[int]:
        """The statuses of one operation's answers."""
        return {status for label, status in self.statuses if label == operation}


async def examine(
    served: Served, secret: str, *, operators: bool, examples: int, spoken: Spoken
) -> Report:
    """Send requests to every operation of the operators' routes, or of all the others."""
    async with served.http() as http:
        page = (await http.get("/openapi.json")).json()
    document = _quick_to_read(page)
    config = SchemathesisConfig.from_dict(_config(served, secret, examples))
    return await asyncio.to_thread(_run, document, config, operators=operators, spoken=spoken)


def _quick_to_read(part: Any) -> Any:
    r"""The same description, with "one character that is not blank" expressed differently.

    Of `\S` beside a length of at most 32 000 the engine makes `^\S{1,32000}$`: half a second for
    each of the hundreds of bodies that it varies, and no prompt with a blank in it.
    """
    if isinstance(part, list):
        return [_quick_to_read(item) for item in part]
    if isinstance(part, dict):
        quick = {name: _quick_to_read(item) for name, item in part.items()}
        return quick | {"pattern": NOT_BLANK} if quick.get("pattern") == r"\S" else quick
    return part


def _config(served: Served, secret: str, examples: int) -> dict[str, Any]:
    return {
        "seed": SEED,
        "base-url": served.base_url,
        "headers": {"Authorization": f"Bearer {secret}"},
        "request-timeout": 60,
        "continue-on-failure": True,
        "suppress-health-check": ["all"],
        "generation": {"mode": "all", "max-examples": examples, "deterministic": True},
        "output": {"sanitization": {"enabled": True}},
        "parameters": {"path.tenant_id": {"dictionary": "tenants", "probability": LIKELY}},
        "dictionaries": {"tenants": {"values": [str(served.tenant_id)]}},
    }


def _run(
    document: dict[str, Any], config: SchemathesisConfig, *, operators: bool, spoken: Spoken
) -> Report:
    every = schemathesis.openapi.from_dict(document, config=config)
    schema = (
        every.include(path_regex=OPERATORS) if operators else every.exclude(path_regex=OPERATORS)
    )
    report = Report()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _take(report, event.recorder, spoken)
        elif isinstance(event, events.NonFatalError):
            report.findings.append(f"{event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            raise event.exception
    return report


def _is_in_path(operation: str, content: bytes) -> bool:
    """Tell if a refusal names a parameter of the path."""
    return f"{{{orjson.loads(content)['error']['param']}}}" in operation


def _take(report: Report, recorder: ScenarioRecorder, spoken: Spoken) -> None:
    for case_id, interaction in recorder.interactions.items():
        if interaction.response is not None:
            label = recorder.cases[case_id].value.operation.label
            report.cases += 1
            report.statuses[label, interaction.response.status_code] += 1
    for case_id, check, failure, sample in _failures(recorder):
        label = recorder.cases[case_id].value.operation.label
        response = recorder.interactions[failure.case_id or case_id].response
        is_linked = recorder.cases[case_id].parent_id is not None
        content = b"" if response is None else response.content
        status = None if response is None else response.status_code
        if check == "positive_data_acceptance" and is_linked and _is_in_path(label, content):
            continue  # the engine's guess which id of an answer goes into a path was wrong
        if _is_meant(check, label, status, content, spoken):
            continue
        kind = (label, check, failure.title, status, content[:200])
        if kind in report.kinds:
            continue
        report.kinds.add(kind)
        report.findings.append(
            f"{label}: {check}: {failure.title}: {failure.message}\n{sample}\n{status} {content!r}"
        )


def _is_meant(check: str, label: str, status: int | None, content: bytes, spoken: Spoken) -> bool:
    """Tell if what the engine takes for a failure is as it should be."""
    match check:
        case _ if status == HTTPStatus.REQUEST_URI_TOO_LONG:
            return True  # refused by its length before it is read, whatever route it is for
        case "positive_data_acceptance":
            return spoken.allows(label, content)
        case "ensure_resource_availability":
            # What was made is there; something else was named in the body.
            return not _is_in_path(label, content)
        case "use_after_free":
            # Deleted users and tenants, and revoked keys, stay: the books name them.
            return STAYS.search(content) is not None
        case "not_a_server_error":
            # Documented, and meant: a machine this busy is what load is shed for.
            return status == HTTPStatus.SERVICE_UNAVAILABLE
        case _:
            return False


def _failures(recorder: ScenarioRecorder) -> Iterator[tuple[str, str, Failure, str]]:
    for case_id, checks in recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                yield (
                    case_id,
                    check.name,
                    check.failure_info.failure,
                    check.failure_info.code_sample,
                )
