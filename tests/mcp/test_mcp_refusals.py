"""Tool errors of keys, money, foreign images, providers and stores, and their cost."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Settings
from gateway.domain import Scope
from gateway.mcp_server.tools import TOOL_SCOPES
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served, served_gateway
from tests.hosting_helpers import Hosted, files_in, hosted_gateway
from tests.image_helpers import data_url, expect_nothing_bought, png
from tests.mcp_helpers import (
    LEGACY,
    MODERN,
    MODES,
    call,
    content_of,
    error_of,
    made,
    refused,
    text_of,
)
from tests.money_helpers import books, budget_rows, count_states
from tests.stub_openai import Fault, Stub

MAKE = {"prompt": "a red fox", "model": GPT2, "size": "1024x1024", "quality": "low"}
IMAGE = data_url(png())
BUYING: dict[str, dict[str, Any]] = {
    "generate_image": MAKE,
    "edit_image": {**MAKE, "image": IMAGE},
    "create_variation": {"image": IMAGE},
}
WHOLE = {**BUYING, "list_available_models": {}, "estimate_cost": MAKE, "get_usage": {}}


async def codes(served: Served, key: IssuedKey, mode: str, *tools: str) -> dict[str, str]:
    """The codes with which the tools are refused to a key."""
    async with served.mcp(key, mode) as client:
        results = {tool: await call(client, tool, **WHOLE[tool]) for tool in tools}
    return {tool: error_of(result)["code"] for tool, result in results.items()}


# Keys and models


async def test_each_tool_needs_its_scope(served: Served, stub: Stub) -> None:
    for mode in MODES:
        assert TOOL_SCOPES.keys() == WHOLE.keys()
        for tool, needed in TOOL_SCOPES.items():
            others = await served.key(scopes=[scope for scope in Scope if scope is not needed])
            assert await codes(served, others, mode, tool) == {tool: "insufficient_scope"}
        nothing = await served.key(scopes=[Scope.CREDENTIALS_WRITE])
        async with served.http(nothing) as http:
            answer = await http.post(
                "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            )
        assert answer.status_code == 403
        await expect_nothing_bought(served, stub)


async def test_each_scope_is_enough_for_its_tools(served: Served) -> None:
    for tool, needed in TOOL_SCOPES.items():
        await made(served, await served.key(scopes=[needed]), tool, **WHOLE[tool])


async def test_an_image_kept_here_is_only_for_keys_that_may_read(
    served: Served, stub: Stub
) -> None:
    writing = await served.key(scopes=[Scope.IMAGES_WRITE])
    image = (await made(served, writing, "generate_image", **MAKE))["images"][0]
    error = await refused(served, writing, "edit_image", **MAKE, image=image["uri"])
    assert (error["code"], error["param"]) == ("insufficient_scope", "image")
    # A link may be opened by all who have it.
    await made(served, writing, "edit_image", **MAKE, image=image["url"])
    assert len(stub.bill) == 2


async def test_a_key_of_some_models_is_refused_the_others(served: Served, stub: Stub) -> None:
    key = await served.key(models=["gpt-image-2.5-flare"])
    for mode in MODES:
        tools = (*BUYING, "estimate_cost")
        assert await codes(served, key, mode, *tools) == dict.fromkeys(tools, "model_not_allowed")
        async with served.mcp(key, mode) as client:
            result = await call(client, "generate_image", **MAKE)
            unnamed = await call(client, "generate_image", prompt="a red fox")
        assert "list_available_models" in text_of(result)
        assert error_of(unnamed)["code"] == "model_not_allowed"
        await expect_nothing_bought(served, stub)


async def test_a_tenant_without_continuity_is_told_that_a_model_is_gone(
    served: Served, stub: Stub
) -> None:
    tenant_id = await served.tenant("strict")
    await served.owner_sql("UPDATE tenant SET continuity = false WHERE id = :id", id=tenant_id)
    key = await served.key(tenant_id=tenant_id)
    for mode in MODES:
        async with served.mcp(key, mode) as client:
            listed = content_of(await call(client, "list_available_models"))
            gone = await call(client, "generate_image", prompt="x", model="dall-e-3")
        assert error_of(gone)["code"] == "invalid_value"
        ids = [model["id"] for provider in listed["providers"] for model in provider["models"]]
        assert "dall-e-3" not in ids
        assert GPT2 in ids
        await expect_nothing_bought(served, stub)


async def test_without_any_provider_key_nothing_can_be_bought(
    settings: Settings, stub: Stub
) -> None:
    change = {"openai_api_key": None}
    async with served_gateway(settings.model_copy(update=change)) as served:
        for mode in MODES:
            found = await codes(served, await served.key(), mode, *BUYING)
            assert found == dict.fromkeys(BUYING, "no_credential")
        await expect_nothing_bought(served, stub)
        await served.check_invariants()


# Money


async def test_a_short_budget_is_named_with_when_it_resets(served: Served, stub: Stub) -> None:
    key = await served.key(user="alice")
    [alice] = await served.owner_sql("SELECT id FROM tenant_user")
    owners: dict[str, tuple[str, dict[str, Any]]] = {
        "key's budget per day of 0.0001": ("day", {"api_key_id": key.id}),
        "user's budget per month of 0.0001": ("month", {"user_id": alice.id}),
        "tenant's total budget of 0.0001": ("total", {}),
    }
    for name, (window, owner) in owners.items():
        await served.budget("0.0001", window=window, **owner)
        for mode in MODES:
            async with served.mcp(key, mode) as client:
                budget = content_of(await call(client, "get_usage"))["budgets"][0]
                results = [await call(client, tool, **BUYING[tool]) for tool in BUYING]
            for result in results:
                assert error_of(result)["code"] == "budget_exceeded"
                said = text_of(result)
                assert name in said
                assert (budget["resets_at"] or "does not reset") in said
                assert "get_usage" in said
                assert "Try again" not in said
        await served.budget("1", window=window, **owner)
    assert {held for _, _, _, held in await budget_rows(served)} <= {0}
    await expect_nothing_bought(served, stub)


# Images of others, and images that are gone


@dataclass(frozen=True)
class Images:
    """Images by the reason why alice's live key cannot use them."""

    alice: IssuedKey
    uris: dict[str, str]


async def images_of_others(hosted: Hosted) -> Images:
    served = hosted.served
    other = await served.tenant("other")
    alice = await served.key(user="alice")
    owners = {
        "another tenant's": await served.key(tenant_id=other),
        "another user's": await served.key(user="bob"),
        "of no user": await served.key(),
        "in test mode": await served.key(user="alice", livemode=False),
        "expired": alice,
        "deleted": alice,
    }
    ids = {name: (await hosted.put(key)).id for name, key in owners.items()}
    await served.owner_sql("UPDATE image SET expires_at = now() WHERE id = :id", id=ids["expired"])
    async with served.http(alice) as http:
        deleted = await http.delete(f"/v1/images/{ids['deleted']}")
    assert deleted.status_code == 200
    return Images(alice, {name: f"generated-images://{id_}" for name, id_ in ids.items()})


async def test_images_of_others_and_images_that_are_gone_cannot_be_edited(
    settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    async with hosted_gateway(settings, files_in(tmp_path / "store")) as hosted:
        images = await images_of_others(hosted)
        before = await books(hosted.served)
        params = ["image", "image[1]", "mask", "image"]
        expected = {name: [("image_not_found", param) for param in params] for name in images.uris}
        for mode in MODES:
            found = {}
            async with hosted.served.mcp(images.alice, mode) as client:
                for name, uri in images.uris.items():
                    results = [
                        await call(client, "edit_image", **MAKE, image=uri),
                        await call(client, "edit_image", **MAKE, image=[IMAGE, uri]),
                        await call(client, "edit_image", **MAKE, image=IMAGE, mask=uri),
                        await call(client, "create_variation", image=uri),
                    ]
                    errors = [error_of(result) for result in results]
                    found[name] = [(error["code"], error["param"]) for error in errors]
                    assert all("image-history://recent" in text_of(result) for result in results)
            assert found == expected
        assert (stub.calls, await books(hosted.served)) == ([], before)


async def test_a_link_to_a_deleted_image_is_refused_as_input(served: Served, stub: Stub) -> None:
    key = await served.key()
    image = (await made(served, key, "generate_image", **MAKE))["images"][0]
    async with served.http(key) as http:
        assert (await http.delete(f"/v1/images/{image['id']}")).status_code == 200
    error = await refused(served, key, "edit_image", **MAKE, image=image["url"])
    assert (error["code"], error["param"]) == ("image_not_found", "image")
    assert len(stub.calls) == 1


# Providers and stores


FAULTS = [
    (Fault("status", preset="moderation_blocked"), "moderation_blocked", "void", "the prompt"),
    (Fault("status", preset="content_policy_violation"), "content_policy_violation", "void", ""),
    (Fault("status", preset="invalid_api_key"), "provider_unavailable", "void", ""),
    (Fault("status", preset="insufficient_quota"), "provider_unavailable", "void", ""),
    (Fault("status", status=500), "outcome_unknown", "unknown", "image-history://recent"),
    (Fault("status", status=500, html=True), "outcome_unknown", "unknown", ""),
    (Fault("status", status=503), "outcome_unknown", "unknown", ""),
    (Fault("hang_before_billing"), "outcome_unknown", "unknown", "image-history://recent"),
    (Fault("reset_after_billing"), "outcome_unknown", "unknown", ""),
    (Fault("truncated_body"), "outcome_unknown", "unknown", ""),
    # Must be the last one: the provider is not called until its retry time is over.
    (Fault("status", preset="rate_limited"), "rate_limit_exceeded", "void", "in 12 s"),
]


@pytest.mark.parametrize(("mode", "tool"), [(MODERN, "edit_image"), (LEGACY, "generate_image")])
async def test_a_providers_failure_says_what_it_means_and_buys_nothing_twice(
    settings: Settings, stub: Stub, mode: str, tool: str
) -> None:
    change = {"provider_read_timeout_seconds": 0.5, "circuit_failures": 100}
    async with served_gateway(settings.model_copy(update=change)) as served:
        async with served.mcp(await served.key(), mode) as client:
            results = []
            for fault, *_ in FAULTS:
                stub.faults.add(fault)
                results.append(await call(client, tool, **BUYING[tool]))
        told = [error_of(result)["code"] for result in results]
        assert told == [code for _, code, _, _ in FAULTS]
        assert [line.state for line in await books(served)] == [state for _, _, state, _ in FAULTS]
        for result, (_, _, _, advice) in zip(results, FAULTS, strict=True):
            assert advice in text_of(result)
        assert len(stub.calls) == len(FAULTS)
        await served.check_invariants()


async def test_a_refused_key_of_a_tenant_is_reported_to_that_tenant(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    async with served.http(key) as http:
        await http.put("/v1/credentials/openai", json={"secret": "sk-tenant-0123456789abcdef"})
    stub.faults.add(Fault("status", preset="invalid_api_key", times=None))
    for mode in MODES:
        found = await codes(served, key, mode, *BUYING)
        assert found == dict.fromkeys(BUYING, "credential_rejected")
    assert await count_states(served) == {"void": 6}


async def test_a_paid_image_that_is_not_stored_is_shown_and_no_more_are_bought(
    served: Served, stub: Stub
) -> None:
    images = served.gateway.settings.data_dir / "images"
    shutil.rmtree(images)
    images.write_bytes(b"a file where the folder was")
    key = await served.key()
    shown, refused = [], []
    async with served.mcp(key, MODES[0]) as client:
        shown = [await call(client, tool, **BUYING[tool]) for tool in BUYING]
    async with served.mcp(key, MODES[1]) as client:
        refused = [await call(client, tool, **BUYING[tool]) for tool in BUYING]
        usage = content_of(await call(client, "get_usage"))
    for result in shown:
        assert content_of(result)["cost_status"] == "actual"
        assert result.content[0].type == "image"
    assert [error_of(result)["code"] for result in refused] == ["storage_unavailable"] * 3
    assert all("Nothing was bought" in text_of(result) for result in refused)
    assert str(images) not in "".join(map(text_of, [*shown, *refused]))
    assert await count_states(served) == {"posted": 3}
    assert await served.ledger_total() == stub.totals.cost_nano_usd
    assert usage["today"]["images"] == 3


async def test_an_unreadable_store_is_reported_before_anything_is_bought(
    served: Served, stub: Stub
) -> None:
    key = await served.key()
    image = (await made(served, key, "generate_image", **MAKE))["images"][0]
    folder = served.gateway.settings.data_dir / "images" / str(served.tenant_id)
    shutil.rmtree(folder)
    folder.write_bytes(b"a file where the folder was")
    for mode in MODES:
        async with served.mcp(key, mode) as client:
            for source in (image["uri"], image["url"]):
                result = await call(client, "edit_image", **MAKE, image=source)
                assert error_of(result)["code"] == "overloaded"
                assert "paid" not in text_of(result)
    assert len(stub.calls) == 1
