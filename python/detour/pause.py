"""What a pause of one volume costs besides data, as measured: kept by the process over detours.

    drain           command windows closed, what was begun has ended
    flush           main's cache, after the last round
    release         the journal's superblock, stable
    registrations   those that hosts have changed, on main
    redirect        modes and access rules brought back, redirect cleared and verified
    leave           Async Message to every session, until all of them have ended

`newest_ms` has besides "data": the rounds while hosts were held.

A term that no pause of this process has met is taken from a step that is like it: `like` (the redirect from setting and
verifying it, the release from the begin of catch-up). Of what was measured the median of the newest counts, so that one
slow sync of a busy disk is not expected again.
"""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from detour.cutover import History

TERMS = ("drain", "flush", "release", "registrations", "redirect", "leave")
BEFORE_S = {"drain": 0.003, "flush": 0.002, "release": 0.005, "registrations": 0.0, "redirect": 0.005,
            "leave": 0.002}     # nothing was measured
KEPT = 5                        # pauses whose terms are remembered


class Pause:
    """`history`: what the rounds of the last detour taught of main."""

    def __init__(self) -> None:
        self.history = History()
        self._seconds = dict(BEFORE_S)
        self._met: dict[str, deque[float]] = {}
        self.newest_ms: dict[str, float] = {}           # as met in the newest hold

    @property
    def overhead_s(self) -> float:
        return sum(self._seconds.values())

    def after_main_is_right_s(self) -> float:
        """What comes behind the flush, when there is no way back to the overlay."""
        return sum(self._seconds[term] for term in ("release", "registrations", "redirect", "leave"))

    def terms_ms(self) -> dict[str, float]:
        return {term: round(seconds * 1e3, 3) for term, seconds in self._seconds.items()}

    def like(self, term: str, seconds: float) -> None:
        """A step like this one took so long."""
        if term not in self._met:
            self._seconds[term] = seconds

    def now(self, term: str, seconds: float) -> None:
        """A step like this one took so long just before a pause: counts as much as all earlier pauses."""
        met = self._met.get(term)
        self._seconds[term] = (median(met) + seconds) / 2 if met else seconds

    def expect(self, term: str, seconds: float) -> None:
        """It depends on what has happened, and is known before the pause begins."""
        self._seconds[term] = seconds

    def met(self, term: str, seconds: float) -> None:
        """In a pause it took so long."""
        self.newest_ms[term] = round(seconds * 1e3, 1)
        newest = self._met.setdefault(term, deque(maxlen=KEPT))
        newest.append(seconds)
        self._seconds[term] = median(newest)

    @contextmanager
    def measure(self, term: str) -> Iterator[None]:
        """Around the step in a pause; one that fails teaches nothing."""
        begun = time.monotonic()
        yield
        self.met(term, time.monotonic() - begun)
