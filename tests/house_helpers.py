"""Helpers for tests of the operator's budgets: workers that hold and settle on their shards."""

from collections.abc import Sequence
from uuid import UUID

from gateway.billing import budgets, prices
from gateway.billing.reservations import Reservations
from gateway.billing.reserving import ReservationRequest
from gateway.billing.settlement import Settlement
from gateway.domain import Caller, Price, Quote, new_id
from gateway.errors import BudgetExceeded
from gateway.money import NanoUsd
from gateway.provider_answers import Outcome
from tests.harness import GPT2, Served
from tests.money_helpers import TERMS

WORKERS = [UUID(f"019aa5f2-7c00-7000-8000-00000000000{shard}") for shard in range(8)]
"""Each has a shard of its own: the end of its id names it."""


class House:
    """Workers that hold and settle with the house credential, beside the expected total."""

    def __init__(
        self, served: Served, caller: Caller, price: Price, workers: Sequence[UUID]
    ) -> None:
        self.served = served
        self._caller = caller
        self._price = price
        self._workers = [
            Reservations(
                served.gateway.database, instance=worker, max_batch=64, admission_timeout_ms=60000
            )
            for worker in workers
        ]

    async def limit(
        self, limit_nano: int, enforcement: str | None = None, *, window: str = "total"
    ) -> None:
        async with self.served.gateway.database.operator() as session:
            await budgets.set_limit(
                session,
                None,
                window=window,
                limit_nano=NanoUsd(limit_nano),
                enforcement=enforcement,
            )

    async def hold(
        self,
        worker: int,
        amount_nano: int,
        credential: str = "house",
        *,
        reservation_id: UUID | None = None,
    ) -> UUID | None:
        """A reservation; None if the house budget refuses it."""
        wanted = ReservationRequest(
            id=reservation_id or new_id(),
            caller=self._caller,
            quote=Quote(self._price, NanoUsd(amount_nano), TERMS),
            operation="generation",
            requested_model=GPT2,
            served_model=GPT2,
            provider="openai",
            credential=credential,
            ttl_seconds=600,
        )
        try:
            await self._workers[worker].reserve(wanted)
        except BudgetExceeded:
            return None
        return wanted.id

    async def settle(self, worker: int, reservation_id: UUID, amount_nano: int) -> None:
        await self._workers[worker].settle(
            self._caller.tenant_id,
            Settlement(reservation_id, Outcome.SUCCESS, NanoUsd(amount_nano), images=1),
        )

    async def start_anew(self) -> None:
        """Remove all budgets, reservations and lines."""
        for statement in (
            "ALTER TABLE ledger DISABLE TRIGGER USER",
            "DELETE FROM ledger",
            "DELETE FROM reservation",
            "DELETE FROM house_budget_period",
            "DELETE FROM house_budget",
            "ALTER TABLE ledger ENABLE TRIGGER USER",
        ):
            await self.served.owner_sql(statement)

    async def close(self) -> None:
        for worker in self._workers:
            await worker.close()


async def make_house(served: Served, workers: Sequence[UUID]) -> House:
    key = await served.key()
    async with served.gateway.database.operator() as session:
        price = next(p for p in await prices.list_prices(session) if p.model == GPT2)
    caller = Caller(
        tenant_id=served.tenant_id,
        user_id=None,
        api_key_id=key.id,
        livemode=True,
        scopes=frozenset(),
        models=None,
        expires_at=None,
        tenant_status="active",
    )
    return House(served, caller, price, workers)
