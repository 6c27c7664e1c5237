"""The version is written in `gateway/__init__.py`; every other place says the same."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from gateway import __version__
from tests.harness import Served
from tests.release.tags import headings, tag_problem
from tests.tooling import version_files

ROOT = Path(__file__).resolve().parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_newest_version_of_the_changelog_is_that_of_the_package() -> None:
    found = headings(CHANGELOG)
    assert found[0][0] == __version__
    assert [one for one, when in found[1:] if when == "not released"] == []
    numbers = [tuple(map(int, one.split("."))) for one, _when in found]
    assert numbers == sorted(set(numbers), reverse=True)


def test_a_tag_is_released_with_its_version_and_a_dated_heading_alone() -> None:
    dated = "# Changelog\n\n## 1.2.0 (2026-12-24)\n\n## 1.1.0 (2026-11-24)\n"
    assert tag_problem("v1.2.0", dated, "1.2.0") is None
    open_heading = dated.replace("2026-12-24", "not released")
    for tag, changelog, number in (
        ("", dated, "1.2.0"),
        ("1.2.0", dated, "1.2.0"),
        ("v1.1.0", dated, "1.2.0"),
        ("v1.2.0", open_heading, "1.2.0"),
        ("v1.3.0", dated, "1.3.0"),
    ):
        assert tag_problem(tag, changelog, number) is not None, (tag, number)
    with pytest.raises(ValueError, match="Unreleased"):
        headings("## Unreleased\n")


def test_the_package_has_no_second_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    assert version("image-gateway") == __version__


def test_image_and_chart_have_the_version() -> None:
    written = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in version_files.rendered()
    }
    assert f"ARG VERSION={__version__}\n" in written["Dockerfile"]
    assert 'org.opencontainers.image.version="${VERSION}"' in written["Dockerfile"]
    chart = written["deploy/helm/image-gateway/Chart.yaml"]
    assert f'\nappVersion: "{__version__}"\n' in chart
    for manifest in (ROOT / "deploy/kubernetes").glob("*.yaml"):
        text = manifest.read_text(encoding="utf-8")
        assert set(re.findall(r"app\.kubernetes\.io/version: (\S+)", text)) == {__version__}
        assert set(re.findall(r"image: image-gateway:(\S+)", text)) == {__version__}


async def test_the_description_of_the_api_has_the_version(served: Served) -> None:
    async with served.http() as http:
        described = (await http.get("/openapi.json")).json()
    assert described["info"]["version"] == __version__
