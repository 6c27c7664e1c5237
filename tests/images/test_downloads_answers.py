"""Downloads from hosts of every kind: the request sent, the answers accepted, the limits."""

import asyncio
import io
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway import __version__
from gateway.net.downloads import DownloadProblem, DownloadRefused
from tests.download_hosts import (
    IMAGE,
    MAX_BYTES,
    NAME,
    Answer,
    downloading,
    drips,
    refusal,
    resets,
    says_nothing,
    sends,
    sends_raw,
    trusting,
    web_host,
)

# The request


async def test_a_request_has_only_the_headers_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login someone password canary-netrc")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://canary-proxy:9")
    path = "/a%2Fb/../c%7e.png?sig=a%2Bb%2c+c%3D&x='#fragment"
    answer = sends(IMAGE, "Set-Cookie: a=canary; Path=/")
    async with web_host(answer) as host, trusting(host) as downloads:
        for _ in range(2):
            await downloads.fetch(host.url.replace("/image.png", path), io.BytesIO())
    sent = [
        "GET /a%2Fb/../c%7e.png?sig=a%2Bb%2c+c%3D&x=' HTTP/1.1",
        f"Host: 127.0.0.1:{host.port}",
        f"User-Agent: image-gateway/{__version__}",
        "Accept-Encoding: identity",
        "Accept: */*",
        "Connection: close",
    ]
    heads = [sorted(request.decode().strip().split("\r\n")) for request in host.requests]
    assert heads == [sorted(sent)] * 2


# The answers

BAD_ANSWERS = {
    "moved for good": (
        sends(b"", "Location: /b.png", status="301 Moved"),
        DownloadProblem.REDIRECT,
    ),
    "found inside": (
        sends(b"", "Location: http://169.254.169.254/", status="302 Found"),
        DownloadProblem.REDIRECT,
    ),
    "see other": (sends(b"", "Location: /b.png", status="303 See Other"), DownloadProblem.REDIRECT),
    "temporary": (sends(b"", "Location: /b.png", status="307 Temporary"), DownloadProblem.REDIRECT),
    "permanent": (sends(b"", "Location: /b.png", status="308 Permanent"), DownloadProblem.REDIRECT),
    "moved nowhere": (sends(b"", status="302 Found"), DownloadProblem.REDIRECT),
    "choices": (sends(IMAGE, status="300 Multiple Choices"), DownloadProblem.REDIRECT),
    "no content": (sends_raw(b"HTTP/1.1 204 No Content\r\n\r\n"), DownloadProblem.BAD_STATUS),
    "in part": (sends(IMAGE, status="206 Partial Content"), DownloadProblem.BAD_STATUS),
    "missing": (sends(IMAGE, status="404 Not Found"), DownloadProblem.BAD_STATUS),
    "their failure": (sends(IMAGE, status="500 Oops"), DownloadProblem.BAD_STATUS),
    "large and says so": (sends(bytes(MAX_BYTES + 1)), DownloadProblem.TOO_LARGE),
    "small and says it is large": (sends(IMAGE, length=10**15), DownloadProblem.TOO_LARGE),
    "large without a length": (
        sends_raw(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(MAX_BYTES + 1)),
        DownloadProblem.TOO_LARGE,
    ),
    "endless": (drips(b"HTTP/1.1 200 OK\r\n\r\n", bytes(65536)), DownloadProblem.TOO_LARGE),
    "endless in chunks": (
        drips(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"10000\r\n" + bytes(65536) + b"\r\n",
        ),
        DownloadProblem.TOO_LARGE,
    ),
    "gzip": (sends(IMAGE, "Content-Encoding: gzip"), DownloadProblem.NOT_AN_IMAGE),
    "brotli after identity": (
        sends(IMAGE, "Content-Encoding: identity", "Content-Encoding: BR"),
        DownloadProblem.NOT_AN_IMAGE,
    ),
    "an unknown encoding": (
        sends(IMAGE, "Content-Encoding: x"),
        DownloadProblem.NOT_AN_IMAGE,
    ),
    "empty": (sends(b""), DownloadProblem.NOT_AN_IMAGE),
    "cut short": (sends(IMAGE, length=len(IMAGE) + 1), DownloadProblem.UNREACHABLE),
    "cut short in chunks": (
        sends_raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc"),
        DownloadProblem.UNREACHABLE,
    ),
    "reset": (resets, DownloadProblem.UNREACHABLE),
    "no answer": (sends_raw(b""), DownloadProblem.UNREACHABLE),
    "half a head": (sends_raw(b"HTTP/1.1 200 OK\r\nContent-"), DownloadProblem.UNREACHABLE),
    "no HTTP": (sends_raw(b"220 mail.example ESMTP\r\n\r\n"), DownloadProblem.UNREACHABLE),
    "a length that is none": (
        sends_raw(b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\nabc"),
        DownloadProblem.UNREACHABLE,
    ),
    "an endless header": (
        drips(b"HTTP/1.1 200 OK\r\nA: ", b"a" * 65536),
        DownloadProblem.UNREACHABLE,
    ),
    "endless headers": (
        drips(b"HTTP/1.1 200 OK\r\n", b"A: a\r\n" * 999),
        DownloadProblem.UNREACHABLE,
    ),
}


@pytest.mark.parametrize(("answer", "reason"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_a_bad_answer_is_refused_and_leaves_an_empty_file(
    answer: Answer, reason: DownloadProblem
) -> None:
    async with web_host(answer) as host, trusting(host) as downloads:
        assert await refusal(downloads, host.url) == reason


GOOD_ANSWERS = {
    "as large as allowed": sends(bytes(MAX_BYTES)),
    "without a length": sends_raw(b"HTTP/1.1 200 OK\r\n\r\n" + IMAGE),
    "old": sends_raw(b"HTTP/1.0 200 OK\r\n\r\n" + IMAGE),
    "in chunks": sends_raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    ),
    "called a page": sends(IMAGE, "Content-Type: text/html"),
    "encoded as itself": sends(IMAGE, "Content-Encoding: Identity"),
}


@pytest.mark.parametrize("answer", GOOD_ANSWERS.values(), ids=GOOD_ANSWERS)
async def test_a_whole_file_is_written_and_rewound_for_any_content_type(
    answer: Answer, tmp_path: Path
) -> None:
    async with web_host(answer) as host, trusting(host) as downloads:
        with (tmp_path / "image").open("w+b") as target:
            size = await downloads.fetch(host.url, target)
            assert target.tell() == 0
            assert len(target.read()) == size > 0


@pytest.mark.parametrize(
    "answer",
    [
        says_nothing,
        drips(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n", b"a"),
        drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["silence", "a slow file", "promises"],
)
async def test_a_slow_host_is_given_up(answer: Answer) -> None:
    async with web_host(answer) as host, trusting(host, total_seconds=0.2) as downloads:
        assert await refusal(downloads, host.url) == DownloadProblem.TOO_SLOW


async def test_looking_a_name_up_is_part_of_connecting() -> None:
    async def hang(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    async with downloading(resolver=hang, connect_seconds=0.1) as downloads:
        assert await refusal(downloads, f"https://{NAME}/") == DownloadProblem.UNREACHABLE


async def test_fetches_beyond_the_limit_wait_their_turn() -> None:
    turns: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def waits(writer: asyncio.StreamWriter) -> None:
        go = asyncio.Event()
        await turns.put(go)
        await go.wait()
        await sends(IMAGE)(writer)

    async with web_host(waits) as host, trusting(host, max_connections=2) as downloads:
        fetches = [asyncio.create_task(downloads.fetch(host.url, io.BytesIO())) for _ in range(5)]
        first, second = await turns.get(), await turns.get()
        for _ in range(100):
            await asyncio.sleep(0)
        assert turns.empty()
        for go in (first, second):
            go.set()
        for _ in range(3):
            (await turns.get()).set()
        assert await asyncio.gather(*fetches) == [len(IMAGE)] * 5


async def test_a_fetch_that_is_cancelled_leaves_an_empty_file_and_a_free_turn() -> None:
    begun = asyncio.Event()

    async def begins(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        await writer.drain()
        begun.set()
        await asyncio.Event().wait()

    target = io.BytesIO()
    async with web_host(begins) as host, trusting(host, max_connections=1) as downloads:
        fetch = asyncio.create_task(downloads.fetch(host.url, target))
        await begun.wait()
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        assert target.getvalue() == b""
        host.answer = sends()
        assert await downloads.fetch(host.url, target) == len(IMAGE)


SIGNATURE, PASSWORD = "canary-signature", "canary-password"


@pytest.mark.parametrize(
    ("answer", "reason", "options"),
    [
        (sends_raw(b"no HTTP\r\n\r\n"), DownloadProblem.UNREACHABLE, {}),
        (says_nothing, DownloadProblem.TOO_SLOW, {"total_seconds": 0.2}),
        (sends(status="403 Forbidden"), DownloadProblem.BAD_STATUS, {}),
    ],
)
async def test_no_refusal_repeats_a_signature_or_names_a_host(
    answer: Answer, reason: DownloadProblem, options: dict[str, float]
) -> None:
    async with web_host(answer) as host, trusting(host, **options) as downloads:
        with pytest.raises(DownloadRefused) as caught:
            await downloads.fetch(f"{host.url}?sig={SIGNATURE}", io.BytesIO())
    assert caught.value.reason == reason
    assert SIGNATURE not in "".join(traceback.format_exception(caught.value))
    assert "127.0.0.1" not in caught.value.message


@pytest.mark.parametrize(
    "url",
    [f"https://name:{PASSWORD}@{NAME}/", f"https://{PASSWORD}@[::1/", f"https://{PASSWORD}:a/"],
)
async def test_no_refusal_repeats_a_password(url: str) -> None:
    async with downloading() as downloads:
        with pytest.raises(DownloadRefused) as caught:
            await downloads.fetch(url, io.BytesIO())
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
