"""The initiator against a scripted target: transfers of every mode, errors, losses, and targets that mean harm."""
from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator

import pytest
from detour.core.initiator import InitiatorStore
from detour.core.reactor import Reactor

from tests.support.scripted_target import NONE, Negotiated, ScriptedTarget, Task, sense

KIB = 1024
SIZE = 4 * 1024 * KIB
E_IO, E_PROTOCOL, E_DIGEST, E_CLOSED, E_ABORTED, E_TIMEOUT = -2, -5, -6, -7, -8, -9
E_CHECK, E_MISCOMPARE, E_BUSY = -11, -13, -14
LOST, ASYNC = 3, 4
MS = 10**6


class World:
    """Store and target, turned by hand."""

    def __init__(self, negotiated: Negotiated | None = None, *, window: int = 32, size: int = SIZE,
                 **options: object) -> None:
        self.reactor = Reactor()
        self.target = ScriptedTarget(min(size, SIZE), negotiated, window=window)
        self.store = InitiatorStore(self.reactor, 77, 1, size, **options)
        self.answers: dict[int, tuple[int, tuple[int, ...], bytes | None]] = {}
        self.events: list[tuple[int, tuple[int, ...], bytes | None]] = []

    def attach(self) -> None:
        assert self.wait(self.store.attach(*self.target.connect()))[0] == 0

    def turn(self, turns: int = 1) -> None:
        for _ in range(turns):
            self.reactor.turn(0)
            self.target.poll()
            for kind, ticket, status, results, data in self.reactor.drain():
                if kind == 0:
                    assert ticket not in self.answers, "answered once"
                    self.answers[ticket] = (status, results, data)
                else:
                    assert ticket == 77
                    self.events.append((kind, results, data))

    def until(self, reached: Callable[[], bool]) -> None:
        for _ in range(20000):
            if reached():
                return
            self.turn()
        raise AssertionError("never came about")

    def wait(self, ticket: int) -> tuple[int, tuple[int, ...], bytes | None]:
        self.until(lambda: ticket in self.answers)
        return self.answers[ticket]

    def status(self, ticket: int) -> int:
        return self.wait(ticket)[0]

    def lost(self) -> list[tuple[int, ...]]:
        return [results for kind, results, _ in self.events if kind == LOST]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    made.attach()
    yield made
    assert made.status(made.store.close()) == 0
    assert made.store.in_flight == 0
    made.target.close()


def hold(world: World) -> list[Task]:
    """Commands that come from now on are kept, unanswered."""
    held: list[Task] = []

    def keep(task: Task) -> bool:
        held.append(task)
        return True

    world.target.on_command = keep
    return held


def opcodes(world: World) -> list[int]:
    return [pdu.opcode for pdu in world.target.log]


# ---- transfers

MODES = [
    (initial_r2t, immediate, first, burst, target_max, initiator_max)
    for initial_r2t in (False, True)
    for immediate in (False, True)
    for first, burst, target_max, initiator_max in (
        (512, 512, 512, 512), (65536, 262144, 8192, 8192), (8192, 65536, 262144, 262144), (4096, 8192, 65536, 1000))
]


@pytest.mark.parametrize("mode", MODES)
def test_write_and_read_in_every_mode(mode: tuple[bool, bool, int, int, int, int]) -> None:
    world = World(Negotiated(*mode))
    world.attach()
    dice = random.Random(repr(mode))
    for blocks in (1, 2, 9, 100, 513):
        data, offset = dice.randbytes(blocks * 512), dice.randrange(1000) * 512
        assert world.status(world.store.submit_write(offset, data)) == 0
        assert world.target.image[offset:offset + len(data)] == data
        status, _, got = world.wait(world.store.submit_read(offset, len(data)))
        assert (status, got) == (0, data)
    assert world.lost() == []


@pytest.mark.parametrize(("header_digest", "data_digest"), [(True, False), (False, True), (True, True)])
def test_digests(header_digest: bool, data_digest: bool) -> None:
    world = World(Negotiated(first_burst=4096, target_data_max=4096, initiator_data_max=2048,
                             header_digest=header_digest, data_digest=data_digest))
    world.attach()
    data = os.urandom(20 * 512)
    assert world.status(world.store.submit_write(512, data)) == 0
    assert world.wait(world.store.submit_read(512, len(data)))[2] == data
    assert world.lost() == []


def test_a_large_io_is_cut_at_the_transfer_limit() -> None:
    world = World(transfer_bytes_max=64 * KIB + 100)
    world.attach()
    data = os.urandom(1000 * KIB)
    assert world.status(world.store.submit_write(3 * 512, data)) == 0
    assert world.target.image[1536:1536 + len(data)] == data
    assert max(pdu.word(20) for pdu in world.target.log if pdu.opcode == 1) == 64 * KIB
    assert world.wait(world.store.submit_read(1536, len(data)))[2] == data


def test_many_at_once_keep_their_places(world: World) -> None:
    pieces = {offset: os.urandom(4096) for offset in range(0, 1024 * KIB, 4096)}
    tickets = [world.store.submit_write(offset, data) for offset, data in pieces.items()]
    assert {world.status(ticket) for ticket in tickets} == {0}
    reads = {offset: world.store.submit_read(offset, 4096) for offset in pieces}
    assert all(world.wait(ticket)[2] == pieces[offset] for offset, ticket in reads.items())


def test_sixteen_byte_commands_beyond_two_tebibytes() -> None:
    world = World(size=2**42)
    world.attach()
    held = hold(world)
    world.store.submit_read(2**41 + 512, 512)
    world.store.submit_write(2**41 - 512, bytes(512))
    world.store.submit_write(2**41 - 1024, bytes(512))
    world.until(lambda: len(held) == 3)
    assert held[0].cdb == bytes([0x88, 0]) + (2**32 + 1).to_bytes(8, "big") + (1).to_bytes(4, "big") + bytes(2)
    assert held[1].cdb == bytes([0x8A, 0]) + (2**32 - 1).to_bytes(8, "big") + (1).to_bytes(4, "big") + bytes(2)
    assert held[2].cdb[:10] == bytes([0x2A, 0]) + (2**32 - 2).to_bytes(4, "big") + bytes([0, 0, 1, 0])


def test_fua_and_flush(world: World) -> None:
    world.status(world.store.submit_write(0, bytes(512), True))
    world.status(world.store.submit_write(0, bytes(512)))
    assert [pdu.header[33] for pdu in world.target.log if pdu.opcode == 1] == [0x08, 0]
    assert world.status(world.store.submit_flush()) == 0
    assert world.target.flushes == 1


def test_without_a_volatile_cache_nothing_is_flushed() -> None:
    world = World(volatile=False)
    world.attach()
    assert world.status(world.store.submit_write(0, bytes(512), True)) == 0
    assert world.status(world.store.submit_flush()) == 0
    assert world.target.flushes == 0
    assert [pdu.header[33] for pdu in world.target.log if pdu.opcode == 1] == [0]


@pytest.mark.parametrize("unmap", [False, True])
def test_unmap_leaves_zeros(unmap: bool) -> None:
    world = World(unmap=unmap, unmap_bytes_max=300 * KIB)
    world.target.image[:] = b"\xaa" * SIZE
    world.attach()
    assert world.status(world.store.submit_unmap(512, 1000 * KIB)) == 0
    assert world.target.image == b"\xaa" * 512 + bytes(1000 * KIB) + b"\xaa" * (SIZE - 512 - 1000 * KIB)
    codes = {pdu.header[32] for pdu in world.target.log if pdu.opcode == 1}
    assert codes == ({0x93} if unmap else {0x2A})


def test_unmap_falls_back_to_written_zeros() -> None:
    world = World(unmap=True, unmap_bytes_max=300 * KIB)
    world.target.image[:] = b"\xaa" * SIZE
    world.attach()

    def lacks_write_same(task: Task) -> bool:
        if task.cdb[0] == 0x93:
            world.target.respond(task, 2, sense(5, 0x20))
            return True
        if len(task.data) < task.expected:
            world.target.r2t(task, len(task.data), min(262144, task.expected - len(task.data)))
        else:
            world.target.do(task)
        return True

    world.target.on_command = lacks_write_same
    tickets = [world.store.submit_unmap(start * KIB, 700 * KIB) for start in (0, 1000, 2000)]
    assert {world.status(ticket) for ticket in tickets} == {0}
    for start in (0, 1000, 2000):
        assert not any(world.target.image[start * KIB:(start + 700) * KIB])
    assert world.target.image[700 * KIB] == 0xAA


def test_out_of_range_never_reaches_the_target(world: World) -> None:
    assert world.status(world.store.submit_read(SIZE, 512)) == -3
    assert world.status(world.store.submit_read(100, 512)) == -3
    assert world.target.log == []
    assert world.status(world.store.resize(2 * SIZE)) == 0
    assert world.store.size_bytes == 2 * SIZE


# ---- the window

def test_a_closed_window_queues_and_an_open_one_sends() -> None:
    world = World(window=0)
    world.attach()
    tickets = [world.store.submit_read(0, 512) for _ in range(5)]
    world.turn(20)
    assert world.target.log == []
    world.target.window = 2
    world.target.send(world.target.header(0x20, 0x80, counts=False, at20=NONE))
    assert {world.status(ticket) for ticket in tickets} == {0}


def test_queue_depth_bounds_the_commands_in_flight() -> None:
    world = World(queue_depth=3, window=100)
    world.attach()
    held = hold(world)
    tickets = [world.store.submit_read(n * 512, 512) for n in range(10)]
    world.turn(20)
    assert len(held) == 3
    done = 0
    while done < 10:
        world.target.do(held[done])
        done += 1
        world.turn(5)
        assert len(held) == min(10, done + 3)
    assert {world.status(ticket) for ticket in tickets} == {0}


# ---- statuses

def test_check_condition_ends_a_data_io_with_an_error(world: World) -> None:
    world.target.statuses.append((2, sense(3, 0x11)))
    assert world.status(world.store.submit_read(0, 512)) == E_IO
    assert world.status(world.store.submit_read(0, 512)) == 0


def test_an_error_in_one_part_ends_the_whole_io_once() -> None:
    world = World(transfer_bytes_max=4096, queue_depth=2)
    world.attach()
    seen = 0

    def fail_third(task: Task) -> bool:
        nonlocal seen
        seen += 1
        if seen == 3:
            world.target.respond(task, 2, sense(3, 0x11))
        return seen == 3

    world.target.on_command = fail_third
    assert world.status(world.store.submit_read(0, 100 * KIB)) == E_IO
    assert seen <= 5
    assert world.store.in_flight == 0


@pytest.mark.parametrize("answer", [(8, b""), (0x28, b""), (2, sense(6, 0x29)), (2, sense(0xB, 0x47, 3)),
                                    (2, sense(2, 4, 1)), (0x40, b"")])
def test_passing_conditions_are_retried(answer: tuple[int, bytes]) -> None:
    world = World(retries_max=4)
    world.reactor.set_clock(1)
    world.attach()
    world.target.statuses.extend([answer] * 4)
    data = os.urandom(4096)
    ticket = world.store.submit_write(0, data)
    for step in range(1, 200):
        world.reactor.set_clock(step * 10 * MS)
        world.turn(3)
    assert world.status(ticket) == 0
    assert world.target.image[:4096] == data
    assert world.store.session["retries"] == 4


def test_retries_are_bounded() -> None:
    world = World(retries_max=3)
    world.reactor.set_clock(1)
    world.attach()
    world.target.statuses.extend([(8, b"")] * 100)
    ticket = world.store.submit_read(0, 512)
    for step in range(1, 100):
        world.reactor.set_clock(step * 10 * MS)
        world.turn(3)
    assert world.status(ticket) == E_BUSY
    assert len(world.target.statuses) == 96


def test_other_statuses(world: World) -> None:
    world.target.statuses.extend([(0x18, b""), (2, sense(0xE, 0x1D)), (2, b""), (0x30, b""), (2, b"\x72\x03\x11\0")])
    assert [world.status(world.store.submit_read(0, 512)) for _ in range(5)] == [E_BUSY, E_MISCOMPARE, E_IO, E_IO, E_IO]


def test_recovered_error_is_success_only_with_all_data(world: World) -> None:
    def recovered(task: Task) -> bool:
        world.target.data_in(task.itt, 0, b"z" * 512, final=True)
        world.target.respond(task, 2, sense(1, 0x17))
        return True

    world.target.on_command = recovered
    status, _, data = world.wait(world.store.submit_read(0, 512))
    assert (status, data) == (0, b"z" * 512)
    assert world.status(world.store.submit_read(0, 1024)) == E_IO


def test_underflow_and_missing_data_are_errors(world: World) -> None:
    world.target.on_command = lambda task: world.target.respond(task, 0, residual=512, flags=2) or True
    assert world.status(world.store.submit_read(0, 1024)) == E_IO
    assert world.status(world.store.submit_write(0, bytes(1024))) == E_IO
    world.target.on_command = lambda task: world.target.respond(task) or True
    assert world.status(world.store.submit_read(0, 1024)) == E_IO
    world.target.on_command = lambda task: world.target.respond(task, response=1) or True
    assert world.status(world.store.submit_write(0, bytes(1024))) == E_IO


def test_an_early_error_while_data_is_still_owed() -> None:
    """The rest of the data is not sent, and the buffer is given back only when no queued PDU points to it."""
    world = World(Negotiated(initial_r2t=True, immediate_data=False, burst=512 * KIB, target_data_max=512))
    world.attach()

    def refuse(task: Task) -> bool:
        world.target.r2t(task, 0, 512 * KIB)
        world.target.on_command = None
        world.turn(2)
        world.target.respond(task, 2, sense(7, 0x27))
        return True

    world.target.on_command = refuse
    assert world.status(world.store.submit_write(0, os.urandom(512 * KIB))) == E_IO
    assert world.status(world.store.submit_read(0, 512)) == 0


# ---- any command

def test_command_with_data_in_and_residual(world: World) -> None:
    def inquiry(task: Task) -> bool:
        assert task.cdb[:5] == bytes([0x12, 0, 0, 0, 96])
        assert task.command.header[8:16] == bytes([0, 1, 0, 0, 0, 0, 0, 0])
        world.target.data_in(task.itt, 0, b"I" * 36, final=True)
        world.target.respond(task, 0, residual=60, flags=2)
        return True

    world.target.on_command = inquiry
    status, results, data = world.wait(world.store.submit_command(bytes([0x12, 0, 0, 0, 96, 0]), data_in_bytes=96))
    assert (status, results[:5], data) == (0, (0, 36, 0, 60, 1), b"I" * 36)


def test_command_with_data_out_lun_and_long_cdb(world: World) -> None:
    cdb, lun, out = bytes(range(32)), bytes([0x40, 9, 0, 0, 0, 0, 0, 0]), os.urandom(300 * KIB)

    def check(task: Task) -> bool:
        assert task.cdb == cdb and task.command.header[8:16] == lun
        if len(task.data) < len(out):
            world.target.r2t(task, len(task.data), min(262144, len(out) - len(task.data)))
            return True
        assert task.data == out
        world.target.respond(task)
        return True

    world.target.on_command = check
    assert world.status(world.store.submit_command(cdb, data_out=out, lun=lun)) == 0


@pytest.mark.parametrize(("answer", "expected"), [
    ((2, sense(6, 0x29)), E_CHECK), ((8, b""), E_BUSY), ((0x18, b""), E_BUSY), ((0x28, b""), E_BUSY), ((4, b""), 0)])
def test_a_commands_status_is_relayed_as_it_is(world: World, answer: tuple[int, bytes], expected: int) -> None:
    world.target.statuses.append(answer)
    status, results, data = world.wait(world.store.submit_command(bytes(6)))
    assert (status, results[0], results[2], data or b"") == (expected, answer[0], len(answer[1]), answer[1])
    assert len(world.target.log) == 1


def test_sense_that_lies_about_its_length(world: World) -> None:
    def lie(task: Task) -> bool:
        out = world.target.header(0x21, 0x80, task.itt)
        out[3] = 2
        world.target.send(out, b"\xff\xff" + sense(5, 0x24)[:10])
        return True

    world.target.on_command = lie
    status, results, data = world.wait(world.store.submit_command(bytes(6)))
    assert (status, results[2], data) == (E_CHECK, 10, sense(5, 0x24)[:10])


def test_sense_longer_than_any_place_for_it(world: World) -> None:
    for length in (300, 9000):
        def long_sense(task: Task, length: int = length) -> bool:
            out = world.target.header(0x21, 0x80, task.itt)
            out[3] = 2
            world.target.send(out, length.to_bytes(2, "big") + b"\x70" * length)
            return True

        world.target.on_command = long_sense
        status, results, _ = world.wait(world.store.submit_command(bytes(6)))
        assert (status, results[2]) == (E_CHECK, 252 if length == 300 else 0)


# ---- loss and return

def test_a_lost_connection_sends_everything_again_in_order(world: World) -> None:
    held = hold(world)
    pieces = [os.urandom(8192) for _ in range(40)]
    tickets = [world.store.submit_write(n * 8192, data) for n, data in enumerate(pieces)]
    world.until(lambda: len(held) == 32)
    first = [task.cdb for task in held]
    world.target.close()
    world.until(lambda: bool(world.lost()))
    assert world.lost() == [(E_CLOSED, 0, 0, 0, 0, 0, 0, 0)]
    assert not world.store.attached
    assert not set(tickets) & set(world.answers)
    tickets.append(world.store.submit_write(40 * 8192, bytes(8192)))
    held = hold(world)
    world.attach()
    world.until(lambda: len(held) == 32)
    assert [task.cdb for task in held] == first
    world.target.on_command = None
    for task in held:
        world.target.do(task)
    assert {world.status(ticket) for ticket in tickets} == {0}
    assert world.target.image[:40 * 8192] == b"".join(pieces)
    assert world.store.session["attachments"] == 2


def test_loss_in_the_middle_of_data_in_and_out() -> None:
    world = World(Negotiated(initial_r2t=True, target_data_max=4096, initiator_data_max=4096),
                  transfer_bytes_max=128 * KIB)
    world.attach()
    world.target.image[:] = os.urandom(SIZE)
    reading = world.store.submit_read(0, 1024 * KIB)
    data = os.urandom(1024 * KIB)
    writing = world.store.submit_write(2048 * KIB, data)
    dice = random.Random(5)
    for _ in range(30):
        world.turn(dice.randrange(1, 6))
        world.target.close()
        world.until(lambda: not world.store.attached)
        world.attach()
    assert world.wait(reading)[2] == world.target.image[:1024 * KIB]
    assert world.status(writing) == 0
    assert world.target.image[2048 * KIB:3072 * KIB] == data


def test_fail_ends_all_until_the_next_attach(world: World) -> None:
    hold(world)
    tickets = [world.store.submit_read(0, 512) for _ in range(50)]
    world.turn(5)
    assert world.status(world.store.fail()) == 0
    assert {world.status(ticket) for ticket in tickets} == {E_IO}
    assert world.status(world.store.submit_read(0, 512)) == E_IO
    assert world.lost() == []
    world.target.on_command = None
    world.attach()
    assert world.status(world.store.submit_read(0, 512)) == 0


def test_fail_without_a_connection() -> None:
    world = World()
    ticket = world.store.submit_read(0, 512)
    world.turn(3)
    assert ticket not in world.answers
    assert world.status(world.store.fail()) == 0
    assert world.status(ticket) == E_IO


def test_close_ends_all_with_closed() -> None:
    world = World()
    world.attach()
    hold(world)
    tickets = [world.store.submit_write(0, bytes(512 * KIB)) for _ in range(50)]
    world.turn(3)
    assert world.status(world.store.close()) == 0
    assert {world.status(ticket) for ticket in tickets} == {E_CLOSED}
    world.turn(3)
    assert world.target.sock is None        # the peer has seen the end
    assert world.lost() == []


def test_detach_waits_quietly(world: World) -> None:
    held = hold(world)
    ticket = world.store.submit_read(0, 512)
    world.until(lambda: len(held) == 1)
    assert world.status(world.store.detach()) == 0
    assert world.lost() == [] and not world.store.attached
    assert world.status(world.store.detach()) == 0
    world.target.on_command = None
    world.attach()
    assert world.status(ticket) == 0


def test_a_second_attach_is_refused(world: World) -> None:
    other = ScriptedTarget(SIZE)
    assert world.status(world.store.attach(*other.connect())) == E_BUSY
    other.poll()
    assert other.sock is None
    assert world.status(world.store.submit_read(0, 512)) == 0


def test_wrong_arguments() -> None:
    world = World()
    fd, params = world.target.connect()
    with pytest.raises(KeyError):
        world.store.attach(fd, {})
    with pytest.raises(ValueError, match="burst_bytes_max"):
        world.store.attach(fd, params | {"burst_bytes_max": 10})
    with pytest.raises(ValueError, match="outstanding_r2t_max"):
        world.store.attach(fd, params | {"outstanding_r2t_max": 9})
    with pytest.raises(ValueError, match="ISID"):
        world.store.attach(fd, params | {"isid": b"abc"})
    os.close(fd)
    for options in ({"block_bytes": 100}, {"queue_depth": 0}, {"command_limit_ms": 0}):
        with pytest.raises(ValueError):
            InitiatorStore(world.reactor, 1, 0, SIZE, **options)
    with pytest.raises(ValueError):
        InitiatorStore(world.reactor, 1, 70000, SIZE)


def test_logout_waits_for_what_is_in_flight(world: World) -> None:
    held = hold(world)
    running, waiting = world.store.submit_read(0, 512), world.store.submit_read(512, 512)
    world.until(lambda: len(held) == 2)
    leaving = world.store.logout()
    later = world.store.submit_read(1024, 512)
    world.turn(20)
    assert 6 not in opcodes(world) and len(held) == 2
    for task in held:
        world.target.do(task)
    assert world.status(leaving) == 0
    assert opcodes(world)[-1] == 6
    assert (world.status(running), world.status(waiting)) == (0, 0)
    assert later not in world.answers and world.lost() == []
    world.target.on_command = None
    world.attach()
    assert world.status(later) == 0


# ---- NOP, Async Message, Reject

def test_nop_in_is_answered(world: World) -> None:
    out = world.target.header(0x20, 0x80, counts=False, at20=0xCAFE)
    out[8:16] = b"LUNLUNLU"
    world.target.send(out)
    world.until(lambda: bool(world.target.log))
    [pdu] = world.target.log
    assert (pdu.header[0], pdu.word(16), pdu.word(20), pdu.header[8:16]) == (0x40, NONE, 0xCAFE, b"LUNLUNLU")
    assert pdu.word(28) == world.target.stat_sn


def test_a_silent_target_is_asked_and_given_up() -> None:
    world = World(nop_interval_ms=1000, nop_timeout_ms=2000)
    world.reactor.set_clock(1)
    world.attach()
    for ms in range(0, 10000, 100):                 # it answers: nothing is lost
        world.reactor.set_clock(ms * MS + 2)
        world.turn(2)
    assert world.lost() == []
    asked = opcodes(world).count(0)
    assert 5 <= asked <= 10
    world.target.poll = lambda: None
    for ms in range(10000, 14000, 100):
        world.reactor.set_clock(ms * MS + 2)
        world.turn(2)
    assert world.lost()[0][0] == E_TIMEOUT


def test_a_command_without_answer_has_a_limit() -> None:
    world = World(command_limit_ms=3000, nop_interval_ms=0)
    world.reactor.set_clock(1)
    world.attach()
    hold(world)
    ticket = world.store.submit_read(0, 512)
    for ms in range(0, 2900, 100):
        world.reactor.set_clock(ms * MS + 2)
        world.turn(2)
    assert world.lost() == []
    for ms in range(2900, 5000, 100):
        world.reactor.set_clock(ms * MS + 2)
        world.turn(2)
    assert world.lost()[0][0] == E_TIMEOUT
    world.target.on_command = None
    world.attach()
    assert world.status(ticket) == 0


def test_async_logout_request(world: World) -> None:
    held = hold(world)
    running = world.store.submit_read(0, 512)
    world.until(lambda: len(held) == 1)
    world.target.async_message(1, 0, 0, 10)
    world.turn(3)
    later = world.store.submit_read(512, 512)
    world.turn(10)
    assert len(held) == 1 and 6 not in opcodes(world)
    world.target.do(held[0])
    assert world.status(running) == 0
    world.until(lambda: bool(world.lost()))
    assert opcodes(world)[-1] == 6
    assert world.lost()[0][:2] == (E_CLOSED, 1)
    assert (ASYNC, (1, 0, 0, 10, 0, 0, 0, 0), None) in world.events
    world.target.on_command = None
    world.attach()
    assert world.status(later) == 0


@pytest.mark.parametrize("event", [2, 3])
def test_async_drop(world: World, event: int) -> None:
    held = hold(world)
    ticket = world.store.submit_read(0, 512)
    world.until(lambda: len(held) == 1)
    world.target.async_message(event, 7, 3, 20)
    world.turn(3)
    world.store.submit_read(512, 512)
    world.turn(5)
    assert len(held) == 1 and world.lost() == []
    world.target.close()
    world.until(lambda: bool(world.lost()))
    assert world.lost()[0][1:4] == (event, 3, 20)
    assert (ASYNC, (event, 7, 3, 20, 0, 0, 0, 0), None) in world.events
    world.target.on_command = None
    world.attach()
    assert world.status(ticket) == 0


def test_async_drop_that_never_comes() -> None:
    world = World(nop_interval_ms=0)
    world.reactor.set_clock(1)
    world.attach()
    world.target.async_message(3)
    for ms in range(0, 8000, 200):
        world.reactor.set_clock(ms * MS + 2)
        world.turn(2)
    assert world.lost()[0][:2] == (E_TIMEOUT, 3)


def test_async_scsi_event_is_told_with_its_data(world: World) -> None:
    world.target.async_message(0, data=b"\0\x12" + sense(6, 0x2A, 9))
    world.until(lambda: bool(world.events))
    assert world.events == [(ASYNC, (0,) * 8, b"\0\x12" + sense(6, 0x2A, 9))]
    assert world.status(world.store.submit_read(0, 512)) == 0


def test_tasks_terminated_by_the_target_are_sent_again(world: World) -> None:
    held = hold(world)
    ticket = world.store.submit_read(0, 512)
    world.until(lambda: len(held) == 1)
    world.target.async_message(5)
    world.until(lambda: bool(world.lost()))
    assert world.lost()[0][:2] == (E_ABORTED, 5)
    world.target.on_command = None
    world.attach()
    assert world.status(ticket) == 0


def reject(world: World, task: Task, reason: int) -> None:
    out = world.target.header(0x3F, 0x80)
    out[2] = reason
    world.target.tasks.pop(task.itt)
    world.target.send(out, task.command.header)


def test_a_rejected_command_ends(world: World) -> None:
    world.target.on_command = lambda task: reject(world, task, 4) or True
    assert world.status(world.store.submit_read(0, 512)) == E_PROTOCOL
    world.target.on_command = None
    assert world.status(world.store.submit_read(0, 512)) == 0
    assert world.lost() == []


def test_a_command_rejected_for_a_logout_waits_for_the_next_session(world: World) -> None:
    world.target.on_command = lambda task: reject(world, task, 0x0C) or True
    ticket = world.store.submit_read(0, 512)
    world.until(lambda: bool(world.lost()))
    assert opcodes(world)[-1] == 6 and ticket not in world.answers
    world.target.on_command = None
    world.attach()
    assert world.status(ticket) == 0


# ---- targets that mean harm

def harm(world: World, act: Callable[[Task], object], submit: Callable[[], int] | None = None) -> tuple[int, ...]:
    """The act answers a command; the connection must be lost, the Io must wait and succeed later."""
    def once(task: Task) -> bool:
        world.target.on_command = lambda _: True
        act(task)
        return True

    world.target.on_command = once
    ticket = submit() if submit else world.store.submit_read(0, 1024)
    world.until(lambda: bool(world.lost()))
    assert ticket not in world.answers
    world.target.on_command = None
    world.attach()
    assert world.status(ticket) == 0
    return world.lost()[0]


@pytest.mark.parametrize(("offset", "length"), [
    (0, 1025), (1, 512), (1024, 1), (0xFFFFFFFF, 512), (0xFFFFFE00, 1024), (512, 512), (2048, 0), (0, 65536)])
def test_data_in_outside_of_the_io(world: World, offset: int, length: int) -> None:
    assert harm(world, lambda task: world.target.data_in(task.itt, offset, b"!" * length))[0] == E_PROTOCOL


def test_data_in_past_the_end_in_a_second_pdu(world: World) -> None:
    def act(task: Task) -> None:
        world.target.data_in(task.itt, 0, b"x" * 1000, final=False)
        world.target.data_in(task.itt, 1000, b"x" * 25)

    assert harm(world, act)[0] == E_PROTOCOL


def test_data_in_for_a_write(world: World) -> None:
    assert harm(world, lambda task: world.target.data_in(task.itt, 0, b"x"),
                lambda: world.store.submit_write(0, bytes(1024)))[0] == E_PROTOCOL


@pytest.mark.parametrize("itt", [0, 1, NONE, 0x7FFFFFFF, 1023, 0x12345400])
@pytest.mark.parametrize("opcode", [0x21, 0x25, 0x31])
def test_unknown_tags(world: World, itt: int, opcode: int) -> None:
    assert harm(world, lambda _: world.target.send(
        world.target.header(opcode, 0x80, itt, counts=False, at20=5, at40=0, at44=512)))[0] == E_PROTOCOL


def test_two_answers_for_one_command(world: World) -> None:
    def act(task: Task) -> bool:
        world.target.do(task)
        world.target.respond(task)
        return True

    world.target.on_command = act
    assert world.status(world.store.submit_read(0, 512)) == 0
    world.until(lambda: bool(world.lost()))
    assert world.lost()[0][0] == E_PROTOCOL


@pytest.mark.parametrize(("offset", "length", "ttt"), [
    (0, 4096 * KIB, 5), (1024 * KIB, 1, 5), (1024 * KIB - 1, 2, 5), (0xFFFFFFFF, 2, 5), (0, 0, 5), (0, 512, NONE),
    (0, 262145, 5)])
def test_r2t_for_what_is_not_there(offset: int, length: int, ttt: int) -> None:
    world = World(Negotiated(initial_r2t=True, immediate_data=False))
    world.attach()

    def first_command(_: Task) -> bool:
        return True

    world.target.on_command = first_command
    ticket = world.store.submit_write(0, bytes(1024 * KIB))
    world.turn(2)
    itt = world.target.log[0].word(16)
    world.target.send(world.target.header(0x31, 0x80, itt, counts=False, at20=ttt, at40=offset, at44=length))
    world.until(lambda: bool(world.lost()))
    assert world.lost()[0][0] == E_PROTOCOL
    assert 5 not in opcodes(world)
    world.target.on_command = None
    world.attach()
    assert world.status(ticket) == 0


def test_r2t_for_a_read(world: World) -> None:
    assert harm(world, lambda task: world.target.send(
        world.target.header(0x31, 0x80, task.itt, counts=False, at20=5, at40=0, at44=512)))[0] == E_PROTOCOL


def test_too_many_r2ts_at_once() -> None:
    world = World(Negotiated(initial_r2t=True, immediate_data=False, target_data_max=512))
    world.attach()
    world.target.on_command = lambda task: [world.target.send(world.target.header(
        0x31, 0x80, task.itt, counts=False, at20=n, at40=0, at44=256 * KIB)) for n in range(40)] and True
    world.target._data_out = lambda pdu: None
    world.store.submit_write(0, bytes(1024 * KIB))
    world.until(lambda: bool(world.lost()))
    assert world.lost()[0][0] == E_PROTOCOL


@pytest.mark.parametrize("opcode", [0x00, 0x01, 0x05, 0x22, 0x23, 0x24, 0x26, 0x10, 0x3E])
def test_opcodes_that_nobody_asked_for(world: World, opcode: int) -> None:
    assert harm(world, lambda task: world.target.send(world.target.header(opcode, 0x80, task.itt)))[0] == E_PROTOCOL


def test_a_data_segment_over_the_limit(world: World) -> None:
    assert harm(world, lambda task: world.target.send(
        world.target.header(0x20, 0x80, at20=NONE), bytes(65537)))[0] == E_PROTOCOL


def test_a_bad_data_digest_begins_the_session_anew() -> None:
    world = World(Negotiated(data_digest=True))
    world.attach()
    assert harm(world, lambda task: world.target.data_in(
        task.itt, 0, b"x" * 1024, status=0, break_data_digest=True))[0] == E_DIGEST


def test_a_reject_without_header(world: World) -> None:
    assert harm(world, lambda task: world.target.send(world.target.header(0x3F, 0x80), b"short"))[0] == E_PROTOCOL


def test_a_window_that_goes_back_is_not_believed(world: World) -> None:
    def act(task: Task) -> bool:
        out = world.target.header(0x20, 0x80, counts=False, at20=NONE)
        out[28:36] = ((world.target.exp_cmd_sn + 500).to_bytes(4, "big") +
                      ((world.target.exp_cmd_sn - 500) & NONE).to_bytes(4, "big"))
        world.target.send(out)
        world.target.on_command = None
        world.target.do(task)
        return True

    world.target.on_command = act
    tickets = [world.store.submit_read(n * 512, 512) for n in range(100)]
    assert {world.status(ticket) for ticket in tickets} == {0}
    assert world.lost() == []


def test_noise_ends_the_connection_and_nothing_else() -> None:
    dice = random.Random(11)
    world = World()
    for _ in range(200):
        world.attach()
        ticket = world.store.submit_read(0, 4096)
        world.until(lambda: world.store.session["commands_in_flight"] > 0 or not world.store.attached)
        noise = bytearray(dice.randbytes(dice.randrange(48, 400)))
        noise[0] = dice.choice([0x20, 0x21, 0x25, 0x31, 0x32, 0x3F, noise[0]])
        noise[4:8] = bytes([0, 0, 0, dice.randrange(64)])
        noise[16:20] = world.target.log[-1].header[16:20] if world.target.log else noise[16:20]
        world.target.unsent += noise
        world.target.flush_out()
        world.turn(4)
        world.target.close()
        world.until(lambda: not world.store.attached)
    world.attach()
    assert world.status(world.store.submit_read(0, 512)) == 0
    world.until(lambda: ticket in world.answers)
    assert world.store.in_flight == 0


def test_a_dropped_store_frees_its_descriptor() -> None:
    world = World()
    world.attach()
    world.store.submit_read(0, 512)
    world.turn(1)
    del world.store
    try:
        while world.target.sock.recv(4096):
            pass
    except OSError as error:
        assert error.errno == errno.ECONNRESET
