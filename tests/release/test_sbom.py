"""The bill of materials: valid, complete, and the same from run to run."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gateway import __version__
from tests.release.packages import PRODUCTION_LOCK, ROOT, locked
from tests.release.sbom import bill_of_materials

TOOLS = ROOT / ".venv/release"


@pytest.fixture(scope="module")
def bill() -> dict[str, Any]:
    return dict(json.loads(bill_of_materials()))


def test_it_has_every_package_of_the_production_lock_with_its_licence(
    bill: dict[str, Any],
) -> None:
    expected = {
        (one.name, one.version) for one in locked(PRODUCTION_LOCK) if one.is_for_this_machine()
    }
    found = [one for one in bill["components"] if one["purl"].startswith("pkg:pypi/")]
    assert {(one["name"], one["version"]) for one in found} == expected
    assert [one["name"] for one in found if not one["licenses"][0]["expression"]] == []
    scopes = {one["name"]: one["scope"] for one in found}
    assert (scopes["fastapi"], scopes["hatchling"]) == ("required", "excluded")


def test_it_has_the_vendored_files_of_the_console(bill: dict[str, Any]) -> None:
    vendored = {
        one["name"]: [file["name"] for file in one["components"]]
        for one in bill["components"]
        if one["purl"].startswith("pkg:npm/")
    }
    assert set(vendored) == {"htmx.org", "lucide-static"}
    for names in vendored.values():
        assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_package_that_runs_is_reached_from_the_gateway(bill: dict[str, Any]) -> None:
    graph = {one["ref"]: one.get("dependsOn", []) for one in bill["dependencies"]}
    reached: set[str] = set()
    waiting = [bill["metadata"]["component"]["bom-ref"]]
    while waiting:
        reference = waiting.pop()
        if reference not in reached:
            reached.add(reference)
            waiting += graph[reference]
    required = {one["bom-ref"] for one in bill["components"] if one["scope"] == "required"}
    assert reached == required | {f"pkg:pypi/image-gateway@{__version__}"}


def test_it_repeats_and_names_no_time_serial_or_folder() -> None:
    text = bill_of_materials()
    assert text == bill_of_materials()
    assert "timestamp" not in text
    assert "serialNumber" not in text
    assert "file://" not in text
    assert str(ROOT) not in text


@pytest.mark.skipif(
    not (TOOLS / ".ready").exists(),
    reason="the tools for releases are not installed: make release-tools",
)
def test_it_is_valid_by_the_schema_of_cyclonedx(tmp_path: Path) -> None:
    text = bill_of_materials()
    for name, content, status in (
        ("bill.json", text, 0),
        ("broken.json", text.replace('"required"', '"needed"'), 1),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        checked = subprocess.run(
            [TOOLS / "bin/python", "tests/release/validate_sbom.py", tmp_path / name],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        assert checked.returncode == status, checked.stderr.decode()[:2000]
