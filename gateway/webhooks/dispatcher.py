"""The dispatcher: turns pending events into log lines and deliveries, and sends due deliveries.

Runs in every worker; each claims its own deliveries. No transaction is open during a send.
"""

import asyncio
import time
from collections import Counter
from uuid import UUID

import structlog

from gateway import telemetry
from gateway.config import WebhookSettings
from gateway.db import sweeps
from gateway.db.engine import Database
from gateway.errors import ConfigurationError
from gateway.vault.sealing import SealBroken
from gateway.webhooks import deliveries, endpoints
from gateway.webhooks.deliveries import ClaimedDelivery
from gateway.webhooks.events import announce, body_of
from gateway.webhooks.sealing import Sealing
from gateway.webhooks.sender import DeliveryAttempt, Sender
from gateway.webhooks.signatures import sign
from gateway.webhooks.targets import DeliveryFailure, shown

BATCH = 100
PRUNE_BATCH = 1000
PRUNE_INTERVAL_SECONDS = 600.0
LEASE_MARGIN_SECONDS = 30.0
"""Time of a lease beyond the attempt's timeout, to record the result."""
LOOK_AGAIN_SECONDS = 1.0
CLOSE_SECONDS = 2.0
log = structlog.get_logger(__name__)


def open_dispatcher(
    settings: WebhookSettings, database: Database, sealing: Sealing
) -> "Dispatcher":
    """Create the dispatcher of this process from the settings."""
    sender = Sender(
        timeout_seconds=settings.webhook_timeout_seconds,
        allow_private=settings.webhook_allow_private,
    )
    return Dispatcher(database, sealing, sender, settings)


class Dispatcher:
    """The dispatcher with its sends in flight. Must be created in a running event loop."""

    def __init__(
        self, database: Database, sealing: Sealing, sender: Sender, settings: WebhookSettings
    ) -> None:
        self._database = database
        self._sealing = sealing
        self._sender = sender
        self._settings = settings
        self._tasks: dict[asyncio.Task[None], UUID] = {}

    async def work(self) -> None:
        """Announce pending events and start due deliveries, until none can be started.

        Does not wait for slow endpoints: they delay only their own deliveries.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        while True:
            async with self._database.operator() as session:
                announced = await announce(session, limit=BATCH)
            # Taken before the claim: a send that ends meanwhile frees its endpoint's capacity.
            is_held_back = self._is_full or bool(self._busy)
            begun = await self._begin_due()
            if begun or announced == BATCH:
                continue
            # Also while deliveries are held back: a slow endpoint can hold them back for hours.
            await self._prune_and_count()
            if not is_held_back:
                break
            if self._tasks:
                await asyncio.wait(
                    self._tasks, timeout=LOOK_AGAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )

    async def finish(self) -> None:
        """Wait for all sends in flight."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Let sends in flight finish briefly; another worker retries the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sender.close()

    @property
    def _is_full(self) -> bool:
        return len(self._tasks) >= self._settings.webhook_max_parallel

    @property
    def _busy(self) -> list[UUID]:
        """List the endpoints at their limit of concurrent sends."""
        most = self._settings.webhook_max_parallel_per_endpoint
        return [one for one, count in Counter(self._tasks.values()).items() if count >= most]

    async def _begin_due(self) -> int:
        if self._is_full:
            return 0
        async with self._database.operator() as session:
            claims = await deliveries.claim(
                session,
                limit=self._settings.webhook_max_parallel - len(self._tasks),
                lease_seconds=self._settings.webhook_timeout_seconds + LEASE_MARGIN_SECONDS,
                busy=self._busy,
                under_way=list(self._tasks.values()),
            )
        for claimed in claims:
            task = asyncio.create_task(self._deliver(claimed), name="webhook-delivery")
            self._tasks[task] = claimed.endpoint_id
            task.add_done_callback(self._done)
        return len(claims)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        # The lease ends by itself, and some worker retries.
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhook_attempt_broke", exc_info=error)

    async def _deliver(self, claimed: ClaimedDelivery) -> None:
        if claimed.attempt > deliveries.TRIES:
            # The last attempt has no result: it may have crashed its worker.
            attempt = DeliveryAttempt(None, DeliveryFailure.ABANDONED)
        else:
            attempt = await self._attempt(claimed)
        is_dead, buried = False, None
        async with self._database.operator() as session:
            if attempt.failure is DeliveryFailure.GONE and not await endpoints.has_address(
                session, claimed.endpoint_id, claimed.url
            ):
                # Of a former address: the next attempt goes to the present one.
                attempt = DeliveryAttempt(attempt.status, DeliveryFailure.BAD_STATUS)
            if attempt.failure is None:
                await deliveries.note_delivered(session, claimed, attempt)
            else:
                if attempt.failure is DeliveryFailure.GONE:
                    buried = await endpoints.disable_gone(
                        session, claimed.tenant_id, claimed.endpoint_id, told_by=claimed.id
                    )
                is_dead = await deliveries.note_failed(session, claimed, attempt)
        _report(claimed, attempt, is_dead=is_dead, buried=buried)

    async def _attempt(self, claimed: ClaimedDelivery) -> DeliveryAttempt:
        timestamp = int(time.time())
        message_id, body = str(claimed.event.id), body_of(claimed.event)
        try:
            secrets = [await self._sealing.open(self._database, one) for one in claimed.secrets]
        except (SealBroken, ConfigurationError) as error:
            telemetry.alarm(
                "webhook_secret_unreadable",
                webhook=str(claimed.endpoint_id),
                error=type(error).__name__,
            )
            return DeliveryAttempt(None, DeliveryFailure.SECRET_UNREADABLE)
        signature = sign(secrets, message_id=message_id, timestamp=timestamp, body=body)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature,
        }
        with telemetry.webhook_seconds.time():
            return await self._sender.send(claimed.url, body, headers)

    async def _prune_and_count(self) -> None:
        async with self._database.operator() as session:
            telemetry.webhooks_waiting.set(await deliveries.count_waiting(session))
            is_ours = await sweeps.claim(session, "webhooks", seconds=PRUNE_INTERVAL_SECONDS)
        while is_ours:
            async with self._database.operator() as session:
                done = await deliveries.prune(
                    session,
                    after_seconds=self._settings.webhook_retention_seconds,
                    limit=PRUNE_BATCH,
                )
            is_ours = done >= PRUNE_BATCH


def _report(
    claimed: ClaimedDelivery, attempt: DeliveryAttempt, *, is_dead: bool, buried: int | None
) -> None:
    outcome = "delivered" if attempt.failure is None else "dead" if is_dead else "failed"
    telemetry.webhook_attempts_total.labels(outcome).inc()
    if attempt.failure is None:
        return
    told = {
        "webhook": str(claimed.endpoint_id),
        "delivery": str(claimed.id),
        "target": shown(claimed.url),
        "status": attempt.status,
        "error": attempt.failure.value,
    }
    if is_dead:
        telemetry.alarm("webhook_dead", **told)
    else:
        log.warning("webhook_attempt_failed", attempt=claimed.attempt, **told)
    if buried is not None:
        telemetry.alarm("webhook_gone", also_dead=buried, **told)
