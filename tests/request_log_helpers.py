"""Helpers for tests of the request log: its rows, its lines, and calls with every outcome."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from gateway.request_record import SHOWN
from tests.harness import Served

Json = dict[str, Any]


@dataclass(frozen=True)
class Logged:
    """Lines and rows of the same requests, each without what it lacks."""

    lines: list[Json]
    rows: list[Json]


async def rows_of(served: Served) -> list[Json]:
    """Every row of the table, oldest first, as the log line has it."""
    await served.gateway.request_log.flush()
    found = await served.owner_sql("SELECT to_jsonb(r) AS row FROM request_log r ORDER BY at, id")
    return [plain(row.row) for row in found]


def plain(row: Json) -> Json:
    """A row with the names of a log line."""
    named = {("request_id" if name == "id" else name): value for name, value in row.items()}
    named["at"] = datetime.fromisoformat(named["at"]).isoformat()
    return {name: value for name, value in named.items() if value is not None}


def request_lines(text: str) -> list[Json]:
    """The lines of requests in a log of JSON lines."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == "request"]


async def logged(served: Served, capfd: pytest.CaptureFixture[str]) -> Logged:
    """The log lines since the last call, and the rows; both have fields of the record only."""
    rows = await rows_of(served)
    lines = request_lines(capfd.readouterr().err)
    for line in lines:
        assert set(line) - {"event", "level"} <= set(SHOWN)
    return Logged([plain({k: v for k, v in one.items() if k in SHOWN}) for one in lines], rows)
