"""Backup storage that is stopped (SIGSTOP) in mid copy, and what the host feels of it.

    python -m tests.e2e.stopped_store [--runs N] [--store detour|tgt] [--fill] [--seconds S] [--turns N]
        [--control] [--json]

Main, gateway and backup storage are processes; the host sends 4 KiB and 16 KiB at a fixed rate, 70 % reads, and its
latency counts from the moment at which a command was to be sent, so that a stall is felt by all that come behind it.
In mid copy the process of backup storage gets SIGSTOP and SIGCONT in turn, and at the last turn no SIGCONT before the
end. With --fill the journal is so small that it cannot bear the standstill for long, and there is one turn. Sections:
copy, stopped, catch_up, after. What must hold, in each run:

- the run ends with exit code 3 (abandoned) and the host home, with no error and no wrong byte; main has what it wrote;
- the host's p99 while backup storage is stopped is within 20 % of the one in the copy before (or faster): the median
  of the turns' ratios, for a machine's latency drifts by more than a fifth from one moment to the next. With --control
  the process is never stopped but for the last turn: what the same measure finds where there is nothing to find.
"""
from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from detour.bench import Load, percentile_ns
from tests.support.site import check_load
from tests.support.slow_store import MIB, STORE_IQN, StoreSite, fill
from tests.support.tgtd import Tgtd

SECTIONS = ("before", "copy", "stopped", "catch_up", "after")
WITHIN = 0.2
SIZE = 512 * MIB
COPY_RATE = 8 * MIB             # so that a copy is long enough
TURNS, TURN_S = 16, 1.5         # of copying and standing still, before the last stop
RATE = 1500.0                   # commands a second
DEPTH = 64


@dataclass
class Outcome:
    """One run. Times in ms; by section where it is a dict."""

    result: str
    reason: str
    exit_code: int
    stopped_s: float                # from the stop until the copy was given up
    p50: dict[str, float]
    p99: dict[str, float]
    longest: dict[str, float]
    operations: dict[str, int]
    journal_share: float            # when it was given up
    turns: list[tuple[float, float]]    # p99 in the copy, p99 stopped, of each turn
    wrong: list[str] = field(default_factory=list)

    @property
    def change(self) -> float:
        """How much slower the host's p99 is while backup storage is stopped: the median of the turns, less one."""
        return statistics.median(stopped / max(1e-9, copy) for copy, stopped in self.turns) - 1


class Slice:
    """Latency of one section from a moment to another."""

    def __init__(self, load: Load, section: str) -> None:
        self.load, self.index = load, SECTIONS.index(section)

    async def __aenter__(self) -> Slice:
        await self.load.enter_section(self.index)
        self.before = self.load.section(self.index).all_ns
        return self

    async def __aexit__(self, *error: object) -> None:
        after = self.load.section(self.index).all_ns
        self.found = np.subtract(after, self.before, where=np.arange(len(after)) != 2, out=after)

    @property
    def p99_ms(self) -> float:
        return percentile_ns(self.found, 0.99) / 1e6


class StoppedSite(StoreSite):
    """Backup storage that can be stopped; its patience with it is `stall_limit_s`."""

    def __init__(self, folder: Path, size: int, stall_limit_s: float, **settings: Any) -> None:
        super().__init__(folder, size, volume=f"copy = {{ rate = {COPY_RATE} }}", **settings)
        self.stall_limit_s = stall_limit_s

    def config(self) -> Path:
        path = super().config()
        path.write_text(f'{path.read_text()}stall-limit = "{self.stall_limit_s:g}s"\n')
        return path

    @property
    def store_pid(self) -> int:
        assert self.store is not None
        return self.store.pid

    async def __aexit__(self, *error: object) -> None:
        os.kill(self.store_pid, signal.SIGCONT)
        await super().__aexit__(*error)


class TgtSite(StoppedSite):
    """Backup storage is a LUN of tgtd."""

    tgtd: Tgtd | None = None

    async def start_store(self) -> None:
        folder = self.folder / "tgt"
        folder.mkdir()
        self.backup_image.rename(folder / "image")
        self.tgtd = await asyncio.to_thread(Tgtd, folder, STORE_IQN, port=self.store_port)
        self.store_url = f"iscsi://127.0.0.1:{self.store_port}/{STORE_IQN}/1"

    @property
    def store_pid(self) -> int:
        assert self.tgtd is not None
        return self.tgtd.process.pid

    async def __aexit__(self, *error: object) -> None:
        await super().__aexit__(*error)
        assert self.tgtd is not None
        await asyncio.to_thread(self.tgtd.close)


async def one_run(folder: Path, store: str, seconds: float, filling: bool, rate: float = RATE,
                  stall_limit_s: float = 0.0, size: int = SIZE, turns: int = 0, control: bool = False) -> Outcome:
    """A whole detour. `stall_limit_s` 0: as long as the section before the last stop, or with `filling` the default."""
    kind = TgtSite if store == "tgt" else StoppedSite
    site = kind(folder, size, stall_limit_s or (120.0 if filling else seconds),
                journal=f"{max(16 * MIB, size // 8)}" if filling else "1GiB")
    fill(site.main_image, size, 1)
    async with site:
        await site.start_gateway()
        host = await site.open_host()
        load = await site.load(host, read_share=0.7, io_bytes=4096, io_bytes_max=16384, depth=DEPTH, rate=rate,
                               base=site.main_image.read_bytes(), seed=5)
        await asyncio.sleep(min(3.0, seconds))
        outcome = await stop_in_mid_copy(site, load, seconds, turns, control)
        await load.enter_section(SECTIONS.index("after"))
        await asyncio.sleep(min(3.0, seconds))
        await load.stop()
        await host.flush()
        for number, name in enumerate(SECTIONS):
            section = load.section(number)
            outcome.p50[name], outcome.p99[name] = (percentile_ns(section.all_ns, share) / 1e6 for share in (0.5, 0.99))
            outcome.longest[name] = section.counters["longest_ns"] / 1e6
            outcome.operations[name] = section.operations
        try:
            check_load(load, site.main_image)
            await site.check_home()
        except AssertionError as error:
            outcome.wrong.append(str(error))
        if (outcome.result, outcome.exit_code) != ("abandoned", 3):
            outcome.wrong.append(f"the detour ended {outcome.result} with exit code {outcome.exit_code}")
        return outcome


async def stop_in_mid_copy(site: StoppedSite, load: Load, seconds: float, turns: int, control: bool) -> Outcome:
    """The detour to its end."""
    clock = asyncio.get_running_loop().time
    async with site.client() as client:
        started = await site.begin(client)
        while (document := await client.detour(started["id"]))["phase"] != "copying":
            assert document["result"] is None, document["reason"]
            await asyncio.sleep(0.02)
        taken = [await one_turn(site, load, control) for _ in range(turns)]
        async with Slice(load, "copy") as copy:
            await asyncio.sleep(seconds)
        os.kill(site.store_pid, signal.SIGSTOP)
        begun, share = clock(), 0.0
        async with Slice(load, "stopped") as stopped:
            while (document := await client.detour(started["id"]))["phase"] == "copying":
                share = document["journal"]["used_bytes"] / max(1, document["journal"]["size_bytes"])
                await asyncio.sleep(0.02)
        stopped_s = clock() - begun
        taken.append((copy.p99_ms, stopped.p99_ms))
        await load.enter_section(SECTIONS.index("catch_up"))
        while document["result"] is None:
            document = await client.detour(started["id"])
            await asyncio.sleep(0.02)
    return Outcome(document["result"], document["reason"] or "", document["exit_code"], stopped_s,
                   p50={}, p99={}, longest={}, operations={}, journal_share=share, turns=taken)


async def one_turn(site: StoppedSite, load: Load, control: bool) -> tuple[float, float]:
    """p99 while it copies, and while backup storage stands still."""
    async with Slice(load, "copy") as copy:
        await asyncio.sleep(TURN_S)
    if not control:
        os.kill(site.store_pid, signal.SIGSTOP)
    async with Slice(load, "stopped") as stopped:
        await asyncio.sleep(TURN_S)
    os.kill(site.store_pid, signal.SIGCONT)
    return copy.p99_ms, stopped.p99_ms


def check(outcome: Outcome) -> None:
    """What is about time."""
    if outcome.change > WITHIN:
        turns = ", ".join(f"{copy:.2f} and {stopped:.2f}" for copy, stopped in outcome.turns)
        outcome.wrong.append(f"p99 rose by {outcome.change:.0%} while backup storage was stopped; turns in ms: {turns}")


def _line(outcome: Outcome) -> str:
    figures = " ".join(f"{outcome.p99[name]:8.2f}" for name in SECTIONS)
    return (f"{figures} {100 * outcome.change:+6.0f} {outcome.longest['stopped']:9.1f} {outcome.stopped_s:8.1f} "
            f"{100 * outcome.journal_share:7.0f}  {outcome.exit_code} {'; '.join(outcome.wrong) or outcome.reason}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--store", choices=("detour", "tgt"), default="detour")
    parser.add_argument("--fill", action="store_true", help="the host fills a small journal meanwhile")
    parser.add_argument("--seconds", type=float, help="from the last turn until the last stop, and the store's "
                        "stall-limit (10; with --fill 5: a copy under pressure keeps to no rate, and ends before)")
    parser.add_argument("--turns", type=int, help=f"of {TURN_S:g} s of copy and {TURN_S:g} s of standstill, before the "
                        f"last stop ({TURNS}; with --fill 0)")
    parser.add_argument("--control", action="store_true", help="nothing is stopped in the turns but the last")
    parser.add_argument("--folder", help="where everything lies (default: TMPDIR)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if not options.json:
        print(f"{' '.join(f'{name:>8}' for name in SECTIONS)} {'%':>6} {'longest':>9} {'given up':>8} {'journal':>7}\n"
              f"{'p99, ms':>44} {'':>6} {'ms':>9} {'s':>8} {'%':>7}", flush=True)
    outcomes = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory(prefix="stopped-store-", dir=options.folder) as folder:
            seconds = options.seconds or (5.0 if options.fill else 10.0)
            turns = (0 if options.fill else TURNS) if options.turns is None else options.turns
            outcome = asyncio.run(one_run(Path(folder), options.store, seconds, options.fill, turns=turns,
                                          control=options.control))
        check(outcome)
        outcomes.append(outcome)
        if not options.json:
            print(_line(outcome), flush=True)
    wrong = [sentence for outcome in outcomes for sentence in outcome.wrong]
    if options.json:
        print(json.dumps({"ok": not wrong, "wrong": wrong, "runs": [asdict(outcome) for outcome in outcomes]}))
    else:
        print("\n".join(wrong) or f"{len(outcomes)} of {len(outcomes)} runs are right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
