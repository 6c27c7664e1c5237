"""The operating system user of the embedded Postgres.

Postgres refuses to run as root. Started by root, each data directory therefore gets its own user
number, so that the servers of two gateways on one machine cannot read each other's data.
"""

import os
import pwd
import secrets
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import ConfigurationError

ROOT = 0
FORMER_SHARED_ACCOUNT = "pgserver"
"""The account that earlier versions shared among all gateways started by root."""
INITDB_ACCOUNT = "igw-initdb"
"""A named account, which only `initdb` needs; it runs for a second, once per data directory."""
PRIVATE_IDS = ((0x7000_0000, 0x7FFF_FFFD), (30_000, 59_999))
"""Ranges of user numbers: one listed as unused in systemd's UIDS-GIDS, else, in a container that
maps only some, one in which its own accounts are sparse."""


@dataclass(frozen=True, slots=True)
class SystemAccount:
    """A user and a group of the system, by number; `is_other`: not the user of this process."""

    uid: int
    gid: int
    is_other: bool

    @property
    def popen_options(self) -> dict[str, object]:
        """Build the options of `subprocess.Popen` to start a process as this user."""
        if not self.is_other:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def own_account() -> SystemAccount:
    """Return the account of this process."""
    return SystemAccount(os.geteuid(), os.getegid(), is_other=False)


def login_of_this_process() -> str:
    """Return the name of this process' user, else its number."""
    return _name_of(os.getuid())


def own_login() -> str:
    """Return the name of this process' user.

    Raises:
        ConfigurationError: its number has no name, as in some containers.
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise ConfigurationError(
            f"The user number {os.geteuid()} has no name on this system (/etc/passwd), and the "
            "embedded Postgres needs one. Add it, run as a user that has one, or set "
            "GATEWAY_DATABASE_URL."
        ) from None


def serving_account(pgdata: Path) -> SystemAccount:
    """Return the account of an existing cluster; one of root or the shared account is moved.

    Raises:
        ConfigurationError: the directory belongs to another user.
    """
    status = pgdata.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigurationError(f"{pgdata} is not a directory.")
    if os.geteuid() != ROOT:
        if status.st_uid != os.geteuid():
            raise ConfigurationError(
                f"{pgdata} belongs to the user {_name_of(status.st_uid)}; this process runs as "
                f"{_name_of(os.geteuid())}. Run the gateway as its owner."
            )
        return own_account()
    if status.st_uid not in {ROOT, _uid_of(FORMER_SHARED_ACCOUNT)}:
        return SystemAccount(status.st_uid, status.st_gid, is_other=True)
    account = private_account()
    give(pgdata, account)
    return account


def private_account() -> SystemAccount:
    """Choose an account: the process' own, or for root one that nothing else uses."""
    if os.geteuid() != ROOT:
        return own_account()
    for first, last in PRIVATE_IDS:
        if _is_mapped(first, last):
            number = first + secrets.randbelow(last - first + 1)
            while _has_name(number):
                number = first + secrets.randbelow(last - first + 1)
            return SystemAccount(number, number, is_other=True)
    raise ConfigurationError(
        "The embedded Postgres does not run as root, and this container has no other user numbers. "
        "Run the gateway as another user, or set GATEWAY_DATABASE_URL."
    )


def initdb_account() -> SystemAccount:
    """Return a named account for `initdb`; as root, create it if it is missing.

    Raises:
        ConfigurationError: it cannot be created.
    """
    if os.geteuid() != ROOT:
        own_login()
        return own_account()
    if _uid_of(INITDB_ACCOUNT) is None:
        _make_account(INITDB_ACCOUNT)
    entry = pwd.getpwnam(INITDB_ACCOUNT)
    return SystemAccount(entry.pw_uid, entry.pw_gid, is_other=True)


def give(folder: Path, account: SystemAccount) -> None:
    """Change the owner of a directory and everything in it; links are not followed."""
    for _, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, account.uid, account.gid, dir_fd=descriptor, follow_symlinks=False)
    os.chown(folder, account.uid, account.gid, follow_symlinks=False)


def _make_account(name: str) -> None:
    program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    options = (
        "--system",
        "--no-create-home",
        "--home-dir",
        "/nonexistent",
        "--shell",
        "/bin/false",
    )
    try:
        if program is not None:
            subprocess.run(  # noqa: S603 - the system's own program
                [program, *options, name],
                check=False,
                capture_output=True,
                stdin=subprocess.DEVNULL,
            )
    except OSError:
        pass  # reported below
    if _uid_of(name) is None:
        raise ConfigurationError(
            "Postgres does not run as root, and the account that makes its data directory cannot "
            f"be added (useradd --system {name}). Add it, run the gateway as another user, or set "
            "GATEWAY_DATABASE_URL."
        )


def _uid_of(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _name_of(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name if _has_name(uid) else str(uid)


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _is_mapped(first: int, last: int) -> bool:
    """Tell if this user namespace (`user_namespaces(7)`) maps these users and groups."""
    for kind in ("uid", "gid"):
        path = Path(f"/proc/self/{kind}_map")
        if path.exists() and not any(
            start <= first and last < start + count
            for start, _, count in (
                map(int, line.split()) for line in path.read_text().splitlines()
            )
        ):
            return False
    return True
