"""A rolled key is the same key to budgets and reports."""

from datetime import timedelta

import pytest

from gateway.billing import budgets
from gateway.errors import NotFound
from gateway.tenancy import api_keys, users
from tests.harness import GPT2, Served, error_of
from tests.stub_openai import Stub

BODY = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
PATH = "/v1/images/generations"


async def test_a_rolled_key_keeps_what_is_left_of_its_budget(served: Served, stub: Stub) -> None:
    key = await served.key()
    await served.budget("0.01", window="total", api_key_id=key.id)
    async with served.http(key) as http:
        assert (await http.post(PATH, json=BODY)).status_code == 200
    async with served.gateway.database.operator() as session:
        twin = await api_keys.roll(
            session, key.id, pepper=served.gateway.core.pepper, grace=timedelta(hours=1)
        )
    async with served.http(twin) as http:
        refused = await http.post(PATH, json=BODY)
        [shown] = (await http.get("/v1/budgets")).json()["data"]
    assert (refused.status_code, error_of(refused)["code"]) == (402, "budget_exceeded")
    assert shown["spent_usd"] != "0.000000000"
    assert len(stub.bill) == 1


async def test_a_budget_set_for_a_rolled_key_limits_its_whole_line(served: Served) -> None:
    key = await served.key(livemode=False)
    async with served.gateway.database.operator() as session:
        twin = await api_keys.roll(
            session, key.id, pepper=served.gateway.core.pepper, grace=timedelta(hours=1)
        )
    # Asked for live, but the key is a test key: a limit that binds no call would be a trap.
    await served.budget("0.000001", api_key_id=twin.id, livemode=True)
    for secret in (key, twin):
        async with served.http(secret) as http:
            assert (await http.post(PATH, json=BODY)).status_code == 402


async def test_usage_of_a_rolled_key_is_one_line(served: Served) -> None:
    key = await served.key(livemode=False)
    async with served.gateway.database.operator() as session:
        twin = await api_keys.roll(
            session, key.id, pepper=served.gateway.core.pepper, grace=timedelta(hours=1)
        )
    for secret in (key, twin):
        async with served.http(secret) as http:
            assert (await http.post(PATH, json=BODY)).status_code == 200
    async with served.http(twin) as http:
        report = (await http.get("/v1/usage?group_by=key")).json()
    assert [(row["key"], row["requests"]) for row in report["data"]] == [(str(key.id), 2)]


async def test_a_budget_for_a_user_that_does_not_exist_is_refused(served: Served) -> None:
    async with served.gateway.database.tenant(served.tenant_id) as session:
        with pytest.raises(NotFound):
            await users.find_user(session, served.tenant_id, "alcie")
        assert await budgets.list_budgets(session, served.tenant_id) == []
