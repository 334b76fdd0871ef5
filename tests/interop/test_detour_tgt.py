"""Whole detours with a real tgtd as main storage: its redirect, its sessions, its access rules; gateway as a process.

The gateway's address is 127.0.0.2 and everybody else's 127.0.0.1, because tgtd does not redirect a login that comes
from the redirect's own address, whatever the port.
"""
from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from detour.api.client import Client
from detour.bench import Load
from detour.children import Child
from detour.compare import compare_expected
from detour.iscsi.initiator import connect
from detour.runtime import Runtime
from detour.urls import parse_iscsi_url
from tests.support.ports import free_port
from tests.support.tgtd import Tgtd, needs_tgtd

pytestmark = needs_tgtd
IQN = "iqn.2026-01.org.detour:tgt-main"
SIZE = 32 * 2**20
LIMIT_SECONDS = 60


class Site:
    """tgtd, gateway and a host with a load."""

    def __init__(self, folder: Path, more: str = "", command: str = "tgtadm") -> None:
        self.folder = folder
        self.main = Tgtd(folder / "tgt", IQN, size_bytes=SIZE)
        self.port = free_port("127.0.0.2")
        self.gateways = 0
        ipc = self.main.environment["TGT_IPC_SOCKET"]
        (folder / "detour.toml").write_text(f"""[gateway]
listen = ["127.0.0.2:{self.port}"]
advertise = "127.0.0.2:{self.port}"
state = "{folder / 'state'}"
api = "unix:{folder / 'api.sock'}"

[volume.db01]
main = "iscsi://{self.main.portal}/{IQN}/1"
journal = {{ path = "{folder / 'journal'}", size = "128MiB" }}
redirect = {{ driver = "tgt", command = ["{command}"], env = {{ TGT_IPC_SOCKET = "{ipc}" }} }}
hooks = {{ frozen = ["cp", "{self.main.image}", "{folder / 'pit'}"] }}
{more}

[store.raw]
url = "file://{folder / 'backups'}/"
""")

    async def start_gateway(self) -> Child:
        self.gateways += 1
        child = await Child.start("gateway", ["serve", "-c", str(self.folder / "detour.toml")],
                                  self.folder / f"gateway-{self.gateways}.log")
        await child.wait_ready()
        return child

    def client(self) -> Client:
        return Client(f"unix:{self.folder / 'api.sock'}")

    def acl(self) -> list[str]:
        return self.main.admin("--mode", "target", "--op", "show").split("ACL information:\n")[1].split()

    def redirect_is_set(self) -> bool:
        return "RedirectAddress" in self.main.admin("--mode", "target", "--op", "show", "--tid", "1")

    def initiators(self) -> set[str]:
        text = self.main.admin("--mode", "conn", "--op", "show", "--tid", "1")
        return {line.split(": ")[1] for line in text.splitlines() if "Initiator: " in line}


@contextlib.asynccontextmanager
async def working_host(site: Site):
    """A host that writes and checks all the time."""
    async with Runtime() as runtime:
        store = await connect(runtime, parse_iscsi_url(f"iscsi://{site.main.portal}/{IQN}/1"),
                              initiator_name="iqn.2026-01.org.detour:tgt-host")
        try:
            fill = Load(runtime, store.handle, mode="sequential", read_share=0.0, depth=8, io_bytes=2**20, seed=7)
            await fill.run(operations=SIZE // 2**20)
            load = Load(runtime, store.handle, rate=300.0, depth=16, io_bytes=4096, io_bytes_max=16384, seed=7,
                        flush_every=50, versions=fill.generator.versions)
            await load.start()
            yield load
            await load.stop()
            await store.flush()
        finally:
            await store.close()


async def to_the_end(client: Client, detour_id: str) -> dict:
    async with asyncio.timeout(LIMIT_SECONDS):
        document = {}
        async for one in client.follow(detour_id):
            document = one
        return document


def check_home(site: Site, load: Load, rules: list[str]) -> None:
    assert load.total("errors") == 0 and load.total("mismatches") == 0
    assert load.total("writes") > 10
    assert not site.redirect_is_set() and sorted(site.acl()) == rules
    found = compare_expected(site.main.image, load.generator)
    assert found.same and found.compared_bytes == SIZE


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.main.close()


def test_there_and_back_under_load(site):
    rules = ["127.0.0.1", "127.0.0.2"]
    for word in ("127.0.0.1", "127.0.0.2"):
        site.main.target("bind", "--initiator-address", word)
    site.main.target("unbind", "--initiator-address", "ALL")

    async def work():
        gateway = await site.start_gateway()
        try:
            async with site.client() as client, working_host(site) as load:
                await asyncio.sleep(0.5)
                started = await client.start("db01", tag="weekly")
                document = await to_the_end(client, started["id"])
                assert document["result"] == "done", document
                assert document["host"]["errors"] == 0 and document["catch_up"]["rounds"] >= 1
                await asyncio.sleep(1.0)
                assert "iqn.2026-01.org.detour:tgt-host" in site.initiators()
                verdict = await client.verify(document["backup_id"])
                assert verdict["ok"] and verdict["checked_bytes"] == SIZE
                backup = await client.backup(document["backup_id"])
            return load, backup
        finally:
            await gateway.end()
    load, backup = asyncio.run(work())
    check_home(site, load, rules)
    image = Path(backup["url"].removeprefix("file://"))
    assert image.read_bytes() == (site.folder / "pit").read_bytes()     # main as it was at the freeze, by another path
    assert backup["identity"]["serial"] == "serial-1"


@pytest.mark.parametrize("phase", ["copying", "catching-up"])
def test_a_killed_gateway_goes_on_and_brings_the_host_home(tmp_path, phase):
    more = 'copy = { rate = "16MiB/s" }' if phase == "copying" else 'max-pause = "5ms"'
    site = Site(tmp_path, more)

    async def work():
        gateway = await site.start_gateway()
        try:
            async with working_host(site) as load:
                async with site.client() as client:
                    started = await client.start("db01")
                    async with asyncio.timeout(LIMIT_SECONDS):
                        async for document in client.follow(started["id"]):
                            if document["phase"] == phase:
                                break
                gateway.kill()
                await gateway.end()
                assert site.redirect_is_set() or phase == "catching-up"
                gateway = await site.start_gateway()
                async with site.client() as client, asyncio.timeout(LIMIT_SECONDS):
                    while site.redirect_is_set() or any(
                            run["result"] is None for run in await client.detours()):
                        await asyncio.sleep(0.1)
                    runs = await client.detours()
                await asyncio.sleep(1.0)
            return load, runs
        finally:
            await gateway.end()
    try:
        load, runs = asyncio.run(work())
        check_home(site, load, ["ALL"])
        if phase == "copying":
            assert [run["result"] for run in runs] == ["done"], runs
            image = Path(runs[0]["backup"]["url"].removeprefix("file://"))
            assert image.read_bytes() == (site.folder / "pit").read_bytes()
    finally:
        site.main.close()


def test_a_cancel_restores_everything(tmp_path):
    site = Site(tmp_path, 'copy = { rate = "4MiB/s" }')

    async def work():
        gateway = await site.start_gateway()
        try:
            async with site.client() as client, working_host(site) as load:
                started = await client.start("db01")
                async for document in client.follow(started["id"]):
                    if document["phase"] == "copying":
                        assert site.acl() == ["127.0.0.2"] and site.redirect_is_set()
                        await client.cancel("db01")
                        break
                document = await to_the_end(client, started["id"])
                assert (document["result"], document["exit_code"]) == ("cancelled", 3)
                assert await client.backups() == []
            return load
        finally:
            await gateway.end()
    try:
        check_home(site, asyncio.run(work()), ["ALL"])
        assert list((site.folder / "backups").iterdir()) == []
    finally:
        site.main.close()


BROKEN_TGTADM = """#!/bin/sh
case "$*" in
*"--mode conn --op delete"*) touch {folder}/dropped ;;
*"--mode conn --op show"*) if [ -e {folder}/dropped ]; then sleep 1; echo "out of order" >&2; exit 1; fi ;;
esac
exec tgtadm "$@"
"""


def test_commands_that_waited_for_a_freeze_that_never_came_are_not_failed(tmp_path):
    """The host is on the gateway already, and its commands wait, when main's control plane breaks."""
    script = tmp_path / "tgtadm"
    script.write_text(BROKEN_TGTADM.format(folder=tmp_path))
    script.chmod(0o755)
    site = Site(tmp_path, command=str(script))

    async def work():
        gateway = await site.start_gateway()
        try:
            async with site.client() as client, working_host(site) as load:
                started = await client.start("db01")
                document = await to_the_end(client, started["id"])
                assert (document["result"], document["exit_code"]) == ("abandoned", 3)
                assert "out of order" in document["reason"] and document["host"]["errors"] == 0
                await asyncio.sleep(1.0)
            return load
        finally:
            await gateway.end()
    try:
        check_home(site, asyncio.run(work()), ["ALL"])
    finally:
        site.main.close()
