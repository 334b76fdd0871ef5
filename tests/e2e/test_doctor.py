"""`detour doctor` with real processes: each planted fault is found, with what to do; a right set-up is told to be
right; nothing on main is changed, and a detour under way does not feel it."""
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from detour.api.client import Client
from detour.iscsi.initiator import connect
from detour.runtime import Runtime
from detour.urls import parse_iscsi_url
from tests.support.patience import SLOWER
from tests.support.ports import free_port
from tests.support.processes import detour, detour_ready
from tests.support.tgtd import Tgtd

IQN = "iqn.2026-01.org.detour:doctor"
GATEWAY, HOST = "iqn.2026-01.org.detour:doctor-gateway", "iqn.2026-01.org.detour:doctor-host"
SIZE = 16 * 2**20
pytestmark = pytest.mark.timeout(120)


class Place:
    """A configuration that is right, for a main, and the faults that are put into it."""

    def __init__(self, folder: Path, portal: str, redirect: str, address: str, lun: int) -> None:
        self.folder, self.portal, self.lun = folder, portal, lun
        self.listen = f"{address}:{free_port(address)}"
        self.values = {
            "gateway": f'listen = ["{self.listen}"]\nstate = "{folder / "state"}"\napi = "unix:{folder / "api.sock"}"',
            "main": f"iscsi://{portal}/{IQN}/{lun}", "redirect": redirect, "more": "",
            "journal": f'{{ path = "{folder / "journal"}", size = "32MiB" }}', "store": f"{folder / 'backups'}/"}

    @property
    def url(self) -> str:
        return self.values["main"]

    def config(self, **wrong: str) -> Path:
        values = {**self.values, **wrong}
        path = self.folder / "detour.toml"
        path.write_text(f"""[gateway]
{values["gateway"]}

[volume.db01]
main = "{values["main"]}"
initiator-name = "{GATEWAY}"
journal = {values["journal"]}
redirect = {{ {values["redirect"]} }}
{values["more"]}

[store.nightly]
url = "{values["store"]}"
""")
        return path

    def examine(self, **wrong: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
        """Exit code, and the findings by check."""
        with detour("doctor", "-c", self.config(**wrong), "--json") as program:
            code = program.wait(40 * SLOWER)
            assert program.output, program.said()
            document = json.loads("\n".join(program.output))
        assert document["ok"] == (code == 0), document
        return code, by_check(document["findings"])


def by_check(findings: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in findings:
        found.setdefault(finding["check"], []).append(finding)
        assert finding["state"] == "ok" or finding["fix"], finding
    return found


def complaint(found: dict[str, list[dict[str, Any]]], check: str, said: str, fix: str, state: str = "problem") -> None:
    told = [finding for finding in found.get(check, []) if finding["state"] == state]
    assert any(said in finding["finding"] and fix in finding["fix"] for finding in told), found


class DetourPlace(Place):
    """With `detour target` as main. options: more words for it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.api = folder / "main.sock"
        self.program, ready = detour_ready("target", f"{folder / 'main.img'}", "--size", str(SIZE), "--listen",
                                           "127.0.0.1:0", "--iqn", IQN, "--api", f"unix:{self.api}", *options)
        portal = dict(word.partition("=")[::2] for word in ready.split()[1:])["portal"]
        super().__init__(folder, portal, f'driver = "detour", api = "unix:{self.api}"', "127.0.0.1", 0)

    def ask(self, method: str, path: str, **body: Any) -> Any:
        transport = httpx.HTTPTransport(uds=str(self.api))
        with httpx.Client(transport=transport, base_url="http://main", trust_env=False) as client:
            return client.request(method, f"/v1/targets{path}", json=body or None).json()

    def now(self) -> Any:
        """Main's redirect and the sessions of hosts."""
        return [self.ask("GET", "")[0]["redirect"], sorted(row["initiator"] for row in self.ask(
            "GET", f"/{IQN}/sessions") if row["initiator"] != GATEWAY)]

    def close(self) -> None:
        self.program.stop()


class TgtPlace(Place):
    """With tgtd as main, through a program that may be slow."""

    def __init__(self, folder: Path) -> None:
        self.tgtd = Tgtd(folder / "tgt", IQN, size_bytes=SIZE)
        self.environment = f'env = {{ TGT_IPC_SOCKET = "{self.tgtd.environment["TGT_IPC_SOCKET"]}" }}'
        super().__init__(folder, self.tgtd.portal, f'driver = "tgt", {self.environment}', "127.0.0.2", 1)

    def now(self) -> Any:
        rules = self.tgtd.admin("--mode", "target", "--op", "show").split("ACL information:\n")[1].split()
        hosts = self.tgtd.admin("--mode", "conn", "--op", "show", "--tid", "1").count(HOST)
        return self.tgtd.target("show"), rules, hosts

    def close(self) -> None:
        self.tgtd.close()


@contextlib.contextmanager
def host_on(place: Place) -> Iterator[None]:
    """A host that is logged in to main from 127.0.0.1."""
    ready, ending = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with Runtime() as runtime, await connect(runtime, parse_iscsi_url(place.url), initiator_name=HOST):
            ready.set()
            await ending.wait()

    loop = asyncio.new_event_loop()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            loop.run_until_complete(work())
        except BaseException as error:
            failure.append(error)
        finally:
            loop.close()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        while not ready.is_set():
            assert thread.is_alive(), failure
            thread.join(0.01)
        yield
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(20)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[DetourPlace]:
    made = DetourPlace(tmp_path)
    yield made
    made.close()


@pytest.fixture
def tgt(tmp_path: Path) -> Iterator[TgtPlace]:
    made = TgtPlace(tmp_path)
    yield made
    made.close()


# -- nothing is wrong --------------------------------------------------------------------------------------------------

def test_a_right_set_up_and_nothing_changed(place: DetourPlace) -> None:
    with host_on(place):
        before = place.now()
        code, found = place.examine()
        assert code == 0 and before == place.now() == [None, [HOST]]
        assert found["hosts"][0]["figures"]["initiators"] == [HOST]
    assert {check for check, findings in found.items() if findings[0]["state"] != "ok"} <= {"clock"}, found
    assert sorted(path.name for path in place.folder.iterdir()) == ["detour.toml", "main.img", "main.sock"]
    with detour("doctor", "-c", place.config()) as program:
        assert program.wait(40 * SLOWER) == 0 and program.output[-1].startswith("ready for a detour"), program.said()
        assert program.output[0] == "db01:" and any("nobody" in line or "no host" in line for line in program.output)


@pytest.mark.peer("tgtd")
def test_a_right_set_up_on_tgt_and_nothing_changed(tgt: TgtPlace) -> None:
    with host_on(tgt):
        before = tgt.now()
        code, found = tgt.examine()
        assert code == 0 and tgt.now() == before, found
    assert {check for check, findings in found.items() if findings[0]["state"] != "ok"} <= {"clock"}, found


# -- main --------------------------------------------------------------------------------------------------------------

def test_mains_that_cannot_be_used(place: DetourPlace) -> None:
    wrong = f"iscsi://{place.portal}/{IQN}-typo/0"
    code, found = place.examine(main=wrong)
    assert code == 1
    complaint(found, "main", "", "target's name in volume.main")
    complaint(found, "portals", IQN, "Correct the target's name", "warning")
    place.ask("PUT", f"/{IQN}/redirect", address="127.0.0.9:3260")
    code, found = place.examine()
    assert code == 1
    complaint(found, "main", "redirects to 127.0.0.9:3260", "was left behind")
    complaint(found, "redirect", "redirects to 127.0.0.9:3260, but should not", "clear it on main")
    place.ask("DELETE", f"/{IQN}/redirect")
    code, found = place.examine(redirect=f'driver = "detour", api = "unix:{place.folder / "nobody"}"')
    assert code == 1
    complaint(found, "redirect", "cannot be reached", "control interface")
    place.program.stop()
    code, found = place.examine()
    assert code == 1 and "portals" not in found
    complaint(found, "main", "cannot be reached", "main's service runs")


def test_a_main_that_refuses_the_gateway(tmp_path: Path) -> None:
    main = DetourPlace(tmp_path, "--allow-initiator", HOST)
    try:
        code, found = main.examine()
        assert code == 1
        complaint(found, "main", "", f"Add {GATEWAY} to main's access list")
    finally:
        main.close()


def test_a_secret_that_main_does_not_know(tmp_path: Path) -> None:
    for name, secret in (("right", "right-secret-12345"), ("wrong", "wrong-secret-12345")):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text(secret)
    main = DetourPlace(tmp_path, "--chap-user", "u", "--chap-secret-file", str(tmp_path / "right"))
    try:
        for name, good in (("wrong", False), ("right", True)):
            auth = f'main-auth = {{ user = "u", secret-file = "{tmp_path / name}" }}'
            code, found = main.examine(more=auth)
            assert code == (0 if good else 1), found
            if not good:
                complaint(found, "main", "", "volume.main-auth")
    finally:
        main.close()


@pytest.mark.peer("tgtd")
def test_traps_of_tgt(tgt: TgtPlace) -> None:
    slow = tgt.folder / "slow"
    slow.write_text('#!/bin/sh\nsleep 0.15\nexec tgtadm "$@"\n')
    slow.chmod(0o755)
    told = f'driver = "tgt", command = {json.dumps([str(slow)])}, {tgt.environment}'
    code, found = tgt.examine(redirect=told, more='max-pause = "200ms"')
    assert code == 1
    complaint(found, "pause", "max-pause is 0.2 s", "Raise volume.max-pause")
    with host_on(tgt):                          # from 127.0.0.1, to where a redirect would lead
        code, found = tgt.examine(gateway=tgt.values["gateway"].replace("127.0.0.2", "127.0.0.1"))
        assert code == 1
        complaint(found, "addresses", f"{HOST} comes from 127.0.0.1", "gateway.advertise")
    gateway, _ = detour_ready("serve", "-c", tgt.config())
    with gateway:                               # it is logged in already: tgtd 1.0.85 may end when a callback is asked
        tgt.tgtd.target("update", "--name", "RedirectCallback", "--value", "/bin/true")
        code, found = tgt.examine()
        assert code == 1
        complaint(found, "redirect", "redirect callback", "Take it out")
        tgt.tgtd.target("update", "--name", "RedirectCallback", "--value", "")
    code, found = tgt.examine(gateway=tgt.values["gateway"] + '\nadvertise = "192.0.2.77:3260"')
    assert code == 1
    complaint(found, "main", "Cannot assign requested address", "192.0.2.77, which is no address of this machine")


# -- the gateway's machine ---------------------------------------------------------------------------------------------

def test_faults_of_the_gateways_machine(place: DetourPlace) -> None:
    """Several at once: each is told, none hides another."""
    (place.folder / "state").mkdir()
    (place.folder / "state").chmod(0o777)
    code, found = place.examine(
        gateway=f'{place.values["gateway"]}\nadvertise = "192.0.2.77:3260"', more='max-pause = "20s"',
        journal=f'{{ path = "{place.folder}/journal", size = "1PiB" }}', store=f"{place.folder}/not/there/")
    assert code == 1
    complaint(found, "address", "192.0.2.77 is not an address of this machine", "correct gateway.advertise", "warning")
    complaint(found, "pause", "give up after 30 s", "command timeout")
    complaint(found, "journal", "needs 1PiB", "journal.size smaller")
    complaint(found, "store nightly", "cannot be used", "make its folder")
    complaint(found, "state", "anybody may write", "chmod 0700")

    (place.folder / "state").rmdir()
    (place.folder / "state").touch()
    host, _, port = place.listen.rpartition(":")
    with socket.create_server((host, int(port))):
        code, found = place.examine(journal=f'{{ path = "{place.folder}/no/journal", size = "32MiB" }}')
    assert code == 1
    complaint(found, "address", "cannot be listened to", "another port")
    complaint(found, "journal", "cannot be used", "journal.path")
    complaint(found, "state", "may not be written to", "own it")


def test_a_store_without_room_and_a_marker_that_was_left(place: DetourPlace) -> None:
    place.close()
    os.truncate(place.folder / "main.img", 2**43)           # main grows beyond the room of this machine
    place.program, _ = detour_ready("target", f"{place.folder / 'main.img'}", "--listen", place.portal, "--iqn", IQN,
                                    "--api", f"unix:{place.api}")
    (place.folder / "backups").mkdir()
    code, found = place.examine()
    assert code == 1
    complaint(found, "store nightly", "bytes of room", "Make room")
    (place.folder / "state/volumes").mkdir(parents=True)
    (place.folder / "state/volumes/db01.detour.json").write_text("{}")
    code, found = place.examine()
    assert code == 1 and place.now() == [None, []]
    complaint(found, "state", "was not ended", "brings the host home")
    complaint(found, "main", "is not ended, and the gateway does not answer", "Start the gateway")


# -- through a gateway -------------------------------------------------------------------------------------------------

def test_a_gateway_that_runs_is_asked_and_its_detour_goes_on(place: DetourPlace) -> None:
    config = place.config(more='copy = { rate = "6MiB" }')
    gateway, _ = detour_ready("serve", "-c", config)
    with gateway, host_on(place):
        code, found = place.examine(more='copy = { rate = "6MiB" }')
        assert code == 0 and found["hosts"][0]["figures"]["initiators"] == [HOST], found

        async def during() -> dict[str, Any]:
            async with asyncio.timeout(60), Client(f"unix:{place.folder / 'api.sock'}") as client:
                started = await client.start("db01")
                document: dict[str, Any] = {}
                looked = False
                async for document in client.follow(started["id"]):
                    if document["phase"] == "copying" and not looked:
                        before, looked = place.now(), True
                        told = by_check(await client.doctor("db01"))
                        assert "is copying" in told["redirect"][0]["finding"] and place.now() == before
                        assert not any(one["state"] == "problem" for row in told.values() for one in row), told
                assert looked
                return document
        document = asyncio.run(during())
        assert document["result"] == "done" and document["warnings"] == [], document
        (place.folder / "state/volumes/db01.detour.json").touch()
        complaint(place.examine()[1], "state", "was not ended", "Start the gateway")
        place.program.kill()
        code, found = place.examine()
        assert code == 1
        complaint(found, "main", "", "main's service runs")


def test_without_a_configuration_and_a_gateway() -> None:
    with detour("doctor", "--api", "unix:/nonexistent/api.sock") as program:
        assert program.wait(20) == 1 and "-c" in "\n".join(program.errors), program.said()
