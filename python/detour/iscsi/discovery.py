"""Discovery sessions at the target: SendTargets, NOP-Out and Logout, handled in Python until the initiator leaves."""
from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

from detour.errors import ClosedError, ProtocolError
from detour.iscsi import keys, wire
from detour.iscsi.negotiation import SessionParams, unique

Pairs = list[tuple[str, str]]
SendTargets = Callable[[str], Pairs]


def answer_text(table: dict[str, str], send_targets: SendTargets) -> Pairs:
    """Answers to the keys of a Text Request in full feature phase: SendTargets, nothing else is on offer."""
    answers: Pairs = []
    for name, value in table.items():
        if name == "SendTargets":
            answers += send_targets(value)
        elif name not in keys.KEYS:
            answers.append((name, keys.NOT_UNDERSTOOD))
        elif not keys.KEYS[name].declarative:
            answers.append((name, keys.REJECT))
    return answers


class DiscoverySession:
    """Serves one discovery session on a socket that has finished its login."""

    def __init__(self, sock: socket.socket, params: SessionParams, send_targets: SendTargets, idle_seconds: float,
                 text_bytes_max: int) -> None:
        self._sock = sock
        self._send_targets = send_targets
        self._idle_seconds = idle_seconds
        self._recv_bytes_max = params.recv_data_bytes_max
        self._send_bytes_max = params.send_data_bytes_max
        self._stat_sn = params.stat_sn
        self._exp_cmd_sn = params.cmd_sn
        self._text = wire.TextAssembly(text_bytes_max)
        self._outgoing = b""

    async def run(self) -> None:
        """Until the initiator logs out, goes, or is silent for too long."""
        while True:
            async with asyncio.timeout(self._idle_seconds):
                try:
                    header, data = await wire.receive_pdu(self._sock, min(self._recv_bytes_max, 65536))
                except ClosedError:
                    return
                opcode = header[0] & wire.OPCODE_MASK
                if opcode != wire.OP_LOGOUT_REQUEST and not header[0] & wire.OP_IMMEDIATE:
                    self._exp_cmd_sn = wire.serial_add(self._exp_cmd_sn, 1)
                await wire.send(self._sock, self._answer(opcode, header, data))
                if opcode == wire.OP_LOGOUT_REQUEST:
                    return

    def _answer(self, opcode: int, header: bytes, data: bytes) -> bytes:
        itt = struct.unpack_from(">I", header, 16)[0]
        if opcode == wire.OP_TEXT_REQUEST:
            return self._text_response(wire.TextRequest.unpack(header, data)).pack()
        serials = (self._next_stat_sn(), self._exp_cmd_sn, wire.serial_add(self._exp_cmd_sn, 1))
        if opcode == wire.OP_LOGOUT_REQUEST:
            return wire.logout_response(itt, *serials)
        if opcode == wire.OP_NOP_OUT and itt != wire.TAG_NONE:
            return wire.nop_in(itt, *serials, data[:self._send_bytes_max])
        return wire.reject(wire.REJECT_PROTOCOL, header, *serials)

    def _text_response(self, request: wire.TextRequest) -> wire.TextResponse:
        if not self._outgoing:
            self._text.add(request.data)
            if request.more:
                return self._respond(request, b"", final=False, more=False)
            answers = answer_text(unique(wire.decode_text(self._text.take())), self._send_targets)
            self._outgoing = wire.encode_text(answers)
        elif request.data:
            raise ProtocolError("new keys came while a long answer was under way")
        data, self._outgoing = self._outgoing[:self._send_bytes_max], self._outgoing[self._send_bytes_max:]
        more = bool(self._outgoing)
        return self._respond(request, data, final=request.final and not more, more=more)

    def _respond(self, request: wire.TextRequest, data: bytes, *, final: bool, more: bool) -> wire.TextResponse:
        return wire.TextResponse(request.itt, ttt=wire.TAG_NONE if final else 1, final=final, more=more,
                                 stat_sn=self._next_stat_sn(), exp_cmd_sn=self._exp_cmd_sn,
                                 max_cmd_sn=wire.serial_add(self._exp_cmd_sn, 1), data=data)

    def _next_stat_sn(self) -> int:
        stat_sn, self._stat_sn = self._stat_sn, wire.serial_add(self._stat_sn, 1)
        return stat_sn
