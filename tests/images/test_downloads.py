"""Downloads from addresses that clients choose: which requests are made, and which never are."""

import io
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from gateway.net.downloads import DownloadProblem, origin_of
from tests.download_hosts import (
    IMAGE,
    NAME,
    PUBLIC,
    Dialled,
    Names,
    certificates,
    downloading,
    refusal,
    sends,
    sends_raw,
    trusting,
    web_host,
)

# Addresses that are never requested

REFUSED = {
    DownloadProblem.NOT_HTTPS: [
        "",
        "/",
        "image.png",
        "//images.example/a",
        "http://images.example/",
        "HTTP://images.example/",
        "http://127.0.0.1:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
        "ftp://images.example/a.png",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "data:image/png;base64,iVBORw0KGgo=",
        "javascript:alert(1)",
        "gopher://127.0.0.1:{port}/_x",
        "ws://images.example/",
        "wss://images.example/",
        "httpss://images.example/",
        "s3://bucket/key",
    ],
    DownloadProblem.BAD_URL: [
        "https:",
        "https://",
        "https:///a.png",
        "https:images.example/a.png",
        " https://images.example/",
        "https://images.example/ ",
        "https://images.example/a b",
        "https://images.example/a\\b",
        "https://images.example/\r\nHost: inside",
        "https://images.example/\x00",
        "https://images.example/\t",
        "https://images.example/\u202egnp",
        "https://images.example/\ud800",
        "https://images.example\\@127.0.0.1/",
        "https://images.example/" + "a" * 9000,
        "https://user:password@images.example/",
        "https://user@images.example/",
        "https://:password@images.example/",
        "https://@images.example/",
        "https://images.example:443@127.0.0.1/",
        "https://127.0.0.1:{port}/",
        "https://[::1]:{port}/",
        "https://localhost:{port}/",
        "https://images.example:{port}/",
        "https://images.example:80/",
        "https://images.example:0/",
        "https://images.example:65536/",
        "https://images.example:-443/",
        "https://images.example:http/",
        "https://localhost/",
        "https://localhost./",
        "https://postgres/",
        "https://127.0.0.1./",
        "https://127.1/",
        "https://127.0.1/",
        "https://2130706433/",
        "https://2130706433./",
        "https://017700000001/",
        "https://0177.0.0.1/",
        "https://0177.0.0.01/",
        "https://127.0.0.001/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0X7F.0.0.0x1/",
        "https://127.0.0.0x1/",
        "https://0/",
        "https://256.256.256.256/",
        "https://127.0.0.1.5/",
        "https://[::1/",
        "https://images\u2044]example[@",
        "https://[images.example]/",
        "https://[v1.a]/",
        "https://::1/",
        "https://images.example./",
        "https://.images.example/",
        "https://images..example/",
        "https://images,example/",
        "https://-images.example/",
        "https://images.example%2f@127.0.0.1/",
        "https://127.0.0.1%2fimages.example/",
        "https://images%2eexample/",
        "https://images.example%00.png/",
        "https://" + "a" * 64 + ".example/",
        "https://" + "a." * 130 + "example/",
        "https://" + "\xe9" * 300 + ".example/",
        "https://images.\uff05\uff12\uff15example/",
        "https://a\uff20images.example/",
        "https://[\uff1a\uff1a1]/",
        "https://\u2488\u2488.example/",
    ],
    DownloadProblem.PRIVATE_ADDRESS: [
        "https://127.0.0.1/",
        "https://127.0.0.1:443/",
        "HTTPS://127.255.255.254/",
        "https://0.0.0.0/",
        "https://10.0.0.1/",
        "https://100.64.0.1/",
        "https://100.100.100.200/latest/meta-data/",
        "https://168.63.129.16/machine/",
        "https://169.254.169.254/latest/meta-data/",
        "https://172.16.0.1/",
        "https://192.168.1.1/",
        "https://192.0.0.192/opc/v2/",
        "https://198.18.0.1/",
        "https://224.0.0.1/",
        "https://255.255.255.255/",
        "https://127.0.0.1?@images.example/",
        "https://127.0.0.1#@images.example/",
        "https://[::]/",
        "https://[::1]/",
        "https://[0:0:0:0:0:0:0:1]/",
        "https://[0000:0000:0000:0000:0000:0000:0000:0001]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:7f00:1]/",
        "https://[::127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[64:ff9b:1::1]/",
        "https://[2002:7f00:1::]/",
        "https://[2001:0:7f00:1::]/",
        "https://[fc00::1]/",
        "https://[fd00:ec2::254]/latest/meta-data/",
        "https://[fe80::1]/",
        "https://[fe80::1%25lo]/",
        "https://[2606:4700::1%25lo]/",
        "https://[fec0::1]/",
        "https://[ff02::1]/",
        "https://\uff11\uff12\uff17.0.0.1/",
        "https://127\u30020\u30020\u30021/",
        "https://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/",
    ],
}


@pytest.mark.parametrize(
    ("url", "reason"), [(url, reason) for reason, urls in REFUSED.items() for url in urls]
)
async def test_an_address_that_is_refused_is_never_looked_up_or_connected_to(
    url: str, reason: DownloadProblem
) -> None:
    names, dialled = Names([["127.0.0.1"]]), Dialled()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        url = url.replace("{port}", str(listener.getsockname()[1]))
        async with downloading(resolver=names, open_socket=dialled) as downloads:
            assert await refusal(downloads, url) == reason
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert (names.asked, dialled.addresses) == ([], [])


# Addresses behind names

INSIDE = [
    *("0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.127.255.255"),  # noqa: S104 - refused
    *("127.0.0.1", "127.8.9.10", "168.63.129.16", "169.254.169.254", "169.254.170.2"),
    *("172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1"),
    *(
        "100.100.100.200",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
    ),
    *("239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8"),
    *("64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "100::1"),
    *("2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "2001:20::1"),
    *("2001:db8::1", "2002:7f00:1::1", "2002:808:808::1", "3fff::1", "5f00::1", "4000::1"),
    *("fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "2606:4700::1111%lo", "fec0::1"),
    *("ff02::1", "ff0e::1", "localhost", "127.1", "2130706433", "", "not an address"),
]
OUTSIDE = [
    "8.8.8.8",
    PUBLIC,
    "168.63.129.17",
    "2606:4700::1111",
    "2a00:1450::1",
    "64:ff9b::808:808",
]


@pytest.mark.parametrize("address", INSIDE)
@pytest.mark.parametrize("company", [[], [PUBLIC], ["2606:4700::1111", PUBLIC]])
async def test_a_name_with_any_address_inside_is_not_connected_to(
    address: str, company: list[str]
) -> None:
    dialled = Dialled()
    names = Names([[*company, address]])
    async with downloading(resolver=names, open_socket=dialled) as downloads:
        assert await refusal(downloads, f"https://{NAME}/a.png") == DownloadProblem.PRIVATE_ADDRESS
    assert (names.asked, dialled.addresses) == ([NAME], [])


@pytest.mark.parametrize("address", OUTSIDE)
async def test_a_public_address_is_connected_to_as_it_was_looked_up(address: str) -> None:
    dialled = Dialled()
    async with downloading(resolver=Names([[address]]), open_socket=dialled) as downloads:
        assert await refusal(downloads, f"https://{NAME}/a.png") == DownloadProblem.UNREACHABLE
    assert dialled.addresses == [(address, 443)]


async def test_a_public_address_may_be_written_out() -> None:
    dialled, names = Dialled(), Names([["127.0.0.1"]])
    async with downloading(resolver=names, open_socket=dialled) as downloads:
        assert await refusal(downloads, f"https://{PUBLIC}/a.png") == DownloadProblem.UNREACHABLE
        assert await refusal(downloads, "https://[2606:4700::1111]/") == DownloadProblem.UNREACHABLE
    assert dialled.addresses == [(PUBLIC, 443), ("2606:4700::1111", 443)]
    assert names.asked == []


async def test_no_more_than_a_few_of_a_names_addresses_are_tried() -> None:
    dialled = Dialled()
    names = Names([[f"8.8.8.{number}" for number in range(200)]])
    async with downloading(resolver=names, open_socket=dialled) as downloads:
        assert await refusal(downloads, f"https://{NAME}/") == DownloadProblem.UNREACHABLE
    assert {address for address, _ in dialled.addresses} == {f"8.8.8.{n}" for n in range(8)}


async def test_a_name_without_addresses_is_unreachable() -> None:
    async def unknown(host: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, f"{host} is unknown")

    for resolver in (unknown, Names([[]])):
        async with downloading(resolver=resolver, open_socket=Dialled()) as downloads:
            assert await refusal(downloads, f"https://{NAME}/") == DownloadProblem.UNREACHABLE


# Over TLS, at a public address that a detour leads to loopback


async def test_a_file_comes_over_tls_from_the_address_that_was_checked(tmp_path: Path) -> None:
    made = certificates(tmp_path, NAME)
    async with web_host(sends(), made.server) as host:
        dialled = Dialled(host.port)
        guarded = partial(downloading, ssl_context=made.client, open_socket=dialled)
        target = io.BytesIO()
        async with guarded(resolver=Names([[PUBLIC]])) as downloads:
            assert await downloads.fetch(f"https://{NAME}/a.png", target) == len(IMAGE)
    assert (target.tell(), target.getvalue()) == (0, IMAGE)
    assert dialled.addresses == [(PUBLIC, 443)]


async def test_a_name_is_looked_up_once_for_each_fetch_and_checked_each_time(
    tmp_path: Path,
) -> None:
    made = certificates(tmp_path, NAME)
    names = Names([[PUBLIC], ["127.0.0.1"]])
    async with web_host(sends(), made.server) as host:
        dialled = Dialled(host.port)
        async with downloading(
            ssl_context=made.client, open_socket=dialled, resolver=names
        ) as downloads:
            assert await downloads.fetch(f"https://{NAME}/", io.BytesIO()) == len(IMAGE)
            assert (names.asked, dialled.addresses) == ([NAME], [(PUBLIC, 443)])
            assert await refusal(downloads, f"https://{NAME}/") == DownloadProblem.PRIVATE_ADDRESS
    assert (names.asked, dialled.addresses) == ([NAME, NAME], [(PUBLIC, 443)])
    assert len(host.requests) == 1


async def test_a_second_try_at_a_host_that_hung_up_is_checked_like_the_first(
    tmp_path: Path,
) -> None:
    # aiohttp tries once more where the connection was closed without a word.
    made = certificates(tmp_path, NAME)
    names = Names([[PUBLIC], ["127.0.0.1"]])
    async with web_host(sends_raw(b""), made.server) as host:
        dialled = Dialled(host.port)
        async with downloading(
            ssl_context=made.client, open_socket=dialled, resolver=names
        ) as downloads:
            assert await refusal(downloads, f"https://{NAME}/") == DownloadProblem.PRIVATE_ADDRESS
    assert (names.asked, dialled.addresses) == ([NAME, NAME], [(PUBLIC, 443)])


async def test_a_certificate_for_another_name_or_from_an_unknown_authority_is_refused(
    tmp_path: Path,
) -> None:
    made = certificates(tmp_path, "other.example")
    async with web_host(sends(), made.server) as host:
        guarded = partial(downloading, open_socket=Dialled(host.port), resolver=Names([[PUBLIC]]))
        async with guarded(ssl_context=made.client) as downloads:
            assert await refusal(downloads, f"https://{NAME}/") == DownloadProblem.UNREACHABLE
        async with guarded() as downloads:
            assert await refusal(downloads, "https://other.example/") == DownloadProblem.UNREACHABLE
    assert host.requests == []


# Hosts of the operator's own


async def test_a_trusted_origin_may_be_plain_and_private(tmp_path: Path) -> None:
    async with web_host(sends()) as host, trusting(host) as downloads:
        with (tmp_path / "image").open("w+b") as target:
            assert await downloads.fetch(host.url, target) == len(IMAGE)
            assert target.read() == IMAGE


async def test_a_trusted_name_is_looked_up_by_the_system() -> None:
    async with web_host(sends()) as host:
        url = host.url.replace("127.0.0.1", "localhost")
        async with downloading(trusted_origins=frozenset({origin_of(url)})) as downloads:
            assert await downloads.fetch(url, io.BytesIO()) == len(IMAGE)


async def test_trust_is_for_one_scheme_host_and_port() -> None:
    async with web_host(sends()) as host, trusting(host) as downloads:
        near = {
            f"https://127.0.0.1:{host.port}/": DownloadProblem.BAD_URL,
            f"http://127.0.0.1:{host.port + 1}/": DownloadProblem.NOT_HTTPS,
            "http://127.0.0.1/": DownloadProblem.NOT_HTTPS,
            f"http://127.0.0.1.:{host.port}/": DownloadProblem.NOT_HTTPS,
            f"http://127.1:{host.port}/": DownloadProblem.NOT_HTTPS,
            f"http://localhost:{host.port}/": DownloadProblem.NOT_HTTPS,
            f"http://user@127.0.0.1:{host.port}/": DownloadProblem.BAD_URL,
            f"http://images.example/?http://127.0.0.1:{host.port}/": DownloadProblem.NOT_HTTPS,
        }
        assert {url: await refusal(downloads, url) for url in near} == near
    assert host.requests == []


def test_an_origin_spells_out_its_port() -> None:
    assert {
        url: origin_of(url)
        for url in ("https://API.example/v1", "http://a.example", "http://[::1]:8188/v1/")
    } == {
        "https://API.example/v1": "https://api.example:443",
        "http://a.example": "http://a.example:80",
        "http://[::1]:8188/v1/": "http://[::1]:8188",
    }
    with pytest.raises(ValueError, match="names no host"):
        origin_of("/v1")
