"""Registrations of two hosts before, during and after a detour, with processes: `detour target` as main, and tgtd."""
from __future__ import annotations

import asyncio
import contextlib

import pytest

from detour.iscsi.initiator import connect
from detour.iscsi.registration_plan import PREEMPT, REGISTER, RESERVE
from detour.iscsi.registrations import read_keys
from detour.runtime import Runtime
from detour.urls import parse_iscsi_url
from tests.interop.test_detour_tgt import IQN as TGT_IQN
from tests.interop.test_detour_tgt import Site as TgtSite
from tests.interop.test_detour_tgt import to_the_end
from tests.support.site import VOLUME, Site, eventually
from tests.support.tgtd import needs_tgtd
from tests.unit.test_registrar import APTPL, CONFLICT, GOOD, send, state, write

HELD = 'copy = { rate = "64KiB/s" }'
FLAGS = APTPL


def named(number: int) -> dict[str, object]:
    return {"initiator_name": f"iqn.2026-01.org.detour:pair{number}", "isid": bytes([0x80, 0, 0, 0, 0, number])}


@contextlib.asynccontextmanager
async def pair(url: str):
    async with Runtime() as runtime, contextlib.AsyncExitStack() as stack:
        hosts = []
        for number in range(2):
            hosts.append(await connect(runtime, parse_iscsi_url(url), **named(number)))
            stack.push_async_callback(hosts[-1].close)
        yield hosts


async def register_and_reserve(one, two, flags=FLAGS):
    assert await send(one, REGISTER, 0, 0xA, flags=flags) == await send(two, REGISTER, 0, 0xB, flags=flags) == GOOD
    assert await send(one, RESERVE, 0xA, kind=5) == GOOD


def test_a_pair_whose_gateway_is_killed_between_its_commands(tmp_path):
    """Write exclusive, registrants only: the second host fences the first while it is on the gateway."""
    async def play():
        async with asyncio.timeout(100), Site(tmp_path, 4 << 20, volume=HELD) as site, \
                pair(site.main_url) as (one, two):
            await register_and_reserve(one, two)
            before = await state(one)
            await site.start_gateway()
            async with site.client() as client:
                run = await site.begin(client)
                assert (await site.follow(client, run["id"], until="copying"))["result"] is None
            assert await state(two) == before
            assert (await write(one, 1), await write(two, 2)) == (GOOD, GOOD)
            await site.kill_gateway()
            await site.start_gateway()
            assert await state(two) == before and before.durable
            assert await send(two, PREEMPT, 0xB, 0xA, kind=5) == GOOD
            assert await send(two, REGISTER, 0xB, 0xBB, flags=FLAGS) == GOOD
            await site.kill_gateway()
            await site.start_gateway()
            during = await state(one)
            assert [row.key for row in during.rows.values()] == [0xBB] and during.holder.isid == two.isid
            assert (await write(one, 1), await write(two, 3)) == (CONFLICT, GOOD)
            assert (await site.detour("cancel", VOLUME)).code == 0
            assert (await site.wait_over())["warnings"] == []
            await site.check_home(*(str(named(number)["initiator_name"]) for number in range(2)))
            assert await state(one) == during
            assert (await write(one, 1), await write(two, 2)) == (CONFLICT, GOOD)
    asyncio.run(play())


async def keys_and_reservation(host):
    """All that tgt can tell: it has no READ FULL STATUS. Keys, holder's key, type."""
    answer = await host.command(bytes([0x5E, 1, 0, 0, 0, 0, 0, 0, 24, 0]), data_in_bytes=24, check=False)
    return await read_keys(host), answer.data[8:16], answer.data[21]


@pytest.mark.peer("tgtd")
@needs_tgtd[1]
def test_a_pair_on_tgt(tmp_path):
    """It takes registrations that came during the detour; a detour of one that has some is refused, as before."""
    site = TgtSite(tmp_path, HELD)

    async def play():
        gateway = await site.start_gateway()
        try:
            async with asyncio.timeout(60), site.client() as client, \
                    pair(f"iscsi://{site.main.portal}/{TGT_IQN}/1") as (one, two):
                started = await client.start("db01")
                async for document in client.follow(started["id"]):
                    assert document["result"] is None, document
                    if document["phase"] == "copying":
                        break
                await register_and_reserve(one, two, 0)
                assert (await write(one, 1), await write(two, 2)) == (GOOD, GOOD)
                assert await send(two, PREEMPT, 0xB, 0xA, kind=5) == GOOD
                assert await send(one, REGISTER, 0, 0xAA) == GOOD
                during = await keys_and_reservation(one)
                assert during[0] == [0xB, 0xAA]
                await client.cancel("db01")
                document = await to_the_end(client, started["id"])
                assert document["warnings"] == [] and document["phase"] == "home"

                async def home() -> bool:
                    return {str(named(number)["initiator_name"]) for number in range(2)} <= site.initiators()
                assert await eventually(home, 20)
                assert await keys_and_reservation(one) == during
        finally:
            await gateway.end()
    try:
        asyncio.run(play())
    finally:
        site.main.close()
