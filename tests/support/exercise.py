"""Writes and reads of a store beside a model of its content, of sizes around every boundary that a session knows."""
from __future__ import annotations

import random
from collections.abc import Iterable

from detour.stores import OpenStore

PIECE_BYTES = 1 << 20


def sizes_around(boundaries: Iterable[int], block_bytes: int, most_bytes: int) -> list[int]:
    """One block below, at, and one block above each boundary and its double, in whole blocks; one block too."""
    found = {block_bytes}
    for boundary in boundaries:
        for multiple in (boundary, 2 * boundary):
            whole = multiple // block_bytes * block_bytes
            found |= {whole - block_bytes, whole, whole + block_bytes}
    return sorted(size for size in found if 0 < size <= most_bytes)


async def exercise(store: OpenStore, model: bytearray, dice: random.Random, sizes: Iterable[int]) -> int:
    """Writes data of each size at a place of its own choice, and reads as much around it; answers the bytes moved.
    AssertionError where the store differs from the model."""
    block_bytes, moved = store.block_bytes, 0
    for size in sizes:
        place = dice.randrange((len(model) - size) // block_bytes + 1) * block_bytes
        data = dice.randbytes(size)
        model[place:place + size] = data
        await store.write(place, data, fua=dice.random() < 0.2)
        begin = max(0, place - block_bytes)
        end = min(len(model), place + size + block_bytes)
        assert await store.read(begin, end - begin) == model[begin:end], f"{size} bytes at {place} read back otherwise"
        moved += size + end - begin
    return moved


async def same_content(store: OpenStore, model: bytes | bytearray) -> None:
    """The whole store holds the model."""
    assert store.size_bytes == len(model)
    for place in range(0, len(model), PIECE_BYTES):
        piece = model[place:place + PIECE_BYTES]
        assert await store.read(place, len(piece)) == piece, f"the MiB at {place} differs"
