"""The Linux kernel's own iSCSI target (LIO) as a peer: a guest without privileges on the host, under QEMU.

The guest is made and started by a folder with `build-guest` and `run-guest`: the one named by VMBENCH, else
../shared/vmbench beside the checkout. `build-guest` downloads Debian's kernel and a few packages (about 37 MB) once;
the guest then boots in 3 to 9 s.
"""
from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.support.ports import free_port
from tests.support.processes import Program

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests/interop/lio_target.sh"
ADDRESS = "127.0.2.15"          # the guest's, for the host too
BASE = "iqn.2026-01.example:lio"
BOOT_SECONDS = 90.0
PLAIN_LUNS = {0: 16 << 20, 1: 8 << 20, 7: 8 << 20}


def bench_folder() -> Path:
    return Path(os.environ.get("VMBENCH") or ROOT.parent / "shared/vmbench")


def cache_folder() -> Path:
    """Where build-guest puts what it made."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VMBENCH_CACHE") or Path(home) / "vmbench")


def missing() -> str:
    """Why no guest can be started; "" when one can."""
    if not (bench_folder() / "run-guest").exists():
        return f"there is no {bench_folder()}/run-guest; VMBENCH may name another folder"
    if shutil.which("qemu-system-x86_64") is None:
        return "qemu-system-x86_64 is not installed (Debian: qemu-system-x86)"
    if not (cache_folder() / "image/cloud/base.cpio").exists():
        return f"the guest is not built: {bench_folder()}/build-guest"
    return ""


class LioGuest:
    """Runs until `close`. Three targets: BASE:plain (PLAIN_LUNS, open), BASE:chap and BASE:mutual (LUN 0, 8 MiB)."""

    compares = True
    luns = PLAIN_LUNS

    def __init__(self) -> None:
        from tests.interop.foreign_targets import HOST, MUTUAL_SECRET, MUTUAL_USER, SECRET, USER

        self.portal = f"{ADDRESS}:{free_port(ADDRESS)}"
        port = self.portal.rpartition(":")[2]
        settings = {"PORTAL": self.portal, "BASE": BASE, "HOST": HOST, "USER": USER, "SECRET": SECRET,
                    "MUTUAL_USER": MUTUAL_USER, "MUTUAL_SECRET": MUTUAL_SECRET}
        words = [str(bench_folder() / "run-guest"), "--stdin", "--timeout", "600", "--forward", f"{self.portal}:{port}"]
        for name, value in settings.items():
            words += ["--env", f"{name}={value}"]
        for module in cache_folder().glob("trees/linux-image-*/**/kernel/crypto/sha3_generic.ko"):
            words += ["--add", str(module)]
        self._asked = 0
        self.program = Program([*words, str(SCRIPT)], listens=True)
        try:
            self.kernel, has_sha3 = self.program.wait_line("READY ", BOOT_SECONDS).split()[1:]
            self.algorithms = (5, 6, 7, 8) if has_sha3 == "sha3" else (5, 6, 7)
        except BaseException:
            self.close()
            raise

    def url(self, name: str = "plain", lun: int = 0, login: str = "") -> str:
        return f"iscsi://{login}{self.portal}/{BASE}:{name}/{lun}"

    def ask(self, command: str) -> str:
        """Has the guest do something; its answer."""
        before = sum(line.startswith("DONE ") for line in self.program.output)
        self.program.tell(command)
        self.program.wait_for(lambda lines: sum(line.startswith("DONE ") for line in lines) > before, 60)
        return [line for line in self.program.output if line.startswith("DONE ")][before].split()[-1]

    def sum(self, disk: str) -> str:
        """SHA-256 of a disk, read by the guest from its own file."""
        return self.ask(f"sum {disk}")

    def close(self) -> None:
        if self.program.running:
            self.program.stop(20)
        else:
            self.program.wait(5)
