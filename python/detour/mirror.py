"""What hosts meet of main besides its data, kept in step between main and the gateway's volume (core/mirror.pxd).

    start        what main offers, its limits and modes; after a restart also the reservations of the detour under way
    check        before a detour: whether main's reservations can be taken over
    take_over    before the freeze, with every host off main: reservations and modes as hosts have left them
    bring_back   before hosts go home: what they have set here and main does not know

Every change of a reservation is written to a file before the host is answered, so that a gateway that was killed knows
what hosts rely on. Bringing changed registrations back to main is not done: `bring_back` says so.
"""
from __future__ import annotations

import asyncio
from typing import Any

import structlog

from detour import events
from detour.errors import CorruptError, DetourError
from detour.iscsi.identity import Identity
from detour.iscsi.offered import PERSISTENT_IN, Offered, naa_of, offers, read_modes, read_offered, withheld
from detour.iscsi.registrations import (
    NOBODY,
    check_writable,
    read_full_status,
    read_is_durable,
    same_registrations,
)
from detour.redirect.base import Memo
from detour.runtime import Runtime

log = structlog.get_logger(__name__)

STATUS_IO = -2


class MainMirror:
    """Of one volume. `main` is an OpenStore, `volume` the core's handle, `memo` the file that keeps reservations.

    sync: whether answers wait for a stable journal, as configured, or (None) as main's caching mode page tells.
    own_name: with which the gateway logs in to main."""

    def __init__(self, runtime: Runtime, name: str, main: Any, volume: Any, memo: Memo, lun: int,
                 sync: bool | None = None, own_name: str = "") -> None:
        self.runtime, self.name, self.main, self.volume, self.memo = runtime, name, main, volume, memo
        self.lun, self.sync, self.own_name = lun, sync, own_name
        self.offered: Offered | None = None     # None: main is no SCSI device, and nothing is mirrored
        self._seed = self._status = NOBODY      # READ FULL STATUS data: of main at the take-over, and by now
        self._taken = False                     # they are those of a detour under way
        self._storing: set[asyncio.Task[None]] = set()
        runtime.on_event(events.RESERVATIONS, volume.id, self._changed)

    async def start(self, resumes: bool) -> None:
        """DetourError when main is lost meanwhile; CorruptError when kept reservations cannot be read."""
        identity: Identity | None = getattr(self.main, "identity", None)
        if identity is None:
            return
        self.offered = await read_offered(self.main, identity)
        durable = await read_is_durable(self.main) if offers(self.offered, PERSISTENT_IN) else False
        limits = self.offered.limits
        await self._ask(self.volume.set_limits(**vars(limits)), "main's limits")
        await self._ask(self.volume.set_offered(
            withheld(self.offered), naa=naa_of(identity), lun=self.lun, thin=self.offered.thin, keeps_reservations=True,
            durable_reservations=durable), "what main offers")
        await self._set_modes()
        if resumes:
            await self._load_kept()

    async def check(self) -> None:
        """StorageError: this main cannot be written to, or hosts would lose what they hold there."""
        if self._reserves:
            check_writable(await read_full_status(self.main), self.own_name)

    async def take_over(self, again: bool = True) -> None:
        """StorageError as in `check`; hosts must not be served here for long then. Not `again`: nothing happens when it
        was done in this detour."""
        if self.offered is None or (self._taken and not again):
            return
        await self._set_modes()
        if not self._reserves:
            return
        status = await read_full_status(self.main)
        await self._ask(self.volume.load_reservations(status), "main's reservations")
        self._seed = status
        await self._keep(status, False)
        self._taken = True
        check_writable(status, self.own_name)

    async def bring_back(self) -> list[str]:
        """Answers what could not be brought, one sentence each. May be asked for twice."""
        lacking = []
        if self.offered is not None and self.volume.software_protected:
            try:
                await self._protect_main()
            except DetourError as error:
                lacking.append(f"main does not take the write protection that a host has set: {error.message}")
        if self.volume.reservations_changed and not same_registrations(self._seed, self._status):
            lacking.append("hosts have changed their registrations during the detour; main has those from before it")
        return lacking

    def forget(self) -> None:
        """Hosts are home: what was kept for them does not count any more."""
        self._taken = False
        self.memo.forget()

    async def close(self) -> None:
        self.runtime.off_event(events.RESERVATIONS, self.volume.id)
        await asyncio.gather(*self._storing, return_exceptions=True)

    # -- modes -------------------------------------------------------------------------------------------------------

    async def _set_modes(self) -> None:
        modes = await read_modes(self.main)
        sync_always = self.sync if self.sync is not None else not modes.write_cache
        await self._ask(self.volume.set_modes(modes.descriptor_sense, modes.software_protected, sync_always),
                        "main's modes")

    async def _protect_main(self) -> None:
        modes = await read_modes(self.main)
        if modes.software_protected or not modes.control:
            return
        page = bytearray(modes.control)
        page[0] &= 0x3F
        page[4] |= 0x08
        data = bytes(4) + bytes(page)
        await self.main.command(bytes([0x15, 0x10, 0, 0, len(data), 0]), data_out=data)

    # -- reservations ------------------------------------------------------------------------------------------------

    @property
    def _reserves(self) -> bool:
        return self.offered is not None and offers(self.offered, PERSISTENT_IN)

    async def _load_kept(self) -> None:
        kept = await asyncio.to_thread(self.memo.read)
        if kept is None:
            return
        try:
            status, aptpl = bytes.fromhex(kept["status"]), bool(kept["aptpl"])
            self._seed = bytes.fromhex(kept["seed"])
        except (KeyError, TypeError, ValueError):
            raise CorruptError(f"{self.memo.path}: the reservations kept there are damaged",
                               hint="Remove the file when no host relies on them.") from None
        await self._ask(self.volume.load_reservations(status, True, aptpl), "the reservations kept")
        self._status, self._taken = status, True

    def _changed(self, _status: int, results: tuple[int, ...], data: bytes | None) -> None:
        task = asyncio.ensure_future(self._store(data, bool(results[0])))
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def _store(self, data: bytes | None, aptpl: bool) -> None:
        stored = STATUS_IO
        try:
            if data is not None:
                await self._keep(data, aptpl)
                stored = 0
        except OSError as error:
            log.error("a change of reservations cannot be kept: a restarted gateway would not know it",
                      volume=self.name, file=str(self.memo.path), reason=error.strerror)
        await self.runtime.wait(self.volume.reservations_stored(stored), check=False)

    async def _keep(self, status: bytes, aptpl: bool) -> None:
        await asyncio.to_thread(self.memo.write, {"aptpl": aptpl, "seed": self._seed.hex(), "status": status.hex()})
        self._status = status

    async def _ask(self, ticket: int, what: str) -> None:
        await self.runtime.wait(ticket, context=f"{what} of {self.name}")
