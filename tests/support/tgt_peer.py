"""tgtd with three targets, as foreign_targets.py wants a peer: open with three LUNs, CHAP, mutual CHAP."""
from __future__ import annotations

import hashlib
from pathlib import Path

from tests.support.tgtd import Tgtd

BASE = "iqn.2026-01.example:tgt"


class TgtPeer:
    """Runs until `close`."""

    # tgtd takes 7 for SHA-1, which is 6, and knows no other but MD5.
    algorithms = (5,)
    compares = False

    def __init__(self, folder: Path) -> None:
        from tests.interop.foreign_targets import MUTUAL_SECRET, MUTUAL_USER, SECRET, USER

        self._folder = folder
        self._tgtd = Tgtd(folder, f"{BASE}:plain", size_bytes=8 << 20)
        self.luns = {1: 8 << 20, 2: 4 << 20, 9: 4 << 20}
        self.portal = self._tgtd.portal
        for lun in (2, 9):
            self._add_lun(1, lun)
        admin = self._tgtd.admin
        admin("--op", "new", "--mode", "account", "--user", USER, "--password", SECRET)
        admin("--op", "new", "--mode", "account", "--user", MUTUAL_USER, "--password", MUTUAL_SECRET)
        for tid, name in ((2, "chap"), (3, "mutual")):
            admin("--op", "new", "--mode", "target", "--tid", str(tid), "--targetname", f"{BASE}:{name}")
            self._add_lun(tid, 1)
            admin("--op", "bind", "--mode", "account", "--tid", str(tid), "--user", USER)
            admin("--op", "bind", "--mode", "target", "--tid", str(tid), "--initiator-address", "ALL")
        admin("--op", "bind", "--mode", "account", "--tid", "3", "--user", MUTUAL_USER, "--outgoing")
        for key in ("HeaderDigest", "DataDigest"):
            admin("--op", "update", "--mode", "target", "--tid", "1", "--name", key, "--value", "CRC32C,None")

    def _add_lun(self, tid: int, lun: int) -> None:
        image = self._folder / f"image-{tid}-{lun}"
        image.write_bytes(bytes(4 << 20))
        where = ("--mode", "logicalunit", "--tid", str(tid), "--lun", str(lun))
        self._tgtd.admin("--op", "new", *where, "--backing-store", str(image))
        self._tgtd.admin("--op", "update", *where, "--params", f"scsi_sn=disk-{tid}-{lun},thin_provisioning=1")

    def url(self, name: str = "plain", lun: int = 1, login: str = "") -> str:
        return f"iscsi://{login}{self.portal}/{BASE}:{name}/{lun}"

    def sum(self, disk: str) -> str:
        image = self._tgtd.image if disk == "1" else self._folder / f"image-1-{disk}"
        return hashlib.sha256(image.read_bytes()).hexdigest()

    def close(self) -> None:
        self._tgtd.close()
