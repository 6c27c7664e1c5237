"""Arguments of tools as clients of other image servers spell them."""

import base64
from typing import Any

import pytest

from tests.harness import GPT2, Served, error_of
from tests.image_helpers import data_url, file_bytes, mask, png
from tests.mcp_helpers import call, content_of
from tests.mcp_helpers import error_of as tool_error_of
from tests.stub_openai import Stub

MAKE = {"prompt": "a red fox", "model": GPT2, "quality": "low"}
PLAIN = "/mcp/v1/tools/generate_image"
SQUARE, OVERLAY = png(64, 64), file_bytes(mask(64, 64, (8, 8, 40, 40)))


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


async def test_width_and_height_are_a_size(served: Served, stub: Stub) -> None:
    key = await served.key()
    by_edges = MAKE | {"width": 1536, "height": 1024, "idempotency_key": "one"}
    async with served.mcp(key) as client, served.http(key) as http:
        made = content_of(await call(client, "generate_image", **by_edges))
        named = MAKE | {"size": "1536x1024", "idempotency_key": "one"}
        again = content_of(await call(client, "generate_image", **named))
        plain = await http.post(PLAIN, json=by_edges)
        cost = content_of(await call(client, "estimate_cost", **MAKE, width=1536, height=1024))
    assert made["size"] == cost["size"] == "1536x1024"
    assert again == plain.json() == made | {"replayed": True}
    assert len(stub.calls) == 1


async def test_raw_base64_is_an_image(served: Served, stub: Stub) -> None:
    arguments = MAKE | {"idempotency_key": "one", "size": "1024x1024"}
    raw = {"image_data": [base64_of(SQUARE)], "mask_data": base64_of(OVERLAY)}
    links = {"image": [data_url(SQUARE)], "mask": data_url(OVERLAY)}
    async with served.mcp(await served.key()) as client:
        made = content_of(await call(client, "edit_image", **arguments, **raw))
        again = content_of(await call(client, "edit_image", **arguments, **links))
        data = await call(client, "edit_image", **MAKE, image_data=data_url(SQUARE))
    assert again == made | {"replayed": True}
    assert not data.is_error
    assert [len(one.files) for one in stub.calls] == [2, 1]


@pytest.mark.parametrize(
    ("tool", "changes", "param"),
    [
        ("generate_image", {"width": 1024}, "height"),
        ("generate_image", {"width": 1024, "height": "1024"}, "height"),
        ("generate_image", {"width": 1024, "height": 1024, "size": "1024x1024"}, "width"),
        ("generate_image", {"width": 1000, "height": 1000}, "size"),
        ("generate_image", {"image_data": "x"}, "image_data"),
        ("edit_image", {"image_data": "x", "image": "y"}, "image_data"),
        ("edit_image", {"image_data": "%%"}, "image"),
    ],
)
async def test_what_is_half_or_double_is_refused(
    served: Served, stub: Stub, tool: str, changes: dict[str, Any], param: str
) -> None:
    async with served.mcp(await served.key()) as client:
        refused = tool_error_of(await call(client, tool, **MAKE, **changes))
    assert refused["param"] == param
    assert stub.calls == []


async def test_a_plain_call_takes_every_parameter_of_an_image(served: Served, stub: Stub) -> None:
    fields = {
        "size": "1024x1024",
        "background": "opaque",
        "output_format": "webp",
        "output_compression": 40,
        "moderation": "low",
        "safety_identifier": "a1",
        "user": "b2",
        "n": 2,
    }
    async with served.http(await served.key()) as http:
        answer = await http.post(PLAIN, json=MAKE | fields | {"style": "vivid"})
        unknown = await http.post(PLAIN, json=MAKE | {"num_inference_steps": 3})
    assert answer.status_code == 200
    [line] = stub.calls
    assert line.json == MAKE | fields | {
        "prompt": "a red fox\n\nStyle: vivid, hyper-real and dramatic."
    }
    # Brought to its own spelling, of a parameter that this model does not have.
    assert (error_of(unknown)["code"], error_of(unknown)["param"]) == ("unknown_parameter", "steps")
