"""Each example of a refusal in the API description has the words of a real answer."""

import asyncio
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.config import Settings
from gateway.domain import Scope
from gateway.errors import ModelRetired
from gateway.rest.refusals import shared_responses
from gateway.vault import key_format
from tests.admin_helpers import GENERATIONS, LOW, admin, answered
from tests.harness import Served, served_gateway
from tests.limits.test_load import first_ones, flood, narrow_gateway, stuck
from tests.limits_helpers import limit
from tests.money_helpers import client_of
from tests.rest.test_rest_database_away import Cable
from tests.rest.test_rest_links import get, make, split, stored_path
from tests.stub_openai import Fault, Stub

ROOT = Path(__file__).resolve().parents[2]
VARYING = re.compile(
    r"img_[0-9a-z_]+(?:, img_[0-9a-z_]+)*|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d[\d.:T+-]*",
    re.ASCII,
)
"""Ids, amounts, counts and dates, which differ from answer to answer."""


@dataclass(frozen=True)
class Scene:
    """A gateway, and what other gateways like it need."""

    served: Served
    settings: Settings
    stub: Stub

    async def post(self, *, live: bool = False, **changes: Any) -> httpx2.Response:
        """Ask for an image with a new key."""
        async with self.served.http(await self.served.key(livemode=live)) as http:
            return await http.post(GENERATIONS, json=LOW | changes)


Provoke = Callable[[Scene], Awaitable[httpx2.Response]]


def asked(**changes: Any) -> Provoke:
    """A request of a test key, which the sandbox or the checks refuse."""
    return lambda scene: scene.post(**changes)


async def with_a_limit_out_of_bounds(scene: Scene) -> httpx2.Response:
    async with scene.served.http(await scene.served.key()) as http:
        return await http.get("/v1/images", params={"limit": 101})


async def with_an_unknown_key(scene: Scene) -> httpx2.Response:
    async with scene.served.http(key_format.new_key("live").reveal()) as http:
        return await http.get("/v1/models")


async def beyond_a_budget(scene: Scene) -> httpx2.Response:
    await scene.served.budget("0.0001")
    return await scene.post(live=True)


async def without_the_scope(scene: Scene) -> httpx2.Response:
    key = await scene.served.key(scopes=[Scope.IMAGES_READ])
    async with scene.served.http(key) as http:
        return await http.post(GENERATIONS, json=LOW)


async def of_a_suspended_tenant(scene: Scene) -> httpx2.Response:
    key = await scene.served.key()
    async with admin(scene.served) as operator, scene.served.http(key) as http:
        path = f"/tenants/{scene.served.tenant_id}"
        answered(await operator.patch(path, json={"status": "suspended"}))
        return await http.post(GENERATIONS, json=LOW)


async def of_a_disabled_user(scene: Scene) -> httpx2.Response:
    key = await scene.served.key(user="alice")
    async with admin(scene.served) as operator, scene.served.http(key) as http:
        users = f"/tenants/{scene.served.tenant_id}/users"
        [user] = answered(await operator.get(users))["data"]
        answered(await operator.patch(f"{users}/{user['id']}", json={"status": "disabled"}))
        return await http.post(GENERATIONS, json=LOW)


async def by_an_old_link(scene: Scene) -> httpx2.Response:
    link = await make(scene.served, livemode=False)
    path = await stored_path(scene.served, link)
    signed = scene.served.gateway.links.sign(link.image_id, path, int(time.time()) - 1)
    return await get(scene.served, split(signed).path())


async def beyond_the_end_of_a_file(scene: Scene) -> httpx2.Response:
    link = await make(scene.served, livemode=False)
    async with scene.served.http() as http:
        return await http.get(link.path(), headers={"Range": "bytes=99999999-"})


async def for_an_unknown_tenant(scene: Scene) -> httpx2.Response:
    async with admin(scene.served) as operator:
        return await operator.get("/tenants/019aa5f2-7c00-7000-8000-000000000000")


async def for_a_name_that_is_taken(scene: Scene) -> httpx2.Response:
    async with admin(scene.served) as operator:
        return await operator.post("/tenants", json={"name": "acme"})


async def while_the_first_is_running(scene: Scene) -> httpx2.Response:
    scene.stub.faults.add(Fault(hold=True))
    headers = {"Idempotency-Key": "order-17"}
    async with scene.served.http(await scene.served.key()) as http:
        first = asyncio.create_task(http.post(GENERATIONS, json=LOW, headers=headers))
        await scene.stub.until_held(1)
        second = await http.post(GENERATIONS, json=LOW, headers=headers)
        scene.stub.release()
        await first
    return second


async def with_the_key_of_another_request(scene: Scene) -> httpx2.Response:
    headers = {"Idempotency-Key": "order-17"}
    async with scene.served.http(await scene.served.key(livemode=False)) as http:
        await http.post(GENERATIONS, json=LOW, headers=headers)
        return await http.post(GENERATIONS, json=LOW | {"n": 2}, headers=headers)


async def beyond_a_limit(scene: Scene) -> httpx2.Response:
    key = await scene.served.key(livemode=False)
    await limit(scene.served, "requests", 1, api_key_id=key.id, livemode=False)
    async with scene.served.http(key) as http:
        await http.post(GENERATIONS, json=LOW)
        return await http.post(GENERATIONS, json=LOW)


def break_store(served: Served) -> None:
    """Leave the gateway without a place for images."""
    folder = served.gateway.settings.data_dir / "images"
    shutil.rmtree(folder)
    folder.write_text("no folder any more")


async def when_the_store_has_just_failed(scene: Scene) -> httpx2.Response:
    break_store(scene.served)
    return await scene.post(live=True, response_format="url")


async def while_the_store_is_away(scene: Scene) -> httpx2.Response:
    break_store(scene.served)
    while not scene.served.gateway.keeper.health.is_failing:
        await scene.served.gateway.keeper.health.probe()
    return await scene.post(response_format="url")


async def with_a_decoder_that_is_too_slow(scene: Scene) -> httpx2.Response:
    changes = {"decoder_processes": 1, "decoder_job_seconds": 0.001}
    async with served_gateway(scene.settings.model_copy(update=changes)) as slow:
        small = {"model": "dall-e-2", "quality": "standard", "size": "256x256", "n": 10}
        return await Scene(slow, scene.settings, scene.stub).post(live=True, **small)


async def in_a_crowd(scene: Scene) -> httpx2.Response:
    async with narrow_gateway(scene.settings) as narrow:
        key = await narrow.key()
        async with client_of(narrow.base_url, key) as http:
            async with stuck(narrow):
                tasks = flood(http, 5)
                [refused] = await first_ones(tasks, 1)
            await asyncio.gather(*tasks)
    return refused


async def without_a_database(scene: Scene) -> httpx2.Response:
    address = scene.settings.database_url
    assert address is not None
    cable = Cable(address.get_secret_value())
    await cable.plug_in()
    changes = {
        "database_url": type(address)(cable.url),
        "migration_database_url": address,
    }
    async with served_gateway(scene.settings.model_copy(update=changes)) as far:
        key = await far.key()
        await cable.cut()
        async with far.http(key) as http:
            refused = await http.post(GENERATIONS, json=LOW)
        await cable.plug_in()
    await cable.cut()
    return refused


async def without_a_credential(scene: Scene) -> httpx2.Response:
    keyless = scene.settings.model_copy(update={"openai_api_key": None})
    async with served_gateway(keyless) as other:
        return await Scene(other, keyless, scene.stub).post(live=True)


PROVOKED: dict[str, Provoke] = {
    "unknown_parameter": asked(sise="1024x1024"),
    "integer_above_max_value": asked(n=11),
    "invalid_value": with_a_limit_out_of_bounds,
    "moderation_blocked": asked(prompt="[sandbox:moderation]"),
    "invalid_api_key": with_an_unknown_key,
    "budget_exceeded": beyond_a_budget,
    "insufficient_scope": without_the_scope,
    "tenant_suspended": of_a_suspended_tenant,
    "user_disabled": of_a_disabled_user,
    "link_expired": by_an_old_link,
    "model_not_found": asked(model="dall-e-4"),
    "not_found": for_an_unknown_tenant,
    "idempotency_in_flight": while_the_first_is_running,
    "already_exists": for_a_name_that_is_taken,
    "payload_too_large": asked(prompt="x" * 1_048_577),
    "range_not_satisfiable": beyond_the_end_of_a_file,
    "idempotency_conflict": with_the_key_of_another_request,
    "credential_rejected": asked(prompt="[sandbox:credential]"),
    "rate_limit_exceeded": beyond_a_limit,
    "storage_failed": when_the_store_has_just_failed,
    "image_unfinished": with_a_decoder_that_is_too_slow,
    "provider_unreachable": asked(prompt="[sandbox:unreachable]"),
    "overloaded": in_a_crowd,
    "database_unavailable": without_a_database,
    "storage_unavailable": while_the_store_is_away,
    "no_credential": without_a_credential,
    "outcome_unknown": asked(prompt="[sandbox:unknown]"),
}


def documented() -> dict[str, Any]:
    """The examples of the description, by their code."""
    responses: dict[str, Any] = shared_responses()
    return {
        code: example["value"]
        for response in responses.values()
        for code, example in response["content"]["application/json"]["examples"].items()
    }


def masked(envelope: dict[str, Any]) -> dict[str, Any]:
    error: dict[str, Any] = envelope["error"]
    return error | {"message": VARYING.sub("#", error["message"])}


async def test_every_documented_refusal_is_provoked_here(served: Served) -> None:
    async with served.http() as http:
        described = (await http.get("/openapi.json")).json()["components"]["responses"]
    assert described == shared_responses()
    assert documented().keys() == PROVOKED.keys()


def test_the_page_quotes_openais_answer_for_a_retired_model() -> None:
    assert f'"{ModelRetired("dall-e-2").message}"' in (ROOT / "docs" / "api.md").read_text()


@pytest.mark.parametrize("code", PROVOKED)
async def test_a_documented_refusal_has_the_words_of_a_real_one(
    served: Served, settings: Settings, stub: Stub, code: str
) -> None:
    answer = await PROVOKED[code](Scene(served, settings, stub))
    assert masked(answer.json()) == masked(documented()[code])
