"""Cost of the index: CRC32C, bitmap, extents, snapshot.

Small parameters in the normal suite, so that the benches cannot rot; real ones with DETOUR_BENCH=real, measured by
`pytest bench/micro/test_index.py --benchmark-enable`. Inputs come from one seed; each result is checked against a hash
or a sum that does not come from the code under measurement.

Goals: a lookup that stays flat from a thousand extents to ten million; sums near the memory's speed.
Not measured here: the journal, and anything that does I/O.
"""

from __future__ import annotations

import os
import zlib

import numpy as np
import pytest

from detour.core._testing_index import BitmapProbe, ExtentsProbe, crc32c_by_kernel
from detour.core.crc32c import crc32c_kernels

REAL = os.environ.get("DETOUR_BENCH") == "real"
SEED = 20260101

EXTENT_COUNTS = [1_000, 100_000, 1_000_000, 10_000_000] if REAL else [1_000, 20_000]
SPAN_BYTES = [512, 4096, 65_536, 2**20]
BITMAP_BITS = 2**26 if REAL else 2**18
LOOKUPS = 1_000_000 if REAL else 10_000
EXTENT_BLOCKS = 8
SPACING = 16

# CRC32C of the first bytes of the stream of SEED, by a plain table in Python.
EXPECTED_CRC = {512: 0xFD9B22DF, 4096: 0x32166C3B, 65_536: 0xC6ECB0B1, 2**20: 0x0EDC75E8}


def stream(length: int) -> bytes:
    return np.random.default_rng(SEED).bytes(length)


@pytest.mark.parametrize("length", SPAN_BYTES)
@pytest.mark.parametrize("kernel", crc32c_kernels())
def test_crc32c(benchmark, kernel: str, length: int) -> None:
    data = stream(length)
    benchmark.extra_info["bytes"] = length
    assert benchmark(crc32c_by_kernel, kernel, data, 0, length) == EXPECTED_CRC[length]


@pytest.mark.parametrize("count", [1, 64, 4096])
def test_bitmap_set_and_clear(benchmark, count: int) -> None:
    bitmap = BitmapProbe(BITMAP_BITS)

    def there_and_back() -> int:
        return bitmap.set(1000, count) + bitmap.clear(1000, count)

    assert benchmark(there_and_back) == 2 * count
    assert bitmap.count == 0


@pytest.mark.parametrize("set_bits", [10, 10_000])
def test_bitmap_walk(benchmark, set_bits: int) -> None:
    bitmap = BitmapProbe(BITMAP_BITS)
    bits = np.unique(np.random.default_rng(SEED).integers(0, BITMAP_BITS, set_bits))
    for bit in bits:
        bitmap.set(int(bit), 1)
    assert benchmark(bitmap.walk) == int(bits.sum())


def scattered(count: int) -> np.ndarray:
    """`count` LBAs that leave gaps, in an order without any."""
    return np.random.default_rng(SEED).permutation(count).astype(np.uint64) * SPACING


def filled(lbas: np.ndarray) -> ExtentsProbe:
    tree = ExtentsProbe()
    assert tree.insert_many(lbas, EXTENT_BLOCKS, 0) == 0
    return tree


@pytest.mark.parametrize("order", ["scattered", "sequential"])
@pytest.mark.parametrize("count", EXTENT_COUNTS)
def test_extents_insert(benchmark, count: int, order: str) -> None:
    lbas = scattered(count) if order == "scattered" else np.sort(scattered(count))
    tree = benchmark.pedantic(filled, args=(lbas,), rounds=1 if REAL else 2)
    benchmark.extra_info["bytes_per_extent"] = tree.bytes_used / count
    assert (tree.extents_count, tree.blocks_count) == (count, count * EXTENT_BLOCKS)
    assert content_hash(tree, 500) == content_hash_expected(lbas, 500)


@pytest.mark.parametrize("count", EXTENT_COUNTS)
def test_extents_find(benchmark, count: int) -> None:
    lbas = scattered(count)
    tree = filled(lbas)
    numbers = np.random.default_rng(SEED + 1).integers(0, count, LOOKUPS)
    wanted = lbas[numbers] + np.uint64(EXTENT_BLOCKS - 1)
    benchmark.extra_info["lookups"] = LOOKUPS
    assert benchmark(tree.find_many, wanted) == int(numbers.sum())


@pytest.mark.parametrize("count", EXTENT_COUNTS)
def test_extents_overwrite(benchmark, count: int) -> None:
    """Shifted by half an extent: each insertion cuts one, and may fill a gap."""
    lbas = scattered(count)
    shifted = lbas[: min(count, LOOKUPS)] + np.uint64(EXTENT_BLOCKS // 2)
    tree = filled(lbas)
    replaced = benchmark.pedantic(tree.insert_many, args=(shifted, EXTENT_BLOCKS, 0), rounds=1)
    assert replaced == len(shifted) * EXTENT_BLOCKS // 2
    assert tree.check() == 0


def content_hash(tree: ExtentsProbe, extents: int) -> int:
    return zlib.crc32(repr(tree.walk(0, extents)).encode())


def content_hash_expected(lbas: np.ndarray, extents: int) -> int:
    order = np.argsort(lbas)[:extents]
    return zlib.crc32(repr([(int(lbas[slot]), EXTENT_BLOCKS, int(slot)) for slot in order]).encode())
