"""A real Linux kernel with open-iscsi and ext4 as the host, moved there and back under its own writes.

No I/O error and no remount, no wrong byte, each backup the point in time with a clean file system: see linux_site.py.
The longest stalls are printed (pytest -s, or `python -m tests.e2e.linux_site`).
"""
from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from detour.bench import Load
from detour.iscsi.initiator import connect
from detour.runtime import Runtime
from detour.urls import parse_iscsi_url
from tests.e2e.linux_site import IQN, LinuxSite, LioMain, TgtMain, run
from tests.support.lio import missing

pytestmark = [pytest.mark.peer("qemu-system-x86_64"), pytest.mark.skipif(bool(missing()), reason=missing() or "-"),
              pytest.mark.timeout(600)]

@pytest.mark.peer("tgtd")
def test_five_detours_with_tgt_as_main(tmp_path: Path) -> None:
    done = asyncio.run(run(tmp_path, TgtMain(tmp_path), 5))
    assert len(done) == 5 and all(one.document["host"]["errors"] == 0 for one in done)


@pytest.mark.peer("tgtd")
def test_two_paths_chap_both_ways_and_digests(tmp_path: Path) -> None:
    done, = asyncio.run(run(tmp_path, TgtMain(tmp_path, paths=2, chap=True, digests=True), 1))
    assert done.document["host"]["errors"] == 0


def test_lio_in_portal_mode(tmp_path: Path) -> None:
    done, = asyncio.run(run(tmp_path, LioMain(tmp_path), 1))
    assert done.document["host"]["errors"] == 0


@pytest.mark.peer("tgtd")
def test_of_two_hosts_one_refuses_to_move(tmp_path: Path) -> None:
    """The detour is given up before the freeze; both are home, and neither has seen an error."""
    main = TgtMain(tmp_path)

    async def work() -> None:
        async with LinuxSite(tmp_path, main) as site, Runtime() as runtime:
            host = await site.start_host()
            stubborn = await connect(runtime, parse_iscsi_url(f"iscsi://{main.portals[0]}/{IQN}/1"),
                                     initiator_name="iqn.2026-01.org.detour:stubborn", follow_redirect=False)
            load = Load(runtime, stubborn.handle, rate=50.0, depth=4, io_bytes=4096, read_share=1.0, seed=3)
            await load.start()
            async with asyncio.timeout(120), site.client() as client:
                started = await client.start("db01")
                document = [one async for one in client.follow(started["id"])][-1]
            assert (document["result"], document["exit_code"]) == ("abandoned", 3), document
            assert "iqn.2026-01.org.detour:stubborn did not come to the gateway" in document["reason"]
            assert document["pit_at"] is None and document["backup_id"] is None
            await asyncio.to_thread(host.wait_at, main.portals)
            async with asyncio.timeout(30):
                while stubborn.state != "connected":
                    await asyncio.sleep(0.1)
            before = load.total("reads")
            await asyncio.sleep(1.0)
            assert load.total("reads") > before and load.total("errors") == 0
            await load.stop()
            await stubborn.close()
            await site.finish()
    try:
        asyncio.run(work())
    finally:
        main.close()
