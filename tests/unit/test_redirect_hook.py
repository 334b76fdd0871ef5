"""The hook driver: a program of the administrator's, called as the contract in the driver's head says."""
import json
import os
import stat
import sys
import textwrap

import pytest

from detour.errors import ConfigError, StorageError, TimeoutError_
from detour.redirect.base import VolumeContext, make_driver
from tests.support.mains import GATEWAY, HOST, ISID, OWN, Portals, driver_of, run

PROGRAM = r'''
#!PYTHON
import json, os, sys, time
path = os.environ["STATE"]
state = json.load(open(path))
action = sys.argv[1]
names = ("VOLUME", "TARGET", "ADDRESS", "INITIATOR")
state["calls"].append([action] + [os.environ["DETOUR_" + name] for name in names])
say = state["exit"].get(action, 0)
if action == state.get("hang"):
    if os.fork() == 0:
        time.sleep(60)
    time.sleep(60)
if say == 0 and action == "set":
    state["redirect"] = os.environ["DETOUR_HOST"] + ":" + os.environ["DETOUR_PORT"]
elif say == 0 and action == "clear":
    state["redirect"] = None
elif action == "sessions":
    print(state.get("text") or json.dumps(state["sessions"]))
elif action == "drop" and not say:
    state["sessions"] = [one for one in state["sessions"] if one["initiator"] == "iqn.2026-01.example:gateway"]
json.dump(state, open(path, "w"))
if say:
    sys.exit(f"first line\nthe array says no to {action}" if say == 1 else say)
'''


class Fake:
    def __init__(self, folder):
        self.path = folder / "state.json"
        self.program = folder / "main-hook"
        self.program.write_text(textwrap.dedent(PROGRAM).strip().replace("PYTHON", sys.executable))
        self.program.chmod(stat.S_IRWXU)
        self.write(redirect=None, calls=[], exit={"fence": 64, "unfence": 64, "barrier": 64},
                   sessions=[{"id": 1, "initiator": HOST, "peer": "192.0.2.5"},
                             {"id": "2", "initiator": OWN, "isid": ISID.upper()}])

    def read(self):
        return json.loads(self.path.read_text())

    def write(self, **values):
        self.path.write_text(json.dumps({**(self.read() if self.path.exists() else {}), **values}))

    def portals(self, **options):
        return Portals(lambda: self.read()["redirect"], **options)

    def driver(self, portals, **options):
        return driver_of("hook", portals, command=[str(self.program)], env={"STATE": str(self.path)}, **options)


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


def test_a_whole_detour_and_what_the_program_is_told(fake):
    async def work():
        async with fake.portals(count=2) as portals:
            driver = fake.driver(portals)
            await driver.prepare()
            await driver.fence()
            await driver.set(GATEWAY)
            await driver.set(GATEWAY)
            await driver.verify(GATEWAY)
            assert len(portals.names) == 2 and set(portals.names) == {OWN}      # each portal was looked at
            with pytest.raises(StorageError, match=r"redirects to 127\.0\.0\.2:3260 .* but should not redirect"):
                await driver.verify(None)
            found = await driver.sessions()
            assert [(one.id, one.initiator, one.peer, one.isid, one.ours) for one in found] == [
                ("1", HOST, "192.0.2.5", "", False), ("2", OWN, "", ISID, True)]
            assert await driver.drop_all() == 1
            await driver.barrier()
            await driver.unfence()
            await driver.clear()
            await driver.clear()
            await driver.verify(None)
            with pytest.raises(StorageError, match=r"does not redirect .* but should redirect to 127"):
                await driver.verify(GATEWAY)
    run(work)
    calls = fake.read()["calls"]
    assert [call[0] for call in calls if call[0] != "sessions"] == [
        "check", "fence", "set", "set", "drop", "barrier", "unfence", "clear", "clear"]
    assert all(call[1:] == ["db01", "iqn.2026-01.example:main", str(GATEWAY), OWN] for call in calls)


def test_one_portal_that_does_not_redirect_is_found(fake):
    async def work():
        async with fake.portals() as good, Portals(lambda: None) as other:
            driver = fake.driver(good)
            both = [str(good.addresses[0]), str(other.addresses[0])]
            driver = make_driver(driver.context, {"driver": "hook", "command": [str(fake.program)], "portals": both,
                                                  "env": {"STATE": str(fake.path)}})
            await driver.set(GATEWAY)
            with pytest.raises(StorageError, match=f"portal {both[1]} does not redirect"):
                await driver.verify(GATEWAY)
    run(work)


def test_portals_are_those_that_main_tells_of(fake):
    async def work():
        async with fake.portals(count=2) as portals:
            driver = fake.driver(portals)
            driver = make_driver(driver.context, {"driver": "hook", "command": [str(fake.program)],
                                                  "env": {"STATE": str(fake.path)}})
            assert (await driver.portals())[0] == portals.addresses[0]
    run(work)


@pytest.mark.parametrize("action", ["check", "set", "clear", "sessions", "drop", "barrier", "fence", "unfence"])
def test_a_failing_action_says_why(fake, action):
    fake.write(exit={"barrier": 64, action: 1})
    if action == "barrier":
        fake.write(sessions=[{"id": "2", "initiator": OWN}])

    async def work():
        async with fake.portals() as portals:
            driver = fake.driver(portals)
            steps = {"check": driver.prepare, "set": lambda: driver.set(GATEWAY), "drop": driver.drop_all}
            with pytest.raises(StorageError, match=f"the hook's action {action} failed: the array says no to {action}"):
                await steps.get(action, getattr(driver, action, None))()
    run(work)


@pytest.mark.parametrize("action", ["check", "set", "clear", "sessions", "drop"])
def test_what_has_to_be_there_cannot_be_left_out(fake, action):
    fake.write(exit={action: 64})

    async def work():
        async with fake.portals() as portals:
            driver = fake.driver(portals)
            steps = {"check": driver.prepare, "set": lambda: driver.set(GATEWAY), "drop": driver.drop_all}
            with pytest.raises(StorageError, match=f"leaves out the action {action}"):
                await steps.get(action, getattr(driver, action, None))()
    run(work)


@pytest.mark.parametrize("text", ["no json", "7", "[7]", '[{"id": 1}]', "{}x", '{"id": 1, "initiator": "i"}'])
def test_a_list_of_sessions_that_is_none(fake, text):
    fake.write(text=text)

    async def work():
        async with fake.portals() as portals:
            with pytest.raises(StorageError, match="printed no list of sessions"):
                await fake.driver(portals).sessions()
    run(work)


def test_a_program_that_hangs_is_ended_with_what_it_started(fake, tmp_path):
    fake.write(hang="set")

    async def work():
        async with fake.portals() as portals:
            with pytest.raises(TimeoutError_, match=r"main-hook did not answer within 0\.5 s"):
                await fake.driver(portals, limit="500ms").set(GATEWAY)
    run(work)
    left = [name for name in os.listdir("/proc") if name.isdigit() and runs(name, str(fake.program))]
    assert left == []


def runs(pid, program):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return program.encode() in file.read().split(b"\0")
    except OSError:
        return False


def test_a_program_that_is_not_there_and_options_that_are_wrong(tmp_path):
    context = VolumeContext("db01", "iqn.x", GATEWAY, GATEWAY, OWN)

    async def work():
        with pytest.raises(StorageError, match="cannot be run: No such file or directory"):
            await make_driver(context, {"driver": "hook", "command": [str(tmp_path / "none")]}).prepare()
    run(work)
    with pytest.raises(ConfigError, match="command"):
        make_driver(context, {"driver": "hook"})
    with pytest.raises(ConfigError, match="portals"):
        make_driver(context, {"driver": "hook", "command": ["x"], "portals": ["192.0.2.1"]})


def test_the_door_is_as_configured(tmp_path):
    context = VolumeContext("db01", "iqn.x", GATEWAY, GATEWAY, OWN)
    driver = make_driver(context, {"driver": "hook", "command": ["x"], "door-portal": "[::1]:3261",
                                   "door-target": "iqn.door", "door-source-ip": "127.0.0.9"})
    door = driver.door()
    assert (door.portal.host, door.portal.port, door.target, door.source_ip) == ("::1", 3261, "iqn.door", "127.0.0.9")
