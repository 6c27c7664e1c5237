"""Metrics: by tenant and by model, equal to the ledger; pools, caches, the store, periodic work."""

import asyncio
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from gateway import __version__
from gateway.billing import budgets
from gateway.config import Settings
from gateway.db.engine import DatabaseUnavailable
from gateway.maintenance import Sweeper
from tests.admin_helpers import admin_secret
from tests.harness import GPT2, Served, served_gateway
from tests.money_helpers import eventually
from tests.store_helpers import Away, hasty_gateway
from tests.stub_openai import Fault, Stub
from tests.tooling.metric_pages import metrics, name_of

PATH = "/v1/images/generations"
ONE = {"prompt": "a red circle", "model": GPT2, "quality": "low"}


def value(name: str, **labels: str) -> float:
    """The value of one series of this process; 0 where it has none."""
    return REGISTRY.get_sample_value(f"gateway_{name}", labels) or 0.0


def of_tenant(tenant: str) -> dict[str, float]:
    """The live series of a tenant."""
    live = {"tenant": tenant, "livemode": "true"}
    return {
        "answered": value("tenant_requests_total", **live, status="2xx"),
        "refused": value("tenant_requests_total", **live, status="4xx"),
        "images": value("tenant_images_total", **live),
        "input": value("tenant_tokens_total", **live, kind="input"),
        "output": value("tenant_tokens_total", **live, kind="output"),
        "nano": value("tenant_cost_nano_usd_total", **live),
    }


def grown(before: Mapping[str, float], tenant: str) -> dict[str, float]:
    """The difference to the series of before."""
    return {name: now - before[name] for name, now in of_tenant(tenant).items()}


async def buy(served: Served, tenant_id: UUID | None = None, **changes: object) -> httpx2.Response:
    """Send one live request of a tenant."""
    async with served.http(await served.key(tenant_id=tenant_id)) as http:
        return await http.post(PATH, json={**ONE, **changes})


async def test_tenants_that_spend_most_or_are_named_have_series_and_the_others_share_one(
    settings: Settings, stub: Stub
) -> None:
    rich, named, small = (f"{name}-{secrets.token_hex(4)}" for name in ("rich", "named", "small"))
    changes = {"metrics_top_tenants": 1, "metrics_tenants": f" {named} ,nonesuch"}
    async with served_gateway(settings.model_copy(update=changes)) as served:
        ids = {name: await served.tenant(name) for name in (rich, named, small)}
        await buy(served, ids[small])
        await buy(served, ids[rich], n=2)
        await served.sweep()
        of_others = of_tenant("other")
        bought: dict[str, dict[str, Any]] = {}
        for name, tenant_id in ids.items():
            answer = await buy(served, tenant_id, n=2)
            bought[name] = answer.json()["usage"]
            assert (await buy(served, tenant_id, n=0)).status_code == 400
    nothing = dict.fromkeys(of_others, 0.0)
    for (name, usage), line in zip(bought.items(), stub.bill[-3:], strict=True):
        is_other = name == small
        assert grown(of_others if is_other else nothing, "other" if is_other else name) == {
            "answered": 1.0,
            "refused": 1.0,
            "images": 2.0,
            "input": float(usage["input_tokens"]),
            "output": float(usage["output_tokens"]),
            "nano": float(line.cost_nano_usd),
        }
    assert of_tenant(small) == nothing


async def test_budgets_are_measured_until_they_are_removed(settings: Settings, stub: Stub) -> None:
    name = f"thrifty-{secrets.token_hex(4)}"
    changes = {"metrics_tenants": name}
    async with served_gateway(settings.model_copy(update=changes)) as served:
        tenant_id, sweeper = await served.tenant(name), Sweeper(served.gateway)
        key = await served.key(tenant_id=tenant_id)
        await served.budget("1", tenant_id=tenant_id)
        await served.budget("0.5", tenant_id=tenant_id, api_key_id=key.id)
        await served.house_budget("2", window="day")
        await buy(served, tenant_id)
        await sweeper.sweep()
        spent = stub.bill[0].cost_nano_usd
        ratio = value("tenant_budget_used_ratio", tenant=name, window="month")
        assert ratio == pytest.approx(spent / 1_000_000_000)
        assert value("house_budget_used_nano_usd", window="day") == spent
        assert value("house_budget_limit_nano_usd", window="day") == 2_000_000_000
        stub.faults.add(Fault(hold=True))
        call = asyncio.create_task(buy(served, tenant_id))
        await stub.until_held(1)
        await sweeper.sweep()
        [held] = await served.owner_sql("SELECT held_nano FROM reservation WHERE state = 'held'")
        assert value("house_budget_used_nano_usd", window="day") == spent + held.held_nano
        ratio = value("tenant_budget_used_ratio", tenant=name, window="month")
        assert ratio == pytest.approx((spent + held.held_nano) / 1_000_000_000)
        stub.release()
        assert (await call).status_code == 200
        async with served.gateway.database.operator() as session:
            for owner in (tenant_id, None):
                for budget in await budgets.list_budgets(session, owner):
                    await budgets.remove(session, owner, budget.id)
        await sweeper.sweep()
    assert math.isnan(value("tenant_budget_used_ratio", tenant=name, window="month"))
    assert math.isnan(value("house_budget_used_nano_usd", window="day"))


async def test_a_request_is_measured_by_model_cache_pool_commit_and_store(served: Served) -> None:
    model = {"provider": "openai", "model": GPT2}
    live = {**model, "livemode": "true"}
    series = [
        ("images_total", live),
        ("tokens_total", {**live, "kind": "text_input"}),
        ("tokens_total", {**live, "kind": "image_output"}),
        ("cost_nano_usd_total", live),
        ("provider_duration_seconds_count", {**model, "outcome": "success"}),
        ("cache_lookups_total", {"cache": "api_keys", "outcome": "miss"}),
        ("cache_lookups_total", {"cache": "api_keys", "outcome": "hit"}),
        ("cache_lookups_total", {"cache": "prices", "outcome": "hit"}),
        ("database_pool_wait_seconds_count", {"pool": "requests"}),
        ("group_commit_duration_seconds_count", {"kind": "reserve"}),
        ("group_commit_batch_size_sum", {"kind": "reserve"}),
        ("image_store_duration_seconds_count", {"operation": "put"}),
    ]
    before = [value(name, **labels) for name, labels in series]
    async with served.http(await served.key()) as http:

        async def all_have_grown() -> bool:
            # The announcement of the new key may empty a cache between two requests.
            assert (await http.post(PATH, json=ONE | {"response_format": "url"})).is_success
            after = [value(name, **labels) for name, labels in series]
            return all(now > was for was, now in zip(before, after, strict=True))

        await eventually(all_have_grown)
    assert value("settlements_waiting") == 0


async def test_connections_in_use_are_measured(served: Served) -> None:
    async with served.gateway.operators_database.operator():
        assert value("database_pool_in_use", pool="operators") == 1
    assert value("database_pool_in_use", pool="operators") == 0


async def test_a_tenants_share_of_the_pool_that_is_used_up_is_counted(settings: Settings) -> None:
    changes = {"admission_timeout_ms": 2000, "database_pool_size": 4}  # two for one tenant
    async with served_gateway(settings.model_copy(update=changes)) as served:
        database = served.gateway.database
        before = value("database_pool_timeouts_total", pool="requests")
        async with database.tenant(served.tenant_id), database.tenant(served.tenant_id):
            with pytest.raises(DatabaseUnavailable):
                async with database.tenant(served.tenant_id):
                    pass
        assert value("database_pool_timeouts_total", pool="requests") > before


@pytest.mark.parametrize("away", ["files"], indirect=True)
async def test_errors_of_the_store_are_counted(settings: Settings, away: Away) -> None:
    async with hasty_gateway(settings, away) as hosted:
        before = value("image_store_errors_total", operation="put")
        away.fail()
        async with hosted.served.http(await hosted.served.key()) as http:
            await http.post(PATH, json=ONE)
        away.mend()
        assert value("image_store_errors_total", operation="put") > before


async def test_waiting_in_a_queue_is_measured(served: Served) -> None:
    gate = served.gateway.decoder._gate  # noqa: SLF001 - the smallest queue
    before = value("queue_wait_seconds_count", queue="decoder")
    inside = [gate.take("one") for _ in range(served.gateway.settings.decoder_processes)]
    waiting = [gate.join("one"), gate.join("two")]
    assert value("queue_waiting", queue="decoder") == 2
    gate.abandon("two", waiting[1])
    inside[0].leave() if inside[0] is not None else None
    (await waiting[0]).leave()
    await asyncio.sleep(0)
    assert value("queue_waiting", queue="decoder") == 0
    assert value("queue_wait_seconds_count", queue="decoder") == before + 1
    for slot in inside[1:]:
        assert slot is not None
        slot.leave()


async def test_the_page_has_every_documented_metric_and_no_created_series(
    served: Served,
) -> None:
    admin = served.gateway.core.new_admin_key
    assert admin is not None
    await served.sweep()
    async with served.http(admin.reveal()) as http:
        text = (await http.get("/metrics")).text
    found = {family.name for family in text_string_to_metric_families(text)}
    expected = {name_of(metric).removesuffix("_total") for metric in metrics()}
    assert expected - found == set()
    names = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines()}
    assert [name for name in names if name.endswith("_created")] == []
    assert f'version="{__version__}"' in text
    assert value("disk_free_bytes", directory="data") > 0
    assert value("secret_created_timestamp_seconds", secret="link_key") > 0
    assert value("sweep_success_timestamp_seconds", work="sweep_money") > 0


async def test_a_file_that_a_starting_worker_has_not_filled_yet_is_read_again(
    settings: Settings, tmp_path: Path
) -> None:
    (empty := tmp_path / "gauge_livesum_1.db").touch()
    changed = settings.model_copy(update={"prometheus_multiproc_dir": tmp_path})
    async with served_gateway(changed) as served, served.http(admin_secret(served)) as http:
        refused = await http.get("/metrics")
        reading = asyncio.create_task(http.get("/metrics"))
        empty.unlink()
        assert (await reading).status_code == 200
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
