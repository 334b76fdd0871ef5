"""RESERVE, RELEASE and persistent reservations of a disk, over sessions of several initiators (SPC-2, SPC-4 5.13)."""
from __future__ import annotations

import struct

import pytest

from detour.core.crc32c import crc32c
from detour.core.disk import DiskHandle
from detour.core.reactor import Reactor
from detour.core.store import MemoryStore
from tests.support.pdu_client import Host, World, cdb_rw
from tests.support.reservations import (
    ALL_TG_PT,
    APTPL,
    CLEAR,
    CONFLICT,
    HARDWARE_FAILURE,
    INVALID_FIELD,
    INVALID_PARAMETER,
    INVALID_RELEASE,
    LIST_LENGTH,
    PREEMPT,
    PREEMPT_AND_ABORT,
    READ_FULL_STATUS,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REGISTER_AND_IGNORE,
    REGISTRATIONS_FULL,
    REGISTRATIONS_PREEMPTED,
    RELEASE,
    REPORT_CAPABILITIES,
    RESERVATIONS_PREEMPTED,
    RESERVATIONS_RELEASED,
    RESERVE,
    SPEC_I_PT,
    TYPES,
    attentions,
    full_status,
    generation,
    keys,
    listed,
    move,
    out,
    out_cdb,
    out_raw,
    parameters,
    read_in,
    reservation,
    transport_id,
)

EVENT_RESERVATIONS = 13
NAME = "iqn.2026-01.example:host"
RESERVE_6, RELEASE_6, RESERVE_10, RELEASE_10 = 0x16, 0x17, 0x56, 0x57
WRITE_TYPES, REGISTRANT_TYPES, ALL_TYPES = (1, 5, 7), (5, 6, 7, 8), (7, 8)


def isid_of(number: int) -> bytes:
    return bytes([0, 2, 61, 0, 0, number])


def host_of(world: World, number: int, **more) -> Host:
    return Host(world, name=f"{NAME}{number}", isid=isid_of(number), **more)


def id_of(number: int) -> bytes:
    return transport_id(f"{NAME}{number}", isid_of(number))


@pytest.fixture
def world():
    made = World()
    yield made
    made.close()


@pytest.fixture
def hosts(world):
    made = [host_of(world, number) for number in range(3)]
    yield made
    for host in made:
        host.close()


def register(host, key, **more):
    assert out(host, REGISTER, 0, key, **more).status == 0


def reserved(hosts, kind, registered=2):
    """Host 0 holds a reservation of this type with key 1; the first `registered` are registered with key number + 1."""
    for number in range(registered):
        register(hosts[number], number + 1)
    assert out(hosts[0], RESERVE, 1, kind=kind).status == 0


# --- registering

def test_registering_and_keys(hosts):
    assert (keys(hosts[0]), generation(hosts[0]), reservation(hosts[0])) == ([], 0, None)
    register(hosts[0], 0xA)
    register(hosts[1], 0xA)
    register(hosts[2], 0xB)
    assert keys(hosts[1]) == [0xA, 0xA, 0xB] and generation(hosts[2]) == 3
    assert out(hosts[1], REGISTER, 0xA, 0xC).status == 0
    assert keys(hosts[1]) == [0xA, 0xC, 0xB] and generation(hosts[2]) == 4
    assert out(hosts[0], REGISTER, 0xA, 0).status == 0
    assert keys(hosts[1]) == [0xC, 0xB]
    assert not any(attentions(host) for host in hosts)


def test_registering_with_a_wrong_key_conflicts(hosts):
    assert out(hosts[0], REGISTER, 5, 6).status == CONFLICT             # not registered: the key is 0
    register(hosts[0], 1)
    assert out(hosts[0], REGISTER, 0, 2).status == CONFLICT
    assert out(hosts[0], REGISTER, 2, 0).status == CONFLICT
    assert keys(hosts[0]) == [1] and generation(hosts[0]) == 1


def test_register_and_ignore_existing_key(hosts):
    assert out(hosts[0], REGISTER_AND_IGNORE, 99, 1).status == 0
    assert out(hosts[0], REGISTER_AND_IGNORE, 98, 2).status == 0
    assert keys(hosts[0]) == [2]
    assert out(hosts[0], REGISTER_AND_IGNORE, 97, 0).status == 0
    assert keys(hosts[0]) == []
    assert out(hosts[0], REGISTER_AND_IGNORE, 0, 0).status == 0
    assert out(hosts[0], REGISTER, 0, 0).status == 0


@pytest.mark.parametrize("action", [RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT])
def test_others_than_registering_need_a_registration_and_its_key(hosts, action):
    assert out(hosts[0], action, 0, 1, kind=1).status == CONFLICT
    register(hosts[0], 1)
    assert out(hosts[0], action, 2, 1, kind=1).status == CONFLICT
    assert move(hosts[0], 2, 1, id_of(1)).status == CONFLICT
    assert move(hosts[1], 0, 1, id_of(2)).status == CONFLICT
    assert keys(hosts[0]) == [1] and generation(hosts[0]) == 1


def test_a_registration_belongs_to_the_initiator_port(world, hosts):
    register(hosts[0], 1)
    hosts[0].close()
    world.turn(5)
    again, other = host_of(world, 0), Host(world, name=f"{NAME}0", isid=isid_of(9))
    assert out(again, RESERVE, 1, kind=1).status == 0
    assert out(other, RESERVE, 1, kind=1).status == CONFLICT and other.write(0, bytes(512)).status == CONFLICT
    assert again.write(0, bytes(512)).status == 0
    again.close()
    other.close()


def test_names_are_compared_without_case(world, hosts):
    assert listed(hosts[0], 0, 1, [transport_id(f"{NAME}1".upper().replace("IQN", "iqn"), isid_of(1))]).status == 0
    assert out(hosts[1], RESERVE, 1, kind=1).status == 0


def test_specified_initiator_ports(world, hosts):
    assert listed(hosts[0], 0, 7, [id_of(1), id_of(2)]).status == 0
    assert keys(hosts[0]) == [7, 7, 7]
    assert [(row.name[-1], row.isid) for row in full_status(hosts[0])] == [(str(n), isid_of(n)) for n in range(3)]
    assert out(hosts[2], RESERVE, 7, kind=1).status == 0
    for host in hosts:
        assert out(host, REGISTER, 7, 0).status == 0
    register(hosts[2], 5)
    assert listed(hosts[0], 0, 7, [id_of(1), id_of(2)]).sense == INVALID_PARAMETER          # one is registered: none is
    assert keys(hosts[0]) == [5]
    assert listed(hosts[0], 0, 7, [transport_id(f"{NAME}1", None)]).status == 0              # a device: its known ports
    assert [row.name[-1] for row in full_status(hosts[0])] == ["2", "0", "1"]
    assert listed(hosts[0], 7, 8, [id_of(4)]).sense == INVALID_FIELD                         # registered already
    assert listed(hosts[0], 1, 8, [id_of(4)]).status == CONFLICT


@pytest.mark.parametrize("spoiled", [
    id_of(4)[:-4], b"\x06" + id_of(4)[1:], b"\x85" + id_of(4)[1:], transport_id("", isid_of(1)),
    transport_id(NAME, None).replace(b"\x05", b"\x45", 1), id_of(4).replace(b",i,0x", b",t,0x"),
    id_of(4).replace(b",i,0x", b",i,0g"), b"\x45\0\0\x14" + b"a" * 20, b"\x45\0\0\x10" + b"a" * 16, b"\x45",
    transport_id("a" * 224, isid_of(1)), transport_id(NAME, bytes(7)),
])
def test_spoiled_transport_ids(hosts, spoiled):
    assert listed(hosts[0], 0, 7, [id_of(1), spoiled]).sense in (INVALID_PARAMETER, LIST_LENGTH)
    assert keys(hosts[0]) == [] and generation(hosts[0]) == 0


def test_the_number_of_registrations_is_bounded(hosts):
    many = [transport_id(f"{NAME}x{number:03}", isid_of(1)) for number in range(127)]
    assert listed(hosts[0], 0, 1, many).status == 0
    assert len(keys(hosts[0])) == 128
    assert out(hosts[1], REGISTER, 0, 2).sense == REGISTRATIONS_FULL
    assert len(full_status(hosts[0])) == 128
    assert out(hosts[0], RESERVE, 1, kind=1).status == 0
    assert move(hosts[0], 1, 3, id_of(2)).sense == REGISTRATIONS_FULL
    assert out(hosts[0], REGISTER, 1, 0).status == 0
    assert out(hosts[1], REGISTER, 0, 2).status == 0
    assert listed(hosts[0], 0, 1, [id_of(7)]).sense == REGISTRATIONS_FULL and len(keys(hosts[0])) == 128


# --- parameter lists

@pytest.mark.parametrize("action", range(7))
def test_wrong_list_lengths(hosts, action):
    register(hosts[0], 1)
    whole = parameters(1, 1)
    for length in (0, 8, 23, 25, 32):
        assert out_raw(hosts[0], action, whole.ljust(32, b"\0")[:length], kind=1).sense == LIST_LENGTH
    assert hosts[0].command_out(out_cdb(action, 24), whole[:16]).sense == LIST_LENGTH         # less came than was told
    assert keys(hosts[0]) == [1]


def test_wrong_lengths_of_lists_with_transport_ids(hosts):
    one = id_of(1)
    for told in (0, len(one) - 4, len(one) + 4, 0xFFFFFFFF):
        assert out(hosts[0], REGISTER, 0, 1, flags=SPEC_I_PT,
                   more=struct.pack(">I", told) + one).sense == LIST_LENGTH
    assert out(hosts[0], REGISTER, 0, 1, flags=SPEC_I_PT).sense == LIST_LENGTH
    register(hosts[0], 1)
    assert out(hosts[0], RESERVE, 1, kind=1).status == 0
    for told in (0, len(one) - 4, len(one) + 4):
        assert out_raw(hosts[0], 7, struct.pack(">QQBBHI", 1, 2, 0, 0, 1, told) + one).sense == LIST_LENGTH
    assert keys(hosts[0]) == [1]


@pytest.mark.parametrize("action", [RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE])
def test_specified_ports_are_for_register_alone(hosts, action):
    register(hosts[0], 1)
    more = struct.pack(">I", len(id_of(1))) + id_of(1)
    assert out(hosts[0], action, 1, 1, kind=1, flags=SPEC_I_PT, more=more).sense == INVALID_PARAMETER


def test_unknown_service_actions(hosts):
    for action in range(8, 32):
        assert out(hosts[0], action).sense == INVALID_FIELD
        assert read_in(hosts[0], action - 4).sense == INVALID_FIELD


@pytest.mark.parametrize("kind, scope", [(0, 0), (2, 0), (4, 0), (9, 0), (15, 0), (1, 1), (1, 15)])
def test_types_and_scopes_that_are_none(hosts, kind, scope):
    register(hosts[0], 1)
    assert out(hosts[0], RESERVE, 1, kind=kind, scope=scope).sense == INVALID_FIELD
    assert out(hosts[0], RESERVE, 1, kind=1).status == 0
    assert out(hosts[0], PREEMPT, 1, 1, kind=kind, scope=scope).sense == INVALID_FIELD
    assert out(hosts[0], RELEASE, 1, kind=kind, scope=scope).sense == INVALID_RELEASE
    assert reservation(hosts[0]) == (1, 1)


# --- what is read

def test_answers_are_cut_and_tell_their_whole_length(hosts):
    reserved(hosts, 5, 3)
    for action in (READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS):
        whole = read_in(hosts[0], action, 4096).data
        for length in (0, 1, 8, 13, len(whole) - 1):
            assert read_in(hosts[1], action, length).data == whole[:length]


@pytest.mark.parametrize("durable", [False, True])
def test_capabilities(durable):
    world = World(durable=durable)
    host = Host(world)
    data = read_in(host, REPORT_CAPABILITIES).data
    assert data == bytes([0, 8, 0x1D if durable else 0x1C, 0x80, 0xEA, 0x01, 0, 0])
    host.close()
    world.close()


@pytest.mark.parametrize("kind", TYPES)
def test_full_status(hosts, kind):
    register(hosts[1], 2, flags=ALL_TG_PT)
    register(hosts[0], 1)
    assert out(hosts[0], RESERVE, 1, kind=kind).status == 0
    other, holder = full_status(hosts[2])
    assert holder.holder and (holder.key, holder.kind, holder.port, holder.all_ports) == (1, kind, 1, False)
    assert (holder.name, holder.isid) == (f"{NAME}0", isid_of(0))
    assert (other.key, other.port, other.all_ports) == (2, 1, True)
    assert (other.holder, other.kind) == ((True, kind) if kind in ALL_TYPES else (False, 0))
    assert reservation(hosts[2]) == (0 if kind in ALL_TYPES else 1, kind)


# --- who may do what

def reads(host):
    return [host.read(0, 1).status, host.read(0, 1, opcode=0x28).status,
            host.command(cdb_rw(0x8F, 0, 1)).status, host.command(cdb_rw(0x90, 0, 1)).status,
            host.command(struct.pack(">BBQIBB", 0x9E, 0x12, 0, 32, 0, 0), 32).status,
            host.command(bytes([0x1A, 8, 8, 0, 64, 0]), 64).status]


def writes(host):
    return [host.write(0, bytes(512)).status, host.write(0, bytes(512), opcode=0x2A).status,
            host.command(cdb_rw(0x91, 0, 0)).status, host.write(0, bytes(512), opcode=0x93).status,
            host.command_out(struct.pack(">BBIBHB", 0x42, 0, 0, 0, 8, 0), struct.pack(">HHI", 6, 0, 0)).status,
            host.command(bytes([0x1B, 0, 0, 0, 0, 0])).status, host.command(bytes([0x1B, 0, 0, 0, 1, 0])).status,
            host.command(bytes([0x1E, 0, 0, 0, 1, 0])).status, host.command(bytes([0x1E, 0, 0, 0, 0, 0])).status]


def always(host):
    return [host.command(bytes(6)).status, host.command(bytes([0x12, 0, 0, 0, 36, 0]), 36).status,
            host.command(bytes([0x03, 0, 0, 0, 18, 0]), 18).status, host.command(bytes([0x25]) + bytes(9), 8).status,
            host.command(struct.pack(">BBQIBB", 0x9E, 0x10, 0, 32, 0, 0), 32).status,
            host.command(struct.pack(">BBB3xIBB", 0xA0, 0, 0, 64, 0, 0), 64).status,
            host.command(bytes([0x4D, 0, 0x40, 0, 0, 0, 0, 0, 64, 0]), 64).status, read_in(host, READ_KEYS).status]


ALL_GOOD_WRITES = [0] * 9
NO_WRITES = [CONFLICT] * 6 + [0, CONFLICT, 0]                   # START and ALLOW pass


@pytest.mark.parametrize("kind", TYPES)
def test_what_each_type_allows(hosts, kind):
    reserved(hosts, kind)
    holder, registrant, other = hosts
    assert always(other) == always(registrant) == always(holder) == [0] * 8
    assert set(reads(holder)) == {0} and writes(holder) == ALL_GOOD_WRITES
    shared = kind in REGISTRANT_TYPES
    assert set(reads(registrant)) == ({0} if shared or kind in WRITE_TYPES else {CONFLICT})
    assert writes(registrant) == (ALL_GOOD_WRITES if shared else NO_WRITES)
    assert set(reads(other)) == ({0} if kind in WRITE_TYPES else {CONFLICT})
    assert writes(other) == NO_WRITES


def test_a_registration_alone_restricts_nobody(hosts):
    register(hosts[0], 1)
    assert set(reads(hosts[1])) == {0} and writes(hosts[1]) == ALL_GOOD_WRITES


def test_an_attention_is_told_before_a_conflict(hosts):
    reserved(hosts, 5, 3)
    assert out(hosts[0], RELEASE, 1, kind=5).status == 0
    assert out(hosts[0], CLEAR, 1).status == 0
    register(hosts[0], 1)
    assert out(hosts[0], RESERVE, 1, kind=3).status == 0
    assert [hosts[1].read(0, 1).sense for _ in range(2)] == [RESERVATIONS_RELEASED, RESERVATIONS_PREEMPTED]
    assert hosts[1].read(0, 1).status == CONFLICT


# --- reserving and releasing

@pytest.mark.parametrize("kind", TYPES)
def test_reserving(hosts, kind):
    reserved(hosts, kind)
    before = generation(hosts[0])
    assert out(hosts[0], RESERVE, 1, kind=kind).status == 0
    assert out(hosts[1], RESERVE, 2, kind=kind).status == (0 if kind in ALL_TYPES else CONFLICT)
    for other in set(TYPES) - {kind}:
        assert out(hosts[0], RESERVE, 1, kind=other).status == CONFLICT
        assert out(hosts[1], RESERVE, 2, kind=other).status == CONFLICT
    assert out(hosts[2], RESERVE, 0, kind=kind).status == CONFLICT
    assert generation(hosts[0]) == before and reservation(hosts[0])[1] == kind


@pytest.mark.parametrize("kind", TYPES)
def test_releasing(hosts, kind):
    reserved(hosts, kind)
    before = generation(hosts[0])
    assert out(hosts[2], RELEASE, 0, kind=kind).status == CONFLICT
    if kind not in ALL_TYPES:
        assert out(hosts[1], RELEASE, 2, kind=kind).status == 0           # not the holder: nothing happens
        assert reservation(hosts[0]) == (1, kind)
    assert out(hosts[0], RELEASE, 1, kind=next(other for other in TYPES if other != kind)).sense == INVALID_RELEASE
    releaser, told = (1, 0) if kind in ALL_TYPES else (0, 1)
    assert out(hosts[releaser], RELEASE, releaser + 1, kind=kind).status == 0
    assert reservation(hosts[releaser]) is None and keys(hosts[releaser]) == [1, 2]
    assert generation(hosts[releaser]) == before
    assert attentions(hosts[told]) == ([RESERVATIONS_RELEASED] if kind in REGISTRANT_TYPES else [])
    assert attentions(hosts[releaser]) == attentions(hosts[2]) == []
    assert hosts[2].write(0, bytes(512)).status == 0


@pytest.mark.parametrize("kind", TYPES)
def test_the_holder_unregisters(hosts, kind):
    reserved(hosts, kind)
    assert out(hosts[0], REGISTER, 1, 0).status == 0
    assert reservation(hosts[2]) == ((0, kind) if kind in ALL_TYPES else None)
    assert attentions(hosts[1]) == ([RESERVATIONS_RELEASED] if kind in (5, 6) else [])
    assert out(hosts[1], REGISTER, 2, 0).status == 0
    assert reservation(hosts[2]) is None and keys(hosts[0]) == []
    assert not any(attentions(host) for host in hosts)


@pytest.mark.parametrize("kind", TYPES)
def test_clearing(hosts, kind):
    reserved(hosts, kind, 3)
    assert out(hosts[1], CLEAR, 2).status == 0
    assert attentions(hosts[0]) == attentions(hosts[2]) == [RESERVATIONS_PREEMPTED] and attentions(hosts[1]) == []
    assert keys(hosts[0]) == [] and reservation(hosts[0]) is None and generation(hosts[0]) == 4


# --- preempting

@pytest.mark.parametrize("kind", [1, 3, 5, 6])
@pytest.mark.parametrize("new_kind", [1, 8])
def test_preempting_the_holder(hosts, kind, new_kind):
    reserved(hosts, kind, 3)
    assert out(hosts[1], PREEMPT, 2, 1, kind=new_kind).status == 0
    assert attentions(hosts[0]) == [REGISTRATIONS_PREEMPTED] and attentions(hosts[1]) == []
    assert attentions(hosts[2]) == ([RESERVATIONS_RELEASED] if kind != new_kind else [])
    assert keys(hosts[2]) == [2, 3] and reservation(hosts[2]) == (0 if new_kind == 8 else 2, new_kind)
    assert hosts[0].write(0, bytes(512)).status == CONFLICT and hosts[1].write(0, bytes(512)).status == 0


@pytest.mark.parametrize("kind", ALL_TYPES)
def test_preempting_all_registrants_by_key_zero(hosts, kind):
    reserved(hosts, kind, 3)
    assert out(hosts[1], PREEMPT, 2, 0, kind=1).status == 0
    assert attentions(hosts[0]) == attentions(hosts[2]) == [REGISTRATIONS_PREEMPTED]
    assert keys(hosts[1]) == [2] and reservation(hosts[1]) == (2, 1)


@pytest.mark.parametrize("kind", ALL_TYPES)
def test_preempting_registrants_of_all_registrants(hosts, kind):
    reserved(hosts, kind, 3)
    assert out(hosts[1], PREEMPT, 2, 3, kind=1).status == 0
    assert keys(hosts[1]) == [1, 2] and reservation(hosts[1]) == (0, kind)
    assert attentions(hosts[2]) == [REGISTRATIONS_PREEMPTED] and attentions(hosts[0]) == []
    assert out(hosts[1], REGISTER, 2, 1).status == 0
    assert out(hosts[1], PREEMPT, 1, 1, kind=1).status == 0              # all of them, with the sender: nothing is left
    assert keys(hosts[1]) == [] and reservation(hosts[1]) is None
    assert attentions(hosts[0]) == [REGISTRATIONS_PREEMPTED] and attentions(hosts[1]) == []


def test_preempting_registrations(hosts):
    reserved(hosts, 5, 3)
    assert out(hosts[1], PREEMPT, 2, 3, kind=15, scope=15).status == 0   # type and scope do not count here
    assert attentions(hosts[2]) == [REGISTRATIONS_PREEMPTED] and attentions(hosts[0]) == []
    assert keys(hosts[0]) == [1, 2] and reservation(hosts[0]) == (1, 5)
    assert out(hosts[1], PREEMPT, 2, 99, kind=1).status == CONFLICT
    assert out(hosts[1], PREEMPT, 2, 0, kind=1).sense == INVALID_PARAMETER
    assert out(hosts[1], PREEMPT, 2, 2, kind=1).status == 0              # oneself
    assert keys(hosts[0]) == [1] and attentions(hosts[1]) == []


def test_preempting_without_a_reservation(hosts):
    for number in range(3):
        register(hosts[number], number + 1)
    assert out(hosts[0], PREEMPT, 1, 2, kind=1).status == 0
    assert keys(hosts[0]) == [1, 3] and reservation(hosts[0]) is None
    assert attentions(hosts[1]) == [REGISTRATIONS_PREEMPTED]
    assert out(hosts[0], PREEMPT, 1, 0, kind=1).sense == INVALID_PARAMETER


def test_the_holder_changes_its_type_by_preempting_itself(hosts):
    reserved(hosts, 1, 3)
    assert out(hosts[0], PREEMPT, 1, 1, kind=6).status == 0
    assert reservation(hosts[0]) == (1, 6) and keys(hosts[0]) == [1, 2, 3]
    assert attentions(hosts[1]) == attentions(hosts[2]) == [RESERVATIONS_RELEASED] and attentions(hosts[0]) == []


def test_preempt_and_abort(world, hosts):
    reserved(hosts, 5, 3)
    itt = hosts[0].begin(cdb_rw(0x2A, 0, 8), flags=0x20, edtl=4096)
    assert hosts[0].pdu().itt == itt                                     # R2T: the write waits for its data
    kept = hosts[2].begin(cdb_rw(0x2A, 8, 8), flags=0x20, edtl=4096)
    r2t = hosts[2].pdu()
    hosts[0].r2ts.clear()
    assert out(hosts[1], PREEMPT_AND_ABORT, 2, 1, kind=5).status == 0
    assert attentions(hosts[0]) == [REGISTRATIONS_PREEMPTED]             # and no answer to the write
    hosts[2].sequence(kept, bytes(4096), 0, 4096, r2t.word(20))
    assert hosts[2].finish(kept, 4096).status == 0                       # not preempted: goes on
    assert reservation(hosts[1]) == (2, 5) and keys(hosts[1]) == [2, 3]


# --- moving

def test_register_and_move(world, hosts):
    reserved(hosts, 3)
    before = generation(hosts[0])
    assert move(hosts[0], 1, 9, id_of(1)).status == 0
    assert keys(hosts[0]) == [1, 9] and reservation(hosts[0]) == (9, 3) and generation(hosts[0]) == before + 1
    assert hosts[0].read(0, 1).status == CONFLICT and hosts[1].read(0, 1).status == 0
    assert move(hosts[1], 9, 4, id_of(7), unregister=True).status == 0   # to one that has no session
    assert keys(hosts[0]) == [1, 4] and hosts[1].read(0, 1).status == CONFLICT
    late = host_of(world, 7)
    assert late.read(0, 1).status == 0
    late.close()
    assert not any(attentions(host) for host in hosts)


def test_moves_that_are_refused(hosts):
    register(hosts[0], 1)
    assert move(hosts[0], 1, 9, id_of(1)).sense == INVALID_FIELD         # there is nothing to move
    register(hosts[1], 2)
    assert out(hosts[0], RESERVE, 1, kind=5).status == 0
    assert move(hosts[1], 2, 9, id_of(2)).status == CONFLICT
    for action_key, to, port in ((0, id_of(2), 1), (9, id_of(0), 1), (9, id_of(2), 2), (9, id_of(2), 0),
                                 (9, transport_id(f"{NAME}2", None), 1), (9, b"\x06" + id_of(2)[1:], 1),
                                 (9, id_of(1) + id_of(2), 1)):
        assert move(hosts[0], 1, action_key, to, port=port).sense == INVALID_PARAMETER
    assert move(hosts[0], 1, 9, id_of(2), aptpl=True).sense == INVALID_PARAMETER
    assert out(hosts[0], RELEASE, 1, kind=5).status == 0
    assert out(hosts[0], RESERVE, 1, kind=7).status == 0
    assert attentions(hosts[1]) == [RESERVATIONS_RELEASED]
    assert move(hosts[0], 1, 9, id_of(2)).status == CONFLICT
    assert keys(hosts[0]) == [1, 2]


# --- RESERVE and RELEASE

def legacy(host, opcode, flags=0):
    return host.command(bytes([opcode, flags]) + bytes(4 if opcode < 0x20 else 8))


@pytest.mark.parametrize("reserve, release",
                         [(RESERVE_6, RELEASE_6), (RESERVE_10, RELEASE_10), (RESERVE_6, RELEASE_10)])
def test_reserve_and_release(hosts, reserve, release):
    assert legacy(hosts[0], release).status == legacy(hosts[0], reserve).status == legacy(hosts[0], reserve).status == 0
    assert legacy(hosts[1], reserve).status == CONFLICT and legacy(hosts[1], release).status == 0
    assert set(reads(hosts[1])) == {CONFLICT} and writes(hosts[1]) == NO_WRITES
    assert always(hosts[1]) == [CONFLICT, 0, 0, 0, 0, 0, 0, CONFLICT]
    assert set(reads(hosts[0])) == {0} and writes(hosts[0]) == ALL_GOOD_WRITES
    assert read_in(hosts[0], READ_KEYS).status == out(hosts[0], REGISTER, 0, 1).status == CONFLICT
    assert legacy(hosts[0], release).status == 0
    assert writes(hosts[1]) == ALL_GOOD_WRITES and legacy(hosts[1], reserve).status == 0
    assert legacy(hosts[1], release).status == 0


@pytest.mark.parametrize("opcode", [RESERVE_6, RELEASE_6, RESERVE_10, RELEASE_10])
def test_third_parties_and_extents_are_refused(hosts, opcode):
    for flags in (0x10, 0x01, *([0x02] if opcode > 0x20 else [])):
        assert legacy(hosts[0], opcode, flags).sense == INVALID_FIELD


@pytest.mark.parametrize("how", ["logout", "close", "lun reset", "target reset"])
def test_what_ends_a_reserve(world, hosts, how):
    assert legacy(hosts[0], RESERVE_6).status == 0 and hosts[1].read(0, 1).status == CONFLICT
    if how == "close":
        hosts[0].close()
    elif how == "logout":
        hosts[0].request(6, 0x80, immediate=True)
        hosts[0].pdu()
    else:
        assert hosts[1].managed(hosts[1].manage(5 if how == "lun reset" else 6)) == 0
        attentions(hosts[1])
    world.turn(5)
    assert hosts[1].read(0, 1).status == 0


@pytest.mark.parametrize("kind", TYPES)
def test_reserve_beside_persistent_reservations(hosts, kind):
    register(hosts[0], 1)
    for host in hosts:
        assert legacy(host, RESERVE_6).status == legacy(host, RELEASE_10).status == CONFLICT
    register(hosts[1], 2)
    assert out(hosts[0], RESERVE, 1, kind=kind).status == 0
    registrant = 0 if kind in REGISTRANT_TYPES else CONFLICT
    assert [legacy(host, RESERVE_6).status for host in hosts] == [0, registrant, CONFLICT]
    assert [legacy(host, RELEASE_6).status for host in hosts] == [0, registrant, CONFLICT]
    assert reservation(hosts[0])[1] == kind and set(reads(hosts[0])) == {0}


@pytest.mark.parametrize("function", [5, 6])
def test_resets_leave_persistent_reservations(hosts, function):
    reserved(hosts, 3)
    assert hosts[2].managed(hosts[2].manage(function)) == 0
    for host in hosts:
        attentions(host)
    assert keys(hosts[0]) == [1, 2] and reservation(hosts[0]) == (1, 3) and hosts[1].read(0, 1).status == CONFLICT


# --- what outlives power

@pytest.fixture
def durable_world():
    made = World(durable=True, device_id=55)
    yield made
    made.close()


def stored(world, itt, host, status=0):
    """Answers the one event that is there; the host's result, and the dump."""
    assert host.nothing_comes()                                          # pumps what the host has to send
    (event,) = [event for event in world.events if event[0] == EVENT_RESERVATIONS]
    world.events.clear()
    assert event[1] == 55
    assert world.ask(world.disk.reservations_stored(status)) == 0
    return host.finish(itt), event[3]


def begin_out(host, action, key, action_key, kind=0, flags=0):
    data = parameters(key, action_key, flags)
    return host.begin(out_cdb(action, 24, kind), flags=0x20, edtl=24, data=data)


def test_without_a_keeper_nothing_outlives_power(hosts):
    assert out(hosts[0], REGISTER, 0, 1, flags=APTPL).sense == INVALID_PARAMETER
    assert out(hosts[0], REGISTER_AND_IGNORE, 0, 1, flags=APTPL).sense == INVALID_PARAMETER
    assert keys(hosts[0]) == []


def test_a_change_is_answered_when_it_is_stored(durable_world):
    world = durable_world
    host, other = host_of(world, 0), host_of(world, 1)
    register(other, 2)                                                   # APTPL 0: nothing is stored
    assert not world.events
    itt = begin_out(host, REGISTER, 0, 1, flags=APTPL)
    assert host.nothing_comes()
    assert keys(other) == [2]                                            # until then the old state counts
    waits = begin_out(other, REGISTER, 2, 3, flags=APTPL)                # comes behind it
    result, dump = stored(world, itt, host)
    assert result.status == 0 and len(dump) == 32 + 2 * 240
    assert keys(host) == [2, 1] and read_in(host, REPORT_CAPABILITIES).data[3] == 0x81
    result, dump = stored(world, waits, other)
    assert result.status == 0 and keys(host) == [3, 1]
    assert out(host, RESERVE, 9, kind=5).status == CONFLICT              # what changes nothing needs no storing
    itt = begin_out(host, RESERVE, 1, 0, kind=5)
    assert stored(world, itt, host)[0].status == 0 and other.write(0, bytes(512)).status == 0
    assert out(host, RESERVE, 1, kind=5).status == 0
    itt = begin_out(host, CLEAR, 1, 0)
    assert host.nothing_comes()
    assert attentions(other) == []                                       # told when it has happened
    assert stored(world, itt, host)[0].status == 0 and attentions(other) == [RESERVATIONS_PREEMPTED]
    host.close()
    other.close()


def test_a_change_that_is_not_stored_leaves_no_trace(durable_world):
    world = durable_world
    host, other = host_of(world, 0), host_of(world, 1)
    itt = begin_out(host, REGISTER, 0, 1, flags=APTPL)
    assert stored(world, itt, host)[0].status == 0
    register_other = begin_out(other, REGISTER, 0, 2, flags=APTPL)
    assert stored(world, register_other, other, status=-2)[0].sense == HARDWARE_FAILURE
    before = generation(host)
    itt = begin_out(host, CLEAR, 1, 0)
    assert stored(world, itt, host, status=-4)[0].sense == HARDWARE_FAILURE
    assert keys(host) == [1] and generation(host) == before and attentions(other) == []
    assert world.ask(world.disk.reservations_stored(0)) == -15            # no one waits
    host.close()
    other.close()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_host_that_goes_while_its_change_is_stored(durable_world, how):
    world = durable_world
    host, other = host_of(world, 0), host_of(world, 1)
    begin_out(host, REGISTER, 0, 1, flags=APTPL)
    assert host.nothing_comes()
    waits = begin_out(other, REGISTER, 0, 2, flags=APTPL)
    assert other.nothing_comes()
    if how == "close":
        host.close()
    else:
        asked = host.manage(5)                                           # LUN RESET: waits for what it aborts
        assert host.nothing_comes()
    world.turn(5)
    assert world.ask(world.disk.reservations_stored(0)) == 0
    world.turn(5)
    assert len([event for event in world.events if event[0] == EVENT_RESERVATIONS]) == 2
    assert world.ask(world.disk.reservations_stored(0)) == 0
    if how == "close":
        assert other.finish(waits).status == 0 and keys(other) == [1, 2]
    else:
        assert host.managed(asked) == 0
        assert attentions(other) == [0x062903] and keys(other) == [1, 2]     # aborted: stored, and not answered
    host.close()
    other.close()
    assert world.quiet()


def test_taking_aptpl_back_is_stored_too(durable_world):
    world = durable_world
    host = host_of(world, 0)
    itt = begin_out(host, REGISTER, 0, 1, flags=APTPL)
    _, kept = stored(world, itt, host)
    itt = begin_out(host, REGISTER, 1, 2, flags=0)
    result, dump = stored(world, itt, host)
    assert result.status == 0 and read_in(host, REPORT_CAPABILITIES).data[3] == 0x80
    host.close()
    for content, expected in ((kept, [1]), (dump, [])):
        later = World(durable=True, device_id=55, reservations=content)
        host = host_of(later, 0)
        assert keys(host) == expected and generation(host) == 0
        host.close()
        later.close()


@pytest.mark.parametrize("kind", TYPES)
def test_what_was_kept_holds_after_a_restart(durable_world, kind):
    world = durable_world
    hosts = [host_of(world, number) for number in range(2)]
    for number, host in enumerate(hosts):
        itt = begin_out(host, REGISTER, 0, number + 1, flags=APTPL | (ALL_TG_PT if number else 0))
        stored(world, itt, host)
    itt = begin_out(hosts[1], RESERVE, 2, 0, kind=kind)
    _, kept = stored(world, itt, hosts[1])
    status = full_status(hosts[0])
    for host in hosts:
        host.close()
    later = World(durable=True, reservations=kept)
    hosts = [host_of(later, number) for number in range(3)]
    assert full_status(hosts[0]) == status and reservation(hosts[0])[1] == kind
    assert hosts[1].write(0, bytes(512)).status == 0 and hosts[2].write(0, bytes(512)).status == CONFLICT
    assert hosts[0].write(0, bytes(512)).status == (0 if kind in REGISTRANT_TYPES else CONFLICT)
    for host in hosts:
        host.close()
    later.close()


def sealed(body: bytes) -> bytes:
    """A dump with the right checksum."""
    return body[:8] + struct.pack("<I", crc32c(body[12:])) + body[12:]


def test_damaged_dumps_are_refused(durable_world):
    world = durable_world
    host = host_of(world, 0)
    itt = begin_out(host, REGISTER, 0, 1, flags=APTPL)
    _, kept = stored(world, itt, host)
    host.close()
    reactor = Reactor()
    store = MemoryStore(reactor, 1 << 20)

    def refused(content):
        with pytest.raises(ValueError):
            DiskHandle(reactor, store, durable=True, reservations=content)

    DiskHandle(reactor, store, durable=True, reservations=sealed(kept))
    for at in range(0, len(kept), 7):
        refused(kept[:at] + bytes([kept[at] ^ 0x10]) + kept[at + 1:])
    refused(kept[:31])
    refused(sealed(kept[:-1]))
    refused(sealed(kept + bytes(240)))
    head = struct.Struct("<8sIIIIiI")
    magic, crc, version, flags, kind, holder, count = head.unpack_from(kept)
    for wrong in ((2, flags, kind, holder, count), (version, flags, 1, -1, count), (version, flags, 1, 1, count),
                  (version, flags, 2, 0, count), (version, flags, 7, 0, count), (version, flags, 0, 0, count),
                  (version, flags, 257, 0, count), (version, flags, kind, holder, 2),
                  (version, flags, kind, holder, 129)):
        refused(sealed(head.pack(magic, crc, *wrong) + kept[32:]))
    row = kept[32:]
    refused(sealed(kept[:32] + bytes(8) + row[8:]))                       # key 0
    refused(sealed(kept[:32] + row[:16] + bytes(224)))                    # no name
    refused(sealed(kept[:32] + row[:16] + b"a" * 224))                    # a name without end
    refused(sealed(head.pack(magic, crc, version, flags, kind, holder, 2) + row + row))
