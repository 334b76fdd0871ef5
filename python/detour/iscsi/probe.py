"""SCSI commands on a session before it is handed to the core: one at a time, small answers.

What a store must be told at its creation (size, block size, cache, limits) is asked for here, and a session that comes
back after a loss is checked to lead to the same disk before a single write goes out on it.
"""
from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, replace

from detour.core.crc32c import crc32c
from detour.errors import ClosedError, CorruptError, ProtocolError, ScsiError, TimeoutError_
from detour.iscsi import wire
from detour.iscsi.session import Login

COMMAND_SECONDS = 20.0
RETRIES_MAX = 32
RETRY_SECONDS = 0.1
STATUS_GOOD, STATUS_CHECK, STATUS_BUSY, STATUS_FULL = 0x00, 0x02, 0x08, 0x28
KEY_NOT_READY, KEY_UNIT_ATTENTION, KEY_ABORTED = 0x2, 0x6, 0xB

_COMMAND = struct.Struct(">BBxxI8sIIII16s")
_NOP_OUT = struct.Struct(">BBxxI8sIIII16x")
_ANSWER = struct.Struct(">BBBBI8sIIIIIIII")     # SCSI Response and Data-In, as far as they agree
_DATA_OUT = struct.Struct(">BBxxI8sIIxxxxIxxxxIIxxxx")
_DATA_IN_STATUS = 0x01


def lun_bytes(lun: int) -> bytes:
    """A LUN on the wire: peripheral addressing below 256, flat space above (SAM-5 section 4.7)."""
    return bytes([0 if lun < 256 else 0x40 | lun >> 8, lun & 0xFF]) + bytes(6)


def sense_key(sense: bytes) -> tuple[int, int]:
    """Sense key and additional codes (ASC << 8 | ASCQ), of either format; (0, 0) without sense."""
    if len(sense) >= 4 and sense[0] & 0x7F in (0x72, 0x73):
        return sense[1] & 0x0F, sense[2] << 8 | sense[3]
    if len(sense) >= 14:
        return sense[2] & 0x0F, sense[12] << 8 | sense[13]
    return 0, 0


@dataclass(frozen=True)
class RawResult:
    """How a command ended."""

    scsi_status: int
    data: bytes
    sense: bytes

    @property
    def good(self) -> bool:
        return self.scsi_status == STATUS_GOOD


class RawUnit:
    """A logical unit at the end of a fresh login. `login.params` is kept up to date with every PDU, so that the core
    can take the session over between two commands."""

    def __init__(self, login: Login, lun: int) -> None:
        self.login = login
        self._lun = lun_bytes(lun)
        self._tag = 0x100

    async def command(self, cdb: bytes, *, data_in_bytes: int = 0, check: bool = True,
                      data_out: bytes = b"") -> RawResult:
        """Sends a CDB, with a little data at most, and waits for its end. Unit attentions, and units that are busy or
        becoming ready, are asked again. With `check` a status other than GOOD raises ScsiError; TimeoutError_ without
        an answer."""
        for _ in range(RETRIES_MAX):
            try:
                async with asyncio.timeout(COMMAND_SECONDS):
                    result = await self._once(cdb, data_in_bytes, data_out)
            except TimeoutError:
                raise TimeoutError_(f"{self.login.portal} did not answer command {cdb[0]:02x}h in {COMMAND_SECONDS:g} s"
                                    ) from None
            key, code = sense_key(result.sense)
            if result.scsi_status in (STATUS_BUSY, STATUS_FULL) or (key == KEY_NOT_READY and code >> 8 == 0x04):
                await asyncio.sleep(RETRY_SECONDS)
            elif result.scsi_status != STATUS_CHECK or key not in (KEY_UNIT_ATTENTION, KEY_ABORTED):
                break
        if check and not result.good:
            key, code = sense_key(result.sense)
            raise ScsiError(f"{self.login.portal}: command {cdb[0]:02x}h ended with SCSI status "
                            f"{result.scsi_status:02x}h, sense {key:x}/{code >> 8:02x}/{code & 0xFF:02x}",
                            scsi_status=result.scsi_status, sense=result.sense)
        return result

    async def _once(self, cdb: bytes, data_in_bytes: int, data_out: bytes) -> RawResult:
        params = self.login.params
        self._tag += 1
        flags = wire.FLAG_FINAL | (wire.FLAG_READ if data_in_bytes else wire.FLAG_WRITE if data_out else 0) | 1
        immediate = data_out if params.immediate_data and len(data_out) <= params.send_data_bytes_max else b""
        header = _COMMAND.pack(wire.OP_SCSI_COMMAND, flags, len(immediate), self._lun, self._tag,
                               data_in_bytes or len(data_out), params.cmd_sn, params.stat_sn, cdb.ljust(16, b"\0"))
        await self._send(header, immediate)
        self.login.params = replace(params, cmd_sn=wire.serial_add(params.cmd_sn, 1))
        received = bytearray(data_in_bytes)
        filled = 0
        while True:
            header, data = await self._receive()
            opcode = header[0] & wire.OPCODE_MASK
            if opcode == wire.OP_NOP_IN:
                await self._pong(header)
                continue
            if opcode == wire.OP_ASYNC_MESSAGE and header[36] == wire.ASYNC_SCSI:
                continue
            if opcode == wire.OP_R2T and data_out:
                await self._data_out(header, data_out)
                continue
            if opcode not in (wire.OP_SCSI_RESPONSE, wire.OP_DATA_IN):
                raise ClosedError(f"{self.login.portal} ends the session (PDU {opcode:02x}h)")
            answer = _ANSWER.unpack(header)
            if answer[6] != self._tag:
                raise ProtocolError("an answer came to a command that was not sent")
            if opcode == wire.OP_SCSI_RESPONSE:
                sense = data[2:2 + int.from_bytes(data[:2], "big")]
                if answer[2]:
                    raise ProtocolError(f"the target could not complete the command (response {answer[2]:02x}h)")
                return RawResult(answer[3], bytes(received[:filled]), sense)
            offset = answer[12]
            if offset != filled or offset + len(data) > data_in_bytes:
                raise ProtocolError("Data-In is out of place")
            received[offset:offset + len(data)] = data
            filled += len(data)
            if answer[1] & _DATA_IN_STATUS:
                return RawResult(answer[3], bytes(received[:filled]), b"")

    async def log_out(self) -> None:
        """Closes the session (RFC 7143 section 11.14); returns when the target has said so."""
        params = self.login.params
        await self._send(wire.logout_request(self._tag + 1, params.cid, params.cmd_sn, params.stat_sn), b"")
        while (await self._receive())[0][0] & wire.OPCODE_MASK != wire.OP_LOGOUT_RESPONSE:
            pass

    async def _data_out(self, ready: bytes, data: bytes) -> None:
        """Answers an R2T, in one PDU: what is sent here fits into the smallest that can be negotiated (512 bytes)."""
        tag, ttt, _, _, _, _, offset, length = struct.unpack_from(">IIIIIIII", ready, 16)
        if tag != self._tag or offset + length > len(data):
            raise ProtocolError("an R2T asks for data that are not there")
        await self._send(_DATA_OUT.pack(wire.OP_DATA_OUT, wire.FLAG_FINAL, length, self._lun, tag, ttt,
                                        self.login.params.stat_sn, 0, offset), data[offset:offset + length])

    async def _pong(self, header: bytes) -> None:
        tag = int.from_bytes(header[20:24], "big")
        if tag != wire.TAG_NONE:
            params = self.login.params
            await self._send(_NOP_OUT.pack(wire.OP_NOP_OUT | wire.OP_IMMEDIATE, wire.FLAG_FINAL, 0, header[8:16],
                                           wire.TAG_NONE, tag, params.cmd_sn, params.stat_sn), b"")

    async def _send(self, header: bytes, data: bytes) -> None:
        params, body = self.login.params, wire.padded(data)
        digest = crc32c(header).to_bytes(4, "little") if params.header_digest else b""
        behind = crc32c(body).to_bytes(4, "little") if params.data_digest and body else b""
        await wire.send(self.login.sock, header + digest + body + behind)

    async def _receive(self) -> tuple[bytes, bytes]:
        sock, params = self.login.sock, self.login.params
        header = await wire.receive_exactly(sock, wire.BHS_BYTES)
        data_bytes = int.from_bytes(header[5:8], "big")
        if header[4] or data_bytes > params.recv_data_bytes_max:
            raise ProtocolError("a PDU came with more header or data than negotiated")
        await self._digest(header, params.header_digest)
        data = await wire.receive_exactly(sock, data_bytes + -data_bytes % 4) if data_bytes else b""
        await self._digest(data, params.data_digest and data_bytes > 0)
        self._note_serials(header)
        return header, data[:data_bytes]

    async def _digest(self, covered: bytes, negotiated: bool) -> None:
        if negotiated:
            told = await wire.receive_exactly(self.login.sock, 4)
            if told != crc32c(covered).to_bytes(4, "little"):
                raise CorruptError("a digest on the wire does not match")

    def _note_serials(self, header: bytes) -> None:
        stat_sn, _exp_cmd_sn, max_cmd_sn = struct.unpack_from(">III", header, 24)
        opcode, flags, tag = header[0] & wire.OPCODE_MASK, header[1], int.from_bytes(header[16:20], "big")
        params = replace(self.login.params, max_cmd_sn=max_cmd_sn)
        silent_data = opcode == wire.OP_DATA_IN and not flags & _DATA_IN_STATUS
        ping = opcode == wire.OP_NOP_IN and tag == wire.TAG_NONE       # does not advance StatSN (section 11.19.3)
        if not silent_data and not ping and opcode != wire.OP_R2T:
            params = replace(params, stat_sn=wire.serial_add(stat_sn, 1))
        self.login.params = params
