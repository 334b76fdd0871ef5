"""Backup storage that is throttled, and what the host's writes feel of it; qemu-storage-daemon's backup beside it."""
from __future__ import annotations

from bench.system.gateway import DEPTH, QUICK_COPY, settings_of
from bench.system.load import Client, LoadError, client
from bench.system.measure import Figure, Sample, Samples
from bench.system.processes import detour_target
from bench.system.qemu_backup import KINDS, backup_sample, usable
from bench.system.scenario import Bench, Outcome, Row, Scenario
from bench.system.site import VOLUME, Gateway, Volume, detour_main, gateway, image

FREE = "unthrottled"
RATES = {FREE: 0, "500 MB/s": 500_000_000, "50 MB/s": 50_000_000, "5 MB/s": 5_000_000}
VOLUME_BYTES, QUICK_VOLUME_BYTES = 2 << 30, 64 << 20
JOURNAL_BYTES, QUICK_JOURNAL_BYTES = 4 << 30, 256 << 20
STRETCH = 2.0                       # a sample takes so many times bench.seconds
STALL_MS = 50.0
SEED_BLOCK = bytes(range(256)) * 4096        # 1 MiB of content that is no hole


def store_name(rate: str) -> str:
    return f"at-{RATES[rate]}"


async def one_rate(bench: Bench, door: Gateway, load: Client, rate: str) -> Sample:
    """A detour with this store, the host's writes while it copies, and home."""
    size = QUICK_VOLUME_BYTES if bench.quick else VOLUME_BYTES
    run = await door.copying(store_name(rate))
    try:
        found = await load.sample(settings_of(0.0, size), bench.seconds * STRETCH, [door.pid])
        document = await door.api.detour(run)
    finally:
        ended = await door.give_up(run)
    if not bench.quick and document["phase"] != "copying":
        raise LoadError(f"the copy was over before the sample: {document['phase']}, {ended['reason']}")
    return found | {"copied_bytes_s": document["copy"]["bytes_done"] / found["seconds"],
                    "journal_share": document["journal"]["used_bytes"] / max(1, document["journal"]["size_bytes"])}


async def detour_rates(bench: Bench, outcome: Outcome) -> None:
    """The gateway, one volume, a store for each rate, in turn."""
    size = QUICK_VOLUME_BYTES if bench.quick else VOLUME_BYTES
    main = await bench.enter(detour_main(bench, f"mem:{size}", size_bytes=size))
    stores = {}
    for rate, bytes_s in RATES.items():
        file = image(bench.memory_folder / f"{store_name(rate)}.img", size)
        bound = f"?write-rate={bytes_s}" if bytes_s else ""
        stores[store_name(rate)] = (await bench.enter(detour_target(bench, f"{file}{bound}", name=rate))).url
    volume = Volume(main, bench.memory_folder / "vol.journal",
                    QUICK_JOURNAL_BYTES if bench.quick else JOURNAL_BYTES, QUICK_COPY if bench.quick else "")
    door = await bench.enter(gateway(bench, {VOLUME: volume}, stores))
    load = await bench.enter(client(main.target.url, digests=bench.digests))
    await load.fill()
    runs: dict[str, list[Sample]] = {rate: [] for rate in RATES}
    for _ in range(bench.rounds):
        for rate, taken in list(runs.items())[:2 if bench.quick else None]:
            taken.append(await one_rate(bench, door, load, rate))
    case = f"detour: 4 KiB random write, depth {DEPTH}, while main is copied"
    row = outcome.row(case, "iops", Samples({rate: Figure.of(taken) for rate, taken in runs.items() if taken}))
    judge(outcome, row)


def judge(outcome: Outcome, row: Row) -> None:
    for rate in RATES:
        if rate != FREE:
            outcome.check("store-pressure", f"{rate} : {FREE}", row.case, row.ratio(rate, FREE), at_least=0.95)
        outcome.check("store-pressure", f"longest stall, {rate}", row.case, row.value(rate, "stall_ms"),
                      at_most=STALL_MS, unit="ms")


async def qemu_rates(bench: Bench, outcome: Outcome) -> None:
    """qemu-storage-daemon's backup in each form, under the same load and throttle. Once each: its figures differ by
    factors, not by percents."""
    reason = usable()
    if reason:
        outcome.missing["qemu-storage-daemon"] = reason
        return
    size = QUICK_VOLUME_BYTES if bench.quick else VOLUME_BYTES
    source = image(bench.memory_folder / "qemu-main.img", size, [SEED_BLOCK])
    for kind in KINDS[:1] if bench.quick else KINDS:
        figures = {}
        for rate in [rate for rate, bytes_s in RATES.items() if bytes_s in kind.rates][:1 if bench.quick else None]:
            bench.say(f"{kind.name}, {rate}")
            try:
                taken = await backup_sample(bench.memory_folder, source, kind, RATES[rate], bench.seconds * STRETCH,
                                            DEPTH)
            except OSError as error:
                outcome.missing[kind.name] = str(error)
                break
            figures[rate] = Figure.of([taken])
        row = outcome.row(f"{kind.name}: 4 KiB random write, depth {DEPTH}", "iops", Samples(figures))
        for rate in figures:
            what = f"{kind.name}, {rate} : {FREE}" if rate != FREE else f"{kind.name}, longest stall"
            value = row.ratio(rate, FREE) if rate != FREE else row.value(rate, "stall_ms")
            outcome.check("store-pressure", what, row.case, value, unit="x" if rate != FREE else "ms")


async def throttled(bench: Bench) -> Outcome:
    outcome = Outcome()
    await detour_rates(bench, outcome)
    if not bench.digests:       # QEMU's host speaks NBD here, which has none
        await qemu_rates(bench, outcome)
    return outcome


SCENARIOS = [
    Scenario("store-pressure", ("store-pressure",), "the host's writes while backup storage is throttled, beside "
             "qemu-storage-daemon's backup", throttled, 120, digests=True),
]
