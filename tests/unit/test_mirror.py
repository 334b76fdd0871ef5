"""What main offers, its limits, modes and reservations: read from any kind of main, kept in step by a real gateway."""
import asyncio
import struct
from types import SimpleNamespace

import pytest

from detour.errors import StorageError
from detour.iscsi.identity import Identity
from detour.iscsi.offered import ALL, Limits, naa_of, offers, parse_commands, read_modes, read_offered, withheld
from detour.iscsi.registrations import check_writable, read_full_status, registrants, same_registrations
from detour.mirror import MainMirror
from tests.support.gateway_world import GatewayWorld

INQUIRY = bytes(36)
GOOD, CONFLICT = 0, 0x18


def answer(data=b"", status=0):
    return SimpleNamespace(scsi_status=status, data=data, good=status == 0, sense=b"")


class Unit:
    """Answers by (operation code, service action or page); anything else is refused."""

    def __init__(self, answers):
        self.answers = answers

    async def command(self, cdb, *, data_in_bytes=0, check=True, data_out=b""):
        key = (cdb[0], cdb[2] if cdb[0] == 0x1A else cdb[1] & 0x1F)
        found = self.answers.get(key, answer(status=2))
        return answer(found) if isinstance(found, bytes) else found


def identity(vpd=None, capacity=bytes(32), inquiry=INQUIRY):
    return Identity(inquiry, vpd or {}, 1 << 20, 512, capacity, b"", False)


def listing(*commands):
    body = b"".join(struct.pack(">BBHBBH", code, 0, action or 0, 0, action is not None, 10)
                    for code, action in commands)
    return struct.pack(">I", len(body)) + body


def limits_page(**more):
    page = bytearray(64)
    page[1], page[3] = 0xB0, 0x3C
    page[4], page[5] = 1, more.get("compare", 0)
    struct.pack_into(">II", page, 20, 1000, 10)
    struct.pack_into(">Q", page, 36, more.get("same", 0))
    struct.pack_into(">III", page, 44, more.get("atomic", 0), 8, 4)
    return bytes(page)


# --- commands and limits

def test_mains_own_list_counts():
    page = limits_page(compare=255, same=65536, atomic=64)
    unit = Unit({(0xA3, 0x0C): listing((0x28, None), (0x5F, 0), (0x5F, 6), (0x89, None), (0x9C, None), (0x42, None))})
    offered = asyncio.run(read_offered(unit, identity({0xB0: page})))
    assert offered.reported and offers(offered, 0x42) and not offers(offered, 0x2A)
    assert offered.limits == Limits(65536, True, 1000, 10, 255, 64, 8, 4)
    refused = withheld(offered)
    assert refused[0x5F] == ALL & ~(1 << 0 | 1 << 6) and refused[0x2A] == refused[0x5E] == refused[0x04] == ALL
    assert not {0x28, 0x89, 0x9C, 0x42, 0x12, 0x1A} & refused.keys()


def test_what_the_limits_page_does_not_offer_is_not_offered():
    unit = Unit({(0xA3, 0x0C): listing((0x89, None), (0x9C, None))})
    refused = withheld(asyncio.run(read_offered(unit, identity({0xB0: limits_page()}))))
    assert refused[0x89] == refused[0x9C] == ALL
    refused = withheld(asyncio.run(read_offered(unit, identity())))
    assert refused[0x89] == refused[0x9C] == ALL


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("thin", [True, False])
def test_a_main_without_a_list(keys, thin):
    vpd = {0xB2: bytes([0, 0xB2, 0, 4, 0, 0xE0, 2, 0]), 0xB0: limits_page(compare=1)} if thin else {}
    capacity = bytes(14) + bytes([0xC0 if thin else 0]) + bytes(17)
    unit = Unit({(0x5E, 0): bytes(8)} if keys else {})
    refused = withheld(asyncio.run(read_offered(unit, identity(vpd, capacity))))
    assert not {0x28, 0x2A, 0x8E, 0x2F, 0x35, 0x91} & refused.keys()
    assert ({0x42, 0x41, 0x93, 0x89} & refused.keys() == set()) is thin
    assert ({0x16, 0x17, 0x56, 0x57, 0x5E, 0x5F} & refused.keys() == set()) is keys
    assert {0x9C, 0x83, 0x8B} <= refused.keys()


@pytest.mark.parametrize("cut", range(0, 30))
def test_a_list_that_is_cut_short(cut):
    whole = listing((0x28, None), (0x9E, 0x10), (0x2A, None))
    assert len(parse_commands(whole[:cut])) == max(0, (cut - 4) // 8)


def test_the_naa_designator():
    naa = bytes([0x60]) + bytes(range(15))
    page = bytes([0, 0x83, 0, 0]) + bytes([2, 1, 0, 2, 65, 65]) + bytes([1, 3, 0, 16]) + naa + bytes([1, 0x13, 0, 8]) \
        + bytes(8)
    assert naa_of(identity({0x83: page})) == naa and naa_of(identity()) == b""


def test_modes():
    control, caching = bytes([0x8A, 10, 4, 0, 8]) + bytes(7), bytes([0x88, 18, 0]) + bytes(17)
    modes = asyncio.run(read_modes(Unit({(0x1A, 0x0A): bytes(4) + control, (0x1A, 0x08): bytes(4) + caching})))
    assert modes.descriptor_sense and modes.software_protected and not modes.write_cache
    modes = asyncio.run(read_modes(Unit({})))
    assert (modes.control, modes.write_cache, modes.descriptor_sense) == (b"", True, False)


# --- registrations

def full_status(*rows):
    """(name, key, type where it holds)"""
    body = b""
    for name, key, kind in rows:
        text = f"{name},i,0x800000000001".encode() + b"\0"
        text += bytes(-len(text) % 4)
        transport = bytes([0x45, 0]) + struct.pack(">H", len(text)) + text
        body += struct.pack(">Q4xBB4xHI", key, 1 if kind else 0, kind, 1, len(transport)) + transport
    return struct.pack(">II", 7, len(body)) + body


def test_whose_registrations_they_are():
    status = full_status(("iqn.one", 0xA, 5), ("iqn.two", 0xB, 0))
    assert [(one.name, one.key, one.kind) for one in registrants(status)] == [("iqn.one", 0xA, 5), ("iqn.two", 0xB, 0)]
    assert same_registrations(status, bytes(4) + full_status(("iqn.two", 0xB, 0), ("iqn.one", 0xA, 5))[4:])
    assert not same_registrations(status, full_status(("iqn.one", 0xA, 0), ("iqn.two", 0xB, 0)))


@pytest.mark.parametrize("rows,fits", [
    ((), True), ((("iqn.one", 1, 0),), True), ((("iqn.one", 1, 1),), False), ((("iqn.one", 1, 5),), True),
    ((("iqn.one", 1, 6),), False), ((("iqn.one", 1, 6), ("IQN.gateway", 2, 0)), True),
    ((("iqn.one", 1, 5), ("IQN.gateway", 2, 0)), True), ((("iqn.one", 1, 3), ("iqn.gateway", 2, 0)), False),
    ((("iqn.gateway", 2, 3),), True)])
def test_a_reservation_that_keeps_the_gateway_out(rows, fits):
    if fits:
        check_writable(full_status(*rows), "iqn.gateway")
        return
    with pytest.raises(StorageError, match=r"iqn\.one"):
        check_writable(full_status(*rows), "iqn.gateway")


def test_a_reservation_that_hosts_cannot_be_held_to_here():
    fibre = bytearray(full_status(("iqn.one", 1, 5)))
    fibre[8 + 24] = 0                                   # the TransportID is of another protocol
    with pytest.raises(StorageError, match="an initiator"):
        check_writable(bytes(fibre), "iqn.gateway")
    with pytest.raises(StorageError, match=r"iqn\.one"):
        check_writable(full_status(("iqn.one", 1, 5)), "iqn.gateway", may_register=False)
    with pytest.raises(StorageError, match=r"iqn\.one"):   # registered by its name, but from another port
        check_writable(full_status(("iqn.one", 1, 3), ("iqn.gateway", 2, 0)), "iqn.gateway", bytes(6))


def test_a_main_that_cannot_tell_names():
    read = lambda answers: asyncio.run(read_full_status(Unit(answers)))     # noqa: E731
    assert read({(0x5E, 0): bytes(8), (0x5E, 1): bytes(8)}) == read({}) == bytes(8)
    with pytest.raises(StorageError, match="whose"):
        read({(0x5E, 0): bytes(7) + b"\x08" + bytes(8)})
    with pytest.raises(StorageError, match="RESERVE"):
        read({(0x5E, 3): answer(status=CONFLICT)})


# --- a whole gateway

def out(action, key=0, action_key=0, kind=0, flags=0):
    return (bytes([0x5F, action, kind]) + bytes(2) + struct.pack(">IB", 24, 0),
            struct.pack(">QQ4xB3x", key, action_key, flags))


async def send(host, action, *rest, **more):
    cdb, data = out(action, *rest, **more)
    return (await host.command(cdb, data_out=data, check=False)).scsi_status


async def keys(host):
    data = (await host.command(bytes([0x5E, 0, 0, 0, 0, 0, 0, 1, 0, 0]), data_in_bytes=256)).data
    return [key for key, in struct.iter_unpack(">Q", data[8:])]


async def good_write(host):
    return (await host.command(bytes([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]), data_out=bytes(512), check=False)).scsi_status


HELD = 'copy = { rate = "64KiB/s" }'


def test_registrations_move_with_the_hosts_and_survive_a_restart(tmp_path):
    async def play():
        async with asyncio.timeout(60), GatewayWorld(tmp_path, volume=HELD) as world:
            one, two = await world.host(name="one"), await world.host(name="two")
            assert await send(one, 6, 0, 0xA) == await send(two, 6, 0, 0xB) == GOOD
            gateway = await world.start()
            run = gateway.start_detour("vol0")
            await world.reach(run, "copying")
            assert sorted(await keys(one)) == [0xA, 0xB]
            assert await send(one, 1, 0xA, kind=1) == GOOD              # RESERVE, write exclusive
            assert (await good_write(one), await good_write(two)) == (GOOD, CONFLICT)
            await world.stop()
            gateway = await world.start()
            assert sorted(await keys(one)) == [0xA, 0xB]
            assert (await good_write(one), await good_write(two)) == (GOOD, CONFLICT)
            run = gateway.active_run("vol0")
            run.cancel()
            document = await world.end(run)
            assert document["warnings"] == []
            assert not (tmp_path / "state/volumes/vol0.reservations.json").exists()
            assert sorted(await keys(one)) == [0xA, 0xB]                # on main
            assert (await good_write(one), await good_write(two)) == (GOOD, CONFLICT)
    asyncio.run(play())


def test_a_reserved_main_is_not_touched(tmp_path):
    async def play():
        async with asyncio.timeout(60), GatewayWorld(tmp_path) as world:
            host = await world.host()
            assert await send(host, 6, 0, 0xA) == await send(host, 1, 0xA, kind=3) == GOOD
            await world.start()
            document = await world.backup()
            assert document["result"] == "failed" and "reserved" in document["reason"]
            assert not world.redirects and await good_write(host) == GOOD
    asyncio.run(play())


def test_write_protection_goes_home_with_the_host(tmp_path):
    async def play():
        async with asyncio.timeout(60), GatewayWorld(tmp_path, volume=HELD) as world:
            host = await world.host()
            gateway = await world.start()
            run = gateway.start_detour("vol0")
            await world.reach(run, "copying")
            assert await good_write(host) == GOOD
            control = bytearray((await read_modes(host)).control)
            control[0], control[4] = 0x0A, control[4] | 0x08
            data = bytes(4) + bytes(control)
            await host.command(bytes([0x15, 0x10, 0, 0, len(data), 0]), data_out=data)
            assert await good_write(host) == 2 and (await read_modes(host)).software_protected
            run.cancel()
            document = await world.end(run)
            assert document["result"] == "cancelled" and not document["warnings"]
            assert await good_write(host) == 2 and (await read_modes(host)).software_protected
    asyncio.run(play())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a mistake of ours")])
def test_a_change_that_cannot_be_kept_is_answered_so(error):
    """The host waits for the answer, and so does every later change: whatever went wrong, there is one."""
    answers = []

    async def work():
        def write(content):
            raise error
        memo = SimpleNamespace(write=write, path="/state/vol.reservations.json")
        volume = SimpleNamespace(id=1, reservations_stored=lambda status: answers.append(status) or 7)

        async def wait(ticket, check=True):
            assert ticket == 7
        runtime = SimpleNamespace(on_event=lambda *_: None, wait=wait)
        mirror = MainMirror(runtime, "vol", None, volume, memo, 0)
        await mirror._store(b"\0" * 8, False)
    asyncio.run(work())
    assert answers == [-2]
