"""The last use of API keys."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

import orjson

from gateway.tenancy.key_use import last_uses
from tests.harness import Served

BEGAN = datetime.now(UTC).replace(microsecond=0)


async def uses_of(served: Served, *root_ids: UUID) -> Mapping[UUID, datetime]:
    """The last uses that the tenant sees."""
    async with served.gateway.database.tenant(served.tenant_id) as session:
        return await last_uses(session, served.tenant_id, root_ids)


async def note(served: Served, key: UUID, seconds: int, **fields: object) -> None:
    """Write a record of a request with this key, some seconds after the test began."""
    record = {
        "at": (BEGAN + timedelta(seconds=seconds)).isoformat(),
        "tenant_id": str(served.tenant_id),
        "api_key_id": str(key),
        **fields,
    }
    await served.owner_sql(
        "SELECT note_key_uses(CAST(:rows AS jsonb))", rows=orjson.dumps([record]).decode()
    )


async def test_a_request_shows_as_the_last_use_of_its_line_of_keys(served: Served) -> None:
    used, unused = await served.key(name="used"), await served.key(name="unused")
    async with served.http(used) as http:
        assert (await http.get("/v1/models")).status_code == 200
    await served.gateway.request_log.flush()
    found = await uses_of(served, used.id, unused.id)
    assert set(found) == {used.id}
    assert abs(found[used.id] - datetime.now(UTC)) < timedelta(minutes=1)


async def test_a_key_in_steady_use_is_noted_twice_a_minute_and_never_earlier(
    served: Served,
) -> None:
    key = (await served.key()).id
    seen = []
    for seconds in (0, 29, 30, -60):
        await note(served, key, seconds)
        seen.append(await uses_of(served, key))
    assert [one[key] - BEGAN for one in seen] == [
        timedelta(seconds=expected) for expected in (0, 0, 30, 30)
    ]


async def test_a_page_of_the_console_is_no_use_of_the_key_that_opened_it(served: Served) -> None:
    key = (await served.key()).id
    await note(served, key, 0, session_id=str(key))
    assert await uses_of(served, key) == {}
