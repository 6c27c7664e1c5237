"""Long texts are cut out of a JSON document in pieces, so that other threads can run meanwhile."""

import asyncio
import json
import random
import time

import pytest

from gateway.errors import InvalidRequest, PayloadTooLarge
from gateway.mcp_server.bodies import read_message
from gateway.mcp_server.long_texts import (
    LONG_BYTES,
    MAX_PIECE_BYTES,
    MAX_REST_BYTES,
    MAX_TEXTS,
    cut_long_texts,
)
from tests.mcp.test_mcp_bodies import LOOP_SECONDS

LONG = {
    "base64": "data:image/png;base64," + "iVBORw0KGgo+" * 40_000,
    "escapes": "\x7f" * 200_000,
    "pairs": "\N{FOX FACE}" * 100_000,
    "wide": "x" + "\N{FOX FACE}é漢" * 40_000,
    "quoted": '"\\' * 100_000 + "/\n\t",
    "half": "\ud83e" * 50_000,
}


@pytest.mark.parametrize("writer", ["ascii", "utf-8"])
@pytest.mark.parametrize("name", LONG)
async def test_a_long_text_is_read_as_it_was_written(name: str, writer: str) -> None:
    arguments = {"image": [LONG[name], "short"], "mask": {"deep": LONG[name]}, "n": 1}
    message = {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "tools/call",
        "params": {"name": "edit_image", "arguments": arguments},
    }
    text = json.dumps(message, ensure_ascii=writer == "ascii")
    if name == "base64":
        text = text.replace("/", "\\/")  # as PHP writes it
    body = await read_message(bytearray(text.encode("utf-8", "surrogatepass")))
    assert (body.method, body.arguments) == ("tools/call", arguments)
    left = json.loads(body.content)
    assert left == {**message, "params": {"name": "edit_image", "arguments": {}}}


@pytest.mark.parametrize("name", LONG)
def test_it_is_decoded_in_pieces_of_bounded_size(name: str) -> None:
    cut = cut_long_texts(bytearray(json.dumps([LONG[name] * 4]).encode()))
    [pieces] = cut.texts.values()
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= MAX_PIECE_BYTES
    assert len(cut.rest) < LONG_BYTES
    assert cut.restore(json.loads(cut.rest)) == [LONG[name] * 4]


def test_documents_cut_anywhere_are_read_or_refused_as_by_a_parser() -> None:
    dice = random.Random(11)
    alphabet = ['"', "\\", "\\\\", '\\"', "\\u00e9", "\\ud83e\\udd8a", "é", "a", "/", "\\/", "\\x"]
    for _ in range(300):
        inner = "".join(dice.choices(alphabet, k=12)) * 7000
        text = f'{{"a": "{inner}", "b": "{inner[:50]}", "c": 1}}'
        try:
            expected = json.loads(text)
        except ValueError:
            expected = None
        try:
            cut = cut_long_texts(bytearray(text.encode()))
            read = cut.restore(json.loads(cut.rest))
        except (ValueError, PayloadTooLarge, InvalidRequest):
            read = None
        assert read == expected


def test_a_large_document_without_long_texts_is_refused() -> None:
    with pytest.raises(PayloadTooLarge):
        cut_long_texts(bytearray(b"[" + b" " * (MAX_REST_BYTES + 1) + b"]"))
    with pytest.raises(InvalidRequest):
        cut_long_texts(bytearray(b'""' * (MAX_TEXTS + 1)))


def others_seconds() -> float:
    """Processor time of all threads but this one."""
    return time.process_time() - time.thread_time()


@pytest.mark.parametrize("text", ["data:image/png;base64," + "A" * 30_000_000, "\x7f" * 5_000_000])
async def test_the_event_loop_goes_on_while_thirty_megabytes_are_read(text: str) -> None:
    """By processor time, which is the same however busy the machine is."""
    parameters = {"name": "edit_image", "arguments": {"image": text}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": parameters}
    reading = asyncio.create_task(read_message(bytearray(json.dumps(message).encode())))
    longest, before = 0.0, others_seconds()
    while not reading.done():
        await asyncio.sleep(0)
        now = others_seconds()
        longest, before = max(longest, now - before), now
    assert (await reading).arguments == {"image": text}
    assert longest < LOOP_SECONDS
