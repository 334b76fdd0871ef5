"""The run driver with fake core, redirect and sink: the plain run, and every way in which one can fail."""
import asyncio
import struct
import time
from datetime import datetime, timedelta

import pytest

from detour.backups.catalog import BackupRecord, Status
from detour.detour import DetourRun
from detour.errors import BusyError, StorageError, TimeoutError_, UsageError
from detour.gate import Window
from detour.phases import Phase, Result
from detour.redirect.base import MainSession
from detour.run_parts import CORE_CATCHING_UP, CORE_COPYING, CORE_PASS
from detour.volumes import CopyEnd
from tests.support.run_world import GATEWAY, MIB, SIZE, FakeLive, FakeSink, World, partial_record


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_plain_run(world):
    assert world.go() is Result.DONE
    log = world.live.log
    first = ["check_main", "forget_sink", "prepare", "check_reservations", "open_sink", "arm", "admit", "set",
             "verify_on", "fence", "sessions", "drop_all", "sessions", "barrier", "take_over", "flush_main",
             "verify_on", "sessions", "freeze", "copy_start", "verify_on", "sessions", "publish", "catch_up", "round"]
    assert log[:len(first)] == first
    assert log[log.index("hold_hosts") - 3:log.index("turn_home")] == [
        "verify_on", "sync_journal", "sync_journal", "hold_hosts", "drain_hosts", "hold", "drain", "round",
        "flush_main", "release", "bring_registrations", "bring_back", "unfence", "clear", "verify_off"]
    assert sorted(log[log.index("turn_home"):]) == sorted([
        "turn_home", "send_home", "throttle", "resume_hosts", "forget_reservations", "forget", "forget_sink",
        "close_sink"])
    phases = [document["phase"] for document in world.documents]
    assert phases[-1] == "home" and len(phases) >= 2
    record = world.catalog.list()[0]
    assert record.status is Status.COMPLETE and record.pit_ns == 1_700_000_000_000_000_000
    assert record.identity == {"serial": "beaf11"} and record.tag == "a tag" and record.store == "nightly"
    assert world.catalog.checksums(record) == struct.pack("<4I", 1, 2, 3, 4)
    last = world.documents[-1]
    assert last["backup_id"] == record.id and last["backup"]["status"] == "complete"
    assert last["copy"]["bytes_done"] == SIZE and last["catch_up"]["rounds"] >= 2
    assert last["cutover"]["predicted_ms"] > 0 and last["cutover"]["actual_ms"] > 0
    assert last["pit_at"].startswith("2023-11-14")


def test_the_document_has_every_field_of_the_contract(world):
    world.go()
    last = world.documents[-1]
    assert {"id", "volume", "store", "tag", "phase", "started_at", "pit_at", "volume_bytes", "copy", "catch_up",
            "cutover", "host", "journal", "result", "reason", "backup_id", "exit_code"} <= last.keys()
    assert last["copy"].keys() == {"bytes_done", "bytes_total", "bytes_per_second", "seconds_left"}
    assert last["catch_up"].keys() == {"rounds", "bytes", "remaining_bytes", "bytes_per_second"}
    assert last["cutover"].keys() == {"predicted_ms", "actual_ms", "parts_ms", "tries", "throttle_bytes_per_second",
                                      "throttle_least_bytes_per_second"}
    assert last["host"].keys() == {"sessions", "write_bytes_per_second", "p99_ms", "longest_ms", "errors"}
    assert last["journal"].keys() == {"used_bytes", "size_bytes"}


@pytest.mark.parametrize("step", ["check_main", "forget_sink", "prepare", "open_sink"])
def test_a_failed_check_changes_nothing(world, step):
    world.live.fail[step] = [StorageError(f"{step} says no")]
    assert world.go() is Result.FAILED
    assert world.run.reason == f"{step} says no"
    assert not {"set", "arm", "drop_all", "freeze"} & set(world.live.log)
    assert world.catalog.list() == []


def test_disks_that_are_not_configured_are_a_reason_to_refuse(world):
    world.live.foreign = [3, 4]
    assert world.go() is Result.FAILED
    assert "LUN 3, 4" in world.run.reason


@pytest.mark.parametrize("step", ["arm", "set", "verify_on", "fence", "drop_all", "sessions", "barrier", "flush_main",
                                  "freeze"])
def test_a_failure_before_the_freeze_sends_everybody_home(world, step):
    world.live.fail[step] = [StorageError(f"{step} says no")]
    assert world.go() is Result.ABANDONED
    assert world.run.reason == f"{step} says no"
    assert "copy_start" not in world.live.log and "discard" in world.live.log
    assert world.catalog.list() == []
    world.in_order("clear", "hold_hosts", "drain_hosts", "turn_home", "send_home")
    assert step == "arm" or world.live.log.index("disarm") < world.live.log.index("hold_hosts")


def test_a_host_that_cannot_be_moved_is_given_up_on(tmp_path):
    world = World(tmp_path, arm_limit_s=0.05)

    async def stays():
        world.live._step("drop_all")
        return 1
    world.driver.drop_all = stays
    assert world.go() is Result.ABANDONED
    assert "freeze" not in world.live.log


def test_a_busy_freeze_is_tried_again(world):
    world.live.fail["freeze"] = [BusyError("a request is running")] * 3
    assert world.go() is Result.DONE
    assert world.live.log.count("freeze") == 4


def test_a_host_that_comes_back_before_the_freeze_ends_the_backup(world):
    calls = []

    async def sessions():
        calls.append(1)
        return [MainSession("7", "iqn.late")] if len(calls) == 3 else []
    world.driver.sessions = sessions
    assert world.go() is Result.ABANDONED
    assert "freeze" not in world.live.log


@pytest.mark.parametrize("behaviour", [-2, -9, -4, -12])
def test_a_failed_copy_abandons_the_backup(world, behaviour):
    world.live.copy_behaviour = behaviour
    assert world.go() is Result.ABANDONED
    assert "the copy failed at byte 4096" in world.run.reason
    assert world.catalog.list() == []
    world.in_order("copy_stop", "forget_sink", "discard")
    assert "publish" not in world.live.log


@pytest.mark.parametrize("step", ["publish", "copy_start"])
def test_a_backup_storage_that_fails_late_abandons_the_backup(world, step):
    world.live.fail[step] = [StorageError("the disk is full")]
    assert world.go() is Result.ABANDONED
    assert world.run.reason == "the disk is full"
    assert world.catalog.list() == []


def test_a_catalog_that_cannot_be_written_stops_it_before_anything_is_changed(world, monkeypatch):
    def no(*_):
        raise StorageError("no catalog")
    monkeypatch.setattr(world.catalog, "put", no)
    assert world.go() is Result.FAILED
    assert world.run.reason == "no catalog" and "open_sink" not in world.live.log
    assert not {"set", "arm", "drop_all", "freeze"} & set(world.live.log)


def test_a_catalog_that_fails_later_abandons_the_backup(world, monkeypatch):
    puts, put = [], world.catalog.put

    def second_fails(*arguments):
        puts.append(arguments)
        if len(puts) == 2:
            raise StorageError("no catalog")
        return put(*arguments)
    monkeypatch.setattr(world.catalog, "put", second_fails)
    assert world.go() is Result.ABANDONED
    assert world.run.reason == "no catalog" and world.catalog.list() == []


def test_a_backup_storage_that_never_answers_is_left_behind(world):
    world.live.copy_behaviour = "stuck"

    async def cancel():
        await asyncio.sleep(0.05)
        world.run.cancel()
    assert world.go(cancel) is Result.CANCELLED
    world.in_order("copy_stop", "close_sink", "forget_sink", "discard")


@pytest.mark.parametrize("counters", [{"room_still_ns": 3 * 10**9}, {"room_wait_ns": 6 * 10**9}])
def test_a_full_journal_abandons_the_copy(world, counters):
    world.live.copy_behaviour = "hang"
    world.live.counters |= counters
    assert world.go() is Result.ABANDONED
    assert "journal is full" in world.run.reason


@pytest.mark.parametrize(("where", "what"), [(3, "backup storage"), (1, "journal")])
def test_a_fault_of_the_backup_or_the_journal_abandons_the_copy(world, where, what):
    world.live.copy_behaviour = "hang"

    async def fault():
        await world.until(lambda: "copy_start" in world.live.log)
        world.live.faults.put_nowait((-2, 77, where))
    assert world.go(fault) is Result.ABANDONED
    assert world.run.reason == f"the {what} failed at block 77"


def test_a_fault_of_an_earlier_run_is_forgotten(world):
    world.live.copy_behaviour = "hang"
    world.live.faults.put_nowait((-2, 77, 3))

    async def goes_on():
        await world.until(lambda: "copy_start" in world.live.log)
        await asyncio.sleep(0.05)
        world.live.counters["copied_bytes"] = SIZE
        world.live.ended.set_result(CopyEnd(0, SIZE, 0))
    assert world.go(goes_on) is Result.DONE


def test_a_fault_of_main_does_not(tmp_path):
    """Main is lost for a while: the copy waits, and stalls do not count."""
    world = World(tmp_path, stall_limit_s=1.0, guard_s=0.02)
    world.live.copy_behaviour = "hang"

    async def back():
        await world.until(lambda: "copy_start" in world.live.log)
        world.live.main_is_lost = True
        world.live.faults.put_nowait((-2, 77, 2))
        await asyncio.sleep(1.5)
        world.live.counters["copied_bytes"] = SIZE
        world.live.ended.set_result(CopyEnd(0, SIZE, 0))
        world.live.main_is_lost = False
    assert world.go(back) is Result.DONE
    assert world.run.warnings == ["main is lost, and tried again without an end: no route to main"]


def test_a_copy_that_stalls_is_abandoned(tmp_path):
    world = World(tmp_path, stall_limit_s=0.05)
    world.live.copy_behaviour = "hang"
    assert world.go() is Result.ABANDONED
    assert "not gone on" in world.run.reason


@pytest.mark.parametrize(("used", "rate", "result"), [(66, 0, Result.ABANDONED), (64, 0, Result.DONE),
                                                      (66, 2**20, Result.DONE)])
def test_a_copy_that_stalls_is_abandoned_sooner_when_the_journal_is_nearly_full(tmp_path, used, rate, result):
    """A bound on the rate makes the copy stand still by itself: that is no stall."""
    world = World(tmp_path, stall_pressed_s=0.05, copy_bytes_per_second=rate)
    world.live.copy_behaviour = "hang"
    world.live.counters |= {"journal_used_bytes": used, "journal_bytes": 100, "room_wait_ns": 4 * 10**9}

    async def goes_on():
        await world.until(lambda: "copy_start" in world.live.log)
        await asyncio.sleep(0.3)
        if not world.live.ended.done():
            world.live.counters["copied_bytes"] = SIZE
            world.live.ended.set_result(CopyEnd(0, SIZE, 0))
    assert world.go(goes_on) is result
    assert ("no room to wait" in world.run.reason) == (result is Result.ABANDONED)


@pytest.mark.parametrize("step", ["round", "send_home"])
def test_a_backup_that_is_found_damaged_does_not_count(world, step):
    """The host goes home as ever; the record stays, so that somebody may look at what is there."""
    original = world.live._step

    def damaged(name):
        if name.startswith(step):
            world.live.damaged_lba = 512
        return original(name)
    world.live._step = damaged
    assert world.go() is Result.ABANDONED
    assert "damaged at block 512" in world.run.reason
    assert [record.status for record in world.catalog.list()] == [Status.DAMAGED]
    assert "discard" not in world.live.log and world.run.document()["exit_code"] == 3


def test_a_stranger_on_main_spoils_the_copy(tmp_path):
    world = World(tmp_path, guard_s=0.02)
    world.live.copy_behaviour = "hang"

    async def stranger():
        await asyncio.sleep(0.1)
        world.driver.others = [MainSession("5", "iqn.stranger")]
        world.driver.address = None                    # main had lost its redirect
    assert world.go(stranger) is Result.ABANDONED
    assert "iqn.stranger" in world.run.reason
    assert world.live.log.count("drop_all") >= 2 and world.live.log.count("set") >= 2


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.REDIRECTING, Phase.FROZEN, Phase.COPYING, Phase.CATCHING_UP])
def test_a_cancel_at_any_moment(world, phase):
    world.live.copy_behaviour = "hang" if phase is not Phase.CATCHING_UP else "done"
    moved = world.run.phases._on_move

    def cancel_there(old, new, trigger):
        moved(old, new, trigger)
        if new is phase:
            world.run.cancel()
            world.run.cancel()
    world.run.phases._on_move = cancel_there
    result = world.go()
    if phase is Phase.CATCHING_UP:
        assert result is Result.DONE           # the backup was complete already
    else:
        assert result is Result.CANCELLED
        assert world.run.reason == "cancelled by the operator"
        assert world.catalog.list() == []


def test_a_cancel_before_the_start(world):
    world.run.cancel()
    assert world.go() is Result.CANCELLED
    assert world.live.log == []


def test_a_cancel_during_the_freeze_knows_that_it_is_frozen(world):
    slow = world.live.freeze

    async def freeze(*arguments):
        world.run.cancel()
        await asyncio.sleep(0.05)
        return await slow(*arguments)
    world.live.freeze = freeze
    assert world.go() is Result.CANCELLED
    world.in_order("freeze", "catch_up", "hold", "release", )


@pytest.mark.parametrize("step", ["round", "hold_hosts", "drain_hosts", "hold", "drain", "unfence", "clear",
                                  "verify_off", "catch_up", "release", "throttle", "resume_hosts", "unhold"])
def test_failures_on_the_way_home_are_tried_again_and_told(world, step):
    world.live.fail[step] = [StorageError(f"{step} says no")] * 3
    if step == "unhold":
        world.live.fail["release"] = [StorageError("not yet")]
    assert world.go() is Result.DONE
    assert any(f"{step} says no" in warning for warning in world.run.warnings)
    assert world.catalog.list()[0].status is Status.COMPLETE


def test_a_redirect_that_cannot_be_cleared_is_tried_again_and_the_host_is_served(world):
    """The journal is let go of before: a crash from here on replays nothing over what a host writes on main."""
    world.live.fail["verify_off"] = [StorageError("main still redirects"), StorageError("main still redirects")]
    assert world.go() is Result.DONE
    log = world.live.log
    assert log.count("clear") == 3 and log.count("release") == 1
    assert log.index("release") < log.index("clear") < log.index("resume_hosts") < log.index("turn_home")
    assert "unhold" not in log                                  # main is right: commands go straight to it
    assert any("main still redirects" in warning for warning in world.run.warnings)


def test_what_fails_before_the_release_leaves_the_host_on_the_overlay_behind_a_redirect(world):
    world.live.fail["flush_main"] = [StorageError("main does not flush")]
    steps = world.live._step

    def step(name):
        if name == "flush_main" and world.live.phase < 4:
            world.live.log.append(name)
            return
        steps(name)
    world.live._step = step
    assert world.go() is Result.DONE
    log = world.live.log
    assert log.index("unhold") < log.index("release") < log.index("clear")
    assert log.index("unhold") < log.index("resume_hosts")


def test_a_hold_that_takes_too_long_is_given_up(tmp_path):
    world = World(tmp_path, hold_limit_s=0.05)
    times = []

    async def drain():
        world.live._step("drain")
        times.append(1)
        if len(times) == 1:
            await asyncio.sleep(5)
    world.live.drain = drain
    assert world.go() is Result.DONE
    assert "unhold" in world.live.log
    assert any("took too long" in warning for warning in world.run.warnings)


class FastWriter(FakeLive):
    """Main takes 100 MB a second, and a host writes 150 as long as it is let."""

    def __init__(self):
        super().__init__()
        self.dirty, self.bound, self.bounds = 400_000_000, 0, []

    async def throttle(self, n, delay_s=5.0):
        await super().throttle(n, delay_s)
        self.bound = n
        self.bounds.append(n)

    async def round(self):
        self._step("round")
        done, seconds = self.dirty, max(self.dirty / 1e8, 1e-3)
        written = 0 if self.phase == 4 else int(min(1.5e8, self.bound or 1.5e8) * seconds)
        self.dirty = written
        self.counters["write_bytes"] += written
        await asyncio.sleep(0.002)
        return done, max(1, done // MIB), seconds


def writer_world(tmp_path, live, **settings):
    world = World(tmp_path, **settings)
    world.live = world.parts.live = live
    world.driver.live = live
    world.run = DetourRun(world.parts, "nightly", "a tag")
    return world


def test_a_host_faster_than_main_is_slowed_and_let_go_before_the_drain(tmp_path):
    world = writer_world(tmp_path, FastWriter())
    assert world.go() is Result.DONE
    bounds = world.live.bounds
    assert 0 < bounds[0] < 1e8 and bounds[-1] == 0
    world.in_order("throttle", "hold_hosts", "throttle", "drain_hosts", "release")
    cutover = world.documents[-1]["cutover"]
    assert cutover["throttle_least_bytes_per_second"] == bounds[0] and cutover["throttle_bytes_per_second"] == 0
    assert cutover["tries"] == 1


def test_the_bound_is_back_when_a_hold_was_given_up(tmp_path):
    world = writer_world(tmp_path, FastWriter())
    world.live.fail["drain"] = [StorageError("not drained")]
    assert world.go() is Result.DONE
    log = world.live.log
    assert world.live.bounds[:3] == [world.live.bounds[0], 0, world.live.bounds[0]]
    assert log.index("drain") < log.index("unhold") and log.count("hold_hosts") == 2


def test_a_hold_is_given_up_at_the_limit_of_the_pause_while_main_is_not_right(tmp_path):
    world = World(tmp_path, max_pause_s=0.15, hold_limit_s=5.0)
    flushes = []

    async def slow(limit_s=1.0):
        world.live._step("flush_main")
        if world.live.phase == 4:
            flushes.append(1)
            if len(flushes) <= 2:
                await asyncio.sleep(2)
    world.live.flush_main = slow
    assert world.go() is Result.DONE
    assert len(flushes) == 3 and world.live.log.count("unhold") == 2 and world.live.log.count("release") == 1
    assert world.documents[-1]["cutover"]["tries"] == 3
    assert world.documents[-1]["cutover"]["actual_ms"] < 1000


def test_a_pause_that_would_become_too_long_is_given_up_before_the_release(tmp_path):
    """Behind the release there is no way back to the overlay: the rest of the pause has to fit."""
    world = World(tmp_path, max_pause_s=0.2, hold_limit_s=5.0)
    world.parts.pause.met("redirect", 0.12)
    late = []

    async def flush(limit_s=1.0):
        world.live._step("flush_main")
        if world.live.phase == 4 and not late:
            late.append(1)
            await asyncio.sleep(0.12)
    world.live.flush_main = flush
    assert world.go() is Result.DONE
    log = world.live.log
    assert log.count("hold_hosts") == 2 and log.count("release") == 1
    assert log.index("unhold") < log.index("release")


def test_what_hosts_wrote_since_the_round_is_looked_at_again_before_the_hold(world):
    grown = []
    verify = world.driver.verify

    async def slow(address):
        await verify(address)
        if world.live.phase == CORE_CATCHING_UP and not grown:
            grown.append(1)
            world.live.dirty = 2**40
    world.driver.verify = slow
    assert world.go() is Result.DONE
    assert world.live.log.count("hold_hosts") == 1 and world.documents[-1]["cutover"]["tries"] == 1
    assert world.run.figures.caught_up_bytes > 2**40


def test_the_hook_gets_its_words(tmp_path):
    out = tmp_path / "out"
    world = World(tmp_path / "catalog", hook=("sh", "-c", f'echo "$DETOUR_VOLUME $DETOUR_PIT_NS $DETOUR_TAG" > {out}'))
    assert world.go() is Result.DONE
    assert out.read_text() == "db01 1700000000000000000 a tag\n"
    assert world.run.warnings == []


@pytest.mark.parametrize(("hook", "words"), [(("false",), "ended with 1"), (("sleep", "60"), "took longer"),
                                             (("/nonexistent",), "cannot be run")])
def test_a_bad_hook_is_a_warning(tmp_path, hook, words):
    world = World(tmp_path, hook=hook, hook_limit_s=0.2)
    assert world.go() is Result.DONE
    assert any(words in warning for warning in world.run.warnings)


def test_reads_come_from_the_backup_only_when_it_is_complete(tmp_path):
    world = World(tmp_path / "1", reads_from_backup=True)
    world.go()
    assert "catch_up True" in world.live.log
    world = World(tmp_path / "2", reads_from_backup=True)
    world.live.copy_behaviour = -2
    world.go()
    assert "catch_up" in world.live.log and "catch_up True" not in world.live.log


def test_after_a_restart_the_copy_goes_on(world):
    record = partial_record(world)
    world.restarted(CORE_COPYING, record)
    assert world.go() is Result.DONE
    assert "open_sink resume" in world.live.log and "freeze" not in world.live.log
    assert world.catalog.get("db01-1").status is Status.COMPLETE
    assert world.run.id == "db01-abc" and world.run.tag == "old"


def test_after_a_restart_a_complete_backup_is_not_opened_again(world):
    complete = partial_record(world).model_copy(update={"status": Status.COMPLETE})
    world.restarted(CORE_COPYING, world.catalog.put(complete, b"\0" * 16))
    assert world.go() is Result.DONE
    assert {"open_sink resume", "copy_start"}.isdisjoint(world.live.log) and "catch_up" in world.live.log
    assert len(world.catalog.list()) == 1


def test_after_a_restart_without_the_backup_storage_the_host_goes_home(world):
    world.restarted(CORE_COPYING, partial_record(world))
    world.live.fail["open_sink resume"] = [StorageError("the image that was begun is gone")]
    assert world.go() is Result.ABANDONED
    assert world.catalog.list() == []


@pytest.mark.parametrize("complete", [True, False])
def test_after_a_restart_while_catching_up(world, complete):
    record = partial_record(world)
    if complete:
        record = world.catalog.put(record.model_copy(update={"status": Status.COMPLETE}), b"\0" * 16)
    world.restarted(CORE_CATCHING_UP, record)
    assert world.go() is (Result.DONE if complete else Result.ABANDONED)
    assert len(world.catalog.list()) == complete


def test_after_a_restart_before_the_freeze_only_the_redirect_is_cleared(world):
    world.restarted(CORE_PASS, None)
    assert world.go() is Result.ABANDONED
    assert {"catch_up", "round", "freeze"}.isdisjoint(world.live.log)


def test_a_gateway_that_stops_leaves_everything_to_its_next_start(world):
    world.live.copy_behaviour = "hang"

    async def stopped():
        task = asyncio.create_task(world.run.run())
        while world.live.phase != CORE_COPYING:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    asyncio.run(stopped())
    assert world.live.phase == CORE_COPYING and world.driver.address == GATEWAY
    assert {"clear", "catch_up", "send_home", "discard"}.isdisjoint(world.live.log)
    assert world.run.result is None and world.marker.read()


def test_an_unexpected_error_still_leads_home(world):
    world.live.fail["copy_start"] = [ZeroDivisionError("a mistake")]
    assert world.go() is Result.ABANDONED
    assert "ZeroDivisionError" in world.run.reason


# -- steps whose end is not known --------------------------------------------------------------------------------------

def test_a_freeze_that_comes_after_it_was_given_up_is_caught_up(world):
    """The journal's disk was so slow that the freeze was given up: the core froze all the same."""
    async def freeze(pit_id, note):
        world.live._step("freeze")
        raise TimeoutError_("the freeze took longer than 20 s")
    world.live.freeze = freeze
    disarms = []

    async def disarm():
        disarms.append(1)
        world.live._step("disarm")
        if len(disarms) == 2:
            world.live.phase = CORE_COPYING
        raise BusyError("the phase is being written")
    world.live.disarm = disarm
    assert world.go() is Result.ABANDONED
    assert len(disarms) == 2
    world.in_order("freeze", "disarm", "catch_up", "hold", "release", "clear")


def test_a_release_that_is_late_is_waited_for_before_hosts_go_on(tmp_path):
    world = World(tmp_path, hold_limit_s=0.05)
    release = world.live.release

    async def late():
        await asyncio.sleep(0.15)
        await release()
    world.live.release = late
    assert world.go() is Result.DONE
    log = world.live.log
    assert log.index("release") < log.index("resume_hosts") and "unhold" not in log


@pytest.mark.parametrize("step", ["drain_hosts", "round", "release", "clear", "send_home", "catch_up"])
def test_a_mistake_of_the_program_on_the_way_home_still_leads_home(world, step):
    world.live.fail[step] = [ZeroDivisionError("a mistake")] * 2
    assert world.go() is Result.DONE
    assert any("ZeroDivisionError" in warning for warning in world.run.warnings)


def test_hosts_are_not_held_for_a_main_whose_control_does_not_answer(world):
    """As long as main cannot be asked, nobody waits for it."""
    answers = []
    verify = world.driver.verify

    async def dead(address):
        if world.live.phase == CORE_CATCHING_UP and len(answers) < 4:
            answers.append(1)
            raise StorageError("main's API cannot be reached")
        await verify(address)

    async def dead_set(address):
        if world.live.phase == CORE_CATCHING_UP:
            raise StorageError("main's API cannot be reached")
        world.driver.address = address
    world.driver.verify, world.driver.set = dead, dead_set
    assert world.go() is Result.DONE
    assert world.live.log.count("hold_hosts") == 1 and len(answers) == 4


def test_hosts_are_not_held_while_the_redirect_cannot_be_cleared(world):
    world.live.fail["clear"] = [StorageError("main does not obey")] * 5
    assert world.go() is Result.DONE
    log = world.live.log
    assert log.count("clear") == 6 and log.count("hold_hosts") == 2
    assert log.index("resume_hosts") < len(log) - 1 - log[::-1].index("clear")


# -- the backup storage ------------------------------------------------------------------------------------------------

def test_an_image_that_is_never_completed_is_given_up(tmp_path):
    world = World(tmp_path, stall_limit_s=0.05)

    class Hangs(FakeSink):
        async def publish(self):
            self.live._step("publish")
            await asyncio.sleep(60)

    async def open_sink(backup_id, announce):
        await announce(world.place)
        return Hangs(world.live)
    world.parts.open_sink = open_sink
    assert world.go() is Result.ABANDONED
    assert "did not complete the image" in world.run.reason
    assert "the backup storage or the catalog does not answer" in world.run.warnings
    assert world.catalog.list() == []


def test_a_cancel_when_the_backup_is_complete_comes_too_late(world):
    put = world.catalog.put

    def slow(record, checksums=None):
        if record.status is Status.COMPLETE:
            world.run.cancel()
            time.sleep(0.05)
        return put(record, checksums)
    world.catalog.put = slow
    assert world.go() is Result.DONE
    assert world.catalog.list()[0].status is Status.COMPLETE and world.documents[-1]["reason"] is None


def test_a_gateway_that_was_killed_anywhere_leaves_a_record_of_what_it_wrote(world):
    seen = []
    opened = world.parts.open_sink

    async def look(backup_id, announce):
        async def announced(place):
            await announce(place)
            seen.extend(world.catalog.list())           # before anything is made there
        return await opened(backup_id, announced)
    world.parts.open_sink = look
    assert world.go() is Result.DONE
    assert [(one.status, one.pit_ns, one.partial_path) for one in seen] == [
        (Status.PARTIAL, 0, world.place.partial_path)]


def test_an_image_that_cannot_be_made_leaves_no_record_of_it(world):
    world.live.fail["open_sink"] = [StorageError("the file system is full")]
    assert world.go() is Result.FAILED
    assert world.catalog.list() == []


def test_the_marker_names_what_a_restart_needs(world):
    told = []
    armed = world.driver.set

    async def look(address):
        told.append(world.marker.read())
        await armed(address)
    world.driver.set = look
    world.go()
    assert told == [{"detour": world.run.id, "volume": "db01", "address": "127.0.0.2:3260",
                     "backup": world.run.backup_id, "journal": "/state/db01.journal",
                     "cutover_held": False}]


@pytest.mark.parametrize("step", ["hold_hosts", "clear", "send_home", "forget"])
def test_no_disk_is_waited_for_while_hosts_are_held(world, step):
    """The marker goes when hosts are home: a gateway that is killed before finds it, and clears main's redirect."""
    kept, told = [], world.live._step

    def look(name):
        if name == step:
            kept.append(world.marker.kept)
        told(name)
    world.live._step = look
    assert world.go() is Result.DONE
    assert kept == [True] and not world.marker.kept
    world.in_order("send_home", "forget")


def test_what_a_driver_cannot_forget_keeps_nobody_away(world):
    world.live.fail["forget"] = [StorageError("the disk is gone")]
    assert world.go() is Result.DONE
    assert any("the disk is gone" in warning for warning in world.run.warnings) and not world.marker.kept


def test_what_was_written_while_the_hold_was_prepared_is_not_left_for_it(world):
    """Rounds before the hold, while each at least halves what is left; what they cannot do, the hold does."""
    live, prepare = world.live, world.live.sync_journal

    async def write_meanwhile(limit_s):
        await prepare(limit_s)
        live.dirty = 6_400_000
    live.sync_journal = write_meanwhile
    assert world.go() is Result.DONE
    log = live.log
    held = log.index("hold_hosts")
    synced = held - 1 - log[:held][::-1].index("sync_journal")
    assert log[synced + 1:held] and set(log[synced + 1:held]) == {"round"}
    assert world.documents[-1]["cutover"]["parts_ms"].keys() == {
        "drain", "data", "flush", "release", "registrations", "redirect", "leave"}


def test_rounds_that_do_not_shorten_the_hold_are_not_repeated(world):
    live, round_, rounds = world.live, world.live.round, []

    async def stubborn():
        if "sync_journal" in live.log and live.phase == 3:
            rounds.append(live.dirty)
            live.log.append("round")
            return live.dirty, 1, 0.001         # the host writes as fast as main takes it
        return await round_()

    async def write_meanwhile(limit_s):
        live.log.append("sync_journal")
        live.dirty = 6_400_000
    live.round, live.sync_journal = stubborn, write_meanwhile
    assert world.go() is Result.DONE
    assert len(rounds) == 1


@pytest.mark.parametrize("failure", [BusyError("still running"), StorageError("main does not answer")])
def test_a_round_before_the_hold_that_fails_does_not_keep_hosts_away(world, failure):
    live, round_, failed = world.live, world.live.round, []

    async def one():
        if "sync_journal" in live.log and live.phase == 3 and not failed:
            failed.append(True)
            raise failure
        return await round_()

    async def write_meanwhile(limit_s):
        live.log.append("sync_journal")
        live.dirty = 6_400_000
    live.round, live.sync_journal = one, write_meanwhile
    assert world.go() is Result.DONE and failed
    assert any("a round before the hold" in warning for warning in world.run.warnings)


def test_a_release_that_comes_after_it_was_given_up_is_seen(world):
    """The core let go of the volume behind the driver: rounds make no sense any more, the redirect is cleared."""
    live, rounds, holds = world.live, world.live.round, world.live.hold

    async def hold():
        if live.phase == CORE_PASS:
            raise UsageError("there is nothing to hold")
        await holds()

    async def release():
        live._step("release")
        if live.log.count("release") == 1:
            asyncio.get_running_loop().call_later(0.03, lambda: setattr(live, "phase", CORE_PASS))
            raise TimeoutError_("the release took longer than 20 s")
        live.phase = CORE_PASS

    async def round_():
        if live.phase == CORE_PASS:
            raise UsageError("there is nothing to catch up")
        await asyncio.sleep(0.05)
        return await rounds()
    live.release, live.round, live.hold = release, round_, hold
    assert world.go() is Result.DONE
    assert live.log.count("release") == 1
    assert live.log.index("release") < live.log.index("clear")


def held_world(folder, **options):
    world = World(folder)
    world.live.dirty = 10
    world.run = DetourRun(world.parts, "nightly", **options)
    return world


def test_the_operator_holds_the_cutover_back_and_lets_it_come(tmp_path):
    world = held_world(tmp_path, hold_cutover=True)

    async def beside():
        await world.until(lambda: world.run.document()["waits_because"])
        assert world.run.phases.now is Phase.CATCHING_UP and world.run.document()["cutover_held"]
        assert world.marker.read()["cutover_held"] and "hold_hosts" not in world.live.log
        world.run.open_gate()
        world.run.open_gate()
        assert not world.marker.read()["cutover_held"]
    assert world.go(beside) is Result.DONE
    last = world.documents[-1]
    assert (last["cutover_held"], last["waits_because"]) == (False, None)
    assert any(document["waits_because"] == "the operator holds the cutover back" for document in world.documents)


def test_a_cancel_passes_the_gate(tmp_path):
    world = held_world(tmp_path, hold_cutover=True)

    async def beside():
        await world.until(lambda: world.run.document()["waits_because"])
        world.run.cancel()
    assert world.go(beside) is Result.DONE          # the backup was complete already
    world.in_order("hold_hosts", "turn_home")


def test_a_detour_that_is_given_up_does_not_wait_for_the_operator(tmp_path):
    world = held_world(tmp_path, hold_cutover=True)
    world.live.copy_behaviour = -3
    assert world.go() is Result.ABANDONED


def test_a_closed_window_holds_the_cutover_back_until_it_opens(tmp_path):
    now = datetime.now().astimezone()
    closed = f"{now + timedelta(hours=2):%H}:00-{now + timedelta(hours=3):%H}:00"
    world = World(tmp_path, cutover_windows=(Window.parse(closed),))
    world.live.dirty = 10

    async def beside():
        await world.until(lambda: world.run.document()["waits_because"])
        assert "the window for the cutover opens at" in world.run.document()["waits_because"]
        world.run.open_gate()
    assert world.go(beside) is Result.DONE


@pytest.mark.parametrize("held", [True, False])
def test_after_a_restart_the_gate_is_as_it_was(tmp_path, held):
    world = World(tmp_path)
    record = BackupRecord(id="x", volume="db01", store="nightly", url="file:///x", size_bytes=SIZE, block_bytes=512,
                          status=Status.COMPLETE, detour="d", pit_ns=7)
    world.restarted(CORE_CATCHING_UP, record)
    world.live.dirty = 10
    world.run.resume(CORE_CATCHING_UP, record, cutover_held=held)

    async def beside():
        if held:
            await world.until(lambda: world.run.document()["waits_because"])
            assert "hold_hosts" not in world.live.log
            world.run.open_gate()
    assert world.go(beside) is Result.DONE


def test_a_session_that_does_not_come_stops_the_detour_before_the_freeze(tmp_path):
    world = World(tmp_path, move_limit_s=0.1)
    world.driver.others = [MainSession("1", "iqn.host"), MainSession("2", "iqn.host"), MainSession("3", "iqn.other")]
    assert world.go() is Result.ABANDONED
    assert world.run.reason == "iqn.host, iqn.other did not come to the gateway within 0.1 s"
    assert "freeze" not in world.live.log
    world.in_order("drop_all", "barrier", "disarm", "clear", "turn_home", "send_home")


def test_a_session_that_comes_late_is_waited_for(tmp_path):
    world = World(tmp_path)
    come, world.live.arrived = world.live.arrived, []

    async def beside():
        await world.until(lambda: "flush_main" in world.live.log)
        await asyncio.sleep(0.05)
        assert "freeze" not in world.live.log
        world.live.arrived = come
    assert world.go(beside) is Result.DONE


def test_a_main_whose_reservations_keep_the_gateway_out_is_left_alone(world):
    world.live.fail["check_reservations"] = [StorageError("main is reserved by iqn.cluster")]
    assert world.go() is Result.FAILED
    assert "iqn.cluster" in world.run.reason and "set" not in world.live.log


def test_a_reservation_that_comes_late_sends_hosts_home_before_the_freeze(world):
    world.live.fail["take_over"] = [StorageError("main is reserved by iqn.cluster")]
    assert world.go() is Result.ABANDONED
    assert "freeze" not in world.live.log and "forget_reservations" in world.live.log


def test_what_cannot_be_brought_back_is_told(world):
    world.live.lacking = ["main has the registrations from before the detour"]
    assert world.go() is Result.DONE
    assert world.documents[-1]["warnings"] == world.live.lacking
