"""Detours back to back of one volume, through one gateway that lives from the first to the last."""
from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from detour.backups.catalog import Catalog
from tests.soak.host import SoakHost
from tests.soak.samples import descriptors, folder_figures, memory, process_figures, sockets, threads
from tests.soak.sites import NO_KEEPING, SITES, DetourSite
from tests.soak.trend import WARM_SHARE, Trend, trend
from tests.support.ledger import Ledger
from tests.support.site import VOLUME

SIZE = 16 << 20
JOURNAL = "32MiB"
VOLUME_TABLE = 'copy = { rate = "48MiB/s" }\nmax-pause = "2s"'
FULL_AT = 8 << 20                   # where the backup's file system is full, in the way "full"
RUN_SECONDS = 120.0
SETTLE_SECONDS = 8.0                # an idle connection to an API is closed after five seconds
SAMPLE_EVERY = 5                    # detours: to become quiet takes longer than a detour
PEAK_EVERY_S = 1.0
WAYS = {"done": 6, "cancelled": 2, "full": 2, "main lost": 2}       # shares of the detours
# On a busy machine a copy is over before it is harmed.
ENDS = {"done": ("done",), "cancelled": ("cancelled", "done"), "full": ("abandoned", "done"), "main lost": ("done",)}
GAUGES = {"detour_journal_used_bytes": "journal_used", "detour_volume_unreflected_bytes": "unreflected",
          "detour_buffers_used_bytes": "buffers_used", "detour_target_tasks": "tasks",
          "detour_target_sessions": "sessions"}


@dataclass
class Record:
    """All samples: how many detours were over, seconds since the start, and figures by name."""

    detours: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)

    def add(self, detours: int, seconds: float, figures: dict[str, float]) -> None:
        self.detours.append(detours)
        self.seconds.append(seconds)
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    def trends(self, warm_share: float = WARM_SHARE) -> list[Trend]:
        return [trend(name, self.detours, values, warm_share) for name, values in self.figures.items()]


class Soak:
    """`async with` is not needed: `run` starts everything and ends it. `wrong` has what must not be."""

    def __init__(self, folder: Path, main: str, seed: int, say: Callable[[str], None] = lambda text: None,
                 sample_every: int = SAMPLE_EVERY) -> None:
        self._folder, self._dice, self._say = folder, random.Random(seed), say
        self._sample_every = sample_every
        self.site: DetourSite = SITES[main](folder, SIZE, journal=JOURNAL, volume=VOLUME_TABLE,
                                            store_url=f"file://{folder / 'backups'}/")
        self.record = Record()
        self.ways: Counter[str] = Counter()
        self.results: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._catalog = Catalog(folder / "state" / "backups")
        self._quiet: dict[str, tuple[Counter[str], int]] = {}
        self.more_sockets: list[str] = []       # of the gateway, than after the first detours: what they are

    async def run(self, seconds: float, detours: int | None = None) -> dict[str, Any]:
        """For so long, or so many detours. Answers figures of the host."""
        (self._folder / "backups").mkdir()
        self._begun = time.monotonic()
        async with self.site:
            await self.site.start_gateway()
            self.host = SoakHost(self.site, self._dice)
            await self.host.start()
            watcher = asyncio.create_task(self._watch_peaks())
            try:
                while not self.wrong and time.monotonic() - self._begun < seconds:
                    await self.one(self._next_way())
                    if self.results.total() == detours:
                        break
                await self.host.stop()
            finally:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)
        return self.host.total()

    def _next_way(self) -> str:
        if self.results.total() < len(WAYS):
            return list(WAYS)[self.results.total()]         # each of them early: what it holds is in the warm part
        return self._dice.choices(list(WAYS), list(WAYS.values()))[0]

    async def one(self, way: str) -> None:
        """A detour, its checks, and each so many a sample when everything is quiet again."""
        async with asyncio.timeout(RUN_SECONDS), self.site.client() as client:
            stalls = self.host.stalls
            stalls.doing, stalls.number, stalls.phase = way, self.results.total() + 1, ""
            started = await self.site.begin(client)
            document: dict[str, Any] = {}
            harmed: asyncio.Task[None] | None = None
            async for document in client.follow(started["id"]):
                stalls.phase = document["phase"]
                if document["phase"] == "copying" and harmed is None:
                    harmed = asyncio.create_task(self._harm(way, client))
            if harmed is not None:
                await harmed
            resource.prlimit(self.site.soaked()["gateway"], resource.RLIMIT_FSIZE, UNLIMITED)
            await self.site.check_home(*self.host.initiators)
            backup = await client.backup(document["backup_id"]) if document["result"] == "done" else None
        stalls.doing = "between"
        self.ways[way] += 1
        self.results[document["result"]] += 1
        await self.host.pause()
        self._check(way, document, backup)
        if self.results.total() % self._sample_every == 0:
            await self._sample()
        await self.host.resume()

    async def _harm(self, way: str, client: Any) -> None:
        if way == "full":
            limits = (FULL_AT, UNLIMITED[1])
            resource.prlimit(self.site.soaked()["gateway"], resource.RLIMIT_FSIZE, limits)
        elif way == "cancelled":
            await asyncio.sleep(self._dice.uniform(0, 0.3))
            with contextlib.suppress(Exception):        # it may be over by now
                await client.cancel(VOLUME)
        elif way == "main lost":
            await asyncio.sleep(self._dice.uniform(0, 0.2))
            await self.site.lose_main()

    def _check(self, way: str, document: dict[str, Any], backup: dict[str, Any] | None) -> None:
        number = self.results.total()
        if document["result"] not in ENDS[way]:
            self.wrong.append(f"detour {number} ({way}) ended with {document['result']}: {document['reason']}")
        self.wrong += [f"main after detour {number} ({way}): {fault}"
                       for fault in self.host.check_main(self.site.main_image, time.time_ns())]
        if backup is not None:
            image = Path(backup["url"].removeprefix("file://"))
            self.wrong += backup_faults(image.read_bytes(), self.site.pit_image.read_bytes(), self.host.ledger,
                                        backup["pit_ns"])
            image.unlink()
            self._catalog.remove(backup["id"])
        left = sorted(path.name for path in (self._folder / "backups").iterdir())
        if left:
            self.wrong.append(f"detour {number} ({way}) left {left} in the backup storage")

    # --- samples

    async def _sample(self) -> None:
        figures: dict[str, float] = dict(await gauges(self._folder / "gateway.sock"))
        await self._settle()
        if descriptors(self.site.soaked()["gateway"])["sockets"] > self._quiet["gateway"][0]["sockets"]:
            found = sockets(self.site.soaked()["gateway"])
            self.more_sockets.append(f"after detour {self.results.total()}: {found}")
        for name, pid in self.site.soaked().items():
            figures |= {f"{name}_{what}": value for what, value in process_figures(pid).items()}
        figures |= {f"state_{what}": value for what, value in folder_figures(self._folder / "state").items()}
        journal = (self._folder / "vol.journal").stat()
        figures |= {"journal_file_bytes": journal.st_size, "journal_room_bytes": journal.st_blocks * 512}
        self.record.add(self.results.total(), time.monotonic() - self._begun, figures)
        self._say(f"{self.results.total()} detours, {self.record.seconds[-1]:.0f} s: "
                  f"{figures['gateway_anonymous_bytes'] / 2**20:.1f} MiB, {figures['gateway_descriptors']} descriptors,"
                  f" {figures['gateway_threads']} threads")

    async def _settle(self) -> None:
        """Waits until the soaked processes hold what they held after the first detour: closing lasts a little."""
        if not self._quiet:
            await asyncio.sleep(SETTLE_SECONDS)
            self._quiet = self._held()
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._held() != self._quiet and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    def _held(self) -> dict[str, tuple[Counter[str], int]]:
        return {name: (descriptors(pid), threads(pid)) for name, pid in self.site.soaked().items()}

    async def _watch_peaks(self) -> None:
        """The most that was held under load, at most once a second."""
        while True:
            for name, pid in self.site.soaked().items():
                held = {**memory(pid), "threads": threads(pid), "descriptors": descriptors(pid).total()}
                for what, value in held.items():
                    self.record.peaks[f"{name}_{what}"] = max(self.record.peaks.get(f"{name}_{what}", 0), value)
            await asyncio.sleep(PEAK_EVERY_S)


UNLIMITED = (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2


def backup_faults(image: bytes, shadow: bytes, ledger: Ledger, pit_ns: int) -> list[str]:
    """What is wrong with a backup: it is main's shadow at the freeze, and what the ledger says of that moment."""
    wrong = ["the backup is not main as it was at the freeze"] if image != shadow else []
    return wrong + ledger.check(image, pit_ns).wrong


async def gauges(api: Path) -> dict[str, float]:
    """What the gateway tells of itself, summed over volumes."""
    found = dict.fromkeys(GAUGES.values(), 0.0)
    transport = httpx.AsyncHTTPTransport(uds=str(api), limits=NO_KEEPING, verify=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", trust_env=False) as client:
        text = (await client.get("/metrics")).raise_for_status().text
    for line in text.splitlines():
        name = line.partition("{")[0]
        if name in GAUGES:
            found[GAUGES[name]] += float(line.rpartition(" ")[2])
    return found
