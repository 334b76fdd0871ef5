"""Stand-ins for main storage of kinds that cannot run here: portals that answer logins, and what drivers ask of them.

A `Portals` redirects as `rule` says at this moment, by name, and refuses every other login with "service unavailable":
so a look at it never opens a session.
"""
from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from detour.iscsi.listener import Listener, TargetEntry
from detour.redirect.base import Address, OwnSession, RedirectDriver, VolumeContext, make_driver
from tests.support.sinks import FakeRuntime

TARGET = "iqn.2026-01.example:main"
OWN = "iqn.2026-01.example:gateway"
HOST = "iqn.2026-01.example:host"
ISID = "800102030000"
GATEWAY = Address("127.0.0.2", 3260)


class Portals:
    """Main's portals on loopback, `count` of them; `async with`."""

    def __init__(self, rule: Callable[[], str | None], target: str = TARGET, count: int = 1) -> None:
        self._rule, self._count = rule, count
        self.listener = Listener(FakeRuntime())             # type: ignore[arg-type]
        self.listener.add_target(TargetEntry(iqn=target, redirect=self._redirect, accepting=False))
        self.names: list[str] = []                          # who looked

    def _redirect(self, initiator_name: str, peer_host: str, isid: bytes) -> str | None:
        self.names.append(initiator_name)
        return self._rule()

    @property
    def addresses(self) -> list[Address]:
        return [Address(host, port) for host, port in self.listener.portals]

    async def __aenter__(self) -> Portals:
        for _ in range(self._count):
            await self.listener.listen("127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.listener.close()


def driver_of(kind: str, portals: Portals, memo: Any = None, gateway: Address = GATEWAY, **options: Any
              ) -> RedirectDriver:
    """A driver of a kind for the volume db01, whose main has these portals."""
    context = VolumeContext("db01", TARGET, portals.addresses[0], gateway, OWN, memo, (OwnSession(OWN, ISID),))
    return make_driver(context, {"driver": kind, "portals": [str(one) for one in portals.addresses], **options})


def run(work: Callable[[], Coroutine[Any, Any, Any]], seconds: float = 30.0) -> Any:
    """One test's coroutine, bounded."""
    async def bounded() -> Any:
        async with asyncio.timeout(seconds):
            return await work()
    return asyncio.run(bounded())
