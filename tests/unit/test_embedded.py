"""The plain target: redirect and drop by its API, as the driver `detour` uses it, with real sessions."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
import uvicorn

from detour import embedded
from detour.embedded import DiskOptions, EmbeddedTarget, api_socket, make_app, serial_of, serving
from detour.errors import DetourError, LoginError, UsageError
from detour.iscsi.initiator import Connection, connect
from detour.runtime import Runtime
from detour.urls import IscsiUrl, parse_endpoint
from tests.support.ports import has_ipv6
from tests.support.processes import detour_ready

IQN = "iqn.2026-01.example:plain"
HOST = "iqn.2026-01.example:host"
GATEWAY = "iqn.2026-01.example:gateway"
LIMIT_SECONDS = 30


class World:
    """A target with one disk in memory, its API, and hosts."""

    def __init__(self, runtime: Runtime, target: EmbeddedTarget, portal: str) -> None:
        self.runtime, self.target = runtime, target
        host, port = parse_endpoint(portal)
        self.url = IscsiUrl(host, port, IQN, 0)
        self.api = httpx.AsyncClient(transport=httpx.ASGITransport(make_app(target)), base_url="http://main")

    async def login(self, name: str, **options) -> Connection:
        return await connect(self.runtime, self.url, initiator_name=name, **options)

    async def ask(self, method: str, path: str, body=None, status: int = 200):
        answer = await self.api.request(method, f"/v1/targets{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()


@contextlib.asynccontextmanager
async def world(**options) -> AsyncIterator[World]:
    async with asyncio.timeout(LIMIT_SECONDS), Runtime() as runtime:
        target = EmbeddedTarget(runtime, IQN)
        try:
            await target.add_disk("mem:16MiB", DiskOptions(**options))
            made = World(runtime, target, await target.listen("127.0.0.1:0"))
            async with made.api:
                yield made
        finally:
            await target.close()


def run(scenario, **options) -> None:
    async def main() -> None:
        async with world(**options) as made:
            await scenario(made)

    asyncio.run(main())


def test_its_disks_end_with_it():
    async def main() -> None:
        async with Runtime() as runtime:
            target = EmbeddedTarget(runtime, IQN)
            await target.add_disk("mem:16MiB", DiskOptions())
            disk = target.disks[0]
            await target.close()
            assert not target.disks
            with pytest.raises(ValueError, match="closed"):
                disk.grow()
    asyncio.run(main())


def test_documents():
    async def scenario(world: World) -> None:
        [row] = await world.ask("GET", "")
        assert row["iqn"] == IQN and row["redirect"] is None and row["sessions"] == 0
        assert row["portals"] == [world.url.portal] and row["luns"] == [{"lun": 0, "url": "mem:16MiB", "bytes": 2**24}]
        host = await world.login(HOST)
        [session] = await world.ask("GET", f"/{IQN}/sessions")
        assert session["initiator"] == HOST and session["peer"].startswith("127.0.0.1:")
        assert bytes.fromhex(session["isid"]) == host.isid and isinstance(session["id"], int)
        await host.close()
        assert (await world.api.get("/healthz")).json() == {"ok": True}

    run(scenario)


@pytest.mark.parametrize(("address", "permanent"), [
    ("gateway.example:3260", False), ("[2001:db8::9]:3260", True), ("192.0.2.9:3261", True)])
def test_redirects_to_names_and_for_good(address, permanent):
    async def scenario(world: World) -> None:
        told = await world.ask("PUT", f"/{IQN}/redirect", {"address": address, "permanent": permanent})
        assert told.get("permanent", False) is permanent and told["address"] == address
        with pytest.raises(LoginError) as refused:
            await world.login(HOST, follow_redirect=False)
        assert (refused.value.status_class, refused.value.status_detail) == (1, 2 if permanent else 1)
        assert address in str(refused.value)

    run(scenario)


def test_redirect_sends_hosts_away_and_lets_the_gateway_in():
    async def scenario(world: World) -> None:
        told = await world.ask("PUT", f"/{IQN}/redirect", {"address": "192.0.2.9:3260", "except": [GATEWAY]})
        assert told == {"address": "192.0.2.9:3260", "except": [GATEWAY]}
        with pytest.raises(LoginError) as refused:
            await world.login(HOST, follow_redirect=False)
        assert refused.value.status_class == 1 and "192.0.2.9:3260" in str(refused.value)
        gateway = await world.login(GATEWAY)
        await gateway.close()
        [row] = await world.ask("GET", "")
        assert row["redirect"] == told
        await world.ask("DELETE", f"/{IQN}/redirect")
        await world.ask("DELETE", f"/{IQN}/redirect")
        host = await world.login(HOST)
        await host.close()

    run(scenario)


def test_exceptions_are_by_name_and_isid():
    """A host that has the gateway's name is not the gateway."""
    async def scenario(world: World) -> None:
        gateway, namesake = await world.login(GATEWAY), await world.login(GATEWAY)
        rule = {"address": "192.0.2.9:3260", "except": [{"name": GATEWAY.upper(), "isid": gateway.isid.hex()}]}
        told = await world.ask("PUT", f"/{IQN}/redirect", rule)
        assert told["except"] == [{"name": GATEWAY, "isid": gateway.isid.hex()}]
        assert await world.ask("POST", f"/{IQN}/sessions/drop", {"except": rule["except"]}) == {"dropped": 1}
        [left] = await world.ask("GET", f"/{IQN}/sessions")
        assert left["isid"] == gateway.isid.hex()
        with pytest.raises(LoginError):
            await world.login(GATEWAY, isid=namesake.isid, follow_redirect=False)
        await gateway.close()       # two sessions with one name and ISID would end each other for ever
        again = await world.login(GATEWAY, isid=gateway.isid, follow_redirect=False)
        for store in (namesake, again):
            await store.close()

    run(scenario)


def test_drop_is_a_barrier_for_writes_under_way():
    async def scenario(world: World) -> None:
        gateway, host = await world.login(GATEWAY), await world.login(HOST)
        data = b"\xa5" * 4096
        writing = asyncio.create_task(host.write(8192, data))
        await asyncio.sleep(0.1)
        # The host is sent nowhere: what it had under way is decided by main alone.
        await world.ask("PUT", f"/{IQN}/redirect", {"address": "127.0.0.1:9", "except": [GATEWAY]})
        assert await world.ask("POST", f"/{IQN}/sessions/drop", {"except": [GATEWAY]}) == {"dropped": 1}
        at_the_answer = await gateway.read(8192, 4096)
        assert [row["initiator"] for row in await world.ask("GET", f"/{IQN}/sessions")] == [GATEWAY]
        await asyncio.sleep(0.6)
        assert await gateway.read(8192, 4096) == at_the_answer, "a write landed behind the barrier"
        writing.cancel()
        await host.close()
        with contextlib.suppress(asyncio.CancelledError, DetourError):
            await writing
        await gateway.close()

    run(scenario, delay_us=400_000)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/iqn.2026-01.example:other/sessions", None, 404),
        ("PUT", f"/{IQN}/redirect", {}, 400),
        ("PUT", f"/{IQN}/redirect", {"address": "no port"}, 400),
        ("PUT", f"/{IQN}/redirect", {"address": "192.0.2.9:3260", "permanent": 1}, 400),
        ("PUT", f"/{IQN}/redirect", {"address": "192.0.2.9:3260", "except": "everyone"}, 400),
        ("POST", f"/{IQN}/sessions/drop", [1, 2], 400),
        ("POST", f"/{IQN}/sessions/drop", {"except": [7]}, 400),
        ("POST", f"/{IQN}/sessions/drop", {"except": [{"name": HOST}]}, 400),
        ("POST", f"/{IQN}/sessions/drop", {"except": [{"name": HOST, "isid": "80"}]}, 400),
        ("POST", f"/{IQN}/sessions/drop", {"except": [{"name": HOST, "isid": "not hexadecimal"}]}, 400),
    ],
)
def test_wrong_requests_are_one_sentence(method, path, body, status):
    async def scenario(world: World) -> None:
        answer = await world.ask(method, path, body, status)
        assert list(answer) == ["error"] and answer["error"]
        [row] = await world.ask("GET", "")
        assert row["redirect"] is None

    run(scenario)


def test_serial_numbers_stay():
    assert serial_of(IQN, 0) == serial_of(IQN, 0) != serial_of(IQN, 1)


def test_api_addresses(tmp_path):
    path = tmp_path / "api.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()

    async def main() -> None:
        async with serving(None, f"unix:{path}") as address:
            assert address == f"unix:{path}" and path.is_socket() and path.stat().st_mode & 0o077 == 0
            with pytest.raises(UsageError):
                api_socket(f"unix:{path}")
        assert not path.exists()
        async with serving(None, "http://127.0.0.1:0") as address:
            assert address.startswith("http://127.0.0.1:") and not address.endswith(":0")

    asyncio.run(main())
    for text in ("tcp:127.0.0.1", f"unix:{tmp_path}/none/api.sock", "http://127.0.0.1"):
        with pytest.raises(UsageError):
            api_socket(text)


def test_an_api_that_nobody_asks_sleeps_and_ends_at_once(tmp_path, monkeypatch):
    ticks = 0

    async def counted(self, counter: int) -> bool:
        nonlocal ticks
        ticks += 1
        return await tick(self, counter)

    tick = uvicorn.Server.on_tick
    monkeypatch.setattr(uvicorn.Server, "on_tick", counted)
    monkeypatch.setattr(embedded, "DATE_SECONDS", 3600.0)

    async def main() -> None:
        async with asyncio.timeout(60), serving(None, f"unix:{tmp_path / 'api.sock'}"):
            await asyncio.sleep(0.3)
            assert ticks == 1
    asyncio.run(main())
    assert ticks == 2


def portals_of(ready: str) -> tuple[list[str], list[str]]:
    """Portals and target names of the line `ready ...`."""
    words = dict(word.split("=", 1) for word in ready.split()[1:])
    return words["portal"].split(","), words["iqn"].split(",")


def test_one_process_serves_targets_luns_and_paths(tmp_path):
    """Two targets behind two portals: discovery names both, each LUN is what its own options say."""
    image = tmp_path / "disk.img"
    image.write_bytes(b"\x11" * 65536)
    other = "iqn.2026-01.example:other"
    words = [f"{image}?read-only&serial=FIRST", "mem:1MiB?lun=5&no-thin", "--iqn", IQN, "--target", f"{other}=mem:2MiB",
             "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"]
    program, ready = detour_ready("target", *words)

    async def main() -> None:
        portals, iqns = portals_of(ready)
        assert iqns == [IQN, other] and len(set(portals)) == 2
        async with asyncio.timeout(LIMIT_SECONDS), Runtime() as runtime:
            disks = [await connect(runtime, IscsiUrl(*parse_endpoint(portal), iqn, lun), initiator_name=HOST)
                     for portal, iqn, lun in ((portals[0], IQN, 0), (portals[1], IQN, 5), (portals[1], other, 0))]
            assert [disk.size_bytes for disk in disks] == [65536, 2**20, 2**21]
            assert await disks[0].read(512, 512) == b"\x11" * 512
            with pytest.raises(DetourError):
                await disks[0].write(0, bytes(512))
            await disks[1].write(0, b"\x22" * 512)
            serial = await disks[0].command(bytes([0x12, 1, 0x80, 0, 255, 0]), data_in_bytes=255)
            assert serial.data[4:] == b"FIRST"
            for disk in disks:
                await disk.close()

    with program:
        asyncio.run(main())
        assert program.stop() == 0
    assert image.read_bytes() == b"\x11" * 65536


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
def test_a_portal_may_be_ipv6():
    async def scenario(world: World) -> None:
        portal = await world.target.listen("[::1]:0")
        assert portal.startswith("[::1]:") and not portal.endswith(":0")
        host = await connect(world.runtime, IscsiUrl(*parse_endpoint(portal), IQN, 0), initiator_name=HOST)
        assert [info.local for info in world.target.listener.sessions_of(IQN)] == [portal]
        await host.close()

    run(scenario)


def test_the_api_knows_each_target_of_a_process():
    other = "iqn.2026-01.example:other"

    async def main() -> None:
        async with asyncio.timeout(LIMIT_SECONDS), Runtime() as runtime:
            first = EmbeddedTarget(runtime, IQN)
            second = EmbeddedTarget(runtime, other, listener=first.listener)
            await second.add_disk("mem:1MiB", DiskOptions(), 3)
            await second.add_disk("mem:1MiB", DiskOptions())
            with pytest.raises(UsageError):
                await second.add_disk("mem:1MiB", DiskOptions(), 3)
            api = httpx.AsyncClient(transport=httpx.ASGITransport(make_app(first, second)), base_url="http://main")
            async with api:
                rows = (await api.get("/v1/targets")).json()
                found = [(row["iqn"], [lun["lun"] for lun in row["luns"]]) for row in rows]
                assert found == [(IQN, []), (other, [3, 4])]
                rule = {"address": "192.0.2.9:3260"}
                assert (await api.put(f"/v1/targets/{other}/redirect", json=rule)).status_code == 200
                assert [row["redirect"] is None for row in (await api.get("/v1/targets")).json()] == [True, False]
            await second.close()
            await first.close()

    asyncio.run(main())
