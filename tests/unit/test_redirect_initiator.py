"""The initiator driver against hosts whose iscsiadm and sysfs are stand-ins: sessions and node records in a file."""
import json
import os
import sys
import textwrap

import pytest

from detour.errors import ConfigError, StorageError
from detour.redirect.base import Address, VolumeContext, make_driver
from tests.support.mains import GATEWAY, HOST, OWN, TARGET, run

MAIN = Address("192.0.2.20", 3260)
SECOND = Address("192.0.2.21", 3260)

PROGRAM = r'''
import json, sys
path, words = sys.argv[1], sys.argv[2:]
state = json.load(open(path))
state["calls"].append(words)
def leave(code, text=""):
    json.dump(state, open(path, "w"))
    if text:
        print(text, file=sys.stderr)
    sys.exit(code)
if state.get("down"):
    leave(255, "ssh: connect to host host1 port 22: No route to host")
def after(flag, default=None):
    return words[words.index(flag) + 1] if flag in words else default
target, portal = after("-T"), after("-p")
key = f"{target} {portal}"
if words[:2] == ["-m", "session"]:
    if not state["sessions"]:
        leave(21, "iscsiadm: No active sessions.")
    for number, name in state["sessions"].items():
        iqn, place = name.split()
        print(f"tcp: [{number}] {place},1 {iqn} (non-flash)")
elif "--login" in words:
    if key not in state["nodes"]:
        leave(21, "iscsiadm: No records found")
    if key in state.get("unreachable", []):
        leave(8, "iscsiadm: Could not login.\niscsiadm: initiator reported error (8 - connection timed out)")
    if key in state["sessions"].values():
        leave(15, "iscsiadm: session exists")
    state["sessions"][str(max([0, *map(int, state["sessions"])]) + 1)] = key
elif "--logout" in words:
    left = {number: name for number, name in state["sessions"].items() if name != key}
    if left == state["sessions"]:
        leave(21, "iscsiadm: No matching sessions found")
    state["sessions"] = left
elif after("-o") == "new":
    state["nodes"].setdefault(key, after("-v"))
elif after("-o") == "update":
    if key not in state["nodes"]:
        leave(21, "iscsiadm: No records found")
    state["nodes"][key] = after("-v")
elif after("-o") == "delete":
    if state["nodes"].pop(key, None) is None:
        leave(21, "iscsiadm: No records found")
elif words[:2] == ["-m", "node"]:
    print(f"# BEGIN RECORD 2.1.8\nnode.name = {target}\nnode.startup = {state['nodes'][key]}\n# END RECORD")
leave(0)
'''


class Host:
    """One host. `disks`: what the script that looks for multipath prints."""

    def __init__(self, folder, name=HOST, portals=(MAIN,), startup="automatic"):
        folder.mkdir()
        self.name, self.path = name, folder / "state.json"
        (folder / "program.py").write_text(textwrap.dedent(PROGRAM))
        (folder / "iscsiadm").write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/program.py {self.path} "$@"\n')
        (folder / "sh").write_text(f"#!/bin/sh\ncat {folder}/disks\n")
        (folder / "disks").write_text("sdb mpath\n")
        for each in ("iscsiadm", "sh"):
            (folder / each).chmod(0o755)
        self.folder = folder
        keys = [f"{TARGET} {portal}" for portal in portals]
        self.write(calls=[], nodes=dict.fromkeys(keys, startup),
                   sessions={str(number): key for number, key in enumerate(keys, 1)})

    def read(self):
        return json.loads(self.path.read_text())

    def write(self, **values):
        self.path.write_text(json.dumps({**(self.read() if self.path.exists() else {}), **values}))

    @property
    def ways(self):
        return sorted(name.split()[1] for name in self.read()["sessions"].values())

    @property
    def options(self):
        return {"initiator": self.name, "command": ["env", f"PATH={self.folder}:{os.environ['PATH']}"]}


def driver_of(*hosts, memo=None, **options):
    context = VolumeContext("db01", TARGET, MAIN, GATEWAY, OWN, memo)
    return make_driver(context, {"driver": "initiator", "hosts": [host.options for host in hosts],
                                 "portals": [str(MAIN), str(SECOND)], **options})


def test_a_whole_detour_of_two_hosts(tmp_path):
    one = Host(tmp_path / "one", portals=(MAIN, SECOND))
    two = Host(tmp_path / "two", "iqn.2026-01.example:host2", startup="onboot")
    driver = driver_of(one, two)
    before = [host.read()["nodes"] for host in (one, two)]

    async def work():
        await driver.prepare()
        await driver.set(GATEWAY)
        await driver.set(GATEWAY)
        await driver.verify(GATEWAY)
        with pytest.raises(StorageError, match=f"{HOST} still has a session at 127"):
            await driver.verify(None)
        assert one.ways == sorted(map(str, (MAIN, SECOND, GATEWAY))) and two.ways == sorted(map(str, (MAIN, GATEWAY)))
        assert [(found.id, found.peer) for found in await driver.sessions()] == [
            (f"{HOST}/1", str(MAIN)), (f"{HOST}/2", str(SECOND)), ("iqn.2026-01.example:host2/1", str(MAIN))]
        assert await driver.drop_all() == 3
        await driver.barrier()
        assert one.ways == two.ways == [str(GATEWAY)]
        assert set(one.read()["nodes"].values()) == {"manual"}      # a host that starts anew stays off main
        await driver.clear()
        await driver.clear()
        await driver.verify(None)
    run(work)
    assert one.ways == sorted(map(str, (MAIN, SECOND))) and two.ways == [str(MAIN)]
    assert [host.read()["nodes"] for host in (one, two)] == before


def test_a_gateway_that_was_killed_brings_hosts_home_after_its_next_start(tmp_path):
    host = Host(tmp_path / "host")
    memo = tmp_path / "memo.json"

    async def work():
        driver = driver_of(host, memo=memo)
        await driver.set(GATEWAY)
        await driver.drop_all()
        await driver_of(host, memo=memo).clear()
    run(work)
    assert host.ways == [str(MAIN)] and set(host.read()["nodes"].values()) == {"automatic"}
    assert not memo.exists()


def test_a_host_that_is_not_logged_in_is_left_alone(tmp_path):
    here, away = Host(tmp_path / "here"), Host(tmp_path / "away", "iqn.2026-01.example:away")
    away.write(sessions={})
    driver = driver_of(here, away)

    async def work():
        await driver.set(GATEWAY)
        await driver.verify(GATEWAY)
        await driver.drop_all()
        await driver.clear()
    run(work)
    assert away.read()["sessions"] == {} and here.ways == [str(MAIN)]


def test_a_host_that_does_not_get_to_the_gateway(tmp_path):
    host = Host(tmp_path / "host")
    host.write(unreachable=[f"{TARGET} {GATEWAY}"])
    driver = driver_of(host)

    async def work():
        with pytest.raises(StorageError, match=r"--login: iscsiadm: initiator reported error \(8"):
            await driver.set(GATEWAY)
        with pytest.raises(StorageError, match=f"{HOST} has no session at 127"):
            await driver.verify(GATEWAY)
        assert host.ways == [str(MAIN)]
        await driver.clear()
        await driver.verify(None)
    run(work)
    assert host.read()["nodes"] == {f"{TARGET} {MAIN}": "automatic"}


def test_what_cannot_work_is_refused_before(tmp_path):
    host = Host(tmp_path / "host")
    (host.folder / "disks").write_text("sdb mpath\nsdc single\n")

    async def work():
        with pytest.raises(StorageError, match=f"{HOST} uses sdc of {TARGET} without multipath"):
            await driver_of(host).prepare()
        (host.folder / "disks").write_text("")
        host.write(sessions={})
        with pytest.raises(StorageError, match="none of the hosts"):
            await driver_of(host).prepare()
        host.write(down=True)
        with pytest.raises(StorageError, match="No route to host"):
            await driver_of(host).prepare()
    run(work)
    with pytest.raises(ConfigError, match="hosts"):
        driver_of()
    with pytest.raises(ConfigError, match=r"hosts\.0\.command"):
        make_driver(VolumeContext("v", TARGET, MAIN, GATEWAY, OWN),
                    {"driver": "initiator", "hosts": [{"initiator": "x"}]})
