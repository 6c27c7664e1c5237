"""A gateway accepts each of its commands on the pages that list them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.cli.test_cli_manners import GENERATIONS, IMAGE, RunningGateway, running_gateway
from tests.docs.pages import ROOT, CodeBlock, all_blocks, blocks_of
from tests.docs.running import RUN_PAGES
from tests.docs.shell import is_rehearsed, simple_commands

GUIDE = "docs/guide.md"
TENANT, CLIENT, LOST = "acme", "prometheus", "NAME"
STARTING = {"serve", "demo", "--version", "--help"}
"""Commands that other tests run: the first two go on until they are stopped."""
ENDING = re.compile(r"(?:users|tenants) (?:suspend|disable|delete)|keys revoke KEY_ID")
"""Commands after which others would be refused; they are run last."""
TRIES = 100
PROVIDER_KEY = "sk-made-up-0123456789abcdef"


def listed(block: CodeBlock) -> list[list[str]]:
    """The commands in a block that no other test runs, without the program's name."""
    if block.language != "sh" or block.not_run is not None:
        return []
    if block.page in RUN_PAGES or is_rehearsed(block):
        return []
    found = (words for words in simple_commands(block.text) if words[0].endswith("gateway"))
    return [words[1:] for words in found if words[1] not in STARTING]


PAGES = sorted({block.page for block in all_blocks() if listed(block)})


@dataclass
class Reader:
    """Runs a page's commands, with the reader's own names and ids instead of the page's."""

    running: RunningGateway
    names: dict[str, str]

    def prepare(self, page: str, commands: Sequence[list[str]]) -> None:
        """Make what the page takes for granted."""
        for block in blocks_of(ROOT / page):
            if block.language == "toml":
                (self.running.command.folder / "prices.toml").write_text(block.text)
        words = {word for command in commands for word in command}
        if TENANT in words and page != GUIDE:
            self.run(["tenants", "create", TENANT])
            self.run(["keys", "create", "--tenant", TENANT, "--user", "alice"])
        if LOST in words:
            self.run(["admin-keys", "create", "--name", LOST])

    def run(self, words: list[str]) -> None:
        """Run a command and expect that it is accepted."""
        mine = [self.mine(word, words[0]) for word in words]
        # A secret is read from standard input, and so is the name of what is deleted.
        stdin = f"{mine[2]}\n" if "delete" in words else PROVIDER_KEY
        ended = self.running.command(*mine, stdin=stdin)
        assert ended.status == 0, f"{mine}: {ended.err}"

    def mine(self, word: str, group: str) -> str:
        """The word with the reader's names, and the id of something of the reader's for an id."""
        for shown, real in self.names.items():
            word = re.sub(rf"\b{shown}\b", real, word)
        if re.fullmatch("ID|01a2[0-9a-f-]{32}", word):
            return self.unknown_call()
        if re.fullmatch("req_[0-9a-f]{24}", word):
            return self.request()
        if word == "WEBHOOK_ID" or (group, word) == ("admin-keys", "KEY_ID"):
            return self.newest(group, "list")
        if word in {"KEY_ID", "x7Qa"}:
            return self.newest("keys", "list", "--tenant", self.names[TENANT])
        return word

    def newest(self, *listing: str) -> str:
        """The id of the newest one."""
        found = self.running.command(*listing, "--json")
        return str(max(one["id"] for one in found.json()))

    def unknown_call(self) -> str:
        """The id of a call whose outcome is not known."""
        body = IMAGE | {"prompt": "[sandbox:unknown]"}
        answer = self.running.ask(
            "POST", GENERATIONS, self.running.quickstart["test_key"], json=body
        )
        return str(answer.headers["x-gateway-generation-id"])

    def request(self) -> str:
        """The id of a request, once the log has it."""
        answer = self.running.ask("GET", "/v1/models", self.running.quickstart["test_key"])
        request_id = str(answer.headers["x-request-id"])
        for _ in range(TRIES):
            if self.running.command("requests", "show", request_id).status == 0:
                break
        return request_id


@pytest.fixture(scope="module")
def running() -> Iterator[RunningGateway]:
    """One gateway for all pages."""
    with running_gateway() as gateway:
        yield gateway


def test_the_pages_with_most_commands_are_among_them() -> None:
    assert {GUIDE, "docs/admin.md", "docs/limits.md", "docs/runbooks/cost-unknown.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_are_accepted(running: RunningGateway, page: str) -> None:
    own = f"{PAGES.index(page)}"
    names = {name: f"{name.lower()}-{own}" for name in (TENANT, CLIENT, LOST)}
    reader = Reader(running, names)
    commands = [words for block in blocks_of(ROOT / page) for words in listed(block)]
    reader.prepare(page, commands)
    ending = [words for words in commands if ENDING.match(" ".join(words))]
    for words in [*(words for words in commands if words not in ending), *ending]:
        reader.run(words)
