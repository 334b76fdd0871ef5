"""One detour run: the only place that knows phases, redirect, core and backup together.

    outward    checks, redirect, drop, barrier, freeze, hook, copy      may be given up at any point
    homeward   catch-up rounds, hold, drain, last round, flush, clear the redirect, send home    never gives up

The outward way runs as a task of its own, so that a cancel or a fault ends it wherever it is. Whatever it left behind,
the homeward way goes on from what the core says: with a frozen volume over catch-up, else straight to clearing the
redirect. Each homeward step that fails is tried again while the host is served; rule 10 of the design: home is always
reachable, and may be asked for twice. A run never raises past its own task.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import structlog

from detour import cutover
from detour.backups.catalog import BackupRecord, Status, new_backup_id
from detour.backups.raw import Sink, remove_partial
from detour.cutover import History, Limits, Round, Step
from detour.errors import BusyError, DetourError, StorageError, from_status
from detour.phases import EXIT_CODES, Phase, Phases, Result, Trigger
from detour.progress import Figures, iso
from detour.redirect.base import wait_gone
from detour.run_parts import (
    CORE_COPYING,
    CORE_PASS,
    Backoff,
    CopyWatch,
    GiveUp,
    RunParts,
    end_tasks,
    sentence_of,
)

log = structlog.get_logger(__name__)

WARNINGS_MAX = 50


class DetourRun:
    """One run of one volume. `run()` is its task; everything else may be called at any time."""

    def __init__(self, parts: RunParts, store: str, tag: str = "") -> None:
        self.parts = parts
        self.live = parts.live
        self.settings = parts.settings
        self.id = f"{parts.live.name}-{secrets.token_hex(6)}"
        self.store = store
        self.tag = tag
        self.started_at = time.time()
        self.pit_ns = 0
        self.backup_id = new_backup_id(parts.live.name)
        self.record: BackupRecord | None = None
        self.result: Result | None = None       # set when the run is over
        self.reason = ""
        self.warnings: list[str] = []
        self.phases = Phases(self._moved)
        self.figures = Figures(parts.live)
        self._outcome: Result | None = None     # what the result will be
        self._sink: Sink | None = None
        self._uncut: set[asyncio.Task[Any]] = set()
        self._cancelled = asyncio.Event()
        self._changed = asyncio.Event()          # set, and replaced, at each change
        self._spoilt = ""
        self._redirect_s = 0.0                  # how long setting and verifying the redirect took
        self._resume_phase: int | None = None
        self._held_since: float | None = None

    # -- asked from outside ------------------------------------------------------------------------------------------

    def cancel(self, reason: str = "cancelled by the operator") -> None:
        """Ends the copy, catches up, sends the host home. May be asked for twice, and at any time."""
        if not self._cancelled.is_set() and not self.phases.homeward:
            self.reason = self.reason or reason
        self._cancelled.set()

    @property
    def over(self) -> bool:
        return self.phases.over

    def document(self) -> dict[str, Any]:
        """The progress document."""
        return {"id": self.id, "volume": self.live.name, "store": self.store, "tag": self.tag,
                "phase": self.phases.now.value, "started_at": iso(self.started_at), "pit_at": iso(self.pit_ns / 1e9),
                "volume_bytes": self.figures.volume_bytes, **self.figures.sections(),
                "result": self.result.value if self.result else None, "reason": self.reason or None,
                "warnings": list(self.warnings),
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

    def resume(self, phase: int, record: BackupRecord | None, detour_id: str = "") -> None:
        """Before `run`: the gateway was started again and the core is in `phase` (CORE_PASS: only the redirect has to
        be cleared). `record` is what the catalog has of the backup, `detour_id` the run's id of old."""
        self._resume_phase = phase
        self.id = detour_id or self.id
        self.record = record
        if record is not None:
            self.backup_id, self.pit_ns, self.tag = record.id, record.pit_ns, record.tag
            self.id = record.detour or self.id
            self.started_at = record.started_ns / 1e9 or self.started_at

    async def run(self) -> Result:
        """The whole run. CancelledError passes (the gateway stops; the journal keeps what is needed to go on)."""
        ticker = asyncio.create_task(self._tick())
        guard = asyncio.create_task(self._guard())
        try:
            await self._outward()
            await self._homeward()
        finally:
            await end_tasks(ticker, guard)
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
        try:
            await asyncio.wait({steps, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(cancelled, steps)
        if steps.cancelled():
            self._outcome = Result.CANCELLED
            return
        error = steps.exception()
        if error is None:
            return
        early = self.phases.now in (Phase.IDLE, Phase.PREPARING)
        self._outcome = Result.FAILED if early else Result.ABANDONED
        self.reason = error.reason if isinstance(error, GiveUp) else sentence_of(error)
        log.warning("the backup is given up", volume=self.live.name, detour=self.id, phase=self.phases.now.value,
                    reason=self.reason, exc_info=None if isinstance(error, GiveUp | DetourError) else error)

    async def _steps(self) -> None:
        self.phases.move(Phase.PREPARING)
        await self._prepare()
        self.phases.move(Phase.REDIRECTING)
        try:
            async with asyncio.timeout(self.settings.arm_limit_s):
                await self._redirect()
                await self._freeze()
        except TimeoutError:
            raise GiveUp(Result.ABANDONED, f"the hosts could not be moved within {self.settings.arm_limit_s:g} s"
                         ) from None
        self.phases.move(Phase.FROZEN)
        await self._begin_record()
        await self._hook()
        self.phases.move(Phase.COPYING)
        await self._copy()

    async def _resumed_steps(self) -> None:
        """After a restart, from what the journal says."""
        if self._resume_phase != CORE_COPYING:
            if self.record is None or self.record.status is not Status.COMPLETE:
                self._outcome = Result.ABANDONED
                self.reason = ("the gateway was started again before the point in time"
                               if self._resume_phase == CORE_PASS and self.record is None else
                               "the gateway was started again after the backup had been given up")
            return
        self.figures.frozen = True
        self.phases.move(Phase.COPYING, Trigger.RECOVERY)
        if self.record is None:
            raise GiveUp(Result.ABANDONED, "the gateway was started again, and the catalog has no record of the backup")
        if self.record.status is Status.COMPLETE:       # the gateway ended just before the journal said so too
            return
        self._sink = await self.parts.open_sink(self.backup_id, True)
        await self._copy()

    # -- outward -----------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Checks; changes nothing on main. The room of the backup storage is checked by opening it."""
        live = self.live
        await live.check_main(self.settings.check_limit_s)
        if live.phase != CORE_PASS:
            raise BusyError(f"the volume {live.name} is in a detour already")
        await self.parts.driver.prepare()
        foreign = await live.foreign_disks()
        if foreign:
            raise StorageError(
                f"main's target has disks that are not configured: LUN {', '.join(map(str, foreign))}",
                hint="A redirect moves the whole target; configure these LUNs as volumes, or give them another target.")
        self._sink = await self.parts.open_sink(self.backup_id, False)

    async def _redirect(self) -> None:
        """S101-S104 in the order that FIELD and RFC ask for: accept here, redirect there, drop, wait, barrier."""
        live, driver = self.live, self.parts.driver
        self.parts.marker.write({"detour": self.id, "volume": live.name, "address": str(self.parts.address)})
        await live.arm()
        live.portal.admit()
        begun = time.monotonic()
        await driver.set(self.parts.address)
        await driver.verify(self.parts.address)
        self._redirect_s = time.monotonic() - begun
        await driver.fence()
        dropped = await driver.drop_all()
        log.info("main redirects", volume=live.name, to=str(self.parts.address), dropped=dropped)
        await wait_gone(driver, self.settings.arm_limit_s, self.settings.poll_s)
        await driver.barrier()
        await live.flush_main(self.settings.arm_limit_s)

    async def _freeze(self) -> None:
        """Main redirects and nobody else is on it: its content is the point in time from here on. The freeze itself is
        not cut short by a cancel: whether the core is frozen must be known."""
        await self.parts.driver.verify(self.parts.address)
        if any(not session.ours for session in await self.parts.driver.sessions()):
            raise GiveUp(Result.ABANDONED, "a host came back to main just before the freeze")
        note = {"volume": self.live.name, "detour": self.id, "backup": self.backup_id, "store": self.store}
        while True:
            try:
                await self._whole(self._freeze_now(note))
                break
            except BusyError:
                await asyncio.sleep(0.01)
        log.info("main is frozen", volume=self.live.name, detour=self.id, pit_ns=self.pit_ns)

    async def _freeze_now(self, note: dict[str, Any]) -> None:
        self.pit_ns = await self.live.freeze(os.urandom(16), note)
        self.figures.frozen = True

    async def _whole(self, step: Coroutine[Any, Any, None]) -> None:
        """A step that a cancel does not cut short: the way home waits for its end, so that what it did is known."""
        task = asyncio.create_task(step)
        self._uncut.add(task)
        await asyncio.shield(task)

    async def _put_record(self, record: BackupRecord, checksums: bytes | None = None) -> None:
        self.record = await asyncio.to_thread(self.parts.catalog.put, record, checksums)

    async def _begin_record(self) -> None:
        assert self._sink is not None
        await self._whole(self._put_record(BackupRecord(
            id=self.backup_id, volume=self.live.name, detour=self.id, store=self.store, url=self._sink.url,
            partial_path=self._sink.partial_path, tag=self.tag, size_bytes=self.live.size_bytes,
            block_bytes=self.live.block_bytes, pit_ns=self.pit_ns, started_ns=int(self.started_at * 1e9),
            identity=self.parts.identity)))

    async def _hook(self) -> None:
        """The administrator's command at the freeze. Its failure is a warning: the point in time is taken already."""
        if not self.settings.hook:
            return
        environment = {**os.environ, "DETOUR_VOLUME": self.live.name, "DETOUR_PIT_NS": str(self.pit_ns),
                       "DETOUR_ID": self.id, "DETOUR_BACKUP_ID": self.backup_id, "DETOUR_TAG": self.tag}
        process = None
        try:
            process = await asyncio.create_subprocess_exec(
                *self.settings.hook, env=environment, stdin=asyncio.subprocess.DEVNULL, start_new_session=True)
            async with asyncio.timeout(self.settings.hook_limit_s):
                code = await process.wait()
            if code != 0:
                self._warn(f"the hook ended with {code}")
        except TimeoutError:
            self._warn(f"the hook took longer than {self.settings.hook_limit_s:g} s and was ended")
        except OSError as error:
            self._warn(f"the hook cannot be run: {error.strerror}")
        finally:
            if process is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                await process.wait()

    async def _copy(self) -> None:
        """S201-S202: main to the backup; the host's pressure, the backup's faults and main's sessions are watched."""
        assert self._sink is not None and self.record is not None
        if not self.live.copy_is_complete:
            ended = await self.live.copy_start(self._sink.store, self.settings.copy_window,
                                               self.settings.copy_bytes_per_second)
            watch = CopyWatch(self.settings, self.live)
            while not ended.done():
                await asyncio.wait({ended}, timeout=self.settings.poll_s)
                trouble = self._spoilt or watch.trouble(self.figures.sample())
                if trouble and not ended.done():
                    raise GiveUp(Result.ABANDONED, trouble)
            end = ended.result()
            if end.status < 0:
                raise GiveUp(Result.ABANDONED, f"the copy failed at byte {end.failing_offset_bytes}: "
                             + from_status(end.status).message)
        if self._spoilt:
            raise GiveUp(Result.ABANDONED, self._spoilt)
        await self._whole(self._publish(self._sink, self.record))
        self.figures.sample()
        log.info("the backup is complete", volume=self.live.name, backup=self.backup_id)

    async def _publish(self, sink: Sink, record: BackupRecord) -> None:
        await sink.publish()
        await self._put_record(record.model_copy(update={
            "status": Status.COMPLETE, "partial_path": "", "ended_ns": time.time_ns()}), self.live.checksums())

    # -- homeward ----------------------------------------------------------------------------------------------------

    async def _homeward(self) -> None:
        await asyncio.gather(*self._uncut, return_exceptions=True)
        given_up = self._outcome is not None
        if given_up and self.phases.now in (Phase.IDLE, Phase.PREPARING) and self._resume_phase is None:
            await self._stay_home()
            return
        trigger = Trigger.OPERATOR if self._outcome is Result.CANCELLED else Trigger.FAULT
        if given_up and self.phases.may(Phase.ABANDONING, trigger):
            self.phases.move(Phase.ABANDONING, trigger)
        sink_gone = asyncio.create_task(self._give_up_sink()) if given_up else None
        edge = Trigger.RECOVERY if self.phases.now is Phase.IDLE else Trigger.DRIVER
        if self.live.phase >= CORE_COPYING:
            self.figures.frozen = True
            await self._insist("catch-up", lambda: self.live.catch_up(
                self.settings.reads_from_backup and not given_up and self._sink is not None))
            self.phases.move(Phase.CATCHING_UP, edge)
            await self._catch_up()
        else:
            await self._leave_unfrozen()
            self.phases.move(Phase.GOING_HOME, edge)
        await self._send_home()
        if sink_gone is not None:
            await sink_gone
        else:
            await self._close_sink()
        self.phases.move(Phase.HOME)

    async def _stay_home(self) -> None:
        """Nothing on main or on the host's way was changed."""
        if self.phases.now is Phase.IDLE:
            self.phases.move(Phase.PREPARING)
        if self._sink is not None:
            await self._quietly("closing the backup storage", self._sink.discard())
            self._sink = None
        self.phases.move(Phase.HOME, Trigger.OPERATOR if self._outcome is Result.CANCELLED else Trigger.FAULT)

    async def _catch_up(self) -> None:
        """Rounds (S501-S514) until the decision (S601-S603) lets the host go home and that has worked."""
        history, waits = History(), Backoff(self.settings)
        while True:
            try:
                done, _runs, seconds = await self.live.round()
            except BusyError:                       # a round of a hold that was given up still runs
                await asyncio.sleep(self.settings.poll_s)
                continue
            except DetourError as error:
                self._warn(f"a catch-up round failed: {sentence_of(error)}")
                await asyncio.sleep(waits.next())
                continue
            left = self.figures.sample()["unreflected_bytes"]
            history = cutover.observe(history, Round(done, seconds, left))
            self.figures.rounds += 1
            self.figures.caught_up_bytes += done
            self.figures.catch_up_speed = history.speed_bytes_s
            decision = cutover.decide(history, left, self.figures.host_bytes_per_second, self._limits())
            self.figures.predicted_ms = decision.predicted_s * 1e3
            if decision.step is Step.HOLD:
                if await self._cut_over():
                    return
                await asyncio.sleep(waits.next())
            elif decision.step is Step.THROTTLE:
                history = cutover.throttled(history)
                log.info("the host is slowed", volume=self.live.name, bytes_per_second=round(decision.bytes_per_second))
                await self._quietly("the throttle", self.live.throttle(int(decision.bytes_per_second)))
            else:
                await asyncio.sleep(decision.seconds if decision.step is Step.WAIT else 0.0)

    def _limits(self) -> Limits:
        return Limits(max_pause_s=self.settings.max_pause_s, overhead_s=0.08 + self._redirect_s)

    async def _cut_over(self) -> bool:
        """S601-S604, S701-S704. False: it was put off, and the host is served on, still on the overlay."""
        self.phases.move(Phase.HOLDING)
        if not await self._hold_and_clear():
            if self.live.phase >= CORE_COPYING:
                self.phases.move(Phase.CATCHING_UP, Trigger.FAULT)
                return False
            await self._clear_until_it_works()
        self.phases.move(Phase.GOING_HOME)
        return True

    async def _leave_unfrozen(self) -> None:
        """Given up before the freeze: commands that waited go straight to main, until the hosts can be sent home."""
        await self._insist("letting commands through to main", self.live.disarm)
        await self._clear_until_it_works()

    async def _clear_until_it_works(self) -> None:
        """Main is right already, and hosts on the gateway are served straight from it."""
        waits = Backoff(self.settings)
        while not await self._hold_and_clear():
            await asyncio.sleep(waits.next())

    async def _hold_and_clear(self) -> bool:
        """Hold, drain, last round, flush of main, release, redirect cleared. False: something failed, the hold is over.

        The release comes before the redirect is cleared: from that moment on a host may write to main by itself, and a
        journal that still counted would be replayed over it after a crash.
        """
        self._held_since = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.hold_limit_s):
                await self.live.hold_hosts()
                await self.live.drain_hosts()
                if self.live.phase >= CORE_COPYING:
                    await self.live.hold()
                    await self.live.drain()
                    await self._last_rounds()
                await self.live.flush_main(self.settings.hold_limit_s)
                if self.live.phase >= CORE_COPYING:
                    await self._whole(self.live.release())
                await self._clear_redirect()
            return True
        except (DetourError, TimeoutError, OSError) as error:
            self._warn(f"the way home was put off: {sentence_of(error)}")
        await asyncio.gather(*self._uncut, return_exceptions=True)
        overlay = self.live.phase >= CORE_COPYING
        if overlay:
            await self._quietly("opening the volume again", self.live.unhold())
        await self._quietly("opening the command windows", self.live.resume_hosts())
        if overlay:     # main must redirect while the overlay counts: what a failed clear left behind is unknown
            await self._quietly("setting the redirect again", self._set_again())
        return False

    async def _last_rounds(self) -> None:
        while True:
            done, _runs, _seconds = await self.live.round()
            self.figures.rounds += 1
            self.figures.caught_up_bytes += done
            if self.live.stats()["unreflected_bytes"] == 0:
                return

    async def _set_again(self) -> None:
        driver = self.parts.driver
        try:
            await driver.verify(self.parts.address)
        except DetourError:
            await driver.set(self.parts.address)
            await driver.verify(self.parts.address)
        await driver.fence()

    async def _clear_redirect(self) -> None:
        """First the access rules, while main still redirects; then the redirect. Both may be asked for twice."""
        driver = self.parts.driver
        await driver.unfence()
        await driver.clear()
        await driver.verify(None)
        self.parts.marker.forget()

    async def _send_home(self) -> None:
        """Main is right and takes logins: hosts are sent there at once (Async Message event 3, Time2Wait 0)."""
        live = self.live
        live.portal.turn_home()
        leaving = asyncio.create_task(live.send_home())
        await self._insist("letting go of the volume", live.disarm)
        await asyncio.wait({leaving}, timeout=self.settings.hold_limit_s)
        if not leaving.done():
            self._warn("some sessions did not end in time")
        await end_tasks(leaving)
        if self._held_since is not None:
            self.figures.actual_ms = (time.monotonic() - self._held_since) * 1e3
        await self._quietly("the end of the throttle", live.throttle(0))
        await self._quietly("opening the command windows", live.resume_hosts())

    async def _give_up_sink(self) -> None:
        """The copy is ended and its place cleared, beside everything else: no host waits for a dead backup storage."""
        sink, limit, record = self._sink, self.settings.sink_limit_s, self.record
        await self._quietly("giving the copy up", self.live.copy_stop())
        if sink is not None:
            try:
                await self.live.copy_ended(limit)
            except DetourError:
                await self._quietly("closing the backup storage", asyncio.wait_for(sink.close(), limit))
            await self._quietly("letting go of the backup storage", self.live.forget_sink(limit))
            await self._quietly("clearing the backup storage", asyncio.wait_for(sink.discard(), limit))
        if record is not None and record.status is Status.PARTIAL:
            await self._quietly("clearing the partial image", asyncio.to_thread(remove_partial, record))
            await self._quietly("clearing the catalog", asyncio.to_thread(self.parts.catalog.remove, record.id))
            self.record = None

    async def _close_sink(self) -> None:
        if self._sink is None:
            return
        await self._quietly("letting go of the backup storage", self.live.forget_sink(self.settings.sink_limit_s))
        await self._quietly("closing the backup storage",
                            asyncio.wait_for(self._sink.close(), self.settings.sink_limit_s))

    # -- beside the run ----------------------------------------------------------------------------------------------

    async def _guard(self) -> None:
        """Rule 7: a session that reappears on main is noticed, dropped, and ends a copy that it may have spoilt."""
        driver = self.parts.driver
        while True:
            await asyncio.sleep(self.settings.guard_s)
            if self.phases.now not in (Phase.FROZEN, Phase.COPYING, Phase.ABANDONING, Phase.CATCHING_UP):
                continue
            try:
                strangers = [session for session in await driver.sessions() if not session.ours]
                if not strangers or self.phases.now not in (Phase.FROZEN, Phase.COPYING, Phase.CATCHING_UP):
                    continue
                names = ", ".join(sorted({session.initiator for session in strangers}))
                self._spoilt = f"{names} logged in to main during the detour"
                self._warn(self._spoilt)
                await self._set_again()
                await driver.drop_all()
            except (DetourError, OSError) as error:
                self._warn(f"main could not be looked at: {sentence_of(error)}")

    async def _tick(self) -> None:
        while True:
            self.figures.sample()
            await asyncio.sleep(self.settings.poll_s)

    async def _insist(self, what: str, step: Callable[[], Awaitable[Any]]) -> None:
        """Until it works: nothing behind it may happen before."""
        waits = Backoff(self.settings)
        while True:
            try:
                await step()
                return
            except (DetourError, TimeoutError, OSError) as error:
                self._warn(f"{what} failed and is tried again: {sentence_of(error)}")
                await asyncio.sleep(waits.next())

    async def _quietly(self, what: str, step: Awaitable[Any]) -> None:
        """A step that the way home does not depend on."""
        try:
            await step
        except (DetourError, TimeoutError, OSError) as error:
            self._warn(f"{what} failed: {sentence_of(error)}")

    def _warn(self, sentence: str) -> None:
        log.warning(sentence, volume=self.live.name, detour=self.id, phase=self.phases.now.value)
        if len(self.warnings) < WARNINGS_MAX and sentence not in self.warnings:
            self.warnings.append(sentence)

    def _moved(self, old: Phase, new: Phase, trigger: Trigger) -> None:
        log.info("phase", volume=self.live.name, detour=self.id, old=old.value, new=new.value, by=trigger.value)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
