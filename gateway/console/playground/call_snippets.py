"""The call of a form as programs make it: curl, Python, TypeScript and MCP. Pure functions."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.domain import Operation
from gateway.generation.parameters import ENDPOINTS

KEY = "GATEWAY_API_KEY"
SDK_FIELDS = frozenset(
    {
        "prompt",
        "model",
        "size",
        "quality",
        "n",
        "background",
        "output_format",
        "output_compression",
        "moderation",
        "input_fidelity",
        "style",
        "user",
    }
)
"""The parameters that OpenAI's SDKs know; others are sent as further fields of the body."""
METHODS = {
    Operation.GENERATION: "generate",
    Operation.EDIT: "edit",
    Operation.VARIATION: "create_variation",
}
TYPESCRIPT_METHODS = METHODS | {Operation.VARIATION: "createVariation"}
TOOLS = {
    Operation.GENERATION: "generate_image",
    Operation.EDIT: "edit_image",
    Operation.VARIATION: "create_variation",
}
EXAMPLE_IMAGE = "https://images.example.com/input.png"


@dataclass(frozen=True, slots=True)
class CodeSample:
    """A call as text; `id` is its element on the page."""

    id: str
    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call over REST: its fields without answers' formats, and the files beside them."""

    operation: Operation
    body: Mapping[str, object]
    images: int = 0
    has_mask: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """The names of input files, as examples."""
        number = max(1, self.images)
        return tuple(
            "input.png" if number == 1 else f"input-{at}.png" for at in range(1, number + 1)
        )


def snippets_of(call: Call, base_url: str) -> tuple[CodeSample, ...]:
    """Write a call in each of the languages."""
    return (
        CodeSample("code-curl", "curl", _curl(call, base_url)),
        CodeSample("code-python", "Python", _python(call, base_url)),
        CodeSample("code-typescript", "TypeScript", _typescript(call, base_url)),
        CodeSample("code-mcp", "MCP", _mcp(call, base_url)),
    )


def _curl(call: Call, base_url: str) -> str:
    address = f"{base_url}/v1/images/{ENDPOINTS[call.operation]}"
    lines = [f"curl {address}", f'-H "Authorization: Bearer ${KEY}"']
    if call.operation is Operation.GENERATION:
        body = json.dumps(call.body, ensure_ascii=False)
        lines += ['-H "Content-Type: application/json"', f"-d {shlex.quote(body)}"]
        return " \\\n  ".join(lines)
    many = "image[]" if len(call.files) > 1 else "image"
    lines += [f"-F {shlex.quote(f'{many}=@{name}')}" for name in call.files]
    if call.has_mask:
        lines.append("-F mask=@mask.png")
    # Not -F: it reads a value that begins with @ or < as the name of a file.
    lines += [
        f"--form-string {shlex.quote(f'{name}={value}')}" for name, value in call.body.items()
    ]
    return " \\\n  ".join(lines)


def _python(call: Call, base_url: str) -> str:
    known = {name: value for name, value in call.body.items() if name in SDK_FIELDS}
    others = {name: value for name, value in call.body.items() if name not in SDK_FIELDS}
    arguments = []
    if call.operation is not Operation.GENERATION:
        opened = [f'open("{name}", "rb")' for name in call.files]
        arguments.append(f"image={_one_or_list(opened)}")
        if call.has_mask:
            arguments.append('mask=open("mask.png", "rb")')
    arguments += [f"{name}={value!r}" for name, value in known.items()]
    if others:
        arguments.append(f"extra_body={others!r}")
    listed = "".join(f"    {one},\n" for one in arguments)
    return (
        "import os\n\nfrom openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{base_url}/v1", api_key=os.environ["{KEY}"])\n'
        f"result = client.images.{METHODS[call.operation]}(\n{listed}"
        '    response_format="url",\n)\nprint(result.data[0].url)\n'
    )


def _one_or_list(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _typescript(call: Call, base_url: str) -> str:
    lines = []
    if call.operation is not Operation.GENERATION:
        opened = [f'fs.createReadStream("{name}")' for name in call.files]
        lines.append(f"image: {_one_or_list(opened)},")
        if call.has_mask:
            lines.append('mask: fs.createReadStream("mask.png"),')
    for name, value in call.body.items():
        if name not in SDK_FIELDS:
            lines.append("// @ts-expect-error: a parameter of this gateway")
        lines.append(f"{name}: {json.dumps(value, ensure_ascii=False)},")
    listed = "".join(f"  {one}\n" for one in lines)
    fs = "" if call.operation is Operation.GENERATION else 'import fs from "node:fs";\n'
    return (
        f'{fs}import OpenAI from "openai";\n\n'
        f'const client = new OpenAI({{ baseURL: "{base_url}/v1", apiKey: process.env.{KEY} }});\n'
        f"const result = await client.images.{TYPESCRIPT_METHODS[call.operation]}({{\n{listed}"
        '  response_format: "url",\n});\nconsole.log(result.data[0].url);\n'
    )


def _mcp(call: Call, base_url: str) -> str:
    arguments: dict[str, object] = dict(call.body)
    if call.operation is not Operation.GENERATION:
        images = [EXAMPLE_IMAGE.replace("input.png", name) for name in call.files]
        arguments["image"] = images[0] if len(images) == 1 else images
        if call.has_mask:
            arguments["mask"] = EXAMPLE_IMAGE.replace("input.png", "mask.png")
    request = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": TOOLS[call.operation], "arguments": arguments},
    }
    # Clients send this by themselves when their model calls the tool.
    return f"# to {base_url}/mcp\n{json.dumps(request, ensure_ascii=False, indent=2)}\n"
