"""The store that logs in again: bounds on targets that come back and do nothing."""
import asyncio
import socket

import pytest

from detour.errors import ClosedError, StorageError, TimeoutError_
from detour.iscsi import initiator, probe
from detour.iscsi.identity import Identity
from detour.iscsi.negotiation import Negotiation, Wishes
from detour.iscsi.session import Login
from detour.runtime import Runtime

IDENTITY = Identity(bytes(36), {}, 1 << 20, 512, b"", b"", False)
URL = "iscsi://192.0.2.1/iqn.2026-01.example:d/0"


class MuteTarget:
    """Takes every login and answers no command; `sockets` are the ends of the sessions that there were."""

    def __init__(self, monkeypatch):
        self.sockets = []

        async def login(host, port, target, options):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            self.sockets.append(theirs)
            params = Negotiation(Wishes(), discovery=False, peer_is_initiator=False).params(
                cmd_sn=1, stat_sn=1, max_cmd_sn=32, cid=0, tsih=1, isid=bytes(6))
            return Login(ours, params, host, port, (), 1, "")

        async def probe(done, lun):
            return IDENTITY

        monkeypatch.setattr(initiator, "login", login)
        monkeypatch.setattr(initiator, "_probe", probe)

    def close(self):
        for sock in self.sockets:
            sock.close()


def test_a_target_that_takes_logins_and_answers_nothing_is_given_up(monkeypatch):
    peer = MuteTarget(monkeypatch)

    async def work():
        async with Runtime() as runtime, asyncio.timeout(20):
            store = await initiator.connect(runtime, URL, retry_seconds=0.3,
                                            store_options={"command_limit_ms": 50, "nop_interval_ms": 0})
            with pytest.raises(StorageError):
                await store.read(0, 512)
            assert store.state == "failed" and len(peer.sockets) >= 3
            await store.close()
    asyncio.run(work())
    peer.close()


def test_a_single_command_has_a_limit_too(monkeypatch):
    """Before the core has the session, as `detour ls` asks: a mute target is given up."""
    monkeypatch.setattr(probe, "COMMAND_SECONDS", 0.2)
    peer = MuteTarget(monkeypatch)

    async def work():
        done = await initiator.login("192.0.2.1", 3260, "iqn.2026-01.example:d", None)
        with done.sock, pytest.raises(TimeoutError_, match="command 00h"):
            async with asyncio.timeout(10):
                await probe.RawUnit(done, 0).command(bytes(6))
    asyncio.run(work())
    peer.close()


def test_who_insists_waits_on(monkeypatch):
    peer = MuteTarget(monkeypatch)

    async def work():
        async with Runtime() as runtime, asyncio.timeout(20):
            store = await initiator.connect(runtime, URL, retry_seconds=0.1,
                                            store_options={"command_limit_ms": 50, "nop_interval_ms": 0})
            store.insist(True)
            read = asyncio.create_task(store.read(0, 512))
            while len(peer.sockets) < 8:
                await asyncio.sleep(0.02)
            assert not read.done() and store.state != "failed"
            await store.close()
            with pytest.raises(ClosedError):
                await read
    asyncio.run(work())
    peer.close()


def test_idle_sessions_that_end_are_no_reason_to_give_up(monkeypatch):
    peer = MuteTarget(monkeypatch)

    async def work():
        async with Runtime() as runtime, asyncio.timeout(20):
            store = await initiator.connect(runtime, URL, retry_seconds=0.05, store_options={"nop_interval_ms": 0})
            for number in range(1, 5):
                await asyncio.sleep(0.05)
                peer.sockets[-1].close()
                while len(peer.sockets) == number or store.state != "connected":
                    await asyncio.sleep(0.01)
            assert store.reconnects == 4
            await store.close()
    asyncio.run(work())
    peer.close()
