"""The initiator against a scripted target: transfers of every mode, the window, statuses, any command."""
from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Iterator

import pytest

from tests.support.initiator_world import (
    E_BUSY,
    E_CHECK,
    E_IO,
    E_MISCOMPARE,
    KIB,
    MS,
    SIZE,
    World,
    hold,
)
from tests.support.patience import SLOWER
from tests.support.scripted_target import NONE, Negotiated, Task, sense


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    made.attach()
    yield made
    assert made.status(made.store.close()) == 0
    assert made.store.in_flight == 0
    made.target.close()


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
    assert world.status(world.store.close()) == 0


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


def test_the_map_is_asked_of_a_thin_target() -> None:
    world = World(unmap=True)
    world.attach()
    told: list[bytes] = []

    def tells(task: Task) -> bool:
        assert task.cdb[:2] == b"\x9e\x12" and task.cdb[10:14] == struct.pack(">I", 24)
        descriptor = told.pop(0)
        if not descriptor:
            world.target.respond(task, 2, sense(5, 0x20))
            return True
        data = struct.pack(">II", 4 + len(descriptor), 0) + descriptor
        world.target.read_data(task, data)
        return True

    def asked(*descriptor: int, at: int = 100, blocks: int = 50, cut: int = 16) -> tuple[int, ...]:
        told.append(struct.pack(">QIB3x", *descriptor)[:cut] if descriptor else b"")
        status, results, _ = world.wait(world.store.submit_map(at * 512, blocks * 512))
        assert status == 0
        return results[0], results[1] // 512

    world.target.on_command = tells
    assert asked(100, 10, 1) == (0, 10) and asked(100, 10, 0) == (1, 10) and asked(100, 10, 2) == (0, 10)
    assert asked(90, 20, 1) == (0, 10)                              # begins before what was asked for
    assert asked(100, 1000, 1) == (0, 50)                           # goes on behind it
    assert asked(100, 10, 7) == (1, 10)                             # a status that nobody knows
    for nonsense in ((101, 10, 1), (90, 10, 1), (100, 0, 1), (100, 10, 1, 12), (2**64 - 1, 10, 1)):
        cut = nonsense[3] if len(nonsense) > 3 else 16
        assert asked(*nonsense[:3], cut=cut) == (1, 50)             # other blocks than were asked for, or no more of it
    assert world.status(world.store.submit_map(0, 0)) == -3
    assert asked() == (1, 50)                                       # it lacks the command
    before = len(world.target.log)
    assert world.wait(world.store.submit_map(0, 5120))[1][:2] == (1, 5120)
    assert len(world.target.log) == before                          # and is not asked again


def test_a_thick_target_is_not_asked_for_its_map(world: World) -> None:
    assert world.wait(world.store.submit_map(512, 5120))[1][:2] == (1, 5120)
    assert world.target.log == []


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


def test_another_thread_sees_whether_a_connection_is_attached() -> None:
    world = World()
    world.reactor.start()
    fd, params = world.target.connect()
    world.store.attach(fd, params)
    deadline = time.monotonic() + 20 * SLOWER
    while not world.store.attached:
        assert time.monotonic() < deadline
    world.target.close()
    while world.store.attached:
        assert time.monotonic() < deadline
    world.store.close()
    world.reactor.stop()
