"""The plain target on a memory LUN, one reactor, beside tgt, bare C and what --peer gives."""
from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from bench.system.load import Client, client
from bench.system.measure import Sample, interleaved
from bench.system.processes import TGT_BEST, TGT_INSTALLED, Target, detour_target, lun_bytes, peer_target, tgt_target
from bench.system.profile import profiled
from bench.system.programs import Bare, bare, libiscsi
from bench.system.scenario import Bench, Outcome, Plot, Row, Scenario
from detour.runtime import Runtime

Take = Callable[[], Awaitable[Sample]]

DETOUR, SPDK = "detour", "spdk"
MIXES = {"read": 1.0, "write": 0.0, "70/30": 0.7}
DEPTHS, SEQUENTIAL_DEPTHS = (1, 32, 128), (16, 32)
SIZES = {"64 KiB": 64 << 10, "1 MiB": 1 << 20}
RATES = (1_000, 5_000, 20_000, 50_000, 100_000, 150_000)
OPEN_DEPTH = 128
POLLS, SLEEPS = "polls before it sleeps", "sleeps at once"
BARE = {"bare C, one a call": "one", "bare C, many a call": "many", "bare C, busy polling": "poll"}
BARE_SAME = "bare C, many a call"        # batches as the target does


def settings_of(target_bytes: int, depth: int, read_share: float, io_bytes: int = 4096,
                mode: str = "random") -> dict[str, Any]:
    return {"depth": depth, "read_share": read_share, "io_bytes": io_bytes, "mode": mode, "length_bytes": target_bytes}


async def all_targets(bench: Bench, outcome: Outcome) -> list[Target]:
    """The project's and every other that is there."""
    found = [await bench.enter(detour_target(bench))]
    for side, store in ((TGT_INSTALLED, "rdwr"), (TGT_BEST, "aio")):
        target = await outcome.optional(side, bench.enter(tgt_target(bench, store)))
        found += [target] if target else []
    if SPDK not in bench.peers:
        outcome.missing[SPDK] = f"no --peer {SPDK}=URL was given"
    return found + [await bench.enter(peer_target(bench, name)) for name in bench.peers]


async def all_loads(bench: Bench, outcome: Outcome) -> dict[str, tuple[Target, Client]]:
    """Every target, filled, with a client process each."""
    sides = {}
    for target in await all_targets(bench, outcome):
        load = await bench.enter(client(target.url, digests=bench.digests))
        await load.fill(target.size_bytes)
        sides[target.name] = (target, load)
    return sides


def take_of(bench: Bench, target: Target, load: Client, settings: dict[str, Any]) -> Take:
    return lambda: load.sample(settings, bench.seconds, target.pids)


async def profile_of(bench: Bench, outcome: Outcome, case: str, target: Target, load: Client,
                     settings: dict[str, Any]) -> None:
    """Where the time goes at both ends."""
    await profiled(bench, outcome, case, {"target": target.pids[0], "client": load.pid},
                   lambda: load.sample(settings, 2 * bench.seconds + 2))


def bare_takes(bench: Bench, server: Bare, depth: int, read_share: float) -> dict[str, Take]:
    def take(how: str) -> Take:
        return lambda: server.sample(how, depth, read_share, bench.seconds)

    return {side: take(how) for side, how in BARE.items() if how != "poll" or len(os.sched_getaffinity(0)) > 1}


def check_peers(bench: Bench, outcome: Outcome, goal: str, row: Row) -> None:
    """Beside what was given by URL: SPDK is a goal, others are shown."""
    for name in bench.peers:
        ratio = row.ratio(DETOUR, name)
        if name == SPDK:
            outcome.check(goal, f"{DETOUR} : {name}", row.case, ratio, at_least=1.0)
        else:
            outcome.check(goal, f"{DETOUR} : {name}", row.case, ratio)


def short(bench: Bench, values: Iterable[Any]) -> list[Any]:
    """All values, or the first and the last in the short form."""
    found = list(values)
    return [found[0], found[-1]] if bench.quick and len(found) > 2 else found


async def random_4k(bench: Bench) -> Outcome:
    outcome = Outcome()
    sides = await all_loads(bench, outcome)
    server = await outcome.optional("bare C", bench.enter(bare(bench, lun_bytes(bench))))
    for mix in short(bench, MIXES):
        for depth in short(bench, DEPTHS):
            takes = {side: take_of(bench, target, load, settings_of(target.size_bytes, depth, MIXES[mix]))
                     for side, (target, load) in sides.items()}
            if server is not None:
                takes |= bare_takes(bench, server, depth, MIXES[mix])
            row = outcome.row(f"4 KiB random {mix}, depth {depth}", "iops", await interleaved(takes, bench.rounds))
            when = "depth 1" if depth == 1 else "depth 32 and 128"
            outcome.check("plain-4k", f"{DETOUR} : {TGT_BEST}, {when}", row.case, row.ratio(DETOUR, TGT_BEST),
                          at_least=2.5 if depth == 1 else 7.0)
            outcome.check("plain-4k", f"{DETOUR} : bare C with epoll, many a call", row.case,
                          row.ratio(DETOUR, BARE_SAME), at_least=0.6)
            outcome.check("plain-4k", f"CPU time of the server, {TGT_BEST} : {DETOUR}, {when}", row.case,
                          row.ratio(TGT_BEST, DETOUR, "server_us"))
            check_peers(bench, outcome, "plain-4k", row)
    target, load = sides[DETOUR]
    for mix, depth in (("read", 1), ("read", 32), ("write", 32)):
        await profile_of(bench, outcome, f"4 KiB random {mix}, depth {depth}", target, load,
                         settings_of(target.size_bytes, depth, MIXES[mix]))
    outcome.notes += [
        "Bare C moves messages of the same sizes over one connection and does nothing else: what sockets can do here. "
        "Only “many a call” batches as the target does, and sleeps as it does; the others show what each step is "
        "worth.",
        "Client and server share the machine's cores: above its saturation a faster server also leaves more to the "
        "client. CPU time per operation is the figure that does not depend on that."]
    return outcome


async def with_libiscsi(bench: Bench) -> Outcome:
    outcome = Outcome()
    targets = {target.name: target for target in await all_targets(bench, outcome)}
    loads = {}
    for side, target in targets.items():
        load = await outcome.optional("libiscsi", libiscsi(bench, target.url, bench.digests))
        if load is None:
            return outcome
        async with client(target.url) as filling:
            await filling.fill(target.size_bytes)
        loads[side] = load
    for mix in short(bench, MIXES):
        for depth in short(bench, DEPTHS):
            def take(side: str, settings: dict[str, Any]) -> Take:
                return lambda: loads[side].sample(settings, bench.seconds, targets[side].pids)
            takes = {side: take(side, settings_of(target.size_bytes, depth, MIXES[mix]))
                     for side, target in targets.items()}
            row = outcome.row(f"4 KiB random {mix}, depth {depth}", "iops", await interleaved(takes, bench.rounds))
            outcome.check("plain-libiscsi", f"{DETOUR} : {TGT_INSTALLED}, {'depth 1' if depth == 1 else 'deeper'}",
                          row.case, row.ratio(DETOUR, TGT_INSTALLED), at_least=4.0)
            outcome.check("plain-libiscsi", f"CPU time of the server, {TGT_INSTALLED} : {DETOUR}", row.case,
                          row.ratio(TGT_INSTALLED, DETOUR, "server_us"))
            check_peers(bench, outcome, "plain-libiscsi", row)
    for mix in ("read", "write"):
        target, load = targets[DETOUR], loads[DETOUR]
        settings = settings_of(target.size_bytes, 32, MIXES[mix])
        await profiled(bench, outcome, f"4 KiB random {mix}, depth 32",
                       {"target": target.pids[0], "client": load.place},
                       lambda load=load, settings=settings: load.sample(settings, bench.seconds + 2))
    if bench.digests:
        outcome.notes.append("libiscsi as Debian has it knows header digests only: no data digests here.")
    return outcome


async def sequential(bench: Bench) -> Outcome:
    outcome = Outcome()
    sides = await all_loads(bench, outcome)
    for size in SIZES:
        for mix in ("read", "write"):
            for depth in short(bench, SEQUENTIAL_DEPTHS)[:1 if bench.quick else None]:
                takes = {side: take_of(bench, target, load, settings_of(target.size_bytes, depth, MIXES[mix],
                                                                       SIZES[size], "sequential"))
                         for side, (target, load) in sides.items()}
                row = outcome.row(f"{size} sequential {mix}, depth {depth}", "bytes_s",
                                  await interleaved(takes, bench.rounds))
                for rival in (TGT_INSTALLED, TGT_BEST):
                    outcome.check("plain-sequential", f"{DETOUR} : {rival}", row.case, row.ratio(DETOUR, rival),
                                  at_least=3.5)
                    outcome.check("plain-sequential", f"CPU time of the server, {rival} : {DETOUR}", row.case,
                                  row.ratio(rival, DETOUR, "server_us"))
                check_peers(bench, outcome, "plain-sequential", row)
    target, load = sides[DETOUR]
    for mix in ("read", "write"):
        await profile_of(bench, outcome, f"64 KiB sequential {mix}, depth 16", target, load,
                         settings_of(target.size_bytes, 16, MIXES[mix], SIZES["64 KiB"], "sequential"))
    return outcome


async def open_loop(bench: Bench) -> Outcome:
    """Latency from the moment at which an operation was due, at rates that do not wait for the target."""
    outcome = Outcome()
    sides = await all_loads(bench, outcome)
    series: dict[str, list[tuple[float, float]]] = {}
    for rate in short(bench, RATES):
        takes = {side: take_of(bench, target, load,
                               settings_of(target.size_bytes, OPEN_DEPTH, MIXES["70/30"]) | {"rate": float(rate)})
                 for side, (target, load) in sides.items()}
        row = outcome.row(f"4 KiB random 70/30 at {rate:,} a second", "p99_ms", await interleaved(takes, bench.rounds))
        for side in row.sides:
            for name in ("p50", "p99", "p99_9"):
                latency = row.value(side, f"{name}_ms")
                if latency is not None and (row.value(side, "iops") or 0) > 0.95 * rate:
                    series.setdefault(f"{side}, {name.replace('_', '.')}", []).append((rate, latency))
        behind = [side for side in row.sides if (row.value(side, "iops") or 0) < 0.95 * rate]
        if behind:
            outcome.notes.append(f"At {rate:,} a second behind the rate: {', '.join(behind)}.")
    outcome.plots = [Plot("lines", "latency at fixed rates, 4 KiB random 70/30", "operations a second", "ms",
                          log_x=True, log_y=True, series=series)]
    outcome.notes.append("Latency counts from when an operation was due, so a target that stalls cannot hide what "
                         "waited meanwhile. Sides that fall behind a rate are left out of the plot there.")
    return outcome


async def digests(bench: Bench) -> Outcome:
    """CRC32C for headers and data, and without, on one and the same target."""
    outcome = Outcome()
    target = await bench.enter(detour_target(bench))
    plain = await bench.enter(client(target.url))
    checked = await bench.enter(client(target.url, digests=True))
    await plain.fill(target.size_bytes)
    cases = [("4 KiB random", 4096, "random", 32), *((f"{size} sequential", SIZES[size], "sequential", 16)
                                                     for size in SIZES)]
    for name, io_bytes, mode, depth in cases:
        for mix in ("read", "write"):
            settings = settings_of(target.size_bytes, depth, MIXES[mix], io_bytes, mode)
            takes = {"without digests": take_of(bench, target, plain, settings),
                     "with digests": take_of(bench, target, checked, settings)}
            row = outcome.row(f"{name} {mix}, depth {depth}", "iops" if io_bytes == 4096 else "bytes_s",
                              await interleaved(takes, bench.rounds))
            ratio = row.ratio("with digests", "without digests")
            if ratio is not None:
                outcome.notes.append(f"{row.case}: {1 - ratio:.0%} less with digests.")
    return outcome


async def polling(bench: Bench) -> Outcome:
    """Loops that poll for a moment before they sleep, at both ends, and loops that sleep at once."""
    outcome = Outcome()
    if "poll_seconds" not in inspect.signature(Runtime).parameters:
        outcome.missing[POLLS] = "its loops cannot"
        return outcome
    sides = {}
    for side, options, runtime in ((POLLS, (), {}), (SLEEPS, ("--poll", "0"), {"poll_seconds": 0.0})):
        target = await bench.enter(detour_target(bench, "", *options, name=side))
        load = await bench.enter(client(target.url, digests=bench.digests, runtime=runtime))
        await load.fill(target.size_bytes)
        sides[side] = (target, load)
    cases = [("4 KiB random read, depth 1", 1, 0.0), ("4 KiB random read, depth 32", 32, 0.0),
             ("4 KiB random read, 1,000 a second", OPEN_DEPTH, 1000.0)]
    for case, depth, rate in cases:
        takes = {side: take_of(bench, target, load, settings_of(target.size_bytes, depth, 1.0) | {"rate": rate})
                 for side, (target, load) in sides.items()}
        outcome.row(case, "p50_ms" if rate else "iops", await interleaved(takes, bench.rounds))
    outcome.notes.append("What polling takes of the cores is in the CPU time per operation.")
    return outcome


SCENARIOS = [
    Scenario("plain.4k", ("plain-4k",), "4 KiB random on a memory LUN of one reactor, `detour bench` as client",
             random_4k, 180, digests=True),
    Scenario("plain.libiscsi", ("plain-libiscsi",), "4 KiB random on a memory LUN, a client on libiscsi",
             with_libiscsi, 90, digests=True),
    Scenario("plain.sequential", ("plain-sequential",), "64 KiB and 1 MiB in order on a memory LUN, `detour bench` as "
             "client", sequential, 80, digests=True),
    Scenario("plain.open-loop", (), "latency at fixed rates, without coordinated omission", open_loop, 65,
             digests=True),
    Scenario("plain.polling", (), "what polling for a moment before sleeping gains, and what it takes", polling, 25,
             digests=True),
    Scenario("plain.digests", (), "what CRC32C digests for headers and data cost", digests, 40),
]
