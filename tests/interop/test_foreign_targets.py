"""The project's initiator against targets that are not ours: Debian's tgtd, and the Linux kernel's (LIO) in a guest.

LIO needs QEMU and a built guest (support/lio.py); without them its tests are skipped with the reason.
"""
from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from detour.runtime import Runtime
from tests.interop import foreign_targets
from tests.support import lio, tgtd
from tests.support.exercise import exercise, same_content
from tests.support.tgt_peer import TgtPeer


@pytest.fixture(scope="module")
def tgt(tmp_path_factory) -> Iterator[TgtPeer]:
    peer = TgtPeer(Path(tmp_path_factory.mktemp("tgt")))
    yield peer
    peer.close()


@pytest.fixture(scope="module")
def guest() -> Iterator[lio.LioGuest]:
    peer = lio.LioGuest()
    yield peer
    peer.close()


@pytest.mark.parametrize("check", [name for name in foreign_targets.CHECKS if name != "COMPARE AND WRITE"])
@pytest.mark.peer("tgtd")
@pytest.mark.skipif(not tgtd.USABLE, reason="tgtd is not installed, or this is not root")
def test_tgt(tgt, check):
    foreign_targets.run_check(check, tgt)


needs_guest = pytest.mark.skipif(bool(lio.missing()), reason=lio.missing() or "there")


@needs_guest
@pytest.mark.slow
@pytest.mark.parametrize("check", foreign_targets.CHECKS)
def test_lio(guest, check):
    foreign_targets.run_check(check, guest)


@needs_guest
@pytest.mark.slow
def test_lio_disabled_and_enabled_again_loses_nothing(guest):
    """The portal group is switched off below a running load: LIO ends every session and turns logins away."""
    async def work() -> None:
        async with (Runtime() as runtime, asyncio.timeout(60),
                    await foreign_targets.opened(runtime, guest, lun=1) as store):
            model = bytearray(await store.read(0, store.size_bytes))
            load = asyncio.create_task(exercise(store, model, random.Random(5), [4096, 65536, 300 * 512] * 40))
            for _ in range(2):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(guest.ask, "disable")
                await asyncio.to_thread(guest.ask, "enable")
            await load
            assert store.reconnects >= 1
            await same_content(store, model)

    asyncio.run(work())
