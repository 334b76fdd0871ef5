"""However a stream of PDUs is cut into pieces, the same PDUs come out (core/pdu)."""
from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from detour.core._testing_wire import RxMachine, WireError, build_pdu

PDUS = st.lists(
    st.tuples(
        st.binary(min_size=48, max_size=48),
        st.integers(0, 255).map(lambda words: bytes(i & 0xFF for i in range(words * 4))),
        st.binary(max_size=300) | st.integers(0, 9000).map(lambda n: b"\x5a" * n),
    ),
    min_size=1, max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(PDUS, st.booleans(), st.booleans(), st.lists(st.integers(1, 2000), min_size=1, max_size=40))
def test_any_split(pdus: list[tuple[bytes, bytes, bytes]], header_digest: bool, data_digest: bool,
                   pieces: list[int]) -> None:
    stream = b"".join(build_pdu(bhs + ahs, data, header_digest, data_digest) for bhs, ahs, data in pdus)
    rx = RxMachine(header_digest=header_digest, data_digest=data_digest)
    done, start, turn = [], 0, 0
    while start < len(stream):
        piece = pieces[turn % len(pieces)]
        done += rx.feed(stream[start:start + piece])
        start += piece
        turn += 1
    assert [(header[8:], data, bad) for header, data, bad in done] == [
        (bhs[8:] + ahs, data, False) for bhs, ahs, data in pdus]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=4000), st.booleans(), st.booleans())
def test_noise_ends_in_pdus_or_an_error(noise: bytes, header_digest: bool, data_digest: bool) -> None:
    rx = RxMachine(data_bytes_max=2048, header_digest=header_digest, data_digest=data_digest)
    try:
        done = rx.feed(noise)
    except WireError as error:
        assert error.status in (-5, -6)
    else:
        assert sum(len(header) + len(data or b"") for header, data, _ in done) <= len(noise)
