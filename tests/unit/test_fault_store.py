"""The store that fails on demand: it must itself be right, since simulations trust it."""
import pytest

from detour.core.fault_store import FaultStoreHandle
from detour.core.reactor import Reactor

READ, WRITE, FLUSH, UNMAP = 0, 1, 2, 3
E_IO, E_NOMEM, E_CLOSED = -2, -1, -7
SIZE = 64 << 10


@pytest.fixture
def reactor():
    return Reactor()


@pytest.fixture
def store(reactor):
    made = FaultStoreHandle(reactor, SIZE)
    yield made
    if not made.closed:
        made.close()
        turned(reactor)


def turned(reactor):
    while reactor.turn():
        pass
    return {ticket: (status, data) for _, ticket, status, _, data in reactor.drain()}


def test_nothing_completes_before_it_is_told(reactor, store):
    write = store.submit_write(512, b"a" * 512)
    read = store.submit_read(512, 512)
    assert turned(reactor) == {}
    assert store.pending() == [(WRITE, 512, 512), (READ, 512, 512)]
    assert bytes(store.image[512:1024]) == bytes(512)
    store.complete(1)
    assert turned(reactor) == {read: (0, bytes(512))}
    store.complete(0)
    assert turned(reactor) == {write: (0, None)}
    assert bytes(store.image[512:1024]) == b"a" * 512
    assert store.pending() == []


def test_a_failed_request_moves_nothing(reactor, store):
    write = store.submit_write(0, b"a" * 512)
    read = store.submit_read(0, 512)
    turned(reactor)
    store.fail(0)
    store.complete(0, E_NOMEM)
    assert turned(reactor) == {write: (E_IO, None), read: (E_NOMEM, None)}
    assert bytes(store.image[:512]) == bytes(512)


def test_a_torn_write_moves_its_beginning(reactor, store):
    write = store.submit_write(0, b"a" * 1024)
    store.submit_flush()
    turned(reactor)
    with pytest.raises(ValueError):
        store.tear(1, 0)
    store.tear(0, 512)
    assert turned(reactor) == {write: (E_IO, None)}
    assert bytes(store.image[:1024]) == b"a" * 512 + bytes(512)


def test_complete_all_goes_in_order_and_unmap_writes_zeros(reactor, store):
    store.submit_write(0, b"a" * 1024)
    store.submit_unmap(512, 512)
    store.submit_write(0, b"b" * 512)
    turned(reactor)
    assert store.complete_all() == 3
    assert bytes(store.image[:1024]) == b"b" * 512 + bytes(512)


def test_flush_and_fua_make_stable(reactor, store):
    store.automatic = True
    store.submit_write(0, b"a" * 512)
    store.submit_write(512, b"b" * 512, fua=True)
    turned(reactor)
    assert store.stable[:1024] == bytes(512) + b"b" * 512
    store.submit_flush()
    turned(reactor)
    assert store.stable[:1024] == b"a" * 512 + b"b" * 512


def test_a_power_cut_loses_what_was_not_stable(reactor, store):
    store.automatic = True
    store.submit_write(0, b"a" * 512)
    store.submit_flush()
    store.submit_write(0, b"b" * 1536)
    turned(reactor)
    store.automatic = False
    lost = store.submit_write(4096, b"c" * 512)
    turned(reactor)
    asked = []

    def keep(offset, length):
        asked.append((offset, length))
        return offset == 1024

    store.power_cut(keep)
    assert asked == [(0, 512), (512, 512), (1024, 512)]
    assert bytes(store.image[:1536]) == b"a" * 512 + bytes(512) + b"b" * 512
    assert store.stable == bytes(store.image)
    assert turned(reactor) == {lost: (E_IO, None)}


def test_rules_fail_what_touches_their_range(reactor, store):
    store.automatic = True
    store.fail_next(WRITE, 1024, 512, E_NOMEM, times=2)
    tickets = [store.submit_write(offset, b"x" * 512) for offset in (512, 1024, 1536, 1024, 1024)]
    tickets.append(store.submit_read(1024, 512))
    got = turned(reactor)
    assert [got[ticket][0] for ticket in tickets] == [0, E_NOMEM, 0, E_NOMEM, 0, 0]
    store.fail_next(READ, times=-1)
    tickets = [store.submit_read(0, 512) for _ in range(3)]
    got = turned(reactor)
    assert [got[ticket][0] for ticket in tickets] == [E_IO] * 3
    store.clear_rules()
    ticket = store.submit_read(0, 512)
    assert turned(reactor)[ticket][0] == 0


def test_rules_are_bounded(store):
    for _ in range(16):
        store.fail_next(FLUSH)
    with pytest.raises(ValueError):
        store.fail_next(FLUSH)


def test_requests_beyond_the_list_are_refused(reactor, store):
    store.submit_flush()
    turned(reactor)
    for index in (-1, 1):
        with pytest.raises(IndexError):
            store.complete(index)


def test_closing_ends_what_waits(reactor, store):
    ticket = store.submit_read(0, 512)
    turned(reactor)
    close = store.close()
    got = turned(reactor)
    assert got[ticket][0] == E_CLOSED and got[close][0] == 0


def test_it_is_driven_by_hand_only():
    reactor = Reactor()
    store = FaultStoreHandle(reactor, SIZE)
    reactor.start()
    with pytest.raises(RuntimeError):
        store.pending()
    reactor.stop()


@pytest.mark.parametrize(("size", "block"), [(0, 512), (1000, 512), (4096, 256), (4096, 600)])
def test_senseless_geometry_is_refused(reactor, size, block):
    with pytest.raises(ValueError):
        FaultStoreHandle(reactor, size, block)
