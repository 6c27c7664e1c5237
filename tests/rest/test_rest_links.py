"""Signed links give the bytes without a key, for a time; a changed link is refused."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import uuid4

import httpx2
import pytest

from gateway.errors import Forbidden
from gateway.library.links import LinkKind, LinkSigner
from tests.harness import GPT2, Served, error_of
from tests.stub_openai import Stub

BODY = {
    "model": GPT2,
    "prompt": "a red circle",
    "size": "1024x1024",
    "quality": "low",
    "response_format": "url",
}


class Link(NamedTuple):
    """A link in its parts."""

    image_id: str
    exp: str
    sig: str

    def path(self, **changes: str) -> str:
        changed = self._replace(**changes)
        query = httpx2.QueryParams({"exp": changed.exp, "sig": changed.sig})
        return f"/images/{changed.image_id}?{query}"


def split(url: str) -> Link:
    parsed = httpx2.URL(url)
    return Link(parsed.path.rpartition("/")[2], parsed.params["exp"], parsed.params["sig"])


async def make(served: Served, *, livemode: bool = True, **options: Any) -> Link:
    key = await served.key(livemode=livemode, **options)
    async with served.http(key) as http:
        answer = (await http.post("/v1/images/generations", json=BODY)).json()
    assert list(answer["data"][0]) == ["url"]
    return split(answer["data"][0]["url"])


@pytest.fixture
async def link(served: Served) -> Link:
    return await make(served)


async def get(served: Served, path: str, method: str = "GET") -> httpx2.Response:
    async with served.http() as http:
        return await http.request(method, path)


@pytest.mark.parametrize("livemode", [True, False])
async def test_a_link_gives_the_image_without_a_key(served: Served, livemode: bool) -> None:  # noqa: FBT001
    link = await make(served, livemode=livemode)
    whole, head = [await get(served, link.path(), method) for method in ("GET", "HEAD")]
    assert whole.status_code == head.status_code == 200
    assert whole.content.startswith(b"\x89PNG")
    assert head.content == b""
    assert head.headers["content-length"] == str(len(whole.content))
    shown = {name: whole.headers[name] for name in ("content-type", "x-content-type-options")}
    assert shown == {"content-type": "image/png", "x-content-type-options": "nosniff"}
    assert whole.headers["cache-control"].startswith("private, max-age=")


async def test_base64_is_the_default_response_format(served: Served) -> None:
    async with served.http(await served.key()) as http:
        for asked in ({}, {"response_format": "b64_json"}, {"response_format": None}):
            body = {k: v for k, v in BODY.items() if k != "response_format"} | asked
            answer = (await http.post("/v1/images/generations", json=body)).json()
            assert list(answer["data"][0]) == ["b64_json"]


async def test_the_provider_never_hears_of_response_format(served: Served, stub: Stub) -> None:
    await make(served)
    assert [call.json for call in stub.calls] == [
        {name: value for name, value in BODY.items() if name != "response_format"} | {"n": 1}
    ]


def spoiled(link: Link, other: Link) -> Iterator[dict[str, str]]:
    """Changed versions of a valid link, none of which may be served."""
    yield {"image_id": other.image_id}
    yield {"sig": other.sig}
    yield {"exp": str(int(link.exp) + 1)}
    yield {"exp": str(int(link.exp) - 1)}
    yield {"exp": str(2**63)}
    yield {"exp": "9" * 4000}
    yield {"exp": "9" * 10_000}
    for exp in ("", "0", "-1", f"-{link.exp}", "1e99", "0x7fffffff", "nan", "inf", "\x00", "null"):
        yield {"exp": exp}
    for sig in ("", "=", "A", "AAAA", "A" * 22, "A" * 10_000, "\x00", "é", "%", "../../etc/passwd"):
        yield {"sig": sig}
    for length in range(1, len(link.sig)):
        yield {"sig": link.sig[:length]}
    yield {"sig": link.sig[1:]}
    yield {"sig": link.sig.swapcase()}
    yield {"sig": ("B" if link.sig[0] == "A" else "A") + link.sig[1:]}
    yield {"sig": link.sig + "AAAA"}
    for image_id in ("x", "img_", "a%2Fb", "%00", "é", "i" * 5000):
        yield {"image_id": image_id}
    yield {"image_id": f"{link.image_id}.png"}
    yield {"image_id": link.image_id.upper()}


async def test_a_link_with_anything_changed_is_refused(served: Served, link: Link) -> None:
    other = await make(served, tenant_id=await served.tenant("other"))
    wrong, longest = [], served.gateway.settings.max_url_bytes
    async with served.http() as http:
        for change in spoiled(link, other):
            response = await http.get(link.path(**change))
            is_too_long = len(response.request.url.raw_path) > longest
            if response.status_code not in ({414} if is_too_long else {403, 404}):
                wrong.append((str(change)[:60], response.status_code))
            else:
                error_of(response)
        assert (await http.get(link.path())).status_code == 200
    assert wrong == []


async def test_a_link_is_written_in_one_way_only(served: Served, link: Link) -> None:
    digits = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
    respelled = {
        "other digits": {"exp": link.exp.translate(digits)},
        "a plus sign": {"exp": f"+{link.exp}"},
        "a leading zero": {"exp": f"0{link.exp}"},
        "an underscore": {"exp": f"{link.exp[:3]}_{link.exp[3:]}"},
        "a space": {"exp": f" {link.exp} "},
        "characters that are no base64": {"sig": f"{link.sig[:4]}!!!!{link.sig[4:]}"},
        "padding": {"sig": f"{link.sig}===="},
    }
    statuses = {
        name: (await get(served, link.path(**change))).status_code
        for name, change in respelled.items()
    }
    assert statuses == dict.fromkeys(respelled, 403)


async def test_missing_parts_and_other_methods_are_refused(served: Served, link: Link) -> None:
    path = f"/images/{link.image_id}"
    for query in ("", f"?exp={link.exp}", f"?sig={link.sig}", f"?{link.exp}&{link.sig}"):
        assert (await get(served, path + query)).status_code == 403
    for method in ("POST", "PUT", "DELETE"):
        response = await get(served, link.path(), method)
        assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")


async def stored_path(served: Served, link: Link) -> str:
    rows = await served.owner_sql("SELECT path FROM image WHERE id = :id", id=link.image_id)
    return str(rows[0].path)


async def test_a_link_ends_when_it_says_so(served: Served, link: Link) -> None:
    path, now = await stored_path(served, link), int(time.time())
    for age_seconds in (1, 86_400, now):
        late = split(served.gateway.links.sign(link.image_id, path, now - age_seconds))
        answer = await get(served, late.path())
        assert (answer.status_code, error_of(answer)["code"]) == (403, "link_expired")


class OtherGatewaysKeys:
    """The link key of another gateway."""

    def signing_link_key(self, _now: float) -> bytes:
        return b"\x00" * 32

    def link_keys(self, now: float) -> list[bytes]:
        return [self.signing_link_key(now)]


class RolledKeys(OtherGatewaysKeys):
    """A new link key, beside the former one, whose links still count."""

    def link_keys(self, now: float) -> list[bytes]:
        return [b"\x01" * 32, self.signing_link_key(now)]


def test_a_link_is_good_for_its_last_second_and_no_longer() -> None:
    signer, path = LinkSigner(RolledKeys(), "http://x"), f"{uuid4()}/2026/11/20/img_a1.png"
    link = split(signer.sign("img_a1", path, 1_900_000_000))
    assert signer.verify("img_a1", link.exp, link.sig, now=1_900_000_000) == path
    with pytest.raises(Forbidden) as refused:
        signer.verify("img_a1", link.exp, link.sig, now=1_900_000_001)
    assert refused.value.code == "link_expired"


@pytest.mark.parametrize(
    ("kind", "mac"),
    [
        (LinkKind.IMAGE, "jQyIzHbyppV61tN-7qbHwzAw"),
        (LinkKind.THUMBNAIL, "nRenfuoiRkJFjeUcb1KlaTAw"),
    ],
)
def test_links_of_earlier_releases_stay_good(kind: LinkKind, mac: str) -> None:
    signer = LinkSigner(OtherGatewaysKeys(), "http://x")
    path = "00000000-0000-0000-0000-000000000001/2026/11/20/img_a1.png"
    place = "MDAwMDAwLTAwMDAtMDAwMC0wMDAwLTAwMDAwMDAwMDAwMS8yMDI2LzExLzIwLnBuZw"
    assert split(signer.sign("img_a1", path, 1_900_000_000, kind)).sig == mac + place
    other = LinkKind.IMAGE if kind else LinkKind.THUMBNAIL
    with pytest.raises(Forbidden):
        signer.verify("img_a1", "1900000000", mac + place, now=1_900_000_000, kind=other)


async def test_another_gateways_signature_is_refused(served: Served, link: Link) -> None:
    path, exp = await stored_path(served, link), int(time.time()) + 60
    forged = LinkSigner(OtherGatewaysKeys(), "http://x").sign(link.image_id, path, exp)
    assert (await get(served, split(forged).path())).status_code == 403


async def test_a_valid_signature_opens_images_only(served: Served, link: Link) -> None:
    exp = int(time.time()) + 60
    tenant = str(served.tenant_id)
    for folder, image_id, extension in (
        ("..", "quickstart", "json"),
        (f"{tenant}/../../..", link.image_id, "png"),
        (f"{tenant}/2026/11/20", link.image_id, "html"),
        (f"{tenant}/2026/11/20", link.image_id, "svg"),
        (f"/{tenant}/2026/11/20", link.image_id, "png"),
        (f"{tenant}/2026/11/20/..", link.image_id, "png"),
        (f"{tenant}\x00/2026/11/20", link.image_id, "png"),
    ):
        path = f"{folder}/{image_id}.{extension}"
        signed = split(served.gateway.links.sign(image_id, path, exp))
        assert (await get(served, signed.path())).status_code == 403, path


async def test_an_image_that_is_gone_is_not_found(served: Served, link: Link) -> None:
    await served.gateway.store.delete(await stored_path(served, link))
    for method in ("GET", "HEAD"):
        assert (await get(served, link.path(), method)).status_code == 404
