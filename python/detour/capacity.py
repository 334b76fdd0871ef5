"""Main's size, which may change under a detour.

A main that grows is served on with the size that it had: journal, copy and point in time are of that size, and a host
that met more would ask for blocks which the gateway does not have. Once home the host meets all of it. A main that
shrinks has lost blocks of the point in time, and perhaps blocks that hosts rely on.
"""
from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from detour.errors import StorageError
from detour.run_parts import RunParts


async def check_size(live: Any) -> None:
    """Before a detour. StorageError when main has another size than the volume."""
    size_bytes = await live.main_size()
    if size_bytes is not None and size_bytes != live.size_bytes:
        raise StorageError(f"main has {size_bytes} bytes by now, and had {live.size_bytes} at the gateway's start",
                           hint="Restart the gateway: it makes the journal anew for that size.")


class CapacityWatch:
    """Of one run. `spoil`: takes the reason for which the point in time cannot be had any more."""

    def __init__(self, parts: RunParts, warn: Callable[[str], None], spoil: Callable[[str], None]) -> None:
        self._parts, self._warn, self._spoil = parts, warn, spoil

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._parts.settings.guard_s)
            await self.look()

    async def look(self) -> None:
        live = self._parts.live
        size_bytes = None if live.main_is_lost else await live.main_size()
        if size_bytes is None or size_bytes == live.size_bytes:
            return
        if size_bytes > live.size_bytes:
            self._warn(f"main has grown to {size_bytes} bytes: hosts meet {live.size_bytes} until they are home, and "
                       "have to look for the new size there")
            return
        reason = f"main has shrunk to {size_bytes} bytes: blocks of the point in time are lost"
        self._warn(f"{reason}; what hosts wrote there stays in the journal until main has {live.size_bytes} bytes "
                   "again")
        self._spoil(reason)
