"""Driver for the project's own target (`detour target`): its HTTP API, on a Unix socket or loopback (see api.py).

The redirect of a target counts on all its portals; the gateway passes by initiator name and ISID together (`except`),
so that a host which has the gateway's name is redirected and dropped like any other. The answer to a drop comes when
the tasks of the dropped sessions have ended at the store, which is the barrier. There is no fence: the target loses its
redirect only when its process ends; when it is started again, the gateway's watch over main sets the redirect again.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from detour.errors import StorageError
from detour.redirect.api import RedirectApi
from detour.redirect.base import (
    Address,
    DriverOptions,
    MainSession,
    OwnSession,
    RedirectDriver,
    VolumeContext,
    not_numeric,
    register,
    wait_gone,
)
from detour.redirect.witness import same_place
from detour.urls import parse_duration


class DetourOptions(DriverOptions):
    api: str = Field(pattern=r"^(unix:.+|http://.+)$", description="unix:PATH or http://HOST:PORT of `detour target`")
    barrier_limit: str = "25s"


@register
class DetourDriver(RedirectDriver):
    name: ClassVar[str] = "detour"
    options_model: ClassVar[type[DriverOptions]] = DetourOptions
    options: DetourOptions

    def __init__(self, context: VolumeContext, options: DetourOptions) -> None:
        super().__init__(context, options)
        self._api = RedirectApi("main", options.api, context.target, options.limit_s)

    async def prepare(self) -> None:
        if not self.context.gateway.numeric:
            raise not_numeric(self.context.gateway)
        await self._api.target()
        await self.check_own()

    async def set(self, address: Address) -> None:
        await self._api.set(address, self._own())

    async def clear(self) -> None:
        await self._api.clear()

    async def verify(self, address: Address | None) -> None:
        found = await self._api.redirect()
        if not same_place(found, address):
            told = f"redirects to {found}" if found else "does not redirect"
            should = f"redirect to {address}" if address else "not redirect"
            raise StorageError(f"main's target {self.context.target} {told}, but should {should}")

    async def sessions(self) -> list[MainSession]:
        own = {(session.initiator.lower(), session.isid) for session in self.context.own}
        return [MainSession(str(row["id"]), row["initiator"], _host_of(row.get("peer") or ""), row.get("isid") or "",
                            ours=(row["initiator"].lower(), row.get("isid")) in own)
                for row in await self._api.sessions()]

    async def drop_all(self) -> int:
        others = sum(not session.ours for session in await self.sessions())
        await self._api.drop(self._own(), parse_duration(self.options.barrier_limit))
        return others

    async def barrier(self) -> None:
        """The answer to a drop is the barrier; this waits until the list shows it too, dropping who came since."""
        await self._api.drop(self._own(), parse_duration(self.options.barrier_limit))
        await wait_gone(self, parse_duration(self.options.barrier_limit))

    async def let_in(self, sessions: Sequence[OwnSession]) -> None:
        """A redirect that is not set is not needed to be passed."""
        address = await self._api.redirect()
        if address is not None:
            more = [{"name": session.initiator, "isid": session.isid} for session in sessions]
            await self._api.set(address, [*self._own(), *more])

    async def close(self) -> None:
        await self._api.close()

    def _own(self) -> list[dict[str, str]]:
        return [{"name": session.initiator, "isid": session.isid} for session in self.context.own]


def _host_of(peer: str) -> str:
    """The IP address of "host:port" or "[v6]:port"."""
    return re.sub(r"^\[(.*)\](:\d+)?$|^([^:]*)(:\d+)?$", lambda match: match[1] or match[3] or "", peer)
