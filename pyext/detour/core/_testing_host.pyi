from collections.abc import Buffer
from typing import Any, final

BREACHES: tuple[str, ...]

@final
class HostFuzzer:
    pdus: int
    answers: int
    logouts: int
    naa: bytes
    def __init__(
        self,
        seed: int,
        params: dict[str, Any],
        blocks: int,
        block_bytes: int,
        luns: int = 1,
        spoil: int = 100,
        mood: int = 0xFFFF,
    ) -> None: ...
    def generate(self, count: int) -> bytes: ...
    def consume(self, came: Buffer, came_bytes: int) -> int: ...
