"""Who has not come to the gateway: by name and ISID, by name, by address; each path counts."""
import pytest

from detour.moving import Arrived, missing
from detour.redirect.base import MainSession

ONE, TWO = "iqn.2026-01.example:one", "iqn.2026-01.example:two"


def here(name, isid="", peer="192.0.2.5:40000"):
    return Arrived(name, isid, peer)


@pytest.mark.parametrize(("before", "arrived", "expected"), [
    ([], [], []),
    ([], [here(ONE)], []),
    ([MainSession("1", ONE)], [here(ONE)], []),
    ([MainSession("1", ONE)], [], [ONE]),
    ([MainSession("1", ONE)], [here(TWO)], [ONE]),
    ([MainSession("1", ONE.upper())], [here(ONE, "00023d000001")], []),
    # Each path of a host counts.
    ([MainSession("1", ONE), MainSession("2", ONE)], [here(ONE)], [ONE]),
    ([MainSession("1", ONE), MainSession("2", ONE)], [], [f"{ONE} (2 sessions)"]),
    ([MainSession("1", ONE), MainSession("2", ONE)], [here(ONE, "a"), here(ONE, "b")], []),
    # Where main tells the ISID, it has to be that session.
    ([MainSession("1", ONE, isid="00023D000001")], [here(ONE, "00023d000001")], []),
    ([MainSession("1", ONE, isid="00023d000001")], [here(ONE, "00023d000002")], [ONE]),
    ([MainSession("1", ONE), MainSession("2", ONE, isid="b")], [here(ONE, "b"), here(ONE, "a")], []),
    ([MainSession("1", ONE), MainSession("2", ONE, isid="b")], [here(ONE, "b")], [ONE]),
    # A main that tells addresses alone.
    ([MainSession("1", "192.0.2.5", "192.0.2.5")], [here(ONE)], []),
    ([MainSession("1", "192.0.2.6", "192.0.2.6")], [here(ONE)], ["192.0.2.6"]),
    ([MainSession("1", "fd00::5", "fd00::5")], [here(ONE, peer="[fd00:0::5]:99")], []),
    ([MainSession("1", "", "")], [here(ONE)], ["1"]),
])
def test_who_is_missing(before, arrived, expected):
    assert missing(before, arrived) == expected
