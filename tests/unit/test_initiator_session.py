"""The initiator's sessions: loss and return, logout, NOP, Async Message, Reject."""
from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from detour.core.initiator import InitiatorStore
from tests.support.initiator_world import (
    ASYNC,
    E_ABORTED,
    E_BUSY,
    E_CLOSED,
    E_IO,
    E_PROTOCOL,
    E_TIMEOUT,
    KIB,
    MS,
    SIZE,
    World,
    hold,
    opcodes,
)
from tests.support.scripted_target import NONE, Negotiated, ScriptedTarget, Task, sense


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    made.attach()
    yield made
    assert made.status(made.store.close()) == 0
    assert made.store.in_flight == 0
    made.target.close()


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


def test_a_logout_asked_for_does_not_wait_for_a_stuck_command_beyond_its_time() -> None:
    world = World(nop_interval_ms=0)
    world.reactor.set_clock(1)
    world.attach()
    hold(world)
    ticket = world.store.submit_read(0, 512)
    world.turn(4)
    world.target.async_message(1, p3=4)
    for ms in range(0, 1900, 100):
        world.reactor.set_clock(ms * MS + 2)
        world.turn(2)
    assert 6 not in opcodes(world)
    for ms in range(1900, 3500, 100):
        if not world.lost():
            world.reactor.set_clock(ms * MS + 2)
            world.turn(2)
    assert 6 in opcodes(world) and world.lost()[0][1] == 1 and ticket not in world.answers
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


def test_a_command_whose_data_was_spoilt_on_the_way_is_sent_again(world: World) -> None:
    tries = []

    def spoilt_once(task: Task) -> bool:
        tries.append(task.cdb)
        if len(tries) == 1:
            reject(world, task, 2)
        return len(tries) == 1

    world.target.on_command = spoilt_once
    assert world.status(world.store.submit_write(0, b"x" * 512)) == 0
    assert len(tries) == 2 and world.target.image[:512] == b"x" * 512 and world.lost() == []


def test_a_target_that_never_gets_data_whole_is_no_endless_loop() -> None:
    world = World(retries_max=3)
    world.attach()
    tries = []
    world.target.on_command = lambda task: tries.append(reject(world, task, 2)) or True
    assert world.status(world.store.submit_write(0, b"x" * 512)) == E_IO
    assert len(tries) == 4


@pytest.mark.parametrize("event", [6, 127, 248, 255])
def test_async_events_that_nobody_knows_change_nothing(world: World, event: int) -> None:
    world.target.async_message(event, 1, 2, 3)
    assert world.status(world.store.submit_read(0, 512)) == 0
    assert world.lost() == [] and (ASYNC, (event, 1, 2, 3, 0, 0, 0, 0), None) in world.events


def test_async_renegotiation_is_answered_by_a_logout(world: World) -> None:
    world.target.async_message(4, 0, 0, 10)
    world.until(lambda: bool(world.lost()))
    assert opcodes(world)[-1] == 6 and world.lost()[0][:2] == (E_CLOSED, 4)


def test_a_command_rejected_for_a_logout_waits_for_the_next_session(world: World) -> None:
    world.target.on_command = lambda task: reject(world, task, 0x0C) or True
    ticket = world.store.submit_read(0, 512)
    world.until(lambda: bool(world.lost()))
    assert opcodes(world)[-1] == 6 and ticket not in world.answers
    world.target.on_command = None
    world.attach()
    assert world.status(ticket) == 0
