"""The SCST driver against a tree that behaves like SCST's sysfs: what is written has the effects of the real one."""
import asyncio
import contextlib
import os
import shutil
import threading
import time

import pytest

from detour.errors import ConfigError, StorageError, TimeoutError_
from detour.redirect.base import Address, VolumeContext, make_driver, wait_gone
from tests.support.mains import GATEWAY, HOST, TARGET, Portals, driver_of, run

# What is written to `redirect` is shown as SCST shows it: without the default port, and with a line "[key]".
TEE = r"""#!/bin/sh
value=$(cat)
case $2 in
*/redirect)
    if [ -n "$value" ]; then printf '%s\n[key]\n' "$(echo "$value" | sed 's/:3260 / /')"; fi >"$2.new"
    mv "$2.new" "$2" ;;
*) printf '%s\n' "$value" >"$2" ;;
esac
"""


class Tree:
    """root/targets/iscsi/TARGET with redirect and sessions. A `tee` in front of the real one and a thread play the
    kernel: the thread closes sessions whose force_close was written, after `close_s`."""

    def __init__(self, root):
        self.root = root
        self.target = root / "targets" / "iscsi" / TARGET
        (self.target / "sessions").mkdir(parents=True)
        (self.target / "redirect").write_text("")
        (root / "last_sysfs_mgmt_res").write_text("0\n")
        (root / "kernel").mkdir()
        (root / "kernel" / "tee").write_text(TEE)
        (root / "kernel" / "tee").chmod(0o755)
        self.close_s = 0.0
        self._end = threading.Event()
        self._kernel = threading.Thread(target=self._run)

    def __enter__(self):
        self._kernel.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._kernel.join()

    def session(self, name, initiator=HOST, ip="192.0.2.5"):
        folder = self.target / "sessions" / name
        (folder / ip).mkdir(parents=True)
        (folder / ip / "ip").write_text(ip + "\n")
        (folder / "initiator_name").write_text(initiator + "\n")
        (folder / "sid").write_text("40000013d0200\n")
        (folder / "force_close").write_text("")

    @property
    def names(self):
        return sorted(os.listdir(self.target / "sessions"))

    def redirect(self):
        words = (self.target / "redirect").read_text().split()
        return None if not words else words[0] if ":" in words[0].rpartition("]")[2] else words[0] + ":3260"

    def _run(self):
        asked = {}
        while not self._end.wait(0.005):
            for name in self.names:
                folder = self.target / "sessions" / name
                with contextlib.suppress(OSError):
                    if (folder / "force_close").read_text().strip() == "1":
                        asked.setdefault(name, time.monotonic())
                if name in asked and time.monotonic() - asked[name] >= self.close_s:
                    gone = self.root / f"gone-{name}-{time.monotonic_ns()}"
                    folder.rename(gone)                         # as in sysfs: it is there whole, or not at all
                    shutil.rmtree(gone)
                    asked.pop(name)

    def driver(self, portals, **options):
        kernel = ["env", f"PATH={self.root / 'kernel'}:{os.environ['PATH']}"]
        return driver_of("scst", portals, **{"root": str(self.root), "door-target": "iqn.2026-01.example:door",
                                             "command": kernel, **options})


@pytest.fixture
def tree(tmp_path):
    with Tree(tmp_path) as tree:
        yield tree


@pytest.mark.parametrize("address", [GATEWAY, Address("127.0.0.2", 3271), Address("fd00::2", 3260),
                                     Address("fd00::2", 3271)])
def test_a_whole_detour(tree, address):
    tree.session("iqn.2026-01.example:host")
    tree.session("iqn.2026-01.example:host_1", ip="192.0.2.6")

    async def work():
        async with Portals(tree.redirect) as portals:
            driver = tree.driver(portals)
            await driver.prepare()
            await driver.set(address)
            await driver.set(address)
            await driver.verify(address)
            with pytest.raises(StorageError, match="should not redirect"):
                await driver.verify(None)
            assert [(one.id, one.initiator, one.peer, one.ours) for one in await driver.sessions()] == [
                ("iqn.2026-01.example:host", HOST, "192.0.2.5", False),
                ("iqn.2026-01.example:host_1", HOST, "192.0.2.6", False)]
            assert await driver.drop_all() == 2
            await wait_gone(driver, 5)
            await driver.barrier()
            assert tree.names == []
            await driver.clear()
            await driver.clear()
            await driver.verify(None)
            with pytest.raises(StorageError, match="does not redirect, but should"):
                await driver.verify(address)
            assert driver.door().target == "iqn.2026-01.example:door"
    run(work)


def test_a_closing_session_holds_the_barrier(tree):
    tree.session("host")
    tree.close_s = 0.6

    async def work():
        async with Portals(tree.redirect) as portals:
            driver = tree.driver(portals)
            begun = asyncio.get_running_loop().time()
            await driver.drop_all()
            assert tree.names == ["host"]
            await driver.barrier()
            assert asyncio.get_running_loop().time() - begun >= 0.5 and tree.names == []
            tree.session("host")
            tree.close_s = 60
            driver = tree.driver(portals, **{"barrier-limit": "300ms"})
            with pytest.raises(TimeoutError_, match=f"main still has sessions of {HOST}"):
                await driver.barrier()
    run(work)


def test_a_redirect_that_the_portals_do_not_give_is_found(tree):
    async def work():
        async with Portals(lambda: None) as portals:
            driver = tree.driver(portals)
            await driver.set(GATEWAY)
            with pytest.raises(StorageError, match=r"portal 127\.0\.0\.1:\d+ does not redirect"):
                await driver.verify(GATEWAY)
    run(work)


def test_what_cannot_work_is_refused_before(tree, tmp_path):
    async def work():
        async with Portals(tree.redirect) as portals:
            with pytest.raises(StorageError, match="target name of its own"):
                await tree.driver(portals, **{"door-target": None}).prepare()
            with pytest.raises(StorageError, match="needs an IP address"):
                await tree.driver(portals, gateway=Address("gateway.example", 3260)).prepare()
            with pytest.raises(StorageError, match="needs an IP address"):
                await tree.driver(portals).set(Address("gateway.example", 3260))
            with pytest.raises(StorageError, match="No such file or directory"):
                await tree.driver(portals, root=str(tmp_path / "none")).prepare()
    run(work)
    with pytest.raises(ConfigError, match="root"):
        make_driver(VolumeContext("v", TARGET, GATEWAY, GATEWAY, "iqn.o"), {"driver": "scst", "root": "sys"})
    with pytest.raises(ConfigError, match="no target name"):
        make_driver(VolumeContext("v", "../../etc", GATEWAY, GATEWAY, "iqn.o"), {"driver": "scst"})


def test_a_write_that_is_still_going_on_is_waited_for(tree, tmp_path):
    """EAGAIN: the result comes in last_sysfs_mgmt_res. A `tee` that answers so stands in for the kernel."""
    (tmp_path / "bin").mkdir()
    tee = tmp_path / "bin" / "tee"
    tee.write_text('#!/bin/sh\ncat >"$2"\necho "tee: $2: Resource temporarily unavailable" >&2\nexit 1\n')
    tee.chmod(0o755)
    result = tmp_path / "last_sysfs_mgmt_res"

    async def work():
        async with Portals(tree.redirect) as portals:
            driver = tree.driver(portals, command=["env", f"PATH={tee.parent}:{os.environ['PATH']}"])
            result.unlink()
            setting = asyncio.create_task(driver.set(GATEWAY))
            await asyncio.sleep(0.3)
            assert not setting.done()
            result.write_text("0\n")
            await setting
            await driver.verify(GATEWAY)
            result.write_text("-22\n")
            with pytest.raises(StorageError, match="the write ended with -22"):
                await driver.clear()
    run(work)
