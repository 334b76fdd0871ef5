"""The table of rights against SPC-4's and SBC-3's tables of what is allowed in the presence of reservations."""
from __future__ import annotations

import pytest

from detour.core._testing_reservation import Bench, right
from tests.support.reservations import CONFLICT, TYPES, parameters

LOGIN = 1
# What others may do under (write exclusive, exclusive access, a RESERVE of another): A allowed, C conflict.
# (opcode, service action or byte 4): the rest conflicts everywhere.
ALLOWED = {
    "AAA": ["03", "12", "25", "4d", "a0", "9e10", "a305", "a30a", "a30b", "a30e", "a30f",
            "1b000000 01", "1b000000 03", "1e000000 00"],
    "AAC": ["00"],
    "ACC": ["08", "28", "a8", "88", "2f", "af", "8f", "34", "90", "37", "b7", "1a", "5a", "1c", "3c", "84", "9e12",
            "a30c", "a30d"],
    "CCC": ["0a", "2a", "aa", "8a", "2e", "ae", "8e", "35", "91", "41", "93", "42", "89", "8b", "9c", "04", "48", "07",
            "3b", "3f", "83", "9f11", "15", "55", "1d", "4c", "a40a", "9e11", "9e13", "a301", "a31f",
            "1b000000 00", "1b000000 02", "1b000000 11", "1e000000 01", "1e000000 03", "c1", "ff"],
}
OWN = [0x16, 0x17, 0x56, 0x57, 0x5E, 0x5F]
ROWS = [(bytes.fromhex(text).ljust(16, b"\0"), expected) for expected, texts in ALLOWED.items() for text in texts]


def bench_with(kind: int) -> Bench:
    """Nexus 0 holds a reservation, nexus 1 is registered, nexus 2 is not."""
    bench = Bench([(f"iqn.2026-01.example:{number}", bytes(6)) for number in range(3)])
    bench.login_all()
    for number in (0, 1):
        assert bench.command(number, bytes.fromhex("5f000000000000001800"), parameters(0, number + 1))[0] == 0
    assert bench.command(0, bytes([0x5F, 1, kind, 0, 0, 0, 0, 0, 24, 0]), parameters(1, 0))[:2] == (0, 0)
    return bench


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("cdb, expected", ROWS)
def test_persistent_reservations(cdb, expected, kind):
    bench = bench_with(kind)
    allowed = expected[0 if kind in (1, 5, 7) else 1] == "A"
    assert bench.admit(0, cdb) == (0, 0)
    assert bench.admit(1, cdb) == (0 if allowed or kind > 3 else CONFLICT, 0)
    assert bench.admit(2, cdb) == (0 if allowed else CONFLICT, 0)


@pytest.mark.parametrize("cdb, expected", ROWS)
def test_a_reserve_of_another(cdb, expected):
    bench = bench_with(1)
    assert bench.command(0, bytes([0x5F, 3, 0, 0, 0, 0, 0, 0, 24, 0]), parameters(1, 0))[0] == 0
    bench.attentions(1)
    assert bench.command(0, bytes([0x16, 0, 0, 0, 0, 0]))[0] == 0
    assert bench.admit(0, cdb) == (0, 0)
    assert bench.admit(1, cdb) == (0 if expected[2] == "A" else CONFLICT, 0)


def test_every_opcode_that_is_not_named_conflicts():
    named = {cdb[0] for cdb, expected in ROWS if expected != "CCC"} | set(OWN)
    for opcode in range(256):
        if opcode not in named:
            assert right(bytes([opcode]) + bytes(15)) == 0, hex(opcode)


@pytest.mark.parametrize("opcode", OWN)
def test_reservation_commands_have_their_own_rules(opcode):
    assert bench_with(3).admit(2, bytes([opcode]) + bytes(15)) == (0, 0)
