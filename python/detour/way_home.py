"""The end of the way home that hosts rely on besides data: main's registrations, brought there while hosts are held.

    bring       main is right and still redirects: registrations and reservation are there before anybody can log in
    finish      main does not redirect any more: what its redirect kept from coming; what is lacking then is told of
    go_on       hosts are not to leave yet after all: main takes what the gateway writes for them

Whatever main does not take, hosts go home.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from detour.errors import DetourError
from detour.redirect.base import OwnSession
from detour.registrar import Brought
from detour.run_parts import RunParts, sentence_of


class WayHome:
    """One run's. `warn`: takes a sentence for the run's document."""

    def __init__(self, parts: RunParts, warn: Callable[[str], None]) -> None:
        self.hosts_were_home = False    # main did not redirect when this run was resumed: what hosts do there counts
        self._parts, self._warn = parts, warn
        self._left: dict[Any, Brought] = {}     # by volume: what is lacking still

    @property
    def volumes(self) -> tuple[Any, ...]:
        return (self._parts.live, *self._parts.live.siblings)

    async def look(self) -> None:
        """When a run is resumed with its redirect as the only thing to clear: it may be cleared already."""
        with contextlib.suppress(DetourError, OSError):
            await self._parts.driver.verify(None)
            self.hosts_were_home = True

    def expect(self) -> None:
        """The pause takes longer by what registrations cost, as far as is known now."""
        self._parts.pause.expect("registrations", sum(volume.registrations_s for volume in self.volumes))

    async def bring(self) -> None:
        """Hosts are held, and main is right."""
        self._left.clear()
        with self._parts.pause.measure("registrations"):
            await self._bring(self.volumes)

    async def finish(self, begun: bool = True) -> None:
        """Main does not redirect. begun: `bring` came before."""
        self._left = self._left if begun else {}
        again = [volume for volume in self.volumes if not begun or self._left[volume].shut_out]
        await self._bring(again)
        for volume, brought in self._left.items():
            if brought.lacking:
                self._warn(f"main does not have all registrations of {volume.name} as hosts have left them: "
                           + "; ".join(brought.lacking))

    async def go_on(self) -> None:
        """StorageError while main would refuse what hosts write here."""
        await self._with_ports(self.volumes, lambda volume, ports: volume.keep_writing(ports))

    async def _bring(self, volumes: tuple[Any, ...] | list[Any]) -> None:
        async def one(volume: Any, ports: _Ports) -> None:
            try:
                if self.hosts_were_home:
                    await volume.leave_main()
                    self._left[volume] = Brought()
                else:
                    self._left[volume] = await volume.bring_registrations(ports)
            except (DetourError, OSError) as error:
                self._left[volume] = Brought((sentence_of(error),))
        await self._with_ports(volumes, one)

    async def _with_ports(self, volumes: tuple[Any, ...] | list[Any], work: Callable[[Any, _Ports], Any]) -> None:
        ports = _Ports(self._parts.driver)
        try:
            for volume in volumes:
                await work(volume, ports)
        finally:
            await ports.shut()


class _Ports:
    """registrar.LetIn, for as long as ports are logged in."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._passing: list[OwnSession] = []

    async def let_in(self, port: Any) -> str:
        isid = port.isid.hex()
        for session in await self._driver.sessions():
            if not session.ours and session.initiator.lower() == port.name and session.isid.lower() in ("", isid):
                return f"{port} is on main already"
        self._passing.append(OwnSession(port.name, isid))
        await self._driver.let_in(self._passing)
        return ""

    async def shut(self) -> None:
        if self._passing:
            await self._driver.let_in([])
