"""A connection on a loop turned by hand: reading, batched sending, pauses, and closing from inside any callback."""
from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from detour.core._testing_wire import ConnProbe, RxMachine, build_pdu
from detour.core.reactor import Reactor

E_PROTOCOL, E_DIGEST, E_CLOSED, E_ABORTED, E_TIMEOUT = -5, -6, -7, -8, -9
HEADER = bytes([0x01]) + bytes(47)


class World:
    def __init__(self, **params: object) -> None:
        self.reactor = Reactor()
        ours, self.peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.peer.setblocking(False)
        self.probe = ConnProbe(self.reactor, ours.detach(), **params)

    def turn(self, turns: int = 1) -> None:
        for _ in range(turns):
            self.reactor.turn(0)

    def write(self, data: bytes) -> None:
        """Everything, turning the loop while the socket is full."""
        view = memoryview(data)
        for _ in range(10000):
            with contextlib.suppress(BlockingIOError):
                view = view[self.peer.send(view):]
            self.turn()
            if not view:
                return
        raise AssertionError("the connection does not read")

    def read(self) -> bytes:
        got = b""
        while True:
            try:
                piece = self.peer.recv(1 << 20)
            except BlockingIOError:
                return got
            if not piece:
                return got
            got += piece


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.peer.close()


def pdu(data: bytes = b"", **digests: bool) -> bytes:
    return build_pdu(HEADER, data, digests.get("header_digest", False), digests.get("data_digest", False))


def test_many_pdus_in_one_read(world: World) -> None:
    payloads = [bytes([i & 0xFF]) * (i % 50) for i in range(500)]
    world.peer.send(b"".join(pdu(data) for data in payloads))
    world.turn()
    assert [data for _, data, _ in world.probe.received] == payloads


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("data_bytes", [1, 2047, 2048, 32768, 262143, 1048576])
def test_large_data(data_bytes: int, digests: bool) -> None:
    world = World(header_digest=digests, data_digest=digests)
    payloads = [os.urandom(data_bytes) for _ in range(3)]
    world.write(b"".join(pdu(data, header_digest=digests, data_digest=digests) for data in payloads))
    world.turn(3)
    assert [(data, bad) for _, data, bad in world.probe.received] == [(data, False) for data in payloads]


def test_shredded_input(world: World) -> None:
    stream = pdu(b"abc") + pdu(b"") + pdu(bytes(5000))
    for start in range(0, len(stream), 13):
        world.peer.send(stream[start:start + 13])
        world.turn()
    assert [len(data) for _, data, _ in world.probe.received] == [3, 0, 5000]


def test_queued_pdus_leave_in_order_at_the_end_of_the_turn(world: World) -> None:
    for tag in range(300):
        assert world.probe.send(HEADER, bytes([tag & 0xFF]) * (tag % 9), tag)
    assert world.probe.sent == []
    world.turn()
    assert world.probe.sent == list(range(300))
    assert [len(data) for _, data, _ in RxMachine().feed(world.read())] == [tag % 9 for tag in range(300)]
    assert world.probe.state["slots_taken"] == 0


@pytest.mark.parametrize("digests", [False, True])
def test_partial_writes_are_resumed(digests: bool) -> None:
    world = World(header_digest=digests, data_digest=digests)
    payloads = [os.urandom(50001) for _ in range(40)]
    for tag, data in enumerate(payloads):
        world.probe.send(HEADER, data, tag)
    world.turn()
    assert world.probe.state["tx_blocked"]
    rx, done = RxMachine(header_digest=digests, data_digest=digests), []
    for _ in range(10000):
        done += rx.feed(world.read())
        world.turn()
        if len(done) == len(payloads):
            break
    assert [(data, bad) for _, data, bad in done] == [(data, False) for data in payloads]
    assert world.probe.sent == list(range(40))
    assert not world.probe.state["tx_blocked"]


def test_a_full_send_queue_pauses_reading_until_it_has_left() -> None:
    world = World(tx_pause_bytes=200000)
    for tag in range(8):
        world.probe.send(HEADER, bytes(50000), tag)
    assert world.probe.state["rx_paused"]
    world.peer.send(pdu(b"later"))
    world.turn(3)
    assert world.probe.received == []
    for _ in range(100):
        world.read()
        world.turn()
    assert world.probe.state["rx_paused"] is False
    assert [data for _, data, _ in world.probe.received] == [b"later"]


def test_a_header_without_place_is_told_again(world: World) -> None:
    world.probe.refuse_headers = 2
    world.peer.send(pdu(b"first") + pdu(b"second") + pdu())
    world.turn(3)
    assert world.probe.log == ["header"]
    world.probe.resume()
    world.turn(2)
    assert world.probe.log == ["header", "header"]
    world.probe.resume()
    world.turn(2)
    assert [data for _, data, _ in world.probe.received] == [b"first", b"second", b""]


def test_close_tells_sent_for_all_then_closed_once(world: World) -> None:
    for tag in range(5):
        world.probe.send(HEADER, b"x", tag)
    world.probe.close(E_ABORTED)
    assert world.probe.log == []
    assert not world.probe.send(HEADER, b"x", 9)
    world.turn(3)
    assert world.probe.log == ["sent"] * 5 + ["closed"]
    assert world.probe.reason == E_ABORTED
    assert world.probe.state["slots_taken"] == 0


@pytest.mark.parametrize("place", ["header", "pdu", "sent"])
def test_closing_inside_a_callback(world: World, place: str) -> None:
    world.probe.close_in = place
    world.probe.send(HEADER, b"out", 1)
    world.probe.send(HEADER, b"out", 2)
    world.peer.send(pdu(b"one") + pdu(b"two"))
    world.turn(3)
    assert world.probe.log.count("closed") == 1
    assert world.probe.log[-1] == "closed"
    assert world.probe.log.count("header") == {"header": 1, "pdu": 1, "sent": 2}[place]
    assert world.probe.sent == [1, 2]
    assert world.probe.reason == E_ABORTED


def test_the_peers_close(world: World) -> None:
    world.peer.send(pdu(b"last"))
    world.peer.close()
    world.turn(2)
    assert [data for _, data, _ in world.probe.received] == [b"last"]
    assert world.probe.reason == E_CLOSED


def test_a_broken_length_and_a_broken_digest_end_the_connection() -> None:
    world = World(recv_data_bytes_max=1000)
    world.peer.send(pdu(bytes(1001)))
    world.turn(2)
    assert world.probe.reason == E_PROTOCOL
    world = World(header_digest=True)
    world.peer.send(pdu(b"") + bytes(4))
    world.turn(2)
    assert world.probe.reason == E_DIGEST
    assert world.probe.received == []


def test_a_negative_answer_of_on_header_is_the_reason(world: World) -> None:
    world.probe.header_status = E_TIMEOUT
    world.peer.send(pdu(b"x"))
    world.turn(2)
    assert world.probe.reason == E_TIMEOUT


def test_discarded_data(world: World) -> None:
    world.probe.discard = True
    world.write(pdu(bytes(100000)) + pdu(b"x"))
    world.turn()
    assert [data for _, data, _ in world.probe.received] == [None, None]


def test_close_after_flush_sends_everything_first(world: World) -> None:
    for tag in range(4):
        world.probe.send(HEADER, bytes(40000), tag)
    world.probe.close_after_flush()
    assert not world.probe.send(HEADER, b"more", 9)
    world.peer.send(pdu(b"nobody reads this"))
    rx, done = RxMachine(), []
    for _ in range(200):
        world.turn()
        done += rx.feed(world.read())
    assert len(done) == 4
    assert world.probe.received == []
    assert world.probe.reason == 0


def test_close_after_flush_does_not_wait_for_ever() -> None:
    world = World()
    world.reactor.set_clock(10**9)
    for tag in range(40):
        world.probe.send(HEADER, bytes(40000), tag)
    world.probe.close_after_flush()
    world.turn(3)
    assert world.probe.reason is None
    world.reactor.set_clock(2 * 10**9 + 1)
    world.turn(2)
    assert world.probe.reason == E_TIMEOUT
    assert len(world.probe.sent) == 40


def test_an_open_connection_may_be_dropped_with_its_owner() -> None:
    world = World()
    world.probe.send(HEADER, b"x", 1)
    del world.probe
    world.turn(2)
    assert world.peer.recv(100) == b""


def test_ahs_is_sent(world: World) -> None:
    header = HEADER + bytes(range(20))
    world.probe.send(header, b"data")
    world.turn()
    [(got, data, _)] = RxMachine().feed(world.read())
    assert (got[48:], data) == (bytes(range(20)), b"data")


# --- rest

SECOND = 10**9
START = 10**17                  # later than any clock of this machine


def rested(world: World, now: int) -> int:
    """Lets a few seconds pass in which no byte moves; answers the time then."""
    for _ in range(4):
        now += SECOND
        world.reactor.set_clock(now)
        world.turn()
    return now


@pytest.mark.parametrize("digests", [False, True])
def test_an_idle_connection_gives_its_memory_back_and_takes_it_again(digests: bool) -> None:
    world = World(header_digest=digests, data_digest=digests)
    world.reactor.set_clock(START)
    payloads = [os.urandom(size) for size in (0, 5, 3000, 100_000)]
    stream = b"".join(pdu(data, header_digest=digests, data_digest=digests) for data in payloads)
    now = START
    for _ in range(3):
        world.write(stream)
        world.probe.send(HEADER, b"answer")
        world.turn(3)
        assert world.probe.state["warm"] and world.probe.state["staging_pages"] > 0
        assert world.probe.state["slots_made"] > 0
        now = rested(world, now)
        state = world.probe.state
        assert not state["warm"] and state["staging_pages"] == 0 and state["slots_made"] == 0
        assert world.reactor.due_ns == -1           # nothing ticks for those at rest
        assert world.read() == build_pdu(HEADER, b"answer", digests, digests)
    assert [(data, bad) for _, data, bad in world.probe.received] == [(data, False) for data in payloads * 3]
    assert world.probe.log.count("rest") == 3


def test_a_connection_at_work_keeps_its_memory(world: World) -> None:
    world.reactor.set_clock(START)
    for step in range(50):
        world.reactor.set_clock(START + step * SECOND // 5)
        world.peer.send(pdu(b"x"))
        world.turn(2)
    assert "rest" not in world.probe.log and world.probe.state["staging_pages"] > 0


def test_pings_of_a_connection_at_rest_take_no_memory_and_what_they_take_goes(world: World) -> None:
    """Signs of life leave a connection at rest; a page that they took all the same is given back before long."""
    world.reactor.set_clock(START)
    now, warm = rested(world, START), 0
    for _ in range(40):
        world.write(pdu(b""))
        world.probe.send(HEADER, b"")
        world.turn(2)
        warm += world.probe.state["warm"]
        world.read()
        now = rested(world, now)
    assert 0 < warm <= 6
    world.write(pdu(bytes(200)))
    world.turn()
    assert world.probe.state["warm"]


@pytest.mark.parametrize("cut", [1, 20, 47, 48, 49, 50, 51, 52, 60, 4000])
def test_half_a_pdu_is_kept_at_rest(cut: int) -> None:
    world = World(header_digest=True, data_digest=True)
    world.reactor.set_clock(START)
    data = os.urandom(5000)
    stream = pdu(data, header_digest=True, data_digest=True)
    world.peer.send(stream[:cut])
    world.turn()
    now = rested(world, START)
    assert not world.probe.state["warm"]
    for start in range(cut, len(stream), 2001):
        world.peer.send(stream[start:start + 2001])
        world.turn()
        now = rested(world, now)
    assert [(got, bad) for _, got, bad in world.probe.received] == [(data, False)]


def test_what_is_not_parsed_or_not_sent_keeps_its_place(world: World) -> None:
    world.reactor.set_clock(START)
    world.probe.refuse_headers = 1
    world.peer.send(pdu(b"first") + pdu(b"second"))
    world.turn()
    now = rested(world, START)
    assert world.probe.state["warm"] and "rest" not in world.probe.log
    world.probe.resume()
    world.turn(2)
    assert [data for _, data, _ in world.probe.received] == [b"first", b"second"]
    while not world.probe.state["tx_blocked"]:
        world.probe.send(HEADER, bytes(65536))
        world.turn()
    now = rested(world, now)
    assert world.probe.state["warm"] and world.probe.state["slots_taken"] > 0
    while world.probe.state["tx_queued"]:
        world.read()
        world.turn()
    rested(world, now)
    assert not world.probe.state["warm"] and world.probe.state["slots_made"] == 0


@pytest.mark.parametrize("at_rest", [False, True])
def test_a_close_takes_a_connection_out_of_what_is_warm(world: World, at_rest: bool) -> None:
    world.reactor.set_clock(START)
    world.peer.send(pdu(b"x"))
    world.turn()
    now = rested(world, START) if at_rest else START
    world.peer.send(b"unread")
    world.probe.close(E_ABORTED)
    world.turn()
    assert world.probe.reason == E_ABORTED and not world.probe.state["warm"]
    rested(world, now)
    assert world.probe.log.count("rest") == int(at_rest)


def test_one_connection_at_work_keeps_no_other_from_rest(world: World) -> None:
    ours, peer = socket.socketpair()
    other = ConnProbe(world.reactor, ours.detach())
    world.reactor.set_clock(START)
    peer.send(pdu(b"y"))
    for step in range(20):
        world.reactor.set_clock(START + step * SECOND // 4)
        world.peer.send(pdu(b"x"))
        world.turn(2)
    assert other.log == ["header", "pdu", "rest"] and world.probe.state["warm"]
    peer.close()
