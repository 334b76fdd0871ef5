"""`detour demo`: the whole job on one machine, with proof.

    host (load generator in this process, through the project's own initiator)
       |  reads, writes and checks all the time
       v
    main     `detour target main.img` in a process of its own; its redirect API on a Unix socket
    gateway  `detour serve` in a process of its own; its hook `frozen` copies main.img to pit.img by itself

The backup is then compared with pit.img, and main.img with what the host has written, byte for byte, by plain reads of
the files. Everything lives in one temporary folder and dies with this process.

With an image (`--image`) the host works on a copy of it: up to the point in time it only puts back what it has read, so
that the backup is the image; afterwards it writes stamps anywhere.
"""
from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detour.api.client import Client
from detour.bench import Load
from detour.children import Child
from detour.compare import Comparison, compare_expected, compare_files
from detour.errors import DetourError, StorageError, UsageError
from detour.iscsi.initiator import connect
from detour.runtime import Runtime
from detour.urls import FileUrl, IscsiUrl, format_size, parse_backup_url, parse_iscsi_url

IQN = "iqn.2026-01.org.detour:demo"
HOST_NAME = "iqn.2026-01.org.detour:demo-host"
VOLUME = "demo"
STORE = "demo"
SECTIONS = {"before": 0, "copy": 1, "catch_up": 2, "after": 3}
PHASE_SECTIONS = {"redirecting": "copy", "frozen": "copy", "copying": "copy", "abandoning": "catch_up",
                  "catching-up": "catch_up", "holding": "catch_up", "going-home": "catch_up", "home": "after"}
FREEZE_IS_OVER = ("copying", "catching-up", "holding", "going-home", "home")
SIZE_MIN = 16 * 2**20
JOURNAL_MIN = 64 * 2**20
JOURNAL_MAX = 2 * 2**30
UNIT_BYTES = 4096
HOST_DEPTH = 32
BACKUP_SECONDS_MAX = 3600.0
HOME_SECONDS_MAX = 10.0
SETTLE_SECONDS = 0.25

Tell = Callable[[str, str], None]


@dataclass(frozen=True)
class DemoOptions:
    """rate: host operations a second, half of them writes of 4 to 32 KiB. seconds: how long each of the sections before
    and after lasts, and about how long the copy takes. keep: a folder to work in that is not removed."""

    size_bytes: int = 256 * 2**20
    image: Path | None = None
    store_url: str | None = None
    seconds: float = 5.0
    rate: float = 1000.0
    keep: Path | None = None


@dataclass
class Proof:
    """What the demo ends with."""

    volume_bytes: int
    run: dict[str, Any] = field(default_factory=dict)
    backup: Comparison = field(default_factory=Comparison)
    main: Comparison = field(default_factory=Comparison)
    backup_seconds: float = 0.0
    backup_url: str = ""


# --- files and processes

def free_port() -> int:
    """A port on loopback that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def check_room(folder: Path, need_bytes: int) -> None:
    """Main, the shadow of the point in time, the backup, and the journal."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise StorageError(f"{folder} has {format_size(free)} free; the demo needs {format_size(need_bytes)}",
                           hint="Give a smaller --size, or set TMPDIR to a folder with more room.")


@contextlib.contextmanager
def work_folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="detour-demo-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def toml_text(value: str | Path) -> str:
    return json.dumps(str(value))           # a JSON string is a TOML string


def gateway_toml(folder: Path, main_url: str, port: int, volume_bytes: int, options: DemoOptions) -> str:
    """The gateway's configuration."""
    journal_bytes = min(max(JOURNAL_MIN, volume_bytes), JOURNAL_MAX)
    shadow = ["cp", "--", str(folder / "main.img"), str(folder / "pit.img")]
    store = options.store_url or f"file://{folder / 'backup.img'}"
    rate = max(16 * 2**20, round(volume_bytes / options.seconds)) if options.seconds else 0
    return f"""[gateway]
listen = ["127.0.0.1:{port}"]
advertise = "127.0.0.1:{port}"
state = {toml_text(folder / "state")}
api = {toml_text(f"unix:{folder / 'gateway.sock'}")}

[volume.{VOLUME}]
main = {toml_text(main_url)}
journal = {{ path = {toml_text(folder / "demo.journal")}, size = {journal_bytes} }}
redirect = {{ driver = "detour", api = {toml_text(f"unix:{folder / 'main.sock'}")} }}
hooks = {{ frozen = {json.dumps(shadow)} }}
copy = {{ rate = {rate} }}

[store.{STORE}]
url = {toml_text(store)}
"""


def make_main(folder: Path, options: DemoOptions) -> int:
    """main.img: a copy of the image, or empty. Answers its size."""
    main = folder / "main.img"
    if options.image is None:
        size = options.size_bytes
    else:
        if not options.image.is_file():
            raise UsageError(f"{options.image} is no file")
        size = options.image.stat().st_size
    if size < SIZE_MIN or size % 512:
        raise UsageError(f"a volume of {size} bytes: the demo takes whole sectors of 512 bytes, {SIZE_MIN} at least")
    check_room(folder, 3 * size + min(max(JOURNAL_MIN, size), JOURNAL_MAX))
    if options.image is None:
        with open(main, "xb") as file:
            file.truncate(size)
    else:
        shutil.copyfile(options.image, main)
    return size


# --- the host

class Host:
    """A running computer, as far as main is concerned: it reads, writes, and knows what it has written."""

    def __init__(self, runtime: Runtime, options: DemoOptions) -> None:
        self._runtime = runtime
        self._options = options
        self._store: Any = None
        self._map: mmap.mmap | None = None
        self.load: Load | None = None
        self._section = "before"

    async def start(self, main_url: IscsiUrl) -> None:
        """Logs in, fills the volume with stamps (or maps the image), and begins to work."""
        self._store = await connect(self._runtime, main_url, initiator_name=HOST_NAME)
        unit = UNIT_BYTES if self._store.size_bytes % UNIT_BYTES == 0 else max(512, self._store.block_bytes)
        shape: dict[str, Any] = {"unit_bytes": unit, "seed": 20260101}
        if self._options.image is None:
            fill = Load(self._runtime, self._store.handle, mode="sequential", read_share=0.0, depth=8,
                        io_bytes=256 * unit, **shape)
            await fill.run(operations=-(-self._store.size_bytes // (256 * unit)))
            fill.close()
            await self._store.flush()       # else the first flush of the work that is measured pays for it
            shape["versions"] = fill.generator.versions
        else:
            with open(self._options.image, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            shape |= {"base": self._map, "rewriting": True}
        self.load = Load(self._runtime, self._store.handle, rate=self._options.rate, depth=HOST_DEPTH, io_bytes=unit,
                         io_bytes_max=8 * unit, flush_every=200, **shape)
        await self.load.start()

    async def enter(self, section: str) -> None:
        """Later figures count for this section; going back is not possible."""
        assert self.load is not None
        if SECTIONS[section] > SECTIONS[self._section]:
            self._section = section
            await self.load.enter_section(SECTIONS[section])

    async def until_home(self) -> None:
        """Waits until the host's session is on main again and what had waited has been answered: the pause of the way
        home belongs to the catch-up, not to what comes after."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HOME_SECONDS_MAX):
                while self._store.state != "connected" or self._store.portal != self._store.target_url.portal:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(SETTLE_SECONDS)

    async def write_anything(self) -> None:
        """Behind the point in time, an image may be overwritten."""
        assert self.load is not None
        if self._map is not None:
            await self.load.rewrite(False)

    async def stop(self) -> None:
        """Ends the load, flushes and logs out."""
        if self.load is not None:
            await self.load.stop()
        if self._store is not None:
            await self._store.flush()
            await self._store.close()
            self._store = None

    def figures(self) -> dict[str, Any]:
        assert self.load is not None
        sections = {name: self.load.section(number) for name, number in SECTIONS.items()}
        return {
            "errors": self.load.total("errors"), "mismatches": self.load.total("mismatches"),
            "writes": self.load.total("writes"), "reads": self.load.total("reads"),
            "checked_bytes": self.load.total("checked_bytes"),
            "longest_stall_ms": round(self.load.total("longest_ns") / 1e6, 3),
            "p99_ms": {name: round(section.p99_ms(), 3) for name, section in sections.items()},
            "iops": {name: round(section.iops, 1) for name, section in sections.items()},
            "stall_ms": {name: round(section.counters["longest_ns"] / 1e6, 3) for name, section in sections.items()},
            **self.load.faults(),
        }


# --- the job

class Demo:
    """One demo. `tell(kind, text)` hears what happens: kinds are "step", "phase" and "note"."""

    def __init__(self, folder: Path, options: DemoOptions, tell: Tell) -> None:
        self._folder = folder
        self._options = options
        self._tell = tell
        self._stack = contextlib.AsyncExitStack()
        self._children: dict[str, Child] = {}
        self._host: Host | None = None
        self._phase = ""
        self.proof = Proof(make_main(folder, options))

    async def run(self) -> dict[str, Any]:
        """The whole job; answers the document."""
        begun = time.monotonic()
        async with self._stack:
            main_url = await self._start_main()
            await self._start_gateway(main_url)
            runtime = await self._stack.enter_async_context(Runtime())
            await self._start_host(runtime, main_url)
            await asyncio.sleep(self._options.seconds)
            await self._backup()
            assert self._host is not None
            await self._host.until_home()
            await self._host.enter("after")
            await asyncio.sleep(self._options.seconds)
            await self._host.stop()
            self._tell("step", "comparing every byte of backup and main")
            for name in ("gateway", "main"):
                await self._children[name].end()
            await self._compare(runtime)
            return self._document(time.monotonic() - begun)

    async def _child(self, name: str, arguments: list[str]) -> dict[str, str]:
        child = await Child.start(name, arguments, self._folder / f"{name}.log")
        self._children[name] = child
        self._stack.push_async_callback(child.end)
        return await child.wait_ready()

    async def _start_main(self) -> str:
        ready = await self._child("main", [
            "target", str(self._folder / "main.img"), "--listen", "127.0.0.1:0", "--iqn", IQN,
            "--api", f"unix:{self._folder / 'main.sock'}"])
        self._tell("step", f"main storage serves {format_size(self.proof.volume_bytes)} at {ready['portal']}")
        return f"iscsi://{ready['portal']}/{IQN}/0"

    async def _start_gateway(self, main_url: str) -> None:
        port = free_port()
        config = self._folder / "detour.toml"
        config.write_text(gateway_toml(self._folder, main_url, port, self.proof.volume_bytes, self._options))
        await self._child("gateway", ["serve", "-c", str(config)])
        self._tell("step", f"the gateway waits at 127.0.0.1:{port}")

    async def _start_host(self, runtime: Runtime, main_url: str) -> None:
        self._host = Host(runtime, self._options)
        self._stack.push_async_callback(self._stop_host_quickly)
        await self._host.start(parse_iscsi_url(main_url))
        self._tell("step", f"a host works on main: {self._options.rate:.0f} operations a second, half of them writes")

    async def _stop_host_quickly(self) -> None:
        """On the way out in disorder nothing is waited for that may never come."""
        assert self._host is not None
        with contextlib.suppress(DetourError, OSError, TimeoutError):
            async with asyncio.timeout(5):
                await self._host.stop()

    # --- the backup

    async def _backup(self) -> None:
        begun = time.monotonic()
        async with Client(f"unix:{self._folder / 'gateway.sock'}") as client:
            started = await client.start(VOLUME, store=STORE, tag="demo")
            async with asyncio.timeout(BACKUP_SECONDS_MAX):
                async for document in client.follow(started["id"]):
                    await self._on_progress(document)
                    self.proof.run = document
            if document["result"] == "done":
                self.proof.backup_url = (await client.backup(document["backup_id"]))["url"]
        self.proof.backup_seconds = time.monotonic() - begun

    async def _on_progress(self, document: dict[str, Any]) -> None:
        phase = document["phase"]
        if phase == self._phase:
            return
        self._phase = phase
        self._tell("phase", phase)
        assert self._host is not None
        if phase in PHASE_SECTIONS and phase != "home":
            await self._host.enter(PHASE_SECTIONS[phase])
        if phase in FREEZE_IS_OVER:
            await self._host.write_anything()

    # --- the proof

    async def _compare(self, runtime: Runtime) -> None:
        proof, folder = self.proof, self._folder
        assert self._host is not None and self._host.load is not None
        generator = self._host.load.generator
        proof.main = await asyncio.to_thread(compare_expected, folder / "main.img", generator, self._options.image)
        proof.backup = await self._compare_backup(runtime)

    async def _compare_backup(self, runtime: Runtime) -> Comparison:
        from detour.compare import compare_store
        from detour.stores import open_store

        proof, pit = self.proof, self._folder / "pit.img"
        if proof.run.get("result") != "done":
            return Comparison(reason="there is no finished backup")
        if not pit.exists():
            return Comparison(reason="the hook `frozen` has left no copy of the point in time")
        parsed = parse_backup_url(proof.backup_url)
        if isinstance(parsed, FileUrl):
            return await asyncio.to_thread(compare_files, Path(parsed.path), pit, proof.volume_bytes)
        store = await open_store(runtime, proof.backup_url, read_only=True)
        try:
            return await compare_store(store, pit, proof.volume_bytes)
        finally:
            await store.close()

    def _document(self, seconds: float) -> dict[str, Any]:
        proof = self.proof
        assert self._host is not None
        host, run = self._host.figures(), proof.run
        catch_up, cutover = run.get("catch_up") or {}, run.get("cutover") or {}
        document = {
            "ok": False,
            "volume_bytes": proof.volume_bytes,
            "seconds": round(seconds, 3),
            "result": run.get("result"),
            "backup": {"matches_pit": proof.backup.same, "bytes": (run.get("copy") or {}).get("bytes_done", 0),
                       "seconds": round(proof.backup_seconds, 3), "url": proof.backup_url,
                       "compare": proof.backup.document()},
            "main": {"matches_host": proof.main.same, "compare": proof.main.document()},
            "host": host,
            "catch_up": {"rounds": catch_up.get("rounds", 0), "bytes": catch_up.get("bytes", 0)},
            "cutover": {"predicted_ms": cutover.get("predicted_ms"), "actual_ms": cutover.get("actual_ms")},
        }
        if run.get("reason"):
            document["error"] = run["reason"]
        if run.get("warnings"):
            document["warnings"] = run["warnings"]
        document["ok"] = bool(
            run.get("result") == "done" and proof.backup.same and proof.main.same
            and proof.backup.compared_bytes == proof.volume_bytes and proof.main.compared_bytes == proof.volume_bytes
            and host["errors"] == 0 and host["mismatches"] == 0 and host["writes"] > 0 and host["reads"] > 0)
        return document


async def run_demo(options: DemoOptions, tell: Tell) -> dict[str, Any]:
    """The whole job; answers its document, in which `ok` tells whether every check was true. DetourError when it cannot
    be done. Leaves nothing behind, unless `keep` names a folder."""
    with work_folder(options.keep) as folder:
        return await Demo(folder, options, tell).run()
