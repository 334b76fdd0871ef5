"""kill -9 of the gateway at random moments of detours that follow each other, under a host that keeps a ledger.

    python -m tests.fault.kill_campaign --kills 500 [--seed S] [--main detour|tgt] [--jobs J] [--json] [--keep FOLDER]

Scenes, each with a seed of its own (S, S+1, ...) and a new site, take turns until there were so many kills. In each a
host works without a rest through a real initiator, which logs in again and sends again what was open, as Linux does;
detour follows detour, and the gateway is killed in a phase that had few kills so far, some milliseconds after it began.
It is started again after a while, and sometimes killed before it has found out what it was in. Then

  - no write that was acknowledged is lost, and no read shows anything else: every block tells which write it is of;
  - the host sees no error, and no operation takes longer than 30 s;
  - every detour ends with its host home on a main that has what the host wrote in each block of the ledger; with a
    backup, unless it was killed before the point in time;
  - the backup holds every write that was acknowledged before the point in time, none that was issued after it, and is
    byte for byte the copy of main that the hook made then;
  - nothing is left behind: redirect, marker, journal, unfinished images.

Ends with 1 when anything was wrong, with the seed of the scene; its folder is kept in --keep.
"""
from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detour import logs
from detour.api.client import Client
from detour.errors import ClosedError, DetourError
from detour.iscsi import initiator
from tests.fault.kill_site import CrashSite, TgtSite, keep
from tests.support.ledger import BLOCK_BYTES
from tests.support.patience import SLOWER
from tests.support.power_host import Habits, LedgerHost
from tests.support.power_ledger import CutLedger
from tests.support.site import STORE, VOLUME, eventually

PHASES = ("home", "preparing", "redirecting", "frozen", "copying", "catching-up", "holding", "going-home")
AGAIN = ("starting", "recovering")  # right after a restart: before and after it knows of a detour
EARLY = {"home", "preparing", "redirecting"}        # a detour that is killed there may end without a backup
WINDOW_S = {"home": 0.2, "preparing": 0.03, "redirecting": 0.1, "frozen": 0.03, "copying": 0.6, "catching-up": 0.3,
            "holding": 0.05, "going-home": 0.05}
AGAIN_S = {"starting": 1.2, "recovering": 0.15}     # how long after it began the gateway is killed again
KILLS_PER_SCENE = 20
COPY_RATES = ("24MiB/s", "6MiB/s")  # with the slow one the journal gets full
PLACES = 1536                       # blocks that the host writes to: 6 MiB
DETOUR_SECONDS = 75.0
SERVED_SECONDS = 30.0 * SLOWER
STALL_SECONDS = 30.0 * SLOWER
DRAIN_S = 0.03                      # what the dead gateway had answered has been taken by then


@dataclass
class Report:
    """What a campaign, or a part of it, came to. `wrong` has a sentence for everything, with its seed."""

    kills: Counter[str] = field(default_factory=Counter)
    detours: Counter[str] = field(default_factory=Counter)
    backups: int = 0
    pits: int = 0                   # of them: compared with main's copy
    writes: int = 0
    reads: int = 0
    flushes: int = 0
    looked: int = 0
    longest_s: float = 0.0
    media: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def take(self, other: Report) -> None:
        for name in ("kills", "detours", "media"):
            getattr(self, name).update(getattr(other, name))
        for name in ("backups", "pits", "writes", "reads", "flushes", "looked"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest_s = max(self.longest_s, other.longest_s)
        self.wrong += other.wrong

    def document(self) -> dict[str, Any]:
        return {"ok": not self.wrong, "kills": sum(self.kills.values()), "kills_by_phase": dict(self.kills),
                "detours": dict(self.detours), "backups": self.backups, "backups_equal_to_main": self.pits,
                "host": {"writes": self.writes, "reads": self.reads, "flushes": self.flushes,
                         "blocks_checked": self.looked, "longest_s": round(self.longest_s, 2)},
                "media": dict(self.media), "wrong": self.wrong}


@dataclass(frozen=True)
class Plan:
    """What a campaign is about."""

    main: str = "detour"
    power: bool = False
    sync: str = "auto"
    keep: Path | None = None
    kills_per_scene: int = KILLS_PER_SCENE
    phases: tuple[str, ...] = PHASES            # that are aimed at
    again: tuple[str, ...] = AGAIN
    folder: str | None = None       # where sites are; None: the system's folder for such


class Wrong(Exception):
    """Something does not hold; the scene ends."""


class CrashScene:
    """A site, its host, and its detours, up to so many kills."""

    def __init__(self, plan: Plan, seed: int, site: CrashSite, dice: random.Random, hits: Counter[str]) -> None:
        self.plan, self.seed, self.site, self.dice, self.hits = plan, seed, site, dice, hits
        self.report = Report()
        first = dice.randrange(site.size_bytes // BLOCK_BYTES - PLACES + 1)
        self.ledger = CutLedger(first, PLACES)
        self.detour_id = ""             # of the run under way
        self.killed_in: list[str] = []  # in this run

    async def play(self, kills: int) -> None:
        site = self.site
        await site.start_gateway()
        store = await site.open_host()
        host = LedgerHost(store, self.ledger, random.Random(self.dice.random()), Habits())
        async with host:
            self.host = host
            try:
                while sum(self.report.kills.values()) < kills:
                    await self._detour()
            finally:
                report = self.report
                report.writes, report.reads, report.flushes = host.writes, host.reads, host.flushes
                report.looked, report.longest_s = self.ledger.looked, host.longest_s
                if site.medium is not None:
                    medium = site.medium
                    report.media.update(cuts=medium.cuts, sectors_lost=medium.sectors_lost, folders=medium.names_undone,
                                        sectors_kept=medium.sectors_kept, writes_lost=self.ledger.lost)

    async def note_state(self) -> None:
        """What gateway and main say now, into the scene's folder."""
        found: dict[str, Any] = {}
        with contextlib.suppress(Exception):
            async with asyncio.timeout(10), self.site.client() as client:
                found["main"] = await self.site.main_target()
                found |= {"volume": await client.volume(VOLUME), "detours": await client.detours()}
        (self.site.folder / "state.json").write_text(json.dumps(found, indent=1, default=str))

    # --- one detour

    def _targets(self) -> list[str]:
        """Phases to be hit in one detour, in their order; those that had few kills come more often."""
        weights = [(1 + self.hits[phase]) ** -2 for phase in self.plan.phases]
        drawn = set(self.dice.choices(self.plan.phases, weights, k=self.dice.choice((1, 1, 2, 2, 3, 4))))
        return [phase for phase in PHASES if phase in drawn]

    async def _detour(self) -> None:
        self.ledger.all_stable()
        self.killed_in, self.detour_id = [], ""
        targets = self._targets()
        async with asyncio.timeout(DETOUR_SECONDS):
            if targets[0] == "home":
                await asyncio.sleep(self.dice.uniform(0, WINDOW_S["home"]))
                await self._kill_and_restart()
                self.killed_in.clear()
                targets = targets[1:]
            if targets[:1] == ["preparing"]:
                await self._kill_at_once()
                targets = targets[1:]
            else:
                async with self.site.client() as client:
                    self.detour_id = (await client.start(VOLUME, store=STORE,
                                                         hold_cutover="catching-up" in targets))["id"]
            for phase in targets:
                if not await self._reach(phase):
                    continue
                await asyncio.sleep(self.dice.uniform(0, WINDOW_S[phase]))
                await self._kill_and_restart()
                if phase == "catching-up":
                    await self._let_go()
            await self._over()
        await self._check()

    async def _kill_at_once(self) -> None:
        """The gateway dies just after a detour was asked for."""
        async def ask(client: Client) -> None:
            with contextlib.suppress(DetourError):
                self.detour_id = (await client.start(VOLUME, store=STORE))["id"]
        async with self.site.client() as client:
            asking = asyncio.create_task(ask(client))
            if self.dice.random() < 0.7:
                await asking
            await asyncio.sleep(self.dice.uniform(0, WINDOW_S["preparing"]))
            await self._kill_and_restart()
            await asking

    async def _let_go(self) -> None:
        """The operator, who had held the cutover back so that there is a catch-up to be killed in, lets the host go."""
        with contextlib.suppress(DetourError):
            async with self.site.client() as client:
                await client.cut_over(VOLUME)

    async def _reach(self, phase: str) -> bool:
        """Whether the run is in that phase now; False when it is beyond, or over."""
        async with self.site.client() as client:
            active = [run for run in await client.detours() if run["result"] is None]
            if not active:
                return False
            self.detour_id = active[0]["id"]
            with contextlib.suppress(ClosedError):
                async for document in client.follow(self.detour_id):
                    now = document["phase"]
                    if now == phase:
                        return True
                    if document["result"] is not None or now not in (*PHASES[1:], "idle"):
                        return False
                    if now in PHASES and PHASES.index(now) > PHASES.index(phase):
                        return False
        return False

    async def _kill_and_restart(self) -> None:
        await self._kill()
        while self.dice.random() < (0.4 if self.hits[self._again()] * len(PHASES) <= sum(self.hits.values()) else 0.05):
            aim = self._again()
            await self.site.spawn_gateway()
            if aim == "recovering":
                await self.site.goes_on()
            await asyncio.sleep(self.dice.uniform(0, AGAIN_S[aim]))
            await self._kill()
        await self.site.start_gateway()
        await self._served()

    def _again(self) -> str:
        """What had fewer kills so far; a gateway that was killed before it noted a detour has nothing to recover."""
        nothing = set(self.killed_in) <= {"home", "preparing", "starting"}
        return min(AGAIN[:1] if nothing else self.plan.again, key=lambda name: self.hits[name])

    async def _kill(self) -> None:
        """Dead, and what it left is as it may be; noted is the phase in which it was."""
        site = self.site
        await site.kill_gateway()
        phase = site.phase_at_death()
        await asyncio.sleep(DRAIN_S)
        if site.medium is not None:
            if not set([*self.killed_in, phase]) <= {"home", "preparing", "starting"}:
                self.ledger.cut()
            site.medium.cut(self.dice)
        self.killed_in.append(phase)
        self.report.kills[phase] += 1
        self.hits[phase] += 1
        dead = self.dice.choices((self.dice.uniform(0, 0.3), self.dice.uniform(0.3, 1.5), 3.0), (75, 22, 3))[0]
        await asyncio.sleep(dead)

    async def _served(self) -> None:
        reached = self.host.operations + 2 * self.host.habits.writers

        async def done() -> bool:
            return self.host.operations >= reached or bool(self.host.errors or self.ledger.wrong)
        if not await eventually(done, SERVED_SECONDS):
            raise Wrong("the host is not served after a restart")
        if self.host.errors or self.ledger.wrong:
            raise Wrong("after a restart")

    async def _over(self) -> None:
        """Every run has come to its end."""
        while True:
            async with self.site.client() as client:
                runs = await client.detours()
            if all(run["result"] is not None for run in runs):
                break
            if any(run["cutover_held"] for run in runs):
                await self._let_go()
            await asyncio.sleep(0.03)
        mine = [run for run in runs if not self.detour_id or run["id"] == self.detour_id]
        if mine:
            self.detour_id = mine[-1]["id"]
        self.report.detours[mine[-1]["result"] if mine else "ended by a kill"] += 1

    async def _check(self) -> None:
        """What must hold now."""
        site, host, ledger = self.site, self.host, self.ledger
        await site.check_home()
        await host.pause(STALL_SECONDS)
        await host.flush()
        ledger.look_all(await asyncio.to_thread(site.main_image.read_bytes), "main in the end")
        pit = (site.folder / "pit").exists()
        complete, wrong = await site.take_backup(self.detour_id, ledger)
        self.report.backups += complete
        self.report.pits += complete and pit
        if not complete and not set(self.killed_in) & EARLY:
            wrong.append("there is no backup")
        wrong += site.left_behind() + ledger.wrong + host.errors
        if host.longest_s > STALL_SECONDS:
            wrong.append(f"an operation of the host took {host.longest_s:.1f} s")
        if wrong:
            raise Wrong("; ".join(wrong[:6]) + (f"; {len(wrong)} in all" if len(wrong) > 6 else ""))
        ledger.forget()
        host.resume()


# --- the campaign

async def scene(plan: Plan, seed: int, kills: int, hits: Counter[str]) -> Report:
    """One scene from its seed."""
    dice = random.Random(f"{plan.main}/{plan.power}/{plan.sync}/{seed}")
    with tempfile.TemporaryDirectory(prefix="detour-kill-", dir=plan.folder) as name:
        kind = TgtSite if plan.main == "tgt" else CrashSite
        site = kind(Path(name), dice, power=plan.power, sync=plan.sync, copy_rate=dice.choice(COPY_RATES))
        if site.medium is not None:
            site.medium.keep_last = plan.keep is not None
        one: CrashScene | None = None
        said = ""
        try:
            async with site:
                one = CrashScene(plan, seed, site, dice, hits)
                try:
                    await one.play(kills)
                except (Wrong, DetourError, TimeoutError, OSError, AssertionError) as error:
                    said = str(error) or type(error).__name__
                    if not isinstance(error, Wrong):
                        said = f"{type(error).__name__}: {said}\n{traceback.format_exc()}"
                    wrong = one.ledger.wrong + getattr(getattr(one, "host", None), "errors", [])
                    said += "".join(f"; {sentence}" for sentence in wrong[:3] if sentence not in said)
                    said = (f"seed {seed}, detour {one.detour_id}, killed in {', '.join(one.killed_in) or 'no phase'}: "
                            f"{said}")
                    if plan.keep is not None:
                        await one.note_state()
                        said += f"; kept in {keep(Path(name), plan.keep, str(seed))}"
        except Exception as error:
            said = said or f"seed {seed}: {traceback.format_exc()}{error}"
    report = one.report if one is not None else Report()
    report.wrong += [said] if said else []
    return report


async def campaign(kills: int, seed: int, plan: Plan, jobs: int = 1, say: Any = None) -> Report:
    """So many kills, on as many scenes as it takes, `jobs` side by side."""
    report, hits = Report(), Counter[str]()
    seeds = iter(range(seed, sys.maxsize))
    begun, promised = time.monotonic(), 0
    initiator.RETRY_LAST_SECONDS = 0.2          # this host does not wait long between its logins

    async def work() -> None:
        nonlocal promised
        while promised < kills:
            share = min(plan.kills_per_scene, kills - promised)
            promised += share
            number = next(seeds)
            found = await scene(plan, number, share, hits)
            report.take(found)
            if say is not None:
                told = f"WRONG {found.wrong[0]}" if found.wrong else "right"
                say(f"seed {number}: {sum(found.kills.values())} kills, {sum(found.detours.values())} detours, "
                    f"{found.writes} writes; {sum(report.kills.values())} kills in {time.monotonic() - begun:.0f} s: "
                    f"{told}")
    await asyncio.gather(*(work() for _ in range(jobs)))
    return report


def table(report: Report) -> str:
    """The figures, for people."""
    lines = ["phase          kills"]
    order = [*PHASES, "abandoning", *AGAIN]
    lines += [f"{phase:14} {report.kills[phase]:5}" for phase in [*order, *sorted(set(report.kills) - set(order))]]
    lines.append(f"{'all':14} {sum(report.kills.values()):5}")
    lines.append("detours: " + ", ".join(f"{count} {name}" for name, count in sorted(report.detours.items())))
    lines.append(f"{report.backups} backups, {report.pits} of them compared with main at the point in time")
    lines.append(f"host: {report.writes} writes, {report.reads} reads, {report.flushes} flushes, {report.looked} "
                 f"blocks checked, longest operation {report.longest_s:.1f} s")
    if report.media:
        lines.append("media: " + ", ".join(f"{count} {name}" for name, count in report.media.items()))
    lines += [f"WRONG {sentence}" for sentence in report.wrong]
    return "\n".join(lines)


def run(words: argparse.Namespace, plan: Plan, count: int) -> int:
    """The campaign of a command line."""
    logs.set_up("error")
    if plan.keep is not None:
        plan.keep.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    report = asyncio.run(campaign(count, words.seed, plan, words.jobs,
                                  lambda text: print(text, file=sys.stderr, flush=True)))
    if words.json:
        print(json.dumps({**report.document(), "main": plan.main, "seed": words.seed,
                          "seconds": round(time.monotonic() - begun)}))
    else:
        print(table(report))
        print(f"main {plan.main}, seed {words.seed}, {time.monotonic() - begun:.0f} s")
    return 1 if report.wrong else 0


def parser_of(description: str, count: str, default: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(count, type=int, default=default)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--main", choices=("detour", "tgt"), default="detour")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "detour-kept",
                        help="where the folders of failed scenes are copied to")
    parser.add_argument("--folder", default=None, help="where the sites are made; a folder in memory is quicker")
    return parser


def main() -> int:
    words = parser_of(__doc__ or "", "--kills", 500).parse_args()
    return run(words, Plan(main=words.main, keep=words.keep, folder=words.folder), words.kills)


if __name__ == "__main__":
    sys.exit(main())
