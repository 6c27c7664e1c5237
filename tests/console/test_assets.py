"""Static files: what they are, how they are served, and that pages use nothing else."""

import hashlib
import re
import tomllib
from pathlib import Path

import pytest

from gateway.console.assets import STATIC, assets
from gateway.console.render import TEMPLATES, environment
from tests.harness import Served

HASH = re.compile(r"/console/static/([0-9a-f]{12})/")
INLINE = re.compile(
    r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\bsrc=)|javascript:", re.IGNORECASE
)


def test_vendored_files_are_those_that_were_recorded() -> None:
    recorded = tomllib.loads((STATIC / "VENDOR.toml").read_text())
    files = [one for package in recorded["packages"] for one in package["files"]]
    for one in files:
        found = hashlib.sha256((STATIC / one["path"]).read_bytes()).hexdigest()
        assert found == one["sha256"], one["path"]
    licences = {package["licence_file"] for package in recorded["packages"]}
    folder = {f"vendor/{path.name}" for path in (STATIC / "vendor").iterdir()}
    assert folder == {one["path"] for one in files if one["path"].startswith("vendor/")} | licences
    for package in recorded["packages"]:
        assert package["integrity"].startswith("sha512-")
        assert package["licence"]


def test_every_icon_that_a_page_names_is_in_the_sprite() -> None:
    sprite = set(re.findall(r'<symbol id="([a-z0-9-]+)"', (STATIC / "icons.svg").read_text()))
    sources = [*TEMPLATES.rglob("*.html"), *TEMPLATES.parent.rglob("*.py")]
    texts = "\n".join(path.read_text() for path in sources)
    named = set(re.findall(r'icon\("([a-z0-9-]+)"\)', texts))
    named |= set(re.findall(r'icon_name="([a-z0-9-]+)"', texts))
    named |= set(re.findall(r'NavigationItem\("[^"]*", "[^"]*", "([a-z0-9-]+)"', texts))
    assert len(named) > 5
    assert named <= sprite


def test_every_icon_of_the_sprite_is_used() -> None:
    sprite = re.findall(r'<symbol id="([a-z0-9-]+)"', (STATIC / "icons.svg").read_text())
    sources = [*TEMPLATES.rglob("*.html"), *TEMPLATES.parent.rglob("*.py"), *STATIC.glob("*.js")]
    named = set(re.findall(r'["\']([a-z0-9-]+)["\']', "\n".join(map(Path.read_text, sources))))
    assert [icon for icon in sprite if icon not in named] == []


def test_templates_hold_no_inline_script_or_style_and_are_valid() -> None:
    paths = sorted(TEMPLATES.rglob("*.html"))
    assert paths
    for path in paths:
        assert INLINE.findall(path.read_text()) == [], path.name
        environment().get_template(path.relative_to(TEMPLATES).as_posix())


def test_the_inline_rule_finds_planted_offences() -> None:
    planted = ('<p style="x">', "<style>", '<a onclick="x">', "<script>x</script>", "javascript:x")
    assert all(INLINE.search(text) for text in planted)


@pytest.mark.asyncio(loop_scope="module")
async def test_files_are_served_for_ever_under_their_hash(unchanged: Served) -> None:
    url = assets().url("base.css")
    found = HASH.match(url)
    assert found
    async with unchanged.http() as http:
        answer = await http.get(url)
        assert answer.status_code == 200
        assert answer.content == (STATIC / "base.css").read_bytes()
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-type"] == "text/css; charset=utf-8"
        assert answer.headers["content-encoding"] == "gzip"
        plain = await http.get(url, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == answer.content
        # Another release's page asks this one: it is answered, and nothing is kept.
        old = await http.get(url.replace(found[1], "0" * 12))
        assert (old.status_code, old.headers["cache-control"]) == (200, "no-store")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "path",
    ["VENDOR.toml", "../assets.py", "..%2fassets.py", "%2e%2e/assets.py", "vendor", "none.js"],
)
async def test_nothing_else_of_the_package_is_served(unchanged: Served, path: str) -> None:
    async with unchanged.http() as http:
        answer = await http.get(f"/console/static/{assets().hash}/{path}")
    assert answer.status_code in {401, 404}, answer.text


def test_a_file_that_is_not_there_is_an_error_of_the_template() -> None:
    with pytest.raises(KeyError, match=r"none\.css"):
        assets().url("none.css")


def test_the_wheel_takes_all_files_of_the_folder() -> None:
    root = Path(__file__).resolve().parents[2]
    build = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert "/gateway" in build["targets"]["wheel"]["include"]
