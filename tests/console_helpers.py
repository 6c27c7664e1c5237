"""Helpers of the console's tests: browsers that sign in, and what a page led to."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from gateway.db.actors import Actor
from gateway.identity.links import make_link
from tests.harness import Served

OWN = {"Sec-Fetch-Site": "same-origin"}
"""What a browser says of a form on a page of the console."""


def browser(served: Served, **options: Any) -> httpx2.AsyncClient:
    """A browser on a page of the console: it keeps cookies, and says where its forms come from."""
    client = served.http(**options)
    client.headers.update({**OWN, "Accept": "text/html"})
    return client


async def new_link(served: Served) -> str:
    """Make a link, as `gateway console-link` does; return it without its host."""
    async with served.gateway.database.operator(by=Actor("cli", "root")) as session:
        link = await make_link(session, Actor("cli", "root"), served.gateway.settings)
    return link.reveal().removeprefix(served.gateway.settings.public_url)


@asynccontextmanager
async def operator(served: Served) -> AsyncIterator[httpx2.AsyncClient]:
    """A browser that a link has signed in as operator-admin."""
    async with browser(served) as client:
        answer = await client.get(await new_link(served))
        assert answer.status_code == 303, answer.text
        yield client


async def led_to(client: httpx2.AsyncClient, path: str = "/console") -> str:
    """The path to which a page leads; its own if it is shown."""
    answer = await client.get(path)
    return answer.headers.get("location", path) if answer.status_code == 303 else path


def reason(answer: httpx2.Response) -> str:
    """The reason for which a session ended, in the address of the sign-in."""
    return httpx2.URL(answer.headers["location"]).params["ended"]
