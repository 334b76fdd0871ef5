from typing import final

from detour.core.reactor import Reactor

class WireError(Exception):
    status: int

def serial_less(a: int, b: int) -> bool: ...
def serial_less_equal(a: int, b: int) -> bool: ...
def build_pdu(header: bytes, data: bytes, header_digest: bool, data_digest: bool) -> bytes: ...
@final
class RxMachine:
    def __init__(
        self, data_bytes_max: int = 65536, header_digest: bool = False, data_digest: bool = False, discard: bool = False
    ) -> None: ...
    def feed(self, piece: bytes) -> list[tuple[bytes, bytes | None, bool]]: ...
    def count(self, stream: bytes | memoryview, piece_bytes: int) -> int: ...
@final
class ConnProbe:
    received: list[tuple[bytes, bytes | None, bool]]
    sent: list[int]
    log: list[str]
    reason: int | None
    close_in: str | None
    refuse_headers: int
    header_status: int
    discard: bool
    def __init__(
        self,
        reactor: Reactor,
        fd: int,
        header_digest: bool = False,
        data_digest: bool = False,
        recv_data_bytes_max: int = 1048576,
        tx_pause_bytes: int = 8388608,
    ) -> None: ...
    def send(self, header: bytes, data: bytes = b"", tag: int = 0) -> bool: ...
    def close(self, reason: int) -> None: ...
    def close_after_flush(self) -> None: ...
    def resume(self) -> None: ...
    @property
    def state(self) -> dict[str, int]: ...
