"""File systems: those local to this machine's kernel, and those that others serve."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships without types

REMOTE = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "webdav", "davfs", "ncpfs"),
        *("9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "afs", "coda"),
        *("ceph", "lustre", "gpfs", "beegfs", "glusterfs", "gfs2", "ocfs2", "orangefs"),
        *("fuse", "fuseblk", "fusefs", "macfuse", "osxfuse"),
    }
)
"""File systems whose locks other machines do not see, or whose pages a user process writes."""
LOCAL_FUSE = "fuse.fuse-overlayfs"
"""The root file system of a rootless container: its layers are on the machine's own disk."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system."""

    path: Path
    kind: str


Mounts = Callable[[], Sequence[Mount]]


def mounts_of_machine() -> Sequence[Mount]:
    """List the mounts visible to this process, in mount order."""
    return [Mount(Path(one.mountpoint), one.fstype) for one in psutil.disk_partitions(all=True)]


def remote_kind(folder: Path, mounts: Mounts = mounts_of_machine) -> str | None:
    """Return the folder's file system type if it is not local to this kernel, else None."""
    resolved = folder.resolve()
    above = [one for one in mounts() if resolved.is_relative_to(one.path)]
    if not above:
        return None
    # The deepest mount; of several at one path the last hides the others.
    kind = max(enumerate(above), key=lambda one: (len(one[1].path.parts), one[0]))[1].kind
    is_remote = kind in REMOTE or (kind.startswith("fuse.") and kind != LOCAL_FUSE)
    return kind if is_remote else None
