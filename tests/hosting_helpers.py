"""Helpers for tests of stored images: file and S3 stores, and images made without a call."""

import asyncio
import io
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import httpx2
import orjson
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import Row

from gateway.billing.reservations import Reservations
from gateway.billing.settlement import Settlement, StoredFile
from gateway.config import Settings
from gateway.db.addresses import database_url
from gateway.db.engine import Database
from gateway.domain import new_id
from gateway.library.links import LinkKind
from gateway.library.storage import ImageStore, image_path, new_image_id, open_store
from gateway.maintenance import Sweeper
from gateway.money import NanoUsd
from gateway.provider_answers import Outcome
from gateway.tenancy.api_keys import IssuedKey
from tests.harness import GPT2, Served, served_gateway

RESERVE = (
    "SELECT request_id, outcome FROM reserve("
    "CAST(:requests AS jsonb), CAST(:instance AS uuid), true)"
)
HOURS_LATER = timedelta(hours=3)


def hold_request(tenant_id: UUID, price_id: int, **changes: Any) -> dict[str, Any]:
    """Build a request of `RESERVE`: a live generation with the house credential, by no key."""
    return {
        "id": str(new_id()),
        "tenant_id": str(tenant_id),
        "livemode": True,
        "operation": "generation",
        "requested_model": GPT2,
        "served_model": GPT2,
        "provider": "openai",
        "credential": "house",
        "price_id": price_id,
        "amount_nano": 7_000_000,
        "ttl_seconds": 60,
        **changes,
    }


async def reserve_together(served: Served, *wanted: dict[str, Any]) -> Sequence[Row[Any]]:
    """Reserve for calls in one statement, as a worker does; each has its own fields."""
    [price] = await served.owner_sql("SELECT id FROM price WHERE model = :m", m=GPT2)
    own = {"tenant_id": served.tenant_id, "price_id": price.id}
    requests = [hold_request(**own | one) for one in wanted]
    return await served.owner_sql(
        RESERVE, requests=orjson.dumps(requests).decode(), instance=str(new_id())
    )


class _Failing(BaseHTTPRequestHandler):
    """An HTTP handler in the place of S3 that answers every request with 500."""

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", "0")))
        self.send_response(500)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = _refuse  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        """Write no log."""


class S3Server:
    """S3 on loopback, by moto; its contents survive a stop."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        from moto.server import ThreadedMotoServer  # noqa: PLC0415 - slow; few tests store in S3

        self._new_server = partial(ThreadedMotoServer, "127.0.0.1", verbose=False)
        self._server = self._new_server(port=0)
        self._failing: ThreadingHTTPServer | None = None
        self._server.start()
        self._port = int(self._server.get_host_and_port()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def stop(self) -> None:
        """Stop listening: connections are refused."""
        self._server.stop()

    def start(self) -> None:
        """Listen again, at the same port."""
        self._server = self._new_server(port=self._port)
        self._server.start()

    def fail(self) -> None:
        """Answer every request with 500, at the same port."""
        self._server.stop()
        self._failing = ThreadingHTTPServer(("127.0.0.1", self._port), _Failing)
        Thread(target=self._failing.serve_forever, daemon=True).start()

    def mend(self) -> None:
        """End `fail`."""
        assert self._failing is not None
        self._failing.shutdown()
        self._failing.server_close()
        self.start()

    async def make_bucket(self) -> str:
        name = f"images-{secrets.token_hex(6)}"
        async with httpx2.AsyncClient(base_url=self.url) as http:
            (await http.put(f"/{name}")).raise_for_status()
        return name


@dataclass(frozen=True)
class Place:
    """A place to store images, given as an operator gives it: by environment variables."""

    environment: dict[str, str]

    def applied(self, settings: Settings) -> Settings:
        """A copy of the settings that stores images here."""
        values: dict[str, object] = {
            name.removeprefix("GATEWAY_").lower(): text for name, text in self.environment.items()
        }
        if "aws_secret_access_key" in values:
            values["aws_secret_access_key"] = SecretStr(str(values["aws_secret_access_key"]))
        return settings.model_copy(update=values)

    def at(self, endpoint: str) -> "Place":
        """The same bucket at another address."""
        return Place(self.environment | {"AWS_ENDPOINT_URL": endpoint})


def files_in(folder: Path) -> Place:
    return Place({"GATEWAY_STORAGE_URL": folder.as_uri()})


async def bucket_of(server: S3Server) -> Place:
    return Place(
        {
            "GATEWAY_STORAGE_URL": f"s3://{await server.make_bucket()}/some/prefix",
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_REGION": "us-east-1",
        }
    )


@dataclass
class Hosted:
    """A served gateway with access to its store and rows."""

    served: Served
    place: Place
    settings: Settings

    @property
    def store(self) -> ImageStore:
        return self.served.gateway.store

    @property
    def tenant_id(self) -> UUID:
        return self.served.tenant_id

    async def files(self, tenant_id: UUID | None = None) -> list[str]:
        """The paths of the tenant's files."""
        pages = [page async for page in self.store.list(str(tenant_id or self.tenant_id))]
        return sorted(file.path for page in pages for file in page)

    async def living(self) -> list[str]:
        """The paths of the images that rows say are stored."""
        rows = await self.served.owner_sql("SELECT path FROM image WHERE deleted_at IS NULL")
        return sorted(row.path for row in rows)

    async def row(self, image_id: str) -> Any:
        [row] = await self.served.owner_sql("SELECT * FROM image WHERE id = :id", id=image_id)
        return row

    async def reconcile(
        self, *, later: timedelta = HOURS_LATER, whole: bool = True
    ) -> tuple[int, int]:
        """Compare store and rows as if time had passed; return the removed files and rows."""
        sweeper = Sweeper(self.served.gateway)
        done = await sweeper.reconcile(datetime.now(UTC) + later, whole=whole)
        return done.files, done.rows

    async def get(self, url: str, method: str = "GET", **options: Any) -> httpx2.Response:
        """Request a link, without a key."""
        async with self.served.http() as http:
            return await http.request(method, httpx2.URL(url).raw_path.decode(), **options)

    async def make(self, key: IssuedKey, **changes: object) -> str:
        """Make an image through the API; return its id."""
        body = {"model": GPT2, "prompt": "a red circle", "size": "1024x1024", "quality": "low"}
        async with self.served.http(key) as http:
            answer = await http.post(
                "/v1/images/generations", json=body | {"response_format": "url"} | changes
            )
        assert answer.status_code == 200, answer.text
        return httpx2.URL(answer.json()["data"][0]["url"]).path.rpartition("/")[2]

    async def put(self, key: IssuedKey, content: bytes = b"", **known: Any) -> StoredFile:
        """Store an image without a call; `known` are values of its row."""
        [stored] = await self.put_all(key, [(content, known)])
        return stored

    async def put_all(
        self, key: IssuedKey, images: list[tuple[bytes, dict[str, Any]]]
    ) -> list[StoredFile]:
        """Store images of one generation, without a call."""
        [owner] = await self.served.owner_sql("SELECT * FROM api_key WHERE id = :id", id=key.id)
        stored = []
        for given, known in images:
            content = given or image_bytes()
            image_id = new_image_id()
            path = image_path(owner.tenant_id, image_id, "png")
            values: dict[str, Any] = {
                "ttl_seconds": 86_400,
                "media_type": "image/png",
                "size_bytes": len(content),
            }
            stored.append(StoredFile(id=image_id, path=path, **(values | known)))
            await self.store.put(path, content)
        await self.write_down(owner, stored)
        return stored

    async def write_down(self, owner: Any, stored: list[StoredFile]) -> None:
        """Reserve and settle as for a call that made these images."""
        reservation_id = await self.reserve(owner)
        async with reservations_of(self.settings) as reservations:
            settled = await reservations.settle(
                owner.tenant_id,
                Settlement(
                    reservation_id,
                    Outcome.SUCCESS,
                    NanoUsd(5_000_000),
                    images=len(stored),
                    stored=tuple(stored),
                ),
            )
        assert settled == "ok"

    async def reserve(self, owner: Any) -> UUID:
        """Hold money for a call with this key (its row); return the reservation's id."""
        reservation_id = new_id()
        wanted = {
            "id": str(reservation_id),
            "tenant_id": owner.tenant_id,
            "api_key_id": str(owner.id),
            "user_id": owner.user_id and str(owner.user_id),
            "livemode": owner.livemode,
        }
        [held] = await reserve_together(self.served, wanted)
        assert held.outcome == "held"
        return reservation_id

    def link(self, image: StoredFile, kind: LinkKind = LinkKind.IMAGE) -> str:
        """A signed link that is valid for a while."""
        expires_at = int(datetime.now(UTC).timestamp()) + 600
        return self.served.gateway.links.sign(image.id, image.path, expires_at, kind)


@asynccontextmanager
async def reservations_of(settings: Settings) -> AsyncIterator[Reservations]:
    """The reservation writer, opened as a gateway opens it."""
    assert settings.database_url is not None
    url = database_url(settings.database_url.get_secret_value())
    database = Database(
        url.render_as_string(hide_password=False), pool_size=2, connect_timeout_seconds=5
    )
    reservations = Reservations(database, instance=uuid4(), max_batch=64, admission_timeout_ms=5000)
    try:
        yield reservations
    finally:
        await reservations.close()
        await database.close()


@asynccontextmanager
async def hosted_gateway(settings: Settings, place: Place) -> AsyncIterator[Hosted]:
    """A gateway that stores images there and has used the store before."""
    placed = place.applied(settings)
    async with served_gateway(placed) as served:
        hosted = Hosted(served, place, placed)
        await hosted.reconcile()
        yield hosted
        await served.check_invariants()


def image_bytes(width: int = 64, height: int = 48, image_format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.effect_noise((width, height), 80).save(out, image_format)
    return out.getvalue()


def store_of(place: Place, settings: Settings) -> ImageStore:
    """The store as another process would open it."""
    placed = place.applied(settings)
    return open_store(placed.image_storage_url, placed.s3_options)


async def listed(store: ImageStore, folder: str) -> list[str]:
    return [file.path async for page in store.list(folder) for file in page]


@asynccontextmanager
async def silent_address() -> AsyncIterator[str]:
    """A server that accepts every request and never answers."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
