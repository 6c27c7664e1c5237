"""The Dockerfile without an engine: built by Debian's buildah, run in its own root by chroot.

It needs root, buildah and debootstrap. The base is a minimal Debian with its Python, in the place
of Docker's `python:…-slim`.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # ships without types
import pytest

from tests.rehearsal.programs import IS_ROOT, PATH, expect_registry, program, running

SUITE = "bookworm"
PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"
BASE = "localhost/base"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
BUILD_SECONDS = 1500
USER = "10001:10001"
DATA = "var/lib/image-gateway"
IN_ROOT = """
set -eu
root=$1; data=$2; user=$3; shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind "$data" "$root/DATA"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$root/dev"
mkdir -m 1777 "$root/dev/shm"
for device in null zero random urandom; do
  touch "$root/dev/$device" && mount --bind "/dev/$device" "$root/dev/$device"
done
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" "$root" "$@"
""".replace("DATA", DATA)
"""A read-only root; the data directory, /tmp and /dev/shm are writable, as in a container."""


@dataclass(frozen=True)
class Builder:
    """A store of images in one folder; the base is in it."""

    folder: Path

    def __call__(self, *arguments: str | Path) -> str:
        """Run buildah; what it prints."""
        own: list[str | Path] = ["--root", self.folder / "images", "--runroot", self.folder / "run"]
        return _run(["buildah", *own, "--storage-driver", "vfs", *arguments])

    def make_base(self) -> None:
        """Install a minimal Debian with Python."""
        container = self("from", "scratch").strip()
        root = self("mount", container).strip()
        _run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, root])
        self("commit", "--quiet", "--rm", container, BASE)

    def build(self, target: str, context: Path) -> "Image":
        """Build a target of the Dockerfile with that base."""
        # The registry's authority is that of this machine; it is in no layer.
        mounted = f"{AUTHORITIES}:{AUTHORITIES}:ro"
        self(
            *("build", "--isolation", "chroot", "--network", "host", "--format", "docker"),
            *("--volume", mounted, "--build-arg", f"BASE={BASE}"),
            *("--target", target, "--tag", target, context),
        )
        container = self("from", target).strip()
        config = json.loads(self("inspect", "--type", "image", target))["Docker"]["config"]
        return Image(Path(self("mount", container).strip()), config)


@dataclass(frozen=True)
class Image:
    """A built image: its files, and what it says of itself."""

    root: Path
    config: dict[str, Any]

    @property
    def command(self) -> list[str]:
        """Its entry point and arguments."""
        return [*self.config["Entrypoint"], *self.config["Cmd"]]

    @contextmanager
    def running(
        self, data: Path, log: Path, *arguments: str, **environment: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run its command, as its user, on a read-only root."""
        own = self._environment | environment
        with running(
            [*self._entered(data), *self.command, *arguments], log, environment=own
        ) as process:
            yield process

    def run(self, data: Path, script: str) -> str:
        """Run a script of its shell, as its user; what it prints."""
        return _run([*self._entered(data), "sh", "-c", script], self._environment)

    def run_beside(self, process: subprocess.Popen[bytes], script: str, **environment: str) -> str:
        """Run a script in the running container, as its user; what it prints."""
        user, group = self.config["User"].split(":")
        inside = ["nsenter", f"--target={process.pid}", "--mount", "--root", f"--setuid={user}"]
        command = [*inside, f"--setgid={group}", "sh", "-c", script]
        return _run(command, self._environment | environment)

    @property
    def _environment(self) -> dict[str, str]:
        own = dict(pair.split("=", 1) for pair in self.config["Env"])
        return own | {"HOME": f"/{DATA}"}

    def _entered(self, data: Path) -> list[str]:
        user = self.config["User"]
        script = ["sh", "-c", IN_ROOT, "sh"]
        return ["unshare", "--mount", *script, str(self.root), str(data), user]

    def size_of(self, path: str) -> int:
        """The bytes of a tree in it."""
        return int(_run(["du", "-sb", self.root / path]).split()[0])


def _run(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> str:
    ended = subprocess.run(
        command,
        check=False,
        env={"PATH": PATH, "HOME": "/root", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
    )
    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended.stdout


def expect_tools(folder: Path) -> None:
    """Skip the test where images cannot be built."""
    if not IS_ROOT:
        pytest.skip("building images without an engine needs root")
    program("buildah", "buildah")
    program("debootstrap", "debootstrap")
    expect_registry(folder)


def plant(context: Path, canary: str) -> None:
    """Put secrets where people keep them in a checkout."""
    for name in (".env", "master.key", "metrics.key", "quickstart.json", "deploy/compose/.env"):
        (context / name).write_text(canary)


def copied_checkout(folder: Path, root: Path) -> Path:
    """A copy of what git knows of the checkout, to build from."""
    context = folder / "context"
    for name in _run(["git", "-C", root, "ls-files", "-z"]).rstrip("\0").split("\0"):
        if (root / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, context / name)
    return context


def holders_of(canary: str, folder: Path) -> list[str]:
    """The files below a folder that contain the text."""
    found = subprocess.run(
        ["grep", "-rlsF", canary, folder], check=False, capture_output=True, text=True
    )
    return found.stdout.splitlines()


def cpu_seconds(pid: int) -> float:
    """The processor time of a process and of its children that have ended."""
    return float(sum(psutil.Process(pid).cpu_times()[:4]))


def memory_bytes(pid: int) -> int:
    """The memory of a process and its children, shared pages divided among them."""
    from_kernel = Path(f"/proc/{pid}/smaps_rollup").read_text()
    [own] = [int(line.split()[1]) for line in from_kernel.splitlines() if line.startswith("Pss:")]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own * 1024 + sum(memory_bytes(int(child)) for child in children)
