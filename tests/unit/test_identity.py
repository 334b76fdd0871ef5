"""Identity of a logical unit: reading, deriving, comparing; and commands on a session that Python still holds."""
import asyncio
import socket
import struct
from dataclasses import dataclass, replace

import pytest

from detour.core.crc32c import crc32c
from detour.errors import ClosedError, CorruptError, ProtocolError, ScsiError, StorageError
from detour.iscsi import wire
from detour.iscsi.identity import differences, read_identity, same_medium_differences
from detour.iscsi.negotiation import SessionParams
from detour.iscsi.probe import RawUnit, lun_bytes, sense_key
from detour.iscsi.session import Login

INQUIRY = bytes([0, 0, 6, 2, 31, 0, 0, 2]) + b"VENDOR  PRODUCT-NAME    1.0 "
SERIAL = bytes([0, 0x80, 0, 4]) + b"S123"
NAA = bytes([1, 3, 0, 8]) + bytes.fromhex("6001405aabbccdd0")
PORT = bytes([1, 0x14, 0, 4]) + b"\0\0\0\1"
DEVICE_ID = bytes([0, 0x83, 0, len(NAA + PORT)]) + NAA + PORT
LIMITS = struct.pack(">BBH4xI24xQ20x", 0, 0xB0, 60, 1024, 65536)
PROVISIONING = bytes([0, 0xB2, 0, 4, 0, 0xE0, 2, 0])
CAPACITY = struct.pack(">QIB", 2047, 512, 0) + bytes([0]) + b"\xc0\x00" + bytes(16)
CACHING = bytes([0x88, 0x12, 0x04]) + bytes(17)
LUNS = struct.pack(">I4x", 16) + bytes(8) + lun_bytes(1)


@dataclass
class Answer:
    scsi_status: int
    data: bytes

    @property
    def good(self):
        return self.scsi_status == 0


class Disk:
    """Answers CDBs from tables."""

    def __init__(self, **change):
        self.inquiry, self.capacity, self.caching, self.luns, self.protected = INQUIRY, CAPACITY, CACHING, LUNS, 0
        self.pages = {0x80: SERIAL, 0x83: DEVICE_ID, 0xB0: LIMITS, 0xB2: PROVISIONING}
        for name, value in change.items():
            setattr(self, name, value)

    def data(self, cdb):
        if cdb[0] == 0x12 and cdb[1]:
            listed = bytes([0, *sorted(self.pages)])
            return bytes([0, 0, 0, len(listed)]) + listed if cdb[2] == 0 else self.pages.get(cdb[2])
        if cdb[0] == 0x1A and self.caching is not None:
            return bytes([3 + len(self.caching), 0, self.protected, 0]) + self.caching
        return {0x12: self.inquiry, 0x9E: self.capacity, 0xA0: self.luns,
                0x25: struct.pack(">II", 99, 4096)}.get(cdb[0])

    async def command(self, cdb, *, data_in_bytes=0, check=True):
        data = self.data(cdb)
        if data is None and check:
            raise ScsiError("refused")
        return Answer(2, b"") if data is None else Answer(0, data[:data_in_bytes])


def identity(**change):
    return asyncio.run(read_identity(Disk(**change)))


def test_everything_is_read():
    one = identity()
    assert (one.vendor, one.product, one.revision, one.serial) == ("VENDOR", "PRODUCT-NAME", "1.0", "S123")
    assert (one.size_bytes, one.block_bytes) == (2**20, 512)
    assert one.names == (b"\x03" + NAA[4:],)        # not the port's name
    assert one.write_cache and not one.write_protected
    assert one.transfer_bytes_max == 2**19 and one.unmap_bytes_max == 2**25
    assert one.unmap_by_write_same
    assert one.luns == (bytes(8), lun_bytes(1))


def test_a_plain_disk_has_no_frills():
    one = identity(pages={}, capacity=None, caching=None, luns=None, protected=0x80)
    assert (one.size_bytes, one.block_bytes, one.serial, one.names, one.luns) == (409600, 4096, "", (), ())
    assert one.write_cache      # what is not told is taken for the worse
    assert not one.unmap_by_write_same and one.transfer_bytes_max is None and one.unmap_bytes_max is None
    assert not identity(caching=bytes([0x08, 0x12, 0]) + bytes(17)).write_cache
    assert identity(protected=0x80).write_protected
    assert not identity(capacity=CAPACITY[:14] + b"\x80\0" + bytes(16)).unmap_by_write_same    # reads as anything


@pytest.mark.parametrize("first_byte", [0x7F, 0x20, 0x0C, 0x05])
def test_no_disk_behind_the_lun(first_byte):
    with pytest.raises(StorageError, match="no disk"):
        identity(inquiry=bytes([first_byte]) + INQUIRY[1:])


@pytest.mark.parametrize("block_bytes", [0, 256, 520, 131072])
def test_odd_blocks_are_refused(block_bytes):
    with pytest.raises(StorageError, match="not supported"):
        identity(capacity=struct.pack(">QI", 10, block_bytes) + bytes(20))


PAGES = {0x80: SERIAL, 0x83: DEVICE_ID, 0xB0: LIMITS, 0xB2: PROVISIONING}


@pytest.mark.parametrize("change, medium, said", [
    ({"capacity": struct.pack(">QI", 4095, 512) + CAPACITY[12:]}, True, "size is 1048576 on one side and 2097152"),
    ({"pages": PAGES | {0x80: SERIAL[:-1] + b"4"}}, True, "serial number is 'S123' on one side and 'S124'"),
    ({"pages": PAGES | {0x83: DEVICE_ID.replace(b"\xab", b"\xac")}}, True, "names of the logical unit"),
    ({"pages": PAGES | {0xB0: LIMITS[:-1] + b"\1"}}, False, "B0h (block limits) differs"),
    ({"pages": {page: data for page, data in PAGES.items() if page != 0xB2}}, False, "B2h"),
    ({"inquiry": INQUIRY.replace(b"VENDOR", b"VENTOR")}, False, "vendor is 'VENDOR' on one side and 'VENTOR'"),
    ({"inquiry": INQUIRY[:2] + b"\5" + INQUIRY[3:]}, False, "INQUIRY flags"),
    ({"caching": b"\x88\x12\0" + bytes(17)}, False, "write cache is True on one side and False"),
    ({"protected": 0x80}, False, "write protection"),
    ({"luns": struct.pack(">I4x", 8) + bytes(8)}, False, "LUNs"),
])
def test_differences_are_told_in_words(change, medium, said):
    found = differences(identity(), identity(**change))
    assert any(said in sentence for sentence in found)
    assert bool(same_medium_differences(identity(), identity(**change))) is medium


def test_the_same_disk_at_another_port_is_the_same():
    moved = DEVICE_ID.replace(PORT, PORT[:-1] + b"\2")
    assert differences(identity(), identity(pages=PAGES | {0x83: moved})) == []


@pytest.mark.parametrize("lun, raw", [(0, "00"), (255, "00ff"), (256, "4100"), (16383, "7fff")])
def test_luns_on_the_wire(lun, raw):
    assert lun_bytes(lun) == bytes.fromhex(raw).ljust(8, b"\0")


def test_sense_of_both_formats():
    assert sense_key(bytes([0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 2, 0, 0, 0, 0])) == (6, 0x2902)
    assert sense_key(bytes([0x72, 5, 0x24, 0])) == (5, 0x2400)
    assert sense_key(b"") == (0, 0)


# --- commands on a session that Python holds

PARAMS = SessionParams(False, False, 8192, 8192, 262144, 65536, True, True, 1, 10, 100, 20, 0, 1, bytes(6), 2, 20, 64)
UNIT_ATTENTION = bytes([0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0])


def response(tag, stat_sn, status=0, sense=b"", code=0):
    data = struct.pack(">H", len(sense)) + sense if sense else b""
    return struct.pack(">BBBBI8xIIIII12x", 0x21, 0x80, code, status, len(data), tag, 0, stat_sn, 11, 21) + \
        wire.padded(data)


def data_in(tag, offset, data, stat_sn=0, flags=0x80):
    return struct.pack(">BBBBI8xIIIIIIII", 0x25, flags, 0, 0, len(data), tag, 0xFFFFFFFF, stat_sn, 11, 21, 0, offset,
                       0) + wire.padded(data)


PING = struct.pack(">BBxxI8xIIIII12x", 0x20, 0x80, 0, 0xFFFFFFFF, 0x55, 100, 11, 21)
ASYNC = struct.pack(">BBxxI8xI4xIIIBBHHHxxxx", 0x32, 0x80, 0, 0xFFFFFFFF, 100, 11, 21, 0, 0, 0, 0, 0)


def digested(pdu):
    data = pdu[48:]
    return pdu[:48] + crc32c(pdu[:48]).to_bytes(4, "little") + data + (
        crc32c(data).to_bytes(4, "little") if data else b"")


def converse(*answers, params=PARAMS, data_in_bytes=16, check=True):
    """Sends a command (more when asked again); answers[n](tag) are the bytes sent back for the n-th. Answers the
    result, the session and what the other side received."""
    async def run():
        loop = asyncio.get_running_loop()
        one, other = socket.socketpair()
        received = []

        async def peer():
            for answer in answers:
                header = await wire.receive_exactly(other, 52 if params.header_digest else 48)
                received.append(header)
                await loop.sock_sendall(other, answer(int.from_bytes(header[16:20], "big")))

        with one, other:
            one.setblocking(False)
            other.setblocking(False)
            done = Login(one, params, "host", 3260, (), 1, "")
            task = asyncio.create_task(peer())
            try:
                async with asyncio.timeout(5):
                    result = await RawUnit(done, 3).command(b"\x12" + bytes(5), data_in_bytes=data_in_bytes,
                                                            check=check)
                while len(received) < len(answers):
                    await asyncio.sleep(0.001)
                with_more = other.recv(200) if answers[0](0).startswith(PING) else b""
            finally:
                task.cancel()
            return result, done.params, received, with_more
    return asyncio.run(run())


def test_a_command_on_a_raw_session():
    result, params, (sent,), _ = converse(
        lambda tag: data_in(tag, 0, b"12345678", flags=0) + data_in(tag, 8, b"abcd", 100, flags=0x81))
    assert result.good and result.data == b"12345678abcd"
    assert (params.cmd_sn, params.stat_sn, params.max_cmd_sn) == (11, 101, 21)
    assert sent[0] == 1 and sent[1] == 0xC1 and sent[8:16] == lun_bytes(3)
    assert sent[20:32] == struct.pack(">III", 16, 10, 100) and sent[32] == 0x12


def test_a_disk_that_bears_anything_is_asked_for_no_more_than_can_be_counted():
    limits = struct.pack(">BBH4xI24xQ20x", 0, 0xB0, 60, 0xFFFFFFFF, 2**64 - 1)      # LIO over a block device says so
    one = identity(pages={0x80: SERIAL, 0x83: DEVICE_ID, 0xB0: limits, 0xB2: PROVISIONING})
    assert one.transfer_bytes_max == one.unmap_bytes_max == 2**31


def test_unit_attentions_and_busy_units_are_asked_again():
    result, params, sent, _ = converse(
        lambda tag: response(tag, 100, 2, UNIT_ATTENTION), lambda tag: response(tag, 101, 8),
        lambda tag: data_in(tag, 0, b"ok", 102, flags=0x81))
    assert result.data == b"ok" and len(sent) == 3 and params.cmd_sn == 13 and params.stat_sn == 103


def test_pings_are_answered_and_messages_passed_over():
    result, params, _, pong = converse(lambda tag: PING + ASYNC + data_in(tag, 0, b"ok", 101, flags=0x81))
    assert result.data == b"ok" and params.stat_sn == 102
    assert pong[0] == 0x40 and pong[20:24] == b"\0\0\0\x55"


def test_digests_are_made_and_checked():
    both = replace(PARAMS, header_digest=True, data_digest=True)
    result, _, (sent,), _ = converse(lambda tag: digested(data_in(tag, 0, b"12345", 100, flags=0x81)), params=both)
    assert result.data == b"12345" and sent[48:] == crc32c(sent[:48]).to_bytes(4, "little")
    for place in (20, -1):
        def spoilt(tag, place=place):
            raw = bytearray(digested(data_in(tag, 0, b"12345", 100, flags=0x81)))
            raw[place] ^= 1
            return bytes(raw)
        with pytest.raises(CorruptError):
            converse(spoilt, params=both)


def test_an_error_carries_its_sense():
    sense = bytes([0x72, 5, 0x24, 0])
    with pytest.raises(ScsiError, match="5/24/00") as caught:
        converse(lambda tag: response(tag, 100, 2, sense))
    assert caught.value.sense == sense and caught.value.scsi_status == 2
    result, *_ = converse(lambda tag: response(tag, 100, 2, sense), check=False)
    assert not result.good


@pytest.mark.parametrize("answer, error", [
    (lambda tag: response(tag + 1, 100), ProtocolError),
    (lambda tag: response(tag, 100, code=1), ProtocolError),
    (lambda tag: data_in(tag, 4, b"1234", 100, flags=0x81), ProtocolError),
    (lambda tag: data_in(tag, 0, b"1" * 20, 100, flags=0x81), ProtocolError),
    (lambda tag: data_in(tag, 0, b"1" * 9000, 100, flags=0x81), ProtocolError),
    (lambda tag: b"\x31" + bytes(47), ClosedError),
    (lambda tag: b"\x3f" + bytes(47), ClosedError),
    (lambda tag: ASYNC[:36] + b"\2" + ASYNC[37:], ClosedError),
])
def test_answers_out_of_place_end_the_session(answer, error):
    with pytest.raises(error):
        converse(answer)
