"""Access rules: names with wildcards, networks, and what is no rule."""
import pytest

from detour.errors import UsageError
from detour.iscsi.access import Access, matches, parse_network, parse_pattern

NAME = "iqn.2026-01.example:host1"


@pytest.mark.parametrize("pattern, name, expected", [
    (NAME, NAME, True), (NAME, NAME + "2", False), (NAME + "2", NAME, False), ("iqn.2026-01.example:*", NAME, True),
    ("*:host?", NAME, True), ("*:host??", NAME, False), ("*", NAME, True), ("*host1*", NAME, True), ("?*?", "ab", True),
    ("?*?", "a", False), ("*a*b", "xaxbxa", False), ("*a*b", "xaxbxab", True), ("a.c", "abc", False), ("", "", True),
    ("", "a", False), ("**", "", True)])
def test_wildcards(pattern, name, expected):
    assert matches(pattern, name) is expected


def test_a_long_name_costs_little():
    assert not matches("*a" * 100 + "b", "a" * 223)


def test_names_are_compared_without_case():
    assert Access.of([NAME.upper().replace("IQN.", "iqn.")]).admits(NAME.upper(), "192.0.2.1")


@pytest.mark.parametrize("networks, host, expected", [
    (["192.0.2.0/24"], "192.0.2.77", True), (["192.0.2.0/24"], "192.0.3.1", False), (["192.0.2.7"], "192.0.2.7", True),
    (["192.0.2.7"], "192.0.2.8", False), (["2001:db8::/32"], "2001:db8:1::5", True), (["2001:db8::/32"], "::1", False),
    (["192.0.2.0/24"], "::ffff:192.0.2.9", True), (["fe80::/10"], "fe80::1%eth0", True),
    (["0.0.0.0/0"], "2001:db8::1", False), (["192.0.2.0/24", "::1"], "::1", True),
    (["192.0.2.0/24"], "nonsense", False), ([], "nonsense", True)])
def test_networks(networks, host, expected):
    assert Access.of(networks=networks).admits(NAME, host) is expected


def test_both_lists_must_admit():
    rules = Access.of(["*:host1"], ["192.0.2.0/24"])
    assert rules.admits(NAME, "192.0.2.1")
    assert not rules.admits(NAME + "x", "192.0.2.1") and not rules.admits(NAME, "198.51.100.1")


def test_without_rules_everyone_is_admitted():
    assert Access().admits("anything", "")


@pytest.mark.parametrize("text", ["", "host1", "iqn.2026-01.example:a b", "iqn. *", "iqn.*,x", "*" * 300])
def test_what_is_no_name(text):
    with pytest.raises(UsageError):
        parse_pattern(text)


@pytest.mark.parametrize("text", ["", "192.0.2.1/24", "192.0.2.0/33", "example.org", "1:2", "192.0.2"])
def test_what_is_no_network(text):
    with pytest.raises(UsageError):
        parse_network(text)
