"""A snapshot over a journal in memory, for tests of the index alone."""

from __future__ import annotations

from detour.core._testing_snapshot import SnapshotProbe
from detour.core.journal import JournalHandle
from detour.core.reactor import Reactor
from detour.core.store import MemoryStore

JOURNAL_BYTES = 128 * 2**20  # a table of some ten thousand entries; the memory is touched only where it is used
BLOCK_BYTES = 512

_reactor: Reactor | None = None


def new_snapshot(volume_blocks: int = 2**20) -> SnapshotProbe:
    """An empty snapshot. The reactor is shared and never turned: nothing here does I/O."""
    global _reactor
    if _reactor is None:
        _reactor = Reactor(0, 2**20)
    media = MemoryStore(_reactor, 2**20)
    return SnapshotProbe(JournalHandle.in_memory(_reactor, JOURNAL_BYTES, BLOCK_BYTES, volume_blocks, media))
