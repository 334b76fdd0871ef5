from typing import Any, final

from detour.core.reactor import Reactor
from detour.core.store import StoreHandle

@final
class InitiatorStore(StoreHandle):
    def __init__(
        self,
        reactor: Reactor,
        store_id: int,
        lun: int,
        size_bytes: int,
        block_bytes: int = 512,
        queue_depth: int = 64,
        unmap: bool = False,
        volatile: bool = True,
        read_only: bool = False,
        transfer_bytes_max: int = 1048576,
        unmap_bytes_max: int = 33554432,
        command_limit_ms: int = 20000,
        nop_interval_ms: int = 5000,
        nop_timeout_ms: int = 5000,
        retries_max: int = 16,
    ) -> None: ...
    def attach(self, fd: int, params: dict[str, Any]) -> int: ...
    def detach(self) -> int: ...
    def logout(self) -> int: ...
    def fail(self) -> int: ...
    def resize(self, size_bytes: int) -> int: ...
    @property
    def attached(self) -> bool: ...
    @property
    def session(self) -> dict[str, int]: ...
