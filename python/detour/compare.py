"""Byte by byte comparison of whole images by plain reads: the path of its own behind the demo's proofs."""
from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PIECE_BYTES = 4 * 2**20
BLOCK_BYTES = 512


class Expectation(Protocol):
    """What core.loadgen.LoadGenerator offers for a full compare."""

    settings: dict[str, Any]

    def compare(self, data: bytes, offset_bytes: int = 0) -> dict[str, Any]: ...


@dataclass
class Comparison:
    """compared_bytes were read and looked at; first_difference is a byte offset, None when all is the same."""

    compared_bytes: int = 0
    first_difference: int | None = None
    reason: str = ""

    @property
    def same(self) -> bool:
        return self.first_difference is None and not self.reason

    def document(self) -> dict[str, Any]:
        return {"same": self.same, "compared_bytes": self.compared_bytes, "first_difference": self.first_difference,
                **({"reason": self.reason} if self.reason else {})}


def pieces(path: Path, length_bytes: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of a file, from its start to its end or `length_bytes`."""
    offset = 0
    with open(path, "rb", buffering=0) as file:
        while length_bytes is None or offset < length_bytes:
            data = file.read(PIECE_BYTES if length_bytes is None else min(PIECE_BYTES, length_bytes - offset))
            if not data:
                return
            yield offset, data
            offset += len(data)


def first_difference(one: bytes, other: bytes) -> int:
    """Offset of the first byte that differs; the shorter length when one is the start of the other."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def compare_files(one: Path, other: Path, length_bytes: int) -> Comparison:
    """The first `length_bytes` of two files. A file that is shorter differs where it ends."""
    result = Comparison()
    for path in (one, other):
        if not path.exists():
            result.reason = f"{path} is missing"
            return result
    sizes = [os.path.getsize(path) for path in (one, other)]
    for (offset, left), (_, right) in zip(pieces(one, length_bytes), pieces(other, length_bytes), strict=False):
        result.compared_bytes += min(len(left), len(right))
        if left != right:
            result.first_difference = offset + first_difference(left, right)
            return result
    if min(sizes) < length_bytes:
        result.first_difference = min(sizes)
    return result


def compare_expected(path: Path, expectation: Expectation, tail_source: Path | None = None) -> Comparison:
    """A file against what the host of a load generator expects of its region (from offset 0 on). What lies behind the
    region's whole units is compared with `tail_source`, where there is one."""
    region, unit = expectation.settings["length_bytes"], expectation.settings["unit_bytes"]
    result = Comparison()
    if os.path.getsize(path) < region:
        result.first_difference = os.path.getsize(path)
        return result
    for offset, data in pieces(path, region):
        found = expectation.compare(data[: len(data) // unit * unit], offset)
        result.compared_bytes += found["compared"] * unit
        if found["unknown"] and not result.reason:
            result.reason = f"{found['unknown']} units at {offset} have no known content"
        if found["wrong"]:
            result.first_difference = found["first_wrong_bytes"]
            return result
    if tail_source is not None and os.path.getsize(tail_source) > region:
        with open(path, "rb") as one, open(tail_source, "rb") as other:
            one.seek(region)
            other.seek(region)
            left, right = one.read(), other.read()
        result.compared_bytes += len(right)
        if left != right:
            result.first_difference = region + first_difference(left, right)
    return result


async def compare_store(store: Any, path: Path, length_bytes: int) -> Comparison:
    """An open store (detour.stores.OpenStore) with a file."""
    result = Comparison()
    if store.size_bytes < length_bytes:
        result.first_difference = store.size_bytes
        return result
    for offset, expected in pieces(path, length_bytes):
        whole = -(-len(expected) // store.block_bytes) * store.block_bytes
        found = (await store.read(offset, whole))[: len(expected)]
        result.compared_bytes += len(expected)
        if found != expected:
            result.first_difference = offset + first_difference(found, expected)
            return result
    return result
