"""A main that changes its size: between detours, and under one."""
import asyncio
import contextlib
import os
import struct

from detour.capacity import CapacityWatch
from detour.iscsi.capacity import read_size
from tests.support.gateway_world import SIZE, GatewayWorld, until
from tests.support.run_world import SIZE as SMALL
from tests.support.run_world import World
from tests.unit.test_mirror import HELD, Unit, answer

LARGE = SIZE + (1 << 20)
LAST = SIZE // 512 - 1


async def told(host):
    """Last LBA by READ CAPACITY(10) and (16)."""
    short = await host.command(bytes([0x25]) + bytes(9), data_in_bytes=8)
    long = await host.command(struct.pack(">BB8xIxx", 0x9E, 0x10, 32), data_in_bytes=32)
    return struct.unpack_from(">I", short.data)[0], struct.unpack_from(">Q", long.data)[0]


async def resize(world, size):
    """As storage does it that has to be started again for it."""
    redirect = world.main.entry.redirect
    await world.stop_main()
    os.truncate(world.image(0), size)
    await world.start_main()
    world.main.entry.redirect = redirect


def test_the_size_as_main_tells_it():
    capacity = struct.pack(">QI", LAST, 512) + bytes(20)
    read = lambda answers, block=512: asyncio.run(read_size(Unit(answers), block))      # noqa: E731
    assert read({(0x9E, 0x10): capacity}) == SIZE and read({(0x9E, 0x10): capacity}, 4096) is None
    assert read({(0x25, 0): struct.pack(">II", LAST, 512)}) == SIZE
    assert read({}) is None and read({(0x25, 0): answer(b"abc")}) is None


def test_a_host_goes_on_with_the_size_of_the_point_in_time(tmp_path):
    async def play():
        async with asyncio.timeout(60), GatewayWorld(tmp_path, volume=HELD) as world:
            host = await world.host()
            gateway = await world.start()
            run = gateway.start_detour("vol0")
            await world.reach(run, "copying")
            await resize(world, LARGE)
            assert await told(host) == (LAST, LAST)
            await host.write(SIZE - 512, b"x" * 512)
            await CapacityWatch(run.parts, run._warn, run._watch.spoil).look()
            assert "grown" in run.document()["warnings"][0]
            await world.stop()
            gateway = await world.start()
            assert await told(host) == (LAST, LAST)
            run = gateway.active_run("vol0")
            run.cancel()
            assert (await world.end(run))["result"] == "cancelled"
            await until(lambda: world.on_main().count(host.initiator_name) == 1)
            large = LARGE // 512 - 1
            assert await told(host) == (large, large)
            document = await world.backup()
            assert document["result"] == "failed" and "restart" not in document["reason"].lower()
            assert str(LARGE) in document["reason"] and not world.redirects
            await world.stop()
            gateway = await world.start()
            run = gateway.start_detour("vol0")
            await world.reach(run, "copying")
            assert await told(host) == (large, large) and run.document()["volume_bytes"] == LARGE
            run.cancel()
            assert (await world.end(run))["result"] == "cancelled"
        assert world.image(0).read_bytes()[SIZE - 512:] == b"x" * 512 + bytes(LARGE - SIZE)
    asyncio.run(play())


def test_a_main_that_shrinks_ends_the_backup(tmp_path):
    world = World(tmp_path)
    world.live.copy_behaviour = "hang"

    async def play():
        run = asyncio.create_task(world.run.run())
        await world.until(lambda: "copy_start" in world.live.log)
        world.live.size_of_main = SMALL - 512
        watch = CapacityWatch(world.parts, world.run._warn, world.run._watch.spoil)
        await watch.look()
        await watch.look()
        async with asyncio.timeout(5):
            await run
        assert "shrunk" in world.run.reason and len(world.run.warnings) == 1
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(play())


def test_a_detour_of_a_main_with_another_size_is_not_begun(tmp_path):
    world = World(tmp_path)
    world.live.size_of_main = SMALL + 512
    world.go()
    assert str(SMALL + 512) in world.run.reason and "arm" not in world.live.log
