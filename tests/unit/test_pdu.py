"""Framing: every opcode, every split point, AHS, padding, digests, limits, serial numbers (core/pdu)."""
from __future__ import annotations

import struct

import pytest

from detour.core._testing_wire import RxMachine, WireError, build_pdu, serial_less, serial_less_equal

OPCODES = [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3F]
E_PROTOCOL, E_DIGEST = -5, -6


def crc32c(data: bytes) -> int:
    """Bit by bit, from the polynomial: an oracle that shares nothing with the core."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def header_of(opcode: int, ahs: bytes = b"") -> bytes:
    return bytes([opcode]) + bytes((7 * i + opcode) & 0xFF for i in range(1, 48)) + ahs


def told(header: bytes, data: bytes) -> bytes:
    """The header as it arrives: with both lengths filled in."""
    ahs_words = (len(header) - 48) // 4
    return header[:4] + bytes([ahs_words]) + len(data).to_bytes(3, "big") + header[8:]


def wire(header: bytes, data: bytes, header_digest: bool, data_digest: bool) -> bytes:
    """A PDU put together by hand, as RFC 7143 section 11 draws it."""
    out = told(header, data)
    if header_digest:
        out += struct.pack("<I", crc32c(out))
    if data:
        padded = data + bytes(-len(data) % 4)
        out += padded + (struct.pack("<I", crc32c(padded)) if data_digest else b"")
    return out


@pytest.mark.parametrize("opcode", OPCODES)
@pytest.mark.parametrize("header_digest", [False, True])
@pytest.mark.parametrize("data_digest", [False, True])
@pytest.mark.parametrize("data_bytes", [0, 1, 2, 3, 4, 5, 512])
def test_round_trip(opcode: int, header_digest: bool, data_digest: bool, data_bytes: int) -> None:
    header, data = header_of(opcode), bytes((3 * i) & 0xFF for i in range(data_bytes))
    built = build_pdu(header, data, header_digest, data_digest)
    assert built == wire(header, data, header_digest, data_digest)
    rx = RxMachine(header_digest=header_digest, data_digest=data_digest)
    assert rx.feed(built) == [(told(header, data), data, False)]


@pytest.mark.parametrize("ahs_bytes", [0, 4, 20, 1020])
@pytest.mark.parametrize("digests", [False, True])
def test_every_split_point(ahs_bytes: int, digests: bool) -> None:
    header = header_of(0x01, bytes(range(256)) * 4)[: 48 + ahs_bytes]
    data = bytes(range(41))
    stream = wire(header, data, digests, digests) * 2
    expected = [(told(header, data), data, False)] * 2
    for split in range(len(stream) + 1):
        rx = RxMachine(header_digest=digests, data_digest=digests)
        assert rx.feed(stream[:split]) + rx.feed(stream[split:]) == expected


def test_byte_by_byte() -> None:
    header, data = header_of(0x05, bytes(8)), bytes(range(7))
    rx = RxMachine(header_digest=True, data_digest=True)
    done = []
    for byte in wire(header, data, True, True):
        done += rx.feed(bytes([byte]))
    assert done == [(told(header, data), data, False)]


def test_header_digest_of_every_flipped_byte() -> None:
    header = header_of(0x01, bytes(range(16)))
    good = wire(header, b"", True, False)
    for place in range(len(good)):
        if 4 <= place <= 7:
            continue                    # lengths: the stream ends elsewhere, or the length is refused
        bad = bytearray(good)
        bad[place] ^= 0x10
        with pytest.raises(WireError) as caught:
            RxMachine(header_digest=True).feed(bytes(bad))
        assert caught.value.status == E_DIGEST


def test_bad_data_digest_is_told_and_the_next_pdu_is_whole() -> None:
    header, data = header_of(0x05), bytes(range(30))
    good = wire(header, data, True, True)
    for place in range(52, len(good)):      # data, padding, digest
        bad = bytearray(good)
        bad[place] ^= 0x01
        done = RxMachine(header_digest=True, data_digest=True).feed(bytes(bad) + good)
        assert [pdu[2] for pdu in done] == [True, False]
        assert done[1] == (told(header, data), data, False)


def test_length_over_the_limit_is_refused_before_any_data() -> None:
    header = header_of(0x05)
    assert len(RxMachine(data_bytes_max=1024).feed(wire(header, bytes(1024), False, False))) == 1
    with pytest.raises(WireError) as caught:
        RxMachine(data_bytes_max=1024).feed(told(header, bytes(1025)))
    assert caught.value.status == E_PROTOCOL
    with pytest.raises(WireError) as caught:
        RxMachine(data_bytes_max=1024).feed(header[:5] + b"\xff\xff\xff" + header[8:])
    assert caught.value.status == E_PROTOCOL


@pytest.mark.parametrize("data_digest", [False, True])
def test_discarded_data_passes(data_digest: bool) -> None:
    header = header_of(0x02)
    stream = b"".join(wire(header, bytes([n & 0xFF]) * n, False, data_digest) for n in (0, 5, 4096, 4099, 20000))
    done = RxMachine(data_digest=data_digest, discard=True).feed(stream)
    assert [(pdu[1], pdu[2]) for pdu in done] == [(None, False)] * 5
    if data_digest:
        bad = bytearray(stream)
        bad[-10] ^= 1
        assert RxMachine(data_digest=True, discard=True).feed(bytes(bad))[-1][2] is True


def test_no_data_has_no_digest() -> None:
    assert build_pdu(header_of(0x20), b"", False, True) == told(header_of(0x20), b"")


@pytest.mark.parametrize(("a", "b", "less"), [
    (0, 1, True), (1, 0, False), (5, 5, False), (0xFFFFFFFF, 0, True), (0, 0xFFFFFFFF, False),
    (0, 0x7FFFFFFF, True), (0x80000001, 0, True), (0, 0x80000001, False), (0xFFFFFFF0, 0x0000000F, True),
])
def test_serial_numbers(a: int, b: int, less: bool) -> None:
    """RFC 1982 on 32 bits."""
    assert serial_less(a, b) is less
    assert serial_less_equal(a, b) is (less or a == b)


def test_count_agrees_with_feed() -> None:
    stream = b"".join(wire(header_of(0x05), bytes(n), False, False) for n in range(64))
    assert [RxMachine().count(stream, piece) for piece in (1, 7, 48, 4096, len(stream))] == [64] * 5
