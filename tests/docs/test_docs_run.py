"""The quick starts and guides work as they stand, from the first block to the last."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_cli_manners import RunningGateway, running_gateway
from tests.docs.pages import ROOT, blocks_of
from tests.docs.quick_gateway import quick_gateway
from tests.docs.running import MODULES, NODE, RUN_PAGES, run_page

IMAGES = {
    "docs/start/application-python.md": ("lighthouse.png", "snow.png"),
    "docs/start/application-typescript.md": ("lighthouse.png", "snow.png"),
    "docs/start/curl.md": ("lighthouse.png",),
}
SAID = {
    "docs/start/application-python.md": ("bought once: true", "424 credential_rejected"),
    "docs/start/application-typescript.md": ("bought once: true", "Ask the user"),
    "docs/start/curl.md": ("x-gateway-cost-usd: 0.", '"object":"quote"', '"moderation_blocked"'),
    "docs/start/agent.md": ("generate_image", "moderation_blocked: "),
    "docs/start/operator.md": ("/console/login/link", "acme"),
    "docs/guides/migrate-from-openai.md": ("characters of base64",),
}
GIVEN = {"docs/guides/migrate-from-openai.md": {"openai-key.txt": "sk-made-up-0123456789abcdef"}}
"""Files that the reader has."""


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    """One gateway for all pages, as `make run` starts it."""
    with running_gateway() as gateway:
        yield gateway


@pytest.fixture(scope="module")
def programs(running: RunningGateway) -> Iterator[Path]:
    """The folder with the command `gateway`."""
    with quick_gateway(running.command, running.command.folder) as folder:
        yield folder


@pytest.mark.parametrize("page", RUN_PAGES)
def test_a_page_works_as_it_stands(
    running: RunningGateway, programs: Path, tmp_path: Path, page: str
) -> None:
    if any(block.language == "ts" for block in blocks_of(ROOT / page)):
        if NODE is None or not MODULES.exists():
            pytest.skip("Node and the package openai are not installed: make clients")
        (tmp_path / "node_modules").symlink_to(MODULES)
        (tmp_path / "package.json").write_text('{"type": "module"}')
    for name, text in GIVEN.get(page, {}).items():
        (tmp_path / name).write_text(text)
    ran = run_page(page, running, programs, tmp_path)
    assert ran.status == 0, ran.output
    assert [text for text in SAID.get(page, ()) if text not in ran.output] == [], ran.output
    for name in IMAGES.get(page, ()):
        with Image.open(tmp_path / name) as image:
            assert image.size == (1024, 1024)
