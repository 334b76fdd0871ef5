"""The project's initiator against a target that is not ours: what is checked with every one of them.

    python -m tests.interop.foreign_targets lio|tgt

Each check is a coroutine of a running Runtime and a peer; it raises AssertionError. The command runs them all against
one peer and prints a line for each.
"""
from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from detour.errors import ClosedError, DetourError, LoginError
from detour.iscsi.chap import Credentials
from detour.iscsi.initiator import Connection, connect, discover
from detour.iscsi.negotiation import Wishes
from detour.runtime import Runtime
from detour.urls import Secret, parse_iscsi_url
from tests.support.exercise import exercise, same_content, sizes_around

HOST, OTHER_HOST = "iqn.2026-01.example:host", "iqn.2026-01.example:other"
USER, SECRET = "host1", "host1-secret-12"
MUTUAL_USER, MUTUAL_SECRET = "main1", "main1-secret-34"
MUTUAL = Credentials(MUTUAL_USER, Secret(MUTUAL_SECRET))
DIGESTS = [(False, False), (True, False), (False, True), (True, True)]
# InitialR2T, ImmediateData
SOLICITING = [(True, False), (False, True), (True, True), (False, False)]
RESERVATION_CONFLICT, CHECK_CONDITION = 0x18, 0x02
MISCOMPARE = 0xE


class Peer(Protocol):
    """A foreign target: an open one (`plain`) with several LUNs, one that demands CHAP, one that can prove itself."""

    portal: str
    algorithms: tuple[int, ...]         # CHAP_A that it knows by their registered meaning
    luns: dict[int, int]                # LUN -> bytes, of the plain target
    compares: bool                      # COMPARE AND WRITE

    def url(self, name: str = "plain", lun: int = 0, login: str = "") -> str: ...

    def sum(self, disk: str) -> str:
        """SHA-256 of what a disk of the plain target holds, found without iSCSI."""


Check = Callable[[Runtime, Any], Awaitable[None]]


def first_lun(peer: Peer) -> int:
    return min(peer.luns)


async def opened(runtime: Runtime, peer: Peer, name: str = "plain", lun: int | None = None, login: str = "",
                 **options: Any) -> Connection:
    return await connect(runtime, peer.url(name, first_lun(peer) if lun is None else lun, login),
                         **{"initiator_name": HOST, **options})


async def refused(attempt: Awaitable[Any]) -> tuple[int, int]:
    """Login status of a login that must fail; (0, 0) when the target breaks off without a word, as LIO does where no
    method of authentication fits."""
    try:
        store = await attempt
    except LoginError as error:
        assert SECRET not in str(error) and MUTUAL_SECRET not in str(error)
        return error.status_class, error.status_detail
    except ClosedError:
        return 0, 0
    await store.close()
    raise AssertionError("the login succeeded")


async def check_discovery(runtime: Runtime, peer: Peer) -> None:
    found = await discover(parse_iscsi_url(f"iscsi://{peer.portal}", portal_only=True), initiator_name=HOST)
    names = {parse_iscsi_url(peer.url(name)).target for name in ("plain", "chap", "mutual")}
    assert names <= {one.name for one in found}
    host, _, port = peer.portal.rpartition(":")
    assert all((host, int(port)) in {address[:2] for address in one.addresses} for one in found)


async def check_data(runtime: Runtime, peer: Peer, digests: tuple[bool, bool], soliciting: tuple[bool, bool]) -> None:
    """Every way to send data, with small bursts and segments; the peer's own file is compared in the end."""
    lun = first_lun(peer)
    wishes = Wishes(initial_r2t=soliciting[0], immediate_data=soliciting[1], recv_data_bytes_max=16384,
                    first_burst_bytes=8192, burst_bytes_max=65536)
    dice = random.Random(repr((digests, soliciting)))
    async with await opened(runtime, peer, wishes=wishes, header_digest=digests[0], data_digest=digests[1]) as store:
        assert (store.params.header_digest, store.params.data_digest) == digests
        model = bytearray(await store.read(0, store.size_bytes))
        sizes = sizes_around((8192, 16384, 65536, store.params.send_data_bytes_max), store.block_bytes, 1 << 20)
        await exercise(store, model, dice, sizes)
        await store.flush()
        await same_content(store, model)
        assert store.reconnects == 0
    assert await asyncio.to_thread(peer.sum, str(lun)) == hashlib.sha256(model).hexdigest()


async def check_chap(runtime: Runtime, peer: Peer) -> None:
    lun = first_lun(peer)
    for algorithm in peer.algorithms:
        async with await opened(runtime, peer, "chap", login=f"{USER}%{SECRET}@",
                                chap_algorithms=(algorithm,)) as store:
            await store.read(0, store.block_bytes)
    async with await opened(runtime, peer, "chap", login=f"{USER}%{SECRET}@") as store:     # all that we offer
        await store.read(0, store.block_bytes)
        assert SECRET not in store.url + repr(store.target_url)
    for login in (f"{USER}%wrong-secret-12@", f"nobody%{SECRET}@"):
        assert await refused(opened(runtime, peer, "chap", lun, login)) == (2, 1), login
    assert await refused(opened(runtime, peer, "chap", lun)) in ((2, 1), (0, 0))


async def check_mutual_chap(runtime: Runtime, peer: Peer) -> None:
    login = f"{USER}%{SECRET}@"
    for algorithm in peer.algorithms:
        async with await opened(runtime, peer, "mutual", login=login, mutual=MUTUAL,
                                chap_algorithms=(algorithm,)) as store:
            await store.read(0, store.block_bytes)
    for wrong in (Credentials(MUTUAL_USER, Secret("another-secret-3")), Credentials("main2", Secret(MUTUAL_SECRET))):
        assert (await refused(opened(runtime, peer, "mutual", login=login, mutual=wrong)))[0] == 2
    # A target that has nothing to prove itself with
    assert (await refused(opened(runtime, peer, "chap", login=login, mutual=MUTUAL)))[0] == 2


async def check_luns(runtime: Runtime, peer: Peer) -> None:
    """Each LUN is a disk of its own, all at once."""
    stores = {lun: await opened(runtime, peer, lun=lun) for lun in peer.luns}
    try:
        assert {lun: store.size_bytes for lun, store in stores.items()} == peer.luns
        models = {lun: bytearray(await store.read(0, store.size_bytes)) for lun, store in stores.items()}
        await asyncio.gather(*(exercise(store, models[lun], random.Random(lun), [65536, 4096, 512 * 33] * 8)
                               for lun, store in stores.items()))
        for lun, store in stores.items():
            await same_content(store, models[lun])
            await store.flush()
    finally:
        for store in stores.values():
            await store.close()
    for lun, model in models.items():
        assert await asyncio.to_thread(peer.sum, str(lun)) == hashlib.sha256(model).hexdigest()


async def _reserve(store: Connection, action: int, key: int, service_key: int = 0, kind: int = 0) -> Any:
    cdb = struct.pack(">BBBxxIx", 0x5F, action, kind, 24)
    return await store.command(cdb, data_out=struct.pack(">QQ8x", key, service_key), check=False)


async def check_persistent_reservations(runtime: Runtime, peer: Peer) -> None:
    """Register, reserve (write exclusive), the other host's conflict, its preemption, release."""
    one = await opened(runtime, peer)
    other = await opened(runtime, peer, initiator_name=OTHER_HOST)
    block = one.block_bytes
    write = bytes([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0])
    try:
        assert (await _reserve(one, 0, 0, 0x11)).good and (await _reserve(one, 1, 0x11, kind=1)).good
        assert (await other.command(write, data_out=bytes(block), check=False)).scsi_status == RESERVATION_CONFLICT
        assert len(await other.read(0, block)) == block
        try:
            await other.write(0, bytes(block))
            raise AssertionError("the reservation does not hold")
        except DetourError:
            pass
        assert (await _reserve(other, 0, 0, 0x22)).good and (await _reserve(other, 4, 0x22, 0x11, 1)).good
        assert (await one.command(write, data_out=bytes(block), check=False)).scsi_status in (
            RESERVATION_CONFLICT, CHECK_CONDITION)      # the unit attention of the preemption may come first
        assert (await other.command(write, data_out=bytes(block), check=False)).good
        assert (await _reserve(other, 3, 0x22)).good                                # CLEAR
    finally:
        await one.close()
        await other.close()


async def check_compare_and_write(runtime: Runtime, peer: Peer) -> None:
    async with await opened(runtime, peer) as store:
        block = store.block_bytes
        old, new = b"o" * block, b"n" * block
        await store.write(8 * block, old)
        cdb = struct.pack(">BBQ3xBBx", 0x89, 0, 8, 1, 0)
        assert (await store.command(cdb, data_out=old + new, check=False)).good
        assert await store.read(8 * block, block) == new
        answer = await store.command(cdb, data_out=old + new, check=False)
        assert answer.scsi_status == CHECK_CONDITION and answer.sense[2] & 0xF == MISCOMPARE
        assert await store.read(8 * block, block) == new


async def check_unmap(runtime: Runtime, peer: Peer) -> None:
    async with await opened(runtime, peer) as store:
        await store.write(0, b"\xaa" * (1 << 20))
        await store.unmap(65536, 512 << 10)
        assert await store.read(0, 1 << 20) == b"\xaa" * 65536 + bytes(512 << 10) + b"\xaa" * (448 << 10)


CHECKS: dict[str, Check] = {
    "discovery": check_discovery,
    **{f"data, header digest {digests[0]}, data digest {digests[1]}, InitialR2T {how[0]}, ImmediateData {how[1]}":
       lambda runtime, peer, digests=digests, how=how: check_data(runtime, peer, digests, how)
       for digests, how in zip(DIGESTS, SOLICITING, strict=True)},
    "CHAP": check_chap,
    "mutual CHAP": check_mutual_chap,
    "several LUNs": check_luns,
    "persistent reservations": check_persistent_reservations,
    "COMPARE AND WRITE": check_compare_and_write,
    "unmapping": check_unmap,
}


def run_check(name: str, peer: Peer, seconds: float = 120.0) -> None:
    async def whole() -> None:
        async with Runtime() as runtime, asyncio.timeout(seconds):
            await CHECKS[name](runtime, peer)

    asyncio.run(whole())


def main() -> int:
    from tests.support import lio
    from tests.support.tgt_peer import TgtPeer

    parser = argparse.ArgumentParser(description="The project's initiator against a foreign target.")
    parser.add_argument("peer", choices=["lio", "tgt"])
    kind = parser.parse_args().peer
    reason = lio.missing() if kind == "lio" else ""
    if reason:
        print(reason, file=sys.stderr)
        return 2
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        peer = lio.LioGuest() if kind == "lio" else TgtPeer(Path(folder))
        print(f"{kind} is there after {time.monotonic() - started:.1f} s", flush=True)
        try:
            for name in CHECKS:
                started, outcome = time.monotonic(), "ok"
                if name == "COMPARE AND WRITE" and not peer.compares:
                    outcome = "skipped: the target does not have it"
                else:
                    try:
                        run_check(name, peer)
                    except Exception as error:
                        failures += 1
                        outcome = f"FAILED: {error!r}"
                print(f"{time.monotonic() - started:6.1f} s  {name}: {outcome}", flush=True)
        finally:
            peer.close()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
