"""Unit attentions of each nexus: what is queued, in which order, what clears what (SAM-5 5.14)."""
from __future__ import annotations

import struct

import pytest

from tests.support.pdu_client import Host, World
from tests.support.reservations import RESERVATIONS_PREEMPTED, attentions, out

POWER_ON, BUS_RESET, LUN_RESET_DONE = 0x062900, 0x062902, 0x062903
REGISTER, CLEAR = 0, 3
LUN_RESET, WARM_RESET = 5, 6


@pytest.fixture
def world():
    made = World()
    yield made
    made.close()


@pytest.fixture
def hosts(world):
    made = [Host(world, isid=bytes([0, 2, 61, 0, 0, number])) for number in range(3)]
    yield made
    for host in made:
        host.close()


def cleared_by(hosts):
    """Gives hosts 1 and 2 an attention that is of no reset: 2A/03."""
    for key, host in enumerate(hosts, 1):
        assert out(host, REGISTER, 0, key).status == 0
    assert out(hosts[0], CLEAR, 1).status == 0


def test_a_login_is_told_once(world):
    host = Host(world, eat_attention=False)
    assert attentions(host) == [POWER_ON]
    host.close()


def test_commands_that_pass_an_attention(world):
    host = Host(world, eat_attention=False)
    assert host.command(bytes([0x12, 0, 0, 0, 36, 0]), 36).status == 0
    assert host.command(struct.pack(">BBB3xIBB", 0xA0, 0, 0, 64, 0, 0), 64).status == 0
    assert host.read(0, 1).sense == POWER_ON
    assert host.read(0, 1).status == 0
    host.close()


@pytest.mark.parametrize("descriptor", [False, True])
def test_request_sense_reports_and_takes_it(world, descriptor):
    host = Host(world, eat_attention=False)
    data = host.command(bytes([0x03, descriptor, 0, 0, 252, 0]), 252).data
    assert (data[1:4] if descriptor else bytes([data[2], *data[12:14]])) == b"\x06\x29\x00"
    assert attentions(host) == []
    host.close()


def test_each_nexus_is_told_of_a_reset(hosts):
    assert hosts[0].managed(hosts[0].manage(LUN_RESET)) == 0
    assert [attentions(host) for host in hosts] == [[LUN_RESET_DONE]] * 3
    assert hosts[0].managed(hosts[0].manage(WARM_RESET)) == 0
    assert [attentions(host) for host in hosts] == [[BUS_RESET]] * 3


@pytest.mark.parametrize("functions, expected", [
    ((LUN_RESET, LUN_RESET), [LUN_RESET_DONE]),
    ((LUN_RESET, WARM_RESET), [BUS_RESET]),
    ((WARM_RESET, LUN_RESET), [BUS_RESET]),
])
def test_the_stronger_reset_stands_for_the_weaker(hosts, functions, expected):
    for function in functions:
        assert hosts[0].managed(hosts[0].manage(function)) == 0
    assert attentions(hosts[1]) == expected


def test_resets_come_before_others_and_others_in_their_order(hosts):
    cleared_by(hosts)
    assert hosts[0].managed(hosts[0].manage(LUN_RESET)) == 0
    assert attentions(hosts[1]) == [LUN_RESET_DONE, RESERVATIONS_PREEMPTED]
    assert attentions(hosts[0]) == [LUN_RESET_DONE]


def test_the_same_is_not_queued_twice(hosts):
    for _ in range(3):
        assert out(hosts[1], REGISTER, 0, 7).status in (0, 2)
        attention_free = attentions(hosts[0])
        assert attention_free == []
        assert out(hosts[0], 6, 0, 9).status == 0
        assert out(hosts[0], CLEAR, 9).status == 0
    assert attentions(hosts[1]) == [RESERVATIONS_PREEMPTED]


def test_a_session_that_ends_takes_its_attentions_with_it(world, hosts):
    cleared_by(hosts)
    hosts[1].close()
    world.turn(5)
    again = Host(world, isid=bytes([0, 2, 61, 0, 0, 1]), eat_attention=False)
    assert attentions(again) == [POWER_ON]
    again.close()
    assert attentions(hosts[2]) == [RESERVATIONS_PREEMPTED]


def test_clear_task_set_tells_those_whose_tasks_ended(hosts):
    itt = hosts[1].begin(struct.pack(">BBIBHB", 0x2A, 0, 0, 0, 8, 0), flags=0x20, edtl=4096)
    hosts[1].pdu()                                          # R2T: the write waits for its data
    assert hosts[0].managed(hosts[0].manage(4)) == 0        # CLEAR TASK SET
    hosts[1].r2ts.pop(itt, None)
    found = attentions(hosts[1])
    assert found == [0x062F00] and attentions(hosts[2]) == []
