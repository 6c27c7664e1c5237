"""Recovery of killed workers' calls from the journals that they left on this machine.

A call missing from a complete journal was never sent, so it is voided. A call that was sent
becomes unknown at once; a call with a recorded outcome is settled with it. A journal is incomplete
if the database was restored to an earlier state since its worker began (see `gateway.db.identity`).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import orjson
import structlog
from sqlalchemy import ARRAY, ColumnElement, Uuid, and_, any_, literal, literal_column, select
from sqlalchemy.exc import DBAPIError

from gateway import telemetry
from gateway.billing.journal import SUFFIX, DeadJournal, taken
from gateway.billing.settlement import CHARGED, Settlement, report_conflict, settlement_fields
from gateway.db.engine import Database, OperatorSession
from gateway.db.identity import DatabaseIdentity, read_identity
from gateway.db.money_tables import LedgerRow, ReservationRow
from gateway.file_systems import Mounts, mounts_of_machine, remote_kind
from gateway.money import NanoUsd
from gateway.provider_answers import Outcome

KEEP_SECONDS = 60
"""Longer than a statement already sent by the worker can take to commit a reservation."""
KEEP_MISSING_SECONDS = 604_800
"""Retention of a journal whose calls have no rows here: it may belong to another database."""
SECOND_NS = 1_000_000_000
INTERVAL_SECONDS = 10
MISSING_INTERVAL_SECONDS = 60
"""Pause before a journal is read again; reading a long one takes half a second."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RecoveredCalls:
    """Counts of dead workers' calls: settled by their answer, voided, or become unknown."""

    settled: int = 0
    voided: int = 0
    unknown: int = 0

    def __add__(self, other: "RecoveredCalls") -> "RecoveredCalls":
        return RecoveredCalls(
            self.settled + other.settled,
            self.voided + other.voided,
            self.unknown + other.unknown,
        )


class DeadJournals:
    """The journals in one folder, with the time at which each dead worker's was first seen."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        *,
        mounts: Mounts = mounts_of_machine,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._database = database
        self._folder = folder
        self._mounts = mounts
        self._clock = clock
        self._seen: dict[Path, int] = {}
        self._next_look: dict[Path, int] = {}

    async def settle(self) -> RecoveredCalls:
        """Settle calls by the journals of dead workers; several gateways may do so at once.

        Raises:
            DatabaseUnavailable: Postgres is away; unsettled calls stay for the next run.
        """
        recovered = RecoveredCalls()
        paths = await asyncio.to_thread(self._find)
        self._seen = {path: seen for path, seen in self._seen.items() if path in paths}
        self._next_look = {path: at for path, at in self._next_look.items() if path in paths}
        for path in paths:
            if self._now() < self._next_look.get(path, 0):
                continue
            try:
                with ExitStack() as stack:
                    reading = taken(path, now=int(time.time()))
                    journal = await asyncio.to_thread(stack.enter_context, reading)
                    if journal is not None:
                        recovered += await self._settle(journal)
            except OSError as error:  # another user's file must not block the others
                telemetry.alarm("journal_unreadable", path=str(path), error=type(error).__name__)
        if recovered != RecoveredCalls():
            log.warning(
                "journals_recovered",
                settled=recovered.settled,
                voided=recovered.voided,
                unknown=recovered.unknown,
            )
        return recovered

    def _now(self) -> int:
        return self._clock() // SECOND_NS

    def _find(self) -> list[Path]:
        """List every journal; none if locks do not show which workers of other machines live."""
        if remote_kind(self._folder, self._mounts) is not None:
            return []
        return sorted(self._folder.glob(f"*{SUFFIX}"))

    async def _settle(self, journal: DeadJournal) -> RecoveredCalls:
        async with self._database.operator() as session:
            identity = await read_identity(session)
            rows = await _rows(session, journal)
        tenants = {row.id: row.tenant_id for row in rows}
        results = [
            await self._write(tenants[settlement.id], settlement)
            for settlement in _due(journal, rows, identity)
        ]
        recovered = sum((one for one in results if one is not None), RecoveredCalls())
        named = journal.sent | {settlement.id for settlement in journal.told}
        missing = named - {row.id for row in rows}
        now = self._now()
        first_seen = self._seen.setdefault(journal.path, now)
        is_known = now - first_seen > KEEP_SECONDS
        pause = MISSING_INTERVAL_SECONDS if missing and is_known else INTERVAL_SECONDS
        self._next_look[journal.path] = now + pause
        is_done = None not in results and (
            is_known if not missing else journal.seconds_old > KEEP_MISSING_SECONDS
        )
        if is_done:
            if missing:
                log.error("journal_of_unknown_calls_removed", calls=sorted(map(str, missing)))
            journal.path.unlink(missing_ok=True)
        return recovered

    async def _write(self, tenant_id: UUID, settlement: Settlement) -> RecoveredCalls | None:
        """Settle one call; None if Postgres refuses it, so that it stays in its journal."""
        try:
            [row] = await self._database.call(
                "SELECT result FROM settle(CAST(:settlements AS jsonb))",
                {
                    "settlements": orjson.dumps(
                        [settlement_fields(tenant_id, settlement)], default=str
                    ).decode()
                },
            )
        except DBAPIError as error:
            telemetry.alarm("settle_refused", error=type(error.orig).__name__)
            return None
        if row.result == "conflict":
            report_conflict(settlement)
        if row.result != "ok":
            return RecoveredCalls()
        match settlement.outcome:
            case Outcome.NOT_SENT:
                return RecoveredCalls(voided=1)
            case Outcome.AMBIGUOUS:
                return RecoveredCalls(unknown=1)
            case _:
                return RecoveredCalls(settled=1)


@dataclass(frozen=True, slots=True)
class _Call:
    """The fields of a reservation that decide if its settlement is still to be written."""

    tenant_id: UUID
    id: UUID
    state: str
    outcome: str | None
    instance: UUID


async def _rows(session: OperatorSession, journal: DeadJournal) -> list[_Call]:
    """Load the calls named in the journal, and its worker's open calls."""
    named = [*journal.sent, *(settlement.id for settlement in journal.told)]
    calls = select(
        *(ReservationRow.tenant_id, ReservationRow.id, ReservationRow.state),
        *(ReservationRow.outcome, ReservationRow.instance),
    )
    # Literals, because Postgres uses the partial index of open reservations only with them.
    is_open: ColumnElement[bool] = literal_column("state IN ('held', 'unknown')")
    found = [
        *await session.execute(calls.where(is_open, ReservationRow.instance == journal.instance))
    ]
    if named:
        # A journal has no tenants: the ledger's hold lines name them. Their index knows ranges.
        line = (
            select(LedgerRow.tenant_id, LedgerRow.reservation_id)
            .where(
                LedgerRow.reservation_id.between(min(named), max(named)),
                # One array: a journal can name more calls than a statement takes parameters.
                LedgerRow.reservation_id == any_(literal(named, ARRAY(Uuid))),
                LedgerRow.seq == 0,
            )
            .cte("line")
        )
        own = and_(
            line.c.tenant_id == ReservationRow.tenant_id,
            line.c.reservation_id == ReservationRow.id,
        )
        found += await session.execute(calls.join(line, own))
    return list({row.id: _Call(*row) for row in found}.values())


def _due(
    journal: DeadJournal, rows: Sequence[_Call], database: DatabaseIdentity | None
) -> list[Settlement]:
    """Select the settlements still to be written; reused slots may name calls settled long ago.

    A call that became unknown by its deadline alone (`expired`) has had no news since its
    reservation; a call that its worker gave up is `ambiguous`, and was sent.
    """
    told = {settlement.id: settlement for settlement in journal.told}
    proves_unsent = journal.proves_unsent(database)
    due = []
    for row in rows:
        is_unheard = row.state == "held" or (row.state, row.outcome) == ("unknown", "expired")
        settlement = told.get(row.id)
        if settlement is not None:
            is_truth = settlement.outcome in CHARGED and row.state != "posted"
            if is_truth or row.state in {"held", "unknown"}:
                due.append(settlement)
        elif row.id in journal.sent:
            if is_unheard:
                due.append(Settlement(row.id, Outcome.AMBIGUOUS, NanoUsd(0)))
        elif proves_unsent and is_unheard and row.instance == journal.instance:
            due.append(Settlement(row.id, Outcome.NOT_SENT, NanoUsd(0)))
    return due
