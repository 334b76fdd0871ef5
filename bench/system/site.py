"""Main, gateway and backup storage as processes of their own, and the detours of a scenario.

A volume is at home until `begin`; `until` waits for a phase, `cancel` and `cut_over` lead home, `over` waits for that.
"""
from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.system.processes import IQN, TGT_BEST, TGT_INSTALLED, Target, detour_target
from bench.system.scenario import Bench, Missing
from detour.api.client import Client as Api
from detour.children import Child
from tests.support.ports import free_port

VOLUME, STORE = "vol", "raw"
SLOW_COPY = 'copy = { rate = "64KiB/s" }'       # a copy that is as good as idle
WAIT_SECONDS = 120.0
EVERY_SECONDS = 0.02
HOME_SECONDS = 15.0
_numbers = itertools.count()


@dataclass
class Main:
    """Main storage, and how it is told to redirect."""

    target: Target
    redirect: str                       # what the table `redirect` of the configuration holds
    gateway_host: str = "127.0.0.1"


@dataclass
class Volume:
    """One [volume.NAME]. `more`: further lines of its table."""

    main: Main
    journal: Path
    journal_bytes: int = 256 << 20
    more: str = ""
    url: str = ""                       # of another LUN of main's

    def table(self, name: str, digests: bool) -> str:
        auth = "main-auth = { header-digest = true, data-digest = true }\n" if digests else ""
        return (f'[volume.{name}]\nmain = "{self.url or self.main.target.url}"\n{auth}'
                f'journal = {{ path = "{self.journal}", size = {self.journal_bytes} }}\n'
                f"redirect = {{ {self.main.redirect} }}\n{self.more}\n")


@dataclass
class Gateway:
    """`detour serve`, and its API."""

    child: Child
    api: Api
    volumes: Mapping[str, Volume]
    portal: tuple[str, int]

    @property
    def pid(self) -> int:
        return self.child.pid

    async def begin(self, volume: str = VOLUME, store: str = STORE, hold: bool = False) -> str:
        """Starts a detour; its id."""
        return (await self.api.start(volume, store=store, hold_cutover=hold))["id"]

    async def until(self, run: str, *phases: str, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """The document of a detour in one of these phases, or at its end."""
        async with asyncio.timeout(seconds):
            while True:
                document = await self.api.detour(run)
                if document["result"] is not None or document["phase"] in phases:
                    return document
                await asyncio.sleep(EVERY_SECONDS)

    async def copying(self, store: str = STORE, volume: str = VOLUME) -> str:
        """Begins a detour and waits until it copies; its id."""
        run = await self.begin(volume, store)
        document = await self.until(run, "copying")
        if document["phase"] != "copying":
            raise SiteError(f"the detour ended before it copied: {document['reason']}")
        return run

    async def over(self, run: str, *results: str, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """The document of a detour that has ended in one of these results."""
        document = await self.until(run, seconds=seconds)
        if document["result"] not in (results or ("done",)):
            raise SiteError(f"the detour ended {document['result']}: {document['reason']}")
        return document

    async def give_up(self, run: str, volume: str = VOLUME) -> dict[str, Any]:
        """Cancels a detour and waits for its end: the host is home."""
        await self.api.cancel(volume)
        return await self.over(run, "cancelled", "abandoned")


class SiteError(Exception):
    """A detour did not go as the scenario needs it."""


@contextlib.asynccontextmanager
async def detour_main(bench: Bench, disk: str = "", *options: str, size_bytes: int = 0) -> AsyncIterator[Main]:
    """`detour target` with its redirect API and a name of its own: a memory LUN, or `disk` (of `size_bytes`)."""
    number = next(_numbers)
    socket, iqn = bench.folder / f"main-{number}.sock", f"{IQN}-{number}"
    async with detour_target(bench, disk, "--api", f"unix:{socket}", "--iqn", iqn, *options, name="main") as target:
        target.size_bytes = size_bytes or target.size_bytes
        target.url = target.url.replace(IQN, iqn)
        yield Main(target, f'driver = "detour", api = "unix:{socket}"')


@contextlib.asynccontextmanager
async def tgt_main(bench: Bench, store: str, size_bytes: int) -> AsyncIterator[Main]:
    """tgtd as main, with a file on tmpfs. It does not redirect a host that has the redirect's own address."""
    from tests.support.tgtd import USABLE

    if not USABLE:
        raise Missing("tgtd is not installed, or this is not root")
    from bench.system.tgt import TgtBench

    place = bench.memory_folder / f"tgt-main-{next(_numbers)}"
    daemon = await asyncio.to_thread(TgtBench, place, IQN, store, size_bytes, bench.digests)
    name = TGT_BEST if store == "aio" else TGT_INSTALLED
    redirect = f'driver = "tgt", env = {{ TGT_IPC_SOCKET = "{daemon.environment["TGT_IPC_SOCKET"]}" }}'
    try:
        yield Main(Target(name, f"iscsi://{daemon.portal}/{IQN}/1", [daemon.process.pid], size_bytes), redirect,
                   "127.0.0.2")
    finally:
        await asyncio.to_thread(daemon.close)
        shutil.rmtree(place, ignore_errors=True)


@contextlib.asynccontextmanager
async def gateway(bench: Bench, volumes: Mapping[str, Volume], stores: Mapping[str, str], *,
                  lines: str = "", seconds: float = 30.0) -> AsyncIterator[Gateway]:
    """`detour serve` with these volumes and stores, and digests on its own sessions where the run has them. `lines`:
    more of [gateway], and tables below it."""
    number = next(_numbers)
    host = next(iter(volumes.values())).main.gateway_host
    port, socket = free_port(host), bench.folder / f"gateway-{number}.sock"
    portal = f"{host}:{port}"
    path = bench.folder / f"gateway-{number}.toml"
    path.write_text("\n".join([
        f'[gateway]\nlisten = ["{portal}"]\nadvertise = "{portal}"\nstate = "{bench.folder / f"state-{number}"}"\n'
        f'api = "unix:{socket}"\n{lines}\n', *(volume.table(name, bench.digests) for name, volume in volumes.items()),
        *(f"[store.{name}]\nurl = {json.dumps(with_digests(url, bench.digests))}\n" for name, url in stores.items())]))
    child = await Child.start("gateway", ["serve", "-c", str(path)], bench.folder / f"gateway-{number}.log")
    try:
        await child.wait_ready(seconds)
        async with Api(f"unix:{socket}") as api:
            yield Gateway(child, api, volumes, (host, port))
    finally:
        await child.end()


def with_digests(url: str, digests: bool) -> str:
    """A store's URL with CRC32C asked for, where it is one of iSCSI."""
    return f"{url}?header-digest=crc32c&data-digest=crc32c" if digests and url.startswith("iscsi://") else url


def image(path: Path, size_bytes: int, blocks: Sequence[bytes] = ()) -> Path:
    """A file of this size: of zeros that take no room, or of these blocks in turn."""
    with open(path, "wb") as file:
        if blocks:
            for block in itertools.cycle(blocks):
                if file.tell() >= size_bytes:
                    break
                file.write(block)
        file.truncate(size_bytes)
    return path
