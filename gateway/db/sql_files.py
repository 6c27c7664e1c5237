"""The SQL functions, triggers and views: files of the package, applied whenever they change.

They are not in the migrations: a function would stand there whole in every version that it ever
had, and none of them could be compared with the one before.
"""

import hashlib
from pathlib import Path
from typing import cast

from sqlalchemy import AdaptedConnection, Connection, text

FILES = (
    "billing/sql/periods.sql",
    "billing/sql/alerts.sql",
    "billing/sql/claims.sql",
    "billing/sql/reserve.sql",
    "billing/sql/settle.sql",
    "billing/sql/unknown.sql",
    "billing/sql/invariants.sql",
    "tenancy/sql/access.sql",
    "request_log/sql/request_log.sql",
    "db/sql/changes.sql",
)
"""In the order in which they are applied: a function stands before those that call it."""

_PACKAGE = Path(__file__).resolve().parents[1]
_NOTE = text(
    "INSERT INTO applied_sql (file, digest) VALUES (:file, :digest) ON CONFLICT (file)"
    " DO UPDATE SET digest = excluded.digest, applied_at = clock_timestamp()"
)


def read_sql_file(name: str) -> str:
    """The text of one of `FILES`."""
    return (_PACKAGE / name).read_text(encoding="utf-8")


def apply_sql_files(connection: Connection) -> list[str]:
    """Run the files whose text has changed since they were last run here; return their names.

    Each can be run again: it creates or replaces. A changed argument list or result is another
    function to Postgres, so a migration drops the old one first.
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
    return changed


def run_script(connection: Connection, script: str) -> None:
    """Run several statements in the connection's transaction.

    The driver prepares what it is given as parameters or text, and prepares one statement alone.
    """
    connection.execute(text("SELECT 1"))  # begins the transaction, which the next line would not
    adapted = cast("AdaptedConnection", connection.connection.dbapi_connection)
    adapted.run_async(lambda driver: driver.execute(script))
