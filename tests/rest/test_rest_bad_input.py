"""Bad requests for images: each is refused in the envelope; nothing is held, nothing is bought."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served, error_of, secret_of
from tests.stub_openai import Stub

PATH = "/v1/images/generations"
PATHS = (PATH, "/v1/images/quotes")
TOO_LONG = "x" * 32_001


# The error, the fields (beside a valid prompt and model), and the `param` to be named.
def each(name: str, values: Sequence[object]) -> list[tuple[dict[str, Any], str]]:
    """The same field with each of these values."""
    return [({name: value}, name) for value in values]


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": " \t\r\n\u3000"}, "prompt"),
    ({"prompt": TOO_LONG}, "prompt"),
    *each("prompt", [1, True, [], ["a"], {}, {"text": "a"}, 1.5]),
    *each("n", [0, -1, 11, 10**30, -(10**30), 2**63, "1", True, 1.5, 1.0]),
    *each("n", [[], [1], {}, "", "one"]),
    *each(
        "size",
        [
            "513x512",
            "0x0",
            "0x1024",
            "-1024x1024",
            "99999x16",
            "16x99999",
            "999999999999x16",
            "3856x1280",
            "3840x3840",
            "16x16",
            "3840x1264",
            "1024X1024",
            "1024\u00d71024",
            " 1024x1024",
            "1024x1024 ",
            "1024x1024\n",
            "01024x1024",
            "1024x",
            "x",
            "",
            "AUTO",
            "1024",
            "1e3x1e3",
            "\uff11\uff10\uff12\uff14x\uff11\uff10\uff12\uff14",
            "\u0661\u0660\u0662\u0664x\u0661\u0660\u0662\u0664",
            "1024x1024\u0000",
            1024,
            [1024, 1024],
            {"width": 1024},
            True,
        ],
    ),
    *each("model", ["gpt-image-99", "GPT-IMAGE-2", f"{GPT2} "]),
    *each("model", ["\x00", "../etc", 2, [GPT2], {"id": GPT2}, True]),
    *each("quality", ["hd", "LOW", "", " low", "max", 1, ["low"]]),
    *each("background", ["white", "", 1, True]),
    *each("output_format", ["gif", "svg", "jpg", "", 1]),
    ({"background": "transparent", "output_format": "jpeg"}, "background"),
    *(
        ({"output_compression": value, "output_format": "jpeg"}, "output_compression")
        for value in (-1, 101, "50", 50.5, True, 10**30)
    ),
    ({"output_compression": 50}, "output_compression"),
    ({"output_compression": 50, "output_format": "png"}, "output_compression"),
    *each("moderation", ["none", "", 0, False]),
    *each("response_format", ["URL", "b64", "", 1, ["url"]]),
    ({"complexity": "low"}, "complexity"),
    *each("style", ["bold", "", 1, ["vivid"]]),
    ({"style": "vivid", "prompt": "x" * 32_000}, "prompt"),
    ({"input_fidelity": "high"}, "input_fidelity"),
    ({"image": "data:image/png;base64,AAAA"}, "image"),
    ({"mask": "x"}, "mask"),
    ({"Prompt": "a"}, "Prompt"),
    ({"": "a"}, ""),
    ({"__proto__": {}}, "__proto__"),
    ({"api_key": "x"}, "api_key"),
    ({"user": 1}, "user"),
    ({"user": "x" * 513}, "user"),
    ({"safety_identifier": ["x"]}, "safety_identifier"),
    ({"safety_identifier": "x" * 513}, "safety_identifier"),
    ({"stream": "true"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"partial_images": 4}, "partial_images"),
    ({"stream": True, "n": 2}, "n"),
]

BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "space": b" ",
    "no JSON": b"prompt=a+cat",
    "text": b'"a cat"',
    "number": b"1",
    "null": b"null",
    "true": b"true",
    "array": b'[{"prompt": "a cat"}]',
    "two objects": b'{"prompt": "a"}{"prompt": "b"}',
    "cut off": b'{"prompt": "a cat"',
    "comment": b'{"prompt": "a cat" /* hi */}',
    "single quotes": b"{'prompt': 'a cat'}",
    "NaN": b'{"prompt": "a cat", "n": NaN}',
    "infinity": b'{"prompt": "a cat", "n": 1e999}',
    "byte order mark": b'\xef\xbb\xbf{"prompt": "a cat"}',
    "UTF-16": '{"prompt": "a cat"}'.encode("utf-16"),
    "broken UTF-8": b'{"prompt": "\xff\xfe"}',
    "encoded surrogate": b'{"prompt": "\xed\xa0\x80"}',
    "high surrogate alone": b'{"prompt": "a \\ud800 cat"}',
    "low surrogate alone": b'{"prompt": "a \\udc00 cat"}',
    "surrogate in a name": b'{"prompt": "a cat", "\\ud800": 1}',
    "raw control character": b'{"prompt": "a \x00 cat"}',
    "deep arrays": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"prompt": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "deep and open": b"[" * 500_000,
    "multipart": b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat\r\n--x--\r\n',
}


@pytest.fixture
async def key(served: Served, stub: Stub) -> AsyncIterator[IssuedKey]:
    """A live key, with which the test must leave no trace."""
    yield await served.key()
    rows = await served.owner_sql("SELECT count(*) AS held FROM reservation")
    assert (rows[0].held, stub.calls) == (0, [])


async def raw_answer(served: Served, *parts: bytes) -> bytes:
    """Send these bytes, half-close, and return the raw answer."""
    where = urlsplit(served.base_url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(5):
            return await reader.read(65_536)
    finally:
        writer.close()


def head(key: IssuedKey, *headers: str, method: str = "POST") -> bytes:
    """A request's head."""
    lines = (f"{method} {PATH} HTTP/1.1", "Host: x", f"Authorization: Bearer {secret_of(key)}")
    return "\r\n".join([*lines, *headers, "", ""]).encode()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def server_errors(served: Served) -> int:
    """The number of answers with status 500, by the metrics."""
    admin = served.gateway.core.new_admin_key
    assert admin is not None
    async with served.http(admin.reveal()) as http:
        lines = (await http.get("/metrics")).text.splitlines()
    counts = [line for line in lines if line.startswith("gateway_requests_total{")]
    return sum(int(float(line.split()[-1])) for line in counts if 'status="500"' in line)


def chunked(*pieces: bytes) -> Iterator[bytes]:
    for piece in pieces:
        yield f"{len(piece):x}\r\n".encode() + piece + b"\r\n"


async def test_every_wrong_field_is_refused_by_its_name(served: Served, key: IssuedKey) -> None:
    wrong = []
    async with served.http(key) as http:
        for fields, param in BAD_FIELDS:
            body = {"model": GPT2, "prompt": "a cat"} | fields
            response = await http.post(PATH, content=json.dumps(body))
            refused = response.status_code in {400, 404} and error_of(response)
            if not refused or (refused["param"] or "") != param:
                wrong.append((str(fields)[:80], response.status_code, refused))
    assert wrong == []


async def test_a_missing_prompt_is_named(served: Served, key: IssuedKey) -> None:
    async with served.http(key) as http:
        error = error_of(await http.post(PATH, json={"model": GPT2}))
    assert (error["code"], error["param"]) == ("missing_required_parameter", "prompt")


async def test_an_unknown_model_is_not_found(served: Served, key: IssuedKey) -> None:
    async with served.http(key) as http:
        for model in ("dall-e-4", "gpt-4o", "x" * 5000):
            response = await http.post(PATH, json={"model": model, "prompt": "a cat"})
            assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


async def test_a_refusal_does_not_grow_with_what_it_refuses(served: Served, key: IssuedKey) -> None:
    long = "y" * 500_000
    too_long = []
    async with served.http(key) as http:
        for fields in (
            {"model": long},
            {"size": long},
            {"quality": long},
            {long: 1},
            {"user": long},
        ):
            response = await http.post(PATH, json={"model": GPT2, "prompt": "a cat"} | fields)
            assert response.is_client_error
            if len(response.content) > 2000:
                too_long.append((str(fields)[:12], len(response.content)))
    assert too_long == []


async def test_every_body_that_is_no_json_object_is_refused(served: Served, key: IssuedKey) -> None:
    answers = {}
    async with served.http(key) as http:
        for name, content in BAD_BODIES.items():
            response = await http.post(PATH, content=content)
            answers[name] = (response.status_code, error_of(response)["type"])
    assert answers == dict.fromkeys(answers, (400, "invalid_request_error"))


async def test_a_body_over_the_limit_is_refused(served: Served, key: IssuedKey) -> None:
    limit = served.gateway.settings.max_body_bytes

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(limit // 65_536 + 1):
            yield b" " * 65_536

    async with served.http(key) as http:
        for path in PATHS:
            for content in (b" " * (limit + 1), pieces()):
                response = await http.post(path, content=content)
                assert (response.status_code, error_of(response)["code"]) == (
                    413,
                    "payload_too_large",
                )
        put = await http.put("/v1/credentials/openai", content=b" " * (limit + 1))
        assert put.status_code == 413
        exact = b'{"prompt": "a cat", "nope": 1}'
        response = await http.post(PATH, content=exact + b" " * (limit - len(exact)))
        assert error_of(response)["param"] == "nope"


async def test_compressed_bodies_are_refused_unread(served: Served, key: IssuedKey) -> None:
    async with served.http(key) as http:
        for encoding in ("gzip", "br", "deflate", "zstd", "gzip, identity", "GZIP", "x", ""):
            response = await http.post(
                PATH, content=b'{"prompt": "a cat"}', headers={"Content-Encoding": encoding}
            )
            assert response.is_client_error, encoding
            error_of(response)


async def test_other_methods_are_refused_with_those_allowed(served: Served, key: IssuedKey) -> None:
    async with served.http(key) as http:
        for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
            response = await http.request(method, PATH)
            assert response.status_code == 405, method
            assert response.headers["allow"] == "POST"
            assert response.headers["x-request-id"]
            if method != "HEAD":
                assert error_of(response)["code"] == "method_not_allowed"


async def test_unknown_paths_are_not_found_in_the_envelope(served: Served, key: IssuedKey) -> None:
    paths = (
        "/v1",
        "/v1/",
        "/v1/images/generations/x",
        "/v1//images/generations",
        "/v1/images%2Fgenerations%00",
        "/V1/images/generations",
        "/v1/%ed%a0%80",
        "/v1/images/../../metrics/x",
        "/v1/chat/completions",
        "/admin",
    )
    async with served.http(key) as http:
        for path in paths:
            response = await http.post(path, json={"prompt": "a cat"})
            assert response.status_code == 404, path
            error_of(response)


async def test_a_false_content_length_buys_nothing(served: Served, key: IssuedKey) -> None:
    body = b'{"prompt": "a cat"}'
    # Less is declared than sent: the rest of the body is no request.
    short = await raw_answer(served, head(key, "Content-Length: 5"), body)
    assert status_of(short) == 400
    for headers in (
        ["Content-Length: -1"],
        ["Content-Length: abc"],
        ["Content-Length: 19", "Content-Length: 5"],
        ["Content-Length: 99999999999999999999999999"],
        ["Transfer-Encoding: chunked, gzip"],
    ):
        answer = await raw_answer(served, head(key, *headers, "Connection: close"), body)
        assert status_of(answer) == 400, headers
    both = head(key, "Content-Length: 5", "Transfer-Encoding: chunked", "Connection: close")
    answer = await raw_answer(served, both, *chunked(b"not json"), b"0\r\n\r\n")
    assert status_of(answer) == 400


async def test_a_client_that_leaves_in_the_middle_of_its_body_causes_no_server_error(
    served: Served, key: IssuedKey
) -> None:
    defects = await server_errors(served)
    where = urlsplit(served.base_url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(head(key, "Content-Length: 1000", "Expect: 100-continue"))
    # The server says so when the body begins to be read.
    assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")
    writer.write(b'{"prompt"')
    writer.write_eof()
    assert b"500" not in await reader.read()
    writer.close()
    assert await server_errors(served) == defects


async def test_odd_accept_headers_change_nothing(served: Served, key: IssuedKey) -> None:
    body = {"prompt": "a cat", "n": 0}
    async with served.http(key) as http:
        for name, value in (
            ("Accept", "text/html"),
            ("Accept", "image/png;q=1.0, */*;q=0"),
            ("Accept", ""),
            ("Accept", "x"),
            ("Accept-Encoding", "br;q=1.0, gzip;q=0, identity;q=0"),
            ("Accept-Encoding", "*;q=0"),
            ("Content-Type", "text/plain"),
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Content-Type", "application/json; charset=utf-16"),
            ("Expect", "nonsense"),
        ):
            response = await http.post(PATH, content=json.dumps(body), headers={name: value})
            assert (response.status_code, error_of(response)["param"]) == (400, "n"), value
            assert response.headers["content-type"] == "application/json"
            assert "content-encoding" not in response.headers
