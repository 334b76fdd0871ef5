"""An initiator in plain Python whose data come late: it sends a WRITE, and its data in two parts, each after a pause.

So main has commands that it cannot begin yet when its sessions are dropped, and parts of their data. The writer follows
redirects, comes back after every loss, and writes on; a command that was lost is not repeated.
"""
from __future__ import annotations

import asyncio
import contextlib
import random
import struct

from detour.errors import DetourError
from detour.iscsi import wire
from detour.iscsi.negotiation import Wishes
from detour.iscsi.session import Login, LoginOptions, login
from tests.support.ledger import BLOCK_BYTES, Ledger

COMMAND, DATA_OUT, NOP_IN, RESPONSE, R2T, ASYNC = 0x01, 0x05, 0x20, 0x21, 0x31, 0x32
WISHES = Wishes(initial_r2t=True, immediate_data=False, first_burst_bytes=4096, burst_bytes_max=65536, queue_depth=1)
NONE = 0xFFFFFFFF


class LateWriter:
    """`run` until it is cancelled. places: those of the ledger that are its own. late_s: the longest pause."""

    def __init__(self, ledger: Ledger, places: list[int], portal: tuple[str, int], target: str, lun: int,
                 dice: random.Random, late_s: float, name: str = "iqn.2026-01.org.detour:late") -> None:
        self._ledger, self._places, self._dice, self._late_s = ledger, places, dice, late_s
        self._portal, self._target, self._lun = portal, target, bytes([0, lun]) + bytes(6)
        self._options = LoginOptions(name, wishes=WISHES, login_seconds=5.0)
        self.done = self.lost = 0

    async def run(self) -> None:
        while True:
            with contextlib.suppress(DetourError, OSError):
                session = await login(*self._portal, self._target, self._options)
                try:
                    await self._work(session)
                finally:
                    session.sock.close()
            self.lost += 1
            await asyncio.sleep(0.05)

    async def _work(self, session: Login) -> None:
        params = session.params
        self._cmd_sn, self._exp_stat_sn = params.cmd_sn, params.stat_sn
        for tag in range(1, 1 << 31):
            place = self._dice.choice(self._places)
            number, block = self._ledger.issue(place)
            if await self._write(session, tag, self._ledger.offset_bytes(place) // 512, block):
                self._ledger.acknowledge(number)
                self.done += 1

    async def _write(self, session: Login, tag: int, lba: int, data: bytes) -> bool:
        """Whether the write ended well."""
        cdb = struct.pack(">BBIBHB", 0x2A, 0, lba, 0, BLOCK_BYTES // 512, 0).ljust(16, b"\0")
        header = struct.pack(">BB2x4s8sIIII", COMMAND, 0xA1, bytes(4), self._lun, tag, BLOCK_BYTES, self._cmd_sn,
                             self._exp_stat_sn)
        await wire.send(session.sock, header + cdb)
        self._cmd_sn = wire.serial_add(self._cmd_sn, 1)
        while True:
            pdu, _ = await wire.receive_pdu(session.sock, session.params.recv_data_bytes_max)
            opcode, transfer_tag, stat_sn = pdu[0] & 0x3F, *struct.unpack_from(">II", pdu, 20)
            if opcode == R2T:
                await self._send_data(session, tag, transfer_tag, data, *struct.unpack_from(">II", pdu, 40))
            elif opcode == RESPONSE:
                self._exp_stat_sn = wire.serial_add(stat_sn, 1)
                return pdu[2] == 0 and pdu[3] == 0
            elif opcode == NOP_IN:
                if transfer_tag != NONE:
                    await wire.send(session.sock, wire.nop_out(pdu[8:16], pdu[20:24], self._cmd_sn, self._exp_stat_sn))
            else:
                raise ConnectionResetError(f"PDU {opcode:02x}h ends the session")

    async def _send_data(self, session: Login, tag: int, transfer_tag: int, data: bytes, at: int, length: int) -> None:
        half = length // 2
        for number, (begin, end) in enumerate(((at, at + half), (at + half, at + length))):
            await asyncio.sleep(self._dice.uniform(0, self._late_s))
            part = data[begin:end]
            header = struct.pack(">BB2xB3s8sIIIIIIII", DATA_OUT, 0x80 if number else 0, 0, len(part).to_bytes(3, "big"),
                                 self._lun, tag, transfer_tag, 0, self._exp_stat_sn, 0, number, begin, 0)
            await wire.send(session.sock, header + part)
