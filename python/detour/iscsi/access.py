"""Who may reach a target: initiator names, exact or with wildcards, and networks of IPv4 and IPv6.

Both lists must admit a login; an empty list admits everyone. A refused login gets status 0202h (RFC 7143 section
11.13.5), and discovery does not show the target.
"""
from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from detour.errors import UsageError
from detour.iscsi.keys import valid_name

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
NAME_BYTES_MAX = 223        # RFC 7143 section 4.2.7.1


def parse_pattern(text: str) -> str:
    """An initiator name, in lower case as names are compared; "*" stands for any characters, "?" for one. UsageError
    when no iSCSI name can match it."""
    pattern = text.strip().lower()
    if "*" in pattern or "?" in pattern:
        known = len(pattern.encode()) <= NAME_BYTES_MAX and not re.search(r"[\s,;=/]", pattern)
    else:
        known = valid_name(pattern)
    if not known:
        raise UsageError(f"{text!r} is no initiator name", hint='Names look like "iqn.2026-01.example:host1"; "*" and '
                         '"?" stand for other characters.')
    return pattern


def parse_network(text: str) -> Network:
    """An address or a network in CIDR form. UsageError otherwise, also when host bits are set."""
    try:
        return ipaddress.ip_network(text.strip())
    except ValueError as error:
        raise UsageError(f"{text!r} is no network: {error}",
                         hint='Networks look like "192.0.2.0/24", "2001:db8::/32" or "192.0.2.7".') from None


def matches(pattern: str, name: str) -> bool:
    """Whether a name in lower case fits a pattern. Linear in both for each wildcard, whatever the name."""
    place = name_place = 0
    star, retry = -1, 0
    while name_place < len(name):
        if place < len(pattern) and pattern[place] == "*":
            star, retry = place, name_place
            place += 1
        elif place < len(pattern) and pattern[place] in ("?", name[name_place]):
            place, name_place = place + 1, name_place + 1
        elif star >= 0:
            retry += 1
            place, name_place = star + 1, retry
        else:
            return False
    return not pattern[place:].strip("*")


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """A peer's address as the socket tells it, perhaps with a zone; IPv4 where IPv6 only wraps it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@dataclass(frozen=True)
class Access:
    """The rules of one target."""

    initiators: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, initiators: Iterable[str] = (), networks: Iterable[str] = ()) -> Access:
        """Rules from texts. UsageError when one is malformed."""
        return cls(tuple(map(parse_pattern, initiators)), tuple(map(parse_network, networks)))

    def admits(self, initiator_name: str, host: str) -> bool:
        """Whether an initiator of this name may come from this address."""
        name = initiator_name.lower()
        if self.initiators and not any(matches(pattern, name) for pattern in self.initiators):
            return False
        if not self.networks:
            return True
        address = address_of(host)
        return address is not None and any(address in network for network in self.networks)


ADMIT_ALL = Access()
