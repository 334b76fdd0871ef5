"""The CDB table, sense data and LUN forms."""
from __future__ import annotations

import struct

import pytest

from detour.core._testing_target import decode, describe, lun_of, lun_put, sense, sense_of

READ, WRITE, WRITE_VERIFY, VERIFY, SYNC, SAME, UNMAP, CAW, ORWRITE, PREFETCH, LBA_STATUS = range(1, 12)
INFO, REPORT_OPCODES, OTHER_MEDIUM = 15, 16, 17


@pytest.mark.parametrize(("opcode", "cls"), [
    (0x28, READ), (0x2A, WRITE), (0x2E, WRITE_VERIFY), (0x2F, VERIFY), (0x35, SYNC), (0x41, SAME), (0x34, PREFETCH)])
def test_ten_byte_commands(opcode, cls):
    command = decode(struct.pack(">BBIBHB", opcode, 0, 0xFEDCBA98, 0, 0x1234, 0))
    assert (command["status"], command["cls"], command["cdb_bytes"]) == (0, cls, 10)
    assert (command["lba"], command["blocks"]) == (0xFEDCBA98, 0x1234)


@pytest.mark.parametrize(("opcode", "cls"), [(0xA8, READ), (0xAA, WRITE), (0xAE, WRITE_VERIFY), (0xAF, VERIFY)])
def test_twelve_byte_commands(opcode, cls):
    command = decode(struct.pack(">BBIIBB", opcode, 0, 0xFEDCBA98, 0x12345678, 0, 0))
    assert (command["cls"], command["lba"], command["blocks"]) == (cls, 0xFEDCBA98, 0x12345678)


@pytest.mark.parametrize(("opcode", "cls"), [
    (0x88, READ), (0x8A, WRITE), (0x8E, WRITE_VERIFY), (0x8F, VERIFY), (0x91, SYNC), (0x93, SAME), (0x8B, ORWRITE),
    (0x90, PREFETCH)])
def test_sixteen_byte_commands(opcode, cls):
    command = decode(struct.pack(">BBQIBB", opcode, 0, 0xFEDCBA9876543210, 0x12345678, 0, 0))
    assert (command["cls"], command["lba"], command["blocks"]) == (cls, 0xFEDCBA9876543210, 0x12345678)


def test_six_byte_reads_and_writes_count_zero_as_256():
    assert decode(bytes([0x08, 0x1F, 0xFF, 0xFE, 0, 0])) | {"cls": READ, "lba": 0x1FFFFE, "blocks": 256} \
        == decode(bytes([0x08, 0xFF, 0xFF, 0xFE, 0, 0]))
    assert decode(bytes([0x0A, 0, 0, 1, 7, 0]))["blocks"] == 7


def test_flags_of_reads_and_writes():
    command = decode(struct.pack(">BBIBHB", 0x2A, 0x78, 0, 0, 1, 0))
    assert (command["protect"], command["dpo"], command["fua"]) == (3, 1, 1)
    command = decode(struct.pack(">BBIBHB", 0x28, 0x08, 0, 0, 1, 0))
    assert (command["protect"], command["dpo"], command["fua"]) == (0, 0, 1)


@pytest.mark.parametrize(("bytchk", "direction"), [(0, 0), (1, 2), (2, 0), (3, 2)])
def test_verify_takes_data_as_bytchk_tells(bytchk, direction):
    command = decode(struct.pack(">BBIBHB", 0x2F, bytchk << 1, 0, 0, 1, 0))
    assert (command["bytchk"], command["direction"]) == (bytchk, direction)


def test_write_same_flags():
    command = decode(struct.pack(">BBQIBB", 0x93, 0x19, 5, 6, 0, 0))
    assert (command["anchor"], command["unmap"], command["ndob"], command["direction"]) == (1, 1, 1, 0)
    command = decode(struct.pack(">BBIBHB", 0x41, 0x09, 5, 0, 6, 0))
    # NDOB is a bit of the 16-byte form only.
    assert (command["unmap"], command["ndob"], command["direction"]) == (1, 0, 2)


def test_service_actions_choose_the_class():
    assert decode(struct.pack(">BBQIBB", 0x9E, 0x10, 0, 32, 0, 0))["cls"] == INFO
    status = decode(struct.pack(">BBQIBB", 0x9E, 0x12, 77, 24, 0, 0))
    assert (status["cls"], status["lba"], status["length_bytes"]) == (LBA_STATUS, 77, 24)
    assert decode(bytes([0xA3, 0x0C]) + bytes(10))["cls"] == REPORT_OPCODES
    assert decode(bytes([0xA3, 0x1F]) + bytes(10))["status"] < 0
    assert decode(bytes([0x5E, 0x02]) + bytes(8))["service_action"] == 2


@pytest.mark.parametrize(("cdb", "length", "direction"), [
    (bytes([0x12, 0, 0, 1, 2, 0]), 0x102, 1), (bytes([0x1A, 0, 0, 0, 9, 0]), 9, 1),
    (bytes([0x15, 0, 0, 0, 9, 0]), 9, 2),
    (bytes([0x5A, 0, 0, 0, 0, 0, 0, 1, 2, 0]), 0x102, 1), (bytes([0x5F, 0, 0, 0, 0, 0, 0, 1, 2, 0]), 0x102, 2),
    (bytes([0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0]), 0x102, 1), (bytes([0x42, 0, 0, 0, 0, 0, 0, 1, 2, 0]), 0x102, 2)])
def test_lengths_of_parameter_lists(cdb, length, direction):
    command = decode(cdb)
    assert (command["length_bytes"], command["direction"]) == (length, direction)


def test_medium_writers_of_other_kinds_are_known_as_such():
    for opcode in (0x07, 0x3B, 0x3F, 0x9F):
        assert decode(bytes([opcode]) + bytes(15))["cls"] == OTHER_MEDIUM


def test_fields_of_copies_sanitizing_and_atomic_writes():
    copy = decode(bytes.fromhex("83 00 00 00 00 00 00 00 00 00 00 00 01 02 00 00"))
    assert (copy["cls"], copy["length_bytes"], copy["direction"]) == (18, 0x102, 2)
    for action in (0x01, 0x10, 0x1C):
        assert decode(bytes([0x83, action]) + bytes(14))["status"] < 0
    results = decode(bytes.fromhex("84 04 07 00 00 00 00 00 00 00 00 00 01 02 00 00"))
    assert (results["cls"], results["service_action"], results["length_bytes"]) == (19, 4, 0x102)
    for flags, immed in ((0x81, True), (0x22, False)):
        sanitize = decode(bytes([0x48, flags, 0, 0, 0, 0, 0, 1, 2, 0]))
        assert (sanitize["cls"], sanitize["service_action"]) == (12, flags & 0x1F)
        assert (bool(sanitize["immed"]), sanitize["length_bytes"]) == (immed, 0x102)
    atomic = decode(bytes.fromhex("9c 18 00 00 00 00 00 00 00 05 00 04 00 08 00 00"))
    assert (atomic["lba"], atomic["atomic_boundary"], atomic["blocks"], atomic["fua"]) == (5, 4, 8, 1)


def test_unknown_opcodes_and_short_cdbs_are_refused():
    known = {opcode for opcode in range(256) if decode(bytes([opcode]) + bytes(15))["status"] == 0}
    assert {0x00, 0x12, 0x28, 0x8A} <= known and not known & {0x7F, 0xC0, 0xFF, 0x02}
    assert decode(bytes(5))["status"] < 0
    assert decode(bytes([0x28]) + bytes(5))["status"] < 0


def test_sense_is_fixed_format():
    data = sense(0x052400)
    assert len(data) == 18 and data[0] == 0x70 and data[2] == 5 and data[7] == 10 and data[12:14] == b"\x24\x00"
    data = sense(0x0E1D00, 0x01020304)
    assert data[0] == 0xF0 and data[3:7] == b"\x01\x02\x03\x04"


def test_every_error_of_the_core_has_a_sense():
    for status in range(-15, 0):
        for writing in (False, True):
            assert sense_of(status, writing) >> 16 in (3, 4, 5, 0xB, 0xE)
    assert sense_of(0, True) == 0
    assert sense_of(-2, True) == 0x030C00 and sense_of(-2, False) == 0x031100
    assert sense_of(-8, True) >> 16 == 0xB                     # aborted: hosts send it again


def test_luns():
    for number in (0, 1, 255, 256, 16383):
        assert lun_of(lun_put(number)) == number
    assert lun_of(bytes([0x40, 5]) + bytes(6)) == 5            # flat addressing of a small number
    for odd in (b"\x01\x02" + bytes(6), b"\x00\x01\x00\x01" + bytes(4), b"\xc1\x01" + bytes(6)):
        assert lun_of(odd) == 0xFFFFFFFF


def test_sense_in_descriptor_format():
    assert describe(sense(0x052400)) == b"\x72\x05\x24\0\0\0\0\0"
    assert describe(sense(0x031100, 0x01020304)) == (
        b"\x72\x03\x11\0\0\0\0\x0c" + b"\0\x0a\x80\0\0\0\0\0\1\2\3\4")          # information
    full = bytearray(sense(0x0A0D01, 7))
    full[0] = 0xF1                                                              # deferred
    full[2] |= 0x20                                                             # ILI
    full[8:12], full[15:18] = b"\x0a\x0b\x0c\x0d", b"\xc0\x00\x05"
    assert describe(bytes(full)) == (
        b"\x73\x0a\x0d\x01\0\0\0\x24" + b"\0\x0a\x80\0\0\0\0\0\0\0\0\7" + b"\1\x0a\0\0\0\0\0\0\x0a\x0b\x0c\x0d"
        + b"\2\6\0\0\xc0\0\5\0" + b"\5\2\0\x20")
    described = describe(sense(0x052000))
    assert describe(described + bytes(20)) == described + bytes(20)             # is in that format already
    assert describe(b"") == b"" and describe(sense(0x052000)[:8]) == sense(0x052000)[:8]
