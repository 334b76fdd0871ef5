"""The copy from store to store: window, checksums, errors, rate."""
import gc

import pytest

from detour.core._testing_volume import command_answered, lose, pace
from detour.core.copier import CopierHandle
from detour.core.crc32c import crc32c
from detour.core.fault_store import FaultStoreHandle
from detour.core.reactor import Reactor

CHUNK = 262144
COPY_DONE = 5
E_IO, E_ABORTED = -2, -8


class Copy:
    def __init__(self, size, sink_size=None, **options):
        self.reactor = Reactor(buffer_bytes=32 << 20)
        self.source = FaultStoreHandle(self.reactor, size)
        self.sink = FaultStoreHandle(self.reactor, sink_size or size)
        self.content = bytes((index * 7 + index // 4096) & 0xFF for index in range(4096)) * (size // 4096)
        self.content += bytes(size - len(self.content))
        self.source.image[:] = self.content
        self.copier = CopierHandle(self.reactor, 3, self.source, self.sink, size, **options)
        self.end = None

    def turn(self):
        self.reactor.turn(0)
        for kind, ticket, status, results, _ in self.reactor.drain():
            if kind == COPY_DONE:
                assert ticket == 3
                self.end = (status, results)

    def run(self, turns=500):
        self.copier.start()
        return self.finish(turns)

    def finish(self, turns=500):
        for _ in range(turns):
            self.turn()
            if self.end:
                break
            self.source.complete_all()
            self.sink.complete_all()
        self.turn()
        return self.end


@pytest.mark.parametrize("size", [512, CHUNK, CHUNK + 512, 9 * CHUNK - 1024])
def test_copies_all_with_checksums(size):
    copy = Copy(size)
    status, results = copy.run()
    assert status == 0 and results[0] == size
    assert bytes(copy.sink.image) == copy.content
    assert copy.sink.stable == copy.content                     # the sink was flushed at the end
    sums = copy.copier.checksums()
    for chunk in range(-(-size // CHUNK)):
        expected = crc32c(copy.content[chunk * CHUNK:(chunk + 1) * CHUNK])
        assert int.from_bytes(sums[4 * chunk:4 * chunk + 4], "little") == expected
    assert copy.copier.progress() == {"copied_bytes": size, "total_bytes": size, "running": False, "status": 0}
    assert copy.reactor.buffers_taken_bytes == 0


def test_window_bounds_what_is_in_flight():
    copy = Copy(32 * CHUNK, window=2)
    copy.copier.start()
    copy.turn()
    assert len(copy.source.pending()) == 2
    assert copy.finish()[0] == 0


def test_one_that_is_dropped_is_not_freed_below_its_stores():
    copy = Copy(32 * CHUNK, window=2)
    copy.copier.start()
    copy.turn()
    copy.copier = None
    gc.collect()
    copy.source.complete_all()
    copy.reactor.turn(0)
    assert copy.sink.pending(), "what was read is written, as if nobody had dropped it"


def test_out_of_order():
    copy = Copy(16 * CHUNK, window=4)
    copy.copier.start()
    for _ in range(200):
        copy.turn()
        for store in (copy.source, copy.sink):
            if store.pending():
                store.complete(len(store.pending()) - 1)
        if copy.end:
            break
    assert copy.end[0] == 0 and bytes(copy.sink.image) == copy.content


@pytest.mark.parametrize("side", ["source", "sink"])
def test_an_error_ends_it_and_names_the_place(side):
    copy = Copy(12 * CHUNK)
    getattr(copy, side).fail_next(0 if side == "source" else 1, 5 * CHUNK, CHUNK)
    status, results = copy.run()
    assert status == E_IO
    assert results[1] == 4 * CHUNK                              # reads span four chunks
    assert copy.reactor.buffers_taken_bytes == 0


def test_a_failing_flush_is_no_success():
    copy = Copy(CHUNK)
    copy.sink.fail_next(2)
    assert copy.run()[0] == E_IO


@pytest.mark.parametrize("some_heeded", [False, True])
def test_what_a_sink_lost_with_its_connection_is_copied_again(some_heeded):
    """Also when its answers were received, but not yet heeded, when the connection ended."""
    copy = Copy(9 * CHUNK, window=3)
    copy.copier.start()
    while not copy.sink.pending():
        copy.turn()
        copy.source.complete_all()
    if some_heeded:
        copy.sink.complete(0)
        copy.turn()
    copy.sink.complete_all()
    copy.sink.power_cut(lambda offset_bytes, length_bytes: False)
    lose(copy.sink)
    assert copy.finish()[0] == 0
    assert copy.sink.stable == copy.content


def test_stop_waits_for_what_is_in_flight():
    copy = Copy(32 * CHUNK, window=3)
    copy.copier.start()
    copy.turn()
    copy.copier.stop()
    copy.turn()
    assert copy.end is None
    copy.source.complete_all()
    copy.turn()
    copy.turn()
    assert copy.end[0] == E_ABORTED
    assert copy.reactor.buffers_taken_bytes == 0


def test_the_rate_is_a_bound():
    copy = Copy(16 * CHUNK, rate_bytes_s=4 * CHUNK)
    now = 10**12
    copy.reactor.set_clock(now)
    copy.copier.start()
    seconds = 0.0
    while copy.end is None and seconds < 60:
        copy.turn()
        copy.source.complete_all()
        copy.turn()
        copy.sink.complete_all()
        seconds += 0.05
        copy.reactor.set_clock(now + int(seconds * 1e9))
    assert copy.end[0] == 0
    assert 2.9 <= seconds <= 6                                  # 4 MiB at 1 MiB/s, less the first burst


# --- the pace

MS = 10**6
TURN, TURN_HOSTS, TURN_IDLE = MS // 2, MS // 10, 4 * MS
QUIET = 2000 * MS                                               # of all hosts of the loop


class Paced:
    """A copier with a window of 8 reads of 4 chunks, and a clock that stands still until it is moved."""

    def __init__(self):
        self.copy = Copy(64 * CHUNK, window=8)
        self.now = 10**12
        self.after(0)
        self.answered()

    def after(self, ns):
        self.now += ns
        self.copy.reactor.set_clock(self.now)

    def pace(self, taken_ns, hosts=False, times=1):
        for _ in range(times):
            found = pace(self.copy.copier, taken_ns, hosts)
        return found

    def answered(self):
        command_answered(self.copy.reactor)

    def alone(self):
        """Nobody has been there for long, and everything may be in flight."""
        self.after(QUIET)
        assert self.pace(0, times=32) == (TURN_IDLE, 32)


def test_pace_halves_after_a_long_turn_and_grows_by_a_chunk_after_a_short_one():
    paced = Paced()
    assert paced.pace(2 * TURN) == (TURN, 32)                   # not short, and not too long
    found = [paced.pace(2 * TURN + 1)[1] for _ in range(7)]
    assert found == [16, 8, 4, 2, 1, 1, 1]
    assert [paced.pace(TURN - 1)[1] for _ in range(3)] == [2, 3, 4]
    assert paced.pace(TURN, times=5)[1] == 4
    assert paced.pace(0, times=99)[1] == 32                     # not above the window


def test_pace_gives_way_to_hosts_of_the_volume():
    paced = Paced()
    assert paced.pace(TURN_HOSTS, hosts=True) == (TURN_HOSTS, 32)
    assert paced.pace(2 * TURN_HOSTS + 1, hosts=True) == (TURN_HOSTS, 16)
    assert paced.pace(2 * TURN_HOSTS + 1) == (TURN, 17)         # the same turn, without them


def test_pace_lets_turns_be_long_while_no_host_of_the_loop_is_there():
    paced = Paced()
    assert paced.pace(0) == (TURN, 32)
    paced.after(QUIET - 1)
    assert paced.pace(0) == (TURN, 32)
    paced.after(1)
    assert paced.pace(2 * TURN_IDLE) == (TURN_IDLE, 32)
    assert paced.pace(2 * TURN_IDLE + 1) == (TURN_IDLE, 16)


def test_pace_lets_turns_be_long_from_the_begin_where_no_host_was_ever_there():
    copy = Copy(64 * CHUNK, window=8)
    copy.reactor.set_clock(10**12)
    assert pace(copy.copier, 0) == (TURN_IDLE, 32)


def test_pace_gives_way_at_once_to_a_host_of_another_volume():
    paced = Paced()
    paced.alone()
    paced.answered()
    assert paced.pace(TURN) == (TURN, 4)                        # as at the begin: one read
    assert paced.pace(0) == (TURN, 5)                           # once, not again and again
    paced.after(QUIET - 1)
    paced.answered()
    assert paced.pace(TURN)[0] == TURN
    paced.after(QUIET)
    assert paced.pace(TURN)[0] == TURN_IDLE


def test_pace_gives_way_at_once_to_a_host_that_asks_before_it_is_answered():
    paced = Paced()
    paced.alone()
    assert paced.pace(TURN_HOSTS, hosts=True) == (TURN_HOSTS, 4)
    assert paced.pace(TURN_HOSTS, hosts=True) == (TURN_HOSTS, 4)


def test_too_small_a_sink_is_refused():
    with pytest.raises(ValueError, match="at least"):
        Copy(4 * CHUNK, sink_size=2 * CHUNK)
