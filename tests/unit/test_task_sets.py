"""Task sets over several sessions and targets: attributes, clearing, resets, PREEMPT AND ABORT."""
from __future__ import annotations

import pytest

from detour.core.target import TargetHandle
from tests.support import reservations as rsv
from tests.support.pdu_client import ASYNC, COMMAND, FINAL, R2T, RESPONSE, WRITE, Host, World, cdb_rw

BLOCK = 512
SIMPLE, ORDERED, HEAD, ACA = 1, 2, 3, 4
CLEARED, INVALID_MESSAGE = 0x062F00, 0x054900
SECOND = b"\0\2\x3d\0\0\2"
TUR = bytes(6)
SLOW = {"initial_r2t": True, "immediate_data": False}


@pytest.fixture
def world():
    made = World()
    yield made
    made.close()


@pytest.fixture
def pair(world):
    hosts = Host(world, **SLOW), Host(world, isid=SECOND, **SLOW)
    yield hosts
    for host in hosts:
        host.close()


def send(host, cdb, attribute=SIMPLE, flags=0, edtl=0, **more):
    return host.request(COMMAND, FINAL | flags | attribute, w20=edtl, tail=cdb, **more)


def open_write(host, attribute=SIMPLE, lba=0):
    """A WRITE of one block that waits for its data: tag and R2T."""
    itt = send(host, cdb_rw(0x8A, lba, 1), attribute, WRITE, BLOCK)
    r2t = host.pdu()
    assert (r2t.opcode, r2t.itt) == (R2T, itt)
    return itt, r2t.word(20)


def give(host, itt, ttt, fill):
    host.data_out(itt, bytes([fill]) * BLOCK, 0, 0, ttt=ttt, final=True)


def statuses(host, count):
    """Tags in the order of their answers."""
    return [host.pdu().itt for _ in range(count)]


# --- attributes

def test_ordered_waits_for_all_before_it_and_holds_all_behind_it(world):
    host = Host(world, **SLOW)
    write, ttt = open_write(host)
    ordered = send(host, TUR, ORDERED)
    second = send(host, TUR, ORDERED)
    behind = send(host, TUR)
    assert host.nothing_comes()
    give(host, write, ttt, 7)
    assert statuses(host, 4) == [write, ordered, second, behind]
    host.close()
    assert world.quiet()


def test_simple_commands_behind_an_ordered_one_wait_with_their_data(world):
    host = Host(world)
    ordered, ttt = send(host, cdb_rw(0x8A, 0, 2), ORDERED, WRITE, 2 * BLOCK, data=b"1" * BLOCK), None
    behind = send(host, cdb_rw(0x8A, 1, 1), SIMPLE, WRITE, BLOCK, data=b"2" * BLOCK)
    r2t = host.pdu()
    assert (r2t.opcode, r2t.itt) == (R2T, ordered)
    ttt = r2t.word(20)
    assert host.nothing_comes()
    host.data_out(ordered, b"1" * BLOCK, BLOCK, 0, ttt=ttt, final=True)
    assert statuses(host, 2) == [ordered, behind]
    assert world.image[:2 * BLOCK] == b"1" * BLOCK + b"2" * BLOCK
    host.close()
    assert world.quiet()


def test_head_of_queue_passes(world):
    host = Host(world, **SLOW)
    write, ttt = open_write(host)
    ordered = send(host, TUR, ORDERED)
    head = send(host, TUR, HEAD)
    assert statuses(host, 1) == [head] and host.nothing_comes()
    give(host, write, ttt, 1)
    assert statuses(host, 2) == [write, ordered]
    host.close()


def test_order_is_kept_by_unit_and_by_host(world, pair):
    host, other = pair
    open_write(host, ORDERED)
    assert other.command(TUR).status == 0                   # another nexus does not wait
    assert host.finish(send(host, TUR, lun=5)).sense == 0x052500
    held = send(host, TUR)
    assert host.nothing_comes()
    assert host.managed(host.manage(5)) == 0                # a reset takes the waiting ones, too
    assert host.command(TUR).sense == 0x062903 and host.nothing_comes() and held


def test_an_aborted_ordered_command_lets_the_next_begin(world):
    host = Host(world, **SLOW)
    ordered, _ = open_write(host, ORDERED)
    behind = send(host, TUR)
    assert host.nothing_comes()
    tag = host.manage(1, rtt=ordered)
    first, second = host.pdu(), host.pdu()
    assert {first.itt, second.itt} == {tag, behind}
    open_write(host, ORDERED)
    waiting = send(host, TUR)
    assert host.managed(host.manage(1, rtt=waiting)) == 0   # one that waits can be aborted
    host.close()
    assert world.quiet()


def test_attributes_that_are_not_offered(world):
    host = Host(world)
    for attribute in (ACA, 5, 6, 7):
        assert host.finish(send(host, TUR, attribute)).sense == INVALID_MESSAGE
        result = host.finish(send(host, cdb_rw(0x8A, 0, 1), attribute, WRITE, BLOCK, data=bytes(BLOCK)))
        assert result.sense == INVALID_MESSAGE
    assert host.command(TUR).status == 0
    host.close()


def test_order_outlasts_a_drain(world):
    host = Host(world, **SLOW)
    write, ttt = open_write(host)
    ordered = send(host, TUR, ORDERED)
    behind = send(host, TUR)
    host.pump()
    assert world.ask(world.target.drain()) == 0
    late = send(host, TUR)
    assert host.nothing_comes()
    assert world.ask(world.target.resume()) == 0
    ttts = [pdu.word(20) for pdu in (host.pdu(),) if pdu.opcode == R2T]
    give(host, write, ttts[0] if ttts else ttt, 1)
    answered = []
    while len(answered) < 4:
        pdu = host.pdu()
        if pdu.opcode == RESPONSE:
            answered.append(pdu.itt)
    assert answered == [write, ordered, behind, late]
    host.close()
    assert world.quiet()


# --- functions

def test_clear_task_set_tells_the_others_once_and_only_if_they_had_tasks(world, pair):
    host, other = pair
    third = Host(world, isid=b"\0\2\x3d\0\0\3", **SLOW)
    open_write(host)
    open_write(other)
    open_write(other, lba=3)
    assert host.managed(host.manage(4)) == 0
    assert host.command(TUR).sense == 0 and third.command(TUR).sense == 0
    assert other.command(TUR).sense == CLEARED and other.command(TUR).sense == 0
    third.close()
    assert world.quiet()


def test_abort_task_set_is_about_this_nexus_and_unit(world, pair):
    host, other = pair
    open_write(host)
    other_write, ttt = open_write(other)
    assert host.managed(host.manage(2)) == 0
    give(other, other_write, ttt, 5)
    assert other.finish(other_write).status == 0 and other.command(TUR).sense == 0


def test_abort_task_wants_the_right_unit(world, pair):
    host, _ = pair
    itt, ttt = open_write(host)
    assert host.managed(host.manage(1, rtt=itt, lun=1)) == 1
    give(host, itt, ttt, 5)
    assert host.finish(itt).status == 0


@pytest.mark.parametrize(("function", "sense"), [(4, CLEARED), (5, 0x062903), (6, 0x062902)])
def test_a_disk_of_two_targets_is_one_task_set(world, function, sense):
    second = TargetHandle(world.reactor, 8, nop_interval_ms=0)
    assert world.ask(second.set_lun(3, world.disk)) == 0
    host, first = Host(world, **SLOW), world.target
    world.target = second
    other = Host(world, isid=SECOND, eat_attention=False, **SLOW)
    assert other.command(TUR, lun=3).sense == 0x062900
    world.target = first
    itt = send(other, cdb_rw(0x8A, 0, 1), SIMPLE, WRITE, BLOCK, lun=3)
    assert other.pdu().opcode == R2T
    assert host.managed(host.manage(function)) == 0
    assert other.command(TUR, lun=3).sense == sense and itt
    assert second.stats[second.stats_names().index("tasks_open")] == 0
    host.close()
    other.close()
    assert world.ask(second.close()) == 0


def test_a_cold_reset_tells_the_others_before_it_closes(world, pair):
    host, other = pair
    assert host.managed(host.manage(7)) == 0
    pdu = other.pdu()
    assert (pdu.opcode, pdu.bhs[36]) == (ASYNC, 3)
    assert host.closes() and other.closes()
    fresh = Host(world, eat_attention=False)
    assert fresh.command(TUR).sense >> 8 == 0x0629
    fresh.close()


def test_functions_reach_commands_that_wait_for_their_turn(world, pair):
    host, other = pair
    missing, ahead = host.next_sn(), host.next_sn()
    lost = send(host, cdb_rw(0x8A, 0, 1), SIMPLE, WRITE, BLOCK, cmd_sn=ahead)
    assert host.nothing_comes()
    assert other.managed(other.manage(5)) == 0
    assert other.command(TUR).sense == 0x062903
    first = send(host, TUR, cmd_sn=missing)
    assert host.finish(first).sense == 0x062903 and host.nothing_comes()
    assert host.command(TUR).status == 0 and host.itt > lost        # the command number of the lost one is used up


# --- PREEMPT AND ABORT

def test_preempt_and_abort_ends_the_tasks_of_the_preempted_first():
    world = World(delay_us=1000)
    world.reactor.set_clock(10**9)
    host, other = Host(world, **SLOW), Host(world, isid=SECOND)
    third = Host(world, isid=b"\0\2\x3d\0\0\3")
    assert rsv.out(host, rsv.REGISTER, 0, 1).status == rsv.out(other, rsv.REGISTER, 0, 2).status == 0
    assert rsv.out(other, rsv.RESERVE, 2, kind=rsv.WRITE_REGISTRANTS).status == 0
    at_device = send(other, cdb_rw(0x8A, 0, 1), SIMPLE, WRITE, BLOCK, data=b"x" * BLOCK)
    amid_data = send(other, cdb_rw(0x8A, 9, 2), SIMPLE, WRITE, 2 * BLOCK, data=b"y" * BLOCK)
    assert other.pdu().itt == amid_data
    bystander = third.begin(TUR)
    parameters = rsv.parameters(1, 2)
    tag = host.begin(rsv.out_cdb(rsv.PREEMPT_AND_ABORT, len(parameters), rsv.WRITE_REGISTRANTS), flags=WRITE,
                     edtl=len(parameters))
    r2t = host.pdu()
    host.data_out(tag, parameters, 0, 0, ttt=r2t.word(20), final=True)
    assert host.nothing_comes() and third.finish(bystander).status == 0
    world.reactor.set_clock(2 * 10**9)                      # the device gives back what it had begun
    assert host.finish(tag).status == 0
    assert other.command(TUR).sense == rsv.REGISTRATIONS_PREEMPTED and at_device
    assert not any(world.image[9 * BLOCK:11 * BLOCK])
    for one in (host, other, third):
        one.close()
    assert world.quiet()
    world.close()


def test_a_preempting_command_that_is_aborted_itself():
    held = World(delay_us=1000)
    held.reactor.set_clock(10**9)
    host, other = Host(held), Host(held, isid=SECOND)
    assert rsv.out(host, rsv.REGISTER, 0, 1).status == rsv.out(other, rsv.REGISTER, 0, 2).status == 0
    send(other, cdb_rw(0x8A, 0, 1), SIMPLE, WRITE, BLOCK, data=b"x" * BLOCK)
    other.pump()
    host.send_command_out(rsv.out_cdb(rsv.PREEMPT_AND_ABORT, 24, rsv.WRITE_EXCLUSIVE), rsv.parameters(1, 2))
    assert host.nothing_comes()
    host.close()
    held.reactor.set_clock(2 * 10**9)
    other.close()
    assert held.quiet()
    held.close()


def test_data_of_the_aborted_pass(world, pair):
    host, other = pair
    itt, ttt = open_write(other)
    assert host.managed(host.manage(4)) == 0
    give(other, itt, ttt, 9)
    assert other.command(TUR).sense == CLEARED and not any(world.image[:BLOCK])
    assert other.read(0, 1).data == bytes(BLOCK)
