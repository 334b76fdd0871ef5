"""The project's initiator beside libiscsi, and the load generator beside those of others, on the same targets."""
from __future__ import annotations

from typing import Any

from bench.system.load import Client, client
from bench.system.measure import Sample, interleaved, wire_bytes
from bench.system.plain import DEPTHS, DETOUR, MIXES, Take, settings_of, short, take_of
from bench.system.processes import TGT_INSTALLED, Target, detour_target, peer_target, tgt_target
from bench.system.programs import fio_nbd, iscsi_perf, libiscsi
from bench.system.scenario import Bench, Missing, Outcome, Scenario

OURS, THEIRS = "detour bench", "libiscsi"
PERF, FIO = "iscsi-perf", "fio through qemu-nbd"
READ_BYTES = 4096 + 48 + 48         # what a 4 KiB read is on the wire at least: command, data with status


async def beside_libiscsi(bench: Bench) -> Outcome:
    outcome = Outcome()
    targets = [await bench.enter(detour_target(bench))]
    targets += [await bench.enter(peer_target(bench, name)) for name in bench.peers]
    for target in targets:
        ours = await bench.enter(client(target.url, digests=bench.digests))
        await ours.fill(target.size_bytes)
        theirs = await outcome.optional(THEIRS, libiscsi(bench, target.url, bench.digests))
        for mix in short(bench, MIXES):
            for depth in short(bench, DEPTHS):
                settings = settings_of(target.size_bytes, depth, MIXES[mix])
                takes = {OURS: take_of(bench, target, ours, settings)}
                if theirs is not None:
                    takes[THEIRS] = take_theirs(bench, target, theirs, settings)
                row = outcome.row(f"4 KiB random {mix}, depth {depth}, target {target.name}", "iops",
                                  await interleaved(takes, bench.rounds))
                ratio = row.ratio(OURS, THEIRS)
                outcome.check("initiator", f"CPU time of the client, {THEIRS} : {OURS}", row.case,
                              row.ratio(THEIRS, OURS, "client_us"))
                if depth == 32:
                    outcome.check("initiator", f"{OURS} : {THEIRS} on {target.name}", row.case, ratio, at_least=3.0)
                else:
                    outcome.check("initiator", f"{OURS} : {THEIRS} on {target.name}, depth {depth}", row.case, ratio)
    return outcome


def take_theirs(bench: Bench, target: Target, theirs: Any, settings: dict[str, Any]) -> Take:
    return lambda: theirs.sample(settings, bench.seconds, target.pids)


async def with_wire(ours: Client, settings: dict[str, Any], seconds: float, pids: list[int]) -> Sample:
    """A sample with the bytes that the kernel sent over loopback for each operation."""
    before = wire_bytes()
    found = await ours.sample(settings, seconds, pids)
    return found | {"wire_bytes": (wire_bytes() - before) / found["operations"]}


async def foreign_takes(bench: Bench, outcome: Outcome, target: Target, settings: dict[str, Any]) -> dict[str, Take]:
    """The load generators of others, on a target."""
    seconds = max(1.0, bench.seconds)       # both count whole seconds
    takes: dict[str, Take] = {}
    theirs = await outcome.optional(THEIRS, libiscsi(bench, target.url))
    if theirs is not None:
        takes[THEIRS] = take_theirs(bench, target, theirs, settings)

    async def perf() -> Sample:
        return await iscsi_perf(target.url, settings["depth"], round(seconds))

    async def perf_there() -> None:
        from bench.system.peers import program

        if program("iscsi-perf") is None:
            raise Missing("iscsi-perf is not installed")
        takes[PERF] = perf
    await outcome.optional(PERF, perf_there())
    fio = await outcome.optional(FIO, bench.enter(fio_nbd(bench, target.url)))
    if fio is not None:
        takes[FIO] = lambda: fio.sample(settings, seconds)
    return takes


async def cross_check(bench: Bench) -> Outcome:
    """Whether the load generator can be believed: others on the same targets, and the kernel's own count of bytes."""
    outcome = Outcome()
    targets = [await bench.enter(detour_target(bench))]
    slow = await outcome.optional(TGT_INSTALLED, bench.enter(tgt_target(bench, "rdwr")))
    for target in [*targets, *([slow] if slow else [])]:
        ours = await bench.enter(client(target.url, digests=bench.digests))
        await ours.fill(target.size_bytes)
        settings = settings_of(target.size_bytes, 32, 1.0)

        def mine(ours: Client = ours, settings: dict[str, Any] = settings, target: Target = target) -> Any:
            return with_wire(ours, settings, bench.seconds, target.pids)
        takes = {OURS: mine, **await foreign_takes(bench, outcome, target, settings)}
        row = outcome.row(f"4 KiB random read, depth 32, target {target.name}", "iops",
                          await interleaved(takes, bench.rounds))
        outcome.check("", "bytes on the wire for each read, as the kernel counts them", row.case,
                      row.value(OURS, "wire_bytes"), at_least=READ_BYTES, unit="bytes")
        for rival in (THEIRS, PERF, FIO):
            ratio = row.ratio(OURS, rival)
            if ratio is not None:
                outcome.notes.append(f"{row.case}: {OURS} counts {ratio:.2f} x what {rival} counts.")
        wire = row.value(OURS, "wire_bytes")
        if wire is not None:
            outcome.notes.append(f"{row.case}: the kernel sent {wire:,.0f} bytes over loopback for each operation that "
                                 f"{OURS} counted; a read of 4 KiB has {READ_BYTES:,} and the headers of TCP and IP.")
    outcome.notes.append(f"Where the target is the limit ({TGT_INSTALLED}) all generators have to tell about the same. "
                         f"{DETOUR} is limited by the client.")
    return outcome


SCENARIOS = [
    Scenario("initiator.libiscsi", ("initiator",), "the project's initiator beside libiscsi on one and the same target",
             beside_libiscsi, 65, digests=True),
    Scenario("initiator.cross-check", (), "the load generator beside iscsi-perf, libiscsi and fio", cross_check, 60),
]
