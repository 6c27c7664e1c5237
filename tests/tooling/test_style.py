"""The style rules, checked on every file that git would commit.

Each rule runs twice: on this checkout, where it must find nothing, and on planted offences, each
of which it must find.
"""

import ast
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from tests import style_rules as rules
from tests.style_rules import Rule, Source

ROOT = Path(__file__).resolve().parents[2]
TABLES_PATHS = (
    "gateway/db/tables.py",
    "gateway/db/console_tables.py",
    "gateway/db/money_tables.py",
    "gateway/db/request_tables.py",
    "gateway/db/spool_table.py",
)


def committed_paths() -> list[str]:
    """Files that git has or would add; outside a git checkout, every file that is not hidden."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
        paths = {path for path in listed.stdout.split("\0") if (ROOT / path).is_file()}
    except (OSError, subprocess.CalledProcessError):
        paths = set()
    if not paths:
        every = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        visible = (p for p in every if not any(part.startswith(".") for part in p.parts[:-1]))
        paths = {path.as_posix() for path in visible if path.name != ".env"}
    return sorted(paths)


def read_sources() -> list[Source]:
    """Every committed text file."""
    found = []
    for path in committed_paths():
        content = (ROOT / path).read_bytes()
        if b"\0" not in content:
            found.append(Source(path, content.decode(errors="replace")))
    return found


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return read_sources()


@pytest.fixture(scope="module")
def modules(sources: list[Source]) -> list[Source]:
    found = [source for source in sources if source.path.endswith(".py")]
    paths = {source.path for source in found}
    expected = {"gateway/__init__.py", "tests/tooling/test_style.py"}
    assert expected <= paths, "the checkout was not found"
    return found


def offences(rule: Rule, sources: Iterable[Source]) -> str:
    return "\n".join(sorted({offence for source in sources for offence in rule(source)}))


def expect_none(rule: Rule, sources: Iterable[Source]) -> None:
    if found := offences(rule, sources):
        pytest.fail(found, pytrace=False)


def test_modules_stay_under_500_lines(modules: list[Source]) -> None:
    expect_none(rules.long_modules, modules)


def test_functions_stay_under_70_lines(modules: list[Source]) -> None:
    expect_none(rules.long_functions, modules)


def test_sql_functions_stay_under_120_lines(sources: list[Source]) -> None:
    scripts = [source for source in sources if source.path.endswith(".sql")]
    assert any(source.path == "gateway/billing/sql/reserve.sql" for source in scripts)
    expect_none(rules.long_sql_functions, scripts)


def test_modules_say_what_they_are_for(modules: list[Source]) -> None:
    expect_none(rules.missing_docstrings, modules)


def test_docstrings_begin_with_an_imperative_or_a_noun_phrase(modules: list[Source]) -> None:
    expect_none(rules.headless_docstrings, modules)


def test_prose_uses_the_words_of_the_glossary(sources: list[Source]) -> None:
    expect_none(rules.odd_words, sources)


def test_imports_are_at_the_top(modules: list[Source]) -> None:
    expect_none(rules.local_imports, modules)


def test_only_the_configuration_reads_the_environment(modules: list[Source]) -> None:
    expect_none(rules.environment_reads, modules)


def test_no_float_touches_money(modules: list[Source]) -> None:
    expect_none(rules.floats_in_money, modules)


def test_only_the_top_catches_everything(modules: list[Source]) -> None:
    expect_none(rules.caught_everything, modules)


def test_public_functions_take_and_return_typed_values(modules: list[Source]) -> None:
    expect_none(rules.loose_signatures, modules)


def test_names_of_public_classes_are_unique(modules: list[Source]) -> None:
    if found := "\n".join(rules.repeated_class_names(modules)):
        pytest.fail(found, pytrace=False)


def test_only_commands_print(modules: list[Source]) -> None:
    expect_none(rules.stray_prints, modules)


def test_skipped_tests_say_why(modules: list[Source]) -> None:
    expect_none(rules.unexplained_skips, modules)


def test_tests_do_not_sleep(modules: list[Source]) -> None:
    expect_none(rules.sleeps, modules)


def test_tests_do_not_patch(modules: list[Source]) -> None:
    expect_none(rules.patches, modules)


def test_files_hold_no_trace_of_a_machine_or_registry(sources: list[Source]) -> None:
    expect_none(rules.machine_traces, sources)


def test_locks_hold_names_versions_and_hashes_only(sources: list[Source]) -> None:
    locks = [source for source in sources if source.path.endswith(".lock")]
    assert [lock.path for lock in locks] == [
        "requirements-dev.lock",
        "requirements-docs.lock",
        "requirements-production.lock",
        "requirements.lock",
        "tests/clients/requirements.lock",
        "tests/deploy/requirements.lock",
        "tests/release/requirements.lock",
    ]
    expect_none(rules.loose_locks, locks)


def test_queries_on_tenant_tables_take_the_tenant(modules: list[Source]) -> None:
    found = {module.path: module.tree for module in modules if module.path in TABLES_PATHS}
    assert set(found) == set(TABLES_PATHS), "a module is missing: the rule cannot be checked"
    owned = [rules.tenant_tables(tree) for tree in found.values()]
    assert all(owned), "a module has no class with a tenant_id: the rule checks nothing"
    tables = frozenset[str]().union(*owned)
    expect_none(partial(rules.unscoped_queries, tables=tables), modules)


# The rules themselves

TABLES = ast.parse(
    """
class Tenant(Table):
    id: Mapped[int]

class Owned:
    tenant_id: Mapped[int]

class Key(Owned, Table):
    id: Mapped[int]
"""
)
OWNED = rules.tenant_tables(TABLES)
unscoped_queries = partial(rules.unscoped_queries, tables=OWNED)

# Joined here so that this file does not hold what it forbids.
HOME = "/" + "home/alice/gateway"
REGISTRY = "https://" + "pypi" + ".org/simple"

A = "gateway/a.py"
BILLING = "gateway/billing/a.py"
MAIN = "gateway/maintenance.py"
T = "tests/a.py"
BODY = "    x = 1\n"
SQL = "gateway/billing/sql/a.sql"
SQL_FUNCTION = "CREATE OR REPLACE FUNCTION f(\n) RETURNS void AS $$\n{}$$;\n"
KEY = "from gateway.db.tables import Key, Tenant\n"
CATCH = "try: ...\nexcept Exception:"
SKIPIF = "@pytest.mark.skipif(True{})\ndef test(): ..."

PLANTED: list[tuple[Rule, str, str]] = [
    (rules.long_modules, A, "x = 1\n" * 501),
    (rules.long_functions, A, "def f():\n" + BODY * 70),
    (rules.long_functions, A, "class A:\n  async def f():\n" + BODY * 70),
    (rules.long_sql_functions, SQL, SQL_FUNCTION.format("x\n" * 118)),
    (rules.missing_docstrings, A, "x = 1"),
    (rules.headless_docstrings, A, '"""What it is for."""'),
    (rules.headless_docstrings, A, 'class A:\n  def f():\n    """Whether it is."""'),
    (rules.headless_docstrings, T, 'def helper():\n    """How many there are."""'),
    (rules.odd_words, "docs/a.md", "Nobody sees the picture"),
    (rules.odd_words, T, "# a stranger's key"),
    (rules.local_imports, A, "def f():\n    import json"),
    (rules.local_imports, A, "class A:\n  async def f():\n    from json import loads"),
    (rules.environment_reads, A, "import os\nos.environ['A']"),
    (rules.environment_reads, A, "import os as o\no.getenv('A')"),
    (rules.environment_reads, "migrations/env.py", "from os import environ as e\ne['A']"),
    (rules.floats_in_money, "gateway/money.py", "float('1')"),
    (rules.floats_in_money, BILLING, "x = 0.5"),
    (rules.floats_in_money, BILLING, "def f(x: list[float]): ..."),
    (rules.floats_in_money, BILLING, "def f() -> float | None: ..."),
    (rules.floats_in_money, BILLING, "x: 'float'"),
    (rules.caught_everything, "gateway/library/links.py", f"{CATCH}  # top: not the top\n  ..."),
    (rules.caught_everything, MAIN, f"{CATCH} ..."),
    (rules.caught_everything, MAIN, f"{CATCH}  # top:\n  ..."),
    (rules.caught_everything, MAIN, "try: ...\nexcept: ..."),
    (rules.caught_everything, MAIN, "with suppress(Exception): ..."),
    (rules.caught_everything, T, "try: ...\nexcept (OSError, BaseException): ..."),
    (rules.loose_signatures, A, "def f(x: dict[str, Any]): ..."),
    (rules.loose_signatures, A, "class A:\n  async def f() -> list[dict[str, Any]]: ..."),
    (rules.loose_signatures, A, "class A:\n  def __init__(self, x: dict[str, Any]): ..."),
    (rules.stray_prints, "gateway/images/cli.py", "print('x')"),
    (rules.unexplained_skips, T, "@pytest.mark.skip\ndef test(): ..."),
    (rules.unexplained_skips, T, SKIPIF.format("")),
    (rules.unexplained_skips, T, SKIPIF.format(", reason=''")),
    (rules.unexplained_skips, T, "def test():\n    pytest.skip()"),
    (rules.sleeps, T, "import asyncio\nawait asyncio.sleep(0.1)"),
    (rules.sleeps, T, "from time import sleep as nap\nnap(0)"),
    (rules.patches, T, "from unittest import mock"),
    (rules.patches, T, "from unittest.mock import patch"),
    (rules.patches, T, "def test(monkeypatch):\n    monkeypatch.setattr(a, 'b', 1)"),
    (rules.machine_traces, "docs/a.md", f"see {HOME}/README.md"),
    (rules.machine_traces, "a.lock", f"--index-url {REGISTRY}"),
    (rules.loose_locks, "a.lock", f"--index-url {REGISTRY}"),
    (rules.loose_locks, "a.lock", "fastapi"),
    (unscoped_queries, A, f"{KEY}def f(session): return select(Key)"),
    (unscoped_queries, A, f"{KEY}async def f(session, id): await session.get(Key, id)"),
    (unscoped_queries, A, f"{KEY}class A:\n  def f(self): return delete(Key)"),
    (unscoped_queries, A, f"{KEY}def f(): return select(count()).select_from(Key)"),
    (unscoped_queries, A, "from gateway.db import tables as t\ndef f(): sa.update(t.Key)"),
    (unscoped_queries, A, f"{KEY}QUERY = select(Key.id)"),
]

ACCEPTED: list[tuple[Rule, str, str]] = [
    (rules.long_modules, A, "x = 1\n" * 500),
    (rules.long_functions, A, "def f():\n" + BODY * 69),
    (rules.long_sql_functions, SQL, SQL_FUNCTION.format("x\n" * 117) * 2),
    (rules.missing_docstrings, A, '"""What it is for."""'),
    (rules.missing_docstrings, "tests/__init__.py", ""),
    (rules.headless_docstrings, A, '"""Whatever: no whole word of the list."""'),
    (rules.odd_words, "docs/a.md", "a pictured image"),
    (rules.odd_words, "tests/style_rules.py", "nobody"),
    (rules.local_imports, A, "if TYPE_CHECKING:\n    import json"),
    (rules.local_imports, T, "def test():\n    import json"),
    (rules.environment_reads, "gateway/config/loading.py", "import os\nos.environ['A']"),
    (rules.floats_in_money, BILLING, "x: int = 1\ny = isinstance(x, float)"),
    (rules.floats_in_money, "gateway/images/a.py", "x: float = 0.5"),
    (rules.caught_everything, "gateway/images/a.py", "try: ...\nexcept OSError: ..."),
    (rules.caught_everything, MAIN, f"{CATCH}  # top: any bug\n  ..."),
    (rules.loose_signatures, A, "def _f(x: dict[str, Any]): ..."),
    (rules.loose_signatures, A, "def f(x: Mapping[str, object]): ..."),
    (rules.stray_prints, "gateway/cli/demo.py", "print('x')"),
    (rules.unexplained_skips, T, SKIPIF.format(", reason='why'")),
    (rules.unexplained_skips, T, "def test():\n    pytest.skip('why')"),
    (rules.sleeps, T, "import asyncio\nawait asyncio.sleep(0)"),
    (rules.patches, T, "def test(monkeypatch):\n    monkeypatch.setenv('A', 'b')"),
    (rules.machine_traces, "docs/a.md", "https://example.com/home/alice/ and /var/lib/x"),
    (rules.loose_locks, "a.lock", "a==1.0 ; os_name == 'nt' \\\n    --hash=sha256:" + "0" * 64),
    (unscoped_queries, A, f"{KEY}def f(session, tenant_id): return select(Key)"),
    (unscoped_queries, A, f"{KEY}def f(session, caller: Caller): return select(Key)"),
    (unscoped_queries, A, f"{KEY}def f(session: OperatorSession): return select(Key)"),
    (unscoped_queries, A, f"{KEY}def f(session): return select(Tenant)"),
    (unscoped_queries, A, f"{KEY}Q = select(Key).where(Key.tenant_id == bindparam('t'))"),
]


def test_a_tenant_table_is_known_by_its_own_or_an_inherited_column() -> None:
    assert frozenset({"Owned", "Key"}) == OWNED


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_a_planted_offence_is_found(rule: Rule, path: str, text: str) -> None:
    assert offences(rule, [Source(path, text)]).startswith(f"{path}:")


@pytest.mark.parametrize(("rule", "path", "text"), ACCEPTED)
def test_good_code_is_accepted(rule: Rule, path: str, text: str) -> None:
    assert offences(rule, [Source(path, text)]) == ""


def test_a_class_name_that_two_modules_use_is_found() -> None:
    texts = ("class A: ...\nclass _B: ...", "\n\nclass A: ...\nclass _B: ...\nclass C: ...")
    first, second = (Source(f"gateway/{at}.py", text) for at, text in enumerate(texts))
    other = Source(T, "class A: ...\nclass C: ...")
    found = list(rules.repeated_class_names([first, second, other]))
    assert found == ["gateway/1.py:3: gateway/0.py has a class A too"]
