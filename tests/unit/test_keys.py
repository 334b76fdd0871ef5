"""The table of text keys and the result functions."""
import pytest

from detour.errors import ProtocolError
from detour.iscsi import keys
from detour.iscsi.keys import KEYS, Kind


def test_the_table_has_every_key_of_the_standard():
    assert {"AuthMethod", "HeaderDigest", "DataDigest", "MaxConnections", "SendTargets", "TargetName", "InitiatorName",
            "TargetAlias", "InitiatorAlias", "TargetAddress", "TargetPortalGroupTag", "InitialR2T", "ImmediateData",
            "MaxRecvDataSegmentLength", "MaxBurstLength", "FirstBurstLength", "DefaultTime2Wait",
            "DefaultTime2Retain", "MaxOutstandingR2T", "DataPDUInOrder", "DataSequenceInOrder", "ErrorRecoveryLevel",
            "SessionType", "TaskReporting", "iSCSIProtocolLevel", "X#NodeArchitecture", "IFMarker", "OFMarker",
            "IFMarkInt", "OFMarkInt"} == KEYS.keys()


@pytest.mark.parametrize("key", KEYS.values(), ids=lambda key: key.name)
def test_defaults_and_bounds_agree(key):
    if key.kind in (Kind.MINIMUM, Kind.MAXIMUM):
        assert key.low <= key.default <= key.high
    if key.kind is Kind.LIST:
        assert key.default in key.choices
    if key.kind in (Kind.AND, Kind.OR):
        assert key.default is True


@pytest.mark.parametrize("name, offer, own, outcome, text", [
    ("HeaderDigest", "CRC32C,None", ("CRC32C", "None"), "CRC32C", "CRC32C"),
    ("HeaderDigest", "None,CRC32C", ("CRC32C", "None"), "None", "None"),
    ("HeaderDigest", "CRC32C,None", ("None", "CRC32C"), "CRC32C", "CRC32C"),
    ("HeaderDigest", "CRC32C", ("None",), None, "Reject"),
    ("DataDigest", "None", ("CRC32C", "None"), "None", "None"),
    ("InitialR2T", "No", False, False, "No"),
    ("InitialR2T", "No", True, True, "Yes"),
    ("InitialR2T", "Yes", False, True, "Yes"),
    ("ImmediateData", "Yes", False, False, "No"),
    ("ImmediateData", "Yes", True, True, "Yes"),
    ("ImmediateData", "yes", True, None, "Reject"),
    ("MaxBurstLength", "16776192", 1048576, 1048576, "1048576"),
    ("MaxBurstLength", "0x4000", 1048576, 16384, "16384"),
    ("MaxBurstLength", "511", 1048576, None, "Reject"),
    ("MaxBurstLength", "many", 1048576, None, "Reject"),
    ("DefaultTime2Wait", "2", 0, 2, "2"),
    ("DefaultTime2Retain", "0", 20, 0, "0"),
    ("ErrorRecoveryLevel", "2", 0, 0, "0"),
    ("TaskReporting", "FastAbort,RFC3720", "RFC3720", "RFC3720", "RFC3720"),
])
def test_answers_of_a_responder(name, offer, own, outcome, text):
    assert keys.answer(KEYS[name], offer, own) == (outcome, text)


@pytest.mark.parametrize("name, offered, text, outcome", [
    ("MaxBurstLength", 1048576, "262144", 262144),
    ("MaxBurstLength", 1048576, None, 262144),              # the default
    ("MaxBurstLength", 1048576, "NotUnderstood", 262144),
    ("InitialR2T", True, None, True),                       # the offer decides, no answer needed
    ("InitialR2T", False, None, True),                      # the default
    ("ImmediateData", False, None, False),
    ("HeaderDigest", ("CRC32C", "None"), "CRC32C", "CRC32C"),
    ("HeaderDigest", ("CRC32C", "None"), "Reject", "None"),
    ("DefaultTime2Wait", 0, "2", 2),
])
def test_what_an_offer_comes_to(name, offered, text, outcome):
    assert keys.accept(KEYS[name], offered, text) == outcome


@pytest.mark.parametrize("name, offered, text", [
    ("MaxBurstLength", 65536, "65537"), ("MaxBurstLength", 65536, "100"), ("InitialR2T", True, "No"),
    ("ImmediateData", False, "Yes"), ("HeaderDigest", ("None",), "CRC32C"), ("DefaultTime2Wait", 5, "4")])
def test_impossible_answers_are_refused(name, offered, text):
    with pytest.raises(ProtocolError):
        keys.accept(KEYS[name], offered, text)


@pytest.mark.parametrize("text, number", [("0", 0), ("10", 10), ("0x1F", 31), ("0X1f", 31), ("-1", None), ("1.0", None),
                                          ("", None), ("0x", None), ("99999999999", None), ("\u0661", None)])
def test_numbers(text, number):
    assert keys.parse_number(text) == number


@pytest.mark.parametrize("text, address", [
    ("192.0.2.9:3261,1", ("192.0.2.9", 3261, 1)), ("192.0.2.9", ("192.0.2.9", 3260, None)),
    ("[2001:db8::1]:3260", ("2001:db8::1", 3260, None)), ("[::1],2", ("::1", 3260, 2)),
    ("gw.example:99", ("gw.example", 99, None))])
def test_target_addresses(text, address):
    assert keys.parse_target_address(text) == address


@pytest.mark.parametrize("bad", ["", "2001:db8::1:3260:x", "[::1", "host:0", "host:70000", "a b:1", "host:1,x"])
def test_wrong_target_addresses(bad):
    with pytest.raises(ProtocolError):
        keys.parse_target_address(bad)


@pytest.mark.parametrize("name, valid", [("iqn.2026-01.example:disk-1", True), ("eui.02004567A425678D", True),
                                         ("naa.52004567BA64678D", True), ("disk", False), ("iqn.a b", False),
                                         ("iqn." + "x" * 220, False), ("", False)])
def test_names(name, valid):
    assert keys.valid_name(name) is valid
