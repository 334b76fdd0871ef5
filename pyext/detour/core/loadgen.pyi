from collections.abc import Buffer
from typing import Any

from detour.core.reactor import Reactor
from detour.core.store import StoreHandle

def stats_names() -> list[str]: ...
def histogram_names() -> list[str]: ...
def section_words() -> int: ...
def histogram_words() -> int: ...

class LoadGenerator:
    reactor: Reactor
    store: StoreHandle
    id: int
    closed: bool
    settings: dict[str, Any]
    def __init__(
        self,
        reactor: Reactor,
        load_id: int,
        store: StoreHandle,
        *,
        offset_bytes: int = 0,
        length_bytes: int | None = None,
        unit_bytes: int = 4096,
        io_bytes: int = 4096,
        io_bytes_max: int | None = None,
        read_share: float = 0.5,
        depth: int = 16,
        rate: float = 0.0,
        mode: str = "random",
        verify: bool = True,
        flush_every: int = 0,
        fua_share: float = 0.0,
        seed: int = 1,
        versions: Buffer | None = None,
        base: Buffer | None = None,
        rewriting: bool = False,
    ) -> None: ...
    def start(self, seconds: float = 0, operations: int = 0) -> int: ...
    def stop(self) -> int: ...
    def section(self, index: int) -> int: ...
    def rewrite(self, on: bool) -> int: ...
    def close(self) -> None: ...
    @property
    def running(self) -> bool: ...
    @property
    def stats(self) -> Buffer: ...
    @property
    def versions(self) -> memoryview: ...
    @property
    def first_mismatch(self) -> dict[str, Any] | None: ...
    @property
    def first_error(self) -> dict[str, Any] | None: ...
    def expected(self, unit: int) -> bytes: ...
    def compare(self, data: Buffer, offset_bytes: int = 0) -> dict[str, int | None]: ...
