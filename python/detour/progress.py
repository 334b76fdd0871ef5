"""The figures of one run as they go along, and the progress document that status, events and the command line show.

All rates are over a sliding window of a few seconds; percentiles are of the host's commands since the run began.
"""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from detour.core.stats import bucket_floor_ns

WINDOW_S = 3.0
HISTOGRAM_HEAD = 3              # count, sum_ns, max_ns stand before the buckets


class Rate:
    """Bytes a second of a counter that only grows, over a sliding window."""

    def __init__(self, window_s: float = WINDOW_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque(maxlen=64)

    def add(self, counter: int) -> None:
        now = self._clock()
        if self._samples and counter < self._samples[-1][1]:
            self._samples.clear()                       # the counter began anew
        if self._samples and now - self._samples[-1][0] < self._window_s / 32:
            return
        self._samples.append((now, counter))
        while len(self._samples) > 2 and now - self._samples[1][0] >= self._window_s:
            self._samples.popleft()

    @property
    def bytes_per_second(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (begin, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - begin) if end > begin else 0.0


def bucket_top_ns(index: int) -> int:
    """Largest value of a latency bucket, ns."""
    return bucket_floor_ns(index + 1) - 1


def percentile_ns(histogram: np.ndarray, share: float) -> int:
    """The value below which `share` of the recorded ones lie, within 12.5 %; 0 when nothing was recorded."""
    buckets = histogram[HISTOGRAM_HEAD:]
    total = int(buckets.sum())
    if total == 0:
        return 0
    reached = np.cumsum(buckets)
    return bucket_top_ns(int(np.searchsorted(reached, np.ceil(total * share))))


def longest_ns(histogram: np.ndarray) -> int:
    """Upper end of the highest bucket that is not empty."""
    filled = np.nonzero(histogram[HISTOGRAM_HEAD:])[0]
    return bucket_top_ns(int(filled[-1])) if len(filled) else 0


def iso(seconds: float) -> str | None:
    """ISO 8601 in UTC; None for 0."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else None


@dataclass
class Figures:
    """What a run collects. `live` is the volume; None in documents of runs that never had one."""

    live: Any
    rounds: int = 0
    caught_up_bytes: int = 0
    catch_up_speed: float = 0.0
    predicted_ms: float | None = None
    actual_ms: float | None = None
    parts_ms: dict[str, float] = field(default_factory=dict)    # of the pause, as met (pause.py)
    tries: int = 0                      # holds, those that were given up among them
    throttle_bytes_s: float = 0.0       # on the host's writes now; 0: none
    throttle_least_bytes_s: float = 0.0     # the tightest so far
    copy_done_bytes: int = 0
    frozen: bool = False
    _host_rate: Rate = field(default_factory=Rate)
    _copy_rate: Rate = field(default_factory=Rate)
    _final: dict[str, Any] | None = None
    _volume_bytes: int = 0              # of a run that is over

    def __post_init__(self) -> None:
        self._first_latency = self.live.latency()
        self._first_errors = self.live.target_stats().get("errors", 0)

    @property
    def volume_bytes(self) -> int:
        """Size of the point in time."""
        return self._volume_bytes or self.live.pit_bytes

    def sample(self) -> dict[str, int]:
        """Takes the counters as they are now into the rates; answers them."""
        stats = self.live.stats()
        self._host_rate.add(stats["write_bytes"])
        self._copy_rate.add(stats["copied_bytes"])
        if self.frozen:
            self.copy_done_bytes = stats["copied_bytes"]
        return stats

    def throttle(self, bytes_per_second: float) -> None:
        """The host's writes are bounded to so much from now on; 0: they are not."""
        self.throttle_bytes_s = bytes_per_second
        if bytes_per_second:
            self.throttle_least_bytes_s = min(self.throttle_least_bytes_s or bytes_per_second, bytes_per_second)

    @property
    def host_bytes_per_second(self) -> float:
        return self._host_rate.bytes_per_second

    def settle(self) -> None:
        """The run is over: its figures stay what they are now, whatever the volume does later."""
        self._final = self.sections()
        self._volume_bytes = self.volume_bytes

    def sections(self) -> dict[str, Any]:
        if self._final is not None:
            return self._final
        stats = self.sample()
        return {"copy": self._copy(), "catch_up": self._catch_up(stats), "cutover": self._cutover(),
                "host": self._host(), "journal": {"used_bytes": stats["journal_used_bytes"],
                                                  "size_bytes": stats["journal_bytes"]}}

    def _copy(self) -> dict[str, Any]:
        rate = self._copy_rate.bytes_per_second if self.copy_done_bytes < self.volume_bytes else 0.0
        left = self.volume_bytes - self.copy_done_bytes
        return {"bytes_done": self.copy_done_bytes, "bytes_total": self.volume_bytes, "bytes_per_second": round(rate),
                "seconds_left": round(left / rate, 1) if rate > 0 else None}

    def _catch_up(self, stats: dict[str, int]) -> dict[str, Any]:
        return {"rounds": self.rounds, "bytes": self.caught_up_bytes,
                "remaining_bytes": stats["unreflected_bytes"] if self.frozen else 0,
                "bytes_per_second": round(self.catch_up_speed)}

    def _cutover(self) -> dict[str, Any]:
        return {"predicted_ms": _rounded(self.predicted_ms), "actual_ms": _rounded(self.actual_ms),
                "parts_ms": dict(self.parts_ms), "tries": self.tries,
                "throttle_bytes_per_second": round(self.throttle_bytes_s),
                "throttle_least_bytes_per_second": round(self.throttle_least_bytes_s)}

    def _host(self) -> dict[str, Any]:
        both = [np.maximum(now.astype(np.int64) - first.astype(np.int64), 0)
                for now, first in zip(self.live.latency(), self._first_latency, strict=True)]
        merged = both[0] + both[1]
        return {"sessions": self.live.portal.sessions(),
                "write_bytes_per_second": round(self.host_bytes_per_second),
                "p99_ms": _rounded(percentile_ns(merged, 0.99) / 1e6),
                "longest_ms": _rounded(longest_ns(merged) / 1e6),
                "errors": self.live.target_stats().get("errors", 0) - self._first_errors}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
