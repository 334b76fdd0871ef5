"""PDUs of the login phase and of discovery sessions: layouts, text segments, exact-length reading from a socket.

Data PDUs are the core's business (pdu.pyx); here are Login, Text, Logout, NOP and Reject, without digests, as they are
before full feature phase (RFC 7143 section 11). Nothing is ever read past the end of a PDU, so that the socket can be
handed over to the core between two PDUs.
"""
from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass

from detour.errors import ClosedError, ProtocolError

# The same numbers as core/iscsi.pxd (a test compares them).
BHS_BYTES = 48
TAG_NONE = 0xFFFFFFFF

OP_NOP_OUT = 0x00
OP_SCSI_COMMAND = 0x01
OP_TASK_MANAGEMENT = 0x02
OP_LOGIN_REQUEST = 0x03
OP_TEXT_REQUEST = 0x04
OP_DATA_OUT = 0x05
OP_LOGOUT_REQUEST = 0x06
OP_SNACK = 0x10
OP_NOP_IN = 0x20
OP_SCSI_RESPONSE = 0x21
OP_TASK_MANAGEMENT_RESPONSE = 0x22
OP_LOGIN_RESPONSE = 0x23
OP_TEXT_RESPONSE = 0x24
OP_DATA_IN = 0x25
OP_LOGOUT_RESPONSE = 0x26
OP_R2T = 0x31
OP_ASYNC_MESSAGE = 0x32
OP_REJECT = 0x3F

OP_IMMEDIATE = 0x40
FLAG_FINAL = 0x80
FLAG_READ = 0x40
FLAG_WRITE = 0x20

REJECT_PROTOCOL = 0x04
REJECT_NOT_SUPPORTED = 0x05
REJECT_INVALID_FIELD = 0x09

ASYNC_SCSI = 0
ASYNC_LOGOUT_REQUEST = 1
ASYNC_DROP_CONNECTION = 2
ASYNC_DROP_SESSION = 3
ASYNC_RENEGOTIATE = 4
ASYNC_TASKS_TERMINATED = 5

# Python's own: bits of byte 1 of Login and Text PDUs
FLAG_TRANSIT = 0x80
FLAG_CONTINUE = 0x40
OPCODE_MASK = 0x3F

# MaxRecvDataSegmentLength before anything is negotiated: what a PDU of the login phase may carry (section 13.12)
LOGIN_DATA_BYTES_MAX = 8192

KEY_NAME_MAX = 63           # section 6.1
VALUE_MAX = 8192            # longest value that is accepted; only binary and list values come near

_LOGIN_REQUEST = struct.Struct(">BBBBI6sHIHxxII16x")
_LOGIN_RESPONSE = struct.Struct(">BBBBI6sHI4xIIIBB10x")
_TEXT_REQUEST = struct.Struct(">BBxxI8sIIII16x")
_TEXT_RESPONSE = struct.Struct(">BBxxI8sIIIII12x")
for _layout in (_LOGIN_REQUEST, _LOGIN_RESPONSE, _TEXT_REQUEST, _TEXT_RESPONSE):
    assert _layout.size == BHS_BYTES


def serial_add(number: int, by: int) -> int:
    """Serial number arithmetic on 32 bits (section 4.2.2.1)."""
    return (number + by) & 0xFFFFFFFF


@dataclass(slots=True)
class LoginRequest:
    """Login Request, section 11.12. `data` is the text segment."""

    isid: bytes
    tsih: int = 0
    csg: int = 0
    nsg: int = 0
    transit: bool = False
    more: bool = False          # C bit: the text goes on in the next PDU
    version_max: int = 0
    version_min: int = 0
    itt: int = 0
    cid: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    data: bytes = b""

    def pack(self) -> bytes:
        flags = self.transit * FLAG_TRANSIT | self.more * FLAG_CONTINUE | self.csg << 2 | self.nsg
        return _LOGIN_REQUEST.pack(OP_LOGIN_REQUEST | OP_IMMEDIATE, flags, self.version_max, self.version_min,
                                   len(self.data), self.isid, self.tsih, self.itt, self.cid, self.cmd_sn,
                                   self.exp_stat_sn) + padded(self.data)

    @classmethod
    def unpack(cls, header: bytes, data: bytes) -> LoginRequest:
        (opcode, flags, version_max, version_min, _length, isid, tsih, itt, cid, cmd_sn,
         exp_stat_sn) = _LOGIN_REQUEST.unpack(header)
        if opcode & OPCODE_MASK != OP_LOGIN_REQUEST:
            raise ProtocolError(f"a PDU with opcode 0x{opcode & OPCODE_MASK:02x} came instead of a Login Request")
        return cls(isid, tsih, flags >> 2 & 3, flags & 3, bool(flags & FLAG_TRANSIT), bool(flags & FLAG_CONTINUE),
                   version_max, version_min, itt, cid, cmd_sn, exp_stat_sn, data)


@dataclass(slots=True)
class LoginResponse:
    """Login Response, section 11.13. `data` is the text segment."""

    isid: bytes
    tsih: int = 0
    csg: int = 0
    nsg: int = 0
    transit: bool = False
    more: bool = False
    version_max: int = 0
    version_active: int = 0
    itt: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    status_class: int = 0
    status_detail: int = 0
    data: bytes = b""

    def pack(self) -> bytes:
        flags = self.transit * FLAG_TRANSIT | self.more * FLAG_CONTINUE | self.csg << 2 | self.nsg
        return _LOGIN_RESPONSE.pack(OP_LOGIN_RESPONSE, flags, self.version_max, self.version_active, len(self.data),
                                    self.isid, self.tsih, self.itt, self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn,
                                    self.status_class, self.status_detail) + padded(self.data)

    @classmethod
    def unpack(cls, header: bytes, data: bytes) -> LoginResponse:
        (opcode, flags, version_max, version_active, _length, isid, tsih, itt, stat_sn, exp_cmd_sn, max_cmd_sn,
         status_class, status_detail) = _LOGIN_RESPONSE.unpack(header)
        if opcode & OPCODE_MASK != OP_LOGIN_RESPONSE:
            raise ProtocolError(f"a PDU with opcode 0x{opcode & OPCODE_MASK:02x} came instead of a Login Response")
        return cls(isid, tsih, flags >> 2 & 3, flags & 3, bool(flags & FLAG_TRANSIT), bool(flags & FLAG_CONTINUE),
                   version_max, version_active, itt, stat_sn, exp_cmd_sn, max_cmd_sn, status_class, status_detail, data)


@dataclass(slots=True)
class TextRequest:
    """Text Request, section 11.10."""

    itt: int
    ttt: int = TAG_NONE
    final: bool = True
    more: bool = False
    immediate: bool = False
    lun: bytes = bytes(8)
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    data: bytes = b""

    def pack(self) -> bytes:
        flags = self.final * FLAG_FINAL | self.more * FLAG_CONTINUE
        opcode = OP_TEXT_REQUEST | (OP_IMMEDIATE if self.immediate else 0)
        return _TEXT_REQUEST.pack(opcode, flags, len(self.data), self.lun, self.itt, self.ttt, self.cmd_sn,
                                  self.exp_stat_sn) + padded(self.data)

    @classmethod
    def unpack(cls, header: bytes, data: bytes) -> TextRequest:
        opcode, flags, _length, lun, itt, ttt, cmd_sn, exp_stat_sn = _TEXT_REQUEST.unpack(header)
        if opcode & OPCODE_MASK != OP_TEXT_REQUEST:
            raise ProtocolError(f"a PDU with opcode 0x{opcode & OPCODE_MASK:02x} came instead of a Text Request")
        return cls(itt, ttt, bool(flags & FLAG_FINAL), bool(flags & FLAG_CONTINUE), bool(opcode & OP_IMMEDIATE), lun,
                   cmd_sn, exp_stat_sn, data)


@dataclass(slots=True)
class TextResponse:
    """Text Response, section 11.11."""

    itt: int
    ttt: int = TAG_NONE
    final: bool = True
    more: bool = False
    lun: bytes = bytes(8)
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    data: bytes = b""

    def pack(self) -> bytes:
        flags = self.final * FLAG_FINAL | self.more * FLAG_CONTINUE
        return _TEXT_RESPONSE.pack(OP_TEXT_RESPONSE, flags, len(self.data), self.lun, self.itt, self.ttt, self.stat_sn,
                                   self.exp_cmd_sn, self.max_cmd_sn) + padded(self.data)

    @classmethod
    def unpack(cls, header: bytes, data: bytes) -> TextResponse:
        opcode, flags, _length, lun, itt, ttt, stat_sn, exp_cmd_sn, max_cmd_sn = _TEXT_RESPONSE.unpack(header)
        if opcode & OPCODE_MASK != OP_TEXT_RESPONSE:
            raise ProtocolError(f"a PDU with opcode 0x{opcode & OPCODE_MASK:02x} came instead of a Text Response")
        return cls(itt, ttt, bool(flags & FLAG_FINAL), bool(flags & FLAG_CONTINUE), lun, stat_sn, exp_cmd_sn,
                   max_cmd_sn, data)


def logout_request(itt: int, cid: int, cmd_sn: int, exp_stat_sn: int) -> bytes:
    """Logout Request that closes the session (reason 0), section 11.14."""
    return struct.pack(">BBxxI8xIHxxII16x", OP_LOGOUT_REQUEST | OP_IMMEDIATE, FLAG_FINAL, 0, itt, cid, cmd_sn,
                       exp_stat_sn)


def logout_response(itt: int, stat_sn: int, exp_cmd_sn: int, max_cmd_sn: int) -> bytes:
    """Logout Response 0: closed successfully, section 11.15."""
    return struct.pack(">BBBxI8xI4xIII12x", OP_LOGOUT_RESPONSE, FLAG_FINAL, 0, 0, itt, stat_sn, exp_cmd_sn, max_cmd_sn)


def nop_out(lun: bytes, ttt: bytes, cmd_sn: int, exp_stat_sn: int) -> bytes:
    """NOP-Out that answers a NOP-In of this LUN and tag, section 11.18."""
    return struct.pack(">BBxxI8sI4sII16x", OP_NOP_OUT | OP_IMMEDIATE, FLAG_FINAL, 0, lun, TAG_NONE, ttt, cmd_sn,
                       exp_stat_sn)


def nop_in(itt: int, stat_sn: int, exp_cmd_sn: int, max_cmd_sn: int, data: bytes) -> bytes:
    """NOP-In that answers a NOP-Out, section 11.19."""
    return struct.pack(">BBxxI8xIIIII12x", OP_NOP_IN, FLAG_FINAL, len(data), itt, TAG_NONE, stat_sn, exp_cmd_sn,
                       max_cmd_sn) + padded(data)


def reject(reason: int, header: bytes, stat_sn: int, exp_cmd_sn: int, max_cmd_sn: int) -> bytes:
    """Reject with the header of the PDU that is refused, section 11.17."""
    return struct.pack(">BBBxI8xI4xIII12x", OP_REJECT, FLAG_FINAL, reason, BHS_BYTES, TAG_NONE, stat_sn, exp_cmd_sn,
                       max_cmd_sn) + header


def padded(data: bytes) -> bytes:
    """Data with zeros up to a multiple of 4 bytes."""
    return data + bytes(-len(data) % 4)


def encode_text(pairs: list[tuple[str, str]]) -> bytes:
    """Text segment of key=value pairs, each ended by a zero byte (section 6.1)."""
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in pairs)


def decode_text(data: bytes) -> list[tuple[str, str]]:
    """Pairs of a complete text segment, in order. ProtocolError when it is no list of key=value pairs."""
    pairs: list[tuple[str, str]] = []
    try:
        items = data.decode("utf-8").split("\0")
    except UnicodeDecodeError:
        raise ProtocolError("a text segment is not UTF-8") from None
    for item in items:
        if not item:
            continue
        key, equals, value = item.partition("=")
        if not equals or not key or len(key) > KEY_NAME_MAX:
            raise ProtocolError("a text segment holds something that is not key=value")
        if len(value) > VALUE_MAX:
            raise ProtocolError(f"the value of {key} is longer than {VALUE_MAX} characters")
        pairs.append((key, value))
    return pairs


class TextAssembly:
    """Text that comes in several PDUs (C bit), bounded in size."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        if len(self._data) + len(data) > self.limit_bytes:
            raise ProtocolError(f"the text of one exchange is longer than {self.limit_bytes} bytes")
        self._data += data

    def take(self) -> bytes:
        """What has come, and start anew."""
        data = bytes(self._data)
        self._data.clear()
        return data


async def receive_exactly(sock: socket.socket, length_bytes: int) -> bytes:
    """Exactly that many bytes. ClosedError when the peer ends before."""
    loop = asyncio.get_running_loop()
    buffer = bytearray(length_bytes)
    view = memoryview(buffer)
    filled = 0
    while filled < length_bytes:
        received = await loop.sock_recv_into(sock, view[filled:])
        if received == 0:
            raise ClosedError("the peer closed the connection")
        filled += received
    return bytes(buffer)


async def receive_pdu(sock: socket.socket, data_bytes_max: int = LOGIN_DATA_BYTES_MAX) -> tuple[bytes, bytes]:
    """Header and data of the next PDU. ProtocolError when it has more data than allowed or additional headers (none of
    the PDUs of the login phase and of discovery has any); checked before any room is taken."""
    header = await receive_exactly(sock, BHS_BYTES)
    if header[4]:
        raise ProtocolError("an additional header segment came with a PDU that has none")
    data_bytes = int.from_bytes(header[5:8], "big")
    if data_bytes > data_bytes_max:
        raise ProtocolError(f"a PDU announces {data_bytes} bytes of data; {data_bytes_max} are allowed")
    data = await receive_exactly(sock, data_bytes + -data_bytes % 4) if data_bytes else b""
    return header, data[:data_bytes]


async def send(sock: socket.socket, pdu: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, pdu)
