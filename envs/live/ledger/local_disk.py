"""Where a ledger's file may lie: on a local disk, readable by its owner alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")  # of Linux; elsewhere nothing tells what kind a disk is
# two machines that mount one of these don't share the locks and the memory that SQLite's write-ahead log needs
NETWORK_DISKS = {
    "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre",
    "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs",
    "vmhgfs",
}  # fmt: skip
LOCAL_FUSE = {"fuse.ext2", "fuse.ntfs-3g", "fuse.fuse-overlayfs", "fuseblk"}  # FUSE is a network disk as a rule


def network_disk(path: Path, mounts: Path = MOUNTS) -> str | None:
    """Return the kind of the network disk that a file lies or would lie on, None for a local disk."""
    if not mounts.exists():
        return None
    place = path.resolve()
    best, kind = -1, ""
    for line in mounts.read_text().splitlines():
        before, _, after = line.partition(" - ")
        where = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4]))
        if (place == where or where in place.parents) and len(where.parts) >= best:  # the later of two covers the other
            best, kind = len(where.parts), after.split()[0]
    over_network = kind in NETWORK_DISKS or (kind.startswith("fuse") and kind not in LOCAL_FUSE)
    return kind if over_network else None


def create_private(path: Path) -> None:
    """Create an empty file that its owner alone may read and write, unless there is a file."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        pass
