"""Registrations that hosts change during a detour come back to main: through a real gateway, main and hosts."""
import asyncio
import contextlib
import json
import struct

import pytest

from detour.errors import StorageError
from detour.iscsi.access import Access
from detour.iscsi.registration_plan import (
    CLEAR,
    PREEMPT,
    REGISTER,
    RELEASE,
    RESERVE,
    Registrations,
    parse_registrations,
)
from detour.iscsi.registrations import read_full_status, read_outlives_power
from tests.support.gateway_world import IQN, GatewayWorld, until

GOOD, CONFLICT = 0, 0x18
APTPL = 1
HELD = 'copy = { rate = "64KiB/s" }'
MEMO = "state/volumes/vol0.reservations.json"


async def send(host, action, key=0, action_key=0, kind=0, flags=0):
    cdb = struct.pack(">BBBxxIx", 0x5F, action, kind, 24)
    data = struct.pack(">QQ4xB3x", key, action_key, flags)
    for _ in range(4):                                  # what others did is told first
        answer = await host.command(cdb, data_out=data, check=False)
        if answer.scsi_status != 2 or answer.sense[2] & 15 != 6:
            return answer.scsi_status
    return answer.scsi_status


async def write(host, block=0):
    cdb = struct.pack(">BBIBHB", 0x2A, 0, block, 0, 1, 0)
    for _ in range(4):
        answer = await host.command(cdb, data_out=bytes([block]) * 512, check=False)
        if answer.scsi_status != 2 or answer.sense[2] & 15 != 6:
            return answer.scsi_status
    return answer.scsi_status


async def state(host):
    return parse_registrations(await read_full_status(host), await read_outlives_power(host))


@contextlib.asynccontextmanager
async def site(folder, count=2, **options):
    """A world with hosts whose keys are 0xA, 0xB ..."""
    async with asyncio.timeout(60), GatewayWorld(folder, volume=HELD, **options) as world:
        hosts = [await world.host(name=f"host{number}", isid=bytes([0x80, 0, 0, 0, 0, number]))
                 for number in range(count)]
        yield world, hosts


async def detour(world):
    gateway = await world.start() if world.gateway is None else world.gateway
    run = gateway.start_detour("vol0")
    await world.reach(run, "copying")
    return run


async def home(world, run):
    run.cancel()
    document = await world.end(run)
    assert document["result"] == "cancelled" and document["phase"] == "home" and not world.redirects
    assert not (world.folder / MEMO).exists()
    return document["warnings"]


async def as_now(world, run, host):
    """Home; and main has what the gateway had."""
    wanted = await state(host)
    assert await home(world, run) == []
    assert await state(host) == wanted
    return wanted


def test_what_two_hosts_do_to_each_other(tmp_path):
    async def play():
        async with site(tmp_path, 3) as (world, (one, two, three)):
            assert await send(one, REGISTER, 0, 0xA) == await send(two, REGISTER, 0, 0xB) == GOOD
            before = await state(one)
            run = await detour(world)
            assert await state(one) == before
            assert await send(one, RESERVE, 0xA, kind=5) == GOOD
            assert await send(two, PREEMPT, 0xB, 0xA, kind=5) == GOOD
            assert await send(three, REGISTER, 0, 0xC, flags=APTPL) == GOOD
            assert await send(two, REGISTER, 0xB, 0xBB, flags=APTPL) == GOOD
            assert [await write(host) for host in (one, two, three)] == [CONFLICT, GOOD, GOOD]
            after = await as_now(world, run, three)
            assert {row.key for row in after.rows.values()} == {0xBB, 0xC} and after.kind == 5
            assert [await write(host) for host in (one, two, three)] == [CONFLICT, GOOD, GOOD]
    asyncio.run(play())


@pytest.mark.parametrize("kind", [5, 7])
def test_a_cluster_that_has_reserved_main(tmp_path, kind):
    """The gateway is a registrant while it has to write, and the hosts never see it; one fences the other meanwhile."""
    async def play():
        async with site(tmp_path, 3) as (world, (one, two, other)):
            for host, key in ((one, 0xA), (two, 0xB)):
                assert await send(host, REGISTER, 0, key) == GOOD
            assert await send(one, RESERVE, 0xA, kind=kind) == GOOD
            before = await state(one)
            run = await detour(world)
            assert await state(two) == before
            assert len(world.main.disks) == 1
            assert [await write(host, 1) for host in (one, two, other)] == [GOOD, GOOD, CONFLICT]
            assert await send(two, PREEMPT, 0xB, 0xA if kind == 5 else 0, kind=kind) == GOOD
            assert [await write(host, 2) for host in (one, two, other)] == [CONFLICT, GOOD, CONFLICT]
            after = await as_now(world, run, two)
            assert len(after.rows) == 1
            assert [await write(host, 3) for host in (one, two, other)] == [CONFLICT, GOOD, CONFLICT]
            run = await detour(world)
            assert await as_now(world, run, two) == after
        assert world.image(0).read_bytes()[:4 * 512] == bytes([0] * 512 + [1] * 512 + [2] * 512 + [3] * 512)
    asyncio.run(play())


@pytest.mark.parametrize("durable", [False, True])
def test_all_is_given_up(tmp_path, durable):
    async def play():
        async with site(tmp_path) as (world, (one, two)):
            flags = APTPL if durable else 0
            for host in (one, two):
                assert await send(host, REGISTER, 0, 0xA, flags=flags) == GOOD
            assert await send(one, RESERVE, 0xA, kind=7) == GOOD
            assert (await state(two)).durable == durable
            run = await detour(world)
            assert (await state(two)).durable == durable
            assert await send(one, CLEAR, 0xA) == GOOD
            assert (await as_now(world, run, two)).rows == {}
            assert [await write(host) for host in (one, two)] == [GOOD, GOOD]
    asyncio.run(play())


def test_a_main_whose_redirect_lets_no_port_pass(tmp_path, monkeypatch):
    """Then they are brought when it is cleared, while hosts are held still."""
    async def play():
        async with site(tmp_path) as (world, (one, two)):
            run = await detour(world)
            monkeypatch.setattr(run.parts.driver, "let_in", lambda sessions: asyncio.sleep(0))
            assert await send(one, REGISTER, 0, 0xA) == await send(one, RESERVE, 0xA, kind=1) == GOOD
            assert (await as_now(world, run, two)).kind == 1
            assert [await write(host) for host in (one, two)] == [GOOD, CONFLICT]
    asyncio.run(play())


def test_a_port_that_main_does_not_let_in(tmp_path):
    """The host goes home all the same, and what is lacking is told by name."""
    async def play():
        async with site(tmp_path) as (world, (one, two)):
            assert await send(two, REGISTER, 0, 0xB) == GOOD
            run = await detour(world)
            assert await send(one, REGISTER, 0, 0xA) == GOOD
            assert await send(two, REGISTER, 0xB, 0) == GOOD
            gateway = run.live.main.initiator_name
            world.main.entry.access = Access(initiators=(gateway,))
            warnings = await home(world, run)
            assert len(warnings) == 1 and one.initiator_name in warnings[0] and two.initiator_name not in warnings[0]
            world.main.entry.access = Access()
            await until(lambda: one.state == "connected")
            assert (await state(one)).rows == {}        # what the gateway itself can take away is taken away
    asyncio.run(play())


@pytest.mark.parametrize("kind", [1, 5])
def test_a_redirect_that_cannot_be_cleared_at_first(tmp_path, monkeypatch, kind):
    """Registrations are on main already: hosts that are served on meet no conflict of the gateway's own."""
    async def play():
        async with site(tmp_path) as (world, (one, two)):
            run = await detour(world)
            assert await send(one, REGISTER, 0, 0xA) == await send(one, RESERVE, 0xA, kind=kind) == GOOD
            assert await write(one, 1) == GOOD
            wanted, clear, statuses = await state(one), run.parts.driver.clear, []

            async def refuse():
                if len(statuses) < 3:
                    raise StorageError("the redirect stays")
                await clear()
            monkeypatch.setattr(run.parts.driver, "clear", refuse)
            run.cancel()
            while not run.over:
                statuses.append((await write(one, 1), await write(two, 2)))
                await asyncio.sleep(0.05)
            assert len(statuses) >= 3 and set(statuses) == {(GOOD, CONFLICT)}
            assert await state(one) == wanted
            assert all("registrations" not in sentence for sentence in run.document()["warnings"])
    asyncio.run(play())


def test_hosts_that_were_home_before_the_gateway_was_back(tmp_path):
    """It was killed between clearing the redirect and its own leaving: what hosts did on main since then counts."""
    async def play():
        async with site(tmp_path) as (world, (one, two)):
            assert await send(one, REGISTER, 0, 0xA) == await send(two, REGISTER, 0, 0xB) == GOOD
            assert await send(one, RESERVE, 0xA, kind=5) == GOOD
            before = await state(one)
            run = await detour(world)
            assert len((await state(run.live.main)).rows) == 3
            marker = (tmp_path / "state/volumes/vol0.detour.json").read_bytes()
            memo = json.loads((tmp_path / MEMO).read_text())
            assert await home(world, run) == []
            assert await state(one) == before
            await world.stop()
            assert await send(one, RELEASE, 0xA, kind=5) == await send(two, REGISTER, 0xB, 0) == GOOD
            now = await state(one)
            (tmp_path / "state/volumes/vol0.detour.json").write_bytes(marker)
            (tmp_path / MEMO).write_text(json.dumps(memo))
            gateway = await world.start()
            run = gateway.active_run("vol0")
            if run is not None:
                await world.end(run)
            assert await state(one) == now and now != before
            assert not (tmp_path / MEMO).exists()
    asyncio.run(play())


def test_what_it_adds_to_the_pause_is_known_before(tmp_path):
    async def play():
        async with site(tmp_path) as (world, (one, two)):
            assert await send(one, REGISTER, 0, 0xA) == GOOD
            run = await detour(world)
            assert run.live.registrations_s == 0
            assert await send(two, REGISTER, 0, 0xB) == GOOD
            some = run.live.registrations_s
            assert await send(two, RESERVE, 0xB, kind=1) == GOOD
            assert 0 < some < run.live.registrations_s
            assert await home(world, run) == []
            assert run.parts.pause.newest_ms["registrations"] > 0
    asyncio.run(play())


def test_nothing_is_registered_where_nothing_was(tmp_path):
    async def play():
        async with site(tmp_path) as (world, (one, _)):
            run = await detour(world)
            assert await as_now(world, run, one) == Registrations()
            assert world.main.listener.sessions_of(IQN)
    asyncio.run(play())
