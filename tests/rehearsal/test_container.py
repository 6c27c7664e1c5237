"""Both images of the Dockerfile: built without an engine, run on a read-only root, measured."""

import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2
import pytest

from tests.harness import MASTER_KEY, free_port
from tests.limits_helpers import BODY
from tests.rehearsal.containers import (
    USER,
    Builder,
    Image,
    copied_checkout,
    cpu_seconds,
    expect_tools,
    holders_of,
    memory_bytes,
    plant,
)
from tests.rehearsal.programs import ROOT, run, running_postgres, until_reached
from tests.rehearsal.reports import Report

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]
MEMORY = Path("/dev/shm")  # noqa: S108 - in a new folder with a name of its own
ROOM_BYTES = 8 * 2**30
WRITABLE = ["/dev/shm", "/tmp", "/var/lib/image-gateway"]  # noqa: S108 - in the image
IMAGES = 20


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """A builder with its base, in memory where there is room: every layer is a copy."""
    expect_tools(tmp_path_factory.mktemp("registry"))
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES
    with tempfile.TemporaryDirectory(
        prefix="gateway-images-", dir=MEMORY if has_room else None, ignore_cleanup_errors=True
    ) as name:
        made = Builder(Path(name))
        made.make_base()
        yield made
        made("umount", "--all")
        made("rm", "--all")


@pytest.fixture
def data() -> Iterator[Path]:
    """A volume of the image's user."""
    with tempfile.TemporaryDirectory(prefix="gateway-data-", ignore_cleanup_errors=True) as name:
        shutil.chown(name, 10001, 10001)
        yield Path(name)


def is_ready(url: str) -> bool:
    """Tell if a gateway is ready."""
    try:
        return httpx2.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def writable_in(image: Image, data: Path) -> list[str]:
    """The directories in which the image's user can make a file, the uppermost of each tree."""
    # It may not even look into some.
    search = "find / -path /proc -prune -o -type d -writable -print 2>/dev/null || true"
    found = image.run(data, search).split()
    return sorted(one for one in found if str(Path(one).parent) not in found)


def mebibytes(number: int) -> str:
    return f"{number / 2**20:.0f} MiB"


def expect_contents(image: Image, data: Path, name: str, report: Report) -> None:
    """Expect the user, the few writable paths and no secret; report the sizes."""
    assert (image.config["User"], image.command) == (USER, ["gateway", "serve"])
    assert image.run(data, "id -u; id -g").split() == ["10001", "10001"]
    assert writable_in(image, data) == WRITABLE
    assert [one for one in image.config["Env"] if "KEY" in one or "DATABASE" in one] == []
    report.add(f"{name} image: /opt/gateway", mebibytes(image.size_of("opt/gateway")))
    report.add(f"{name} image: writable on a read-only root", ", ".join(WRITABLE))


def expect_to_serve(
    image: Image, data: Path, name: str, report: Report, **environment: str
) -> None:
    """Expect it to serve and to make images of the sandbox; report start and memory."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = data.with_suffix(".log")
    own = environment | {"GATEWAY_PORT": str(port), "GATEWAY_HOST": "127.0.0.1"}
    begun = time.monotonic()
    with image.running(data, log, **own) as process:
        until_reached(lambda: is_ready(url), process, log)
        report.add(f"{name} image: first start to ready", taken(begun, process.pid))
        key = key_for(image, process, own)
        with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as http:
            for _ in range(IMAGES):
                made = http.post("/v1/images/generations", json=BODY, timeout=60)
                assert made.status_code == 200, made.text
        report.add(
            f"{name} image: memory after {IMAGES} images", mebibytes(memory_bytes(process.pid))
        )
    log.unlink()
    begun = time.monotonic()
    with image.running(data, log, **own) as process:
        until_reached(lambda: is_ready(url), process, log)
        report.add(f"{name} image: a later start to ready", taken(begun, process.pid))
    log.unlink()


def taken(begun: float, pid: int) -> str:
    """The time since a start, and the processor's part of it."""
    return f"{time.monotonic() - begun:.1f} s, {cpu_seconds(pid):.1f} s of them on a processor"


def key_for(image: Image, process: subprocess.Popen[bytes], environment: Mapping[str, str]) -> str:
    """A test key of a new tenant, made by the image's own command."""
    image.run_beside(process, "gateway tenants create acme", **environment)
    create = "gateway keys create --tenant acme --test --json"
    return str(json.loads(image.run_beside(process, create, **environment))["key"])


def test_the_production_image_serves_on_a_read_only_root_and_holds_no_secret(
    builder: Builder, data: Path, tmp_path: Path, report: Report
) -> None:
    canary = f"canary-{secrets.token_hex(16)}"
    context = copied_checkout(tmp_path, ROOT)
    plant(context, canary)
    marker = f"marker-{secrets.token_hex(16)}"
    with (context / "gateway/__init__.py").open("a") as package:
        package.write(f"# {marker}\n")
    image = builder.build("production", context)
    assert holders_of(marker, builder.folder) != []  # it would be found
    assert holders_of(canary, builder.folder) == []
    expect_contents(image, data, "production", report)
    with running_postgres() as postgres:
        role = "CREATE ROLE image_gateway LOGIN CREATEROLE PASSWORD 'a-password'"
        run(
            [postgres.bin / "psql", "--quiet", "--command", role],
            environment=postgres.superuser,
        )
        run(
            [postgres.bin / "createdb", "--owner=image_gateway", "image_gateway"],
            environment=postgres.superuser,
        )
        address = f"postgresql://image_gateway:a-password@127.0.0.1:{postgres.port}/image_gateway"
        expect_to_serve(
            image,
            data,
            "production",
            report,
            GATEWAY_DATABASE_URL=address,
            GATEWAY_MASTER_KEY=MASTER_KEY,
        )


def test_the_standalone_image_serves_by_itself_on_a_read_only_root(
    builder: Builder, data: Path, tmp_path: Path, report: Report
) -> None:
    image = builder.build("standalone", copied_checkout(tmp_path, ROOT))
    expect_contents(image, data, "standalone", report)
    expect_to_serve(image, data, "standalone", report)
