"""One detour run: the only place that knows phases, redirect, core and backup together.

    outward    checks, redirect, drop, barrier, freeze, hook, copy      may be given up at any point
    homeward   catch-up rounds, hold, drain, last round, flush, clear the redirect, send home    never gives up

The outward way runs as a task of its own, so that a cancel or a fault ends it wherever it is. Whatever it left behind,
the homeward way goes on from what the core says: with a frozen volume over catch-up, else straight to clearing the
redirect. Each homeward step that fails is tried again while the host is served; rule 10 of the design: home is always
reachable, and may be asked for twice. Nothing but the end of the gateway ends a run before its host is home.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any

import structlog

from detour.backups.catalog import BackupRecord
from detour.capacity import CapacityWatch, check_size, fit_size
from detour.catch_up import CatchUp
from detour.copy_stage import CopyStage
from detour.cutover import Step
from detour.errors import BusyError, DetourError, StorageError
from detour.gate import Gate
from detour.hook import run_hook
from detour.journal_end import JOURNAL_FAILED, JournalEnd
from detour.phases import EXIT_CODES, Phase, Phases, Result, Trigger
from detour.progress import Figures, iso
from detour.run_parts import (
    CORE_ARMED,
    CORE_COPYING,
    CORE_HOLDING,
    CORE_PASS,
    Backoff,
    GiveUp,
    RunParts,
    end_tasks,
    sentence_of,
)
from detour.watch import MainWatch
from detour.way_home import WayHome
from detour.way_in import WayIn

log = structlog.get_logger(__name__)

WARNINGS_MAX = 50


class DetourRun:
    """One run of one volume. `run()` is its task; everything else may be called at any time."""

    def __init__(self, parts: RunParts, store: str, tag: str = "", hold_cutover: bool = False) -> None:
        self.parts = parts
        self.live = parts.live
        self.settings = parts.settings
        self.id = f"{parts.live.name}-{secrets.token_hex(6)}"
        self.store = store
        self.tag = tag
        self.started_at = time.time()
        self.pit_ns = 0
        self.result: Result | None = None       # set when the run is over
        self.reason = ""
        self.warnings: list[str] = []
        self.phases = Phases(self._moved)
        self.figures = Figures(parts.live)
        self._rounds = CatchUp(parts, self.figures, self._quietly)
        self.gate = Gate(parts.settings.cutover_windows, hold_cutover)
        self._waits_because = ""                # the cutover would fit, and is held back
        self._outcome: Result | None = None     # what the result will be
        self._uncut: set[asyncio.Task[Any]] = set()     # steps of the core: their end is always waited for
        self._cancelled = asyncio.Event()
        self._changed = asyncio.Event()          # set, and replaced, at each change
        self._watch = MainWatch(parts, self._must_redirect, self._warn)
        self._copying = CopyStage(parts, self.figures, self._watch, self._quietly)
        self._copy_leaving: asyncio.Task[None] | None = None
        self._journal_end = JournalEnd(parts, self._warn)
        self._way_in = WayIn(parts)
        self._way_home = WayHome(parts, self._warn)
        self._resume_phase: int | None = None
        self._held_since: float | None = None

    # -- asked from outside ------------------------------------------------------------------------------------------

    def cancel(self, reason: str = "cancelled by the operator") -> None:
        """Ends the copy, catches up, sends the host home. May be asked for twice, and at any time."""
        if not self._cancelled.is_set() and not self.phases.homeward:
            self.reason = self.reason or reason
        self._cancelled.set()

    def open_gate(self) -> None:
        """Lets the host go home as soon as the pause fits, whatever the operator said before and the windows say. May
        be asked for twice, and at any time."""
        self.gate.open()
        with contextlib.suppress(DetourError, OSError):        # only a restart would ask for the operator once more
            self._mark()

    @property
    def over(self) -> bool:
        return self.phases.over

    @property
    def backup_id(self) -> str:
        return self._copying.backup_id

    @property
    def record(self) -> BackupRecord | None:
        """What the catalog has of the backup; None before it is begun and when it was given up."""
        return self._copying.record

    def document(self) -> dict[str, Any]:
        """The progress document."""
        return {"id": self.id, "volume": self.live.name, "store": self.store, "tag": self.tag,
                "phase": self.phases.now.value, "started_at": iso(self.started_at), "pit_at": iso(self.pit_ns / 1e9),
                "volume_bytes": self.figures.volume_bytes, **self.figures.sections(),
                "result": self.result.value if self.result else None, "reason": self.reason or None,
                "warnings": list(self.warnings), "cutover_held": self.gate.held,
                "waits_because": self._waits_because or None,
                "backup_id": self.record.id if self.record is not None else None,
                "backup": None if self.record is None else {"id": self.record.id, "url": self.record.url,
                                                            "status": self.record.status.value},
                "exit_code": EXIT_CODES[self.result] if self.result else None}

    async def follow(self, every_s: float = 1.0) -> AsyncIterator[dict[str, Any]]:
        """A document now, at each change of phase, and every `every_s`; the last one has the result."""
        while True:
            changed, document = self._changed, self.document()
            yield document
            if document["result"] is not None:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await changed.wait()

    # -- the run -----------------------------------------------------------------------------------------------------

    def resume(self, phase: int, record: BackupRecord | None, detour_id: str = "", cutover_held: bool = False) -> None:
        """Before `run`: the gateway was started again and the core is in `phase` (CORE_PASS: only the redirect has to
        be cleared). `record` is what the catalog has of the backup, `detour_id` the run's id of old, `cutover_held`
        whether the operator still holds the cutover back."""
        self._resume_phase = phase
        self._journal_end.begin()
        self.gate.held = cutover_held
        self.id = detour_id or self.id
        self._copying.resume(record)
        if record is not None:
            self.pit_ns, self.tag = record.pit_ns, record.tag
            self.id = record.detour or self.id
            self.started_at = record.started_ns / 1e9 or self.started_at

    async def run(self) -> Result:
        """The whole run. CancelledError passes (the gateway stops; the journal keeps what is needed to go on)."""
        beside = [asyncio.create_task(self._tick()), asyncio.create_task(self._watch.run()),
                  asyncio.create_task(self._journal_end.watch()),
                  asyncio.create_task(CapacityWatch(self.parts, self._warn, self._watch.spoil).run())]
        try:
            if self._resume_phase == CORE_PASS:
                await self._way_home.look()
            await self._outward()
            await self._until_home()
        finally:
            await end_tasks(*beside)
        self.figures.settle()
        self.result = self._outcome or Result.DONE
        log.info("the detour is over", volume=self.live.name, detour=self.id, result=self.result.value,
                 reason=self.reason or None)
        self._tell()
        return self.result

    async def _outward(self) -> None:
        """Runs the steps until they end, fail, or are cancelled; what came of it is in `_outcome` and `reason`."""
        if self._cancelled.is_set():
            self._outcome = Result.CANCELLED
            return
        steps = asyncio.create_task(self._steps() if self._resume_phase is None else self._resumed_steps())
        cancelled = asyncio.create_task(self._cancelled.wait())
        failed = asyncio.create_task(self._journal_end.failed())
        try:
            await asyncio.wait({steps, cancelled, failed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(cancelled, failed, steps)
        if steps.cancelled():
            self._outcome = Result.CANCELLED if self._cancelled.is_set() else Result.ABANDONED
            self.reason = self.reason or JOURNAL_FAILED
            return
        error = steps.exception()
        if error is None:
            return
        early = self.phases.now in (Phase.IDLE, Phase.PREPARING)
        self._outcome = Result.FAILED if early else Result.ABANDONED
        self.reason = error.reason if isinstance(error, GiveUp) else sentence_of(error)
        if not early and self.live.journal_has_failed:
            self.reason = JOURNAL_FAILED
        log.warning("the backup is given up", volume=self.live.name, detour=self.id, phase=self.phases.now.value,
                    reason=self.reason, exc_info=None if isinstance(error, GiveUp | DetourError) else error)

    async def _steps(self) -> None:
        self.phases.move(Phase.PREPARING)
        await self._prepare()
        self._begin_mark()
        self.phases.move(Phase.REDIRECTING)
        try:
            async with asyncio.timeout(self.settings.arm_limit_s):
                await self._way_in.redirect()
                await self._freeze()
        except TimeoutError:
            raise GiveUp(Result.ABANDONED, f"the hosts could not be moved within {self.settings.arm_limit_s:g} s"
                         ) from None
        self.phases.move(Phase.FROZEN)
        await self._copying.taken(self.pit_ns)
        await self._hook()
        self.phases.move(Phase.COPYING)
        await self._copying.run()

    async def _resumed_steps(self) -> None:
        """After a restart, from what the journal says."""
        self._watch.vouched = self._copying.is_complete
        await self._watch.look()                # main may have lost its redirect while nobody looked
        if self._resume_phase != CORE_COPYING:
            if not self._copying.is_complete:
                self._outcome = Result.ABANDONED
                self.reason = ("the gateway was started again before the point in time"
                               if self._resume_phase == CORE_PASS and not self.pit_ns else
                               "the gateway was started again after the backup had been given up")
            return
        self.figures.frozen = True
        self.phases.move(Phase.COPYING, Trigger.RECOVERY)
        if self.record is None:
            raise GiveUp(Result.ABANDONED, "the gateway was started again, and the catalog has no record of the backup")
        if self._copying.is_complete:           # the gateway ended just before the journal said so too
            return
        await self._copying.reopen()
        await self._copying.run()

    def _must_redirect(self) -> bool:
        """From the freeze to the release: what hosts wrote since is not all on main."""
        return self.live.phase >= CORE_COPYING

    # -- outward -----------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Checks; changes nothing on main. The room of the backup storage is checked by opening it."""
        live = self.live
        await live.check_main(self.settings.check_limit_s)
        if live.phase != CORE_PASS:
            raise BusyError(f"the volume {live.name} is in a detour already")
        await live.forget_sink(self.settings.sink_limit_s)      # the backup storage of an earlier run has let go
        await self._journal_end.renew()
        await fit_size(self.parts)
        await self.parts.driver.prepare()
        foreign = await live.foreign_disks()
        if foreign:
            raise StorageError(
                f"main's target has disks that are not configured: LUN {', '.join(map(str, foreign))}",
                hint="A redirect moves the whole target; configure these LUNs as volumes, or give them another target.")
        for volume in self._way_in.volumes:
            await volume.check_reservations()
        await self._copying.open(BackupRecord(
            id=self.backup_id, volume=live.name, detour=self.id, store=self.store, url="", tag=self.tag,
            size_bytes=live.size_bytes, block_bytes=live.block_bytes, started_ns=int(self.started_at * 1e9)))

    def _begin_mark(self) -> None:
        """The last of the checks: a gateway that could not keep it could not find its detour again. StorageError."""
        try:
            self._mark(begin=True)
        except OSError as error:
            self.parts.marker.forget()
            raise StorageError(f"the state folder cannot be written: {error.strerror}") from None

    def _mark(self, begin: bool = False) -> None:
        """Notes this run where the gateway's next start finds it, for as long as main may be redirecting."""
        if begin or self.parts.marker.kept:
            self.parts.marker.write({"detour": self.id, "volume": self.live.name, "address": str(self.parts.address),
                                     "backup": self.backup_id, "journal": str(self.live.journal_path),
                                     "cutover_held": self.gate.held})

    async def _freeze(self) -> None:
        """Main redirects and nobody else is on it: its content is the point in time from here on. The freeze itself is
        not cut short by a cancel: whether the core is frozen must be known."""
        await self._way_in.check_before_freeze()
        await check_size(self.live)
        note = {"volume": self.live.name, "detour": self.id, "backup": self.backup_id, "store": self.store}
        while True:
            try:
                await self._whole(self._freeze_now(note))
                break
            except BusyError:
                await asyncio.sleep(0.01)
        for volume in self.live.siblings:
            await volume.disarm()
        log.info("main is frozen", volume=self.live.name, detour=self.id, pit_ns=self.pit_ns)

    async def _freeze_now(self, note: dict[str, Any]) -> None:
        self.pit_ns = await self.live.freeze(os.urandom(16), note)
        self.figures.frozen = True
        self._copying.frozen()

    async def _whole(self, step: Coroutine[Any, Any, None]) -> None:
        """A step that a cancel does not cut short: the way home waits for its end, so that what it did is known."""
        task = asyncio.create_task(step)
        self._uncut.add(task)
        await asyncio.shield(task)

    async def _hook(self) -> None:
        """The administrator's command at the freeze. Its failure is a warning: the point in time is taken already."""
        if self.settings.hook:
            failure = await run_hook(self.settings.hook, {
                "DETOUR_VOLUME": self.live.name, "DETOUR_PIT_NS": str(self.pit_ns), "DETOUR_ID": self.id,
                "DETOUR_BACKUP_ID": self.backup_id, "DETOUR_TAG": self.tag}, self.settings.hook_limit_s)
            if failure:
                self._warn(failure)

    # -- homeward ----------------------------------------------------------------------------------------------------

    async def _until_home(self) -> None:
        """The homeward way, again from where the core is when a step failed in a way that nobody thought of."""
        waits = Backoff(self.settings)
        while True:
            try:
                await self._homeward()
                return
            except Exception as error:
                log.exception("the way home failed and is tried again", volume=self.live.name, detour=self.id)
                self._warn(f"the way home failed and is tried again: {sentence_of(error)}")
                await self._serve_again()
                if self.phases.now is Phase.HOLDING and self.live.phase >= CORE_COPYING:
                    self.phases.move(Phase.CATCHING_UP, Trigger.FAULT)
                await asyncio.sleep(waits.next())

    async def _homeward(self) -> None:
        await self._settle()
        if self._nothing_changed():
            await self._stay_home()
            return
        given_up = self._outcome is not None
        trigger = Trigger.OPERATOR if self._outcome is Result.CANCELLED else Trigger.FAULT
        if given_up and self.phases.may(Phase.ABANDONING, trigger):
            self.phases.move(Phase.ABANDONING, trigger)
        if given_up and self._copy_leaving is None:
            self._copy_leaving = asyncio.create_task(self._copying.give_up())
        edge = Trigger.RECOVERY if self.phases.now is Phase.IDLE else Trigger.DRIVER
        await self._let_through()
        if self.live.phase >= CORE_COPYING:
            self.figures.frozen = True
            from_backup = self.settings.reads_from_backup and not given_up and self._copying.sink is not None
            await self._journal_end.noted()
            await self._insist("catch-up", lambda: self._rounds.rehearse("release", self.live.catch_up(from_backup)))
            self._enter(Phase.CATCHING_UP, edge)
            await self._catch_up()
        else:
            await self._clear_and_hold()
            self._enter(Phase.GOING_HOME, edge)
        await self._send_home()
        if self._copy_leaving is not None:
            await self._copy_leaving
        else:
            await self._copying.close()
        await self._look_at_backup()
        self.phases.move(Phase.HOME)

    async def _look_at_backup(self) -> None:
        """Rule 9: what catch-up has read of the backup was not what the copy had written there."""
        lba = self.live.damaged_lba
        if lba is not None and self._copying.is_complete:
            self._outcome = Result.ABANDONED
            self.reason = f"the backup is damaged at block {lba}: it does not hold what was written there"
            await self._quietly("marking the backup as damaged", self._copying.condemn())

    async def _settle(self) -> None:
        """Waits for what was begun and could not be cut short, and takes its outcome into account."""
        await asyncio.gather(*self._uncut, return_exceptions=True)
        if not await self._copying.settle():
            self._warn("the backup storage or the catalog does not answer")
        if self._copying.is_complete and (self._outcome is Result.CANCELLED or self.reason == JOURNAL_FAILED):
            self._outcome, self.reason = None, ""       # it came when the backup was complete already

    def _nothing_changed(self) -> bool:
        return (self._outcome is not None and self._resume_phase is None
                and self.phases.now in (Phase.IDLE, Phase.PREPARING))

    def _enter(self, phase: Phase, trigger: Trigger) -> None:
        if self.phases.now is not phase:
            self.phases.move(phase, trigger)

    async def _stay_home(self) -> None:
        """Nothing on main or on the host's way was changed."""
        if self.phases.now is Phase.IDLE:
            self.phases.move(Phase.PREPARING)
        if self._copying.is_begun:
            await self._copying.give_up()
        self.phases.move(Phase.HOME, Trigger.OPERATOR if self._outcome is Result.CANCELLED else Trigger.FAULT)

    async def _let_through(self) -> None:
        """Commands that waited for a freeze which did not come go straight to main, once no old write of a dropped
        session can land there behind them; those of the other volumes of the target in any case."""
        if self.live.phase == CORE_ARMED:
            resumed = self._resume_phase is not None
            await self._quietly("waiting for old writes on main", self._way_in.no_stale_writes(resumed))
            for volume in self._way_in.volumes:
                await self._quietly("taking over main's reservations", volume.take_over(again=False))
        for volume in self._way_in.volumes:
            await self._insist("letting commands through to main", lambda one=volume: self._disarm(one))

    @staticmethod
    async def _disarm(volume: Any) -> None:
        if volume.phase == CORE_ARMED:          # else a freeze that was slow came after all
            await volume.disarm()

    async def _catch_up(self) -> None:
        """Rounds (S501-S514) until the decision (S601-S603) lets the host go home and that has worked."""
        waits = Backoff(self.settings)
        self._rounds.begin()
        while True:
            await self._look_at_backup()
            if self.live.phase < CORE_COPYING:      # a release that was given up as too slow has come after all
                self.phases.move(Phase.HOLDING)
                await self._clear_and_hold()
                self.phases.move(Phase.GOING_HOME)
                return
            try:
                decision = await self._rounds.round(self._may_go)
            except BusyError:                       # a round of a hold that was given up still runs
                await asyncio.sleep(self.settings.poll_s)
                continue
            except DetourError as error:
                self._warn(f"a catch-up round failed: {sentence_of(error)}")
                await asyncio.sleep(waits.next())
                continue
            if decision.step is Step.HOLD:
                if await self._cut_over(waits):
                    return
            elif decision.step is Step.THROTTLE:
                await self._rounds.slow(decision.bytes_per_second, decision.reason)
            else:
                await asyncio.sleep(decision.seconds if decision.step is Step.WAIT else 0.0)

    def _may_go(self) -> bool:
        """Whether neither operator nor window holds the host back. A detour that is given up ends at once."""
        over = (self._outcome is not None or self._cancelled.is_set() or self.live.journal_has_failed
                or self.live.reservations_unkept)
        because = "" if over else self.gate.closed_because(datetime.now().astimezone())
        if because != self._waits_because:
            log.info("the cutover is held back" if because else "the cutover may come", volume=self.live.name,
                     detour=self.id, reason=because or None)
            self._waits_because = because
            self._tell()
        return not because

    async def _cut_over(self, waits: Backoff) -> bool:
        """S601-S604, S701-S704. False: it was put off, and the host is served on, still on the overlay."""
        async with self._watch.lock:
            try:
                await self._watch.keep_redirecting()        # hosts are not held for a main that does not answer
            except (DetourError, OSError) as error:
                self._warn(f"the way home was put off: {sentence_of(error)}")
                home = None
            else:
                await self._quietly("a sync of the journal", self._rounds.prepare_hold())
                await self._quietly("a round before the hold", self._rounds.shorten_hold())
                self._way_home.expect()
                if not self._rounds.still_fits():
                    return False
                self.phases.move(Phase.HOLDING)
                home = await self._hold_and_clear()
        if not home and self.live.phase >= CORE_COPYING:
            if home is not None:
                self.phases.move(Phase.CATCHING_UP, Trigger.FAULT)
            await asyncio.sleep(waits.next())
            return False
        if not home:
            await self._clear_and_hold()
        self.phases.move(Phase.GOING_HOME)
        return True

    async def _hold_and_clear(self) -> bool:
        """Hold, drain, last round, flush of main, release, redirect cleared. False: something failed, the hold is over.

        The release comes before the redirect is cleared: from that moment on a host may write to main by itself, and a
        journal that still counted would be replayed over it after a crash.
        """
        pause, limit_s = self.parts.pause, self._rounds.hold_limit_s()

        async def steps() -> None:
            with pause.measure("drain"):
                await self._hold_and_drain()
                await self.live.hold()
                await self.live.drain()
            await self._rounds.last_rounds()
            with pause.measure("flush"):
                await self.live.flush_main(self.settings.hold_limit_s)
            assert self._held_since is not None
            if (time.monotonic() - self._held_since + pause.after_main_is_right_s() > limit_s
                    and limit_s < self.settings.hold_limit_s):
                raise TimeoutError              # the last point at which hosts can go on where they are
            with pause.measure("release"):
                await self._whole(self.live.release())
            await self._journal_end.let_go()
            await self._way_home.bring()
            with pause.measure("redirect"):
                await self._clear_redirect()
            await self._way_home.finish()
        return await self._while_held(steps, limit_s)

    async def _clear_and_hold(self) -> None:
        """Main is right already, and hosts on the gateway are served straight from it: they need not wait for a main
        that does not let its redirect be cleared. Then they are held, so that no write is under way when they leave."""
        async def clear() -> None:
            async with self._watch.lock:
                await self._clear_redirect()

        async def leave() -> None:
            await self._hold_and_drain()
            await self._way_home.finish(False)
        await self._journal_end.let_go()
        await self._insist("clearing the redirect", clear)
        waits = Backoff(self.settings)
        while not await self._while_held(leave, self.settings.hold_limit_s):
            await asyncio.sleep(waits.next())

    async def _hold_and_drain(self) -> None:
        """Answers that wait for a throttle's sake go out as soon as no new command can follow them."""
        await self.live.hold_hosts()
        if self.figures.throttle_bytes_s:
            await self._rounds.unthrottle()
        await self.live.drain_hosts()

    async def _while_held(self, steps: Callable[[], Awaitable[None]], limit_s: float) -> bool:
        """Does what hosts are held for. False: it failed or took too long, and hosts are served again."""
        self._held_since = time.monotonic()
        self.parts.pause.newest_ms.clear()
        try:
            async with asyncio.timeout(limit_s):
                await steps()
            return True
        except (DetourError, TimeoutError, OSError) as error:
            self._warn(f"the way home was put off: {sentence_of(error)}")
        await self._serve_again()
        return False

    async def _serve_again(self) -> None:
        """Hosts go on where they are. Whether a release that was begun came to its end is known before."""
        await asyncio.gather(*self._uncut, return_exceptions=True)

        async def reopen() -> None:
            if self.live.phase == CORE_HOLDING:
                await self.live.unhold()
        if self.parts.pause.history.bound_bytes_s and self.live.phase >= CORE_COPYING:
            await self._rounds.throttle_again()
        await self._insist("opening the volume again", reopen)
        if self.live.phase < CORE_COPYING:
            await self._quietly("making main writable again", self._way_home.go_on())
        await self._insist("opening the command windows", self.live.resume_hosts)

    async def _clear_redirect(self) -> None:
        """First the access rules, while main still redirects; then the redirect. Both may be asked for twice."""
        driver = self.parts.driver
        for volume in self._way_in.volumes:
            for sentence in await volume.bring_back():
                self._warn(sentence)
        await driver.unfence()
        for sentence in driver.told():
            self._warn(sentence)
        await driver.clear()
        await driver.verify(None)

    async def _send_home(self) -> None:
        """Main is right and takes logins: hosts are sent there at once (Async Message event 3, Time2Wait 0)."""
        live = self.live
        live.portal.turn_home()
        try:
            async with asyncio.timeout(self.settings.hold_limit_s):
                with self.parts.pause.measure("leave"):
                    await live.send_home()
        except TimeoutError:
            self._warn("some sessions did not end in time")
        if self._held_since is not None:
            self.figures.actual_ms = (time.monotonic() - self._held_since) * 1e3
            self.figures.parts_ms = dict(self.parts.pause.newest_ms)
            log.info("hosts were held", volume=live.name, detour=self.id, predicted_ms=self.figures.predicted_ms,
                     actual_ms=self.figures.actual_ms, measured_ms=self.parts.pause.newest_ms,
                     expected_ms=self._rounds.expected_ms)
        await self._rounds.unthrottle()
        await self._quietly("opening the command windows", live.resume_hosts())
        for volume in self._way_in.volumes:
            volume.forget_reservations()
        await self._forget()

    async def _forget(self) -> None:
        """What a next start would find of this run goes, when nobody waits for the disk under it: until then it would
        clear the redirect and the rules once more. The marker is the last: it leads to the others."""
        await self._quietly("forgetting what was kept of main", self.parts.driver.forget())
        await asyncio.to_thread(self.parts.marker.forget)

    # -- beside the run ----------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Keeps the figures fresh, and tells of a main that is lost for long."""
        lost_since, told = 0.0, False
        while True:
            self.figures.sample()
            if not self.live.main_is_lost:
                lost_since, told = 0.0, False
            elif not lost_since:
                lost_since = time.monotonic()
            elif not told and time.monotonic() - lost_since > self.settings.guard_s:
                told = True
                self._warn(f"main is lost, and tried again without an end: {self.live.main_trouble}")
            await asyncio.sleep(self.settings.poll_s)

    async def _insist(self, what: str, step: Callable[[], Awaitable[Any]]) -> None:
        """Until it works: nothing behind it may happen before."""
        waits = Backoff(self.settings)
        while True:
            try:
                await step()
                return
            except Exception as error:
                self._warn(f"{what} failed and is tried again: {sentence_of(error)}", error)
                await asyncio.sleep(waits.next())

    async def _quietly(self, what: str, step: Awaitable[Any]) -> None:
        """A step that the way home does not depend on."""
        try:
            await step
        except Exception as error:
            self._warn(f"{what} failed: {sentence_of(error)}", error)

    def _warn(self, sentence: str, error: Exception | None = None) -> None:
        """For the log and the run's document; an error that nobody thought of is logged with its traceback."""
        known = error is None or isinstance(error, DetourError | TimeoutError | OSError)
        log.warning(sentence, volume=self.live.name, detour=self.id, phase=self.phases.now.value,
                    exc_info=None if known else error)
        if len(self.warnings) < WARNINGS_MAX and sentence not in self.warnings:
            self.warnings.append(sentence)

    def _moved(self, old: Phase, new: Phase, trigger: Trigger) -> None:
        log.info("phase", volume=self.live.name, detour=self.id, old=old.value, new=new.value, by=trigger.value)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
