"""The SQL functions, triggers and views: files of the package, applied when they change.

In migrations, each version of a function would be a full copy, without a diff to the one before.
"""

import hashlib
from pathlib import Path
from typing import cast

from sqlalchemy import AdaptedConnection, Connection, text

FILES = (
    "billing/sql/usage.sql",
    "billing/sql/usage_reports.sql",
    "billing/sql/periods.sql",
    "billing/sql/alerts.sql",
    "billing/sql/claims.sql",
    "billing/sql/reserve.sql",
    "billing/sql/reroute.sql",
    "billing/sql/settle.sql",
    "billing/sql/unknown.sql",
    "library/sql/storage.sql",
    "billing/sql/invariants.sql",
    "tenancy/sql/access.sql",
    "identity/sql/sessions.sql",
    "request_log/sql/request_log.sql",
    "db/sql/changes.sql",
    "billing/sql/months.sql",
    "billing/sql/archive.sql",
)
"""In the order of application: a function comes before its callers."""
ISOLATION = "db/sql/isolation.sql"
"""Roles, rights and policies: applied always, since any revision may create a table."""

_PACKAGE = Path(__file__).resolve().parents[1]
_NOTE = text(
    "INSERT INTO applied_sql (file, digest) VALUES (:file, :digest) ON CONFLICT (file)"
    " DO UPDATE SET digest = excluded.digest, applied_at = clock_timestamp()"
)


def read_sql_file(name: str) -> str:
    """Read the text of one of `FILES`, or of `ISOLATION`."""
    return (_PACKAGE / name).read_text(encoding="utf-8")


def apply_sql_files(connection: Connection) -> list[str]:
    """Run the files that have changed since they were last applied; return their names.

    Files are idempotent (CREATE OR REPLACE). A changed argument list or result is another
    function to Postgres, so a migration must drop the old one first.
    """
    rows = connection.execute(text("SELECT file, digest FROM applied_sql"))
    applied = {row.file: row.digest for row in rows}
    changed = []
    for name in FILES:
        content = read_sql_file(name)
        digest = hashlib.sha256(content.encode()).hexdigest()
        if applied.get(name) == digest:
            continue
        run_script(connection, content)
        connection.execute(_NOTE, {"file": name, "digest": digest})
        changed.append(name)
    run_script(connection, read_sql_file(ISOLATION))
    return changed


def run_script(connection: Connection, script: str) -> None:
    """Run several statements in the connection's transaction.

    The driver's usual calls prepare a statement, which cannot be more than one.
    """
    connection.execute(text("SELECT 1"))  # begins the transaction; the next line does not
    adapted = cast("AdaptedConnection", connection.connection.dbapi_connection)
    adapted.run_async(lambda driver: driver.execute(script))
