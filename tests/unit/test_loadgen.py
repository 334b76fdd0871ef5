"""The load generator must see every kind of wrong data, and never blame a store that is right."""

from __future__ import annotations

import time

import numpy as np
import pytest

from detour.core.fault_store import FaultStoreHandle
from detour.core.loadgen import LoadGenerator, histogram_names, histogram_words, section_words, stats_names
from detour.core.reactor import Reactor
from detour.core.stamps import ordered_prefix
from detour.core.store import MemoryStore

LOAD_DONE = 10
SIZE = 256 * 1024
UNIT = 4096


@pytest.fixture
def reactor():
    reactor = Reactor(0, 16 * 2**20)
    yield reactor
    reactor.stop()


def run(reactor: Reactor, load: LoadGenerator, **limits) -> tuple:
    """Starts the load, turns the loop until it is done, answers the results of the event."""
    load.start(**limits)
    return wait_done(reactor, load)


def wait_done(reactor: Reactor, load: LoadGenerator) -> tuple:
    for _ in range(200_000):
        reactor.turn(0)
        for kind, sender, _status, results, _data in reactor.drain():
            if kind == LOAD_DONE and sender == load.id:
                assert not load.running
                return results
    raise AssertionError("the load did not end")


def totals(load: LoadGenerator, section: int = 0) -> dict[str, int]:
    rows = np.asarray(load.stats).reshape(-1, section_words())
    return dict(zip(stats_names(), map(int, rows[section]), strict=False))


def test_right_store_has_no_mismatch(reactor):
    store = MemoryStore(reactor, SIZE)
    load = LoadGenerator(reactor, 7, store, depth=8, io_bytes_max=4 * UNIT, flush_every=16, fua_share=0.1)
    operations, errors, mismatches, *_ = run(reactor, load, operations=3000)
    figures = totals(load)
    assert (operations, errors, mismatches) == (3000, 0, 0)
    assert figures["reads"] + figures["writes"] + figures["flushes"] == 3000
    assert figures["checked_bytes"] > SIZE
    assert load.first_mismatch is None and load.first_error is None
    compared = load.compare(memoryview(store))
    assert compared["wrong"] == 0 and compared["compared"] + compared["unknown"] == SIZE // UNIT
    for unit in np.flatnonzero(np.asarray(load.versions))[:10]:
        place = int(unit) * UNIT
        assert bytes(memoryview(store)[place : place + UNIT]) == load.expected(int(unit))
    load.close()


def filled(reactor, store, **settings) -> LoadGenerator:
    load = LoadGenerator(reactor, 1, store, mode="sequential", read_share=0.0, io_bytes=16 * UNIT, **settings)
    run(reactor, load, operations=store.size_bytes // (16 * UNIT))
    assert np.all(np.asarray(load.versions) == 1)
    return load


def reread(reactor, store, before: LoadGenerator, operations: int = 400) -> dict | None:
    load = LoadGenerator(reactor, 2, store, mode="sequential", read_share=1.0, versions=before.versions)
    run(reactor, load, operations=operations)
    return load.first_mismatch


def test_clean_reread(reactor):
    store = MemoryStore(reactor, SIZE)
    assert reread(reactor, store, filled(reactor, store)) is None


def test_finds_one_flipped_bit(reactor):
    store = MemoryStore(reactor, SIZE)
    load = filled(reactor, store)
    memoryview(store)[5 * UNIT + 3 * 512 + 100] ^= 1
    found = reread(reactor, store, load)
    assert found["kind"] == "torn" and found["offset_bytes"] == 5 * UNIT + 3 * 512 and found["lba"] == 43
    assert found["found"]["seed_matches"] and found["expected"] == (1, 1)
    assert load.compare(memoryview(store))["first_wrong_bytes"] == 5 * UNIT + 3 * 512


def test_finds_shifted_and_foreign_sectors(reactor):
    store = MemoryStore(reactor, SIZE)
    load = filled(reactor, store)
    view = memoryview(store)
    view[9 * UNIT : 10 * UNIT] = bytes(view[8 * UNIT : 9 * UNIT])
    found = reread(reactor, store, load)
    assert found["kind"] == "shifted" and found["found"]["sector"] == 8 * UNIT // 512
    view[2 * UNIT : 2 * UNIT + 512] = bytes(512)
    found = reread(reactor, store, load)
    assert found["kind"] == "foreign" and not found["found"]["seed_matches"]


def test_finds_a_lost_write_and_a_stale_one(reactor):
    store = MemoryStore(reactor, SIZE)
    load = filled(reactor, store)
    old = bytes(memoryview(store)[:UNIT])
    again = LoadGenerator(reactor, 3, store, mode="sequential", read_share=0.0, versions=load.versions)
    run(reactor, again, operations=SIZE // UNIT)
    assert reread(reactor, store, again) is None
    memoryview(store)[:UNIT] = old
    found = reread(reactor, store, again)
    assert found["kind"] == "old" and found["expected"] == (2, 2) and found["found"]["version"] == 1


def test_finds_a_version_that_was_never_written(reactor):
    store = MemoryStore(reactor, SIZE)
    load = filled(reactor, store)
    old = np.asarray(load.versions).copy()
    again = LoadGenerator(reactor, 3, store, mode="sequential", read_share=0.0, versions=load.versions)
    run(reactor, again, operations=1)
    only_first = LoadGenerator(reactor, 4, store, mode="sequential", read_share=1.0, versions=old)
    run(reactor, only_first, operations=1)
    assert only_first.first_mismatch["kind"] == "new"


def test_finds_a_mix_inside_of_one_block(reactor):
    store = MemoryStore(reactor, SIZE, 4096)
    load = filled(reactor, store)
    half = bytes(memoryview(store)[:2048])
    # A failed write leaves both versions right for the unit, but not both in one block.
    load2 = LoadGenerator(reactor, 5, store, mode="sequential", read_share=0.0, versions=load.versions)
    run(reactor, load2, operations=1)
    memoryview(store)[:2048] = half
    versions = np.asarray(load2.versions).copy()
    checker = LoadGenerator(reactor, 6, store, mode="sequential", read_share=1.0, versions=versions)
    run(reactor, checker, operations=1)
    assert checker.first_mismatch["kind"] == "old"
    base = bytes(memoryview(store)[:])
    memoryview(store)[:2048] = bytes(2048)
    with_base = LoadGenerator(reactor, 8, store, mode="sequential", read_share=1.0, base=base)
    run(reactor, with_base, operations=1)
    assert with_base.first_mismatch["kind"] == "foreign"


def test_sections_count_apart(reactor):
    store = MemoryStore(reactor, SIZE)
    load = LoadGenerator(reactor, 7, store)
    run(reactor, load, operations=100)
    load.section(3)
    run(reactor, load, operations=50)
    assert totals(load)["reads"] + totals(load)["writes"] == 100
    assert totals(load, 3)["reads"] + totals(load, 3)["writes"] == 50
    rows = np.asarray(load.stats).reshape(-1, section_words())
    read = rows[3][len(stats_names()) :][: histogram_words()]
    assert histogram_names()[0] == "read_ns" and int(read[0]) == totals(load, 3)["reads"] == int(read[3:].sum())


def test_rewriting_changes_nothing_until_told(reactor):
    store = MemoryStore(reactor, SIZE)
    content = np.random.default_rng(1).integers(0, 256, SIZE, dtype=np.uint8).tobytes()
    memoryview(store)[:] = content
    load = LoadGenerator(reactor, 7, store, base=content, rewriting=True, io_bytes_max=8 * UNIT)
    run(reactor, load, operations=500)
    assert totals(load)["writes"] > 100 and bytes(memoryview(store)) == content
    assert load.first_mismatch is None and load.expected(3) == content[3 * UNIT : 4 * UNIT]
    load.rewrite(False)
    run(reactor, load, operations=500)
    assert load.first_mismatch is None and bytes(memoryview(store)) != content
    compared = load.compare(memoryview(store))
    assert compared == {"compared": SIZE // UNIT, "wrong": 0, "unknown": 0, "first_wrong_bytes": None}
    expected = b"".join(load.expected(unit) for unit in range(SIZE // UNIT))
    assert expected == bytes(memoryview(store))
    memoryview(store)[SIZE - 1] ^= 255
    assert load.compare(memoryview(store))["wrong"] == 1


def test_ordered_images_are_prefixes(reactor):
    store = MemoryStore(reactor, SIZE)
    load = LoadGenerator(reactor, 7, store, mode="ordered", depth=4, read_share=0.5)
    last = -1
    for _ in range(20):
        run(reactor, load, operations=37)
        newest, wrong = ordered_prefix(bytes(memoryview(store)))
        assert wrong == -1 and newest > last
        last = newest
    assert last > SIZE // UNIT
    image = bytearray(memoryview(store))
    lost = (last - 1) % 8 * (SIZE // UNIT // 8) + (last - 1) // 8 % (SIZE // UNIT // 8)
    before = last - 9
    spoiled = before % 8 * (SIZE // UNIT // 8) + before // 8 % (SIZE // UNIT // 8)
    assert spoiled != lost
    image[spoiled * UNIT : (spoiled + 1) * UNIT] = bytes(UNIT)
    assert ordered_prefix(image) == (last, spoiled)


def test_rate_counts_from_the_intended_start(reactor):
    store = MemoryStore(reactor, SIZE)
    load = LoadGenerator(reactor, 7, store, rate=1000.0, depth=4)
    now = 10**9
    reactor.set_clock(now)
    load.start(operations=50)
    reactor.turn(0)
    reactor.set_clock(now + 40_000_000)         # nothing turned the loop for 40 ms: 40 operations are late
    wait_until(reactor, lambda: totals(load)["reads"] + totals(load)["writes"] >= 41)
    figures = totals(load)
    assert figures["reads"] + figures["writes"] == 41
    assert 38_000_000 <= figures["longest_ns"] <= 40_000_000 and figures["late_ns"] == 39_000_000
    reactor.set_clock(now + 60_000_000)
    wait_done(reactor, load)


def wait_until(reactor, condition) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        reactor.turn(0)


def test_time_limit_and_stop(reactor):
    store = MemoryStore(reactor, SIZE)
    load = LoadGenerator(reactor, 7, store, rate=100.0)
    now = 10**9
    reactor.set_clock(now)
    load.start(seconds=1.0)
    reactor.turn(0)
    assert load.running
    with pytest.raises(RuntimeError):
        load.close()
    reactor.set_clock(now + 1_000_000_001)
    wait_done(reactor, load)
    ticket = load.stop()
    reactor.turn(0)
    assert any(item[1] == ticket and item[2] == 0 for item in reactor.drain())
    load.close()
    with pytest.raises(ValueError):
        load.start()


@pytest.mark.parametrize(
    "wrong",
    [
        {"unit_bytes": 1000},
        {"io_bytes": 6000},
        {"io_bytes": 8192, "io_bytes_max": 4096},
        {"offset_bytes": 100},
        {"length_bytes": SIZE + UNIT},
        {"depth": 0},
        {"mode": "backwards"},
        {"read_share": 1.5},
        {"rate": -1.0},
        {"rewriting": True},
        {"versions": np.zeros(3, dtype=np.uint32)},
        {"base": b"short"},
    ],
)
def test_wrong_settings_are_refused(reactor, wrong):
    with pytest.raises(ValueError):
        LoadGenerator(reactor, 7, MemoryStore(reactor, SIZE), **wrong)


def drive(reactor, load, store, seed: int, steps: int, wrong=None) -> None:
    """Completes what is pending in a random order, some writes with an error; `wrong(step)` may spoil the image."""
    chance = np.random.default_rng(seed)
    load.start()
    for step in range(steps):
        reactor.turn(0)
        pending = store.pending()
        if not pending:
            continue
        index = int(chance.integers(len(pending)))
        if chance.random() < 0.05:
            store.fail(index, -2)
        else:
            store.complete(index)
        if wrong is not None:
            wrong(step)
    reactor.drain()
    load.stop()
    for _ in range(50):
        store.complete_all()
        reactor.turn(0)
    assert not load.running


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_completion_is_right(reactor, seed):
    store = FaultStoreHandle(reactor, 8 * UNIT)
    load = LoadGenerator(reactor, 7, store, depth=6, io_bytes_max=3 * UNIT, seed=seed, flush_every=20)
    drive(reactor, load, store, seed, 1500)
    figures = totals(load)
    assert figures["errors"] > 10 and figures["checked_bytes"] > 100 * UNIT
    assert load.first_mismatch is None and load.first_error["status"] == -2
    assert load.compare(bytes(store.image))["wrong"] == 0


def test_writes_in_flight_never_overlap(reactor):
    store = FaultStoreHandle(reactor, 8 * UNIT)
    load = LoadGenerator(reactor, 7, store, depth=8, io_bytes_max=3 * UNIT, read_share=0.2)
    most = 0

    def check(_step):
        nonlocal most
        taken = [unit for op, offset, length in store.pending() if op == 1
                 for unit in range(offset // UNIT, (offset + length) // UNIT)]
        assert len(taken) == len(set(taken))
        most = max(most, len(taken))

    drive(reactor, load, store, 3, 800, check)
    assert most > 3


def test_a_rollback_under_load_is_seen(reactor):
    store = FaultStoreHandle(reactor, 8 * UNIT)
    load = LoadGenerator(reactor, 7, store, depth=6)
    kept = []

    def roll_back(step):
        if step == 700:
            kept.append(bytes(store.image))
        if step == 900:
            memoryview(store.image)[:] = kept[0]

    drive(reactor, load, store, 1, 1500, roll_back)
    assert load.first_mismatch["kind"] == "old"
