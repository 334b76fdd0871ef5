"""Foreign main, foreign host: tgtd is main storage, QEMU's initiator the host, fio its load; only the gateway is ours.

    python -m tests.interop.foreign_host --detours 10

The host never rests: two lanes of fio, each on its half of the volume, write every block of their half once a pass and
verify what they wrote, pass after pass, while the volume is detoured through the gateway and home again. What has to
hold: fio reports no error; each backup is byte for byte the copy of tgtd's backing file that the hook made at the
freeze; in the end fio finds in tgtd's backing file what it wrote last.

The gateway's address is 127.0.0.2 and the host's 127.0.0.1, because tgtd does not redirect a login that comes from the
redirect's own address. Needs root, tgtd, qemu-nbd with its iSCSI driver, and fio.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.ports import free_port
from tests.support.processes import Program, detour, detour_ready
from tests.support.site import same_files
from tests.support.tgtd import Tgtd

IQN = "iqn.2026-01.org.detour:foreign"
VOLUME = "foreign"
DETOUR_SECONDS_MAX = 90.0
PASS_SECONDS_MAX = 120.0
LANES = 2
DEPTH = 32                      # of both lanes together


@dataclass
class Report:
    """What came out. `faults` holds a sentence for everything that is wrong."""

    detours: int = 0
    passes: int = 0
    host_writes: int = 0
    host_reads: int = 0
    host_errors: int = 0
    longest_ms: float = 0.0
    backups_equal: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults


class Lane(threading.Thread):
    """fio on one part of the volume, pass after pass, until `finish`; each pass has a seed of its own."""

    def __init__(self, number: int, socket: Path, offset_bytes: int, size_bytes: int, folder: Path) -> None:
        super().__init__(name=f"lane-{number}", daemon=True)
        self.number = number
        self.socket = socket
        self.part = [f"--offset={offset_bytes}", f"--size={size_bytes}"]
        self.folder = folder
        self.finishing = threading.Event()
        self.seed = 1000 * (number + 1)
        self.reports: list[dict[str, Any]] = []
        self.trouble = ""
        self.process: Program | None = None

    def words(self) -> list[str]:
        # The pattern, not a checksum of the block: what an earlier pass left at the same place must not pass for good.
        return ["fio", f"--name=lane{self.number}", "--rw=randwrite", "--bs=4k", *self.part, "--verify=pattern",
                f"--verify_pattern=0x{self.seed:08x}%o", "--verify_fatal=1", f"--randseed={self.seed}",
                "--output-format=json"]

    def run(self) -> None:
        while not self.finishing.is_set() and not self.trouble:
            self.seed += 1
            self.one_pass()

    def one_pass(self) -> None:
        self.process = Program([*self.words(), "--ioengine=nbd", f"--uri=nbd+unix:///?socket={self.socket}",
                                f"--iodepth={DEPTH // LANES}", "--verify_backlog=256"], cwd=self.folder)
        try:
            code = self.process.wait(PASS_SECONDS_MAX)
            self.keep(code, self.process)
        except AssertionError as error:
            self.trouble = str(error)

    def keep(self, code: int, process: Program) -> None:
        text = "\n".join(process.output)
        try:
            job = json.loads(text[text.index("{"):])["jobs"][0]
        except (ValueError, KeyError, IndexError):
            self.trouble = f"fio ended with {code}\n{process.said()}"
            return
        self.reports.append(job)
        if code or job["error"]:
            self.trouble = f"fio ended with {code}, error {job['error']}\n{process.said()}"

    def end(self) -> None:
        """Lets the pass under way end."""
        self.finishing.set()
        self.join(PASS_SECONDS_MAX)

    def check_medium(self, image: Path) -> str:
        """What fio says against finding its last pass in a file; "" when all is there."""
        with Program([*self.words(), "--ioengine=psync", f"--filename={image}", "--verify_only"],
                     cwd=self.folder) as process:
            code = process.wait(PASS_SECONDS_MAX)
            return "" if code == 0 else process.said()


class World:
    """tgtd, gateway, qemu-nbd and the lanes. A context manager."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        self.size_bytes = size_bytes
        self.pit = folder / "pit"
        self.api = f"unix:{folder / 'api.sock'}"
        self.lanes: list[Lane] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> World:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        self.main = Tgtd(self.folder / "tgt", IQN, size_bytes=self.size_bytes)
        self._stack.callback(self.main.close)
        gateway, _ = detour_ready("serve", "-c", self._config())
        self._stack.enter_context(gateway)
        self.gateway = gateway
        socket = self.folder / "nbd.sock"
        self.host = Program(["qemu-nbd", "-f", "raw", "-k", socket, "-t", "-e", str(LANES + 1), "--cache=none",
                             f"iscsi://{self.main.portal}/{IQN}/1"])
        self._stack.callback(self._end_host)
        deadline = time.monotonic() + 20
        while not socket.exists():
            if time.monotonic() > deadline or not self.host.running:
                raise AssertionError(f"qemu-nbd does not start\n{self.host.said()}")
            time.sleep(0.02)
        half = self.size_bytes // LANES
        self.lanes = [Lane(number, socket, number * half, half, self.folder) for number in range(LANES)]
        self._stack.callback(self._end_lanes)

    def _config(self) -> Path:
        path = self.folder / "detour.toml"
        port = free_port("127.0.0.2")
        path.write_text(f"""[gateway]
listen = ["127.0.0.2:{port}"]
advertise = "127.0.0.2:{port}"
state = "{self.folder / 'state'}"
api = "{self.api}"

[volume.{VOLUME}]
main = "iscsi://{self.main.portal}/{IQN}/1"
journal = {{ path = "{self.folder / 'journal'}", size = "256MiB" }}
redirect = {{ driver = "tgt", env = {{ TGT_IPC_SOCKET = "{self.main.environment['TGT_IPC_SOCKET']}" }} }}
hooks = {{ frozen = ["cp", "--sparse=never", "--", "{self.main.image}", "{self.pit}"] }}

[store.raw]
url = "file://{self.folder / 'backups'}/"
""")
        return path

    def _end_host(self) -> None:
        self.host.kill()

    def _end_lanes(self) -> None:
        for lane in self.lanes:
            lane.finishing.set()
        for lane in self.lanes:
            if lane.is_alive() and lane.process is not None:
                lane.process.process.kill()
            if lane.ident is not None:
                lane.join(10)

    def backup(self) -> dict[str, Any]:
        """One detour by the command line; its last document, with the exit code as `code`."""
        with detour("backup", VOLUME, "--store", "raw", "--json", env={"DETOUR_API": self.api}) as program:
            code = program.wait(DETOUR_SECONDS_MAX)
            if not program.output:
                raise AssertionError(f"detour backup ended with {code}\n{program.said()}\n{self.gateway.said()}")
            return {**json.loads(program.output[-1]), "code": code}


def check_backup(world: World, document: dict[str, Any], report: Report) -> None:
    """The backup against the shadow copy that the hook made."""
    number = report.detours
    if document["code"] != 0 or document["result"] != "done":
        report.faults.append(f"detour {number} ended with {document['code']}: {document.get('result')}, "
                             f"{document.get('reason')}")
        return
    report.faults += [f"detour {number}: {warning}" for warning in document["warnings"]]
    backup = Path(unquote(urlsplit(document["backup"]["url"]).path))
    difference = same_files(world.pit, backup)
    if difference is None:
        report.backups_equal += 1
    else:
        report.faults.append(f"detour {number}: the backup differs from the point in time at byte {difference}")
    world.pit.unlink()
    backup.unlink()


def collect(world: World, report: Report) -> None:
    """What the lanes saw, and what is on the medium."""
    for lane in world.lanes:
        lane.end()
        if lane.is_alive():
            report.faults.append(f"lane {lane.number}: the last pass did not end")
        if lane.trouble:
            report.faults.append(f"lane {lane.number}: {lane.trouble}")
    world.host.stop()
    for lane in world.lanes:
        said = lane.check_medium(world.main.image)
        if said:
            report.faults.append(f"lane {lane.number}: main does not hold what fio wrote\n{said}")
        for job in lane.reports:
            report.passes += 1
            report.host_writes += job["write"]["total_ios"]
            report.host_reads += job["read"]["total_ios"]
            report.host_errors += job["error"] != 0
            report.longest_ms = max(report.longest_ms, job["write"]["clat_ns"]["max"] / 1e6,
                                    job["read"]["clat_ns"]["max"] / 1e6)
    if report.host_errors:
        report.faults.append(f"{report.host_errors} passes of fio ended with an error")
    if "RedirectAddress" in world.main.target("show"):
        report.faults.append("main still redirects")


def run(folder: Path, detours: int, size_bytes: int, home_seconds: float = 0.5) -> Report:
    """The whole scenario. Faults are in the report; AssertionError when a program does not even start."""
    report = Report()
    started = time.monotonic()
    with World(folder, size_bytes) as world:
        for lane in world.lanes:
            lane.start()
        time.sleep(home_seconds)
        for _ in range(detours):
            report.detours += 1
            check_backup(world, world.backup(), report)
            time.sleep(home_seconds)
            if report.faults or any(lane.trouble for lane in world.lanes):
                break
        collect(world, report)
        if report.faults:
            report.faults.append(f"gateway: {world.gateway.said()}")
    report.seconds = time.monotonic() - started
    return report


def missing() -> str:
    """Which program the scenario lacks; "" when it can run."""
    for words in (["qemu-nbd", "--version"], ["fio", "--version"]):
        try:
            subprocess.run(words, check=True, capture_output=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            return words[0]
    return "" if os.geteuid() == 0 else "root"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detours", type=int, default=10)
    parser.add_argument("--mib", type=int, default=64, help="size of the volume")
    parser.add_argument("--home", type=float, default=0.5, metavar="SECONDS", help="time at home between two detours")
    given = parser.parse_args()
    lacks = missing()
    if lacks:
        print(f"cannot run: {lacks} is missing", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="detour-foreign-") as folder:
        report = run(Path(folder), given.detours, given.mib << 20, given.home)
    for fault in report.faults:
        print(f"FAULT {fault}", file=sys.stderr)
    print(json.dumps({"ok": report.ok, "detours": report.detours, "backups_equal": report.backups_equal,
                      "host": {"passes": report.passes, "writes": report.host_writes, "reads": report.host_reads,
                               "errors": report.host_errors, "longest_ms": round(report.longest_ms, 1)},
                      "seconds": round(report.seconds, 1)}))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
