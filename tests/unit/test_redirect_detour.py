"""The redirect driver `detour` against a real plain target: who is the gateway, who is a host, and what goes wrong."""
from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading

import pytest

from detour.embedded import DiskOptions, EmbeddedTarget, make_app, serving
from detour.errors import ConfigError, LoginError, StorageError, TimeoutError_
from detour.iscsi.initiator import connect
from detour.redirect.base import Address, OwnSession, VolumeContext, make_driver, wait_gone
from detour.runtime import Runtime
from detour.urls import IscsiUrl, parse_endpoint

IQN = "iqn.2026-01.example:plain"
NAME = "iqn.2026-01.example:shared"         # the gateway's name, and a host's
ISIDS = (b"\x80\x01\x02\x03\x04\x05", b"\x80\x01\x02\x03\x04\x06")
OWN = tuple(OwnSession(NAME, isid.hex()) for isid in ISIDS)
GATEWAY = Address("127.0.0.1", 9)
LIMIT_SECONDS = 30


class World:
    def __init__(self, runtime, target, portal, api):
        self.runtime, self.target, self.api = runtime, target, api
        self.url = IscsiUrl(*parse_endpoint(portal), IQN, 0)
        self.attached = frozenset()

    def driver(self, own=OWN, api="", gateway=GATEWAY, **options):
        context = VolumeContext("db01", IQN, Address(self.url.host, self.url.port), gateway, NAME, None, own)
        driver = make_driver(context, {"driver": "detour", "api": api or self.api, **options})
        driver.own_tsihs = lambda: self.attached
        return driver

    async def login(self, isid=None, name=NAME):
        return await connect(self.runtime, self.url, initiator_name=name, isid=isid, follow_redirect=False,
                             retry_seconds=0.0)


def run(tmp_path, scenario):
    async def whole():
        async with asyncio.timeout(LIMIT_SECONDS), Runtime() as runtime:
            target = EmbeddedTarget(runtime, IQN)
            try:
                await target.add_disk("mem:16MiB", DiskOptions())
                portal = await target.listen("127.0.0.1:0")
                async with serving(make_app(target), f"unix:{tmp_path / 'api.sock'}") as api:
                    await scenario(World(runtime, target, portal, api))
            finally:
                await target.close()
    asyncio.run(whole())


def test_a_host_with_the_gateways_name_is_redirected_and_dropped_like_any_other(tmp_path):
    async def scenario(world):
        driver = world.driver()
        gateway, sibling = await world.login(ISIDS[0]), await world.login(ISIDS[1])
        namesake, host = await world.login(), await world.login(name="iqn.2026-01.example:host")
        await driver.prepare()
        assert sorted((one.isid, one.ours) for one in await driver.sessions()) == sorted(
            [(ISIDS[0].hex(), True), (ISIDS[1].hex(), True), (namesake.isid.hex(), False), (host.isid.hex(), False)])
        await driver.set(GATEWAY)
        await driver.verify(GATEWAY)
        assert await driver.drop_all() == 2
        await driver.barrier()
        await wait_gone(driver, 5.0)
        assert {one.isid for one in await driver.sessions()} == {isid.hex() for isid in ISIDS}
        for name in (NAME, "iqn.2026-01.example:host"):
            with pytest.raises(LoginError, match="redirects to 127"):
                await world.login(name=name)
        assert gateway.state == sibling.state == "connected", "the gateway's sessions are left alone"
        await gateway.close()                           # two of one name and ISID would end each other for ever
        again = await world.login(ISIDS[0])             # the gateway may log in again
        await driver.clear()
        await driver.verify(None)
        for store in (namesake, host, sibling, again):
            await store.close()
        await driver.close()
    run(tmp_path, scenario)


def test_no_own_session_means_that_everybody_is_a_host(tmp_path):
    async def scenario(world):
        driver = world.driver(own=())
        store = await world.login(ISIDS[0])
        assert [one.ours for one in await driver.sessions()] == [False]
        await driver.set(GATEWAY)
        with pytest.raises(LoginError, match="redirects"):
            await world.login(ISIDS[0])
        await store.close()
        await driver.close()
    run(tmp_path, scenario)


def test_another_main_than_the_gateways_is_refused(tmp_path):
    """The table `redirect` leads to a target of the same name on which the gateway is not."""
    async def scenario(world):
        driver = world.driver()
        await driver.prepare()
        world.attached = frozenset({1})
        with pytest.raises(StorageError, match="does not list the gateway's session"):
            await driver.prepare()
        store = await world.login(ISIDS[1])
        await driver.prepare()
        await store.close()
        await driver.close()
    run(tmp_path, scenario)


def test_set_clear_and_verify(tmp_path):
    async def scenario(world):
        driver = world.driver()
        await driver.clear()
        await driver.verify(None)
        with pytest.raises(StorageError, match=r"does not redirect, but should redirect to 127\.0\.0\.1:9"):
            await driver.verify(GATEWAY)
        await driver.set(GATEWAY)
        await driver.set(GATEWAY)
        await driver.verify(GATEWAY)
        with pytest.raises(StorageError, match=r"redirects to 127\.0\.0\.1:9, but should not redirect"):
            await driver.verify(None)
        with pytest.raises(StorageError, match=r"should redirect to 192\.0\.2\.9:3260"):
            await driver.verify(Address("192.0.2.9", 3260))
        await driver.close()
    run(tmp_path, scenario)


def test_what_cannot_work_is_one_sentence(tmp_path):
    async def scenario(world):
        for driver, words in (
                (world.driver(gateway=Address("gateway.example", 3260)), "needs an IP address"),
                (world.driver(api=f"unix:{tmp_path}/none.sock"), "cannot be reached"),
        ):
            with pytest.raises(StorageError, match=words):
                await driver.prepare()
            await driver.close()
        world.target.entry.iqn = "iqn.2026-01.example:elsewhere"
        driver = world.driver()
        with pytest.raises(StorageError, match=f"no target {IQN}"):
            await driver.verify(None)
        with pytest.raises(StorageError, match=r"refused DELETE .*: there is no target"):
            await driver.clear()
        await driver.close()
    run(tmp_path, scenario)


@contextlib.contextmanager
def answering(path, body):
    """A server on a Unix socket that answers every request with `body`, or, without one, with silence."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(8)
        server.settimeout(0.05)
        links = []
        over = threading.Event()

        def serve():
            while not over.is_set():
                with contextlib.suppress(OSError):
                    link, _ = server.accept()
                    link.settimeout(10)
                    links.append(link)
                    link.recv(65536)
                    if body is not None:
                        text = json.dumps(body).encode()
                        link.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
                                     b"content-length: %d\r\n\r\n%s" % (len(text), text))
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"unix:{path}"
        finally:
            over.set()
            thread.join(10)
            for link in links:
                link.close()


@pytest.mark.parametrize("body", [None, {"targets": []}, [1], [{"name": IQN}], "hello"])
def test_something_else_that_answers_is_told(tmp_path, body):
    context = VolumeContext("db01", IQN, Address("127.0.0.1", 3260), GATEWAY, NAME, None, OWN)

    async def ask(api):
        driver = make_driver(context, {"driver": "detour", "api": api, "limit": "300ms"})
        try:
            with pytest.raises(TimeoutError_ if body is None else StorageError):
                await driver.verify(None)
            with pytest.raises(TimeoutError_ if body is None else StorageError):
                await driver.sessions()
        finally:
            await driver.close()
    with answering(tmp_path / "odd.sock", body) as api:
        asyncio.run(ask(api))


@pytest.mark.parametrize(("options", "key"), [
    ({"driver": "detour"}, "redirect.api"),
    ({"driver": "detour", "api": "main.sock"}, "redirect.api"),
    ({"driver": "detour", "api": "unix:/x", "fence": True}, "redirect.fence"),
])
def test_options_are_checked(options, key):
    context = VolumeContext("db01", IQN, Address("127.0.0.1", 3260), GATEWAY, NAME)
    with pytest.raises(ConfigError) as caught:
        make_driver(context, options)
    assert caught.value.key == key
