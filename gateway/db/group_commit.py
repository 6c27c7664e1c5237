"""Group commit: concurrent items share one statement and one durable commit.

While one batch is being committed the next one gathers, so batches grow with the load and a
single item does not wait.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from gateway import telemetry
from gateway.errors import Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """A batcher of items into commits; each submitter waits until its own item is durable."""

    def __init__(
        self,
        kind: str,
        commit: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch: int,
        abandoned: Callable[[Item, Result], None] | None = None,
    ) -> None:
        """Call `abandoned` with the result of an item whose submitter has stopped waiting."""
        self._commit = commit
        self._abandoned = abandoned
        self._max_batch = max_batch
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._committer: asyncio.Task[None] | None = None
        self._sizes = telemetry.batch_size.labels(kind)
        self._seconds = telemetry.batch_seconds.labels(kind)

    async def submit(self, item: Item) -> Result:
        """Commit `item` together with all other waiting items, and return its own result.

        Cancelling a submitter before its batch starts withdraws its item. An exception of the
        commit is raised to every submitter of the batch.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._committer is None:
            self._committer = asyncio.create_task(self._commit_waiting())
        return await future

    async def _commit_waiting(self) -> None:
        try:
            while batch := self._take_batch():
                await self._commit_batch(batch)
        finally:
            self._committer = None

    def _take_batch(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._max_batch:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch

    async def _commit_batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        self._sizes.observe(len(batch))
        started = time.perf_counter()
        try:
            results = await self._commit([item for item, _ in batch])
        except Exception as error:  # top: every submitter of the batch must get it
            if len(batch) > 1 and not isinstance(error, Unavailable):
                # One item may have failed the batch; the others must still be committed.
                for single in batch:
                    if not single[1].done():
                        await self._commit_batch([single])
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        self._seconds.observe(time.perf_counter() - started)
        for (item, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
            elif self._abandoned is not None:
                self._abandoned(item, result)
