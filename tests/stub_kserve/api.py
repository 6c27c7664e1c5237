"""The six servers: each checks a request as it does, makes the answer and its bill. Pure.

There is no standard: these are the shapes of servers that people run.
"""

import base64
import io
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

PRICE_NANO = 2_000_000
"""Of an image, by the operator's own reckoning."""
KEY = "token-of-the-cluster"
FULL = (
    *("prompt", "negative_prompt", "num_inference_steps", "width", "height", "guidance_scale"),
    *("seed", "scheduler"),
)


@dataclass(frozen=True)
class KServeCall:
    """One request as it arrived."""

    path: str
    json: dict[str, Any]
    headers: dict[str, str]


@dataclass(frozen=True)
class BillLine:
    """One image that a server made; `is_noise`: a field was missing, and it drew noise."""

    server: str
    cost_nano_usd: int = PRICE_NANO
    is_noise: bool = False


class Refused(Exception):
    """An error in the server's own form."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(str(body))
        self.status = status
        self.body = body


Answer = tuple[bytes, str, BillLine]
"""Body, content type and bill."""


def answer_of(server: str, body: dict[str, Any]) -> Answer:
    """The answer of a server to a valid request, and what it is billed for.

    Raises:
        Refused: the server would refuse it.
    """
    return SERVERS[server](body)


def _demo(body: dict[str, Any]) -> Answer:
    """A demonstration's server: every field or noise, the first instance alone."""
    given = body["instances"][0]
    if unknown := set(given) - set(FULL):
        raise Refused(400, {"error": f"unknown fields {sorted(unknown)}"})
    is_noise = set(given) != set(FULL)
    size = (given["width"], given["height"])
    image = {"format": "PNG", "b64": drawn(*size, "PNG")}
    made = {"model_name": "m", "prompt": given["prompt"], "image": image}
    return _json({"predictions": [made]}, BillLine("demo", is_noise=is_noise))


def _openshift(body: dict[str, Any]) -> Answer:
    """A runtime for several instances: it answers with bare images."""
    made = [{"image": {"b64": drawn(one["width"], one["height"], "JPEG")}} for one in _each(body)]
    return _json({"predictions": made}, BillLine("openshift", PRICE_NANO * len(made)))


def _each(body: dict[str, Any]) -> list[dict[str, Any]]:
    for one in body["instances"]:
        _check_image(one)
        if not isinstance(one["seed"], int) or one["num_inference_steps"] < 1:
            raise Refused(422, {"detail": [{"loc": ["seed"], "msg": "field required"}]})
    instances: list[dict[str, Any]] = body["instances"]
    return instances


def _check_image(asked: dict[str, Any]) -> None:
    """Open the image of an edit, as a pipeline from image to image does."""
    if "image" in asked:
        with Image.open(io.BytesIO(base64.b64decode(asked["image"], validate=True))) as opened:
            opened.load()


def _minimal(body: dict[str, Any]) -> Answer:
    """A runtime of a page: texts in, one base64 out."""
    [prompt] = body["instances"]
    if not isinstance(prompt, str):
        raise Refused(500, {"error": "expected a string"})
    return _json({"instances": drawn(512, 512, "PNG")}, BillLine("minimal"))


def _raw(body: dict[str, Any]) -> Answer:
    """A server of raw bytes, with an input of its own shape."""
    if set(body) != {"prompt", "parameters"}:
        raise Refused(400, {"error": "expected prompt and parameters"})
    asked = body["parameters"]
    assert isinstance(asked["seed"], int)
    content = base64.b64decode(drawn(asked["width"], asked["height"], "PNG"))
    return content, "image/png", BillLine("raw")


def _inputs(body: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for one in body["inputs"]:
        if one["shape"] != [1] or len(one["data"]) != 1:
            raise Refused(400, {"error": f"wrong shape of {one['name']}"})
        [value] = one["data"]
        is_text = isinstance(value, str)
        if is_text != (one["datatype"] == "BYTES"):
            raise Refused(400, {"error": f"wrong datatype of {one['name']}"})
        found[one["name"]] = value
    return found


def _v2(body: dict[str, Any]) -> Answer:
    """Open inference: every input a text, and a document inside the output's text."""
    asked = _inputs(body)
    _check_image(asked)
    width, height = int(asked["width"]), int(asked["height"])
    assert asked["seed"].isdecimal()
    inner = {
        "images": [f"data:image/png;base64,{drawn(width, height, 'PNG')}"],
        "parameters": {},
        "model_id": "sd",
    }
    output = {"name": "output", "shape": [1], "datatype": "BYTES", "data": [json.dumps(inner)]}
    answer = {"model_name": "m", "model_version": "3", "id": "r1", "outputs": [output]}
    return _json(answer, BillLine("v2"))


def _triton(body: dict[str, Any]) -> Answer:
    """A tensor server: typed inputs in capitals, pixels out."""
    asked = _inputs(body)
    assert isinstance(asked["SEED"], int)
    assert isinstance(asked["GUIDANCE_SCALE"], float)
    width, height = asked["WIDTH"], asked["HEIGHT"]
    is_float = "as floats" in asked["PROMPT"]
    pixel = [200 / 255, 30 / 255, 30 / 255] if is_float else [200, 30, 30]
    output = {
        "name": "IMAGES",
        "shape": [1, height, width, 3],
        "datatype": "FP32" if is_float else "UINT8",
        "data": pixel * (width * height),
    }
    return _json({"model_name": "m", "outputs": [output]}, BillLine("triton"))


SERVERS = {
    "demo": _demo,
    "openshift": _openshift,
    "minimal": _minimal,
    "raw": _raw,
    "v2": _v2,
    "triton": _triton,
}


def _json(body: dict[str, Any], line: BillLine) -> Answer:
    return json.dumps(body).encode(), "application/json", line


@lru_cache(maxsize=64)
def drawn(width: int, height: int, file_format: str) -> str:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(out, file_format)
    return base64.b64encode(out.getvalue()).decode()
