"""Detours back to back through one gateway, and what it holds after each.

    python -m tests.soak [--minutes 60] [--main detour|tgt] [--seed S] [--plot FILE.svg] [--json]

A host writes by a ledger and under a verifying load; each detour ends in one of several ways by the dice: done,
cancelled in mid copy, with a backup storage that is full, with the gateway's session to main lost in mid copy. Each
backup is held against main's shadow at the freeze and the ledger, main against the ledger after each detour. When all
is quiet again, memory, descriptors, threads, journal, state folder and the gateway's own gauges are sampled. Ends with
0 when nothing was wrong and nothing grows (trend.py says what that is).
"""
from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from detour import logs
from tests.soak.plot import plot
from tests.soak.sites import SITES
from tests.soak.soak import Record, Soak
from tests.soak.trend import list_was_full, table

MIB = 2.0**20
MORE_SHOWN = 20


def picture(record: Record) -> str:
    """What is worth looking at, as SVG."""
    figures = record.figures

    def in_mib(name: str) -> list[float]:
        return [value / MIB for value in figures[name]]
    panels = {"gateway, MiB": {word: in_mib(f"gateway_{word}_bytes") for word in ("resident", "anonymous")}}
    if "main_anonymous_bytes" in figures:
        panels["main, MiB"] = {word: in_mib(f"main_{word}_bytes") for word in ("resident", "anonymous")}
    panels["gateway"] = {name: figures[f"gateway_{name}"] for name in ("descriptors", "threads")}
    panels["journal and state, MiB"] = {
        "file": in_mib("journal_file_bytes"), "used": [value / MIB for value in figures["journal_used"]],
        "state": in_mib("state_bytes")}
    return plot(record.detours, panels)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--main", choices=sorted(SITES), default="detour")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures as SVG")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document, too")
    asked = parser.parse_args()
    logs.set_up("error")
    with tempfile.TemporaryDirectory(prefix="detour-soak-") as name:
        soak = Soak(Path(name), asked.main, asked.seed, lambda text: print(text, file=sys.stderr, flush=True))
        host = asyncio.run(soak.run(asked.minutes * 60))
    trends = soak.record.trends()
    grows = [one.name for one in trends if one.grows]
    print(table(trends))
    if asked.plot:
        asked.plot.write_text(picture(soak.record))
    for doing, longest in host.pop("longest_write").items():
        print(f"longest write, {doing}: {longest}")
    if not list_was_full(soak.record.detours):
        print("the gateway's list of runs was still filling: its memory is judged loosely")
    for sentence in soak.more_sockets[:MORE_SHOWN]:
        print(f"more sockets {sentence}")
    for fault in soak.wrong:
        print(f"wrong: {fault}")
    print(f"{soak.results.total()} detours with {asked.main}, seed {asked.seed}: {dict(soak.results)} by the ways "
          f"{dict(soak.ways)}; host {host}; {'grows: ' + ', '.join(grows) if grows else 'no growth'}; "
          f"{len(soak.wrong)} wrong")
    if asked.json:
        print(json.dumps({"ok": not grows and not soak.wrong, "detours": soak.results.total(), "results": soak.results,
                          "ways": soak.ways, "wrong": soak.wrong, "host": host, "peaks": soak.record.peaks,
                          "trends": [{**asdict(one), "grows": one.grows} for one in trends],
                          "samples": asdict(soak.record)}))
    return 1 if grows or soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
