"""Text in full feature phase over several PDUs, both ways, and what does not fit an exchange."""
from __future__ import annotations

import pytest

from detour import events
from tests.support.pdu_client import FINAL, NONE, REJECT, TEXT, TEXT_RESPONSE, Host, World

MORE = 0x40
PROTOCOL, INVALID_FIELD, LONG = 4, 9, 0x0A


@pytest.fixture
def world():
    made = World()
    yield made
    made.close()


@pytest.fixture
def host(world):
    made = Host(world, send_data_bytes_max=512)
    yield made
    made.close()


def ask(host, data=b"", *, itt=None, ttt=NONE, final=True, more=False):
    """One Text Request; its tag."""
    return host.request(TEXT, (FINAL if final else 0) | (MORE if more else 0), w20=ttt, itt=itt, data=data)


def answered(host, itt):
    """(data, ttt, final, more) of the next Text Response."""
    pdu = host.pdu()
    assert (pdu.opcode, pdu.itt) == (TEXT_RESPONSE, itt), pdu
    final, more = bool(pdu.flags & FINAL), bool(pdu.flags & MORE)
    assert (pdu.word(20) == NONE) == final and not (final and more)
    return pdu.data, pdu.word(20), final, more


def rejected(host):
    pdu = host.pdu()
    assert pdu.opcode == REJECT and len(pdu.data) == 48
    return pdu.bhs[2]


def asked(world, host):
    """What Python is asked."""
    host.pump()
    world.turn(3)
    questions = [event for event in world.events if event[0] == events.TEXT_REQUEST]
    world.events.clear()
    assert len(questions) <= 1
    return (questions[0][2][0], questions[0][3] or b"") if questions else None


def test_a_long_answer_goes_out_in_pieces(world, host):
    itt = ask(host, b"SendTargets=All\0")
    assert asked(world, host) == (itt, b"SendTargets=All\0")
    answer = bytes(range(256)) * 6 + b"end"
    assert world.ask(world.target.text_response(host.session_id, itt, answer)) == 0
    received = b""
    while True:
        data, ttt, final, more = answered(host, itt)
        received += data
        assert len(data) <= 512 and more == (not final)
        if final:
            break
        assert host.nothing_comes()
        ask(host, itt=itt, ttt=ttt)
    assert received == answer
    assert world.ask(world.target.text_response(host.session_id, itt, b"again")) < 0


def test_a_long_request_comes_in_pieces(world, host):
    itt = ask(host, b"Send", more=True, final=False)
    data, ttt, final, more = answered(host, itt)
    assert (data, final, more) == (b"", False, False) and asked(world, host) is None
    ask(host, b"Targets=", itt=itt, ttt=ttt, more=True, final=False)
    _, ttt, _, _ = answered(host, itt)
    ask(host, b"\0", itt=itt, ttt=ttt)
    assert asked(world, host) == (itt, b"SendTargets=\0")
    assert world.ask(world.target.text_response(host.session_id, itt, b"")) == 0
    assert answered(host, itt) == (b"", NONE, True, False)


def test_an_exchange_goes_on_until_the_initiator_ends_it(world, host):
    itt = ask(host, b"X-a=1\0", final=False)
    assert asked(world, host) == (itt, b"X-a=1\0")
    assert world.ask(world.target.text_response(host.session_id, itt, b"X-a=NotUnderstood\0")) == 0
    data, ttt, final, more = answered(host, itt)
    assert (data, final, more) == (b"X-a=NotUnderstood\0", False, False)
    ask(host, b"X-b=1\0", itt=itt, ttt=ttt)
    assert asked(world, host) == (itt, b"X-b=1\0")
    assert world.ask(world.target.text_response(host.session_id, itt, b"no\0")) == 0
    assert answered(host, itt) == (b"no\0", NONE, True, False)


def test_a_declared_length_counts_from_the_end_of_the_exchange_on(world, host):
    itt = ask(host, b"MaxRecvDataSegmentLength=2048\0")
    asked(world, host)
    assert world.ask(world.target.text_response(host.session_id, itt, bytes(600), 2048)) == 0
    data, ttt, _, _ = answered(host, itt)
    assert len(data) == 512
    ask(host, itt=itt, ttt=ttt)
    assert answered(host, itt)[0] == bytes(88)
    host.params["send_data_bytes_max"] = 2048
    assert len(host.ping(bytes(3000))) == 2048
    assert [len(pdu.data) for pdu in host.read(0, 8).pdus] == [2048, 2048]
    with pytest.raises(ValueError):
        world.target.text_response(host.session_id, itt, b"", 100)


def test_a_request_without_transfer_tag_begins_anew(world, host):
    first = ask(host, b"Send", more=True, final=False)
    _, old_ttt, _, _ = answered(host, first)
    second = ask(host, b"X-c=1\0")
    assert asked(world, host) == (second, b"X-c=1\0")
    assert world.ask(world.target.text_response(host.session_id, second, b"ok\0")) == 0
    assert answered(host, second)[0] == b"ok\0"
    ask(host, b"Targets=\0", itt=first, ttt=old_ttt)
    assert rejected(host) == INVALID_FIELD


def test_what_does_not_fit_is_rejected_and_ends_the_exchange(world, host):
    ask(host, b"A=1\0", final=True, more=True)
    assert rejected(host) == PROTOCOL
    ask(host, b"A=1\0", ttt=5)
    assert rejected(host) == INVALID_FIELD
    itt = ask(host, b"A", more=True, final=False)
    _, ttt, _, _ = answered(host, itt)
    ask(host, b"=1\0", itt=itt + 1000, ttt=ttt)
    assert rejected(host) == INVALID_FIELD
    ask(host, b"=1\0", itt=itt, ttt=ttt)
    assert rejected(host) == INVALID_FIELD and asked(world, host) is None
    itt = ask(host, b"A=1\0")
    asked(world, host)
    ask(host, b"B=1\0")
    assert rejected(host) == PROTOCOL                       # one exchange at a time
    assert world.ask(world.target.text_response(host.session_id, itt, bytes(700))) == 0
    _, ttt, _, _ = answered(host, itt)
    ask(host, b"C=1\0", itt=itt, ttt=ttt)
    assert rejected(host) == PROTOCOL                       # new keys amid an answer
    itt = ask(host, b"D=1\0")
    asked(world, host)
    assert world.ask(world.target.text_reject(host.session_id, itt, PROTOCOL)) == 0
    assert rejected(host) == PROTOCOL
    assert world.ask(world.target.text_reject(host.session_id, itt, PROTOCOL)) < 0
    assert host.ping() == b"" and world.quiet()


def test_text_is_bounded(world, host):
    itt, ttt, sent = None, NONE, 0
    while True:
        itt = ask(host, bytes(16384), itt=itt, ttt=ttt, more=True, final=False)
        pdu = host.pdu()
        if pdu.opcode == REJECT:
            break
        ttt, sent = pdu.word(20), sent + 16384
    assert pdu.bhs[2] == LONG and sent == 65536
    itt = ask(host, b"A=1\0")
    asked(world, host)
    assert world.ask(world.target.text_response(host.session_id, itt, bytes((1 << 20) + 1))) < 0
    assert world.ask(world.target.text_response(host.session_id, itt, b"A=Reject\0")) == 0
    assert answered(host, itt)[0] == b"A=Reject\0"


def test_a_session_that_ends_amid_an_exchange_leaves_nothing(world):
    for more in (False, True):
        host = Host(world)
        itt = ask(host, bytes(9000), more=more, final=not more)
        host.pump()
        host.close()
        assert world.quiet()
        assert world.ask(world.target.text_response(host.session_id, itt, b"late")) < 0


def test_text_that_finds_no_memory_is_rejected():
    world = World(buffer_bytes=2 << 20)
    host, greedy = Host(world), Host(world, isid=b"\0\2\x3d\0\0\2", initial_r2t=True, immediate_data=False)
    for _ in range(2):
        greedy.begin(bytes([0x8A]) + bytes(11) + b"\x08\0\0\0", flags=0x20, edtl=1 << 20)
    other = Host(world, isid=b"\0\2\x3d\0\0\3", eat_attention=False, initial_r2t=True, immediate_data=False)
    assert greedy.pdu()
    other.begin(bytes(6))
    assert other.pdu()
    other.begin(bytes([0x8A]) + bytes(11) + b"\x08\0\0\0", flags=0x20, edtl=1 << 20)
    assert other.pdu() and world.reactor.buffers_taken_bytes == 2 << 20
    ask(host, b"SendTargets=\0")
    assert rejected(host) == LONG and asked(world, host) is None
    for one in (host, greedy, other):
        one.close()
    assert world.quiet()
    world.close()
