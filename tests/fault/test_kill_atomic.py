"""kill -9 of a target in the middle of WRITE ATOMIC: afterwards the file holds all of a write or nothing of it."""
from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import Callable
from pathlib import Path

from detour.errors import DetourError
from detour.iscsi.initiator import connect
from detour.redo import pending, redo_path_of, replay
from detour.runtime import Runtime
from detour.urls import IscsiUrl, parse_endpoint
from tests.support.processes import detour_ready

IQN = "iqn.2026-01.example:atomic"
BLOCKS = 2048
LIVES_MAX = 20


async def write_until_killed(portal: str, kill: Callable[[], None], chance: random.Random) -> tuple[int, int]:
    """Writes the same blocks again and again, each time with another byte; answers that of the last write that was
    acknowledged and that of the last one that was begun."""
    cdb = struct.pack(">BBQHHBB", 0x9C, 0, 0, 0, BLOCKS, 0, 0)
    last = begun = 0

    async def write() -> None:
        nonlocal last, begun
        while True:
            begun = last % 250 + 1
            await host.command(cdb, data_out=bytes([begun]) * 512 * BLOCKS)
            last = begun

    async with asyncio.timeout(30), Runtime() as runtime:
        host = await connect(runtime, IscsiUrl(*parse_endpoint(portal), IQN, 0), initiator_name=f"{IQN}-host")
        writing = asyncio.create_task(write())
        await asyncio.sleep(chance.uniform(0.02, 0.1))
        kill()
        writing.cancel()        # it would wait for the target to come back
        with contextlib.suppress(asyncio.CancelledError, DetourError):
            await writing
        await host.close()
    return last, begun


def test_a_write_is_there_as_a_whole_or_not_at_all(tmp_path: Path):
    """Until a kill has met a write whose redo file was valid: then the file itself may hold a part of it."""
    image, chance, met = tmp_path / "disk.img", random.Random(7), 0
    for _ in range(LIVES_MAX):
        image.write_bytes(bytes(2 << 20))
        program, ready = detour_ready("target", str(image), "--iqn", IQN, "--listen", "127.0.0.1:0")
        with program:
            portal = ready.split("portal=")[1].split()[0]
            last, begun = asyncio.run(write_until_killed(portal, program.process.kill, chance))
        redo = Path(redo_path_of(image))
        met += pending(redo, image) is not None
        replay(redo, image)
        found = set(image.read_bytes()[:512 * BLOCKS])
        assert found in ({last}, {begun}), found
        redo.unlink(missing_ok=True)
        if met:
            return
    raise AssertionError("no kill met a write under way")
