"""The faults of a bad day, each with real processes: a clear message and exit code, a host that is served on and never
sees an error, and that ends up home with main right."""
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal

import pytest

from detour.children import Child
from detour.iscsi.initiator import login_options
from detour.iscsi.session import login
from detour.urls import parse_iscsi_url
from tests.support.patience import SLOWER
from tests.support.ports import free_port
from tests.support.scenes import play_whole, played
from tests.support.site import HOST, IQN, eventually

pytestmark = pytest.mark.slow

MIB = 1 << 20
SLOW_COPY = 'copy = { rate = "8MiB/s" }'
SINK_IQN = "iqn.2026-01.org.detour:sink"
STALL_LIMIT_MS = 8000.0         # generous: a host gives up at 30 s


class SinkTarget:
    """Backup storage that is a LUN of a `detour target` of its own, so that it can be harmed."""

    def __init__(self, folder, size="64MiB"):
        self.port = free_port()
        self.url = f"iscsi://127.0.0.1:{self.port}/{SINK_IQN}/0"
        self._arguments = ["target", f"mem:{size}", "--listen", f"127.0.0.1:{self.port}", "--iqn", SINK_IQN]
        self._log = folder / "sink.log"

    async def __aenter__(self):
        self.child = await Child.start("sink", self._arguments, self._log)
        await self.child.wait_ready()
        return self

    async def __aexit__(self, *_):
        self.child.kill()
        await self.child.end()


@contextlib.contextmanager
def stopped(pid):
    """The process stands still, as if its machine hung."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def longest_ms(scene):
    return scene.load.total("longest_ns") / 1e6


def told_last(told):
    """The last document of `detour backup --json`."""
    return json.loads(told.output.splitlines()[-1])


# --- backup storage

def test_a_backup_storage_too_small_is_refused_before_anything_is_changed(tmp_path):
    async def play(scene):
        async with SinkTarget(tmp_path, "8MiB") as sink:
            scene.site.volume = f'[store.small]\nurl = "{sink.url}"'
            await scene.site.kill_gateway()
            await scene.site.start_gateway()
            told = await scene.site.detour("backup", "vol", "--store", "small", "--json")
        assert told.code == 1, told
        assert told_last(told)["result"] == "failed" and str(8 * MIB) in told_last(told)["reason"], told
        assert scene.host.reconnects == 0, "the host was never moved"
        await scene.check_end(False)
    played(tmp_path, play)


def test_a_backup_storage_that_fails_in_mid_copy(tmp_path):
    async def play(scene):
        following = asyncio.create_task(scene.site.detour("backup", "vol", "--json"))
        assert await eventually(scene.copying, 30)
        soft_hard = (4 * MIB, resource.getrlimit(resource.RLIMIT_FSIZE)[1])     # as a disk that is full from there on
        resource.prlimit(scene.site.gateway.pid, resource.RLIMIT_FSIZE, soft_hard)
        told = await following
        assert told.code == 3, told
        assert told_last(told)["result"] == "abandoned" and "copy failed" in told_last(told)["reason"], told
        assert not scene.site.backup_image.exists(), "half an image has no name"
        await scene.check_end(False)
    played(tmp_path, play, volume=SLOW_COPY)


def test_a_backup_storage_that_stands_still_and_two_cancels(tmp_path):
    async def whole():
        async with SinkTarget(tmp_path) as sink:
            async def play(scene):
                following = asyncio.create_task(scene.site.detour("backup", "vol", "--json"))
                assert await eventually(scene.copying, 30)
                await scene.written(100)
                with stopped(sink.child.pid):
                    await scene.written(600)
                    for _ in range(2):
                        told = await scene.site.detour("cancel", "vol")
                        assert told.code == 0 and "home" in told.output, told
                    await scene.site.check_home()
                    told = await following
                assert told.code == 3 and told_last(told)["result"] == "cancelled", told
                assert longest_ms(scene) < STALL_LIMIT_MS
                await scene.check_end(False)
                told = await scene.site.detour("cancel", "vol")
                assert told.code == 2 and "home" in told.errors, "nothing to cancel any more"
            await play_whole(tmp_path, play, volume=SLOW_COPY, store_url=sink.url)
    asyncio.run(whole())


def test_a_backup_storage_that_is_gone_when_the_gateway_comes_back(tmp_path):
    async def whole():
        async with SinkTarget(tmp_path) as sink:
            async def play(scene):
                await scene.run_to("copying")
                await scene.written(100)
                await scene.site.kill_gateway()
                sink.child.kill()
                await scene.site.start_gateway()
                document = await scene.end(("abandoned",))
                assert str(sink.port) in document["reason"], document
            await play_whole(tmp_path, play, volume=SLOW_COPY, store_url=sink.url)
    asyncio.run(whole())


def test_a_journal_that_fills_while_the_backup_storage_stands_still(tmp_path):
    """Only what lies in chunks that the backup lacks can fill it: however late the stop comes, most of them have to be
    missing, and under pressure a bound on the copy's rate alone does not see to that."""
    async def whole():
        async with SinkTarget(tmp_path, "64MiB?write-rate=4MiB") as sink:
            async def play(scene):
                following = asyncio.create_task(scene.site.detour("backup", "vol", "--json"))
                assert await eventually(scene.copying, 30)
                with stopped(sink.child.pid):
                    assert await eventually(scene.over_with_copying, 90)
                    await scene.site.check_home()
                told = await following
                assert told.code == 3 and "journal" in told_last(told)["reason"], told
                await scene.check_end(False)
                assert longest_ms(scene) < STALL_LIMIT_MS
            await play_whole(tmp_path, play, store_url=sink.url, journal="16MiB", size_bytes=48 * MIB,
                             load={"rate": 600.0, "io_bytes_max": 65536})
    asyncio.run(whole())


def test_a_journal_smaller_than_what_the_host_writes_during_the_copy(tmp_path):
    async def play(scene):
        await scene.run_to("copying")
        before = scene.load.total("write_bytes")
        assert await eventually(scene.over_with_copying, 60)
        written = scene.load.total("write_bytes") - before
        document = await scene.end(("done",))
        assert written > document["journal"]["size_bytes"], "the journal would have done without help"
        assert longest_ms(scene) < STALL_LIMIT_MS
    played(tmp_path, play, volume='copy = { rate = "4MiB/s" }', size_bytes=32 * MIB, journal="16MiB",
           load={"rate": 1200.0, "io_bytes_max": 32768})


# --- main

def test_a_slow_main(tmp_path):
    async def play(scene):
        assert (await scene.site.backup())["result"] == "done"
        await scene.check_end(True)
    played(tmp_path, play, target_options=("--delay-ms", "60"), volume='max-pause = "3s"')


def test_a_cancel_while_main_does_not_answer_on_the_way_in(tmp_path):
    async def play(scene):
        await scene.run_to_gate("POST", False)
        told = await scene.site.detour("cancel", "vol")
        assert told.code == 0, told
        document = await scene.end(("cancelled",))
        assert document["exit_code"] == 3
    played(tmp_path, play)


@pytest.mark.parametrize("phase", ["copying", "catching-up"])
def test_main_that_stands_still_for_seconds(tmp_path, phase):
    async def play(scene):
        await scene.run_to(phase)
        with stopped(scene.site.main.pid):
            await asyncio.sleep(3.5)
        await scene.end(("done",))
    played(tmp_path, play, volume=SLOW_COPY, target_options=("--delay-ms", "5"))


# --- hosts and operators

def test_a_host_that_logs_out_in_mid_detour_and_a_second_backup(tmp_path):
    async def play(scene):
        first = asyncio.create_task(scene.site.detour("backup", "vol", "--json"))
        assert await eventually(scene.copying, 30)
        second = await scene.site.detour("backup", "vol")
        assert second.code == 1 and "in a detour already" in second.errors, second
        await scene.written(50)
        await scene.load.stop()
        await scene.host.close()
        told = await first
        assert told.code == 0 and told_last(told)["result"] == "done", told
        target = await scene.site.main_target()
        assert target["redirect"] is None and HOST not in target["initiators"]
        await scene.check_images(True)
    slow = f'copy = {{ rate = "{8 // SLOWER}MiB/s" }}'      # the second command starts within the first one's copy
    played(tmp_path, play, volume=slow)


def bhs(opcode, flags=0x80, *, ahs=0, data=0):
    """A basic header segment with task tag 7."""
    return (bytes([opcode, flags, 0, 0, ahs]) + data.to_bytes(3, "big") + bytes(8) + b"\0\0\0\7").ljust(48, b"\0")


STRANGE_LOGINS = [b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n" + bytes(32), bhs(0x43, 0x87, data=0xFFFFFF), bhs(0x01)]
MALFORMED = [bhs(0x01, 0xE0, data=0xFFFFFF), bhs(0x43, 0x87), b"\xff" * 512]    # more data than negotiated, a login
MISPLACED = [bhs(0x3B), bhs(0x05), bhs(0x01, 0xC1, ahs=255) + bytes(1020)]    # unknown, of no task, out of the window


def test_malformed_pdus_end_their_connection_and_nothing_else(tmp_path):
    async def play(scene):
        await scene.run_to("copying")
        portal = "127.0.0.1", scene.site.port
        for bad in STRANGE_LOGINS:
            assert await ended(await asyncio.open_connection(*portal), bad), bad[:48]
        url = parse_iscsi_url(f"iscsi://127.0.0.1:{scene.site.port}/{IQN}/0")
        reconnects = scene.host.reconnects
        for number, bad in enumerate(MALFORMED + MISPLACED):
            options = login_options(url, initiator_name=f"iqn.2026-01.org.detour:bad{number}")
            done = await login(url.host, url.port, url.target, options)
            over = await ended(await asyncio.open_connection(sock=done.sock), bad)
            assert over or bad in MISPLACED, bad[:48]
        await scene.written(50)
        assert scene.host.reconnects == reconnects, "only the bad connections were ended"
        await scene.end(("done",))
    played(tmp_path, play, volume='copy = { rate = "4MiB/s" }')


async def ended(streams, bad):
    """Whether the gateway ends the connection on which it gets these bytes."""
    reader, writer = streams
    try:
        writer.write(bad)
        async with asyncio.timeout(0.5 if bad in MISPLACED else 5):
            await writer.drain()
            while await reader.read(4096):
                pass
        return True
    except OSError as error:
        return not isinstance(error, TimeoutError)
    finally:
        writer.close()
