"""An OpenAI-compatible host of an operator on loopback: `async with running_host() as host`."""

import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

from tests.serving import serving


@dataclass
class Host:
    """A server of OpenAI's route and its own words."""

    base_url: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    images: int = 0
    answer: dict[str, Any] = field(default_factory=dict)
    """Taken over the usual answer's fields."""
    error: tuple[int, dict[str, Any]] | None = None
    by_path: bool = False


def made(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(out, "JPEG")
    return out.getvalue()


@asynccontextmanager
async def running_host() -> AsyncIterator[Host]:
    host, app = Host(), FastAPI()

    async def answer(fields: dict[str, Any], request: Request) -> Response:
        host.calls.append(fields)
        host.headers.append(dict(request.headers))
        if host.error is not None:
            return JSONResponse(host.error[1], host.error[0])
        count = int(fields.get("n", 1))
        host.images += count
        image: dict[str, Any] = {"b64_json": base64.b64encode(made(64, 64)).decode()}
        if host.by_path:
            image = {"url": "/v1/images/one/content"}
        return JSONResponse({"created": 1, "data": [image] * count, **host.answer})

    @app.post("/v1/images/generations")
    async def generations(request: Request) -> Response:
        return await answer(await request.json(), request)

    @app.post("/v1/images/edits")
    async def edits(request: Request) -> Response:
        form = await request.form()
        return await answer({name: form[name] for name in form}, request)

    @app.get("/v1/images/one/content")
    async def content() -> Response:
        return Response(made(64, 64), media_type="image/jpeg")

    async with serving(app) as address:
        host.base_url = f"{address}/v1"
        yield host
