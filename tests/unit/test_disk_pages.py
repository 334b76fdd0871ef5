"""INQUIRY, vital product data, mode and log pages of a plain disk byte by byte, as SPC-4 and SBC-3 lay them out."""
from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.pdu_client import Host, World, cdb_rw

INVALID_FIELD, INVALID_PARAMETER, LIST_LENGTH, NOT_SAVED = 0x052400, 0x052600, 0x051A00, 0x053900
MODE_CHANGED, LOG_CHANGED, PROTECTED, PROTECTED_BY_SOFTWARE = 0x062A01, 0x062A02, 0x072700, 0x072702
CACHING, CONTROL = 0x08, 0x0A
BLOCKS = 8192


@contextlib.contextmanager
def session(**disk: Any) -> Iterator[Host]:
    world = World(**disk)
    host = Host(world)
    try:
        yield host
    finally:
        host.close()
        world.close()


@pytest.fixture
def host() -> Iterator[Host]:
    with session() as made:
        yield made


def inquiry(host: Host, page: int | None = None, length: int = 512) -> Any:
    return host.command(struct.pack(">BBBHB", 0x12, page is not None, page or 0, length, 0), length)


def sense_6(host: Host, page: int, control: int = 0, *, subpage: int = 0, flags: int = 8, length: int = 255) -> Any:
    return host.command(bytes([0x1A, flags, control << 6 | page, subpage, length, 0]), length)


def sense_10(host: Host, page: int, control: int = 0, *, flags: int = 8, length: int = 512) -> Any:
    return host.command(struct.pack(">BBBBBBBHB", 0x5A, flags, control << 6 | page, 0, 0, 0, 0, length, 0), length)


def select_6(host: Host, parameters: bytes, flags: int = 0x10) -> Any:
    return host.command_out(bytes([0x15, flags, 0, 0, len(parameters), 0]), parameters)


def select_10(host: Host, parameters: bytes, flags: int = 0x10) -> Any:
    return host.command_out(struct.pack(">BB5sHB", 0x55, flags, bytes(5), len(parameters), 0), parameters)


def page_of(host: Host, page: int, control: int = 0) -> bytearray:
    return bytearray(sense_6(host, page, control).data[4:])


def second(host: Host, number: int = 2) -> Host:
    return Host(host.world, name=f"iqn.2026-01.example:host{number}", isid=bytes([0, 2, 0x3D, 0, 0, number]))


# ---- INQUIRY ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("removable", [False, True])
def test_standard_data(removable):
    with session(removable=removable) as host:
        data = inquiry(host).data
    expected = bytearray(96)
    expected[1] = 0x80 if removable else 0                  # RMB
    expected[2:5] = 0x06, 0x12, 91                          # SPC-4; HISUP, format 2; additional length
    expected[5] = 0x08                                      # 3PC: EXTENDED COPY is offered
    expected[7] = 0x02                                      # CMDQUE
    expected[8:36] = b"DETOUR  VIRTUAL DISK    0001"
    expected[58:66] = struct.pack(">HHHH", 0x00A0, 0x0960, 0x0460, 0x04C0)      # SAM-5, iSCSI, SPC-4, SBC-3
    assert data == bytes(expected)


def designators(page: bytes) -> list[tuple[int, int, int, int, bytes]]:
    """(protocol, code set, association, type, value) of each designator."""
    found, at = [], 4
    while at < len(page):
        head, kind, _, length = page[at:at + 4]
        assert bool(kind & 0x80) == bool(head >> 4)         # PIV with a protocol only
        found.append((head >> 4, head & 15, kind >> 4 & 3, kind & 15, page[at + 4:at + 4 + length]))
        at += 4 + length
    assert at == len(page)
    return found


def test_identification_names_unit_and_port():
    with session(port_name="iqn.2026-01.example:disk,t,0x0001") as host:
        found = designators(inquiry(host, 0x83).data)
        naa = host.world.disk.naa
    assert found[0] == (0, 1, 0, 3, naa)
    assert found[1] == (0, 2, 0, 1, b"DETOUR  test0001")
    assert found[2] == (5, 1, 1, 4, b"\0\0\0\1")
    name = found[3][4]
    assert found[3][:4] == (5, 3, 1, 8) and len(name) % 4 == 0
    assert name.rstrip(b"\0") == b"iqn.2026-01.example:disk,t,0x0001" and name.endswith(b"\0")
    with session() as host:
        assert len(designators(inquiry(host, 0x83).data)) == 3


@pytest.mark.parametrize("name_bytes", [229, 230, 231, 232])
def test_a_long_port_name_is_told_whole(name_bytes):
    name = ("iqn.2026-01.example:" + "x" * 300)[:name_bytes]
    with session(port_name=name) as host:
        value = designators(inquiry(host, 0x83).data)[3][4]
    assert value.rstrip(b"\0") == name.encode() and len(value) % 4 == 0


def test_extended_inquiry(host):
    expected = bytearray(64)
    expected[1:4] = 0x86, 0, 60
    expected[5], expected[6] = 0x07, 0x01                   # HEADSUP, ORDSUP, SIMPSUP; V_SUP
    assert inquiry(host, 0x86).data == bytes(expected)


@pytest.mark.parametrize("block_bytes", [512, 4096])
@pytest.mark.parametrize("thin", [False, True])
def test_block_limits(block_bytes, thin):
    with session(block_bytes=block_bytes, thin=thin) as host:
        data = inquiry(host, 0xB0).data
    part = (1 << 20) // block_bytes
    page = 4096 // block_bytes
    assert len(data) == 64 and data[:4] == b"\0\xb0\0\x3c"
    wsnz, compare, granularity, most, best, prefetch = struct.unpack_from(">BBHIII", data, 4)
    assert (wsnz, compare, granularity, most, best, prefetch) == (0, 255, page, 64 * part, part, 0)
    unmap = struct.unpack_from(">IIII", data, 20)
    assert unmap == ((0x100000, 256, page, 0x80000000) if thin else (0, 0, 0, 0))
    assert struct.unpack_from(">QIIIII", data, 36) == (0, part, 0, 0, 0, 0)     # WRITE SAME, atomic


def test_characteristics_and_provisioning(host):
    characteristics = inquiry(host, 0xB1).data
    assert characteristics == b"\0\xb1\0\x3c\0\1\0\x40" + bytes(56)             # does not rotate; WABEREQ
    assert inquiry(host, 0xB2).data == b"\0\xb2\0\4\0\xe4\2\0"                  # no threshold; LBPU LBPWS LBPWS10 LBPRZ
    with session(thin=False) as thick:
        assert inquiry(thick, 0xB2).data == b"\0\xb2\0\4\0\0\0\0"


@pytest.mark.parametrize("length", [0, 1, 4, 5, 35, 36, 63, 64, 255, 4096])
def test_the_allocation_length_cuts_and_changes_nothing_else(host, length):
    for page in (None, 0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2):
        whole = inquiry(host, page, 4096).data
        assert inquiry(host, page, length).data == whole[:length]


@pytest.mark.parametrize("block_bytes, physical_bytes, exponent",
                         [(512, 0, 0), (512, 512, 0), (512, 4096, 3), (1024, 4096, 2), (4096, 0, 0), (4096, 4096, 0)])
def test_long_capacity(block_bytes, physical_bytes, exponent):
    with session(block_bytes=block_bytes, physical_bytes=physical_bytes) as host:
        data = host.command(struct.pack(">BBQIBB", 0x9E, 0x10, 0, 64, 0, 0), 64).data
    assert data == struct.pack(">QIBBBB", (4 << 20) // block_bytes - 1, block_bytes, 0, exponent, 0xC0, 0) + bytes(16)


def test_capacity_takes_an_address_only_with_pmi(host):
    for at in range(2, 10):
        cdb = bytearray(struct.pack(">BBQIBB", 0x9E, 0x10, 0, 32, 0, 0))
        cdb[at] = 1
        assert host.command(bytes(cdb), 32).sense == INVALID_FIELD
        cdb[14] = 1
        assert host.command(bytes(cdb), 32).status == 0


# ---- MODE SENSE ------------------------------------------------------------------------------------------------------

PAGES = {0x01: 12, CACHING: 20, CONTROL: 12, 0x1C: 12}


@pytest.mark.parametrize("control", [0, 1, 2])
def test_mode_pages(host, control):
    expected = {page: bytearray([page, length - 2]) + bytes(length - 2) for page, length in PAGES.items()}
    if control == 1:
        expected[CACHING][2] = 0x04                                             # WCE
        expected[CONTROL][2], expected[CONTROL][4] = 0x04, 0x08                 # D_SENSE, SWP
    else:
        expected[0x01][2] = 0xC0                                                # AWRE, ARRE
        expected[CACHING][2] = 0x04
        expected[CONTROL][2:4] = 0x02, 0x10                                     # GLTSD; unrestricted reordering
        expected[CONTROL][8:10] = b"\xff\xff"                                   # busy timeout period
        expected[0x1C][2] = 0x08                                                # DEXCPT
    for page, value in expected.items():
        assert page_of(host, page, control) == value
        assert sense_10(host, page, control).data[8:] == value
    assert sense_6(host, 0x3F, control).data[4:] == b"".join(expected.values())
    assert sense_6(host, 0x3F, control, subpage=0xFF).data[4:] == b"".join(expected.values())


def test_mode_headers_and_block_descriptors(host):
    short, long = struct.pack(">II", BLOCKS, 512), struct.pack(">QII", BLOCKS, 0, 512)
    assert sense_6(host, CACHING, flags=0).data[:12] == bytes([31, 0, 0x10, 8]) + short
    assert sense_6(host, CACHING, flags=8).data[:4] == bytes([23, 0, 0x10, 0])
    assert sense_10(host, CACHING, flags=0).data[:16] == b"\0\x22\0\x10\0\0\0\x08" + short
    assert sense_10(host, CACHING, flags=0x10).data[:24] == b"\0\x2a\0\x10\1\0\0\x10" + long
    assert sense_10(host, CACHING, flags=0x18).data[:8] == b"\0\x1a\0\x10\1\0\0\0"
    for length in (0, 1, 3, 4, 11, 30):
        assert sense_6(host, CACHING, flags=0, length=length).data == sense_6(host, CACHING, flags=0).data[:length]


def test_what_mode_sense_refuses(host):
    for page in (0x00, 0x02, 0x09, 0x1A, 0x2F):
        assert sense_6(host, page).sense == INVALID_FIELD
        assert sense_6(host, page, 3).sense == INVALID_FIELD
    assert sense_6(host, CACHING, subpage=1).sense == INVALID_FIELD
    for page in (*PAGES, 0x3F):
        assert sense_6(host, page, 3).sense == NOT_SAVED == sense_10(host, page, 3).sense


def test_write_protection_is_told_and_kept():
    with session(read_only=True) as host:
        assert sense_6(host, CACHING).data[2] == 0x90
        for cdb, data in ((cdb_rw(0x2A, 0, 1), bytes(512)), (cdb_rw(0x93, 0, 1), bytes(512)),
                          (struct.pack(">BB5sHB", 0x42, 0, bytes(5), 24, 0), b"\0\x16\0\x10" + bytes(20))):
            assert host.command_out(cdb, data).sense == PROTECTED


# ---- MODE SELECT -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("select, header", [(select_6, 4), (select_10, 8)])
def test_what_holds_is_taken_and_what_cannot_change_is_not(host, select, header):
    for page in PAGES:
        value = page_of(host, page)
        assert select(host, bytes(header) + value).status == 0
        changeable = page_of(host, page, 1)
        for at in range(2, len(value)):
            for bit in range(8):
                wrong = bytearray(value)
                wrong[at] ^= 1 << bit
                if not changeable[at] & 1 << bit:
                    assert select(host, bytes(header) + wrong).sense == INVALID_PARAMETER, (page, at, bit)
        assert page_of(host, page) == value
    both = page_of(host, CACHING) + page_of(host, CONTROL)
    assert select(host, bytes(header) + both).status == 0


@pytest.mark.parametrize("select, header", [(select_6, 4), (select_10, 8)])
def test_lists_of_a_wrong_length(host, select, header):
    page = page_of(host, CACHING)
    assert select(host, b"").status == 0
    for length in range(1, header):
        assert select(host, bytes(length)).sense == LIST_LENGTH
    for length in range(1, len(page)):
        assert select(host, bytes(header) + page[:length]).sense == LIST_LENGTH
    assert select(host, bytes(header) + page + page[:1]).sense == LIST_LENGTH
    page[1] += 1
    assert select(host, bytes(header) + page + b"\0").sense == INVALID_PARAMETER
    for other in (0x00, 0x02, 0x3F, 0x48):
        assert select(host, bytes(header) + bytes([other, 0x0A]) + bytes(10)).sense == INVALID_PARAMETER


def test_block_descriptors_may_only_repeat_what_is(host):
    def head(blocks: int, size: int) -> bytes:
        return b"\0\0\0\x08" + struct.pack(">II", blocks, size)

    page = page_of(host, CACHING)
    for blocks in (0, BLOCKS, 0xFFFFFFFF):
        assert select_6(host, head(blocks, 512) + page).status == 0
    assert select_6(host, head(BLOCKS, 4096)).sense == INVALID_PARAMETER
    assert select_6(host, head(BLOCKS - 1, 512)).sense == INVALID_PARAMETER
    assert select_6(host, head(BLOCKS, 512)[:10]).sense == LIST_LENGTH
    assert select_6(host, b"\0\0\0\x10" + bytes(16)).sense == INVALID_PARAMETER
    assert select_6(host, b"\0\1\0\0").sense == INVALID_PARAMETER                       # medium type
    assert select_10(host, b"\0\0\0\0\1\0\0\x10" + struct.pack(">QII", BLOCKS, 0, 512) + page).status == 0
    assert select_10(host, b"\0\0\0\0\1\0\0\x10" + struct.pack(">QII", BLOCKS + 1, 0, 512)).sense == INVALID_PARAMETER
    assert select_6(host, b"\0\0\0\xff").sense == INVALID_PARAMETER


def test_nothing_is_saved_and_a_refused_list_changes_nothing(host):
    control, caching = page_of(host, CONTROL), page_of(host, CACHING)
    assert select_6(host, bytes(4) + caching, flags=0x11).sense == INVALID_FIELD        # SP
    assert select_6(host, bytes(4) + caching, flags=0x12).sense == INVALID_FIELD        # RTD
    control[4] |= 0x08
    caching[3] ^= 1
    assert select_6(host, bytes(4) + control + caching).sense == INVALID_PARAMETER
    assert page_of(host, CONTROL)[4] == 0 and host.write(0, bytes(512)).status == 0


def test_software_write_protection(host):
    control = page_of(host, CONTROL)
    control[4] |= 0x08
    assert select_6(host, bytes(4) + control).status == 0
    assert page_of(host, CONTROL) == control and page_of(host, CONTROL, 2)[4] == 0
    assert sense_6(host, CONTROL).data[2] == 0x90                                       # WP is told, too
    assert host.write(0, bytes(512)).sense == PROTECTED_BY_SOFTWARE
    assert host.command_out(cdb_rw(0x93, 0, 1), bytes(512)).sense == PROTECTED_BY_SOFTWARE
    assert host.read(0, 1).status == 0
    control[4] ^= 0x08
    assert select_10(host, bytes(8) + control).status == 0
    assert host.write(0, bytes(512)).status == 0


def raw_sense(host: Host, cdb: bytes, edtl: int = 0) -> bytes:
    """The sense data of a command that fails."""
    pdu = None
    itt = host.begin(cdb, flags=0x40 if edtl else 0, edtl=edtl)
    while pdu is None or pdu.itt != itt:
        pdu = host.pdu()
    assert pdu.bhs[3] == 2 and struct.unpack_from(">H", pdu.data)[0] == len(pdu.data) - 2
    return pdu.data[2:]


def test_descriptor_sense_is_for_all_that_the_unit_reports(host):
    beyond, unknown, wrong_page = cdb_rw(0x28, 1 << 30, 1), bytes([0xC1]) + bytes(15), bytes([0x1A, 8, 0x2F, 0, 255, 0])
    for cdb in (beyond, unknown, wrong_page):
        assert raw_sense(host, cdb, 512)[0] == 0x70
    control = page_of(host, CONTROL)
    control[2] |= 0x04
    assert select_6(host, bytes(4) + control).status == 0
    assert raw_sense(host, beyond, 512)[:8] == b"\x72\x05\x21\0\0\0\0\0"
    assert raw_sense(host, unknown, 512)[:8] == b"\x72\x05\x20\0\0\0\0\0"
    assert raw_sense(host, wrong_page, 512)[:4] == b"\x72\x05\x24\0"
    other = Host(host.world, name="iqn.2026-01.example:late", isid=b"\0\2\x3d\0\0\7", eat_attention=False)
    assert raw_sense(other, bytes(6))[:4] == b"\x72\x06\x29\0"                          # the attention of a new nexus
    other.close()
    control[2] ^= 0x04
    assert select_6(host, bytes(4) + control).status == 0
    assert raw_sense(host, beyond, 512)[0] == 0x70


def test_a_change_is_told_to_the_others_once_and_a_repetition_is_not(host):
    other = second(host)
    control = page_of(host, CONTROL)
    assert select_6(host, bytes(4) + control).status == 0
    assert other.command(bytes(6)).status == 0
    control[2] ^= 0x04
    assert select_6(host, bytes(4) + control).status == 0
    assert host.command(bytes(6)).status == 0
    assert raw_sense(other, bytes(6))[1:4] == b"\x06\x2a\x01"
    assert other.command(bytes(6)).status == 0
    other.close()


# ---- LOG -------------------------------------------------------------------------------------------------------------

def log_sense(host: Host, page: int, control: int = 1, *, subpage: int = 0, first: int = 0, flags: int = 0,
              length: int = 512) -> Any:
    cdb = struct.pack(">BBBBBHHB", 0x4D, flags, control << 6 | page, subpage, 0, first, length, 0)
    return host.command(cdb, length)


def parameters(data: bytes) -> dict[int, bytes]:
    found, at = {}, 4
    assert struct.unpack_from(">H", data, 2)[0] == len(data) - 4
    while at < len(data):
        code, control, length = struct.unpack_from(">HBB", data, at)
        assert control & 0xDC == 0x00                               # no thresholds
        found[code] = data[at + 4:at + 4 + length]
        at += 4 + length
    assert at == len(data) and list(found) == sorted(found)
    return found


def test_log_pages(host):
    assert log_sense(host, 0).data == b"\0\0\0\x05\x00\x02\x03\x19\x2f"
    assert log_sense(host, 0, subpage=0xFF).data == b"\x40\xff\0\x0c" + b"\0\0\0\xff\x02\0\x03\0\x19\0\x2f\0"
    assert log_sense(host, 0x2F).data == b"\x2f\0\0\x08" + b"\0\0\x23\x04\0\0\xff\0"
    host.write(8, bytes(1024))
    host.read(8, 1)
    writes, reads = (parameters(log_sense(host, page).data) for page in (2, 3))
    assert writes == {**{code: bytes(8) for code in (0, 1, 2, 3, 4, 6)}, 5: struct.pack(">Q", 1024)}
    assert reads == {**{code: bytes(8) for code in (0, 1, 2, 3, 4, 6)}, 5: struct.pack(">Q", 512)}
    statistics = parameters(log_sense(host, 0x19).data)
    assert statistics == {1: struct.pack(">8Q", 1, 1, 2, 1, 0, 0, 0, 0)}    # reads, writes, received, transmitted
    assert parameters(log_sense(host, 2, 3).data)[5] == bytes(8)            # default cumulative values
    assert list(parameters(log_sense(host, 2, first=5).data)) == [5, 6]
    for length in (0, 3, 4, 17):
        assert log_sense(host, 2, length=length).data == log_sense(host, 2).data[:length]


def test_what_log_sense_refuses(host):
    for page in (0x01, 0x05, 0x0C, 0x0D, 0x3F):
        assert log_sense(host, page).sense == INVALID_FIELD
    for refused in (log_sense(host, 2, 0), log_sense(host, 2, 2), log_sense(host, 2, subpage=1),
                    log_sense(host, 2, first=7), log_sense(host, 0x2F, first=1), log_sense(host, 0, flags=1),
                    log_sense(host, 2, subpage=0xFF), log_sense(host, 0, first=1)):
        assert refused.sense == INVALID_FIELD


def test_log_select_resets_the_counts_and_tells_the_others(host):
    other = second(host)
    host.write(0, bytes(512))
    assert host.command(bytes([0x4C, 0, 0x40]) + bytes(7)).status == 0                  # without PCR: nothing
    assert parameters(log_sense(host, 2).data)[5] == struct.pack(">Q", 512)
    assert host.command(bytes([0x4C, 2, 0x40]) + bytes(7)).status == 0
    assert parameters(log_sense(host, 2).data)[5] == bytes(8)
    assert parameters(log_sense(host, 0x19).data)[1] == bytes(64)
    assert other.command(bytes(6)).sense == LOG_CHANGED and host.command(bytes(6)).status == 0
    assert host.command(bytes([0x4C, 1, 0x40]) + bytes(7)).sense == INVALID_FIELD       # SP
    cdb = bytes([0x4C, 0, 0x40, 0, 0, 0, 0, 0, 8, 0])
    assert host.command_out(cdb, bytes(8)).sense == INVALID_PARAMETER
    other.close()


# ---- diagnostics, defects, sense -------------------------------------------------------------------------------------

def test_diagnostics(host):
    def send(flags: int, data: bytes = b"") -> Any:
        cdb = struct.pack(">BBBHB", 0x1D, flags, 0, len(data), 0)
        return host.command_out(cdb, data) if data else host.command(cdb)

    assert send(0x04).status == 0 and send(0x10).status == 0
    assert send(0x10, bytes(4)).status == 0
    assert host.command(bytes([0x1C, 1, 0, 0, 64, 0]), 64).data == b"\0\0\0\1\0"
    assert host.command(bytes([0x1C, 0, 0, 0, 64, 0]), 64).data == b"\0\0\0\1\0"
    assert host.command(bytes([0x1C, 1, 0x40, 0, 64, 0]), 64).sense == INVALID_FIELD
    assert send(0x20).sense == INVALID_FIELD and send(0x14, bytes(4)).sense == INVALID_FIELD
    assert send(0x10, b"\x40\0\0\0").sense == INVALID_PARAMETER and send(0x10, b"\0\0\0").sense == LIST_LENGTH


@pytest.mark.parametrize("form", [0, 3, 4, 5])
def test_defect_lists_are_empty(host, form):
    for lists in (0x00, 0x08, 0x10, 0x18):
        ten = host.command(struct.pack(">BBB4xHB", 0x37, 0, lists | form, 64, 0), 64).data
        twelve = host.command(struct.pack(">BBIIBB", 0xB7, lists | form, 0, 64, 0, 0), 64).data
        assert ten == bytes([0, lists | form, 0, 0]) and twelve == bytes([0, lists | form]) + bytes(6)
    assert host.command(struct.pack(">BBB4xHB", 0x37, 0, 1, 64, 0), 64).sense == INVALID_FIELD


def test_request_sense_in_both_formats(host):
    assert host.command(bytes([3, 0, 0, 0, 252, 0]), 252).data == b"\x70" + bytes(6) + b"\x0a" + bytes(10)
    assert host.command(bytes([3, 1, 0, 0, 252, 0]), 252).data == b"\x72" + bytes(7)
    assert host.command(bytes([3, 0, 0, 0, 4, 0]), 4).data == b"\x70\0\0\0"


# ---- the table of commands -------------------------------------------------------------------------------------------

LBA_16, LBA_10 = "ff ff ff ff ff ff ff ff", "ff ff ff ff"
USAGE = {                                               # as SPC-4 and SBC-3 name what is looked at; control: NACA
    "TEST UNIT READY": "00 00 00 00 00 04",
    "REQUEST SENSE": "03 01 00 00 ff 04",
    "READ(6)": "08 1f ff ff ff 04",
    "WRITE(6)": "0a 1f ff ff ff 04",
    "INQUIRY": "12 01 ff ff ff 04",
    "MODE SELECT(6)": "15 11 00 00 ff 04",
    "MODE SENSE(6)": "1a 08 ff ff ff 04",
    "START STOP UNIT": "1b 01 00 0f f7 04",
    "RECEIVE DIAGNOSTIC RESULTS": "1c 01 ff ff ff 04",
    "SEND DIAGNOSTIC": "1d f7 00 ff ff 04",
    "PREVENT ALLOW MEDIUM REMOVAL": "1e 00 00 00 03 04",
    "READ CAPACITY(10)": "25 00 ff ff ff ff 00 00 01 04",
    "READ(10)": f"28 f8 {LBA_10} 00 ff ff 04",
    "WRITE(10)": f"2a f8 {LBA_10} 00 ff ff 04",
    "WRITE AND VERIFY(10)": f"2e f6 {LBA_10} 00 ff ff 04",
    "VERIFY(10)": f"2f f6 {LBA_10} 00 ff ff 04",
    "PRE-FETCH(10)": f"34 02 {LBA_10} 00 ff ff 04",
    "SYNCHRONIZE CACHE(10)": f"35 02 {LBA_10} 00 ff ff 04",
    "READ DEFECT DATA(10)": "37 00 1f 00 00 00 00 ff ff 04",
    "WRITE SAME(10)": f"41 f8 {LBA_10} 00 ff ff 04",
    "UNMAP": "42 00 00 00 00 00 00 ff ff 04",
    "SANITIZE BLOCK ERASE": "48 a2 00 00 00 00 00 ff ff 04",
    "SANITIZE EXIT FAILURE MODE": "48 bf 00 00 00 00 00 ff ff 04",
    "LOG SELECT": "4c 03 ff ff 00 00 00 ff ff 04",
    "LOG SENSE": "4d 01 ff ff 00 ff ff ff ff 04",
    "MODE SELECT(10)": "55 11 00 00 00 00 00 ff ff 04",
    "MODE SENSE(10)": "5a 18 ff ff 00 00 00 ff ff 04",
    **{f"PERSISTENT RESERVE IN {action}": f"5e {action:02x} 00 00 00 00 00 ff ff 04" for action in range(4)},
    **{f"PERSISTENT RESERVE OUT {action}": f"5f {action:02x} ff 00 00 ff ff ff ff 04" for action in range(8)},
    "EXTENDED COPY(LID1)": "83 00 00 00 00 00 00 00 00 00 ff ff ff ff 00 04",
    "RECEIVE COPY STATUS(LID1)": "84 00 ff 00 00 00 00 00 00 00 ff ff ff ff 00 04",
    "RECEIVE COPY OPERATING PARAMETERS": "84 03 00 00 00 00 00 00 00 00 ff ff ff ff 00 04",
    "RECEIVE COPY FAILURE DETAILS(LID1)": "84 04 ff 00 00 00 00 00 00 00 ff ff ff ff 00 04",
    "READ(16)": f"88 f8 {LBA_16} ff ff ff ff 00 04",
    "COMPARE AND WRITE": f"89 f8 {LBA_16} 00 00 00 ff 00 04",
    "WRITE(16)": f"8a f8 {LBA_16} ff ff ff ff 00 04",
    "ORWRITE(16)": f"8b f8 {LBA_16} ff ff ff ff 00 04",
    "WRITE AND VERIFY(16)": f"8e f6 {LBA_16} ff ff ff ff 00 04",
    "VERIFY(16)": f"8f f6 {LBA_16} ff ff ff ff 00 04",
    "PRE-FETCH(16)": f"90 02 {LBA_16} ff ff ff ff 00 04",
    "SYNCHRONIZE CACHE(16)": f"91 02 {LBA_16} ff ff ff ff 00 04",
    "WRITE SAME(16)": f"93 f9 {LBA_16} ff ff ff ff 00 04",
    "WRITE ATOMIC(16)": f"9c f8 {LBA_16} ff ff ff ff 00 04",
    "READ CAPACITY(16)": f"9e 10 {LBA_16} ff ff ff ff 01 04",
    "GET LBA STATUS": f"9e 12 {LBA_16} ff ff ff ff 00 04",
    "REPORT LUNS": "a0 00 ff 00 00 00 ff ff ff ff 00 04",
    "REPORT SUPPORTED OPERATION CODES": "a3 0c 87 ff ff ff ff ff ff ff 00 04",
    "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS": "a3 0d 80 00 00 00 ff ff ff ff 00 04",
    "READ(12)": f"a8 f8 {LBA_10} ff ff ff ff 00 04",
    "WRITE(12)": f"aa f8 {LBA_10} ff ff ff ff 00 04",
    "WRITE AND VERIFY(12)": f"ae f6 {LBA_10} ff ff ff ff 00 04",
    "VERIFY(12)": f"af f6 {LBA_10} ff ff ff ff 00 04",
    "READ DEFECT DATA(12)": "b7 1f ff ff ff ff ff ff ff ff 00 04",
}
RESERVE_RELEASE = {0x16, 0x17, 0x56, 0x57}
WITH_ACTIONS = {0x48, 0x5E, 0x5F, 0x83, 0x84, 0x9E, 0xA3}


def report(host: Host, options: int, opcode: int = 0, action: int = 0) -> bytes:
    cdb = struct.pack(">BBBBHIBB", 0xA3, 0x0C, options, opcode, action, 8192, 0, 0)
    return host.command(cdb, 8192).data


def listed(host: Host) -> dict[tuple[int, int | None], int]:
    """(opcode, service action or None) -> length of the CDB, of all commands."""
    data = report(host, 0)
    rows = [struct.unpack_from(">BBHBBH", data, at) for at in range(4, len(data), 8)]
    return {(opcode, action if flags & 1 else None): length for opcode, _, action, _, flags, length in rows}


def test_the_commands_and_what_is_looked_at_in_them(host):
    told = {key: length for key, length in listed(host).items() if key[0] not in RESERVE_RELEASE}
    expected = {}
    for usage in map(bytes.fromhex, USAGE.values()):
        key = (usage[0], usage[1] & 0x1F if usage[0] in WITH_ACTIONS else None)
        expected[key] = len(usage)
        one = report(host, 3, key[0], key[1] or 0)
        assert one == b"\0\3" + struct.pack(">H", len(usage)) + usage
    assert told == expected
    assert {key[0] for key in listed(host)} - {key[0] for key in told} == RESERVE_RELEASE


OVERWRITE = "48 a1 00 00 00 00 00 ff ff 04"


def test_what_a_thick_disk_lacks_is_not_told(host):
    with session(thin=False) as thick:
        assert listed(host).keys() - listed(thick).keys() == {(0x42, None), (0x48, 2)}      # UNMAP, BLOCK ERASE
        assert listed(thick).keys() - listed(host).keys() == {(0x48, 1)}
        assert report(thick, 2, 0x48, 1)[4:] == bytes.fromhex(OVERWRITE)


@pytest.mark.parametrize("disk", [{"removable": True}, {"read_only": True}])
def test_other_disks_have_the_same_commands(host, disk):
    with session(**disk) as other:
        assert listed(host) == listed(other)
