"""Journal: cost of a write's bookkeeping and checksums, and of recovery. Contents and places have fixed seeds."""

import random

import pytest

from detour.core._testing_journal import JournalHarness
from detour.core.fault_store import FaultStoreHandle
from detour.core.journal import JournalHandle
from detour.core.reactor import Reactor

BLOCK_BYTES = 512
VOLUME_BLOCKS = 1 << 20
SIZE_BYTES = 64 << 20
WRITES = 200


def make(image=None) -> JournalHarness:
    reactor = Reactor()
    media = FaultStoreHandle(reactor, 1 << 16, automatic=True)
    handle = JournalHandle.in_memory(reactor, SIZE_BYTES, BLOCK_BYTES, VOLUME_BLOCKS, media, image)
    return JournalHarness(handle)


@pytest.mark.parametrize("write_bytes", [4096, 65536])
def test_write(benchmark, write_bytes):
    """WRITES writes: reserve, copy in, seal, mark, reflect."""
    data = random.Random(1).randbytes(write_bytes)
    places = random.Random(2).choices(range(VOLUME_BLOCKS // 128), k=WRITES)

    def setup():
        return (make(),), {}

    def work(journal):
        for place in places:
            journal.write(place * 128, data)
        return journal

    journal = benchmark.pedantic(work, setup=setup, rounds=5)
    assert journal.handle.stats["sealed_bytes"] == WRITES * write_bytes


@pytest.mark.parametrize("check_data", [False, True])
def test_recovery(benchmark, check_data):
    """Replay of 10 000 entries of 4 KiB."""
    source = make()
    spread = random.Random(3)
    data = random.Random(4).randbytes(4096)
    for _ in range(10000):
        source.write(spread.randrange(VOLUME_BLOCKS // 8) * 8, data)
    image = source.image()

    def setup():
        return (make(image),), {}

    report = benchmark.pedantic(lambda journal: journal.recover(check_data), setup=setup, rounds=3)
    assert report["status"] == 0 and report["last_seq"] == 10000
