"""The load generator as asyncio sees it: start, sections, end, and figures with percentiles.

Serves `detour bench`, the host of `detour demo`, and tests. Latency percentiles come from log-linear buckets and are
right within 12.5 %; they name the upper edge of the bucket, never less than what was measured.
"""
from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from detour.core.loadgen import LoadGenerator, histogram_names, histogram_words, section_words, stats_names
from detour.core.reactor import Reactor
from detour.core.stats import bucket_floor_ns
from detour.core.store import StoreHandle
from detour.errors import UsageError
from detour.runtime import Answer, Runtime

EVENT_LOAD_DONE = 10            # EventKind in core/reactor.pxd
HISTOGRAM_HEAD_WORDS = 3        # count, sum, maximum
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}


def percentile_ns(histogram: np.ndarray, share: float) -> int:
    """Latency that `share` of the operations did not exceed; 0 without operations."""
    count, maximum, buckets = int(histogram[0]), int(histogram[2]), histogram[HISTOGRAM_HEAD_WORDS:]
    if count == 0:
        return 0
    reached = np.cumsum(buckets)
    index = int(np.searchsorted(reached, min(count, int(np.ceil(count * share)))))
    if index + 1 >= len(buckets):
        return maximum
    return min(bucket_floor_ns(index + 1) - 1, maximum)


def latency_ms(histogram: np.ndarray) -> dict[str, float]:
    """Mean, percentiles and maximum of a histogram, in milliseconds."""
    count = int(histogram[0])
    figures = {"mean": int(histogram[1]) / count / 1e6 if count else 0.0}
    figures |= {name: percentile_ns(histogram, share) / 1e6 for name, share in PERCENTILES.items()}
    figures["max"] = int(histogram[2]) / 1e6
    return {name: round(value, 4) for name, value in figures.items()}


def merged(histograms: list[np.ndarray]) -> np.ndarray:
    """One histogram of several."""
    total = np.sum(histograms, axis=0, dtype=np.uint64)
    total[2] = max(int(histogram[2]) for histogram in histograms)
    return total


class Section:
    """A copy of the figures of one section."""

    def __init__(self, words: np.ndarray) -> None:
        names = stats_names()
        self.counters = dict(zip(names, (int(word) for word in words[: len(names)]), strict=True))
        rest, step = words[len(names) :], histogram_words()
        self.histograms = {name: rest[i * step : (i + 1) * step].copy() for i, name in enumerate(histogram_names())}

    @property
    def operations(self) -> int:
        return self.counters["reads"] + self.counters["writes"]

    @property
    def seconds(self) -> float:
        return self.counters["elapsed_ns"] / 1e9

    @property
    def iops(self) -> float:
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def all_ns(self) -> np.ndarray:
        return merged([self.histograms["read_ns"], self.histograms["write_ns"]])

    def p99_ms(self) -> float:
        return percentile_ns(self.all_ns, 0.99) / 1e6

    def document(self) -> dict[str, Any]:
        """The figures as JSON shows them."""
        seconds = self.seconds or 1.0
        figures: dict[str, Any] = {"seconds": round(self.seconds, 3), "iops": round(self.iops, 1)}
        for kind in ("read", "write"):
            figures[kind] = {
                "operations": self.counters[f"{kind}s"],
                "bytes": self.counters[f"{kind}_bytes"],
                "iops": round(self.counters[f"{kind}s"] / seconds, 1),
                "bytes_s": round(self.counters[f"{kind}_bytes"] / seconds),
                "latency_ms": latency_ms(self.histograms[f"{kind}_ns"]),
            }
        figures["errors"] = self.counters["errors"]
        figures["mismatches"] = self.counters["mismatches"]
        figures["checked_bytes"] = self.counters["checked_bytes"]
        figures["longest_stall_ms"] = round(self.counters["longest_ns"] / 1e6, 3)
        return figures


class Load:
    """A load generator on a runtime. Settings are those of core/loadgen.pxd; wrong ones become UsageError."""

    def __init__(self, runtime: Runtime, store: StoreHandle, reactor: Reactor | None = None, **settings: Any) -> None:
        self.runtime = runtime
        self.id = runtime.new_id()
        self._done: asyncio.Future[Answer] | None = None
        try:
            self.generator = LoadGenerator(reactor or store.reactor, self.id, store, **settings)
        except ValueError as error:
            raise UsageError(str(error)) from None

    async def start(self, seconds: float = 0, operations: int = 0) -> None:
        """Begins to send; `finished` resolves when time or operations are over, or after stop."""
        self._done = asyncio.get_running_loop().create_future()
        self.runtime.on_event(EVENT_LOAD_DONE, self.id, self._on_done)
        await self.runtime.wait(self.generator.start(seconds, operations))

    def _on_done(self, status: int, results: tuple[int, ...], data: bytes | None) -> None:
        self.runtime.off_event(EVENT_LOAD_DONE, self.id)
        if self._done is not None and not self._done.done():
            self._done.set_result(Answer(status, results, data))

    async def finished(self) -> None:
        """Waits for the end of what start() began."""
        if self._done is not None:
            await asyncio.shield(self._done)

    async def run(self, seconds: float = 0, operations: int = 0) -> Section:
        """start() and finished(); answers the figures of section 0."""
        await self.start(seconds, operations)
        await self.finished()
        return self.section(0)

    async def stop(self) -> None:
        """Sends nothing more, and waits until nothing is in flight."""
        await self.runtime.wait(self.generator.stop())
        await self.finished()

    async def enter_section(self, index: int) -> None:
        await self.runtime.wait(self.generator.section(index))

    async def rewrite(self, on: bool) -> None:
        await self.runtime.wait(self.generator.rewrite(on))

    def section(self, index: int) -> Section:
        """The figures of one section, as they are now."""
        return Section(np.asarray(self.generator.stats).reshape(-1, section_words())[index].copy())

    def total(self, name: str) -> int:
        """A counter over all sections (the largest for those that are maxima)."""
        rows = np.asarray(self.generator.stats).reshape(-1, section_words())[:, stats_names().index(name)]
        return int(rows.max() if name in ("longest_ns", "late_ns") else rows.sum())

    def faults(self) -> dict[str, Any]:
        """What went wrong first: empty when nothing did."""
        found = {"mismatch": self.generator.first_mismatch, "error": self.generator.first_error}
        return {name: fault for name, fault in found.items() if fault is not None}

    def close(self) -> None:
        self.generator.close()
