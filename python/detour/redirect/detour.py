"""Driver for the project's own target (`detour target`): its HTTP API, on a Unix socket or loopback (see api.py).

The redirect of a target counts on all its portals; the gateway passes by initiator name and ISID together (`except`),
so that a host which has the gateway's name is redirected and dropped like any other. The answer to a drop comes when
the tasks of the dropped sessions have ended at the store, which is the barrier. There is no fence: the target loses its
redirect only when its process ends; when it is started again, the gateway's watch over main sets the redirect again.
The target numbers its logins, so that a session which came and went between two looks is known by its login.
"""
from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import structlog
from pydantic import Field

from detour.redirect.api import RedirectApi
from detour.redirect.base import (
    Address,
    DriverOptions,
    MainSession,
    Memo,
    OwnSession,
    RedirectDriver,
    VolumeContext,
    check_place,
    register,
    require_numeric,
)

log = structlog.get_logger(__name__)


class DetourOptions(DriverOptions):
    api: str = Field(pattern=r"^(unix:.+|http://.+)$", description="unix:PATH or http://HOST:PORT of `detour target`")


@register
class DetourDriver(RedirectDriver):
    name: ClassVar[str] = "detour"
    options_model: ClassVar[type[DriverOptions]] = DetourOptions
    options: DetourOptions

    def __init__(self, context: VolumeContext, options: DetourOptions) -> None:
        super().__init__(context, options)
        self._api = RedirectApi("main", options.api, context.target, options.limit_s)
        self._memo = Memo(context.memo_path)        # the logins that are known of, for a gateway that is started again
        self._known: dict[str, Any] | None = None   # the same, for this process
        self._strangers: list[MainSession] = []     # found, and not told yet

    async def prepare(self) -> None:
        require_numeric(self.context.gateway)
        await self._api.target()
        await self.check_own()

    async def set(self, address: Address) -> None:
        await self._api.set(address, self._own())

    async def clear(self) -> None:
        await self._api.clear()
        self._known = None
        self._memo.ignore()

    async def forget(self) -> None:
        await asyncio.to_thread(self._memo.forget)

    async def verify(self, address: Address | None) -> None:
        check_place(await self._api.redirect(), address, f"main's target {self.context.target}")

    async def sessions(self) -> list[MainSession]:
        own = {(session.initiator.lower(), session.isid) for session in self.context.own}
        return [MainSession(str(row["id"]), row["initiator"], _host_of(row.get("peer") or ""), row.get("isid") or "",
                            ours=(row["initiator"].lower(), row.get("isid")) in own)
                for row in await self._api.sessions()]

    async def drop_all(self) -> int:
        others = sum(not session.ours for session in await self.sessions())
        await self._api.drop(self._own(), self.options.barrier_limit_s)
        return others

    async def barrier(self) -> None:
        """The answer to a drop is the barrier; this waits until the list shows it too, dropping who came since."""
        await self._api.drop(self._own(), self.options.barrier_limit_s)
        await super().barrier()
        await self._count_from_here()

    async def let_in(self, sessions: Sequence[OwnSession]) -> None:
        """A redirect that is not set is not needed to be passed. Logins of these ports are nobody's to wonder about."""
        if sessions:
            self._strangers += await self._find_strangers()
        else:
            await self._count_from_here()
        address = await self._api.redirect()
        if address is not None:
            more = [{"name": session.initiator, "isid": session.isid} for session in sessions]
            await self._api.set(address, [*self._own(), *more])

    async def came(self) -> list[MainSession]:
        found, self._strangers = self._strangers + await self._find_strangers(), []
        return found

    async def _count_from_here(self) -> None:
        told = await self._api.target()
        if isinstance(told.get("logins"), int):         # else it is of a version that does not number them
            self._keep(told)

    def _keep(self, told: dict[str, Any]) -> None:
        """Where the disk takes nothing, a gateway that is started again takes later logins for strangers."""
        self._known = {"logins": told["logins"], "started": told.get("started")}
        try:
            self._memo.write(self._known)
        except OSError as error:
            log.warning("the number of main's logins cannot be kept", file=str(self._memo.path), reason=error.strerror)

    async def _find_strangers(self) -> list[MainSession]:
        told, known = await self._api.target(), self._known or self._memo.read()
        if known is None or not isinstance(told.get("logins"), int):
            return []
        # A process that was started anew takes logins until the redirect is set again: all of them count.
        since = known["logins"] if told.get("started") == known["started"] else 0
        if told["logins"] == since:
            return []
        rows = await self._api.logins(since)
        self._keep(told)
        own = {(session.initiator.lower(), session.isid) for session in self.context.own}
        return [MainSession(f"login {row['number']}", row["initiator"], _host_of(row.get("peer") or ""),
                            row.get("isid") or "") for row in rows
                if (row["initiator"].lower(), row.get("isid")) not in own]

    async def close(self) -> None:
        await self._api.close()

    def _own(self) -> list[dict[str, str]]:
        return [{"name": session.initiator, "isid": session.isid} for session in self.context.own]


def _host_of(peer: str) -> str:
    """The IP address of "host:port" or "[v6]:port"."""
    return re.sub(r"^\[(.*)\](:\d+)?$|^([^:]*)(:\d+)?$", lambda match: match[1] or match[3] or "", peer)
