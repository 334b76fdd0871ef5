from collections.abc import Buffer

def ordered_prefix(
    data: Buffer, *, seed: int = 1, unit_bytes: int = 4096, offset_bytes: int = 0
) -> tuple[int, int]: ...
