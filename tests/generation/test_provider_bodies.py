"""A provider's answer is read without parsing its images, with the same result as by parsing."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.catalog.loading import load_catalog
from gateway.domain import ImageRequest
from gateway.provider_answers import Outcome
from gateway.providers.base import ProviderFailure
from gateway.providers.openai.answers import read_body, read_partial, refused, stream_failed

BASE64 = st.text("ABCabc0189+/=", max_size=40)
IMAGE = st.one_of(BASE64, st.text(max_size=20), st.none(), st.integers(0, 3))
TEXT = st.one_of(st.text(max_size=20), st.sampled_from(['"b64_json":"', "\\", '{"b64_json": "x"}']))
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "b64_json": IMAGE,
        "revised_prompt": TEXT,
        "more": st.fixed_dictionaries({"b64_json": IMAGE}),
    },
)
BODY = st.fixed_dictionaries(
    {"data": st.lists(ITEM, max_size=4)},
    optional={"b64_json": IMAGE, "created": st.integers(0, 2**40), "note": TEXT},
)


@settings(deadline=None)
@given(body=BODY, indent=st.sampled_from([None, 2]), ensure_ascii=st.booleans())
def test_a_body_reads_the_same_as_its_json(
    *, body: dict[str, object], indent: int | None, ensure_ascii: bool
) -> None:
    content = json.dumps(body, indent=indent, ensure_ascii=ensure_ascii).encode()
    assert read_body(content) == orjson.loads(content)


@pytest.mark.parametrize(
    "content",
    [
        b'{"data":[{"b64_json":"AAAA',
        b'{"data":[{"b64_json":"AAAA"}',
        b'{"data":[{"b64_json":"AAAA"}]}}',
        b'{"data":{"b64_json":"AAAA"}}',
        b'{"data":[{"b64_json":"\xff"}]}',
    ],
)
def test_a_body_that_is_cut_off_or_no_json_cannot_be_read(content: bytes) -> None:
    with pytest.raises(ProviderFailure):
        read_body(content)


def test_of_a_name_that_comes_twice_the_last_counts() -> None:
    content = b'{"data":[{"b64_json":"AAAA","b64_json":"BBBB"},{"b64\\u005fjson":"0"}]}'
    assert read_body(content) == orjson.loads(content)


@pytest.mark.parametrize(
    "message",
    [b"You said \\ud83d, which is refused", b"Caf\xe9 is refused", b'No", "cost": NaN, "a": "b'],
    ids=["half a character", "not UTF-8", "no number"],
)
def test_a_refusal_in_the_vendors_own_words_costs_nothing_however_it_is_spelled(
    message: bytes,
) -> None:
    failure = refused(400, {}, b'{"error":{"message":"' + message + b'","code":"invalid"}}')
    assert (failure.outcome, failure.code) == (Outcome.REJECTED, "invalid")
    assert failure.message.encode()


@pytest.mark.parametrize("content", [b"", b"<html>", b"[" * 100_000, b'{"error":"no"}'])
def test_an_unknown_refusal_text_may_have_cost_something(content: bytes) -> None:
    assert refused(400, {}, content).outcome is Outcome.AMBIGUOUS


@pytest.mark.parametrize("error", ['"no"', '{"code":["a list"]}', '{"code":{}}', "[1]"])
def test_a_stream_that_ends_in_an_error_may_have_cost_something_however_odd_it_is(
    error: str,
) -> None:
    assert stream_failed(json.loads(error)).outcome is Outcome.AMBIGUOUS


def test_an_event_with_lone_surrogates_is_read() -> None:
    request = ImageRequest(
        model=load_catalog().models["gpt-image-2"], requested_model="", prompt=""
    )
    event = json.loads(
        b'{"type":"image_generation.partial_image","partial_image_index":0,'
        b'"b64_json":"AA\\ud83d","quality":"a \\ud83d"}'
    )
    partial = read_partial(event, request)
    assert partial is not None
    assert (partial.base64, partial.quality) == ("AA\ufffd", "a \ufffd")
