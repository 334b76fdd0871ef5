"""The gateway in a host's path: beside the main it stands before, and its journal beside a file."""
from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.system.load import Client, LoadError, client
from bench.system.measure import Figure, Sample, Samples, interleaved
from bench.system.processes import TGT_BEST, TGT_INSTALLED, detour_target, lun_bytes
from bench.system.profile import profiled
from bench.system.scenario import Bench, Outcome, Scenario
from bench.system.site import (
    SLOW_COPY,
    STORE,
    VOLUME,
    Gateway,
    Main,
    Volume,
    detour_main,
    gateway,
    image,
    tgt_main,
)

PLAIN, ASKED, PATH = "plain target", "main, asked directly", "gateway in the path"
MIXES = {"read": 1.0, "write": 0.0}
DEPTH = 32
TGT_MAINS = ((TGT_INSTALLED, "rdwr"), (TGT_BEST, "aio"))
JOURNAL, QUICK_JOURNAL = 2 << 30, 64 << 20


def settings_of(read_share: float, length_bytes: int, depth: int = DEPTH) -> dict[str, Any]:
    """4 KiB at random places."""
    return {"depth": depth, "read_share": read_share, "io_bytes": 4096, "mode": "random", "length_bytes": length_bytes}


async def idle_gateway(bench: Bench, main: Main) -> Gateway:
    """A gateway whose copies are as good as idle."""
    volume = Volume(main, bench.memory_folder / f"journal-{main.target.name.replace(' ', '-')}",
                    QUICK_JOURNAL if bench.quick else JOURNAL, SLOW_COPY)
    store = bench.folder / f"store-{main.target.name.replace(' ', '-')}.img"
    return await bench.enter(gateway(bench, {VOLUME: volume}, {STORE: f"file://{store}"}))


async def checked_home(door: Gateway, run: str, load: Client, length_bytes: int) -> None:
    """Ends a detour under a load that checks what it reads, on the way home, too."""
    await load.start(settings_of(0.5, length_bytes, 8) | {"verify": True, "rate": 2000.0})
    await door.give_up(run)
    await load.stop()


async def beside_main(bench: Bench, outcome: Outcome, main: Main, name: str,
                      plain: tuple[Client, list[int]] | None) -> None:
    """Rounds of: plain target (where main is none that is slower), main asked directly, a detour, the same through the
    gateway, home. One session of one host for both of main and gateway: it follows the redirect."""
    size = main.target.size_bytes
    door = await idle_gateway(bench, main)
    load = await bench.enter(client(main.target.url, digests=bench.digests))
    await load.fill(size)
    runs: dict[str, dict[str, list[Sample]]] = {mix: {PLAIN: [], ASKED: [], PATH: []} for mix in MIXES}
    for sides in runs.values():
        if plain is None:
            del sides[PLAIN]
    for _ in range(bench.rounds):
        for mix, share in MIXES.items():
            wanted = settings_of(share, size)
            if plain is not None:
                runs[mix][PLAIN].append(await plain[0].sample(wanted, bench.seconds, plain[1]))
            runs[mix][ASKED].append(await load.sample(wanted, bench.seconds, main.target.pids))
        run = await door.copying()
        for mix, share in MIXES.items():
            taken = await load.sample(settings_of(share, size), bench.seconds, [door.pid])
            runs[mix][PATH].append(taken)
        await checked_home(door, run, load, size)
    for mix, share in MIXES.items():
        run = await door.copying()
        await profiled(bench, outcome, f"4 KiB random {mix}, depth {DEPTH}, main is {name}",
                       {"gateway": door.pid, "main": main.target.pids[0], "client": load.pid},
                       lambda share=share: load.sample(settings_of(share, size), bench.seconds))
        await checked_home(door, run, load, size)
    for mix in MIXES:
        case = f"4 KiB random {mix}, depth {DEPTH}, main is {name}"
        row = outcome.row(case, "iops", Samples({side: Figure.of(taken) for side, taken in runs[mix].items()}))
        slower = min(set(row.sides) - {PATH}, key=lambda side: row.value(side) or float("inf"))
        outcome.check("gateway-path", f"{PATH} : {slower}", case, row.ratio(PATH, slower), at_least=0.85)


async def path(bench: Bench) -> Outcome:
    outcome = Outcome()
    target = await bench.enter(detour_target(bench, name=PLAIN))
    plain = await bench.enter(client(target.url, digests=bench.digests))
    await plain.fill(target.size_bytes)
    mains: dict[str, Main | None] = {"detour target": await bench.enter(detour_main(bench))}
    for name, store in TGT_MAINS[:1 if bench.quick else None]:
        mains[name] = await outcome.optional(name, bench.enter(tgt_main(bench, store, lun_bytes(bench))))
    for name, main in mains.items():
        if main is not None:
            bench.say(f"main is {name}")
            await beside_main(bench, outcome, main, name, None if name in (TGT_INSTALLED, TGT_BEST) else
                              (plain, target.pids))
    outcome.notes.append("The copy is idle (64 KiB/s): reads are answered from main and the journal, writes go into "
                         "the journal. With a memory LUN as main all three processes share the machine's cores.")
    return outcome


FILE, QUIET, BUSY = "plain target on a file", "journal, no copy", "journal, during the copy"
OPEN_RATE = 20000.0                 # operations a second, open loop
COPIED, QUICK_COPIED = 2 << 30, 64 << 20
QUICK_COPY = 'copy = { rate = "16MiB/s" }'  # longer than a sample, whatever the machine does


@dataclass
class Side:
    """A load on the same kind of file: in the plain target, or in the journal of a volume."""

    load: Client
    pids: list[int]
    door: Gateway | None = None
    volume: str = ""

    async def sample(self, wanted: dict[str, Any], seconds: float) -> Sample:
        """With a gateway: in mid detour, and home again."""
        if self.door is None:
            return await self.load.sample(wanted, seconds, self.pids)
        run = await self.door.copying(volume=self.volume)
        try:
            found = await self.load.sample(wanted, seconds, self.pids)
            document = await self.door.api.detour(run)
        finally:
            ended = await self.door.give_up(run, self.volume)
        if document["phase"] != "copying":
            raise LoadError(f"the copy was over before the sample: {ended['reason']}")
        return found | {"copied_bytes_s": document["copy"]["bytes_done"] / found["seconds"]}


async def journal_sides(bench: Bench, folder: Path) -> dict[str, Side]:
    """All three with their files in one folder; the one whose copy runs has much to copy."""
    file = await bench.enter(detour_target(bench, str(image(folder / "plain.img", lun_bytes(bench))), name=FILE))
    loads = {FILE: await bench.enter(client(file.url, digests=bench.digests))}
    volumes = {}
    for name, size, more in (("quiet", lun_bytes(bench), SLOW_COPY),
                             ("busy", QUICK_COPIED if bench.quick else COPIED, QUICK_COPY if bench.quick else "")):
        main = await bench.enter(detour_main(bench, f"mem:{size}", size_bytes=size))
        volumes[name] = Volume(main, folder / f"{name}.journal", QUICK_JOURNAL if bench.quick else JOURNAL, more)
        loads[name] = await bench.enter(client(main.target.url, digests=bench.digests))
    door = await bench.enter(gateway(bench, volumes, {STORE: f"file://{bench.memory_folder / 'store.img'}"}))
    for load in loads.values():
        await load.fill()
    return {FILE: Side(loads[FILE], file.pids), QUIET: Side(loads["quiet"], [door.pid], door, "quiet"),
            BUSY: Side(loads["busy"], [door.pid], door, "busy")}


async def journal_writes(bench: Bench) -> Outcome:
    """4 KiB random writes into a file, and into the journal with and without a copy beside them."""
    outcome = Outcome()
    folders = {"tmpfs": bench.memory_folder} if bench.quick else {"a disk": bench.folder, "tmpfs": bench.memory_folder}
    for place, folder in folders.items():
        sides = await journal_sides(bench, folder)
        for name, rate in (("closed loop", 0.0), ("20,000 a second", OPEN_RATE)):
            wanted = settings_of(0.0, lun_bytes(bench)) | {"rate": rate}

            def taker(side: Side, wanted: dict[str, Any] = wanted) -> Callable[[], Awaitable[Sample]]:
                return lambda: side.sample(wanted, bench.seconds)
            case = f"4 KiB random write, depth {DEPTH}, {name}, files on {place}"
            row = outcome.row(case, "p99_ms" if rate else "iops",
                              await interleaved({name: taker(side) for name, side in sides.items()}, bench.rounds))
            if not rate:
                outcome.check("journal-writes", f"{BUSY} : {FILE}", case, row.ratio(BUSY, FILE), at_least=1.0)
            outcome.check("journal-writes", "p99 during the copy : without", case, row.ratio(BUSY, QUIET, "p99_ms"),
                          at_most=1.25)
            for name in (QUIET, BUSY):
                side = sides[name]
                await profiled(bench, outcome, f"{case}: {name}", {"gateway": side.pids[0]},
                               lambda side=side, wanted=wanted: side.sample(wanted, bench.seconds))
    return outcome


SCENARIOS = [
    Scenario("gateway.path", ("gateway-path",), "4 KiB random through the gateway, beside main asked directly", path,
             60, digests=True),
    Scenario("gateway.journal", ("journal-writes",), "host writes into the journal, with a copy and without, beside a "
             "file", journal_writes, 60, digests=True),
]
