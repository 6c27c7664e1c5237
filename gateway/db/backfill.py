"""Backfills: a migration changes the rows of a large table in batches, while gateways serve."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DBAPIError

BATCH = 5_000
ATTEMPTS = 8
RETRIED = frozenset({"55P03", "40P01"})
"""SQLSTATEs of a lock that was not available in time, and of a deadlock."""
_PROGRESS = text("SELECT seen, changed FROM backfill_progress WHERE name = :name")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backfill:
    """A change of every row of a table that meets a condition.

    `name`: that of its revision, under which its progress is recorded. `key`: the columns of the
    primary key, in order, with their types. `change` and `where` are SQL, from the revision alone;
    `where` must not hold for rows that are changed already.
    """

    name: str
    table: str
    key: Mapping[str, str]
    change: str
    where: str


@dataclass(frozen=True, slots=True)
class BackfillProgress:
    """The rows that were read and changed so far, also by earlier runs."""

    seen: int
    changed: int


def run_backfill(
    connection: Connection,
    backfill: Backfill,
    *,
    batch: int = BATCH,
    note: Callable[[BackfillProgress], None] | None = None,
) -> BackfillProgress:
    """Change the rows in the order of their key, `batch` of them in each commit; return the number.

    The connection commits each statement by itself (`autocommit_block`). The place that was reached
    is recorded in the commit of each batch: an interrupted run goes on there. Between two batches
    it rests for as long as the last one took. `note` is given each batch's progress.

    Raises:
        DBAPIError: a batch failed, or waited for a lock in each of several attempts.
    """
    found = connection.execute(_PROGRESS, {"name": backfill.name}).one_or_none()
    done = BackfillProgress(0, 0) if found is None else BackfillProgress(found.seen, found.changed)
    is_begun = found is not None
    while True:
        began = time.monotonic()
        statement = _statement(backfill, is_begun=is_begun)
        row = _attempt(connection, statement, {"name": backfill.name, "batch": batch})
        is_begun = True
        if row.batch_seen == 0:
            break
        done = BackfillProgress(row.seen, row.changed)
        log.info("backfill", name=backfill.name, seen=done.seen, changed=done.changed)
        if note is not None:
            note(done)
        if row.batch_seen < batch:
            break
        time.sleep(time.monotonic() - began)
    connection.execute(
        text("DELETE FROM backfill_progress WHERE name = :name"), {"name": backfill.name}
    )
    return done


def _statement(backfill: Backfill, *, is_begun: bool) -> str:
    """Build the statement of one batch, which also records where it ended.

    Only without an OR can the index of the key find where it begins.
    """
    columns = ", ".join(backfill.key)
    after = ", ".join(
        f"(SELECT CAST(after[{place}] AS {kind}) FROM p)"  # noqa: S608 - as below
        for place, kind in enumerate(backfill.key.values(), start=1)
    )
    begin = f"WHERE ({columns}) > ({after})" if is_begun else ""
    own = " AND ".join(f"t.{column} = b.{column}" for column in backfill.key)
    texts = ", ".join(f"CAST({column} AS text)" for column in backfill.key)
    backwards = ", ".join(f"{column} DESC" for column in backfill.key)
    return f"""
        WITH p AS (SELECT * FROM backfill_progress WHERE name = :name),
        b AS MATERIALIZED (
            SELECT {columns} FROM {backfill.table} {begin}
            ORDER BY {columns} LIMIT :batch
        ),
        c AS (
            UPDATE {backfill.table} t SET {backfill.change} FROM b
            WHERE {own} AND ({backfill.where}) RETURNING 1
        ),
        n AS (
            INSERT INTO backfill_progress AS r (name, after, seen, changed)
            SELECT :name, (SELECT ARRAY[{texts}] FROM b ORDER BY {backwards} LIMIT 1),
                (SELECT count(*) FROM b), (SELECT count(*) FROM c)
            WHERE EXISTS (SELECT 1 FROM b)
            ON CONFLICT (name) DO UPDATE SET after = excluded.after,
                seen = r.seen + excluded.seen, changed = r.changed + excluded.changed
            RETURNING r.seen, r.changed
        )
        SELECT (SELECT count(*) FROM b) AS batch_seen, (SELECT seen FROM n) AS seen,
            (SELECT changed FROM n) AS changed
    """  # noqa: S608 - from the revision alone


def _attempt(
    connection: Connection, statement: str, parameters: Mapping[str, object]
) -> Row[tuple[int, int, int]]:
    for attempt in range(ATTEMPTS):
        try:
            return connection.execute(text(statement), parameters).one()
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in RETRIED or attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError
