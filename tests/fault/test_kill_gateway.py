"""kill -9 of the gateway, or of main, at each point of a detour, under a load that verifies every byte: after a restart
the host comes back by itself, nothing acknowledged is lost, the run ends, and the host ends up home on main."""
from __future__ import annotations

import asyncio
import contextlib

import pytest

from detour.errors import DetourError
from tests.support.scenes import played
from tests.support.site import eventually

pytestmark = pytest.mark.slow

SLOW_COPY = 'copy = { rate = "8MiB/s" }'


# --- the gateway

@pytest.mark.parametrize(("method", "answered"), [("PUT", False), ("PUT", True), ("POST", True)],
                         ids=["before the redirect", "redirected", "armed"])
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


def test_killed_and_stopped_in_the_copy_and_dead_for_seconds(tmp_path):
    async def play(scene):
        await scene.run_to("copying")
        for in_order, dead_seconds in ((False, 0), (True, 0), (False, 6)):
            await scene.written(100)
            if in_order:
                assert await scene.site.gateway.end() == 0, "SIGTERM is how a server ends"
            await scene.restart(dead_seconds)
        await scene.end(("done",))
    played(tmp_path, play, volume=SLOW_COPY)


def test_killed_while_a_full_journal_goes_to_main_in_the_copy(tmp_path):
    async def play(scene):
        await scene.run_to("copying")
        # The journal has room for 16 MiB: from half of that on entries go to main, and their chunks are copied first.
        # That cannot be all 1024 chunks yet.
        enough = scene.load.total("write_bytes") + (12 << 20)

        async def pressed() -> bool:
            return scene.load.total("write_bytes") > enough
        assert await eventually(pressed, 40)
        assert await scene.copying()
        await scene.restart()
        await scene.end(("done",))
    played(tmp_path, play, volume='copy = { rate = "4MiB/s" }', size_bytes=256 << 20, journal="16MiB",
           load={"rate": 1500.0, "io_bytes_max": 32768})


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

def test_main_killed_in_the_copy_redirects_again_when_it_is_back(tmp_path):
    async def play(scene):
        await scene.run_to("copying")
        await scene.site.kill_main()
        await asyncio.sleep(3.5)
        await scene.site.start_main()

        async def redirects() -> bool:
            return (await scene.site.main_target())["redirect"] is not None
        assert await eventually(redirects, 20), "hosts that log in to main now would see old data"
        assert await scene.copying()
        await scene.end(("done",))
    played(tmp_path, play, volume='copy = { rate = "2MiB/s" }')


def test_main_killed_in_catch_up(tmp_path):
    async def play(scene):
        await scene.run_to("catching-up")
        await scene.site.kill_main()
        await asyncio.sleep(3.5)
        await scene.site.start_main()
        await scene.end(("done",))
    played(tmp_path, play, volume=SLOW_COPY, target_options=("--delay-ms", "2"))
