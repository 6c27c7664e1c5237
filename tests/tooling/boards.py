"""Grafana's dashboards, `deploy/grafana/*.json`, which `make generated` writes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.tooling.board_overview import OVERVIEW
from tests.tooling.board_panels import MONEY, PROVIDERS, TENANTS
from tests.tooling.board_parts import Board, Panel, Row

BOARDS = (OVERVIEW, MONEY, PROVIDERS, TENANTS)
FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "grafana"
SCHEMA_VERSION = 39
"""Of Grafana 11; newer ones read it."""
COLUMNS = 24
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def rendered() -> dict[Path, str]:
    """The text that each file should have."""
    return {
        FOLDER / f"{board.name}.json": json.dumps(dashboard(board), indent=2) + "\n"
        for board in BOARDS
    }


def dashboard(board: Board) -> dict[str, Any]:
    """One dashboard in Grafana's JSON model."""
    return {
        "uid": f"image-gateway-{board.name}",
        "title": f"Image Gateway: {board.title}",
        "description": board.description,
        "tags": ["image-gateway"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "title": "Image Gateway",
                "tags": ["image-gateway"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": list(_variables(board.variables))},
        "annotations": {"list": []},
        "panels": list(_panels(board.rows)),
    }


def _variables(queries: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    yield {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "includeAll": False,
        "multi": False,
    }
    for name, query in queries.items():
        yield {
            "name": name,
            "label": name.capitalize(),
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,
            "sort": 1,
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "current": {"text": ["All"], "value": ["$__all"]},
        }


def _panels(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": top},
        }
        top += 1
        edges = [COLUMNS * place // len(row.panels) for place in range(len(row.panels) + 1)]
        for panel, (left, right) in zip(row.panels, pairwise(edges), strict=True):
            number += 1
            place = {"h": HEIGHT, "w": right - left, "x": left, "y": top}
            yield _panel(panel, number, place)
        top += HEIGHT


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.limit is not None:
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"color": "green", "value": None}, {"color": "red", "value": panel.limit}],
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend,
                "instant": panel.kind != "timeseries",
                "range": panel.kind == "timeseries",
            }
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}}
