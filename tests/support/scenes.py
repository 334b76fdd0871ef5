"""A site with a host under a verifying load, and what a test of faults does with it."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.support.api_gate import ApiGate
from tests.support.patience import SLOWER
from tests.support.site import Site, check_load, eventually, same_files

SIZE = 16 << 20
LIMIT_SECONDS = 90.0 * SLOWER
LOAD = {"rate": 600.0, "depth": 8, "read_share": 0.4, "flush_every": 50, "fua_share": 0.05, "io_bytes_max": 16384}
OUTCOMES = ("done", "abandoned")


class Scene:
    """A site with a gate before main's API and a host under load."""

    def __init__(self, site: Site, gate: ApiGate, **load: Any) -> None:
        self.site, self.gate = site, gate
        self.settings = {**LOAD, **load}

    async def begin(self) -> None:
        await self.site.start_gateway()
        self.host = await self.site.open_host()
        self.load = await self.site.load(self.host, base=bytes(self.site.size_bytes), **self.settings)
        await self.written(50)

    async def written(self, more: int) -> None:
        """The host has done so many writes more: it is served."""
        reached = self.load.total("writes") + more

        async def done() -> bool:
            return self.load.total("writes") >= reached
        assert await eventually(done, 40), f"the host is not served: {self.load.faults()}"

    async def run_to(self, phase: str) -> None:
        """A detour is begun, and is in that phase."""
        async with self.site.client() as client:
            started = await self.site.begin(client)
            document = await self.site.follow(client, started["id"], phase)
            assert document["phase"] == phase, document

    async def copying(self) -> bool:
        """Whether a run, begun by somebody else, copies now."""
        async with self.site.client() as client:
            return any(run["phase"] == "copying" for run in await client.detours())

    async def over_with_copying(self) -> bool:
        """Whether no run copies."""
        return not await self.copying()

    async def run_to_gate(self, method: str, answered: bool) -> None:
        """A detour is begun, and its request to main's API waits at the gate."""
        self.gate.stop_at(method, answered=answered)
        async with self.site.client() as client:
            await self.site.begin(client)
        async with asyncio.timeout(40):
            await self.gate.stopped.wait()

    async def restart(self, dead_seconds: float = 0.0) -> None:
        await self.site.kill_gateway()
        self.gate.open()
        await asyncio.sleep(dead_seconds)
        await self.site.start_gateway()

    async def end(self, outcomes: tuple[str, ...] = OUTCOMES) -> dict:
        """The run is over; the host is home, was never wrong, and main is what it wrote."""
        document = await self.site.wait_over()
        assert document["result"] in outcomes, document
        assert document["result"] == "done" or document["reason"], document
        await self.check_end(document["result"] == "done")
        return document

    async def check_end(self, complete: bool) -> None:
        await self.site.check_home()
        await self.written(20)
        await self.load.stop()
        await self.host.flush()
        await self.check_images(complete)

    async def check_images(self, complete: bool) -> None:
        """Main is what the host wrote, with no error; the backup is main at the point in time, or there is none."""
        check_load(self.load, self.site.main_image)
        async with self.site.client() as client:
            backups = await client.backups()
        assert [backup["status"] for backup in backups] == ["complete"] * complete
        if complete:
            assert same_files(self.site.backup_image, self.site.pit_image) is None


def played(tmp_path: Path, play: Callable[[Scene], Awaitable[None]], *, load: dict[str, Any] | None = None,
           size_bytes: int = SIZE, **settings: Any) -> None:
    """Runs `play(scene)` on a new site."""
    asyncio.run(play_whole(tmp_path, play, load=load, size_bytes=size_bytes, **settings))


async def play_whole(tmp_path: Path, play: Callable[[Scene], Awaitable[None]], *, load: dict[str, Any] | None = None,
                     size_bytes: int = SIZE, **settings: Any) -> None:
    """`played`, for a test that has opened something before."""
    async with asyncio.timeout(LIMIT_SECONDS):
        site = Site(tmp_path, size_bytes, **settings)
        async with ApiGate(tmp_path / "gate.sock", tmp_path / "main.sock") as gate:
            site.main_api = tmp_path / "gate.sock"
            async with site:
                scene = Scene(site, gate, **(load or {}))
                await scene.begin()
                await play(scene)
