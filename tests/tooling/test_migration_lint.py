"""The lint of migrations refuses what would stop the gateways that are serving."""

import pytest

from tests.tooling.migration_lint import refusals, scripts_of

REVISION = '''
"""Add a column."""

revision = "2027_01_01_more"
COLUMN = """
ALTER TABLE image ADD COLUMN seed bigint;
"""
NAMES = ("a", "b")
'''


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE INDEX i ON ledger (at);",
        "ALTER TABLE ledger ADD CONSTRAINT c CHECK (seq >= 0);",
        "ALTER TABLE image ADD CONSTRAINT f FOREIGN KEY (user_id) REFERENCES tenant_user (id);",
        "ALTER TABLE image ADD COLUMN seed bigint NOT NULL;",
        "ALTER TABLE image ALTER COLUMN width TYPE bigint;",
        "ALTER TABLE image RENAME COLUMN width TO columns;",
        "ALTER TABLE image DROP COLUMN width;",
        "DROP TABLE image_cleanup;",
    ],
)
def test_a_statement_that_locks_for_long_or_breaks_the_last_release_is_refused(
    statement: str,
) -> None:
    assert refusals(statement) != ""


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE INDEX CONCURRENTLY i ON ledger (at);",
        "ALTER TABLE ledger ADD CONSTRAINT c CHECK (seq >= 0) NOT VALID;",
        "ALTER TABLE ledger VALIDATE CONSTRAINT c;",
        "ALTER TABLE image ADD COLUMN seed bigint;",
        "CREATE TABLE one (id uuid PRIMARY KEY, of bigint); CREATE INDEX i ON one (of);",
        "-- squawk-ignore ban-drop-column\nALTER TABLE image DROP COLUMN width;",
    ],
)
def test_a_statement_that_waits_for_no_one_passes(statement: str) -> None:
    assert refusals(statement) == ""


def test_the_scripts_of_a_revision_are_its_constants_of_text() -> None:
    assert list(scripts_of(REVISION)) == [
        ("COLUMN", "\nALTER TABLE image ADD COLUMN seed bigint;\n")
    ]
