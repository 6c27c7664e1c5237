"""Items of concurrent requests share a commit, and each gets its own result."""

import asyncio
from collections.abc import Sequence

import pytest

from gateway.db.group_commit import GroupCommit
from gateway.errors import Unavailable


class Store:
    """Commits while `open` is set, and keeps every batch; an item in `refuses` fails its batch."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.batches: list[list[int]] = []
        self.refuses: dict[int, Exception] = {}
        self.started = asyncio.Event()
        self.abandoned: list[tuple[int, str]] = []

    async def commit(self, items: Sequence[int]) -> list[str]:
        self.batches.append(list(items))
        self.started.set()
        await self.open.wait()
        for item in items:
            if item in self.refuses:
                raise self.refuses[item]
        return [f"result {item}" for item in items]

    def group(self, max_batch: int = 3) -> GroupCommit[int, str]:
        return GroupCommit(
            "test",
            self.commit,
            max_batch=max_batch,
            abandoned=lambda item, result: self.abandoned.append((item, result)),
        )


async def submitted(
    group: GroupCommit[int, str], store: Store, *items: int
) -> list[asyncio.Task[str]]:
    """One submission that is being committed, and the others waiting behind it."""
    store.open.clear()
    first = asyncio.create_task(group.submit(0))
    await store.started.wait()
    tasks = [first, *(asyncio.create_task(group.submit(item)) for item in items)]
    await asyncio.sleep(0)
    return tasks


async def test_waiting_items_share_commits_of_bounded_size_in_order() -> None:
    store = Store()
    tasks = await submitted(store.group(), store, 1, 2, 3, 4)
    store.open.set()
    assert await asyncio.gather(*tasks) == [f"result {item}" for item in range(5)]
    assert store.batches == [[0], [1, 2, 3], [4]]


async def test_an_item_cancelled_before_its_commit_is_withdrawn() -> None:
    store = Store()
    tasks = await submitted(store.group(), store, 1, 2)
    tasks[1].cancel()
    await asyncio.sleep(0)
    store.open.set()
    assert [await tasks[0], await tasks[2]] == ["result 0", "result 2"]
    assert (store.batches, store.abandoned) == ([[0], [2]], [])


async def test_the_result_of_an_item_cancelled_during_its_commit_is_handed_over() -> None:
    store = Store()
    group = store.group()
    [task] = await submitted(group, store)
    task.cancel()
    await asyncio.sleep(0)
    store.open.set()
    assert await group.submit(9) == "result 9"
    assert store.abandoned == [(0, "result 0")]


async def test_one_item_that_cannot_be_committed_spoils_no_other() -> None:
    store = Store()
    store.refuses = {2: ValueError("2")}
    tasks = await submitted(store.group(), store, 1, 2, 3)
    store.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[:2] == ["result 0", "result 1"]
    assert answers[3] == "result 3"
    assert isinstance(answers[2], ValueError)
    assert store.batches == [[0], [1, 2, 3], [1], [2], [3]]


async def test_of_two_items_one_that_cannot_be_committed_spoils_not_the_other() -> None:
    store = Store()
    store.refuses = {2: ValueError("2")}
    tasks = await submitted(store.group(), store, 1, 2)
    store.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[:2] == ["result 0", "result 1"]
    assert isinstance(answers[2], ValueError)


async def test_while_the_database_is_away_a_whole_batch_fails_and_none_is_retried() -> None:
    store = Store()
    store.refuses = {2: Unavailable("away", retry_after_seconds=1)}
    group = store.group()
    tasks = await submitted(group, store, 1, 2)
    store.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[0] == "result 0"
    assert [type(answer) for answer in answers[1:]] == [Unavailable, Unavailable]
    assert store.batches == [[0], [1, 2]]
    with pytest.raises(Unavailable):
        await group.submit(2)
    assert await group.submit(5) == "result 5"
