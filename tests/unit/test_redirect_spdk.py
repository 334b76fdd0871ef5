"""The SPDK driver against a JSON-RPC server that answers as SPDK's iSCSI target does."""
import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from detour.errors import StorageError, TimeoutError_
from detour.redirect.base import Address
from tests.support.mains import GATEWAY, TARGET, Portals, driver_of, run

SHORT = TARGET.partition(":")[2]


class Spdk:
    """State and methods of the target; `pieces`: answers come in pieces of so many bytes."""

    def __init__(self):
        self.redirects = {}                 # portal group -> "host:port"
        self.calls = []
        self.maps = [1, 2, 9]
        self.groups = [{"tag": 1, "private": False, "portals": [{"host": "192.0.2.20", "port": "3260"}]},
                       {"tag": 2, "private": False, "portals": [{"host": "[fd00::20]", "port": "3260"}]},
                       {"tag": 9, "private": True, "portals": [{"host": "192.0.2.21", "port": "3260"}]}]
        self.connections = [self.connection(0, "192.0.2.5", "192.0.2.20", 3),
                            self.connection(1, "192.0.2.6", "fd00::20", 4),
                            self.connection(2, "192.0.2.10", "192.0.2.21", 7),
                            self.connection(3, "192.0.2.5", "192.0.2.20", 8, "other")]
        self.stuck = False
        self.garbage = None
        self.pieces = 1 << 20

    @staticmethod
    def connection(number, initiator, target, tsih, name=SHORT):
        return {"id": number, "cid": 0, "tsih": tsih, "state": "running", "login_phase": "full_feature",
                "initiator_addr": initiator, "target_addr": target, "target_node_name": name, "thread_name": "iscsi"}

    def answer(self, method, params):
        self.calls.append((method, params))
        if method == "iscsi_get_target_nodes":
            return [{"name": TARGET, "alias_name": "", "luns": [], "queue_depth": 64,
                     "pg_ig_maps": [{"pg_tag": tag, "ig_tag": 1} for tag in self.maps]}]
        if method == "iscsi_get_portal_groups":
            return self.groups
        if method == "iscsi_get_connections":
            return self.connections
        if method == "iscsi_target_node_set_redirect":
            tag = params["pg_tag"]
            if tag == 9:
                raise ValueError("Failed to redirect target, (-22): Invalid argument")
            self.redirects[tag] = None
            if "redirect_host" in params:
                self.redirects[tag] = f"{params['redirect_host']}:{params['redirect_port']}"
            return True
        if method == "iscsi_target_node_request_logout":
            hosts = {"192.0.2.20": 1, "fd00::20": 2, "192.0.2.21": 9}
            if not self.stuck:
                self.connections = [one for one in self.connections if one["target_node_name"] != SHORT
                                    or hosts[one["target_addr"]] != params["pg_tag"]]
            return True
        raise ValueError("Method not found")

    def rule(self):
        return self.redirects.get(1)

    async def _serve(self, reader, writer):
        try:
            request = json.loads(await reader.read(65536))
            document = {"jsonrpc": "2.0", "id": request["id"]}
            try:
                document["result"] = self.answer(request["method"], request.get("params", {}))
            except ValueError as error:
                document["error"] = {"code": -32602, "message": str(error)}
            text = json.dumps(document).encode() if self.garbage is None else self.garbage
            for at in range(0, len(text), self.pieces):
                writer.write(text[at:at + self.pieces])
                await writer.drain()
                await asyncio.sleep(0)
            if self.garbage is None:
                await reader.read()         # SPDK keeps the connection open
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def at(self, path):
        server = await asyncio.start_unix_server(self._serve, str(path))
        try:
            yield
        finally:
            server.close()


@pytest.fixture
def world(tmp_path):
    spdk = Spdk()

    @asynccontextmanager
    async def started(**options):
        async with spdk.at(tmp_path / "spdk.sock"), Portals(spdk.rule) as portals:
            driver = driver_of("spdk", portals, **{"rpc": f"unix:{tmp_path}/spdk.sock",
                                                   "door-portal": "192.0.2.21:3260", **options})
            driver.own_tsihs = lambda: frozenset({7})
            yield driver
    return spdk, started


def test_a_whole_detour(world):
    spdk, started = world

    async def work():
        async with started() as driver:
            await driver.prepare()
            await driver.set(GATEWAY)
            assert spdk.redirects == {1: "127.0.0.2:3260", 2: "127.0.0.2:3260"}     # every public group, no private one
            await driver.verify(GATEWAY)
            found = await driver.sessions()
            assert [(one.id, one.peer, one.ours) for one in found] == [
                ("0", "192.0.2.5", False), ("1", "192.0.2.6", False), ("2", "192.0.2.10", True)]
            assert await driver.drop_all() == 2
            await driver.barrier()
            assert [one["id"] for one in spdk.connections] == [2, 3]
            await driver.clear()
            assert spdk.redirects == {1: None, 2: None}
            await driver.verify(None)
            with pytest.raises(StorageError, match="does not redirect"):
                await driver.verify(GATEWAY)
    run(work)


def test_an_address_of_version_6_has_its_brackets(world):
    spdk, started = world

    async def work():
        async with started() as driver:
            await driver.set(Address("fd00::2", 3260))
            await driver.verify(Address("fd00::2", 3260))
    run(work)
    assert spdk.redirects[1] == "[fd00::2]:3260"


def test_answers_in_pieces(world):
    spdk, started = world
    spdk.pieces = 7

    async def work():
        async with started() as driver:
            assert len(await driver.sessions()) == 3
    run(work)


def test_a_session_at_the_door_that_is_not_ours_is_a_strangers(world):
    spdk, started = world
    spdk.connections.append(spdk.connection(5, "192.0.2.9", "192.0.2.21", 12))

    async def work():
        async with started() as driver:
            assert {one.id: one.ours for one in await driver.sessions()}["5"] is False
            spdk.stuck = True
            driver = driver_of_limit(driver)
            with pytest.raises(TimeoutError_, match="main still has sessions of"):
                await driver.barrier()
    run(work)


def driver_of_limit(driver):
    object.__setattr__(driver, "options", driver.options.model_copy(update={"barrier_limit": "200ms"}))
    return driver


def test_what_cannot_work_is_refused_before(world):
    spdk, started = world

    async def work():
        async with started(**{"door-portal": None}) as driver:
            with pytest.raises(StorageError, match="unless it comes by a private portal group"):
                await driver.prepare()
        async with started(gateway=Address("192.0.2.20", 3260)) as driver:
            with pytest.raises(StorageError, match=r"192\.0\.2\.20:3260 is a portal of main itself"):
                await driver.prepare()
        async with started(gateway=Address("gateway.example", 3260)) as driver:
            with pytest.raises(StorageError, match="needs an IP address"):
                await driver.prepare()
        spdk.maps = [9]
        async with started() as driver:
            with pytest.raises(StorageError, match="is in no public portal group"):
                await driver.prepare()
        spdk.maps, spdk.connections = [1, 9], []
        async with started() as driver:
            with pytest.raises(StorageError, match="does not list the gateway's session"):
                await driver.prepare()
    run(work)


@pytest.mark.parametrize(("garbage", "said"), [
    (b"", "closed the connection without an answer"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "without an answer"),
    (b'{"jsonrpc": "2.0", "id": 999, "result": []}', "is not SPDK's JSON-RPC"), (b"[]", "is not SPDK's JSON-RPC")])
def test_something_else_that_answers(world, garbage, said):
    spdk, started = world
    spdk.garbage = garbage

    async def work():
        async with started() as driver:
            with pytest.raises(StorageError, match=said):
                await driver.sessions()
    run(work)


def test_refusals_and_silence(world, tmp_path):
    spdk, started = world

    async def work():
        async with started() as driver:
            spdk.groups = [{"tag": 9, "private": False, "portals": []}]
            with pytest.raises(StorageError, match="SPDK refused iscsi_target_node_set_redirect: Failed to redirect"):
                await driver.set(GATEWAY)
            spdk.groups = {"no": "list"}
            with pytest.raises(StorageError, match="has no list of tag, portals"):
                await driver.set(GATEWAY)
        async with started(rpc=f"unix:{tmp_path}/none.sock") as driver:
            with pytest.raises(StorageError, match="cannot be reached: No such file or directory"):
                await driver.sessions()
        silent = await asyncio.start_unix_server(lambda *_: asyncio.sleep(5), str(tmp_path / "silent.sock"))
        async with started(rpc=f"unix:{tmp_path}/silent.sock", limit="200ms") as driver:
            with pytest.raises(TimeoutError_, match=r"SPDK did not answer iscsi_get_connections within 0\.2 s"):
                await driver.sessions()
        silent.close()
    run(work)
