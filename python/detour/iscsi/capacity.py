"""How large a logical unit is by now (SBC-3 5.16, 5.17)."""
from __future__ import annotations

import struct
from typing import Any

from detour.errors import DetourError
from detour.iscsi.registrations import ask

READ_CAPACITY_16 = struct.pack(">BB8xIxx", 0x9E, 0x10, 32)
READ_CAPACITY_10 = bytes([0x25]) + bytes(9)


async def read_size(main: Any, block_bytes: int) -> int | None:
    """Bytes that main has by now; None where it does not tell (a file, a main that is lost)."""
    try:
        answer = await ask(main, READ_CAPACITY_16, data_in_bytes=32)
        if answer.good and len(answer.data) >= 12:
            last, block = struct.unpack_from(">QI", answer.data)
        else:
            answer = await ask(main, READ_CAPACITY_10, data_in_bytes=8)
            if not answer.good or len(answer.data) < 8:
                return None
            last, block = struct.unpack_from(">II", answer.data)
    except DetourError:
        return None
    return (last + 1) * block_bytes if block == block_bytes else None
