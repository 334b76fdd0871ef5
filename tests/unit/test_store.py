"""The storage seam by way of memory: checks, completions, closing, and what Python's calls answer."""
import gc

import pytest

from detour.core.reactor import Reactor
from detour.core.store import PART_BYTES, MemoryStore, StoreHandle

E_RANGE, E_CLOSED, E_UNSUPPORTED = -3, -7, -10
SIZE = 1 << 20


@pytest.fixture
def reactor():
    return Reactor()


def answers(reactor):
    while reactor.turn():
        pass
    return {ticket: (status, results, data) for _, ticket, status, results, data in reactor.drain()}


def answer(reactor, ticket):
    return answers(reactor)[ticket]


def test_what_is_written_is_read(reactor):
    store = MemoryStore(reactor, SIZE)
    write = store.submit_write(1024, b"a" * 512)
    read = store.submit_read(512, 1536)
    got = answers(reactor)
    assert got[write][::2] == (0, None)
    assert got[read][::2] == (0, bytes(512) + b"a" * 512 + bytes(512))
    assert memoryview(store)[1024:1536] == b"a" * 512


def test_the_content_can_be_set_and_seen_from_python(reactor):
    store = MemoryStore(reactor, SIZE)
    memoryview(store)[0:512] = b"z" * 512
    assert answer(reactor, store.submit_read(0, 512))[2] == b"z" * 512


def test_a_sparse_store_may_be_larger_than_memory(reactor):
    store = MemoryStore(reactor, 1 << 42, block_bytes=4096)
    last = (1 << 42) - 4096
    assert answer(reactor, store.submit_write(last, b"e" * 4096))[0] == 0
    assert answer(reactor, store.submit_read(last, 4096))[2] == b"e" * 4096


@pytest.mark.parametrize(("offset", "length"), [(0, 4096), (512, 512), (512, 8192), (1000 * 512, 512), (4096, 4096),
                                                (3584, 1024), (0, SIZE)])
def test_unmapped_ranges_read_as_zeros_and_nothing_else_does(reactor, offset, length):
    store = MemoryStore(reactor, SIZE)
    memoryview(store)[:] = b"\xee" * SIZE
    assert answer(reactor, store.submit_unmap(offset, length))[0] == 0
    expected = bytearray(b"\xee" * SIZE)
    expected[offset:offset + length] = bytes(length)
    assert memoryview(store) == expected


@pytest.mark.parametrize(("offset", "length"), [(1, 512), (0, 100), (SIZE, 512), (SIZE - 512, 1024), (2**63, 512),
                                                (2**64 - 512, 1024)])
def test_what_is_outside_or_unaligned_is_refused(reactor, offset, length):
    store = MemoryStore(reactor, SIZE)
    assert answer(reactor, store.submit_read(offset, length))[0] == E_RANGE
    assert answer(reactor, store.submit_write(offset, bytes(length)))[0] == E_RANGE
    assert answer(reactor, store.submit_unmap(offset, length))[0] == E_RANGE
    assert store.figures == {"reads": 0, "writes": 0, "read_bytes": 0, "write_bytes": 0}


@pytest.mark.parametrize("length", [0, PART_BYTES + 512])
def test_a_request_has_a_bounded_length(reactor, length):
    store = MemoryStore(reactor, 4 * PART_BYTES)
    with pytest.raises(ValueError):
        store.submit_read(0, length)
    with pytest.raises(ValueError):
        store.submit_write(0, bytes(length))


def test_a_read_only_store_takes_no_writes(reactor):
    store = MemoryStore(reactor, SIZE, read_only=True)
    assert answer(reactor, store.submit_write(0, bytes(512)))[0] == E_UNSUPPORTED
    assert answer(reactor, store.submit_unmap(0, 512))[0] == E_UNSUPPORTED
    assert answer(reactor, store.submit_read(0, 512))[0] == 0
    assert store.flags & 8


def test_memory_takes_no_scsi_commands(reactor):
    store = MemoryStore(reactor, SIZE)
    assert answer(reactor, store.submit_command(b"\x12" + bytes(5), data_in_bytes=36))[0] == E_UNSUPPORTED


@pytest.mark.parametrize("arguments", [
    {"cdb": b""}, {"cdb": bytes(33)}, {"cdb": bytes(6), "lun": b"\0"},
    {"cdb": bytes(6), "data_in_bytes": PART_BYTES + 1},
    {"cdb": bytes(6), "data_in_bytes": 4, "data_out": b"1234"}, {"cdb": bytes(6), "data_out": bytes(PART_BYTES + 1)}])
def test_senseless_commands_are_refused(reactor, arguments):
    with pytest.raises(ValueError):
        MemoryStore(reactor, SIZE).submit_command(**arguments)


@pytest.mark.parametrize(("size", "block"), [(0, 512), (1000, 512), (4096, 500), (4096, 256), (1 << 20, 1 << 17)])
def test_senseless_geometry_is_refused(reactor, size, block):
    with pytest.raises(ValueError):
        MemoryStore(reactor, size, block)


def test_the_base_class_makes_no_store():
    with pytest.raises(TypeError):
        StoreHandle()


def test_figures_and_names(reactor):
    store = MemoryStore(reactor, SIZE, block_bytes=4096, store_id=42)
    store.submit_write(0, bytes(8192))
    store.submit_read(0, 4096)
    answers(reactor)
    assert store.figures == {"reads": 1, "writes": 1, "read_bytes": 4096, "write_bytes": 8192}
    assert (store.size_bytes, store.block_bytes, store.store_id, store.in_flight) == (SIZE, 4096, 42, 0)


def test_closing_answers_everything_then_refuses(reactor):
    store = MemoryStore(reactor, SIZE)
    write = store.submit_write(0, b"w" * 512)
    close = store.close()
    got = answers(reactor)
    assert got[write][0] == 0 and got[close][0] == 0
    assert store.closed
    with pytest.raises(ValueError):
        store.submit_read(0, 512)
    with pytest.raises(ValueError):
        store.close()


def test_a_view_outlives_the_name_of_its_store(reactor):
    store = MemoryStore(reactor, SIZE)
    view = memoryview(store)
    view[0] = 7
    del store
    gc.collect()
    assert view[0] == 7


def test_an_open_store_of_an_unstarted_reactor_can_be_dropped(reactor):
    store = MemoryStore(reactor, SIZE)
    store.submit_write(0, bytes(512))
    reactor.turn()
    del store
    gc.collect()
    reactor.turn()
