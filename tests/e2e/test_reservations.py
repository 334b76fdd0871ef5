"""Persistent reservations over TCP: several initiators, and what is left of it after kill -9 of `detour target`."""
from __future__ import annotations

import asyncio
import contextlib
import stat
import struct
from pathlib import Path

import pytest

from detour.errors import StorageError
from detour.iscsi.initiator import Connection, connect
from detour.runtime import Runtime
from detour.urls import IscsiUrl, parse_endpoint
from tests.support.processes import Program, detour, detour_ready
from tests.support.reservations import (
    APTPL,
    CLEAR,
    CONFLICT,
    PREEMPT_AND_ABORT,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REPORT_CAPABILITIES,
    RESERVE,
    WRITE_REGISTRANTS,
    out_cdb,
    parameters,
)

IQN = "iqn.2026-01.example:kept"
LIMIT_SECONDS = 60


def start(image: Path | str, *options: str) -> tuple[Program, IscsiUrl]:
    program, ready = detour_ready("target", str(image), "--size", "8MiB", "--listen", "127.0.0.1:0", "--iqn", IQN,
                                  *options)
    portal = next(word for word in ready.split() if word.startswith("portal=")).removeprefix("portal=")
    host, port = parse_endpoint(portal)
    return program, IscsiUrl(host, port, IQN, 0)


class Initiator:
    """One initiator port: what it sends, and the status that comes back."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def order(self, action: int, key: int, action_key: int = 0, *, kind: int = 0, flags: int = 0) -> int:
        result = await self.connection.command(out_cdb(action, 24, kind), data_out=parameters(key, action_key, flags),
                                               check=False)
        return result.scsi_status

    async def read_in(self, action: int) -> bytes:
        cdb = struct.pack(">BBIBHB", 0x5E, action, 0, 0, 4096, 0)
        return (await self.connection.command(cdb, data_in_bytes=4096)).data

    async def keys(self) -> list[int]:
        return [key for (key,) in struct.iter_unpack(">Q", (await self.read_in(READ_KEYS))[8:])]

    async def write(self, content: bytes) -> int:
        cdb = struct.pack(">BBIBHB", 0x2A, 0, 0, 0, 1, 0)
        return (await self.connection.command(cdb, data_out=content, check=False)).scsi_status


@contextlib.asynccontextmanager
async def initiators(url: IscsiUrl, count: int = 3):
    async with asyncio.timeout(LIMIT_SECONDS), Runtime() as runtime, contextlib.AsyncExitStack() as stack:
        made = []
        for number in range(count):
            connection = await connect(runtime, url, initiator_name=f"iqn.2026-01.example:host{number}",
                                       isid=bytes([0x80, 0, 0, 0, 0, number]), retry_seconds=0)
            stack.push_async_callback(connection.close)
            while (await connection.command(bytes(6), check=False)).scsi_status:     # its unit attention
                pass
            made.append(Initiator(connection))
        yield made


async def prepare(url: IscsiUrl, kill) -> None:
    """Hosts 0 and 1 are registered, host 0 holds a reservation; then the target is killed under them."""
    with contextlib.suppress(StorageError):             # their sessions are gone when they are closed
        async with initiators(url) as (one, two, other):
            assert (await one.read_in(REPORT_CAPABILITIES))[2] & 1
            assert await one.order(REGISTER, 0, 0xA1, flags=APTPL) == 0
            assert await two.order(REGISTER, 0, 0xB2, flags=APTPL) == 0
            assert await one.order(RESERVE, 0xA1, kind=WRITE_REGISTRANTS) == 0
            assert await other.write(bytes(512)) == CONFLICT and await two.write(bytes(512)) == 0
            kill()


async def look_again(url: IscsiUrl) -> None:
    async with initiators(url) as (_, two, other):
        assert await other.keys() == [0xA1, 0xB2]
        assert (await other.read_in(READ_RESERVATION))[8:] == struct.pack(">Q5xB2x", 0xA1, WRITE_REGISTRANTS)
        assert await other.write(bytes(512)) == CONFLICT and await two.write(bytes(512)) == 0
        assert await two.order(PREEMPT_AND_ABORT, 0xB2, 0xA1, kind=WRITE_REGISTRANTS) == 0
        assert await two.keys() == [0xB2]


async def clear(url: IscsiUrl) -> None:
    async with initiators(url) as (_, two, other):
        assert await other.keys() == [0xB2]
        assert await two.order(CLEAR, 0xB2) == 0
        assert await other.write(bytes(512)) == 0


def test_what_was_registered_is_there_after_kill(tmp_path):
    image, kept = tmp_path / "disk.img", tmp_path / "disk.img.reservations"
    program, url = start(image)
    with program:
        asyncio.run(prepare(url, program.kill))
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    for scenario in (look_again, clear):
        program, url = start(image)
        with program:
            asyncio.run(scenario(url))
            program.kill()
    program, url = start(image)
    with program:
        async def empty():
            async with initiators(url) as (one, *_):
                assert await one.keys() == []
        asyncio.run(empty())


def test_damaged_reservations_are_not_passed_over(tmp_path):
    image, kept = tmp_path / "disk.img", tmp_path / "elsewhere"
    program, url = start(f"{image}?reservations={kept}")
    with program:
        asyncio.run(prepare(url, program.kill))
    content = bytearray(kept.read_bytes())
    content[40] ^= 1
    kept.write_bytes(content)
    with detour("target", f"{image}?reservations={kept}", "--listen", "127.0.0.1:0", "--iqn", IQN) as program:
        assert program.wait(30) == 1
        assert str(kept) in "\n".join(program.errors) and not program.output


@pytest.mark.parametrize("broken", [False, True])
def test_what_cannot_be_kept_is_refused(tmp_path, broken):
    """Memory keeps nothing; a folder that went away makes the command fail, and nothing is registered."""
    folder = tmp_path / "state"
    folder.mkdir()
    program, url = start(f"mem:8MiB?reservations={folder / 'kept'}" if broken else "mem:8MiB")

    async def scenario():
        async with initiators(url, 1) as (one,):
            if broken:
                folder.rmdir()
                folder.write_bytes(b"")
            assert await one.order(REGISTER, 0, 1, flags=APTPL) == 2
            assert await one.keys() == [] and (await one.read_in(REPORT_CAPABILITIES))[2] & 1 == broken
            assert await one.order(REGISTER, 0, 1) == 0
    with program:
        asyncio.run(scenario())
