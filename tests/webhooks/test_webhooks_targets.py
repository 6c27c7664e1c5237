"""Allowed webhook targets: the public internet over TLS, and no internal address."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.webhooks import endpoints
from gateway.webhooks.sender import DeliveryAttempt, Sender
from gateway.webhooks.targets import DeliveryFailure, TargetRefused, read_target, shown
from tests.admin_helpers import Refusal, refusal
from tests.download_hosts import (
    NAME,
    PUBLIC,
    Dialled,
    Names,
    certificates,
    sends,
    sends_raw,
    web_host,
)
from tests.harness import Served
from tests.images.test_downloads import INSIDE
from tests.webhook_helpers import (
    ask,
    deliver,
    deliveries_of,
    make_event,
    receiving,
)

URL = f"https://{NAME}/hooks"
REFUSED = {
    DeliveryFailure.NOT_HTTPS: [
        "",
        "http://images.example/",
        "ftp://images.example/",
        "file:///etc/passwd",
    ],
    DeliveryFailure.BAD_URL: [
        *("https://", "https://localhost/", "https://2130706433/", "https://0x7f.1/"),
        *("https://user:password@images.example/", "https://user@images.example/"),
        *("https://images.example/#part", "https://images.example:0/"),
        *("https://images.example/ ", "https://images.example/\x00", "https://a\\@127.0.0.1/"),
    ],
    DeliveryFailure.PRIVATE_ADDRESS: [
        *("https://127.0.0.1/", "https://10.0.0.1:8443/", "https://[::1]/", "https://[fd00::1]/"),
        *("https://169.254.169.254/latest/", "https://[::ffff:127.0.0.1]/", "https://0.0.0.0/"),
    ],
}
METADATA = [
    *("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
    *("fd00:ec2::254", "fd20:ce::254", "fe80::a9fe:a9fe", "::ffff:169.254.169.254"),
    *("64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255"),  # noqa: S104 - refused
]
PRIVATE = ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd12::1"]


@asynccontextmanager
async def sending(**options: Any) -> AsyncIterator[Sender]:
    sender = Sender(**({"timeout_seconds": 60, "allow_private": False} | options))
    yield sender
    await sender.close()


async def send(sender: Sender, url: str = URL) -> DeliveryAttempt:
    return await sender.send(url, b"{}", {"webhook-id": "1"})


@pytest.mark.parametrize("reason", REFUSED)
async def test_a_url_that_is_not_public_https_is_refused_before_any_request(
    served: Served, reason: DeliveryFailure
) -> None:
    names, dialled = Names([[PUBLIC]]), Dialled()
    async with sending(resolver=names, open_socket=dialled) as sender:
        for url in REFUSED[reason]:
            assert await send(sender, url) == DeliveryAttempt(None, reason), url
            answer = await ask(served, "POST", "/webhooks", json={"url": url})
            assert refusal(answer) == Refusal(400, reason, "url"), url
            assert "password@" not in answer.text
    assert (names.asked, dialled.addresses) == ([], [])
    assert (await ask(served, "GET", "/webhooks")).json()["data"] == []


@pytest.mark.parametrize("address", INSIDE)
async def test_a_name_that_leads_inside_is_not_connected_to(address: str) -> None:
    dialled = Dialled()
    for answers in ([address], [PUBLIC, address]):
        async with sending(resolver=Names([answers]), open_socket=dialled) as sender:
            assert await send(sender) == DeliveryAttempt(None, DeliveryFailure.PRIVATE_ADDRESS)
    assert dialled.addresses == []


@pytest.mark.parametrize("address", METADATA)
async def test_a_clouds_metadata_is_out_of_reach_even_where_private_networks_are_allowed(
    address: str,
) -> None:
    dialled = Dialled()
    async with sending(
        resolver=Names([[address]]), open_socket=dialled, allow_private=True
    ) as sender:
        assert await send(sender) == DeliveryAttempt(None, DeliveryFailure.PRIVATE_ADDRESS)
        literal = f"[{address}]" if ":" in address else address
        for scheme in ("http", "https"):
            attempt = await send(sender, f"{scheme}://{literal}/latest/meta-data/")
            assert attempt == DeliveryAttempt(None, DeliveryFailure.PRIVATE_ADDRESS)
    assert dialled.addresses == []


@pytest.mark.parametrize("address", PRIVATE)
async def test_the_operator_may_allow_private_networks(address: str) -> None:
    dialled = Dialled()
    async with sending(
        resolver=Names([[address]]), open_socket=dialled, allow_private=True
    ) as sender:
        for url in (URL, "http://receiver:8080/hooks"):
            assert await send(sender, url) == DeliveryAttempt(None, DeliveryFailure.UNREACHABLE)
    assert dialled.addresses == [(address, 443), (address, 8080)]


async def test_it_arrives_over_tls_at_the_address_that_was_checked(tmp_path: Path) -> None:
    made = certificates(tmp_path, NAME)
    async with web_host(sends(b"thanks", status="201 Created"), made.server) as host:
        dialled = Dialled(host.port)
        async with sending(
            resolver=Names([[PUBLIC]]), open_socket=dialled, ssl_context=made.client
        ) as sender:
            assert await send(sender) == DeliveryAttempt(201, None)
    assert dialled.addresses == [(PUBLIC, 443)]
    [request] = host.requests
    assert request.startswith(b"POST /hooks HTTP/1.1\r\n")


async def test_a_name_is_looked_up_for_each_try_and_may_not_change_inside(tmp_path: Path) -> None:
    made = certificates(tmp_path, NAME)
    names = Names([[PUBLIC], ["127.0.0.1"]])
    async with web_host(sends(b""), made.server) as host:
        dialled = Dialled(host.port)
        async with sending(resolver=names, open_socket=dialled, ssl_context=made.client) as sender:
            assert await send(sender) == DeliveryAttempt(200, None)
            assert await send(sender) == DeliveryAttempt(None, DeliveryFailure.PRIVATE_ADDRESS)
    assert (names.asked, dialled.addresses) == ([NAME, NAME], [(PUBLIC, 443)])
    assert len(host.requests) == 1


async def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    made = certificates(tmp_path, "other.example")
    async with (
        web_host(sends(b""), made.server) as host,
        sending(
            resolver=Names([[PUBLIC]]), open_socket=Dialled(host.port), ssl_context=made.client
        ) as sender,
    ):
        assert await send(sender) == DeliveryAttempt(None, DeliveryFailure.BAD_CERTIFICATE)
    assert host.requests == []


async def test_a_redirect_is_not_followed_wherever_it_leads() -> None:
    async with receiving(307) as inside, receiving(301, 302, 303, 307, 308) as receiver:
        receiver.location = inside.url
        async with sending(allow_private=True) as sender:
            for status in (301, 302, 303, 307, 308):
                assert await send(sender, receiver.url) == DeliveryAttempt(
                    status, DeliveryFailure.REDIRECT
                )
    assert inside.received == []


@pytest.mark.parametrize("content", [b"", b"HTTP/9.9 nonsense\r\n\r\n", b"\0"])
async def test_an_invalid_answer_is_a_failure(content: bytes) -> None:
    async with web_host(sends_raw(content)) as host, sending(allow_private=True) as sender:
        assert await send(sender, host.url) == DeliveryAttempt(None, DeliveryFailure.BROKEN_OFF)


async def test_an_endless_answer_is_not_read() -> None:
    async def floods(writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 65_536)
            await writer.drain()

    async with web_host(floods) as host, sending(allow_private=True) as sender:
        assert await send(sender, host.url) == DeliveryAttempt(200, None)


async def test_private_receivers_are_refused_again_once_they_are_not_allowed_any_more(
    served: Served,
) -> None:
    async with receiving() as receiver:
        async with served.gateway.database.operator() as session:
            made = await endpoints.create(
                session,
                None,
                sealing=served.gateway.core.webhook_sealing,
                url=receiver.url,
                allow_private=True,
                max_endpoints=1,
            )
        await make_event(served)
        await deliver(served)
        [delivery] = await deliveries_of(served, {"id": made.endpoint.id})
    assert (delivery["status"], delivery["last_error"]) == ("pending", "not_https")
    assert receiver.received == []


def test_a_url_is_shown_without_path_and_query() -> None:
    assert shown("https://images.example/T0/B0/secret?token=x") == "https://images.example:443"
    assert shown("https://[") == "unreadable"


def test_urls_are_kept_unchanged() -> None:
    urls: Sequence[str] = (
        "https://images.example/a%2Fb?x=%20&y=1+2",
        "https://images.example:8443/",
    )
    for url in urls:
        assert str(read_target(url, allow_private=False)) == url
    with pytest.raises(TargetRefused):
        read_target("https://receiver/hooks", allow_private=False)
