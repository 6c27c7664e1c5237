"""A store that fails and is mended, and calls that find it so."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from gateway.config import Settings
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served
from tests.hosting_helpers import Hosted, Place, S3Server, hosted_gateway


class Away:
    """A place for images that can be made to fail, and be mended."""

    def __init__(self, place: Place, folder: Path | None, server: S3Server | None) -> None:
        self.place = place
        self._folder = folder
        self._server = server

    def fail(self) -> None:
        if self._server is not None:
            self._server.fail()
            return
        assert self._folder is not None
        self._folder.rename(self._folder.with_name("aside"))
        self._folder.write_bytes(b"a file where the folder was")

    def mend(self) -> None:
        if self._server is not None:
            self._server.mend()
            return
        assert self._folder is not None
        self._folder.unlink()
        self._folder.with_name("aside").rename(self._folder)


@asynccontextmanager
async def hasty_gateway(settings: Settings, away: Away) -> AsyncIterator[Hosted]:
    """A gateway that gives up a failing store after a moment."""
    hasty = settings.model_copy(update={"store_retry_seconds": 0.3})
    async with hosted_gateway(hasty, away.place) as running:
        yield running


async def spooled(served: Served) -> list[Any]:
    """The rows of the spool."""
    return list(await served.owner_sql("SELECT * FROM image_spool ORDER BY image_id"))


async def spool_one(hosted: Hosted, away: Away) -> Any:
    """Buy one image while the store fails; returns its row in the spool."""
    key = await hosted.served.key()
    away.fail()
    await make_known(hosted, key)
    async with hosted.served.http(key) as http:
        await post(http, 1)
    [row] = await spooled(hosted.served)
    return row


def keyed(number: int) -> dict[str, str]:
    return {"Idempotency-Key": f"call-{number}"}


async def post(http: httpx2.AsyncClient, number: int, **changes: object) -> httpx2.Response:
    """Ask for an image with a key of its own."""
    body = {"model": GPT2, "prompt": f"circle {number}", "size": "1024x1024", "quality": "low"}
    return await http.post("/v1/images/generations", json=body | changes, headers=keyed(number))


async def make_known(hosted: Hosted, key: IssuedKey) -> None:
    """Let the gateway find out that its store is away."""
    while not hosted.served.gateway.keeper.health.is_failing:
        await hosted.served.gateway.keeper.health.probe()
    async with hosted.served.http(key) as http:
        assert (await http.get("/ready")).json()["status"] == "degraded"
