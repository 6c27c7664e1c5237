"""The response of a finished generation: OpenAI's images object, and headers about it."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from datetime import time as day_time

from gateway.domain import Generation, ImageRequest, LimitKind, RateLimit, Standing
from gateway.image_models import Model
from gateway.money import format_usd
from gateway.provider_answers import Usage

LIMITED = {LimitKind.REQUESTS: "Requests", LimitKind.IMAGES: "Images"}
UNITS = {LimitKind.IMAGES: ';qu="images"', LimitKind.CONCURRENT: ';qu="concurrent-requests"'}
REPLAYED = {"Idempotent-Replayed": "true"}


def render_generation(generation: Generation) -> dict[str, object]:
    """Render OpenAI's images response, in a retired model's own format for such a model."""
    answer, words = generation.answer, generation.request.model.continuity
    by_url = generation.request.response_format == "url"
    data: list[dict[str, str | int | None]] = [
        {"url": image.url} if by_url else {"b64_json": image.base64} for image in generation.images
    ]
    if words.revised_prompt:
        prompts = answer.revised_prompts or (generation.served.prompt,) * len(data)
        data = [
            {"revised_prompt": prompt, **item} for prompt, item in zip(prompts, data, strict=True)
        ]
    if answer.seeds:
        data = [{**item, "seed": seed} for item, seed in zip(data, answer.seeds, strict=True)]
    rendered: dict[str, object] = {"created": answer.created or int(time.time()), "data": data}
    if words.bare_answer:
        return rendered
    rendered |= {
        "background": answer.background,
        "output_format": answer.output_format,
        "quality": answer.quality,
        "size": answer.size,
    }
    if generation.request.safety_identifier is not None:
        rendered["safety_identifier"] = generation.request.safety_identifier
    if answer.usage is not None:
        rendered["usage"] = render_usage(answer.usage)
    return rendered


def render_usage(usage: Usage) -> dict[str, object]:
    """Render OpenAI's usage object."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "text_tokens": usage.text_input_tokens,
            "image_tokens": usage.image_input_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {
            "text_tokens": usage.text_output_tokens,
            "image_tokens": usage.image_output_tokens,
        },
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def generation_headers(generation: Generation) -> dict[str, str]:
    """Build the headers for cost, serving model, the requested model's lifetime, and limits."""
    return {
        "X-Gateway-Generation-Id": str(generation.id),
        "X-Gateway-Cost-Usd": format_usd(generation.cost_nano),
        "X-Gateway-Cost-Status": generation.cost_status,
        **(REPLAYED if generation.replayed else {}),
        **model_headers(generation.request, generation.served.model.id, generation.provider),
        **limit_headers(generation.standings),
    }


def limit_headers(standings: Sequence[Standing]) -> dict[str, str]:
    """Build the rate limit headers: the tightest limit in OpenAI's format, all in the draft's.

    https://developers.openai.com/api/docs/guides/rate-limits and
    https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/11/
    """
    headers: dict[str, str] = {}
    if not standings:
        return headers
    for kind, name in LIMITED.items():
        own = [one for one in standings if one.limit.kind is kind]
        if own:
            tightest = min(own, key=lambda one: (one.remaining, one.limit.value))
            headers |= {
                f"X-RateLimit-Limit-{name}": str(tightest.limit.value),
                f"X-RateLimit-Remaining-{name}": str(tightest.remaining),
                f"X-RateLimit-Reset-{name}": _duration(tightest.reset_ms),
            }
    headers["RateLimit-Policy"] = ", ".join(_policy(one.limit) for one in standings)
    headers["RateLimit"] = ", ".join(_remaining(one) for one in standings)
    return headers


def _policy(limit: RateLimit) -> str:
    window = "" if limit.kind is LimitKind.CONCURRENT else ";w=60"
    return f'"{limit.name}";q={limit.value}{UNITS.get(limit.kind, "")}{window}'


def _remaining(one: Standing) -> str:
    """Render one limit's remainder; `t`: seconds to the next unit if none is left, else to all."""
    seconds = -(-(one.reset_ms if one.remaining else one.next_ms) // 1000)
    return f'"{one.limit.name}";r={one.remaining}' + (f";t={seconds}" if seconds else "")


def _duration(milliseconds: int) -> str:
    """Format as `1m58s`: whole seconds, as Go writes them."""
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def model_headers(request: ImageRequest, served: str, provider: str) -> dict[str, str]:
    """Name the requested and the serving model, with the dates of the first."""
    return {
        "X-Gateway-Provider": provider,
        "X-Gateway-Requested-Model": request.requested_model,
        "X-Gateway-Served-Model": served,
        **lifetime_headers(request.model),
    }


def lifetime_headers(model: Model) -> dict[str, str]:
    """Build `Deprecation` (RFC 9745), `Sunset` (RFC 8594) and the successor link from vendor dates.

    If only a model's end is known, it counts as deprecated from that day on, which may be in the
    future.
    """
    headers = {}
    deprecated = model.deprecation_date or model.shutdown_date
    if deprecated is not None:
        since = datetime.combine(deprecated, day_time(), UTC)
        headers["Deprecation"] = f"@{int(since.timestamp())}"
    if model.shutdown_date is not None:
        sunset = datetime.combine(model.shutdown_date, day_time(), UTC)
        headers["Sunset"] = sunset.strftime("%a, %d %b %Y %H:%M:%S GMT")
    if model.successor is not None:
        headers["Link"] = f'</v1/models/{model.successor}>; rel="successor-version"'
    return headers
