from collections.abc import Buffer
from typing import Any, final

BREACHES: tuple[str, ...]

@final
class MainFuzzer:
    pdus: int
    requests: int
    def __init__(self, seed: int, params: dict[str, Any], spoil: int = 60, mood: int = 0xFFFF) -> None: ...
    def consume(self, came: Buffer, came_bytes: int) -> int: ...
    def generate(self, count: int) -> bytes: ...
    @property
    def waiting(self) -> int: ...
