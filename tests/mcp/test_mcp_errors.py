"""Tool errors: REST's codes, the parameter's name, advice; nothing is held or bought."""

from typing import Any

from gateway.catalog.loading import load_catalog
from gateway.image_parameters import PARAMETERS
from gateway.mcp_server.tools import TOOLS
from tests.harness import GPT2, Served
from tests.image_helpers import data_url, expect_nothing_bought, png
from tests.mcp_helpers import MODES, call, error_of, post, tool_message
from tests.money_helpers import books
from tests.stub_openai import Stub

MAKE = {"prompt": "a red fox", "model": GPT2, "size": "1024x1024", "quality": "low"}
IMAGE = data_url(png())
WHOLE = {
    "generate_image": MAKE,
    "edit_image": {**MAKE, "model": "gpt-image-1", "image": IMAGE},
    "create_variation": {"image": IMAGE},
    "list_available_models": {},
    "estimate_cost": MAKE,
    "get_usage": {},
}
"""Arguments with which each tool does what it is for."""

Case = tuple[str, dict[str, Any], str, str | None]
"""A tool, what is changed of its arguments (None: left out), and the code and param of the error.
"""


async def expect_refusals(served: Served, stub: Stub, mode: str, cases: list[Case]) -> None:
    """Expect each case to be refused with its code and param, at no cost."""
    before = await books(served)
    async with served.mcp(await served.key(), mode) as client:
        results = [
            await call(client, tool, **(WHOLE[tool] | changes)) for tool, changes, _, _ in cases
        ]
    errors = [error_of(result) for result in results]
    found = [
        (tool, changes, error["code"], error["param"])
        for (tool, changes, _, _), error in zip(cases, errors, strict=True)
    ]
    assert [pair for pair in zip(found, cases, strict=True) if pair[0] != pair[1]] == []
    assert (stub.calls, await books(served)) == ([], before)


async def test_a_tool_that_does_not_exist_is_a_protocol_error(served: Served, stub: Stub) -> None:
    """As the protocol has it: there is no tool that could answer."""
    for mode in MODES:
        async with served.http(await served.key()) as http:
            for name in ("generate_photo", "", "x" * 10_000, "../generate_image"):
                answer = await post(http, tool_message(name, mode))
                assert answer.error["code"] == -32602
                assert "generate_image" in answer.error["message"]
                assert len(answer.error["message"]) < 400
        await expect_nothing_bought(served, stub)


VALUES: dict[str, list[Any]] = {
    "string": [3, True, 1.5, ["x"], {"x": 1}],
    "integer": ["3", True, 1.5, [3], {"x": 1}],
    "number": ["3", True, [3], {"x": 1}],
    "boolean": ["true", 1, 0, [True], {"x": 1}],
    "image": [3, True, 1.5, {"x": 1}, [3], [None], [IMAGE, {}]],
}


def wrong_types(tool: str) -> list[Case]:
    """Every argument of a tool with values of every type that it does not have."""
    cases: list[Case] = []
    model = load_catalog().models[WHOLE[tool].get("model", "dall-e-2")]
    unknown = {one.name for one in PARAMETERS if not one.of_every_model} - model.parameters
    for name, schema in TOOLS[tool].announced.input_schema["properties"].items():
        for value in VALUES["image" if name == "image" else schema["type"]]:
            is_list = name == "image" and isinstance(value, list)
            param = f"{name}[{len(value) - 1}]" if is_list else name
            code = "unknown_parameter" if name in unknown else "invalid_type"
            cases.append((tool, {name: value}, code, param))
    return cases


async def test_an_argument_of_a_wrong_type_is_refused_by_name(served: Served, stub: Stub) -> None:
    cases = [case for tool in TOOLS for case in wrong_types(tool)]
    assert len(cases) > 150
    for mode in MODES:
        await expect_refusals(served, stub, mode, cases)


MISSING, UNKNOWN = "missing_required_parameter", "unknown_parameter"
KEY = "idempotency_key"
SEVENTEEN, HUNDRED = [IMAGE] * 17, [IMAGE] * 100
HOLES_IN_JPEG = {"background": "transparent", "output_format": "jpeg"}
OLD_TWICE = {"model": "dall-e-3", "quality": "standard", "n": 2}
WRONG: list[Case] = [
    ("generate_image", {"prompt": None}, MISSING, "prompt"),
    ("edit_image", {"prompt": None}, MISSING, "prompt"),
    ("estimate_cost", {"prompt": None}, MISSING, "prompt"),
    ("edit_image", {"image": None}, MISSING, "image"),
    ("edit_image", {"image": []}, MISSING, "image"),
    ("create_variation", {"image": None}, MISSING, "image"),
    ("generate_image", {"qualty": "low"}, UNKNOWN, "qualty"),
    ("generate_image", {"stream": True}, UNKNOWN, "stream"),
    ("generate_image", {"response_format": "url"}, UNKNOWN, "response_format"),
    ("generate_image", {"image": IMAGE}, UNKNOWN, "image"),
    ("create_variation", {"mask": IMAGE}, UNKNOWN, "mask"),
    ("create_variation", {"prompt": "x"}, UNKNOWN, "prompt"),
    ("get_usage", {"days": 3}, UNKNOWN, "days"),
    ("list_available_models", {"a": 1}, UNKNOWN, "a"),
    ("edit_image", {"model": GPT2, "input_fidelity": "high"}, UNKNOWN, "input_fidelity"),
    ("generate_image", {KEY: ""}, "invalid_idempotency_key", KEY),
    ("edit_image", {KEY: "x" * 256}, "invalid_idempotency_key", KEY),
    ("create_variation", {KEY: "\x00"}, "invalid_idempotency_key", KEY),
    ("generate_image", {"prompt": " "}, "invalid_value", "prompt"),
    ("generate_image", {"prompt": "x" * 32_001}, "string_above_max_length", "prompt"),
    ("generate_image", {"n": 0}, "integer_below_min_value", "n"),
    ("generate_image", {"n": 11}, "integer_above_max_value", "n"),
    ("generate_image", {"n": 10**400}, "integer_above_max_value", "n"),
    ("estimate_cost", OLD_TWICE, "integer_above_max_value", "n"),
    ("generate_image", {"size": "1000x1000"}, "invalid_value", "size"),
    ("generate_image", {"quality": "best"}, "invalid_value", "quality"),
    ("generate_image", HOLES_IN_JPEG, "invalid_value", "background"),
    ("generate_image", {"model": "gpt-image-99"}, "model_not_found", "model"),
    ("estimate_cost", {"model": "gpt-image-99"}, "model_not_found", "model"),
    ("create_variation", {"model": GPT2}, "invalid_value", "model"),
    ("edit_image", {"model": "dall-e-3"}, "invalid_value", "model"),
    ("edit_image", {"image": SEVENTEEN}, "array_above_max_length", "image"),
    ("edit_image", {"image": HUNDRED}, "array_above_max_length", "image"),
    ("create_variation", {"image": [IMAGE] * 2}, "array_above_max_length", "image"),
]


async def test_arguments_that_are_missing_unknown_or_out_of_bounds_are_refused(
    served: Served, stub: Stub
) -> None:
    for mode in MODES:
        await expect_refusals(served, stub, mode, WRONG)


UNKNOWN_IMAGE = "img_19a00000000_0123456789abcdef"
NO_IMAGES = {
    data_url(b"a red fox"): "unsupported_file_mimetype",
    data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"): "unsupported_file_mimetype",
    data_url(png()[:-20]): "invalid_image_file",
}
"""Read in whole, and found to be none: the error names the field, as REST's does."""
REFERENCES = {
    "": "invalid_image_url",
    "a red fox": "invalid_image_url",
    "data:image/png;base64,***": "invalid_base64",
    "data:image/png,abc": "invalid_base64",
    "data:image/png;base64,": "invalid_base64",
    "http://images.example/a.png": "invalid_image_url",
    "file:///etc/passwd": "invalid_image_url",
    "/etc/passwd": "invalid_image_url",
    "https://127.0.0.1/a.png": "invalid_image_url",
    "https://localhost/a.png": "invalid_image_url",
    "https://10.0.0.1/a.png": "invalid_image_url",
    "https://169.254.169.254/latest/meta-data": "invalid_image_url",
    "https://2130706433/a.png": "invalid_image_url",
    "https://[::1]/a.png": "invalid_image_url",
    "https://a:b@images.example/a.png": "invalid_image_url",
    f"generated-images://{UNKNOWN_IMAGE}": "image_not_found",
    "generated-images://": "image_not_found",
    f"generated-images:///{UNKNOWN_IMAGE}": "image_not_found",
    f"generated-images://{UNKNOWN_IMAGE}?a=1": "image_not_found",
    "generated-images://../../etc/passwd": "image_not_found",
    "generated-images://' OR 1=1 --": "image_not_found",
    "Generated-Images://x": "invalid_image_url",
}


async def test_an_unobtainable_input_image_is_refused_by_name(served: Served, stub: Stub) -> None:
    own = f"{served.gateway.settings.public_url}/images/{UNKNOWN_IMAGE}"
    links = (own, f"{own}?exp=9999999999&sig=AAAA", f"{own}?exp=x&sig=%00", f"{own}/thumbnail")
    cases: list[Case] = []
    for image, code in {**REFERENCES, **dict.fromkeys(links, "invalid_image_url")}.items():
        cases.append(("edit_image", {"image": image}, code, "image"))
        cases.append(("edit_image", {"image": [IMAGE, image]}, code, "image[1]"))
        cases.append(("edit_image", {"mask": image}, code, "mask"))
        cases.append(("create_variation", {"image": image}, code, "image"))
    for image, code in NO_IMAGES.items():
        cases.append(("edit_image", {"image": image}, code, "image"))
        cases.append(("edit_image", {"image": [IMAGE, image]}, code, "image"))
    cases.append(("edit_image", {"mask": IMAGE}, "invalid_mask_image_format", "mask"))
    for mode in MODES:
        await expect_refusals(served, stub, mode, cases)


async def test_a_data_url_of_thirty_megabytes_is_refused(served: Served, stub: Stub) -> None:
    """Within what a body may be, beyond what one text in it may be."""
    large = "data:image/png;base64," + "A" * 30_000_000
    cases: list[Case] = [
        ("edit_image", {"image": large}, "string_above_max_length", "image"),
        ("edit_image", {"mask": large}, "string_above_max_length", "mask"),
        ("create_variation", {"image": large}, "string_above_max_length", "image"),
    ]
    for mode in MODES:
        await expect_refusals(served, stub, mode, cases)
