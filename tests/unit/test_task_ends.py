"""Commands that wait, and those that fail late: each is answered once, and nobody waits for what can no longer come."""
from __future__ import annotations

import struct

import pytest

from detour.core.disk import DiskHandle
from detour.core.store import MemoryStore
from tests.support import reservations as rsv
from tests.support.medium_world import copy_parameters
from tests.support.pdu_client import COMMAND, DATA_IN, FINAL, RESPONSE, WRITE, Host, World, cdb_rw

BLOCK = 512
SIMPLE, ORDERED = 1, 2
SECOND = b"\0\2\x3d\0\0\2"
TUR = bytes(6)
NS = 10**9


def send(host, cdb, attribute=SIMPLE, flags=0, edtl=0, **more):
    return host.request(COMMAND, FINAL | flags | attribute, w20=edtl, tail=cdb, **more)


@pytest.fixture
def slow():
    """A disk that holds writes until the clock goes on."""
    world = World(delay_us=1000)
    world.reactor.set_clock(NS)
    yield world
    world.close()


def test_what_an_ordered_command_held_up_begins_when_a_drain_is_called_off(slow):
    host = Host(slow)
    ordered = send(host, cdb_rw(0x8A, 0, 1), ORDERED, WRITE, BLOCK, data=bytes(BLOCK))
    behind = send(host, TUR)
    assert host.nothing_comes()
    drain = slow.target.drain()
    slow.turn(3)
    slow.reactor.set_clock(2 * NS)
    assert slow.ask(drain) == 0
    assert host.finish(ordered).status == 0 and host.nothing_comes()
    assert slow.ask(slow.target.resume()) == 0
    assert host.finish(behind).status == 0
    host.close()
    assert slow.quiet()


def stall(host, blocks=2048, count=8):
    """Reads whose data the host does not take, so that they lie in the target's queue."""
    tags = [host.begin(cdb_rw(0x88, 0, blocks), flags=0x40, edtl=blocks * BLOCK) for _ in range(count)]
    for _ in range(20):
        if host.out:
            del host.out[:host.sock.send(host.out)]
        host.world.turn()
    return tags


@pytest.mark.parametrize("function", [4, 5, 6])
def test_a_function_does_not_wait_for_a_host_that_takes_no_data(function):
    world = World()
    host, deaf = Host(world), Host(world, isid=SECOND)
    stall(deaf)
    assert host.managed(host.manage(function)) == 0
    deaf.close()
    host.close()
    assert world.quiet()
    world.close()


def test_preempt_and_abort_does_not_wait_for_a_host_that_takes_no_data():
    world = World()
    host, deaf = Host(world), Host(world, isid=SECOND)
    assert rsv.out(host, rsv.REGISTER, 0, 1).status == rsv.out(deaf, rsv.REGISTER, 0, 2).status == 0
    assert rsv.out(deaf, rsv.RESERVE, 2, kind=rsv.WRITE_REGISTRANTS).status == 0
    stall(deaf)
    assert rsv.out(host, rsv.PREEMPT_AND_ABORT, 1, 2, kind=rsv.WRITE_REGISTRANTS).status == 0
    deaf.close()
    host.close()
    assert world.quiet()
    world.close()


def answers(host):
    """The tags of all status PDUs that still come."""
    tags = []
    while True:
        try:
            pdu = host.pdu(10)
        except TimeoutError:
            return tags
        if pdu.opcode in (RESPONSE, DATA_IN):
            tags.append(pdu.itt)


@pytest.mark.parametrize("written_first", [False, True])
def test_a_copy_that_fails_by_what_comes_behind_its_list_is_answered_once(slow, written_first):
    """Its WRITE is at the disk, in the second of its parts, when Data-Out with a wrong DataSN comes."""
    host = Host(slow)
    parameters = copy_parameters([slow.disk.naa], [(0, 0, 4000, 0, 4096)])
    tag = host.begin(struct.pack(">BB8xIxx", 0x83, 0, len(parameters)), flags=WRITE, edtl=len(parameters) + 8,
                     data=parameters, final=False)
    assert host.nothing_comes()
    if written_first:
        slow.reactor.set_clock(2 * NS)
        host.pump()
    host.data_out(tag, bytes(8), len(parameters), 3, final=True)
    came = answers(host)
    for second in range(3, 9):
        slow.reactor.set_clock(second * NS)
        came += answers(host)
    assert came == [tag]
    assert host.command(TUR).status == 0
    host.close()
    assert slow.quiet()


def test_a_preempting_command_that_fails_late_is_answered_once(slow):
    host, other = Host(slow), Host(slow, isid=SECOND)
    assert rsv.out(host, rsv.REGISTER, 0, 1).status == rsv.out(other, rsv.REGISTER, 0, 2).status == 0
    send(other, cdb_rw(0x8A, 0, 1), SIMPLE, WRITE, BLOCK, data=b"x" * BLOCK)
    other.pump()
    tag = host.begin(rsv.out_cdb(rsv.PREEMPT_AND_ABORT, 24, rsv.WRITE_EXCLUSIVE), flags=WRITE, edtl=32,
                     data=rsv.parameters(1, 2), final=False)
    assert host.nothing_comes()
    host.data_out(tag, bytes(8), 24, 3, final=True)
    assert host.nothing_comes()
    slow.reactor.set_clock(2 * NS)
    assert answers(host) == [tag]
    host.close()
    other.close()
    assert slow.quiet()


@pytest.mark.parametrize("action", [rsv.PREEMPT, rsv.PREEMPT_AND_ABORT])
def test_a_preempted_host_copies_no_further_into_the_disk(action):
    """The copy manager that it asked is another disk."""
    world = World()
    world.reactor.set_clock(NS)
    store = MemoryStore(world.reactor, 8 << 20, BLOCK)
    target = DiskHandle(world.reactor, store, serial="target", delay_us=1000)
    assert world.ask(world.target.set_lun(1, target)) == 0
    world.image[:] = b"x" * len(world.image)
    host, other = Host(world), Host(world, isid=SECOND)
    for one in (host, other):
        assert one.command(TUR, lun=1).sense == 0x062900
    for one, key in ((host, 1), (other, 2)):
        assert one.command_out(rsv.out_cdb(rsv.REGISTER, 24, 0), rsv.parameters(0, key), lun=1).status == 0
    parameters = copy_parameters([world.disk.naa, target.naa], [(0, 1, 6144, 0, 0)])
    other.begin(struct.pack(">BB8xIxx", 0x83, 0, len(parameters)), flags=WRITE, edtl=len(parameters), data=parameters)
    other.pump()
    world.turn(3)                                           # its first MiB is at the disk
    fence = host.begin(rsv.out_cdb(rsv.RESERVE, 24, rsv.WRITE_EXCLUSIVE), flags=WRITE, edtl=24,
                       data=rsv.parameters(1, 0), lun=1)
    assert host.finish(fence).status == 0
    fence = host.begin(rsv.out_cdb(action, 24, rsv.WRITE_EXCLUSIVE), flags=WRITE, edtl=24,
                       data=rsv.parameters(1, 2), lun=1)
    assert host.nothing_comes() == (action == rsv.PREEMPT_AND_ABORT)
    world.reactor.set_clock(2 * NS)
    if action == rsv.PREEMPT_AND_ABORT:
        assert host.finish(fence).status == 0
    answers(other)
    image = memoryview(store)
    written = bytes(image).count(b"x")
    for second in range(3, 9):
        world.reactor.set_clock(second * NS)
        world.turn(5)
    assert bytes(image).count(b"x") == written <= 1 << 20
    image.release()
    host.close()
    other.close()
    assert world.quiet()
    world.close()
