"""Invalid MCP messages, most of them almost right."""

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from gateway.mcp_server.tools import TOOLS
from tests.image_helpers import data_url, png
from tests.mcp_helpers import IMAGE

VERSIONS = ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"]
MODERN = VERSIONS[0]
NO_IMAGE = "img_19a00000000_0123456789abcdef"
PROTOCOL = "io.modelcontextprotocol"

TEXTS = st.sampled_from(
    [
        *("", " ", "\x00", "x" * 5_000, "../../etc/passwd", "' OR 1=1 --", "%00%ff", "\ud800"),
        *("🦊", "null", "true", "1e400", "{{7*7}}", "${jndi:ldap://a}", "-" * 300, "\r\nX: y"),
    ]
) | st.text(max_size=20)
NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**400, -0.0, 1e308, 4_294_967_296])
)
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXTS | st.sampled_from(["name", "_meta", "uri"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def rarely(times: int = 12) -> st.SearchStrategy[bool]:
    """True once in `times` draws: `one_of` drops repetitions and so has no weights."""
    return st.sampled_from([*[False] * (times - 1), True])


@st.composite
def usually(draw: st.DrawFn, right: st.SearchStrategy[Any], wrong: st.SearchStrategy[Any]) -> Any:
    """The first strategy most of the time, the second now and then."""
    return draw(wrong if draw(rarely()) else right)


def mostly(*right: Any) -> st.SearchStrategy[Any]:
    """One of these values, or now and then any JSON value."""
    return usually(st.sampled_from(right), JUNK)


# Most of what would be drawn fails on purpose instead: an image takes a tenth of a second.
PROMPTS = mostly(
    *("[sandbox:moderation]", "[sandbox:rejected]", "[sandbox:rate_limited]", "[sandbox:unknown]"),
    *("[sandbox:unreachable]", "[sandbox:credential]", "", "\ud800", "x" * 40_000),
)
IMAGES = (
    *(data_url(png()), data_url(b"none"), "data:image/png;base64,***", "data:,", IMAGE + NO_IMAGE),
    *(IMAGE, IMAGE + "\x00", "https://127.0.0.1/a.png", "https://[::1", "http://a/", "file:///a"),
)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "prompt": PROMPTS,
    "model": mostly("gpt-image-2", "gpt-image-1", "dall-e-2", "dall-e-3", "gpt-image-2.6-flare"),
    "size": mostly("1024x1024", "256x256", "auto", "1000x1000", "x", "0x0", "9" * 40),
    "quality": mostly("low", "high", "auto", "hd", "standard"),
    "n": mostly(1, 2, 10, 11, 0, -1),
    "background": mostly("transparent", "opaque"),
    "output_format": mostly("png", "jpeg", "webp"),
    "partial_images": mostly(0, 1, 3, 4),
    "full_image": st.booleans() | JUNK,
    "input_fidelity": mostly("high", "low"),
    "idempotency_key": mostly("a", "b", "c", "x" * 256),
    "image": usually(mostly(*IMAGES), st.lists(mostly(*IMAGES), max_size=3)),
    "mask": mostly(*IMAGES),
}
URIS = mostly(
    *("image-history://recent", "storage-stats://overview", "model-info://gpt-image-2"),
    *("image-history://recent?limit=5&days=2", "image-history://recent?limit=x&&&=", IMAGE + "x"),
    *(IMAGE + NO_IMAGE, "model-info://dall-e-3", "model-info://%ff", "x://", "file:///etc/passwd"),
    *(
        "image-history://recent?" + "a=1&" * 90,
        "image-history://recent?days=%00",
        "//",
        "http://[x",
    ),
)
PROMPT_NAMES = ("creative-image-prompt", "og-image-prompt", "infographic-prompt", "unknown-prompt")


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with some of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


def tool_call(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """A call of this tool with some of its arguments, and at times one of another tool's."""
    own = TOOLS[name].announced.input_schema["properties"]
    optional = {key: ARGUMENTS.get(key, JUNK) for key in own}
    required = {key: ARGUMENTS[key] for key in TOOLS[name].announced.input_schema["required"]}
    optional = {key: value for key, value in optional.items() if key not in required}
    whole = st.fixed_dictionaries(required, optional=optional)
    arguments = usually(whole, some(**ARGUMENTS) | JUNK)
    return st.fixed_dictionaries({"name": st.just(name), "arguments": arguments})


REFERENCES = st.one_of(
    some(type=mostly("ref/prompt"), name=mostly(*PROMPT_NAMES)),
    some(type=mostly("ref/resource"), uri=mostly(IMAGE + "{image_id}", "model-info://{model}")),
    JUNK,
)
PARAMS: dict[str, st.SearchStrategy[Any]] = {
    "tools/call": usually(st.one_of(*map(tool_call, TOOLS)), some(name=JUNK, arguments=JUNK)),
    "tools/list": some(cursor=JUNK),
    "resources/list": some(cursor=mostly(NO_IMAGE, "")),
    "resources/templates/list": some(cursor=JUNK),
    "resources/read": some(uri=URIS, extra=JUNK),
    "resources/subscribe": some(uri=URIS),
    "prompts/list": some(cursor=JUNK),
    "prompts/get": some(
        name=mostly(*PROMPT_NAMES),
        arguments=st.dictionaries(
            st.sampled_from(["subject", "title", "style", "topic", "x"]), mostly("a", "bold")
        )
        | JUNK,
    ),
    "completion/complete": some(
        ref=REFERENCES,
        argument=some(name=mostly("model", "image_id", "style", "limit"), value=mostly("", "g")),
        context=JUNK,
    ),
    "initialize": some(
        protocolVersion=mostly(*VERSIONS),
        capabilities=usually(st.just({}), JUNK),
        clientInfo=usually(st.just({"name": "a", "version": "1"}), JUNK),
    ),
    "server/discover": some(extra=JUNK),
    "subscriptions/listen": JUNK,
    "logging/setLevel": some(level=mostly("debug")),
    "ping": some(extra=JUNK),
    "notifications/initialized": JUNK,
    "notifications/cancelled": some(requestId=mostly(1, "1"), reason=JUNK),
    "notifications/progress": some(progressToken=JUNK, progress=JUNK),
    "tasks/get": JUNK,
    "unknown/method": JUNK,
}
META = some(
    **{
        f"{PROTOCOL}/protocolVersion": mostly(*VERSIONS),
        f"{PROTOCOL}/clientCapabilities": usually(st.just({}), JUNK),
        f"{PROTOCOL}/clientInfo": usually(st.just({"name": "a", "version": "1"}), JUNK),
        "progressToken": mostly("t", 1, 0, ""),
        "traceparent": JUNK,
    }
)
RIGHT_META = {
    f"{PROTOCOL}/protocolVersion": MODERN,
    f"{PROTOCOL}/clientCapabilities": {},
    f"{PROTOCOL}/clientInfo": {"name": "a", "version": "1"},
}
HEADERS = some(
    **{
        "MCP-Protocol-Version": st.sampled_from([*VERSIONS, "", "1", "2026-07-29"]),
        "Mcp-Method": st.sampled_from([*PARAMS, "", "x"]),
        "Mcp-Name": st.sampled_from([*TOOLS, "", "x", "=?base64?eA==?=", "=?base64?***?="]),
        "Mcp-Param-Prompt": st.sampled_from(["", "x"]),
        "Mcp-Session-Id": st.sampled_from(["", "x", "0" * 32]),
        "Last-Event-ID": st.sampled_from(["", "1"]),
        "Accept": st.sampled_from(["*/*", "application/json", "text/event-stream", ""]),
        "Content-Type": st.sampled_from(["text/plain", "application/json; charset=x", ""]),
        "Origin": st.sampled_from(["http://localhost", "https://evil.example"]),
    }
)


@dataclass(frozen=True)
class Sent:
    """One HTTP request: body and headers."""

    body: bytes
    headers: dict[str, str]


@st.composite
def almost_right(draw: st.DrawFn) -> Sent:
    """A request of either era with few invalid parts."""
    method = draw(st.sampled_from(list(PARAMS)) | st.just("tools/call"))
    params = draw(PARAMS[method])
    is_modern = draw(st.booleans())
    if isinstance(params, dict):
        meta = draw(usually(st.just({}), META))
        right = RIGHT_META if is_modern else {}
        params = {**params, **({"_meta": right | meta} if right or meta else {})}
    message = {"jsonrpc": "2.0", "id": draw(st.integers(0, 99)), "method": method, "params": params}
    if method.startswith("notifications/"):
        del message["id"]
    if draw(rarely()):
        wrong = draw(st.sampled_from([*message, "result", "error"]))
        message[wrong] = draw(JUNK)
    headers = {"MCP-Protocol-Version": MODERN if is_modern else draw(st.sampled_from(VERSIONS[1:]))}
    if is_modern:
        headers["Mcp-Method"] = method
        named = params.get("name", params.get("uri")) if isinstance(params, dict) else None
        # What a client can send as a header: httpx2 refuses spaces at its ends.
        if (
            isinstance(named, str)
            and named.isascii()
            and named.isprintable()
            and named.strip() == named
        ):
            headers["Mcp-Name"] = named
    if draw(rarely()):
        headers |= draw(HEADERS)
    return Sent(json.dumps(message).encode(), headers)


BODIES = st.one_of(
    st.binary(max_size=200),
    JUNK.map(lambda value: json.dumps(value).encode()),
    some(jsonrpc=mostly("2.0"), id=JUNK, method=mostly(*PARAMS), params=JUNK).map(
        lambda value: json.dumps(value).encode()
    ),
)
ANYTHING = st.builds(Sent, BODIES, st.just({}) | HEADERS)
SENT = usually(almost_right(), ANYTHING)
