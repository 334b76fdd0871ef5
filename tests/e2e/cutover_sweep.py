"""The cutover over a sweep of write rates: what pause was predicted, what it was, and what the host felt.

    python -m tests.e2e.cutover_sweep [--runs N] [--main-speed 24MiB] [--max-pause 1s] [--json]

Main is `detour target` over a file that takes no more than --main-speed, the gateway `detour serve`, the host the
project's own initiator with random writes at each of SHARES of main's speed, and last as fast as it can. Each run is a
whole detour. What must hold:

- the pause is within the limit in every run, the host has no error, and main ends with what the host wrote;
- the prediction is within 20 % of the pause in nine of ten runs (on a busy machine, pauses below 100 ms are missed more
  often).

`stall` is the host's slowest command, from the moment at which it was to be sent (at a rate the host's clock goes on
while it is slowed), `slowest` the slowest one as the gateway saw it.
"""
from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from detour.bench import Load
from detour.children import Child
from detour.urls import format_size, parse_duration, parse_size
from tests.support.site import IQN, Site, check_load

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, float("inf"))    # of main's speed
WITHIN = 0.2
RIGHT_SHARE = 0.9               # of the runs have such a prediction
SIZE = 96 << 20
BEFORE_S, AFTER_S = 0.4, 0.4


@dataclass(frozen=True)
class Run:
    """One detour. Times in ms, rates in bytes a second."""

    wanted: float                   # inf: as fast as the host can
    written: float                  # by the host, over the whole run
    result: str
    rounds: int
    tries: int
    throttle: float                 # the tightest bound; 0: none
    predicted: float
    actual: float
    stall: float                    # the slowest command of the host
    slowest: float                  # answer of the gateway
    errors: int
    seconds: float

    @property
    def right(self) -> bool:
        return abs(self.predicted - self.actual) <= WITHIN * self.actual


class SlowSite(Site):
    """Main takes `speed_bytes_s`."""

    def __init__(self, folder: Path, speed_bytes_s: int, max_pause: str, more: str = "") -> None:
        super().__init__(folder, SIZE, volume=f'max-pause = "{max_pause}"\ncopy = {{ rate = "48MiB" }}\n{more}')
        self.speed_bytes_s = speed_bytes_s

    async def start_main(self) -> None:
        self.main = await Child.start("main", [
            "target", f"{self.main_image}?write-rate={self.speed_bytes_s}", "--listen", f"127.0.0.1:{self.main_port}",
            "--iqn", IQN, "--api", f"unix:{self.folder / 'main.sock'}"], self.log_file("main"))
        await self.main.wait_ready()
        self.main_url = f"iscsi://127.0.0.1:{self.main_port}/{IQN}/0"


async def one_run(site: SlowSite, host: Any, wanted: float, io_bytes: int) -> Run:
    """A detour under a host that writes `wanted` bytes a second."""
    load = Load(site.runtime, host.handle, read_share=0.05 if wanted else 1.0, io_bytes=io_bytes, depth=16,
                rate=0.0 if wanted in (0.0, float("inf")) else wanted / io_bytes / 0.95,
                base=site.main_image.read_bytes(), seed=7)
    if wanted:
        await load.start()
    begun = asyncio.get_running_loop().time()
    await asyncio.sleep(BEFORE_S)
    async with site.client() as client:
        started = await site.begin(client)
        document = await site.follow(client, started["id"])
    await asyncio.sleep(AFTER_S)
    seconds = asyncio.get_running_loop().time() - begun
    if wanted:
        await load.stop()
        await host.flush()
        check_load(load, site.main_image)
    cutover = document["cutover"]
    run = Run(wanted, load.total("write_bytes") / seconds, document["result"], document["catch_up"]["rounds"],
              cutover["tries"], cutover["throttle_least_bytes_per_second"], cutover["predicted_ms"],
              cutover["actual_ms"], load.total("longest_ns") / 1e6, document["host"]["longest_ms"],
              load.total("errors"), seconds)
    load.close()
    return run


async def sweep(folder: Path, speed_bytes_s: int, max_pause: str, shares: Sequence[float], runs: int,
                io_bytes: int = 16384, told: Any = None) -> list[Run]:
    """All runs through one gateway, one after the other."""
    found = []
    async with SlowSite(folder, speed_bytes_s, max_pause) as site:
        await site.start_gateway()
        host = await site.open_host()
        for _ in range(runs):
            for share in shares:
                found.append(await one_run(site, host, share * speed_bytes_s, io_bytes))
                if told is not None:
                    told(found[-1])
        await site.check_home()
    return found


def check(runs: Sequence[Run], limit_ms: float) -> list[str]:
    """What does not hold, one sentence each."""
    wrong = [f"{_rate(run.wanted)}: the pause was {run.actual:.0f} ms, the limit is {limit_ms:.0f} ms"
             for run in runs if run.actual > limit_ms]
    wrong += [f"{_rate(run.wanted)}: {run.errors} errors of the host, result {run.result}"
              for run in runs if run.errors or run.result not in allowed(run)]
    right = sum(run.right for run in runs)
    if right < RIGHT_SHARE * len(runs):
        wrong.append(f"only {right} of {len(runs)} predictions are right")
    return wrong


def allowed(run: Run) -> tuple[str, ...]:
    """A host without a bound may fill the journal before the copy is complete: then the backup gives way."""
    return ("done", "abandoned") if run.wanted == float("inf") else ("done",)


def _rate(bytes_s: float) -> str:
    return "unbounded" if bytes_s == float("inf") else f"{bytes_s / 2**20:.1f}"


def _line(run: Run) -> str:
    throttle = _rate(run.throttle) if run.throttle else "-"
    return (f"{_rate(run.wanted):>9} {run.written / 2**20:8.1f} {run.rounds:6d} {run.tries:5d} {throttle:>8} "
            f"{run.predicted:9.1f} {run.actual:8.1f} {100 * (run.predicted / run.actual - 1):+6.0f} "
            f"{'yes' if run.right else 'no':>5} {run.stall:8.1f} {run.slowest:8.1f} {run.errors:6d} {run.result}")


HEAD = (f"{'wanted':>9} {'written':>8} {'rounds':>6} {'holds':>5} {'throttle':>8} {'predicted':>9} {'actual':>8} "
        f"{'%':>6} {'right':>5} {'stall':>8} {'slowest':>8} {'errors':>6} result\n"
        f"{'MiB/s':>9} {'MiB/s':>8} {'':>12} {'MiB/s':>8} {'ms':>9} {'ms':>8} {'':>12} {'ms':>8} {'ms':>8}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="how often the whole sweep is done")
    parser.add_argument("--main-speed", default="24MiB", help="what main takes a second")
    parser.add_argument("--io-size", default="16KiB", help="of each command of the host")
    parser.add_argument("--max-pause", default="1s")
    parser.add_argument("--folder", help="where main, journal and backup lie, on a disk or in memory (default: TMPDIR)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    speed, limit_ms = parse_size(options.main_speed), parse_duration(options.max_pause) * 1e3
    if not options.json:
        print(f"main takes {format_size(speed)}/s, max-pause {limit_ms:.0f} ms\n{HEAD}", flush=True)
    with tempfile.TemporaryDirectory(prefix="cutover-", dir=options.folder) as folder:
        runs = asyncio.run(sweep(Path(folder), speed, options.max_pause, SHARES, options.runs,
                                 parse_size(options.io_size),
                                 None if options.json else lambda run: print(_line(run), flush=True)))
    wrong = check(runs, limit_ms)
    if options.json:
        print(json.dumps({"ok": not wrong, "wrong": wrong,
                          "runs": [{**asdict(run), "right": run.right} for run in runs]}))
    else:
        print("\n".join(wrong) or f"{sum(run.right for run in runs)} of {len(runs)} predictions are right; "
              f"longest pause {max(run.actual for run in runs):.0f} ms")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
