from detour.core.reactor import Reactor
from detour.core.store import StoreHandle

class CopierHandle:
    """Copies `size_bytes` from one store to another, with a CRC32C of every 256 KiB chunk."""

    reactor: Reactor
    source: StoreHandle
    sink: StoreHandle
    id: int
    closed: bool
    def __init__(
        self,
        reactor: Reactor,
        copier_id: int,
        source: StoreHandle,
        sink: StoreHandle,
        size_bytes: int,
        window: int = 8,
        rate_bytes_s: int = 0,
    ) -> None: ...
    def start(self) -> int: ...
    def stop(self) -> int: ...
    def progress(self) -> dict[str, int | bool]: ...
    def checksums(self) -> bytes: ...
