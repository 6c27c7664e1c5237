"""Prompts, images, links and keys of MCP requests stay out of the log at every level."""

import pytest

from tests.harness import GPT2, LogAs, Served, secret_of
from tests.image_helpers import data_url, png
from tests.mcp_helpers import MODES, Message, call, content_of
from tests.stub_openai import Fault, Stub

CANARY = "canary-7f3a9c1e5b2d"
MAKE = {"prompt": CANARY, "model": GPT2, "size": "1024x1024", "quality": "low"}


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str], log_as: LogAs) -> pytest.CaptureFixture[str]:
    """Log everything, and let the test read it."""
    log_as("DEBUG", "json")
    return capfd


@pytest.mark.parametrize("mode", MODES)
async def test_prompts_images_links_and_keys_are_not_logged(
    served: Served, stub: Stub, mode: str, logged: pytest.CaptureFixture[str]
) -> None:
    key = await served.key()
    await served.owner_sql("UPDATE tenant SET stores_prompts = true")
    uploaded = data_url(png())
    async with served.mcp(key, mode) as client:
        image = content_of(await call(client, "generate_image", **MAKE))
        await call(client, "edit_image", **MAKE, image=[uploaded, image["images"][0]["uri"]])
        await call(client, "edit_image", **MAKE, image=f"https://127.0.0.1/{CANARY}")
        for fault in (Fault("status", status=500), Fault("status", preset="moderation_blocked")):
            stub.faults.add(fault)
            await call(client, "generate_image", **MAKE)
        await call(client, "generate_image", **MAKE | {"model": CANARY})
        history = await client.read_resource("image-history://recent")
        await client.list_resources()
    async with served.http(key) as http:
        for body in (f"{{{CANARY}", f'{{"jsonrpc":"2.0","method":"{CANARY}","params":"{CANARY}"}}'):
            headers = Message("tools/list", {}, mode).headers
            assert (await http.post("/mcp", content=body.encode(), headers=headers)).is_error
    assert CANARY in history.model_dump_json()
    lines = logged.readouterr().err.splitlines()
    signature = image["url"].rpartition("sig=")[2]
    for hidden in (CANARY, uploaded[40:100], signature, secret_of(key)):
        assert [line for line in lines if hidden in line] == []
    assert any("generation_failed" in line for line in lines)
