"""The disk that a host meets in mid detour is the one that it met on main: bit for bit in what it says of itself, and
without a command in its list that it would refuse."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from detour.stores import CommandResult
from tests.interop.test_foreign_clients import DETOUR, HELD, MAINS, TGT, begin, check_still, new_site

ROOM = 4096
INVALID_OPCODE, INVALID_FIELD = (5, 0x20, 0), (5, 0x24, 0)
# Commands whose first byte does not say all: byte 1 has a service action.
WITH_ACTIONS = {0x48, 0x5E, 0x5F, 0x83, 0x84, 0x9E, 0x9F, 0xA3, 0xA4}
# What changes the medium, or reads it another way, and is not done on the overlay.
NOT_ON_THE_OVERLAY = (0x04, 0x07, 0x3B, 0x3F, 0x7F, 0x9F)
# Medium commands: CDB length by opcode; and where CDBs of that length have block and count (first byte, length).
PLACES = {6: ((1, 3), (4, 1)), 10: ((2, 4), (7, 2)), 12: ((2, 4), (6, 4)), 16: ((2, 8), (10, 4))}
READS = {0x08: 6, 0x28: 10, 0xA8: 12, 0x88: 16}
WRITES = {0x0A: 6, 0x2A: 10, 0xAA: 12, 0x8A: 16, 0x2E: 10, 0xAE: 12, 0x8E: 16}
VERIFIES = {0x2F: 10, 0xAF: 12, 0x8F: 16}
SAMES = {0x41: 10, 0x93: 16}
OTHERS = {0x35: 10, 0x91: 16, 0x34: 10, 0x90: 16}
BLOCKS = 16
Opcode = tuple[int, int]
Ask = Callable[..., Awaitable[CommandResult]]


def cdb_of(opcode: int, *fields: tuple[int, int, int]) -> bytes:
    """16 bytes; `fields` are (first byte, length, value)."""
    cdb = bytearray(16)
    cdb[0] = opcode
    for at, length, value in fields:
        cdb[at:at + length] = value.to_bytes(length, "big")
    return bytes(cdb)


def sense_of(answer: CommandResult) -> tuple[int, int, int] | None:
    """Key, code and qualifier of fixed or descriptor sense; None when the command was GOOD."""
    sense = answer.sense
    if answer.good:
        return None
    if not sense:
        return (answer.scsi_status, -1, -1)
    return (sense[1] & 15, sense[2], sense[3]) if sense[0] & 0x7F >= 0x72 else (sense[2] & 15, sense[12], sense[13])


async def identity_of(ask: Ask) -> dict[str, tuple[object, ...]]:
    """Everything that a disk tells of itself, by the name of the question: status, sense and data."""
    told: dict[str, tuple[object, ...]] = {}

    async def note(name: str, cdb: bytes) -> bytes:
        answer = await ask(cdb, data_in_bytes=ROOM, check=False)
        told[name] = (answer.scsi_status, sense_of(answer), answer.data, answer.residual)
        return answer.data

    await note("INQUIRY", cdb_of(0x12, (3, 2, 255)))
    await note("INQUIRY, 36 bytes", cdb_of(0x12, (3, 2, 36)))
    pages = await note("VPD 00", cdb_of(0x12, (1, 1, 1), (3, 2, ROOM)))
    for page in {*pages[4:4 + int.from_bytes(pages[2:4], "big")], 0xD5}:        # and one that is not there
        await note(f"VPD {page:02X}", cdb_of(0x12, (1, 1, 1), (2, 1, page), (3, 2, ROOM)))
    await note("READ CAPACITY 10", cdb_of(0x25))
    await note("READ CAPACITY 16", cdb_of(0x9E, (1, 1, 0x10), (10, 4, 32)))
    for control in range(3):                        # current, changeable and default values
        await note(f"MODE SENSE 6 {control}", cdb_of(0x1A, (2, 1, control << 6 | 0x3F), (4, 1, 255)))
        await note(f"MODE SENSE 10 {control}", cdb_of(0x5A, (2, 1, control << 6 | 0x3F), (7, 2, ROOM)))
    await note("MODE SENSE 10, with subpages", cdb_of(0x5A, (2, 1, 0x3F), (3, 1, 0xFF), (7, 2, ROOM)))
    for select in range(3):
        await note(f"REPORT LUNS {select}", cdb_of(0xA0, (2, 1, select), (6, 4, ROOM)))
    return told


async def listed(ask: Ask) -> dict[Opcode, int]:
    """REPORT SUPPORTED OPERATION CODES, all commands, with and without timeouts: CDB length by opcode and action."""
    found: list[dict[Opcode, int]] = []
    for timeouts in (0, 0x80):
        data = (await ask(cdb_of(0xA3, (1, 1, 0x0C), (2, 1, timeouts), (6, 4, 16384)), data_in_bytes=16384)).data
        assert int.from_bytes(data[:4], "big") == len(data) - 4
        commands: dict[Opcode, int] = {}
        at = 4
        while at < len(data):
            action = int.from_bytes(data[at + 2:at + 4], "big") if data[at + 5] & 1 else 0
            commands[data[at], action] = int.from_bytes(data[at + 6:at + 8], "big")
            at += 20 if data[at + 5] & 2 else 8
        found.append(commands)
    assert found[0] == found[1]
    return found[0]


async def sweep(ask: Ask) -> dict[Opcode, tuple[int, int, int] | None]:
    """How each opcode, and each service action, is answered when it is sent with nothing to do and no data. Only MODE
    SENSE asks for some: tgtd dies of one that has no room for an answer."""
    special = {0x1A: [(2, 1, 0x3F), (4, 1, 255)], 0x5A: [(2, 1, 0x3F), (7, 2, 255)], 0x1B: [(4, 1, 1)]}
    answers = {}
    for opcode in range(256):
        if opcode in (0x16, 0x56):                  # would reserve the disk
            continue
        for action in range(32) if opcode in WITH_ACTIONS else range(1):
            fields = [(1, 1, action)] if opcode in WITH_ACTIONS else special.get(opcode, [])
            answers[opcode, action] = sense_of(await ask(cdb_of(opcode, *fields), check=False,
                                                         data_in_bytes=255 if opcode in (0x1A, 0x5A) else 0))
    return answers


async def single(ask: Ask, opcode: int, action: int) -> bool:
    """REPORT SUPPORTED OPERATION CODES for one command: whether it is offered."""
    option = 2 if opcode in WITH_ACTIONS else 1
    answer = await ask(cdb_of(0xA3, (1, 1, 0x0C), (2, 1, option), (3, 1, opcode), (4, 2, action), (6, 4, ROOM)),
                       data_in_bytes=ROOM, check=False)
    if not answer.good:
        assert sense_of(answer) == INVALID_FIELD, (hex(opcode), action, sense_of(answer))
        return False
    return answer.data[1] & 7 == 3


class Medium:
    """Each medium command that is listed does what it is for."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.done: set[int] = set()

    def cdb(self, opcode: int, length: int, lba: int, flags: int = 0) -> bytes:
        place, count = PLACES[length]
        cdb = bytearray(cdb_of(opcode, (*place, lba), (*count, BLOCKS)))
        cdb[1] |= flags
        return bytes(cdb)

    async def good(self, cdb: bytes, **options: Any) -> bytes:
        """GOOD, or CONDITION MET, which PRE-FETCH ends with."""
        answer = await self.ask(cdb, check=False, **options)
        assert answer.scsi_status in ((0, 4) if cdb[0] in (0x34, 0x90) else (0,)), (cdb.hex(), sense_of(answer))
        self.done.add(cdb[0])
        return answer.data

    async def check(self, opcodes: set[int], lba: int) -> None:
        size = BLOCKS * 512
        content = b""
        for opcode, length in WRITES.items():
            if opcode in opcodes:
                content = bytes([opcode]) * size
                await self.good(self.cdb(opcode, length, lba), data_out=content)
                assert await self.good(self.cdb(0x28, 10, lba), data_in_bytes=size) == content, hex(opcode)
        for opcode, length in READS.items():
            if opcode in opcodes:
                assert await self.good(self.cdb(opcode, length, lba), data_in_bytes=size) == content, hex(opcode)
        for opcode, length in VERIFIES.items():
            if opcode in opcodes:
                await self.good(self.cdb(opcode, length, lba))
                await self.good(self.cdb(opcode, length, lba, 2), data_out=content)
                wrong = await self.ask(self.cdb(opcode, length, lba, 2), data_out=content[:-1] + b"!", check=False)
                assert sense_of(wrong) == (0x0E, 0x1D, 0), hex(opcode)
        for opcode, length in OTHERS.items():
            if opcode in opcodes:
                await self.good(self.cdb(opcode, length, lba))
        for opcode, length in SAMES.items():
            if opcode in opcodes:
                await self.good(self.cdb(opcode, length, lba), data_out=bytes([opcode]) * 512)
                assert await self.good(self.cdb(0x28, 10, lba), data_in_bytes=size) == bytes([opcode]) * size
        if 0x42 in opcodes:
            descriptor = lba.to_bytes(8, "big") + BLOCKS.to_bytes(4, "big") + bytes(4)
            await self.good(cdb_of(0x42, (7, 2, 24)), data_out=bytes([0, 22, 0, 16, 0, 0, 0, 0]) + descriptor)
            assert await self.good(self.cdb(0x28, 10, lba), data_in_bytes=size) == bytes(size)
        every = {*READS, *WRITES, *VERIFIES, *SAMES, *OTHERS, 0x42}
        assert self.done == every & opcodes and len(self.done) > 15

    async def status(self, lba: int) -> tuple[int, int, int]:
        """GET LBA STATUS: first block, blocks and provisioning of the first descriptor."""
        data = await self.good(cdb_of(0x9E, (1, 1, 0x12), (2, 8, lba), (10, 4, ROOM)), data_in_bytes=ROOM)
        assert int.from_bytes(data[:4], "big") == len(data) - 4 and len(data) >= 24
        return int.from_bytes(data[8:16], "big"), int.from_bytes(data[16:20], "big"), data[20] & 15


def in_mid_detour(main: str, folder: Path, before: Callable[[Ask], Awaitable[Any]],
                  meanwhile: Callable[[Ask, Any], Awaitable[None]]) -> None:
    """Runs `before` on main as a host finds it, and `meanwhile`, with what that answered, at the same door in mid
    detour; then the detour is cancelled and has to end well."""
    async def work() -> None:
        async with new_site(main, folder / "site", volume=HELD) as site:
            host = await site.open_host()
            found = await before(host.command)
            await host.close()
            await site.start_gateway()
            detour_id = await begin(site, "copying")
            host = await site.open_host()
            assert host.portal == f"{site.gateway_host}:{site.port}"
            await meanwhile(host.command, found)
            await check_still(site, detour_id, "copying")
            await host.close()
            async with site.client() as client:
                await client.cancel("vol")
                document = await site.follow(client, detour_id)
            assert document["result"] == "cancelled" and not document["warnings"], document
    asyncio.run(work())


@pytest.mark.parametrize("main", MAINS)
def test_a_host_meets_the_same_disk(main, tmp_path):
    async def compare(ask: Ask, direct: dict[str, tuple[object, ...]]) -> None:
        found = await identity_of(ask)
        assert found.keys() == direct.keys()
        for name, answer in direct.items():
            if name == "VPD B1" and answer[0] == 0:     # what blocks hold after a SANITIZE: nothing is erased here
                data = bytearray(answer[2])             # type: ignore[arg-type]
                data[7] &= 0x0F
                answer = (*answer[:2], bytes(data), *answer[3:])
            assert found[name] == answer, name
        assert sum(answer[0] == 0 for answer in direct.values()) > 10
    in_mid_detour(main, tmp_path, identity_of, compare)


@pytest.mark.parametrize("main", MAINS)
def test_the_list_of_commands_is_true(main, tmp_path):
    async def compare(ask: Ask, direct: dict[Opcode, int]) -> None:
        offered, answers = await listed(ask), await sweep(ask)
        assert offered.items() <= direct.items() and len(offered) > 30
        for command in offered:
            assert answers.get(command) != INVALID_OPCODE, f"{command} is listed and refused"
        for command in direct.keys() - offered.keys():
            others = any(opcode == command[0] for opcode, _ in offered)
            refusal = INVALID_FIELD if others else INVALID_OPCODE
            assert answers[command] == refusal, f"{command} is on main's list only, and not refused"
        for opcode, action in answers:
            if opcode in NOT_ON_THE_OVERLAY:
                assert answers[opcode, action] == INVALID_OPCODE and (opcode, action) not in offered
            if main == DETOUR and (opcode, action) not in offered:
                assert answers[opcode, action] in (INVALID_OPCODE, INVALID_FIELD), (hex(opcode), action)
        for opcode, action in offered.keys() | direct.keys() | {(code, 0) for code in NOT_ON_THE_OVERLAY}:
            assert await single(ask, opcode, action) == ((opcode, action) in offered), (hex(opcode), action)
        await Medium(ask).check({opcode for opcode, _ in offered}, 4096)
    in_mid_detour(main, tmp_path, listed, compare)


@pytest.mark.parametrize("main", MAINS)
def test_the_status_of_blocks_knows_what_was_written_during_the_detour(main, tmp_path):
    """A block that main calls deallocated may not be called so when the journal has data for it: a host would take it
    for zeros without reading it."""
    lba, blocks = 8192, 1024

    async def unmapped(ask: Ask) -> tuple[int, int, int]:
        descriptor = lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(4)
        await ask(cdb_of(0x42, (7, 2, 24)), data_out=bytes([0, 22, 0, 16, 0, 0, 0, 0]) + descriptor)
        return await Medium(ask).status(lba)

    async def compare(ask: Ask, direct: tuple[int, int, int]) -> None:
        medium = Medium(ask)
        first, length, kind = await medium.status(lba)
        assert (first, kind) == (direct[0], direct[2]) and length == direct[1]
        await medium.good(medium.cdb(0x2A, 10, lba + 256), data_out=b"d" * 8192)
        assert await medium.status(lba) == (lba, 256, direct[2])
        assert await medium.status(lba + 256) == (lba + 256, 16, 0)
        first, length, kind = await medium.status(lba + 272)
        assert (first, kind) == (lba + 272, direct[2]) and length == direct[1] - 272
        beyond = await ask(cdb_of(0x9E, (1, 1, 0x12), (2, 8, 1 << 40), (10, 4, 24)), data_in_bytes=24, check=False)
        assert sense_of(beyond) == (5, 0x21, 0)
        short = await ask(cdb_of(0x9E, (1, 1, 0x12), (2, 8, lba), (10, 4, 8)), data_in_bytes=8)
        assert len(short.data) == 8
        if main == TGT:
            assert direct[2] == 1           # a hole in tgtd's file: the test looks at what it is for
    in_mid_detour(main, tmp_path, unmapped, compare)
