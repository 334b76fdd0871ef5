"""The gateway as a whole in one process: several volumes on one target, a main that is lost, starts after a death."""
from __future__ import annotations

import asyncio
import contextlib
import itertools
import os

import pytest

from detour.backups.catalog import BackupRecord, Status
from detour.errors import BusyError, DetourError, StorageError, UsageError
from tests.support.gateway_world import IQN, SIZE, GatewayWorld, until

SLOW = 'copy = { rate = "2MiB/s", window = 1 }'
LIMIT_SECONDS = 60
HOST = "iqn.2026-01.org.detour:host"


def run(tmp_path, scenario, **options):
    async def whole():
        async with asyncio.timeout(LIMIT_SECONDS), GatewayWorld(tmp_path, **options) as world:
            await scenario(world)
    asyncio.run(whole())


async def keep_writing(store, wrote, seed):
    """Writes and reads back until cancelled; `wrote` has what each block must hold."""
    for number in itertools.count():
        block = number * 7 % 1000
        data = bytes([number % 251 + 1, seed]) * 2048
        wrote.pop(block, None)                  # while the write is under way, either content is right
        await store.write(block * 4096, data)
        wrote[block] = data
        assert await store.read(block * 4096, 4096) == data
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def writing(*stores):
    """Each store is written all the time; yields what each must hold. Errors of a host end the test."""
    wrote = [{} for _ in stores]
    tasks = [asyncio.create_task(keep_writing(store, what, number + 1))
             for number, (store, what) in enumerate(zip(stores, wrote, strict=True))]
    try:
        yield wrote
        assert not any(task.done() for task in tasks), "a host met an error"
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if not isinstance(end, asyncio.CancelledError):
                raise end
    for store, what in zip(stores, wrote, strict=True):
        await store.flush()
        for block, data in what.items():
            assert await store.read(block * 4096, 4096) == data


def check_image(world, lun, wrote):
    content = world.image(lun).read_bytes()
    assert wrote and all(content[block * 4096:block * 4096 + 4096] == data for block, data in wrote.items())


def test_one_of_two_volumes_of_a_target_is_backed_up_and_hosts_of_both_go_there_and_back(tmp_path):
    """A redirect moves the whole target: the other volume is passed through meanwhile."""
    async def scenario(world):
        gateway = await world.start()
        one, two = await world.host(0, "one"), await world.host(1, "two")
        async with writing(one, two) as wrote:
            await asyncio.sleep(0.1)
            started = gateway.start_detour("vol0")
            await world.reach(started, "copying")
            await until(lambda: one.portal == two.portal == f"127.0.0.1:{world.port}")
            before = [len(what) for what in wrote]
            await until(lambda: all(len(what) > have + 20 for what, have in zip(wrote, before, strict=True)))
            assert world.gateway.unit("vol1")[1].live.phase == 0
            check_image(world, 1, dict(list(wrote[1].items())[:-5]))    # goes to main at once
            with pytest.raises(BusyError, match="vol1 is in a detour already"):
                gateway.start_detour("vol1")
            document = await world.end(started)
            assert document["result"] == "done" and document["warnings"] == [], document
            assert document["host"]["errors"] == 0
            await until(lambda: {one.portal, two.portal} == {f"127.0.0.1:{world.main_port}"})
        for lun in (0, 1):
            check_image(world, lun, wrote[lun])
        assert not world.redirects and (await gateway.verify(document["backup_id"])).ok
        document = await world.backup("vol1")           # and the other way round
        assert document["result"] == "done" and document["warnings"] == [], document
    run(tmp_path, scenario, luns=2, volume=SLOW)


def test_volumes_of_one_target_may_log_in_by_different_names(tmp_path):
    async def scenario(world):
        config = world.config

        def two_names():
            made = config()
            volumes = {name: section.model_copy(update={"initiator_name": f"iqn.2026-01.example:{name}"})
                       for name, section in made.volume.items()}
            return made.model_copy(update={"volume": volumes})
        world.config = two_names
        gateway = await world.start()
        host = await world.host(1)
        async with writing(host):
            document = await world.backup("vol0")
            assert document["result"] == "done" and document["warnings"] == [], document
        assert [unit.main.reconnects for unit in gateway.groups[0].units] == [0, 0]
    run(tmp_path, scenario, luns=2)


def test_a_host_that_has_the_gateways_name_is_moved_like_any_other(tmp_path):
    async def scenario(world):
        gateway = await world.start()
        host = await world.host()
        async with writing(host) as wrote:
            started = gateway.start_detour("vol0")
            await world.reach(started, "copying")
            await until(lambda: host.portal == f"127.0.0.1:{world.port}")
            assert world.on_main() == [HOST]
            assert (await world.end(started))["result"] == "done"
        check_image(world, 0, wrote[0])
    run(tmp_path, scenario, volume=f'initiator-name = "{HOST}"\n{SLOW}')


def test_a_main_that_is_gone_for_longer_than_main_retry_is_a_slow_disk(tmp_path):
    """What the journal holds is read and written on; what needs main waits; nothing fails."""
    async def scenario(world):
        gateway = await world.start()
        unit = gateway.unit("vol0")[1]
        host = await world.host()
        started = gateway.start_detour("vol0")
        await world.reach(started, "copying")
        await host.write(8192, b"j" * 4096)
        await world.stop_main()
        await asyncio.sleep(2.0)                        # ten times main-retry
        assert unit.main.state == "lost" and gateway.volume_document("vol0")["main_error"]
        assert await host.read(8192, 4096) == b"j" * 4096
        await host.write(16384, b"k" * 4096)
        waits = asyncio.create_task(host.read(3 << 20, 4096))
        await asyncio.sleep(0.3)
        assert not waits.done()
        await world.start_main()
        assert await waits == bytes(4096)
        document = await world.end(started)
        assert document["result"] == "done" and document["host"]["errors"] == 0, document
        assert any("redirect was set again" in warning for warning in document["warnings"])
        await host.flush()
        content = world.image(0).read_bytes()
        assert content[8192:12288] == b"j" * 4096 and content[16384:20480] == b"k" * 4096
        await until(lambda: host.portal == f"127.0.0.1:{world.main_port}")
    run(tmp_path, scenario, volume=f'main-retry = "200ms"\n{SLOW}')


def test_a_main_that_is_gone_in_normal_operation_is_given_up_and_asked_for_again(tmp_path):
    async def scenario(world):
        gateway = await world.start()
        main = gateway.unit("vol0")[1].main
        await world.stop_main()
        await until(lambda: main.state == "failed")
        with pytest.raises(StorageError):
            await main.read(0, 512)
        assert (await world.backup())["result"] == "failed"
        await world.start_main()
        await until(lambda: main.state == "connected")
        assert (await world.backup())["result"] == "done"
    run(tmp_path, scenario, volume='main-retry = "200ms"')


@pytest.mark.parametrize("sent_home", [False, True], ids=["before the freeze", "after the release"])
def test_a_start_with_a_marker_clears_the_redirect(tmp_path, sent_home):
    async def scenario(world):
        await world.start()
        document = await world.backup()
        await world.stop()
        marker = world.folder / "state" / "volumes" / "vol0.detour.json"
        backup = document["backup_id"] if sent_home else "vol0-none"
        marker.write_text(f'{{"detour": "vol0-old", "backup": "{backup}", "journal": "{world.folder}/vol0.journal"}}')
        world.redirect_here()
        gateway = await world.start()
        ended = await world.end(next(iter(gateway.runs.values())))
        assert ended["result"] == ("done" if sent_home else "abandoned"), ended
        assert not world.redirects and not marker.exists()
        host = await world.host()
        await host.write(0, b"x" * 512)
        assert (await world.backup())["result"] == "done"
    run(tmp_path, scenario)


@pytest.mark.parametrize("change", ["gone", "elsewhere"])
def test_a_start_without_the_journal_of_an_unfinished_detour_shows_main_to_nobody(tmp_path, change):
    """Acknowledged writes are in that journal: main alone is old."""
    async def scenario(world):
        gateway = await world.start()
        host = await world.host()
        started = gateway.start_detour("vol0")
        await world.reach(started, "copying")
        await host.write(0, b"x" * 4096)
        await world.stop()
        journal = world.folder / "vol0.journal"
        os.rename(journal, world.folder / "hidden")
        marker = world.folder / "state" / "volumes" / "vol0.detour.json"
        if change == "elsewhere":
            marker.write_text(marker.read_text().replace(str(journal), str(world.folder / "hidden")))
        gateway = await world.start()
        with pytest.raises(StorageError, match="unfinished has its journal in"):
            gateway.start_detour("vol0")
        assert world.redirects and gateway.runs == {} and not journal.exists()
        reading = asyncio.create_task(host.read(0, 4096))
        await asyncio.sleep(1.0)
        assert not reading.done()
        await world.stop()
        os.rename(world.folder / "hidden", journal)
        if change == "elsewhere":
            marker.write_text(marker.read_text().replace(str(world.folder / "hidden"), str(journal)))
        gateway = await world.start()
        assert await reading == b"x" * 4096
        assert (await world.end(next(iter(gateway.runs.values()))))["result"] == "done"
        await host.flush()
        assert world.image(0).read_bytes()[:4096] == b"x" * 4096
    run(tmp_path, scenario, volume=SLOW)


def test_a_redirect_that_nobody_knows_of_is_told_and_keeps_the_door_closed(tmp_path):
    async def scenario(world):
        world.redirect_here()
        starting = asyncio.create_task(world.start())
        await until(lambda: world.gateway is not None and world.gateway.groups
                    and world.gateway.groups[0].units[0].trouble)
        gateway = world.gateway
        assert "no detour is known here" in gateway.volume_document("vol0")["trouble"]
        with pytest.raises(StorageError, match="no detour is known here"):
            gateway.start_detour("vol0")
        world.main.entry.redirect = None
        await starting
        await until(lambda: gateway.groups[0].ready)
        assert (await world.backup())["result"] == "done"

    run(tmp_path, scenario)


def test_what_a_dead_gateway_had_begun_to_write_is_cleared_away(tmp_path):
    async def scenario(world):
        await world.start()
        await world.stop()
        partial = world.folder / "backups" / ".vol0-dead.img.partial"
        partial.write_bytes(b"half")
        gateway = await world.start()
        gateway.catalog.put(BackupRecord(id="vol0-dead", volume="vol0", store="raw", url="file:///x", size_bytes=SIZE,
                                         block_bytes=512, partial_path=str(partial)))
        await world.stop()
        gateway = await world.start()
        await until(lambda: gateway.catalog.list() == [])
        assert not partial.exists()
    run(tmp_path, scenario)


def test_two_detours_never_write_the_same_image(tmp_path):
    async def scenario(world):
        gateway = await world.start()
        started = gateway.start_detour("vol0", "one")
        fake = type("Run", (), {"result": None, "store": "one", "id": "other-1", "backup_id": "x",
                                "live": type("Live", (), {"name": "other"})})()
        await world.end(started)
        gateway.runs["other-1"] = fake
        with pytest.raises(BusyError, match="is being written by the detour other-1"):
            gateway.start_detour("vol0", "one")
        with pytest.raises(BusyError, match="is being written"):
            gateway.start_detour("vol0", "same")
        del gateway.runs["other-1"]
        assert (await world.backup("vol0", store="folder"))["result"] == "done"
    stores = "".join(f'[store.{name}]\nurl = "file://{tmp_path}/{place}"\n'
                     for name, place in (("one", "one.img"), ("same", "one.img"), ("folder", "backups/")))
    run(tmp_path, scenario, volume='copy = { rate = "64MiB/s" }', stores=stores)


def test_a_restore_onto_main_and_a_detour_exclude_each_other(tmp_path):
    async def scenario(world):
        gateway = await world.start()
        document = await world.backup()
        main = f"iscsi://127.0.0.1:{world.main_port}/{IQN}/0"
        started = gateway.start_detour("vol0")
        await world.reach(started, "copying")
        with pytest.raises(BusyError, match="is main storage of vol0, which is in a detour"):
            await gateway.restore(document["backup_id"], main)
        assert (await gateway.restore(document["backup_id"], str(world.folder / "copy.img"))).ok
        started.cancel()
        await world.end(started)
        restoring = asyncio.create_task(gateway.restore(document["backup_id"], main))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="being restored onto vol0"):
            gateway.start_detour("vol0")
        assert (await restoring).ok
        assert (await world.end(gateway.start_detour("vol0")))["result"] == "done"
    run(tmp_path, scenario, volume=SLOW)


def test_the_copy_shows_how_far_it_is(tmp_path):
    """The watch over a copy that stalls lives by this figure."""
    async def scenario(world):
        gateway = await world.start()
        started = gateway.start_detour("vol0")
        seen = []
        async for document in started.follow(0.05):
            if document["phase"] == "copying":
                seen.append(document["copy"]["bytes_done"])
        assert document["copy"]["bytes_done"] == SIZE and seen == sorted(seen)
        assert len({done for done in seen if 0 < done < SIZE}) >= 2, seen
    run(tmp_path, scenario, volume=SLOW)


def test_unknown_names(tmp_path):
    async def scenario(world):
        gateway = await world.start()
        for ask in (lambda: gateway.start_detour("nothing"), lambda: gateway.start_detour("vol0", "nowhere"),
                    lambda: gateway.cancel_volume("nothing"), lambda: gateway.run_of("nothing"),
                    lambda: gateway.cancel_volume("vol0")):
            with pytest.raises(UsageError):
                ask()
        assert gateway.last_run("vol0") is None
    run(tmp_path, scenario)


def test_a_gateway_that_is_stopped_in_a_detour_goes_on_at_the_next_start(tmp_path):
    async def scenario(world):
        gateway = await world.start()
        host = await world.host()
        async with writing(host) as wrote:
            started = gateway.start_detour("vol0", tag="weekly")
            await world.reach(started, "copying")
            await asyncio.sleep(0.3)
            await world.stop()
            assert world.redirects
            gateway = await world.start()
            [again] = gateway.runs.values()
            assert again.id == started.id and again.tag == "weekly"
            document = await world.end(again)
            assert document["result"] == "done", document
            with contextlib.suppress(DetourError):
                await until(lambda: host.portal == f"127.0.0.1:{world.main_port}")
        check_image(world, 0, wrote[0])
        [record] = gateway.catalog.list()
        assert record.status is Status.COMPLETE and record.pit_ns and (await gateway.verify(record.id)).ok
    run(tmp_path, scenario, volume=SLOW)
