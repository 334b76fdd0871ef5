"""The watch over main during a detour (rule 7): it must redirect for the whole time, and only the gateway may be on it.

Main may lose its redirect (its process was started again), and a host may get past it. Both are looked for every few
seconds, and mended: the redirect is set again, the host is dropped. A backup whose copy was not complete is given up,
because nobody knows what such a host wrote. `lock` is held by whoever changes main's redirect, so that the watch never
sets it again while the way home clears it.
"""
from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from detour.errors import DetourError
from detour.run_parts import RunParts, sentence_of

log = structlog.get_logger(__name__)


class MainWatch:
    """`wanted`: whether main has to redirect now. `warn`: takes a sentence for the run's document."""

    def __init__(self, parts: RunParts, wanted: Callable[[], bool], warn: Callable[[str], None]) -> None:
        self.lock = asyncio.Lock()
        self.spoilt = ""                # why the point in time cannot be vouched for; empty while it can
        self._parts = parts
        self._wanted = wanted
        self._warn = warn
        self._twins: set[str] = set()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._parts.settings.guard_s)
            await self.look()

    async def look(self) -> None:
        """One look at main; what cannot be found out or mended is a warning."""
        async with self.lock:
            if not self._wanted():
                return
            try:
                await self.keep_redirecting()
                await self._drop_strangers()
            except (DetourError, OSError) as error:
                self._warn(f"main could not be looked at: {sentence_of(error)}")
            except Exception as error:      # the watch goes on whatever a driver stumbled over
                log.exception("the watch over main failed", volume=self._parts.live.name)
                self._warn(f"main could not be looked at: {sentence_of(error)}")

    async def keep_redirecting(self) -> None:
        """Sets the redirect, and the fence, again where main lost them. DetourError when main does not take it."""
        driver, address = self._parts.driver, self._parts.address
        try:
            await driver.verify(address)
        except DetourError as error:
            await driver.set(address)
            await driver.verify(address)
            await driver.fence()
            self._warn(f"the redirect was set again: {sentence_of(error)}")

    async def _drop_strangers(self) -> None:
        others = [session for session in await self._parts.driver.sessions() if not session.ours]
        twins = {session.id for session in others if session.twin}
        # A twin may be a session of the gateway that main has not let go of yet: only one that stays is a stranger.
        strangers = [session for session in others if not session.twin or session.id in self._twins]
        self._twins = twins
        if not strangers:
            return
        names = ", ".join(sorted({session.initiator for session in strangers}))
        self.spoilt = f"{names} logged in to main during the detour"
        self._warn(self.spoilt)
        await self._parts.driver.drop_all()
