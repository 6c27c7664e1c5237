"""Load by the official SDK, at a fixed rate, and what became of each request."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2
import openai

from tests.harness import GPT2
from tests.load_helpers import Arrivals
from tests.rehearsal.installation import Installation

ANSWER_SECONDS = 60


@dataclass
class Load:
    """The generations that were acknowledged so far, and the refusals."""

    acknowledged: list[str] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    started: int = 0


@asynccontextmanager
async def loaded(installation: Installation, per_second: float) -> AsyncIterator[Load]:
    """Send as many requests a second through nginx until the end of the block.

    The SDK sends nothing again. At the end every request has its answer.
    """
    load = Load()
    async with openai.AsyncOpenAI(
        api_key=installation.key,
        base_url=f"{installation.url}/v1",
        timeout=ANSWER_SECONDS,
        max_retries=0,
    ) as client:

        async def send(number: int) -> None:
            load.started += 1
            try:
                answer = await client.images.with_raw_response.generate(
                    model=GPT2,
                    prompt=f"circle {number:05d}",
                    quality="low",
                    size="1024x1024",
                    response_format="url",
                )
            except (openai.APIError, httpx2.HTTPError) as error:
                load.failed[f"{type(error).__name__}: {error}"[:300]] += 1
            else:
                load.acknowledged.append(answer.headers["x-gateway-generation-id"])

        arrivals = Arrivals(send, 1 / per_second)
        arrivals.begin()
        yield load
        await arrivals.end()
