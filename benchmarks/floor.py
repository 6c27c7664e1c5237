"""The floor: the smallest FastAPI application that forwards image requests with the SDK.

No keys, limits, money or storage, and the provider's bytes are passed on unparsed. The gateway's
overhead is measured against it.
"""

import os

from fastapi import FastAPI, Request, Response
from openai import AsyncOpenAI, DefaultAioHttpClient

client = AsyncOpenAI(
    api_key="sk-floor",
    base_url=os.environ["OPENAI_BASE_URL"],
    max_retries=0,
    http_client=DefaultAioHttpClient(),
)
app = FastAPI()


@app.post("/v1/images/generations")
async def generate(request: Request) -> Response:
    """Forward one call."""
    answer = await client.images.with_raw_response.generate(**await request.json())
    return Response(answer.http_response.content, media_type="application/json")
