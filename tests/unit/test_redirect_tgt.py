"""The tgt driver: against a fake tgtadm that keeps its state in a file, and against a real tgtd."""
import asyncio
import fcntl
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from detour.errors import ConfigError, StorageError, TimeoutError_, UnsupportedError
from detour.redirect.base import Address, MainSession, VolumeContext, make_driver, wait_gone
from detour.redirect.tgt import parse_connection_ids, parse_targets
from tests.support.ports import free_port

TARGET = "iqn.2026-01.example:main"
OWN = "iqn.2026-01.example:gateway"
GATEWAY = Address("127.0.0.2", 3260)

FAKE = r'''
"""A tgtadm that knows what the driver uses, in the words of the real one. State: a JSON file."""
import argparse, fcntl, json, os, sys, time
lock = open(os.environ["FAKE_STATE"] + ".lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
parser = argparse.ArgumentParser()
for name in ("lld", "mode", "op", "tid", "name", "value", "sid", "cid", "initiator-address", "initiator-name"):
    parser.add_argument("--" + name)
parser.add_argument("-C")
a = parser.parse_args()
state = json.load(open(os.environ["FAKE_STATE"]))
state["calls"].append(sys.argv[1:])
def leave(text=None):
    json.dump(state, open(os.environ["FAKE_STATE"], "w"))
    if text:
        sys.exit("tgtadm: " + text)
    sys.exit(0)
if state.get("hang"):
    time.sleep(60)
if a.name and state.get("fail") == a.name:
    leave("out of memory")
if a.tid not in (None, "7"):
    leave("can't find the target")
if (a.mode, a.op, a.tid) == ("target", "show", None):
    print("Target 3: iqn.2026-01.example:other\n    System information:\n        Driver: iscsi\n"
          "    I_T nexus information:\n    LUN information:\n    Account information:\n    ACL information:\n"
          "        10.9.9.9")
    print("Target 7: " + state["target"] + "\n    System information:\n        Driver: iscsi\n        State: ready\n"
          "    I_T nexus information:")
    for sid, (initiator, ip) in state["sessions"].items():
        print(f"        I_T nexus: {sid}\n            Initiator: {initiator} alias: none\n            Connection: 0\n"
              f"                IP Address: {ip}")
    print("    LUN information:\n        LUN: 0\n            Type: controller\n    Account information:\n"
          "        user1\n    ACL information:")
    for entry in state["acl"]:
        print("        " + entry)
elif (a.mode, a.op) == ("target", "show"):
    if state["callback"]:
        print("RedirectCallback=" + state["callback"])
    elif state["RedirectAddress"]:
        for key in ("RedirectAddress", "RedirectPort", "RedirectReason"):
            print(f"{key}={state[key]}")
    else:
        print("nop_interval=0\nMaxQueueCmd=128")
elif (a.mode, a.op) == ("target", "update"):
    state[a.name] = a.value
elif a.mode == "target":
    entry = a.initiator_address or a.initiator_name
    if (entry in state["acl"]) == (a.op == "bind"):
        leave("this access control rule " + ("already exists" if a.op == "bind" else "does not exist"))
    (state["acl"].append if a.op == "bind" else state["acl"].remove)(entry)
elif (a.mode, a.op) == ("conn", "show"):
    for sid, (initiator, ip) in state["sessions"].items():
        print(f"Session: {sid}\n    Connection: 0\n        Initiator: {initiator}\n        IP Address: {ip}")
elif (a.mode, a.op) == ("conn", "delete"):
    if a.sid in state["stuck"]:
        leave()
    if a.sid not in state["sessions"]:
        leave("can't find the session")
    del state["sessions"][a.sid]
leave()
'''


class Fake:
    def __init__(self, folder: Path) -> None:
        self.program = folder / "fake_tgtadm.py"
        self.program.write_text(textwrap.dedent(FAKE))
        self.path = folder / "state.json"
        self.write(target=TARGET, RedirectAddress="", RedirectPort="", RedirectReason="Unknown", callback="",
                   acl=["ALL"], stuck=[], calls=[],
                   sessions={"1": ["iqn.host", "192.0.2.5"], "4": [OWN, "127.0.0.2"], "5": [OWN, "192.0.2.6"]})

    def write(self, **values):
        with open(f"{self.path}.lock", "w") as lock:        # no call of the program is under way
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.read() if self.path.exists() else {}
            self.path.write_text(json.dumps({**state, **values}))

    def read(self):
        return json.loads(self.path.read_text())

    def driver(self, memo: Path | None = None, gateway: Address = GATEWAY, **options):
        context = VolumeContext("db01", TARGET, Address("192.0.2.20", 3260), gateway, OWN, memo)
        return make_driver(context, {"driver": "tgt", "command": [sys.executable, str(self.program)],
                                     "env": {"FAKE_STATE": str(self.path)}, "control-port": 71, **options})


@pytest.fixture
def fake(tmp_path):
    return Fake(tmp_path)


def run(*steps):
    async def all_of_them():
        return [await step for step in steps][-1]
    return asyncio.run(all_of_them())


def test_set_writes_the_address_last_and_verify_sees_it(fake):
    driver = fake.driver()
    run(driver.prepare(), driver.set(GATEWAY), driver.verify(GATEWAY))
    names = [call[call.index("--name") + 1] for call in fake.read()["calls"] if "--name" in call]
    assert names == ["RedirectPort", "RedirectReason", "RedirectAddress"]
    assert all(call[:4] == ["-C", "71", "--lld", "iscsi"] for call in fake.read()["calls"])
    with pytest.raises(StorageError, match=r"redirects to 127\.0\.0\.2 port 3260 \(Temporary\), but should not"):
        run(driver.verify(None))
    run(driver.clear(), driver.clear(), driver.verify(None))
    with pytest.raises(StorageError, match=r"does not redirect, but should redirect to 127\.0\.0\.2:3260"):
        run(driver.verify(GATEWAY))


@pytest.mark.parametrize("wrong", [{"RedirectPort": "3261"}, {"RedirectReason": "Unknown"},
                                   {"RedirectAddress": "127.0.0.3"}])
def test_verify_compares_every_part(fake, wrong):
    driver = fake.driver()
    run(driver.set(GATEWAY))
    fake.write(**wrong)
    with pytest.raises(StorageError, match="but should redirect"):
        run(driver.verify(GATEWAY))


def test_a_callback_is_refused_and_left_alone(fake):
    fake.write(callback="/usr/local/bin/choose")
    driver = fake.driver()
    for step in (driver.prepare, lambda: driver.set(GATEWAY), lambda: driver.verify(GATEWAY)):
        with pytest.raises(UnsupportedError, match="callback"):
            run(step())
    assert fake.read()["callback"] == "/usr/local/bin/choose"
    assert fake.read()["RedirectAddress"] == ""


def test_a_name_is_no_redirect_address(fake):
    with pytest.raises(StorageError, match="IP address"):
        run(fake.driver(gateway=Address("gateway.example", 3260)).prepare())


def test_sessions_tell_who_is_ours_by_name_and_address(fake):
    sessions = {session.id: session for session in run(fake.driver().sessions())}
    assert {key: session.ours for key, session in sessions.items()} == {"1": False, "4": True, "5": False}
    assert sessions["1"] == MainSession("1", "iqn.host", "192.0.2.5")


TWINS = {"1": [OWN, "127.0.0.2"], "3": [OWN, "127.0.0.2"], "7": [OWN, "192.0.2.6"]}


def with_handles(driver, *handles):
    driver.own_tsihs = lambda: frozenset(handles)
    return driver


@pytest.mark.parametrize("handle", [3, 3 << 8])     # tgtd sends it in its machine's byte order
def test_a_session_with_the_gateways_name_and_address_is_not_the_gateways(fake, handle):
    """tgtd would not redirect it, and the rules cannot keep it out."""
    fake.write(sessions=TWINS)
    driver = with_handles(fake.driver(), handle)
    assert {one.id: (one.ours, one.twin) for one in run(driver.sessions())} == {
        "1": (False, True), "3": (True, False), "7": (False, False)}
    with pytest.raises(StorageError, match=r"from 127\.0\.0\.2 is on main that is not the gateway's"):
        run(driver.prepare())
    assert run(driver.drop_all()) == 2 and set(fake.read()["sessions"]) == {"3"}


def test_while_the_gateway_is_on_its_way_back_its_session_is_not_dropped(fake):
    fake.write(sessions=TWINS)
    driver = fake.driver()                              # no session is attached
    assert run(driver.drop_all()) == 1 and set(fake.read()["sessions"]) == {"1", "3"}


def test_another_tgtd_than_the_gateways_main_is_refused(fake):
    fake.write(sessions={"1": ["iqn.host", "192.0.2.5"]})
    with pytest.raises(StorageError, match="does not list the gateway's session"):
        run(with_handles(fake.driver(), 3).prepare())


def test_drop_all_leaves_the_gateways_own(fake):
    driver = fake.driver()
    assert run(driver.drop_all()) == 2
    assert set(fake.read()["sessions"]) == {"4"}
    run(driver.barrier(), wait_gone(driver, 1.0))


def test_the_barrier_waits_for_connections_that_are_closing(fake):
    fake.write(stuck=["1"])
    driver = fake.driver(**{"barrier-limit": "300ms"})
    run(driver.drop_all())
    with pytest.raises(TimeoutError_, match=r"iqn\.host"):
        run(driver.barrier())


def test_a_session_that_comes_late_is_dropped_too(fake):
    driver = fake.driver()

    async def late():
        await driver.drop_all()
        fake.write(stuck=["8"], sessions={"8": ["iqn.slow", "192.0.2.8"]})
        waiting = asyncio.create_task(wait_gone(driver, 10.0, poll_s=0.01))
        await asyncio.sleep(0.3)
        fake.write(stuck=[], sessions={"9": ["iqn.late", "192.0.2.9"]})
        await waiting
    asyncio.run(late())
    assert fake.read()["sessions"] == {}


@pytest.mark.parametrize("acl", [["ALL"], ["192.0.2.5", "10.0.0.0/8", "iqn.host"], ["127.0.0.2", "iqn.host"], []])
def test_the_fence_is_restored_exactly_also_by_the_next_process(fake, tmp_path, acl):
    fake.write(acl=acl)
    memo = tmp_path / "memo.json"
    run(fake.driver(memo).fence())
    assert fake.read()["acl"] == ["127.0.0.2"]
    run(fake.driver(memo).fence())                     # asked for twice: the memo of the first stays
    driver = fake.driver(memo)
    run(fake.driver(memo).unfence(), driver.unfence())
    assert sorted(fake.read()["acl"]) == sorted(acl)
    assert memo.exists()                                # no disk is waited for before hosts are home
    calls = len(fake.read()["calls"])
    run(driver.unfence())                               # in one process it is done, memo or not
    assert len(fake.read()["calls"]) == calls
    run(driver.forget(), driver.forget())
    assert not list(tmp_path.glob("memo.json*"))
    run(driver.fence(), driver.unfence(), fake.driver(memo).unfence())     # and the next time all is as the first
    assert sorted(fake.read()["acl"]) == sorted(acl)


def test_a_fence_that_broke_off_in_the_middle_is_restored(fake, tmp_path):
    fake.write(acl=["192.0.2.5", "192.0.2.6"])
    memo = tmp_path / "memo.json"
    run(fake.driver(memo).fence())
    fake.write(acl=["192.0.2.6"])                       # as if only one rule had been taken out
    run(fake.driver(memo).unfence())
    assert sorted(fake.read()["acl"]) == ["192.0.2.5", "192.0.2.6"]


@pytest.mark.parametrize("damaged", ["{", "[]", '{"acl": 3, "added": null}', '{"acl": ["ALL"]}'])
def test_a_damaged_memo_does_not_block_the_way_home(fake, tmp_path, damaged):
    """The copy beside it tells what the rules were; with both lost everybody is admitted, and somebody is told."""
    fake.write(acl=["192.0.2.5", "iqn.host"])
    memo = tmp_path / "memo.json"
    run(fake.driver(memo).fence())
    memo.write_text(damaged)
    run(fake.driver(memo).fence())                      # the watch sets it again: what is known stays known
    memo.write_text(damaged)
    driver = fake.driver(memo)
    run(driver.unfence())
    assert sorted(fake.read()["acl"]) == ["192.0.2.5", "iqn.host"] and driver.told() == []

    run(fake.driver(memo).fence())
    for path in tmp_path.glob("memo.json*"):
        path.write_text(damaged)
    driver = fake.driver(memo)
    run(driver.fence())                                 # a fence over what is damaged never locks hosts out for good
    for path in tmp_path.glob("memo.json*"):
        path.write_text(damaged)
    run(driver.unfence(), driver.unfence(), driver.forget())
    assert "ALL" in fake.read()["acl"] and not list(tmp_path.glob("memo.json*"))
    told = driver.told()
    assert len(told) == 2 and all("now admits ALL" in sentence and str(memo) in sentence for sentence in told)
    assert driver.told() == []


def test_rules_that_came_meanwhile_stay(fake, tmp_path):
    memo = tmp_path / "memo.json"
    run(fake.driver(memo).fence())
    fake.write(acl=["127.0.0.2", "192.0.2.77"])
    run(fake.driver(memo).unfence())
    assert sorted(fake.read()["acl"]) == ["192.0.2.77", "ALL"]


def test_no_fence_when_not_wanted(fake):
    run(fake.driver(fence=False).fence())
    assert fake.read()["acl"] == ["ALL"]


def test_a_failing_tgtadm_is_told_with_its_words(fake):
    fake.write(fail="RedirectPort")
    with pytest.raises(StorageError, match="out of memory"):
        run(fake.driver().set(GATEWAY))
    assert fake.read()["RedirectAddress"] == ""
    fake.write(target="iqn.2026-01.example:elsewhere")
    with pytest.raises(StorageError, match=f"no target {TARGET}"):
        run(fake.driver().sessions())


def test_a_hanging_tgtadm_is_ended(fake):
    fake.write(hang=True)
    with pytest.raises(TimeoutError_, match=r"0\.3 s"):
        run(fake.driver(limit="300ms").sessions())


def test_a_missing_program_is_told(fake):
    with pytest.raises(StorageError, match="cannot be run"):
        run(fake.driver(command=["/nonexistent/tgtadm"]).sessions())


def test_ssh_gets_quoted_words(fake, tmp_path):
    """ssh hands one line to a shell: the empty value that clears a redirect has to survive that."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nshift\nexec sh -c "{sys.executable} {fake.program} $*"\n')
    ssh.chmod(0o755)
    driver = fake.driver(command=[str(ssh), "main"])
    run(driver.set(GATEWAY), driver.clear(), driver.verify(None))
    assert fake.read()["RedirectAddress"] == ""


@pytest.mark.parametrize(("options", "key"), [
    ({"driver": "none"}, "redirect.driver"),
    ({"driver": "tgt", "comand": ["tgtadm"]}, "redirect.comand"),
    ({"driver": "tgt", "command": []}, "redirect.command"),
    ({"driver": "tgt", "limit": "10"}, "redirect.limit"),
    ({"driver": "tgt", "control-port": -1}, "redirect.control-port"),
])
def test_options_are_checked(options, key):
    context = VolumeContext("db01", TARGET, Address("192.0.2.20", 3260), GATEWAY, OWN)
    with pytest.raises(ConfigError) as caught:
        make_driver(context, options)
    assert caught.value.key == key


def test_parsers_pass_over_what_they_do_not_know():
    assert parse_targets("nonsense\n    ACL information:\n        ALL\n") == {}
    assert parse_connection_ids("Connection\n   Initiator: x\n  IP Address: y\n\n") == []
    two = "Session: 1\n    Connection: 1\n        Initiator: a\n    Connection: 0\n        Initiator: a\n"
    assert [connection for _, connection in parse_connection_ids(two)] == ["1", "0"]


# -- a real tgtd -----------------------------------------------------------------------------------------------------

class Tgtd:
    """tgtd in the foreground on loopback; killed at the end (SIGTERM is ignored while targets exist)."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.control = self.port % 30000 + 1
        self.env = {"TGT_IPC_SOCKET": str(folder / "ipc")}
        self.process = subprocess.Popen(
            ["tgtd", "-f", "-C", str(self.control), "--iscsi", f"portal=127.0.0.1:{self.port}"],
            env={**os.environ, **self.env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        image = folder / "image"
        with open(image, "wb") as file:
            file.truncate(16 * 2**20)
        end = time.monotonic() + 10
        while self.adm("--mode", "target", "--op", "new", "--tid", "1", "--targetname", TARGET, check=False):
            assert time.monotonic() < end, "tgtd does not come up"
            time.sleep(0.05)
        self.adm("--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "--backing-store", str(image))
        self.adm("--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL")

    def adm(self, *arguments: str, check: bool = True) -> int:
        done = subprocess.run(["tgtadm", "-C", str(self.control), "--lld", "iscsi", *arguments],
                              env={**os.environ, **self.env}, capture_output=True, timeout=10)
        assert not check or done.returncode == 0, done.stderr
        return done.returncode

    def driver(self, memo: Path | None = None):
        context = VolumeContext("db01", TARGET, Address("127.0.0.1", self.port), GATEWAY, OWN, memo)
        return make_driver(context, {"driver": "tgt", "control-port": self.control, "env": self.env})

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def tgtd(tmp_path):
    daemon = Tgtd(tmp_path)
    yield daemon
    daemon.stop()


def login(port: int, source: str, initiator: str, qualifier: int = 0) -> tuple[socket.socket, int, int, dict[str, str]]:
    """A login without authentication, straight to full feature phase; RFC 7143 section 11.12."""
    text = b"".join(part.encode() + b"\0" for part in (
        f"InitiatorName={initiator}", f"TargetName={TARGET}", "SessionType=Normal", "HeaderDigest=None",
        "DataDigest=None"))
    header = bytearray(48)
    header[0], header[1] = 0x43, 0x80 | 1 << 2 | 3
    header[5:8] = len(text).to_bytes(3, "big")
    header[8:14] = b"\x80" + (hash((source, initiator, qualifier)) & 0xFFFFFFFFFF).to_bytes(5, "big")
    link = socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(source, 0))
    link.sendall(bytes(header) + text + b"\0" * (-len(text) % 4))
    answer = link.recv(48, socket.MSG_WAITALL)
    length = int.from_bytes(answer[5:8], "big")
    data = link.recv(length + -length % 4, socket.MSG_WAITALL) if length else b""
    keys = dict(part.split("=", 1) for part in data[:length].decode().strip("\0").split("\0") if "=" in part)
    keys["TSIH"] = str(int.from_bytes(answer[14:16], "big"))
    return link, answer[36], answer[37], keys


@pytest.mark.peer("tgtd")
def test_real_tgtd_there_and_back(tgtd, tmp_path):
    memo = tmp_path / "memo.json"
    driver = tgtd.driver(memo)
    host, *status, _ = login(tgtd.port, "127.0.0.1", "iqn.host")
    gateway, *own_status, _ = login(tgtd.port, driver.door().source_ip, OWN)
    assert status == own_status == [0, 0]
    run(driver.prepare())
    assert {(session.initiator, session.peer, session.ours) for session in run(driver.sessions())} == {
        ("iqn.host", "127.0.0.1", False), (OWN, "127.0.0.2", True)}

    run(driver.fence(), driver.set(GATEWAY), driver.verify(GATEWAY))
    assert run(driver.drop_all()) == 1
    run(wait_gone(driver, 5.0), driver.barrier())
    assert host.recv(1) == b""                                          # closed, without a PDU
    assert [session.ours for session in run(driver.sessions())] == [True]
    again, *status, keys = login(tgtd.port, "127.0.0.1", "iqn.host")
    assert status == [1, 1] and keys["TargetAddress"].startswith("127.0.0.2:3260")
    through_the_door, *status, _ = login(tgtd.port, driver.door().source_ip, OWN + "2")
    assert status == [0, 0]                                             # the redirect's own address passes

    tgtd.adm("--mode", "target", "--op", "update", "--tid", "1", "--name", "RedirectAddress", "--value", "")
    with pytest.raises(StorageError, match="does not redirect"):
        run(driver.verify(GATEWAY))
    fenced, *status, _ = login(tgtd.port, "127.0.0.1", "iqn.host")
    assert status[0] == 2                                               # the redirect was lost: the fence refuses

    run(tgtd.driver(memo).unfence(), driver.clear(), driver.verify(None))
    home, *status, _ = login(tgtd.port, "127.0.0.1", "iqn.host")
    assert status == [0, 0]
    for link in (host, gateway, again, through_the_door, fenced, home):
        link.close()


@pytest.mark.peer("tgtd")
def test_real_tgtd_numbers_sessions_by_their_handle(tgtd):
    links = [login(tgtd.port, "127.0.0.2", OWN, qualifier) for qualifier in range(3)]
    driver = with_handles(tgtd.driver(), int(links[1][3]["TSIH"]))
    sessions = sorted(run(driver.sessions()), key=lambda one: int(one.id))
    assert [(one.ours, one.twin) for one in sessions] == [(False, True), (True, False), (False, True)]
    with pytest.raises(StorageError, match="not the gateway's"):
        run(driver.prepare())
    for link, *_ in links:
        link.close()
