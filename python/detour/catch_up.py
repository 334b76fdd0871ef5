"""The catch-up rounds of one run: each is measured, teaches the cutover decision, and bounds the host's writes where it
has to. What a round costs with hosts at work, and in a pause, is kept for later detours of the volume (pause.py)."""
from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from detour import cutover
from detour.cutover import Decision, Left, Limits, Round
from detour.progress import Figures
from detour.run_parts import RunParts

log = structlog.get_logger(__name__)

SHORT_S = 0.001                 # a last round that main takes no longer for is short enough
SHORTEN_ROUNDS = 4

Quietly = Callable[[str, Awaitable[Any]], Awaitable[None]]     # does a step that nothing depends on


class CatchUp:
    """One run's. `quietly`: turns the failure of a step into a warning."""

    def __init__(self, parts: RunParts, figures: Figures, quietly: Quietly) -> None:
        self._live = parts.live
        self._settings = parts.settings
        self._pause = parts.pause
        self._figures = figures
        self._quietly = quietly
        self._flush_known = False
        self.expected_ms: dict[str, float] = {}         # the terms of the pause, as predicted

    def begin(self) -> None:
        self._pause.history = self._pause.history.another_run()

    @property
    def limits(self) -> Limits:
        return Limits(max_pause_s=self._settings.max_pause_s, overhead_s=self._pause.overhead_s,
                      hold_max_s=self._settings.hold_limit_s)

    async def round(self, may_go: Callable[[], bool]) -> Decision:
        """One round (S501-S505) while hosts work, and what comes next (S601-S603)."""
        before, begun = self._live.stats(), time.monotonic()
        done, writes, seconds = await self._live.round()
        stats = self._figures.sample()
        host_bytes_s = (stats["write_bytes"] - before["write_bytes"]) / max(time.monotonic() - begun, 1e-3)
        self._learn(Round(done, seconds, stats["unreflected_bytes"], writes, before["unreflected_extents"],
                          host_bytes_s))
        if not self._flush_known:               # with nothing to make stable, as at the end of a pause
            self._flush_known = True
            await self._quietly("a flush of main", self.rehearse("flush", self._live.flush_main()))
        decision = cutover.decide(self._pause.history, _left(stats), host_bytes_s, self.limits, may_go())
        self._figures.predicted_ms = decision.predicted_s * 1e3
        return decision

    async def last_rounds(self) -> None:
        """While hosts are held, until main has everything."""
        left, begun = -1, time.monotonic()
        while left != 0:
            before = self._live.stats()
            done, writes, seconds = await self._live.round()
            left = self._live.stats()["unreflected_bytes"]
            self._learn(Round(done, seconds, left, writes, before["unreflected_extents"]))
        self._pause.newest_ms["data"] = round((time.monotonic() - begun) * 1e3, 1)

    async def prepare_hold(self) -> None:
        """The release makes the journal stable while hosts are held, and with it all of its data that the system has
        not written yet. That is done before, and once more to see how long it takes now."""
        await self._live.sync_journal(self._settings.hold_limit_s)
        begun = time.monotonic()
        await self._live.sync_journal(self._settings.hold_limit_s)
        self._pause.now("release", time.monotonic() - begun)

    async def shorten_hold(self) -> None:
        """What hosts wrote while the hold was prepared would be written to main while they wait: the less, the shorter
        they do. Rounds while each at least halves it."""
        left = _left(self._live.stats())
        for _ in range(SHORTEN_ROUNDS):
            if cutover.data_s(self._pause.history, left) <= SHORT_S:
                return
            before, begun = self._live.stats(), time.monotonic()
            done, writes, seconds = await self._live.round()
            stats = self._figures.sample()
            host_bytes_s = (stats["write_bytes"] - before["write_bytes"]) / max(time.monotonic() - begun, 1e-3)
            self._learn(Round(done, seconds, stats["unreflected_bytes"], writes, left.extents, host_bytes_s))
            left, was = _left(stats), left
            if 2 * left.bytes > was.bytes:
                return

    def still_fits(self) -> bool:
        """Asked just before the hold, whose pause is predicted here: hosts went on writing since the round."""
        left = _left(self._figures.sample())
        history = self._pause.history
        self._figures.predicted_ms = cutover.predict(history, left, self.limits) * 1e3
        self.expected_ms = {**self._pause.terms_ms(), "data": round(cutover.data_s(history, left) * 1e3, 1),
                            "round": round(history.fixed_s * 1e3, 1), "bytes": left.bytes, "pieces": left.extents}
        return cutover.fits(self._pause.history, left, self.limits)

    def hold_limit_s(self) -> float:
        """How long the hold that begins may last, and counts it."""
        self._figures.tries += 1
        predicted_s = (self._figures.predicted_ms or 0.0) / 1e3
        return cutover.hold_limit_s(self._figures.tries - 1, predicted_s, self.limits)

    async def rehearse(self, term: str, step: Awaitable[Any]) -> None:
        """A step that is like a part of the pause."""
        begun = time.monotonic()
        await step
        self._pause.like(term, time.monotonic() - begun)

    async def slow(self, bytes_per_second: float, reason: str) -> None:
        """Bounds the host's writes; 0: not any more."""
        self._pause.history = cutover.throttled(self._pause.history, bytes_per_second)
        log.info("the host is slowed" if bytes_per_second else "the host is not slowed any more",
                 volume=self._live.name, bytes_per_second=round(bytes_per_second), reason=reason)
        await self.throttle_again()

    async def throttle_again(self) -> None:
        """After a hold that was given up: the bound from before it."""
        await self._quietly("the throttle", self._throttle(self._pause.history.bound_bytes_s))

    async def unthrottle(self) -> None:
        """For the time of a hold, or for good: what waits is answered."""
        await self._quietly("the end of the throttle", self._throttle(0))

    async def _throttle(self, bytes_per_second: float) -> None:
        await self._live.throttle(int(bytes_per_second), self._settings.throttle_delay_s)
        self._figures.throttle(bytes_per_second)

    def _learn(self, done: Round) -> None:
        self._pause.history = cutover.observe(self._pause.history, done)
        self._figures.rounds += 1
        self._figures.caught_up_bytes += done.bytes
        self._figures.catch_up_speed = self._pause.history.speed_bytes_s


def _left(stats: dict[str, int]) -> Left:
    return Left(stats["unreflected_bytes"], stats["unreflected_extents"])
