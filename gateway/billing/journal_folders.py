"""Folders that can hold a journal: on a file system of this machine's kernel alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships without types

UNSUITABLE = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "webdav", "davfs", "ncpfs"),
        *("9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "afs", "coda"),
        *("ceph", "lustre", "gpfs", "beegfs", "glusterfs", "gfs2", "ocfs2", "orangefs"),
        *("fuse", "fuseblk", "fusefs", "macfuse", "osxfuse"),
    }
)
"""Other machines do not see a lock there, or a page is written by a process that can end too."""
LOCAL_FUSE = "fuse.fuse-overlayfs"
"""The root of a container without root rights: the layers are on the machine's own disk."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system."""

    path: Path
    kind: str


Mounts = Callable[[], Sequence[Mount]]


def mounts_of_machine() -> Sequence[Mount]:
    """Every mount that this process sees, in the order in which they were made."""
    return [Mount(Path(one.mountpoint), one.fstype) for one in psutil.disk_partitions(all=True)]


def unsuitable_kind(folder: Path, mounts: Mounts = mounts_of_machine) -> str | None:
    """The kind of the folder's file system where it cannot hold a journal; None where it can."""
    resolved = folder.resolve()
    above = [one for one in mounts() if resolved.is_relative_to(one.path)]
    if not above:
        return None
    # The deepest one; of several at one path the last one covers the others.
    kind = max(enumerate(above), key=lambda one: (len(one[1].path.parts), one[0]))[1].kind
    is_unsuitable = kind in UNSUITABLE or (kind.startswith("fuse.") and kind != LOCAL_FUSE)
    return kind if is_unsuitable else None
