"""Cost of framing: PDUs taken from a stream and PDUs put together, with and without digests.

Small parameters in the normal suite, so that the benches cannot rot; real ones with DETOUR_BENCH=real, measured by
`pytest bench/micro/test_pdu.py --benchmark-enable`. The stream comes from one seed; the number of PDUs is checked.

Goals: a header of 48 bytes well below a microsecond; data at the speed of a copy, with digests of a copy and a sum.
Not measured here: sockets and system calls.
"""
from __future__ import annotations

import os
import random

import pytest

from detour.core._testing_wire import RxMachine, build_pdu

REAL = os.environ.get("DETOUR_BENCH") == "real"
SEED = 20260101
PDUS = 20_000 if REAL else 200
STREAM_BYTES_MAX = 64 * 2**20
DATA_BYTES = [0, 512, 8192, 65536]
PIECE_BYTES = 262144


def stream_of(data_bytes: int, digests: bool) -> tuple[bytes, int]:
    dice = random.Random(SEED)
    pdus = max(1, min(PDUS, STREAM_BYTES_MAX // (48 + data_bytes)))
    header, data = b"\x05" + dice.randbytes(3) + bytes(4) + dice.randbytes(40), dice.randbytes(data_bytes)
    return build_pdu(header, data, digests, digests) * pdus, pdus


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("data_bytes", DATA_BYTES)
def test_receive(benchmark, data_bytes: int, digests: bool) -> None:
    stream, pdus = stream_of(data_bytes, digests)
    rx = RxMachine(header_digest=digests, data_digest=digests)
    benchmark.extra_info |= {"pdus": pdus, "stream_bytes": len(stream)}
    assert benchmark(rx.count, stream, PIECE_BYTES) == pdus


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("data_bytes", DATA_BYTES)
def test_build(benchmark, data_bytes: int, digests: bool) -> None:
    header, data = b"\x25" + bytes(47), random.Random(SEED).randbytes(data_bytes)
    built = benchmark(build_pdu, header, data, digests, digests)
    assert RxMachine(header_digest=digests, data_digest=digests).feed(built)[0][1:] == (data, False)
