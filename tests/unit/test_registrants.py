"""Registrations as data: TransportIDs, READ FULL STATUS of another disk, dumps, bounds; the nexus table's bounds."""
from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detour.core._testing_reservation import Bench, transport_id
from tests.support import reservations as wire
from tests.support.reservations import APTPL, CONFLICT, TYPES, out_cdb, parameters

LOGIN, LOGOUT, LUN_RESET = 1, 2, 3
E_PROTOCOL, E_FULL, E_CORRUPT = -5, -4, -12
NAME = "iqn.2026-01.example:h"
FULL_STATUS, KEYS, RESERVATION = (struct.pack(">BBIBHB", 0x5E, action, 0, 0, 65535, 0) for action in (3, 0, 1))


def bench_of(count: int, durable: bool = False) -> Bench:
    made = Bench([(f"{NAME}{number}", bytes([0, 2, 61, 0, 0, number])) for number in range(count)], durable)
    assert made.login_all() == count
    return made


def order(bench: Bench, number: int, action: int, key: int, action_key: int = 0, kind: int = 0, flags: int = 0):
    return bench.command(number, out_cdb(action, 24, kind), parameters(key, action_key, flags))


def status_of(bench: Bench) -> bytes:
    return bench.command(0, FULL_STATUS)[2]


def reserved(kind: int, count: int = 3) -> Bench:
    bench = bench_of(count)
    for number in range(count):
        assert order(bench, number, wire.REGISTER, 0, 0x10 + number, flags=4 if number == 1 else 0)[0] == 0
    assert order(bench, 1, wire.RESERVE, 0x11, kind=kind)[0] == 0
    return bench


# --- TransportIDs

@pytest.mark.parametrize("name", ["iqn.a", NAME, "a" * 223])
def test_transport_ids(name):
    isid = bytes.fromhex("80ab00cd0012")
    port, device = wire.transport_id(name, isid), wire.transport_id(name, None)
    assert transport_id(port) == (len(port), name, isid)
    assert transport_id(device) == (len(device), name, None)
    assert transport_id(port + b"rest") == (len(port), name, isid)
    for cut in range(len(port)):
        assert transport_id(port[:cut]) is None
    assert transport_id(b"\0\0\0\x14" + b"a" * 20) is None          # another protocol


def test_an_isid_may_be_written_short():
    text = b"iqn.example:a-name,i,0x23d\0"
    assert transport_id(struct.pack(">BBH", 0x45, 0, 28) + text.ljust(28, b"\0")) \
        == (32, "iqn.example:a-name", bytes.fromhex("00000000023d"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_as_a_transport_id(data, plausible):
    if plausible:
        data = struct.pack(">BBH", 0x45, 0, len(data) & ~3) + data
    found = transport_id(data)
    assert found is None or (24 <= found[0] <= len(data) and found[1])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 9), st.binary(max_size=120), st.integers(0, 130), st.integers(0, 255))
def test_any_bytes_as_a_parameter_list(action, data, length, scope_type):
    bench = reserved(5)
    cdb = struct.pack(">BBBBBIB", 0x5F, action, scope_type, 0, 0, length, 0)
    before = status_of(bench)
    status, sense, *_ = bench.command(0, cdb, data)
    assert status in (0, CONFLICT) and sense in (0, 0x051A00, 0x052400, 0x052600)
    if status or sense:
        assert status_of(bench) == before


# --- taken over from another disk

@pytest.mark.parametrize("kind", TYPES)
def test_full_status_of_another_disk_is_taken_over(kind):
    bench, other = reserved(kind), bench_of(4)
    data = status_of(bench)
    assert other.load_status(data) == 0 and status_of(other) == data
    assert [other.command(0, cdb)[2] for cdb in (KEYS, RESERVATION)] == \
        [bench.command(0, cdb)[2] for cdb in (KEYS, RESERVATION)]
    assert [other.admit(number, b"\x0a".ljust(6, b"\0"))[0] for number in range(4)] \
        == ([CONFLICT, 0, CONFLICT, CONFLICT] if kind in (1, 3) else [0, 0, 0, CONFLICT])


def test_full_status_without_a_reservation():
    bench, other = bench_of(2), reserved(3)
    assert other.load_status(status_of(bench)) == 0 and not other.restricting
    assert order(bench, 1, wire.REGISTER, 0, 5)[0] == 0
    assert other.load_status(status_of(bench)) == 0 and not other.restricting and status_of(other) == status_of(bench)


def test_ports_of_other_transports_are_left_out():
    data = status_of(reserved(1))
    sas = struct.pack(">Q4xBB4xHI", 9, 0, 0, 2, 24) + b"\x06" + bytes(23)
    more = data[:4] + struct.pack(">I", len(data) - 8 + len(sas)) + data[8:] + sas
    other = bench_of(1)
    assert other.load_status(more) == 0 and status_of(other) == data


def test_full_status_that_makes_no_sense():
    data = status_of(reserved(1))
    other = bench_of(1)
    for cut in (0, 7, 8, 20, len(data) - 1):
        assert other.load_status(data[:cut]) == E_PROTOCOL
    assert other.load_status(data[:4] + struct.pack(">I", 20) + data[8:]) == E_PROTOCOL
    assert other.load_status(data[:8] + bytes(8) + data[16:]) == E_PROTOCOL                  # key 0
    assert other.load_status(data[:28] + b"\xff\xff\xff\xff" + data[32:]) == E_PROTOCOL      # a length beyond the end
    holder = data.index(b"\x03\x01", 8)            # R_HOLDER, ALL_TG_PT; type 1
    assert other.load_status(data[:holder + 1] + b"\x02" + data[holder + 2:]) == E_PROTOCOL  # a type that is none
    rows = b"".join(struct.pack(">Q4xBB4xHI", 9, 0, 0, 1, len(one)) + one
                    for one in (wire.transport_id(f"{NAME}{number:03}", bytes(6)) for number in range(129)))
    assert other.load_status(struct.pack(">II", 0, len(rows)) + rows) == E_FULL
    assert status_of(other) == bytes(8)


def test_any_flipped_byte_of_a_dump_is_found():
    bench = bench_of(3, durable=True)
    for number in range(3):
        assert order(bench, number, wire.REGISTER, 0, 1, flags=APTPL)[3] and not bench.commit()
    dump, other = bench.dump(), bench_of(3, durable=True)
    dice = random.Random(5)
    for _ in range(200):
        at = dice.randrange(len(dump))
        assert other.load(dump[:at] + bytes([dump[at] ^ dice.randrange(1, 256)]) + dump[at + 1:]) == E_CORRUPT
        assert status_of(other) == bytes(8)
    assert other.load(dump) == 0 and status_of(other)[4:] == status_of(bench)[4:]


def test_an_uncommitted_change_is_what_is_dumped():
    bench = bench_of(2, durable=True)
    assert order(bench, 0, wire.REGISTER, 0, 7, flags=APTPL)[3]
    assert len(bench.dump()) == 32 + 240 and status_of(bench) == bytes(8)
    bench.revert()
    assert len(bench.dump()) == 32 and order(bench, 0, wire.REGISTER, 0, 8, flags=APTPL)[3]
    assert not bench.commit() and bench.dump()[32:40] == struct.pack("<Q", 8)


# --- who is aborted

def test_preempted_nexuses_are_marked():
    bench = reserved(5, 4)
    assert order(bench, 3, wire.PREEMPT, 0x13, 0x11, kind=5)[4] is False and bench.aborted() == []
    assert order(bench, 3, wire.PREEMPT_AND_ABORT, 0x13, 0x12, kind=5)[4] is True and bench.aborted() == [2]
    assert order(bench, 3, wire.PREEMPT_AND_ABORT, 0x13, 0x99, kind=5)[0] == CONFLICT and bench.aborted() == []
    assert bench.event(0, LOGOUT) is False
    assert order(bench, 3, wire.PREEMPT_AND_ABORT, 0x13, 0x10, kind=5)[4] is False      # its session is gone
    assert bench.aborted() == []


# --- the table of nexuses

def test_the_queue_of_a_nexus_is_bounded():
    bench = bench_of(2)
    for number in range(20):
        bench.attend(0, 0x063F00 + number)
        bench.attend(0, 0x063F00 + number)
    assert bench.pending == 8
    assert bench.attentions(0) == [0x063F00 + number for number in range(7)] + [0x063F00 + 19]
    assert bench.pending == 0 and bench.attentions(1) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0x062900, 0x062901, 0x062902, 0x062903, 0x062907,
                                                             0x062A01, 0x062A03, 0x063F0E])), max_size=40))
def test_order_and_strength_of_attentions(steps):
    bench = bench_of(4)
    strength = {0x062900: 4, 0x062901: 4, 0x062902: 3, 0x062903: 2, 0x062907: 1}
    model = [[], [], [], []]
    for number, sense in steps:
        bench.attend(number, sense)
        queue = model[number]
        level = strength.get(sense, 0)
        resets = [one for one in queue if one in strength]
        others = [one for one in queue if one not in strength]
        if level == 4:
            resets, others = [sense], []
        elif level and (not resets or strength[resets[0]] < level):
            resets = [sense]
        elif not level and sense not in others:
            others.append(sense)
        model[number] = resets + others
    assert bench.pending == sum(len(queue) for queue in model)
    assert [bench.attentions(number) for number in range(4)] == model and bench.pending == 0


def test_others_are_told():
    bench = bench_of(3)
    bench.attend_others(1, 0x062A01)
    assert [bench.attentions(number) for number in range(3)] == [[0x062A01], [], [0x062A01]]


def test_a_nexus_beyond_the_bound_is_served_without_attentions():
    bench = Bench([(NAME, number.to_bytes(6, "big")) for number in range(4097)])
    assert bench.login_all() == 4096 and not bench.event(4096, LUN_RESET)
    assert order(bench, 4096, wire.REGISTER, 0, 1)[0] == order(bench, 4096, wire.RESERVE, 1, kind=3)[0] == 0
    read = b"\x28" + bytes(15)
    for number in range(4096):
        bench.attentions(number)
    assert bench.admit(4096, read) == (0, 0) and bench.admit(0, read) == (CONFLICT, 0)
    assert not bench.event(0, LOGOUT) and bench.event(4096, LOGIN)
    assert bench.admit(4096, read) == (2, 0x062900)
