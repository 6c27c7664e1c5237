"""Pools of connections: no report, operator or periodic job makes a tenant's request wait."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import httpx2
import pytest

from gateway.config import Settings
from gateway.db.pools import Beside, connections_of_worker
from gateway.maintenance import Sweeper
from tests.admin_helpers import admin
from tests.cli.test_cli_manners import CommandLine
from tests.harness import Served, process_environment, served_gateway
from tests.money_helpers import eventually, post_image

REPORTS = 8
BLOCKED = """
SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND database = (
    SELECT oid FROM pg_database WHERE datname = current_database()
)
"""


OPENED = """
SELECT count(*) FROM pg_stat_activity WHERE application_name = 'image-gateway'
AND datname = current_database() AND pid <> pg_backend_pid()
"""


@asynccontextmanager
async def locked(served: Served, table: str) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Lock a table against everyone; the function waits until so many connections wait for it."""
    url = served.gateway.settings.database_url
    assert url is not None
    connection = await asyncpg.connect(url.get_secret_value().replace("+asyncpg", ""))

    async def until_blocked(count: int) -> None:
        async def is_so() -> bool:
            return bool((await served.owner_sql(BLOCKED))[0][0] >= count)

        await eventually(is_so)

    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield until_blocked
    finally:
        await connection.close()


async def check_tenants_are_served(served: Served) -> None:
    """Buy images, read pages and administer a tenant, all at once; every answer is 200."""
    async with served.http(await served.key()) as http:
        answers = await asyncio.gather(
            *(post_image(http) for _ in range(10)),
            *(http.get(path) for path in ("/v1/budgets", "/v1/images", "/v1/requests") * 3),
        )
    assert [answer.status_code for answer in answers] == [200] * len(answers)


async def ask(http: httpx2.AsyncClient, path: str) -> int:
    return (await http.get(path)).status_code


async def test_operators_reports_do_not_make_a_tenant_wait(served: Served) -> None:
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(admin(served))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        async with locked(served, "usage_day") as until_blocked:
            paths = ["/usage", f"/usage?tenant={served.tenant_id}"]
            asked = [group.create_task(ask(http, paths[n % 2])) for n in range(REPORTS)]
            await until_blocked(Beside.OPERATORS_REPORTS.connections)
            await check_tenants_are_served(served)
            # Nor do they delay operators' other pages.
            assert await ask(http, "/tenants") == 200
            assert [task for task in asked if task.done()] == []
    assert [task.result() for task in asked] == [200] * REPORTS


async def test_tenants_reports_do_not_make_another_request_wait(served: Served) -> None:
    clients = [
        served.http(await served.key(tenant_id=await served.tenant(f"tenant {n}")))
        for n in range(REPORTS)
    ]
    async with asyncio.TaskGroup() as group, locked(served, "usage_day") as until_blocked:
        asked = [group.create_task(ask(http, "/v1/usage")) for http in clients]
        await until_blocked(Beside.REPORTS.connections)
        await check_tenants_are_served(served)
        assert [task for task in asked if task.done()] == []
    for http in clients:
        await http.aclose()
    assert [task.result() for task in asked] == [200] * REPORTS


async def test_periodic_work_does_not_make_a_tenant_wait(served: Served) -> None:
    async with asyncio.TaskGroup() as group, locked(served, "event") as until_blocked:
        sweeps = [group.create_task(Sweeper(served.gateway).sweep()) for _ in range(REPORTS)]
        await until_blocked(Beside.BACKGROUND.connections)
        await check_tenants_are_served(served)
        assert [task for task in sweeps if task.done()] == []


@pytest.mark.parametrize(("workers", "state"), [("1", "ok"), ("64", "wrong")])
async def test_doctor_compares_the_workers_connections_with_what_postgres_admits(
    served: Served, tmp_path: Path, workers: str, state: str
) -> None:
    environment = process_environment(served.gateway.settings)
    command = CommandLine(environment | {"GATEWAY_WORKERS": workers}, tmp_path)
    ended = await asyncio.to_thread(command, "doctor", "--json")
    [found] = [check for check in json.loads(ended.out) if check["check"] == "connections"]
    each = connections_of_worker(served.gateway.settings.database_pool_size)
    assert found["state"] == state
    assert f"{int(workers) * each} for GATEWAY_WORKERS={workers};" in found["detail"]


async def test_a_worker_opens_no_more_connections_than_said(served: Served) -> None:
    database = served.gateway.database
    for work in Beside:
        await database.beside(work).warm()
    async with served.http(await served.key()) as http:
        assert (await post_image(http)).status_code == 200
    [[count]] = await served.owner_sql(OPENED)
    assert count <= connections_of_worker(served.gateway.settings.database_pool_size)


async def test_a_gateway_that_closes_closes_its_connections(
    served: Served, settings: Settings
) -> None:
    [[before]] = await served.owner_sql(OPENED)
    async with served_gateway(settings) as other:
        async with other.http(await served.key()) as http:
            assert (await post_image(http)).status_code == 200
        for work in Beside:
            await other.gateway.database.beside(work).warm()
        [[during]] = await served.owner_sql(OPENED)
    assert during > before

    async def closed() -> bool:
        return bool((await served.owner_sql(OPENED))[0][0] <= before)

    await eventually(closed)
