"""CRC32C: vectors of the standard, both kernels against each other and a bitwise reference, the choice by name."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from detour.core._testing_index import crc32c_by_kernel, crc32c_copied
from detour.core.crc32c import crc32c, crc32c_kernel, crc32c_kernels

READ10_CDB_PDU = bytes.fromhex(
    "01c000000000000000000000000000001400000000000400000000140000001828000000000000000200000000000000"
)

# RFC 3720 appendix B.4; the values are read as the CRC's 32 bits, most significant first.
RFC_3720_VECTORS = [
    pytest.param(bytes(32), 0x8A9136AA, id="zeros"),
    pytest.param(b"\xff" * 32, 0x62A8AB43, id="ones"),
    pytest.param(bytes(range(32)), 0x46DD794E, id="incrementing"),
    pytest.param(bytes(range(31, -1, -1)), 0x113FDB5C, id="decrementing"),
    pytest.param(READ10_CDB_PDU, 0xD9963A56, id="read-10-pdu"),
    pytest.param(b"123456789", 0xE3069283, id="check-value"),
    pytest.param(b"", 0, id="empty"),
]


def bitwise(data: bytes, value: int = 0) -> int:
    """The definition, a bit at a time."""
    crc = ~value & 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return ~crc & 0xFFFFFFFF


def sample(length: int) -> bytes:
    return random.Random(length).randbytes(length)


@pytest.mark.parametrize("kernel", crc32c_kernels())
@pytest.mark.parametrize(("data", "expected"), RFC_3720_VECTORS)
def test_vectors(kernel: str, data: bytes, expected: int) -> None:
    assert crc32c_by_kernel(kernel, data, 0, len(data)) == expected
    assert crc32c(data) == expected
    assert bitwise(data) == expected


@pytest.mark.parametrize("kernel", crc32c_kernels())
def test_every_short_length_and_alignment(kernel: str) -> None:
    data = sample(320)
    for length in range(301):
        expected = bitwise(data[:length])
        for start in range(8):
            shifted = bytes(start) + data[:length]
            assert crc32c_by_kernel(kernel, shifted, start, length) == expected, (length, start)


def test_kernels_agree_around_their_lane_sizes() -> None:
    data = sample(70_000)
    edges = [480, 960, 4080, 4096, 4560, 8160, 12_240, 65_536]
    for edge in edges:
        for length in range(edge - 9, edge + 10):
            for start in (0, 3):
                results = {crc32c_by_kernel(kernel, data, start, length, 0x12345678) for kernel in crc32c_kernels()}
                assert results == {crc32c(data[start : start + length], 0x12345678)}, (length, start)


@pytest.mark.parametrize("kernel", crc32c_kernels())
def test_chaining_is_concatenation(kernel: str) -> None:
    data = sample(9000)
    whole = crc32c_by_kernel(kernel, data, 0, len(data))
    for cut in (0, 1, 7, 8, 63, 479, 480, 481, 4079, 4080, 4096, 8999, 9000):
        first = crc32c_by_kernel(kernel, data, 0, cut)
        assert crc32c_by_kernel(kernel, data, cut, len(data) - cut, first) == whole
        assert crc32c(data[cut:], crc32c(data[:cut])) == whole


def test_a_flipped_bit_changes_the_sum() -> None:
    data = bytearray(sample(600))
    expected = crc32c(data)
    for bit in range(0, 4800, 13):
        data[bit // 8] ^= 1 << bit % 8
        assert crc32c(data) != expected
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 20_000])
def test_copy_sums_what_it_copied(length: int) -> None:
    data = sample(length)
    assert crc32c_copied(data) == (data, crc32c(data))
    assert crc32c_copied(data, 99) == (data, crc32c(data, 99))


def test_any_contiguous_buffer() -> None:
    numbers = np.arange(5000, dtype="<u8")
    assert crc32c(numbers) == crc32c(numbers.tobytes()) == crc32c(memoryview(numbers)) == crc32c(bytearray(numbers))
    with pytest.raises((BufferError, ValueError)):
        crc32c(numbers[::2])
    with pytest.raises(TypeError):
        crc32c("text")


def import_with(choice: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from detour.core.crc32c import *; print(crc32c_kernel(), crc32c(b'123456789'))"],
        env={**os.environ, "DETOUR_CRC32C": choice},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("kernel", crc32c_kernels())
def test_a_kernel_is_chosen_by_name(kernel: str) -> None:
    assert import_with(kernel).stdout.split() == [kernel, str(0xE3069283)]


def test_an_unknown_name_is_refused_aloud() -> None:
    done = import_with("fastest")
    assert done.returncode != 0
    assert "DETOUR_CRC32C='fastest': no such kernel" in done.stderr


@pytest.mark.skipif("hardware" in crc32c_kernels(), reason="the hardware kernel runs here")
def test_a_kernel_that_cannot_run_is_refused_aloud() -> None:
    done = import_with("hardware")
    assert done.returncode != 0
    assert "DETOUR_CRC32C=hardware cannot run" in done.stderr


def test_the_default_is_the_first_that_runs() -> None:
    if "DETOUR_CRC32C" not in os.environ:
        assert crc32c_kernel() == crc32c_kernels()[0]
