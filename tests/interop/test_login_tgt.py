"""Logins at Debian's tgt, and the store that comes back: CHAP, redirect, loss, failure, another disk at the door."""
import asyncio
import os

import pytest

from detour.errors import LoginError, StorageError
from detour.iscsi.chap import Credentials
from detour.iscsi.identity import differences, read_identity
from detour.iscsi.initiator import connect, discover
from detour.runtime import Runtime
from detour.stores import open_store
from detour.urls import Secret, parse_iscsi_url
from tests.support.tgtd import Tgtd, needs_tgtd

pytestmark = needs_tgtd
IQN = "iqn.2026-01.example:login"
HOST = "iqn.2026-01.example:host"
USER, SECRET = "host1", "host1-secret-12"
MAIN, MAIN_SECRET = Credentials("main1", Secret("main1-secret-34")), "main1-secret-34"


@pytest.fixture
def tgt(tmp_path):
    made = Tgtd(tmp_path / "one", IQN)
    yield made
    made.close()


def url(tgt, login="", lun=1):
    return f"iscsi://{login}{tgt.portal}/{IQN}/{lun}"


def run(work):
    async def whole():
        async with Runtime() as runtime:
            async with asyncio.timeout(30):
                await work(runtime)
    asyncio.run(whole())


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def refusal(caught):
    return caught.value.status_class, caught.value.status_detail


@pytest.mark.parametrize("digests", [False, True])
def test_a_disk_is_opened_read_and_written(tgt, digests):
    async def work(runtime):
        data = os.urandom(2**20)
        async with await connect(runtime, url(tgt), initiator_name=HOST, header_digest=digests,
                                 data_digest=digests) as store:
            assert (store.size_bytes, store.block_bytes, store.state) == (8 * 2**20, 512, "connected")
            assert store.identity.serial == "serial-1" and store.identity.write_cache
            await store.write(4096, data)
            await store.flush()
            assert await store.read(4096, len(data)) == data
            assert differences(store.identity, await read_identity(store)) == []
            assert len(tgt.connections()) == 1
        await until(lambda: not tgt.connections())      # logged out
        assert tgt.image.read_bytes()[4096:4096 + len(data)] == data
    run(work)


def test_a_url_is_all_it_takes(tgt):
    async def work(runtime):
        async with await open_store(runtime, url(tgt), read_only=True) as store:
            assert store.read_only and await store.read(0, 512) == bytes(512)
    run(work)


def test_discovery(tgt):
    async def work(runtime):
        found = await discover(parse_iscsi_url(f"iscsi://{tgt.portal}", portal_only=True), initiator_name=HOST)
        assert [(one.name, one.addresses) for one in found] == [(IQN, ((tgt.host, tgt.port, 1),))]
    run(work)


def test_what_is_not_there(tgt):
    async def work(runtime):
        with pytest.raises(LoginError) as caught:
            await connect(runtime, f"iscsi://{tgt.portal}/{IQN}2/1")
        assert refusal(caught) == (2, 3)
        with pytest.raises(StorageError):
            await connect(runtime, url(tgt, lun=9))
        with pytest.raises(StorageError, match="no disk"):
            await connect(runtime, url(tgt, lun=0))     # tgt's controller
        await until(lambda: not tgt.connections())
    run(work)


def test_chap(tgt):
    tgt.account(USER, SECRET)

    async def work(runtime):
        async with await connect(runtime, url(tgt, f"{USER}%{SECRET}@")) as store:
            await store.read(0, 512)
            assert SECRET not in store.url
        for login in (f"{USER}%wrong@", f"other%{SECRET}@", ""):
            with pytest.raises(LoginError) as caught:
                await connect(runtime, url(tgt, login))
            assert refusal(caught) == (2, 1)
        with pytest.raises(LoginError):         # tgt has nothing to prove itself with
            await connect(runtime, url(tgt, f"{USER}%{SECRET}@"), mutual=MAIN)
    run(work)


def test_mutual_chap(tgt):
    tgt.account(USER, SECRET)
    tgt.account(MAIN.user, MAIN_SECRET, outgoing=True)

    async def work(runtime):
        login = f"{USER}%{SECRET}@"
        async with await connect(runtime, url(tgt, login), mutual=MAIN) as store:
            await store.read(0, 512)
        with pytest.raises(LoginError, match="mutual"):
            await connect(runtime, url(tgt, login), mutual=Credentials(MAIN.user, Secret("something-else")))
    run(work)


@pytest.mark.parametrize("reason", ["Temporary", "Permanent"])
def test_a_redirect_is_followed_and_the_way_back_is_found(tgt, tmp_path, reason):
    other = Tgtd(tmp_path / "two", IQN, host="127.0.0.2")

    async def work(runtime):
        tgt.redirect(other.host, other.port, reason)
        with pytest.raises(LoginError) as caught:
            await connect(runtime, url(tgt), follow_redirect=False)
        assert refusal(caught) == (1, 1 if reason == "Temporary" else 2)
        async with await connect(runtime, url(tgt)) as store:
            assert store.portal == other.portal and store.redirect_hops == (other.portal,)
            await store.write(0, b"x" * 512)
            tgt.redirect("")
            other.drop_all()
            assert await store.read(512, 512) == bytes(512)     # waits for the new session
            assert store.portal == tgt.portal and store.redirect_hops == () and store.reconnects == 1
        assert other.image.read_bytes()[:512] == b"x" * 512 and tgt.image.read_bytes()[:512] == bytes(512)
    try:
        run(work)
    finally:
        other.close()


def test_requests_wait_while_the_session_is_lost(tgt):
    async def work(runtime):
        async with await connect(runtime, url(tgt)) as store:
            states = []
            store.on_state(states.append)
            for number in range(3):
                writes = [asyncio.create_task(store.write(at * 65536, bytes([number, at]) * 32768)) for at in range(16)]
                await asyncio.sleep(0)
                tgt.drop_all()
                await asyncio.gather(*writes)
                for at in range(16):
                    assert await store.read(at * 65536, 65536) == bytes([number, at]) * 32768
            await until(lambda: store.reconnects == 3)
            assert states == ["lost", "connected"] * 3
    run(work)


def test_a_storage_that_stays_away_fails_and_may_come_back(tgt, tmp_path):
    async def work(runtime):
        async with await connect(runtime, url(tgt), retry_seconds=0.3) as store:
            await store.write(0, b"a" * 512)
            tgt.close()
            with pytest.raises(StorageError):
                await store.read(0, 512)
            assert store.state == "failed" and "cannot be reached" in store.last_error
            with pytest.raises(StorageError, match="cannot be reached"):
                await store.reconnect(0.0)
            again = Tgtd(tmp_path / "one", IQN, port=tgt.port)
            try:
                await store.reconnect()
                assert store.state == "connected" and await store.read(0, 512) == b"a" * 512
            finally:
                again.close()
    run(work)


def test_another_disk_at_the_same_door_is_not_written_to(tgt, tmp_path):
    async def work(runtime):
        async with await connect(runtime, url(tgt), retry_seconds=20) as store:
            tgt.close()
            other = Tgtd(tmp_path / "other", IQN, port=tgt.port, serial="serial-2")
            try:
                with pytest.raises(StorageError):
                    await store.write(0, b"b" * 512)
                assert store.state == "failed" and "another medium" in store.last_error
                assert other.image.read_bytes()[:512] == bytes(512)
            finally:
                other.close()
    run(work)
