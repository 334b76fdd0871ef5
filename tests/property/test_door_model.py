"""CHAP machines and access rules against whatever comes: only errors that are meant, and nobody comes in by luck."""
from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detour.errors import LoginError, ProtocolError
from detour.iscsi.access import matches
from detour.iscsi.chap import ChapAuth, ChapInitiator, ChapTarget, decode_binary, encode_binary
from tests.support.logins import HOST, MAIN

AUTH = ChapAuth((HOST,), MAIN)
KNOWN = ["5", "7", "8,5", "0x5", "256", "0", HOST.user, MAIN.user, "0x", "0b", "0x00", "0bAA=="]
VALUES = st.one_of(st.sampled_from(KNOWN), st.text(max_size=40), st.binary(max_size=40).map(encode_binary))
KEYS = st.sampled_from(["CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R", "CHAP_X"])
STEPS = st.lists(st.dictionaries(KEYS, VALUES, max_size=5), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_a_target_lets_nobody_in_who_knows_no_secret(steps):
    target = ChapTarget(AUTH)
    try:
        for values in steps:
            target.step(values)
    except (LoginError, ProtocolError):
        pass
    assert not target.done and not target.user


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_an_initiator_trusts_no_target_that_knows_no_secret(steps):
    initiator = ChapInitiator(HOST, MAIN)
    try:
        for values in steps:
            said = dict(initiator.step(values))
            assert HOST.secret.reveal() not in str(said) and MAIN.secret.reveal() not in str(said)
    except (LoginError, ProtocolError):
        pass
    assert not initiator.done


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=64))
def test_binary_values_come_back(data):
    assert decode_binary(encode_binary(data), 64) == data
    with pytest.raises(ProtocolError):
        decode_binary(encode_binary(data), len(data) - 1)


@settings(max_examples=300, deadline=None)
@given(st.text("ab*?", max_size=8), st.text("ab", max_size=10))
def test_wildcards_are_those_of_the_shell(pattern, name):
    assert matches(pattern, name) == fnmatch.fnmatchcase(name, pattern)
