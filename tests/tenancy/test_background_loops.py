"""Background loops go on after an error that none of their calls should raise."""

from typing import Any, cast

from gateway.db.cache import ChangeListener
from gateway.db.engine import Database
from gateway.vault.gateway_secrets import open_secrets
from tests.harness import Served
from tests.money_helpers import eventually
from tests.request_log_helpers import rows_of
from tests.rest.test_request_log_bounds import record, request_log


class BrokenOnce:
    """A database whose first use fails as no driver says that it may."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.uses = 0

    def __getattr__(self, name: str) -> Any:
        self.uses += 1
        if self.uses == 1:
            raise RuntimeError("unable to perform operation; the handler is closed")
        return getattr(self.database, name)

    async def is_used_again(self) -> bool:
        return self.uses > 1


async def test_changes_are_heard_after_an_unexpected_error(served: Served) -> None:
    broken, cleared = BrokenOnce(served.gateway.database), list[str | None]()
    listener = ChangeListener(cast("Database", broken), cleared.append)
    await listener.start()

    async def is_heard() -> bool:
        return len(cleared) > 0

    await eventually(is_heard)
    await listener.close()
    assert broken.uses == 2


async def test_secrets_are_read_after_an_unexpected_error(served: Served) -> None:
    core = served.gateway.core
    async with core.database.operator() as session:
        secrets = await open_secrets(session, core.vault)
    broken = BrokenOnce(core.database)
    secrets.start(cast("Database", broken))
    secrets.expire(None)
    await eventually(broken.is_used_again)
    await secrets.close()


async def test_requests_are_recorded_after_an_unexpected_error(served: Served) -> None:
    broken, one = BrokenOnce(served.gateway.database), record()
    async with request_log(cast("Database", broken), max_waiting=10) as log:
        log.put(one)

        async def is_written() -> bool:
            return [row["request_id"] for row in await rows_of(served)] == [one.request_id]

        await eventually(is_written)
