"""The initiator against targets that mean harm: nothing is overrun, and only the connection ends."""
from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator

import pytest

from tests.support.initiator_world import (
    E_DIGEST,
    E_PROTOCOL,
    KIB,
    World,
    opcodes,
)
from tests.support.scripted_target import NONE, Negotiated, Task


@pytest.fixture
def begin() -> Iterator[Callable[..., World]]:
    """Makes worlds; what is under way in them ends with the test."""
    made: list[World] = []

    def new(*arguments: object, **options: object) -> World:
        made.append(World(*arguments, **options))
        return made[-1]

    yield new
    for one in made:
        assert one.status(one.store.close()) == 0
        assert one.store.in_flight == 0
        one.target.close()


@pytest.fixture
def world(begin: Callable[..., World]) -> World:
    made = begin()
    made.attach()
    return made


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
def test_r2t_for_what_is_not_there(begin: Callable[..., World], offset: int, length: int, ttt: int) -> None:
    world = begin(Negotiated(initial_r2t=True, immediate_data=False))
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


@pytest.mark.parametrize(("asks", "outstanding"), [
    ([(1, 0, 512)], 1), ([(0, 0, 512), (0, 512, 512)], 2), ([(0, 1024, 512), (1, 512, 512)], 2),
    ([(0, 0, 1024), (1, 512, 512)], 2), ([(0, 0, 262144), (1, 262144, 262144)], 1)])
def test_r2ts_out_of_order_or_beyond_what_was_negotiated(begin: Callable[..., World], asks: list[tuple[int, int, int]],
                                                         outstanding: int) -> None:
    """R2TSN, offset, length of each."""
    world = begin(Negotiated(initial_r2t=True, immediate_data=False, target_data_max=512))
    world.attach(outstanding_r2t_max=outstanding)
    world.target._data_out = lambda pdu: None

    def act(task: Task) -> bool:
        for number, offset, length in asks:
            world.target.send(world.target.header(0x31, 0x80, task.itt, counts=False, at20=5 + number, at36=number,
                                                  at40=offset, at44=length))
        return True

    world.target.on_command = act
    world.store.submit_write(0, bytes(1024 * KIB))
    world.until(lambda: bool(world.lost()))
    assert world.lost()[0][0] == E_PROTOCOL


def test_data_in_with_a_number_left_out(world: World) -> None:
    def act(task: Task) -> None:
        world.target.data_in(task.itt, 0, b"x" * 512, final=False)
        world.target.data_in(task.itt, 512, b"x" * 512, number=2, status=0)

    assert harm(world, act)[0] == E_PROTOCOL


def test_announcing_the_end_again_does_not_put_it_off(begin: Callable[..., World]) -> None:
    world = begin(nop_interval_ms=0)
    world.reactor.set_clock(1)
    world.attach()
    for ms in range(0, 8000, 200):
        if not world.lost():
            world.target.async_message(2)
        world.reactor.set_clock(ms * 1_000_000 + 2)
        world.turn(2)
    assert world.lost()[0][1] == 2


def test_r2t_for_a_read(world: World) -> None:
    assert harm(world, lambda task: world.target.send(
        world.target.header(0x31, 0x80, task.itt, counts=False, at20=5, at40=0, at44=512)))[0] == E_PROTOCOL


def test_too_many_r2ts_at_once(begin: Callable[..., World]) -> None:
    world = begin(Negotiated(initial_r2t=True, immediate_data=False, target_data_max=512))
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


def test_a_bad_data_digest_begins_the_session_anew(begin: Callable[..., World]) -> None:
    world = begin(Negotiated(data_digest=True))
    world.attach()
    assert harm(world, lambda task: world.target.data_in(
        task.itt, 0, b"x" * 1024, status=0, break_data_digest=True))[0] == E_DIGEST


def test_a_bad_header_digest_begins_the_session_anew(begin: Callable[..., World]) -> None:
    world = begin(Negotiated(header_digest=True))
    world.attach()

    def once(task: Task) -> bool:
        world.target.on_command = None
        world.target.negotiated.header_digest = False       # the PDU goes out without; four bytes of our own follow
        world.target.send(bytes(world.target.header(0x21, 0x80, task.itt)))
        world.target.negotiated.header_digest = True
        return True

    world.target.on_command = once
    ticket = world.store.submit_read(0, 1024)
    world.turn(5)
    world.target.sock.send(b"\0\0\0\0")
    world.until(lambda: bool(world.lost()))
    assert world.lost()[0][0] == E_DIGEST and ticket not in world.answers
    world.attach()
    assert world.status(ticket) == 0


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


def test_noise_ends_the_connection_and_nothing_else(begin: Callable[..., World]) -> None:
    dice = random.Random(11)
    world = begin()
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
