"""Periodic jobs: expire reservations, estimate unknown costs, delete expired images and orphans.

They also probe an unavailable image store and drain the spool into it, deliver pending events, and
refresh the models' shutdown dates once a day.
"""

import asyncio
import platform
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from gateway import __version__, telemetry
from gateway.billing import archive, ledger, usage_sums
from gateway.billing.dead_journals import DeadJournals, RecoveredCalls
from gateway.billing.ledger import InvariantBreak
from gateway.billing.sweeping import BATCH, sweep
from gateway.bootstrap import Gateway
from gateway.db import sweeps
from gateway.db.cache import forget_recorded
from gateway.db.engine import DatabaseUnavailable
from gateway.db.pools import Beside
from gateway.errors import StorageFailed
from gateway.identity import sessions
from gateway.library.erasure import erase
from gateway.library.orphans import SWEEP, RemovedOrphans, reconcile
from gateway.library.retention import (
    ExpiredImage,
    delete_files,
    expire_beyond_caps,
    expired_images,
    mark_cleaned,
)
from gateway.measuring import Measures
from gateway.processes import trim_heaps
from gateway.request_log.retention import keep
from gateway.tenancy.erasure import SWEEP as ERASURES
from gateway.vault.gateway_secrets import newest_pepper_version, retire_due
from gateway.vault.key_status import count_on_old_peppers
from gateway.vault.rotation import retire_data_keys

PARALLEL_DELETIONS = 8
DELETE_TIMEOUT_SECONDS = 30.0
INVARIANT_INTERVAL_SECONDS = 3600.0
BYTE_CAP_INTERVAL_SECONDS = 60.0
ERASURE_INTERVAL_SECONDS = 60.0
MEASURE_INTERVAL_SECONDS = 60.0
LIFETIMES_INTERVAL_SECONDS = 86_400.0
REQUESTS_INTERVAL_SECONDS = 3600.0
USAGE_INTERVAL_SECONDS = 5.0
LIFETIMES_RETRY_SECONDS = 600.0
ORPHAN_RETRY_SECONDS = 600.0
SECRETS_INTERVAL_SECONDS = 60.0
CONSOLE_INTERVAL_SECONDS = 3600.0
log = structlog.get_logger(__name__)


class Sweeper:
    """The periodic jobs of one worker; workers skip the reservations that another has locked."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._database = gateway.database.beside(Beside.BACKGROUND)
        self._journals = DeadJournals(self._database, gateway.settings.resolved_journal_dir)
        self._measures = Measures(gateway.core, self._database)
        self._tasks: list[asyncio.Task[None]] = []
        self._deleting = asyncio.Semaphore(PARALLEL_DELETIONS)
        self._lifetimes_due = self._measures_due = time.monotonic()
        self._asks_again: dict[str, float] = {}

    def start(self) -> None:
        """Begin, at the configured interval. Slow storage must not delay the settling of money.

        The journals of earlier workers are settled at once: their clients may already be retrying.
        """
        telemetry.build_info.labels(__version__, platform.python_version()).set(1)
        self._tasks.append(asyncio.create_task(self._settle_journals(), name="settle_journals"))
        for work in (
            self._measure,
            self._sweep_money,
            self._sweep_images,
            self._drain_spool,
            self._sweep_orphans,
            self._refresh_lifetimes,
            self._send_events,
            self._sweep_requests,
            self._keep_months,
            self._add_up_usage,
            self._check_invariants,
            self._retire_secrets,
            self._sweep_console,
            self._trim_heaps,
        ):
            name = work.__name__.removeprefix("_")
            telemetry.sweep_success_seconds.labels(name).set_to_current_time()
            self._tasks.append(asyncio.create_task(self._repeat(work, name), name=name))

    async def close(self) -> None:
        """Stop sweeping."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def sweep(self) -> None:
        """Run each due job once."""
        self._asks_again.clear()
        self._measures_due = 0.0
        await self._sweep_money()
        await self._send_events()
        await self._erase()
        await self._drain_spool()
        await self._expire_beyond_caps()
        await self._delete_expired_images()
        await self._keep_requests()
        await self._forget_sessions()
        await self._roll_up_usage()
        await self._measure()
        await self._check_invariants()

    async def run(self, note: Callable[[str], None]) -> Sequence[InvariantBreak]:
        """Do all periodic work once, due or not, each part named to `note`; return broken books.

        Other workers may do the same work meanwhile: all of it is idempotent.

        Raises:
            StorageFailed: the image store does not answer.
            DatabaseUnavailable: Postgres is away, or a long query reads a table to be changed.
        """
        for what, work in (
            ("calls past their deadline, and unknown costs", self._sweep_money),
            ("events", self._send_events),
            ("erased tenants and users", self._erase),
            ("images that wait for the store", self._drain_spool),
            ("images beyond storage caps", self._expire_beyond_caps),
            ("expired images", self._delete_expired_images),
            ("the request log", self._keep_requests),
            ("sessions of the console", self._forget_sessions),
            ("sums of usage", self._roll_up_usage),
            ("keys that are no longer used", self._retire_unused_secrets),
        ):
            note(what)
            await work()
        breaks = await self._check_books(note)
        note("months of the ledger and the audit trail")
        await self._add_and_archive_months()
        note("files without images, and images without files")
        await self._extend_claim()
        await self.reconcile()
        return breaks

    async def reconcile(
        self, now: datetime | None = None, *, whole: bool = False
    ) -> RemovedOrphans:
        """Compare store and rows once; remove unmatched objects that are old enough at `now`.

        `whole`: compare everything, not only what may have changed.

        Raises:
            StorageFailed: the store does not answer.
        """
        age = timedelta(seconds=self._gateway.settings.orphan_age_seconds)
        done = await reconcile(
            self._database,
            self._gateway.store,
            before=(now or datetime.now(UTC)) - age,
            progress=self._extend_claim,
            whole=whole,
        )
        if done != RemovedOrphans():
            log.warning("orphans_removed", files=done.files, rows=done.rows)
        return done

    async def _settle_journals(self) -> None:
        try:
            recovered = await self._journals.settle()
        except (DatabaseUnavailable, OSError) as error:
            log.warning("journals_put_off", reason=type(error).__name__)
            return
        if recovered != RecoveredCalls():
            telemetry.alarms_total.labels("journal_recovered").inc(
                recovered.settled + recovered.voided + recovered.unknown
            )

    async def _sweep_money(self) -> None:
        database = self._database
        await self._settle_journals()
        swept = await sweep(
            database,
            self._gateway.core.catalog.models,
            estimate_after_seconds=self._gateway.settings.estimate_after_seconds,
        )
        if swept.expired:
            telemetry.alarms_total.labels("reservation_expired").inc(swept.expired)
            log.warning("reservations_expired", count=swept.expired)
        if swept.estimated:
            telemetry.alarms_total.labels("outcome_estimated").inc(swept.estimated)
            log.warning("reservations_estimated", count=swept.estimated)
        await ledger.alert_house_budgets(database)
        await ledger.forget_claims(
            database, after_seconds=self._gateway.settings.idempotency_seconds, limit=BATCH
        )
        await self._measures.count_open_calls()

    async def _send_events(self) -> None:
        await self._gateway.webhooks.work()

    async def _repeat(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        while True:
            await asyncio.sleep(self._gateway.settings.sweep_interval_seconds)
            try:
                await work()
            except DatabaseUnavailable as error:
                telemetry.sweep_failures_total.labels(name).inc()
                log.warning("sweep_put_off", work=name, reason=error.code)
            except Exception:  # top: a failed sweep is reported, and the next one must still run
                telemetry.sweep_failures_total.labels(name).inc()
                log.exception("sweep_failed", work=name)
            else:
                telemetry.sweep_success_seconds.labels(name).set_to_current_time()

    async def _measure(self) -> None:
        """Set the gauges once a minute, in every worker: each has metrics of its own."""
        if time.monotonic() >= self._measures_due:
            await self._measures.take()
            self._measures_due = time.monotonic() + MEASURE_INTERVAL_SECONDS

    async def _trim_heaps(self) -> None:
        await asyncio.to_thread(trim_heaps)

    async def _check_invariants(self) -> None:
        """Check the books once an hour, in one worker: the new entries, once a week the whole."""
        if not await self._claim(ledger.CHECKS, INVARIANT_INTERVAL_SECONDS):
            return
        await self._check_books(lambda what: log.info("books_checked", what=what))

    async def _check_books(self, note: Callable[[str], None]) -> Sequence[InvariantBreak]:
        breaks = await ledger.new_breaks(self._database, remember=True)
        if breaks is None:
            breaks = await ledger.check_all(self._database, progress=note, remember=True)
        telemetry.invariant_breaks.set(len(breaks))
        for found in breaks:
            telemetry.alarm("invariant_break", what=found.what, id=found.id)
        return breaks

    async def _sweep_requests(self) -> None:
        if await self._claim("request_log", REQUESTS_INTERVAL_SECONDS):
            await self._keep_requests()

    async def _keep_months(self) -> None:
        if await self._claim("months", REQUESTS_INTERVAL_SECONDS):
            await self._add_and_archive_months()

    async def _add_and_archive_months(self) -> None:
        """Create the partitions of the next two months; archive those past their retention."""
        if added := await ledger.add_missing_months(self._database):
            log.info("months_added", count=added)
        settings = self._gateway.settings
        kept = await archive.retain(
            self._database,
            ledger_months=settings.ledger_months,
            audit_months=settings.audit_months,
        )
        for month in kept.archived:
            log.info("ledger_month_archived", month=month.isoformat())
        if kept.put_off is not None:
            log.warning("ledger_month_not_archived", reason=archive.OBSTACLES[kept.put_off])
        if kept.audit_months:
            log.info("audit_months_dropped", count=kept.audit_months)

    async def _keep_requests(self) -> None:
        """Create the request log's next partitions, and drop those past their retention.

        Recorded changes that every gateway has read by now are deleted too.
        """
        days = self._gateway.settings.request_log_retention_days
        dropped = await keep(self._database, days=days)
        if dropped:
            log.info("request_log_days_dropped", count=dropped)
        async with self._database.operator() as session:
            await forget_recorded(session)

    async def _sweep_console(self) -> None:
        if await self._claim("console", CONSOLE_INTERVAL_SECONDS):
            await self._forget_sessions()

    async def _forget_sessions(self) -> None:
        """Delete ended sessions, links and invitations of the console, and failed sign-ins."""
        count = await sessions.sweep(self._database, days=self._gateway.settings.console_kept_days)
        if count:
            log.info("console_swept", rows=count)

    async def _add_up_usage(self) -> None:
        if await self._claim("usage", USAGE_INTERVAL_SECONDS):
            await self._roll_up_usage()

    async def _roll_up_usage(self) -> None:
        """Add new ledger lines to the sums that reports read."""
        await usage_sums.roll_up(self._database)
        moved = await usage_sums.rebuild_moved_days(self._database)
        if moved:
            log.info("usage_days_rebuilt", tenants=moved)

    async def _sweep_images(self) -> None:
        if await self._claim("byte_caps", BYTE_CAP_INTERVAL_SECONDS):
            await self._expire_beyond_caps()
        if await self._claim(ERASURES, ERASURE_INTERVAL_SECONDS):
            await self._erase()
        await self._delete_expired_images()

    async def _erase(self) -> None:
        await erase(self._database)

    async def _drain_spool(self) -> None:
        await self._gateway.keeper.drain()

    async def _expire_beyond_caps(self) -> None:
        expired = await expire_beyond_caps(self._database)
        if expired:
            log.info("images_beyond_cap", count=expired)

    async def _delete_expired_images(self) -> None:
        """Delete files before rows: a row without its file is swept again.

        A file without a row would never be found. A failed deletion does not block the next ones.
        No transaction is open during calls to the store; two sweepers at one image are harmless.
        """
        database = self._database
        last, began = None, datetime.now(UTC)
        while True:
            async with database.operator() as session:
                expired = await expired_images(session, limit=BATCH, after=last)
            outcomes = await asyncio.gather(*(self._delete(image) for image in expired))
            deleted = [image.id for image, done in zip(expired, outcomes, strict=True) if done]
            if deleted:
                async with database.operator() as session:
                    await mark_cleaned(session, deleted, cleaned_at=began)
            if len(expired) < BATCH:
                return
            last = expired[-1]

    async def _delete(self, image: ExpiredImage) -> bool:
        try:
            async with self._deleting, asyncio.timeout(DELETE_TIMEOUT_SECONDS):
                await delete_files(self._gateway.store, image.path)
        except (StorageFailed, TimeoutError) as error:
            telemetry.alarm("image_not_deleted", id=image.id, error=type(error).__name__)
            return False
        return True

    async def _sweep_orphans(self) -> None:
        """Compare store and rows when due. One worker does it, and renews its claim meanwhile."""
        interval_seconds = self._gateway.settings.orphan_sweep_interval_seconds
        if not await self._claim(SWEEP, interval_seconds):
            return
        try:
            await self.reconcile()
        except StorageFailed:
            telemetry.alarm("orphan_sweep_failed")
            async with self._database.operator() as session:
                await sweeps.put_off(session, SWEEP, seconds=ORPHAN_RETRY_SECONDS)

    async def _refresh_lifetimes(self) -> None:
        """Refresh the models' dates once a day, in every worker: the dates are per process."""
        if time.monotonic() >= self._lifetimes_due:
            is_known = await self._gateway.lifetimes.refresh()
            wait_seconds = LIFETIMES_INTERVAL_SECONDS if is_known else LIFETIMES_RETRY_SECONDS
            self._lifetimes_due = time.monotonic() + wait_seconds

    async def _retire_secrets(self) -> None:
        """Remove key versions that are no longer used, once a minute, in one worker."""
        if not await self._claim("secrets", SECRETS_INTERVAL_SECONDS):
            return
        await self._retire_unused_secrets()

    async def _retire_unused_secrets(self) -> None:
        async with self._database.operator() as session:
            # Not this worker's newest: it may have failed to open a later one.
            left = await count_on_old_peppers(session, await newest_pepper_version(session))
            vault = self._gateway.core.vault
            removed = await retire_due(session, vault, is_pepper_unused=left == 0)
            data_keys = await retire_data_keys(session)
        if removed or data_keys:
            log.info("secrets_retired", secrets=removed, data_keys=data_keys)

    async def _claim(self, name: str, seconds: float) -> bool:
        """Claim work that is due every so many seconds, and that one worker does for all.

        Postgres is asked every tenth of that interval, and no less often than every twelfth sweep.
        """
        now, sweep_seconds = time.monotonic(), self._gateway.settings.sweep_interval_seconds
        if now < self._asks_again.get(name, now):
            return False
        self._asks_again[name] = now + min(seconds / 10, 12 * sweep_seconds)
        async with self._database.operator() as session:
            return await sweeps.claim(session, name, seconds=seconds)

    async def _extend_claim(self) -> None:
        interval_seconds = self._gateway.settings.orphan_sweep_interval_seconds
        async with self._database.operator() as session:
            await sweeps.put_off(session, SWEEP, seconds=interval_seconds)
