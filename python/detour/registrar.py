"""Leads main's persistent reservations to where hosts have left theirs, by commands of their own ports.

Main knows a registrant by initiator name and ISID, so each changed port is logged in at main for a moment, through the
gateway's own door, while the host is not there. A port that main does not let in is told of; hosts go home all the
same.
"""
from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from detour.errors import DetourError, StorageError
from detour.iscsi.negotiation import Redirected
from detour.iscsi.port_session import PortDoor, PortSession
from detour.iscsi.registration_plan import (
    REGISTRANTS_TYPES,
    Plan,
    Port,
    Registrations,
    Step,
    after,
    parse_registrations,
)
from detour.iscsi.registrations import ask, read_full_status, read_keys, read_outlives_power

log = structlog.get_logger(__name__)

BRING_SECONDS = 4.0             # hosts are held: what is not brought by then is told of
ROUND_TRIPS = 10                # of a login, a command with its unit attention, and a logout
PORT_SECONDS = 0.004            # what a port costs besides
HELPER = int.from_bytes(b"detour", "big")   # how the gateway's own keys begin, for whoever lists them


class LetIn(Protocol):
    """Whoever knows main's redirect."""

    async def let_in(self, port: Port) -> str:
        """Main takes a login of that port from now on, as far as it can be made to, and no host is there under it.
        Otherwise answers why not."""


@dataclass(frozen=True)
class Brought:
    """`lacking`: what main has not, parts of a sentence. `shut_out`: main did not take a login, and may
    once its redirect is cleared."""

    lacking: tuple[str, ...] = ()
    shut_out: bool = False


class Registrar:
    """Of one volume's main. `main` is the gateway's own session; without a door no other port can be logged in."""

    def __init__(self, volume: str, main: Any, door: PortDoor | None) -> None:
        self.volume, self.main, self.door = volume, main, door
        self.own = Port(getattr(main, "initiator_name", "").lower(), getattr(main, "isid", b""))
        self._own_key = HELPER << 16 | int.from_bytes(os.urandom(2), "big")
        self._round_trip_s = 0.001

    async def read(self) -> Registrations:
        """Main's, by now. StorageError where it cannot tell."""
        begun = time.monotonic()
        status = await read_full_status(self.main)
        self._round_trip_s = time.monotonic() - begun
        return parse_registrations(status, await read_outlives_power(self.main))

    def expected_s(self, before: Registrations, wanted: Registrations) -> float:
        """How long `bring` will take, from what differs."""
        ports = sum(before.rows.get(port) != row for port, row in wanted.rows.items())
        ports += before.kind != wanted.kind or before.holder != wanted.holder
        commands = 2 + len(before.rows.keys() - wanted.rows.keys())
        return ports * (PORT_SECONDS + ROUND_TRIPS * self._round_trip_s) + commands * 4 * self._round_trip_s

    async def join(self, main: Registrations) -> None:
        """The gateway becomes a registrant where main's reservation asks for that. What it is good for is seen when
        main is read again."""
        if main.kind in REGISTRANTS_TYPES and self.own not in main.rows:
            plan = Plan(main, self.own, self._own_key, frozenset(), keep_own=True)
            await self._follow(plan, main, None, set(), {})

    async def leave(self) -> None:
        """The gateway is no registrant any more; all else stays. A registration that an administrator made for it
        stays too."""
        main = await self.read()
        if self.own in main.rows and main.rows[self.own].key >> 16 == HELPER:
            wanted = replace(main, rows={port: row for port, row in main.rows.items() if port != self.own})
            await self._follow(Plan(wanted, self.own, self._own_key, frozenset()), main, None, set(), {})

    async def bring(self, wanted: Registrations, known: frozenset[Port], let_in: LetIn,
                    keep_own: bool = False) -> Brought:
        """Hosts are held, and main's data is right. May be asked for twice; never raises for what main does."""
        plan, shut_out = Plan(wanted, self.own, self._own_key, known, keep_own), set[str]()
        sessions: dict[Port, PortSession | str] = {}
        try:
            async with asyncio.timeout(BRING_SECONDS):
                main = await self._follow(plan, await self.read(), let_in, shut_out, sessions)
            lacking = plan.differences(main)
        except TimeoutError:
            lacking = [f"main did not take all of them within {BRING_SECONDS:g} s"]
        except DetourError as error:
            lacking = [error.message]
        finally:
            opened = [one for one in sessions.values() if isinstance(one, PortSession)]
            await asyncio.gather(*(session.close() for session in opened), return_exceptions=True)
        reasons = sorted({why for why in sessions.values() if isinstance(why, str)})
        return Brought((*lacking, *reasons) if lacking else (), bool(lacking) and bool(shut_out))

    async def _follow(self, plan: Plan, main: Registrations, let_in: LetIn | None, shut_out: set[str],
                      sessions: dict[Port, PortSession | str]) -> Registrations:
        """Step by step, until nothing is left that main takes; answers main's state. sessions: of ports that were
        logged in, or why not."""
        failed: set[Step] = set()
        for _ in range(16 + 6 * (len(main.rows) + len(plan.wanted.rows))):
            step = plan.next(main, failed)
            if step is None:
                break
            unit = self.main if step.actor == self.own else await self._unit(step.actor, let_in, shut_out, sessions)
            before = main
            if unit is not None and await self._send(unit, step):
                main = await self._read_after(main, step)
            if main == before:
                failed.add(step)
        return main

    async def _read_after(self, before: Registrations, step: Step) -> Registrations:
        """Main's state after a step that it took. One that cannot tell whose registrations it has (tgt), and had none,
        must have the keys that it was given."""
        try:
            return await self.read()
        except StorageError:
            expected = after(before, step)
            if expected is None or await read_keys(self.main) != sorted(row.key for row in expected.rows.values()):
                raise
            return expected

    async def _unit(self, port: Port, let_in: LetIn | None, shut_out: set[str],
                    sessions: dict[Port, PortSession | str]) -> Any:
        """The logical unit as that port meets it, or None."""
        if port not in sessions:
            sessions[port] = await self._log_in(port, let_in, shut_out)
        found = sessions[port]
        return found.unit if isinstance(found, PortSession) else None

    async def _log_in(self, port: Port, let_in: LetIn | None, shut_out: set[str]) -> PortSession | str:
        if let_in is None or self.door is None:
            return f"{port} cannot be logged in at main"
        try:
            refused = await let_in.let_in(port)
            return refused or await self.door.open(port)
        except Redirected:
            shut_out.add(port.name)
            return f"main redirects a login of {port}"
        except DetourError as error:
            shut_out.add(port.name)
            return f"main does not let {port} in: {error.message}"

    async def _send(self, unit: Any, step: Step) -> bool:
        cdb, data = step.command()
        answer = await ask(unit, cdb, data_out=data)
        if not answer.good:
            log.warning("main refuses a change of reservations", volume=self.volume, port=str(step.actor),
                        action=step.action, scsi_status=answer.scsi_status, sense=bytes(answer.sense[:18]).hex())
        return answer.good
