"""PDUs of the login phase: constants against the core, pack and unpack, text, exact reading."""
import asyncio
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detour.errors import ClosedError, ProtocolError
from detour.iscsi import wire

ISCSI_PXD = (Path(__file__).parents[2] / "pyext/detour/core/iscsi.pxd").read_text()
CORE = {name: int(value, 0) for name, value in re.findall(r"^    ([A-Z0-9_]+) = (0x[0-9A-Fa-f]+|\d+)", ISCSI_PXD, re.M)}
word = st.integers(0, 2**32 - 1)


def test_constants_are_those_of_the_core():
    ours = {name: value for name, value in vars(wire).items() if name in CORE}
    assert ours == {name: CORE[name] for name in ours}
    opcodes = {name for name in CORE if name.startswith("OP_")}
    assert opcodes <= ours.keys() and {"BHS_BYTES", "TAG_NONE", "FLAG_FINAL"} <= ours.keys()


@given(st.builds(wire.LoginRequest, isid=st.binary(min_size=6, max_size=6), tsih=st.integers(0, 65535),
                 csg=st.integers(0, 3), nsg=st.integers(0, 3), transit=st.booleans(), more=st.booleans(), itt=word,
                 cid=st.integers(0, 65535), cmd_sn=word, exp_stat_sn=word, data=st.binary(max_size=99)))
def test_login_requests_are_read_back(pdu):
    raw = pdu.pack()
    assert len(raw) == 48 + len(pdu.data) + -len(pdu.data) % 4 and raw[0] == 0x43
    assert wire.LoginRequest.unpack(raw[:48], pdu.data) == pdu
    assert int.from_bytes(raw[5:8], "big") == len(pdu.data)


@given(st.builds(wire.LoginResponse, isid=st.binary(min_size=6, max_size=6), tsih=st.integers(0, 65535),
                 csg=st.integers(0, 3), nsg=st.integers(0, 3), transit=st.booleans(), more=st.booleans(), itt=word,
                 stat_sn=word, exp_cmd_sn=word, max_cmd_sn=word, status_class=st.integers(0, 255),
                 status_detail=st.integers(0, 255), data=st.binary(max_size=99)))
def test_login_responses_are_read_back(pdu):
    assert wire.LoginResponse.unpack(pdu.pack()[:48], pdu.data) == pdu


@given(st.builds(wire.TextRequest, itt=word, ttt=word, final=st.booleans(), more=st.booleans(),
                 immediate=st.booleans(), lun=st.binary(min_size=8, max_size=8), cmd_sn=word, exp_stat_sn=word),
       st.builds(wire.TextResponse, itt=word, ttt=word, final=st.booleans(), more=st.booleans(), stat_sn=word,
                 exp_cmd_sn=word, max_cmd_sn=word))
def test_text_pdus_are_read_back(request, response):
    assert wire.TextRequest.unpack(request.pack(), b"") == request
    assert wire.TextResponse.unpack(response.pack(), b"") == response


def test_places_in_the_header_are_those_of_the_standard():
    raw = wire.LoginRequest(b"ISIDxx", tsih=0x1112, csg=1, nsg=3, transit=True, itt=0x21222324, cid=0x3132,
                            cmd_sn=0x41424344, exp_stat_sn=0x51525354).pack()
    assert raw[1] == 0x87 and raw[8:14] == b"ISIDxx" and raw[14:16] == b"\x11\x12"
    assert raw[16:20] == b"!\"#$" and raw[20:22] == b"12" and raw[24:28] == b"ABCD" and raw[28:32] == b"QRST"
    raw = wire.LoginResponse(b"ISIDxx", stat_sn=1, exp_cmd_sn=2, max_cmd_sn=3, status_class=2, status_detail=7).pack()
    assert raw[24:36] == b"\0\0\0\1\0\0\0\2\0\0\0\3" and raw[36:38] == b"\x02\x07"
    raw = wire.logout_response(9, 1, 2, 3)
    assert raw[0] == 0x26 and raw[16:20] == b"\0\0\0\x09" and raw[24:36] == b"\0\0\0\1\0\0\0\2\0\0\0\3"
    assert wire.reject(4, raw[:48], 1, 2, 3)[48:] == raw[:48]


@pytest.mark.parametrize("kind", [wire.LoginRequest, wire.LoginResponse, wire.TextRequest, wire.TextResponse])
def test_other_pdus_are_refused(kind):
    with pytest.raises(ProtocolError):
        kind.unpack(b"\x3f" + bytes(47), b"")


@given(st.lists(st.tuples(st.from_regex(r"[A-Z][A-Za-z0-9.#-]{0,40}", fullmatch=True),
                          st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))))
def test_text_is_read_back(pairs):
    assert wire.decode_text(wire.encode_text(pairs)) == pairs


@pytest.mark.parametrize("bad", [b"novalue\0", b"=x\0", b"A" * 64 + b"=x\0", b"\xff=x\0", b"K=" + b"v" * 8193])
def test_malformed_text(bad):
    with pytest.raises(ProtocolError):
        wire.decode_text(bad)


def test_text_over_several_pdus_is_bounded():
    text = wire.TextAssembly(10)
    text.add(b"12345")
    text.add(b"67890")
    assert text.take() == b"1234567890" and text.take() == b""
    text.add(b"12345")
    with pytest.raises(ProtocolError):
        text.add(b"678901")


def exchange(raw, limit=8192, close=False):
    async def run():
        one, other = socket.socketpair()
        with one, other:
            one.setblocking(False)
            other.sendall(raw)
            if close:
                other.shutdown(socket.SHUT_WR)
            return await asyncio.wait_for(wire.receive_pdu(one, limit), 5), one.recv(100) if not close else b""
    return asyncio.run(run())


def test_a_pdu_is_read_and_not_a_byte_more():
    raw = wire.LoginRequest(b"isidxx", data=b"abcde").pack()
    (header, data), rest = exchange(raw + b"next")
    assert (header, data, rest) == (raw[:48], b"abcde", b"next")


@pytest.mark.parametrize("place, value", [(4, 1), (5, 1)])
def test_more_header_or_data_than_allowed_is_refused_before_it_is_read(place, value):
    raw = bytearray(wire.LoginRequest(b"isidxx").pack())
    raw[place] = value
    with pytest.raises(ProtocolError):
        exchange(bytes(raw))


def test_an_early_end_is_told():
    raw = wire.LoginRequest(b"isidxx", data=b"abcde").pack()
    for length in (0, 10, 48, 52):
        with pytest.raises(ClosedError):
            exchange(raw[:length], close=True)
