"""kill -9 of the gateway, or of main, at each point of a detour, under a load that verifies every byte: after a restart
the host comes back by itself, nothing acknowledged is lost, the run ends, and the host ends up home on main."""
from __future__ import annotations

import asyncio
import contextlib

import pytest

from detour.errors import DetourError
from tests.support.api_gate import ApiGate
from tests.support.site import Site, check_load, eventually, same_files

pytestmark = pytest.mark.slow

SIZE = 16 << 20
LIMIT_SECONDS = 90.0
LOAD = {"rate": 600.0, "depth": 8, "read_share": 0.4, "flush_every": 50, "fua_share": 0.05, "io_bytes_max": 16384}
SLOW_COPY = 'copy = { rate = "8MiB/s" }'
OUTCOMES = ("done", "abandoned")


class Scene:
    """A site with a gate before main's API and a host under load."""

    def __init__(self, site: Site, gate: ApiGate) -> None:
        self.site, self.gate = site, gate

    async def begin(self) -> None:
        await self.site.start_gateway()
        self.host = await self.site.open_host()
        self.load = await self.site.load(self.host, base=bytes(SIZE), **LOAD)
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
        check_load(self.load, self.site.main_image)
        async with self.site.client() as client:
            backups = await client.backups()
        assert [backup["status"] for backup in backups] == ["complete"] * complete
        if complete:
            assert same_files(self.site.backup_image, self.site.pit_image) is None


def played(tmp_path, play, **settings):
    """Runs `play(scene)` on a new site."""
    async def whole() -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            site = Site(tmp_path, SIZE, **settings)
            async with ApiGate(tmp_path / "gate.sock", tmp_path / "main.sock") as gate:
                site.main_api = tmp_path / "gate.sock"
                async with site:
                    scene = Scene(site, gate)
                    await scene.begin()
                    await play(scene)
    asyncio.run(whole())


# --- the gateway

@pytest.mark.parametrize(("method", "answered"), [("PUT", False), ("PUT", True), ("POST", False), ("POST", True)],
                         ids=["before the redirect", "redirected", "before the drop", "armed"])
def test_killed_on_the_way_in(tmp_path, method, answered):
    async def play(scene):
        await scene.run_to_gate(method, answered)
        await scene.restart()
        await scene.end(("abandoned",))
    played(tmp_path, play)


def test_killed_when_frozen(tmp_path):
    async def play(scene):
        await scene.run_to("frozen")
        assert await eventually(lambda: asyncio.to_thread((tmp_path / "hooked").exists), 20)
        await scene.written(20)
        await scene.restart()
        await scene.end(("done",))
    played(tmp_path, play, after_freeze=f"; exec sleep 5 > {tmp_path / 'hooked'}")


@pytest.mark.parametrize("dead_seconds", [0, 6], ids=["at once", "dead for 6 s"])
def test_killed_in_the_copy(tmp_path, dead_seconds):
    async def play(scene):
        await scene.run_to("copying")
        await scene.written(200)
        await scene.restart(dead_seconds)
        await scene.end(("done",))
    played(tmp_path, play, volume=SLOW_COPY)


def test_killed_three_times_in_one_run(tmp_path):
    async def play(scene):
        await scene.run_to("copying")
        for _ in range(3):
            await scene.written(100)
            await scene.restart()
        await scene.end(("done",))
    played(tmp_path, play, volume=SLOW_COPY)


def test_killed_in_catch_up(tmp_path):
    async def play(scene):
        await scene.run_to("catching-up")
        await scene.restart()
        await scene.end(("done",))
    played(tmp_path, play, volume=SLOW_COPY, target_options=("--delay-ms", "5"))


@pytest.mark.parametrize("answered", [False, True], ids=["holding", "redirect cleared"])
def test_killed_while_the_host_is_held(tmp_path, answered):
    async def play(scene):
        await scene.run_to_gate("DELETE", answered)
        await scene.restart()
        await scene.end(("done",))
    played(tmp_path, play)


def test_killed_going_home(tmp_path):
    async def play(scene):
        await scene.run_to("going-home")
        await scene.restart()
        await asyncio.sleep(0.5)
        await scene.check_end(True)
    played(tmp_path, play)


def test_killed_at_home(tmp_path):
    async def play(scene):
        document = await scene.site.backup()
        assert document["result"] == "done", document
        await scene.site.check_home()
        await scene.written(50)
        reconnects = scene.host.reconnects
        await scene.restart()
        await scene.written(50)
        assert scene.host.reconnects == reconnects, "the gateway is not in the path of a host that is home"
        await scene.check_end(True)
    played(tmp_path, play)


def test_killed_on_the_way_home_of_a_cancelled_run(tmp_path):
    async def play(scene):
        await scene.run_to("copying")
        await scene.written(100)
        async with scene.site.client() as client:
            with contextlib.suppress(DetourError):
                await client.cancel("vol")
        await scene.restart()
        await scene.end()
    played(tmp_path, play, volume=SLOW_COPY)


# --- main

@pytest.mark.parametrize("phase", ["copying", "catching-up"])
def test_main_killed_and_back_after_seconds(tmp_path, phase):
    async def play(scene):
        await scene.run_to(phase)
        await scene.site.kill_main()
        await asyncio.sleep(4)
        await scene.site.start_main()
        await scene.end(("done",))
    played(tmp_path, play, volume=SLOW_COPY, target_options=("--delay-ms", "2"))
