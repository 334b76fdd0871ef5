"""Who gives way when too many wait at the door."""
import random

import pytest

from detour.iscsi.admission import Admission, origin_of


def test_the_oldest_of_the_address_with_the_most_gives_way():
    door = Admission(guests_max=4, guests_per_address_max=3)
    for guest, address in enumerate(("192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.3")):
        assert door.enter(guest, address) is None
    assert door.enter(4, "192.0.2.4") == 1 and len(door) == 4
    door.leave(1)                                           # it was gone already
    assert len(door) == 4


def test_an_address_has_a_bound_of_its_own():
    door = Admission(guests_max=10, guests_per_address_max=2)
    assert [door.enter(guest, "192.0.2.1") for guest in range(4)] == [None, None, 0, 1]
    door.leave(2)
    assert door.enter(4, "192.0.2.1") is None and len(door) == 2


@pytest.mark.parametrize(("one", "other", "same"), [
    ("2001:db8::1", "2001:db8::ffff", True), ("2001:db8::1", "2001:db8:0:1::1", False),
    ("192.0.2.1", "192.0.2.2", False), ("::ffff:192.0.2.1", "192.0.2.1", True),
    ("fe80::1%eth0", "fe80::2%eth0", True), ("", "", True)])
def test_what_an_address_counts_as(one, other, same):
    assert (origin_of(one) == origin_of(other)) == same


def test_a_flood_never_pushes_out_who_came_alone():
    door, dice = Admission(guests_max=16, guests_per_address_max=8), random.Random(5)
    door.enter("host", "192.0.2.200")
    inside = ["host"]
    for number in range(2000):
        leaving = door.enter(number, f"192.0.2.{dice.randrange(3)}")
        inside.append(number)
        if leaving is not None:
            assert leaving != "host"
            inside.remove(leaving)
        elif dice.random() < 0.1:
            gone = inside.pop(dice.randrange(1, len(inside)))
            door.leave(gone)
        assert len(door) == len(inside) <= 16
