"""What main's logical unit offers: its commands, how much it bears in one, and what its control mode page says.

A host meets the gateway instead of main, so the gateway offers what main offers and holds commands to main's limits.
Read by SCSI commands through anything that has `command`, as identity.py does.
"""
from __future__ import annotations

import struct
from dataclasses import dataclass, field

from detour.iscsi.identity import VPD_BLOCK_LIMITS, VPD_PROVISIONING, Commander, Identity

RSOC_BYTES_MAX = 65536
READ_KEYS = bytes([0x5E, 0x00, 0, 0, 0, 0, 0, 0, 8, 0])
PAGE_CACHING, PAGE_CONTROL = 0x08, 0x0A

# For a main that has no REPORT SUPPORTED OPERATION CODES: what every disk of its age has. What a VPD page tells of is
# added, reservations where main answers PERSISTENT RESERVE IN; what main alone answers it refuses by itself.
READS_WRITES = (0x08, 0x28, 0xA8, 0x88, 0x0A, 0x2A, 0xAA, 0x8A, 0x2E, 0xAE, 0x8E, 0x2F, 0xAF, 0x8F, 0x35, 0x91)
RESERVATIONS = (0x16, 0x17, 0x56, 0x57)
PERSISTENT_IN, PERSISTENT_OUT = 0x5E, 0x5F
UNMAP, WRITE_SAME_10, WRITE_SAME_16, COMPARE_AND_WRITE, WRITE_ATOMIC = 0x42, 0x41, 0x93, 0x89, 0x9C
EXTENDED_COPY, RECEIVE_COPY_RESULTS = 0x83, 0x84
GET_LBA_STATUS = (0x9E, 0x12)

# Commands that the gateway executes itself: what main does not offer of them is refused, as main would. All others main
# refuses by itself.
EXECUTED = (*READS_WRITES, *RESERVATIONS, PERSISTENT_IN, PERSISTENT_OUT, UNMAP, WRITE_SAME_10, WRITE_SAME_16,
            COMPARE_AND_WRITE, WRITE_ATOMIC, 0x8B, 0x34, 0x90, EXTENDED_COPY, RECEIVE_COPY_RESULTS)
ALL = 0xFFFFFFFF
# Refused always, as what erases of SANITIZE: they would reach beyond the overlay. FORMAT UNIT, REASSIGN BLOCKS, WRITE
# BUFFER, WRITE LONG (10), WRITE LONG (16).
NEVER = (0x04, 0x07, 0x3B, 0x3F, 0x9F)
SANITIZE, EXIT_FAILURE_MODE = 0x48, 0x1F

Commands = frozenset[tuple[int, int | None]]


@dataclass(frozen=True)
class Limits:
    """Block limits VPD page (SBC-3 6.6.3), in blocks; 0: none told, or of what is not offered."""

    write_same_blocks_max: int = 0
    write_same_zero_refused: bool = False
    unmap_blocks_max: int = 0
    unmap_descriptors_max: int = 0
    compare_blocks_max: int = 0
    atomic_blocks_max: int = 0
    atomic_alignment_blocks: int = 0
    atomic_granularity_blocks: int = 0


@dataclass(frozen=True)
class Offered:
    """`commands`: operation code and service action, None without one. `reported`: main listed them itself."""

    commands: Commands
    reported: bool
    limits: Limits = field(default_factory=Limits)
    thin: bool = False                  # LBPME: what is unmapped is deallocated


@dataclass(frozen=True)
class Modes:
    """`control`: the control mode page, or empty. A disk without a caching mode page is taken to have a cache."""

    control: bytes = b""
    write_cache: bool = True

    @property
    def descriptor_sense(self) -> bool:
        return len(self.control) > 2 and bool(self.control[2] & 0x04)

    @property
    def software_protected(self) -> bool:
        return len(self.control) > 4 and bool(self.control[4] & 0x08)


async def read_offered(unit: Commander, identity: Identity) -> Offered:
    """Asks main. DetourError when it is lost meanwhile; what it refuses has a default."""
    limits = limits_of(identity)
    listed = await _listed(unit)
    commands = listed if listed is not None else await _presumed(unit, identity, limits)
    return Offered(commands, listed is not None, limits, thin=_is_thin(identity))


async def read_modes(unit: Commander) -> Modes:
    """As hosts have set them by now."""
    caching = await _mode_page(unit, PAGE_CACHING)
    return Modes(await _mode_page(unit, PAGE_CONTROL), bool(caching[2] & 0x04) if len(caching) > 2 else True)


async def _listed(unit: Commander) -> Commands | None:
    """REPORT SUPPORTED OPERATION CODES (SPC-4 6.35), all commands; None where it is not offered."""
    cdb = struct.pack(">BBBBHIBB", 0xA3, 0x0C, 0, 0, 0, RSOC_BYTES_MAX, 0, 0)
    answer = await unit.command(cdb, data_in_bytes=RSOC_BYTES_MAX, check=False)
    return parse_commands(answer.data) if answer.good and len(answer.data) >= 12 else None


def parse_commands(data: bytes) -> Commands:
    """All complete descriptors of the list."""
    end = min(4 + int.from_bytes(data[:4], "big"), len(data))
    at, found = 4, set()
    while at + 8 <= end:
        opcode, _, action, _, flags, _ = struct.unpack_from(">BBHBBH", data, at)
        found.add((opcode, action if flags & 1 else None))
        at += 20 if flags & 2 else 8
    return frozenset(found)


async def _presumed(unit: Commander, identity: Identity, limits: Limits) -> Commands:
    provisioning = identity.vpd.get(VPD_PROVISIONING, b"")
    flags = provisioning[5] if len(provisioning) > 5 else 0
    found: set[tuple[int, int | None]] = {(opcode, None) for opcode in READS_WRITES}
    for offered, opcode in ((flags & 0x80, UNMAP), (flags & 0x40, WRITE_SAME_16), (flags & 0x20, WRITE_SAME_10),
                            (limits.write_same_blocks_max, WRITE_SAME_16),
                            (limits.compare_blocks_max, COMPARE_AND_WRITE), (limits.atomic_blocks_max, WRITE_ATOMIC)):
        if offered:
            found.add((opcode, None))
    if _is_thin(identity):
        found.add(GET_LBA_STATUS)
    if len(identity.inquiry) > 5 and identity.inquiry[5] & 0x08:
        found |= {(EXTENDED_COPY, None), (RECEIVE_COPY_RESULTS, None)}
    if (await unit.command(READ_KEYS, data_in_bytes=8, check=False)).good:
        found |= {(opcode, None) for opcode in (*RESERVATIONS, PERSISTENT_IN, PERSISTENT_OUT)}
    return frozenset(found)


def limits_of(identity: Identity) -> Limits:
    page = identity.vpd.get(VPD_BLOCK_LIMITS, b"")
    page = page + bytes(max(0, 64 - len(page)))
    unmap_blocks, unmap_descriptors = struct.unpack_from(">II", page, 20)
    write_same, = struct.unpack_from(">Q", page, 36)
    atomic, alignment, granularity = struct.unpack_from(">III", page, 44)
    return Limits(write_same, bool(page[4] & 0x01), unmap_blocks, unmap_descriptors, page[5], atomic, alignment,
                  granularity)


def _is_thin(identity: Identity) -> bool:
    return len(identity.capacity) > 14 and bool(identity.capacity[14] & 0x80)


async def _mode_page(unit: Commander, code: int) -> bytes:
    """Current values of a page, or nothing."""
    answer = await unit.command(bytes([0x1A, 0x08, code, 0, 0xFF, 0]), data_in_bytes=255, check=False)
    if not answer.good or len(answer.data) < 4:
        return b""
    page = answer.data[4 + answer.data[3]:]
    return page[:2 + page[1]] if len(page) >= 3 and page[0] & 0x7F == code else b""


def withheld(offered: Offered) -> dict[int, int]:
    """By operation code: bits of the service actions (bit 0 without any) that the gateway refuses."""
    refused = {opcode: ALL for opcode in (*NEVER, SANITIZE)}
    if (SANITIZE, EXIT_FAILURE_MODE) in offered.commands:
        refused[SANITIZE] = ALL & ~(1 << EXIT_FAILURE_MODE)
    for opcode in EXECUTED:
        actions = {action for code, action in offered.commands if code == opcode}
        if not actions:
            refused[opcode] = ALL
        elif None not in actions:
            refused[opcode] = ALL & ~sum(1 << (action & 0x1F) for action in actions if action is not None)
    for opcode, blocks in ((COMPARE_AND_WRITE, offered.limits.compare_blocks_max),
                           (WRITE_ATOMIC, offered.limits.atomic_blocks_max)):
        if blocks == 0:                 # SBC-3: the page says that it is not offered
            refused[opcode] = ALL
    return refused


def offers(offered: Offered, opcode: int) -> bool:
    return any(code == opcode for code, _ in offered.commands)


def naa_of(identity: Identity) -> bytes:
    """The NAA designator of the logical unit, by which EXTENDED COPY names it; empty without."""
    return next((name[1:] for name in identity.names if name[0] == 3 and len(name) in (9, 17)), b"")
