"""A detour run with fake core, redirect and sink: every call is logged, every step can be told to fail."""
import asyncio
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import structlog

from detour.backups.catalog import BackupRecord, Catalog
from detour.backups.raw import place_of
from detour.detour import DetourRun
from detour.errors import StorageError, TimeoutError_
from detour.moving import Arrived
from detour.phases import Phase, Result
from detour.redirect.base import Address, MainSession, Memo
from detour.registrar import Brought
from detour.run_parts import CORE_CATCHING_UP, CORE_COPYING, CORE_PASS, RunParts, RunSettings
from detour.volumes import CopyEnd

MIB = 2**20
SIZE = MIB
GATEWAY = Address("127.0.0.2", 3260)


class FakeLive:
    """The core as the driver sees it. `log` has every call in order; `fail[name]` is a list of errors to raise, first
    come first served."""

    name = "db01"
    size_bytes = pit_bytes = SIZE
    block_bytes = 512
    journal_path = "/state/db01.journal"
    main_trouble = "no route to main"

    def __init__(self):
        self.log, self.fail = [], {}
        self.siblings = ()
        self.phase = CORE_PASS
        self.copy_is_complete = False
        self.main_is_lost = False
        self.dirty = 100_000
        self.counters = dict.fromkeys(("write_bytes", "copied_bytes", "unreflected_bytes", "journal_used_bytes",
                                       "journal_bytes", "room_wait_ns", "room_still_ns",
                                       "unreflected_extents", "lost_blocks"), 0)
        self.faults = asyncio.Queue()
        self.journal_failure, self.superseded_unkept = asyncio.Event(), asyncio.Event()
        self.journal_generation, self.journal_id, self.damage = 7, b"j" * 16, {}
        self.damaged_lba = None
        self.foreign = []
        self.lacking = []                   # what bring_back could not bring
        self.brought = Brought()
        self.registrations_s = 0.0
        self.reservations_unkept = False
        self.size_of_main = SIZE
        self.portal = SimpleNamespace(admit=lambda: self.log.append("admit"),
                                      turn_home=lambda: self.log.append("turn_home"), sessions=lambda: 1,
                                      arrived=lambda: self.arrived)
        self.arrived = [Arrived("iqn.host", "00023d000001", "192.0.2.5:40000")]
        self.ended = None
        self.copy_behaviour = "done"        # or an int status, "hang", "stuck" (does not end after a stop)
        self.checks = []

    @property
    def journal_has_failed(self):
        return self.journal_failure.is_set()

    def stats(self):
        return {**self.counters, "unreflected_bytes": self.dirty if self.phase >= CORE_COPYING else 0}

    def target_stats(self):
        return {"errors": 0}

    def latency(self):
        return np.zeros(307, np.uint64), np.zeros(307, np.uint64)

    def _step(self, name):
        self.log.append(name)
        if self.fail.get(name):
            raise self.fail[name].pop(0)

    async def check_main(self, limit_s):
        self._step("check_main")

    async def main_size(self):
        return self.size_of_main

    async def grow(self, size_bytes):
        self._step("grow")
        self.size_bytes = size_bytes
        return True

    async def resize_main(self, size_bytes):
        self._step(f"main has {size_bytes}")

    async def capacity_told(self, limit_s):
        await asyncio.sleep(limit_s)

    async def flush_main(self, limit_s=1.0):
        self._step("flush_main")

    def forget_faults(self):
        while not self.faults.empty():
            self.faults.get_nowait()

    async def foreign_disks(self):
        return self.foreign

    async def check_reservations(self):
        self._step("check_reservations")

    async def take_over(self, again=True):
        self._step("take_over")

    async def bring_back(self):
        self._step("bring_back")
        return self.lacking

    async def bring_registrations(self, let_in):
        self._step("bring_registrations")
        return self.brought

    async def leave_main(self):
        self._step("leave_main")

    async def keep_writing(self, let_in):
        self._step("keep_writing")

    def forget_reservations(self):
        self._step("forget_reservations")

    async def arm(self):
        self._step("arm")
        self.phase = 1

    async def disarm(self):
        self._step("disarm")
        self.phase = CORE_PASS

    async def freeze(self, pit_id, note):
        self._step("freeze")
        assert len(pit_id) == 16 and note["volume"] == self.name
        self.phase = CORE_COPYING
        return 1_700_000_000_000_000_000

    async def copy_start(self, sink, window, rate_bytes_s):
        self._step("copy_start")
        self.ended = asyncio.get_running_loop().create_future()
        if self.copy_behaviour == "done":
            self.counters["copied_bytes"] = SIZE
            self.ended.set_result(CopyEnd(0, SIZE, 0))
        elif isinstance(self.copy_behaviour, int):
            self.ended.set_result(CopyEnd(self.copy_behaviour, 0, 4096))
        return self.ended

    async def copy_stop(self):
        self._step("copy_stop")
        if self.ended is not None and not self.ended.done() and self.copy_behaviour != "stuck":
            self.ended.set_result(CopyEnd(-8, 0, 0))

    async def copy_ended(self, limit_s):
        if self.ended is not None and not self.ended.done():
            raise TimeoutError_("the end of the copy took too long")

    async def forget_sink(self, limit_s):
        self._step("forget_sink")

    def checksums(self):
        return struct.pack("<4I", 1, 2, 3, 4)

    async def catch_up(self, reads_from_backup):
        self._step(f"catch_up {reads_from_backup}" if reads_from_backup else "catch_up")
        self.phase = CORE_CATCHING_UP

    async def round(self):
        self._step("round")
        done, self.dirty = self.dirty, (0 if self.phase == 4 else self.dirty // 10)
        return done, 1, 0.001

    async def hold(self):
        self._step("hold")
        self.phase = 4

    async def unhold(self):
        self._step("unhold")
        self.phase = CORE_CATCHING_UP

    async def drain(self):
        self._step("drain")

    async def throttle(self, n, delay_s=5.0):
        self._step("throttle")

    async def sync_journal(self, limit_s):
        self._step("sync_journal")

    async def release(self):
        self._step("release")
        assert self.dirty == 0
        self.phase = CORE_PASS

    async def hold_hosts(self):
        self._step("hold_hosts")

    async def drain_hosts(self):
        self._step("drain_hosts")

    async def resume_hosts(self):
        self._step("resume_hosts")

    async def send_home(self):
        self._step("send_home")
        return 1


class FakeDriver:
    def __init__(self, live):
        self.live = live
        self.address = None
        self.fenced = False
        self.others = [MainSession("1", "iqn.host")]

    async def prepare(self):
        self.live._step("prepare")

    async def set(self, address):
        self.live._step("set")
        self.address = address

    async def clear(self):
        self.live._step("clear")
        self.address = None

    async def verify(self, address):
        self.live._step("verify_off" if address is None else "verify_on")
        if address != self.address:
            raise StorageError("not as it should be")

    async def sessions(self):
        self.live._step("sessions")
        return [*self.others, MainSession("9", "iqn.gateway", ours=True)]

    async def came(self):
        return []

    async def drop_all(self):
        self.live._step("drop_all")
        self.others = []
        return 1

    async def barrier(self):
        self.live._step("barrier")

    async def fence(self):
        self.live._step("fence")
        self.fenced = True

    def told(self):
        return []

    async def unfence(self):
        self.live._step("unfence")
        self.fenced = False

    async def forget(self):
        self.live._step("forget")


class FakeSink:
    store = None

    def __init__(self, live):
        self.live = live

    async def publish(self):
        self.live._step("publish")

    async def discard(self):
        self.live._step("discard")

    async def close(self):
        self.live._step("close_sink")
        if self.live.ended is not None and not self.live.ended.done():
            self.live.ended.set_result(CopyEnd(-7, 0, 0))


class World:
    """A run with all its fakes; `go` runs it and checks what must hold after every run whatsoever."""

    def __init__(self, folder, **settings):
        self.live = FakeLive()
        self.driver = FakeDriver(self.live)
        self.catalog = Catalog(folder)
        self.marker = Memo(None)
        self.place = place_of(str(folder / "backup" / "x.img"), "x")
        settings = {"poll_s": 0.005, "retry_first_s": 0.001, "retry_max_s": 0.01, "arm_limit_s": 1.0, "guard_s": 60.0,
                    "hold_limit_s": 0.5, "sink_limit_s": 0.2, **settings}
        self.parts = RunParts(self.live, self.driver, GATEWAY, self.catalog, self.marker, self.open_sink, self.renew,
                              RunSettings(**settings), {"serial": "beaf11"})
        self.run = DetourRun(self.parts, "nightly", "a tag")
        self.phases = []

    async def until(self, reached):
        async with asyncio.timeout(5):
            while not reached():
                await asyncio.sleep(0.002)

    async def renew(self, size_bytes):
        self.live._step(f"renew {size_bytes}")
        self.live.size_bytes = self.live.pit_bytes = size_bytes

    async def open_sink(self, backup_id, announce):
        if announce is not None:
            await announce(self.place)
        self.live._step("open_sink" + (" resume" if announce is None else ""))
        return FakeSink(self.live)

    def restarted(self, phase, record):
        """As a gateway finds it that was killed: main still redirects, and hosts are off it."""
        self.live.phase = phase
        self.driver.address, self.driver.fenced, self.driver.others = GATEWAY, True, []
        self.marker.write({"detour": "x"})
        self.run.resume(phase, record)

    def go(self, beside=None):
        async def both():
            extra = asyncio.create_task(beside()) if beside else None
            self.documents = []

            async def follow():
                async for document in self.run.follow(0.05):
                    self.documents.append(document)
            follower = asyncio.create_task(follow())
            result = await asyncio.wait_for(self.run.run(), 60)
            await asyncio.wait_for(follower, 30)
            if extra is not None:
                await extra
            return result
        result = asyncio.run(both())
        self.check_home(result)
        return result

    def check_home(self, result):
        """Rules 1, 5 and 10: whatever happened, the volume is out of the way, main takes logins, nothing is left."""
        assert self.run.phases.now is Phase.HOME and self.run.over
        assert self.live.phase == CORE_PASS
        assert self.driver.address is None and not self.driver.fenced
        assert self.marker.read() is None
        last = self.documents[-1]
        assert last["result"] == result.value and last["phase"] == "home"
        assert last["exit_code"] == {"done": 0, "failed": 1, "abandoned": 3, "cancelled": 3}[result.value]
        if "set" in self.live.log:
            self.in_order("clear", "turn_home", "send_home")
            assert len(self.live.log) - 1 - self.live.log[::-1].index("send_home") > max(
                at for at, step in enumerate(self.live.log) if step in ("clear", "verify_off"))
        if "freeze" in self.live.log and "release" in self.live.log:
            assert self.live.dirty == 0
            self.in_order("hold_hosts", "drain_hosts", "hold", "drain", "round", "flush_main", "release", "clear")
        if result is not Result.DONE:
            assert self.run.reason and last["reason"] == self.run.reason

    def in_order(self, *steps):
        """The last `len(steps)` of these steps happened in this order (repeats of each allowed before)."""
        at = len(self.live.log)
        for step in reversed(steps):
            found = [place for place, one in enumerate(self.live.log[:at]) if one == step]
            assert found, f"{step} is missing before {self.live.log[at:]} in {self.live.log}"
            at = found[-1]


@pytest.fixture(autouse=True)
def told():
    """What is logged: kept, instead of being drawn with tracebacks."""
    with structlog.testing.capture_logs() as entries:
        yield entries


def partial_record(world):
    """The record of a backup that a gateway had begun before it was started again."""
    return world.catalog.put(BackupRecord(
        id="db01-1", volume="db01", detour="db01-abc", store="nightly", url="file:///backup/x.img", size_bytes=SIZE,
        block_bytes=512, pit_ns=5, started_ns=4, tag="old"))
