"""Who may wait at the door: connections that have no session yet, bounded in all and for each address.

At a bound the newcomer is let in and another gives way: the oldest connection of the address that has the most. A
login takes milliseconds, so what is old is idle or slow; and who opens a thousand connections only pushes out his own,
while a host with one login is the last to go. Addresses of IPv6 count by their /64 network: one host has a whole one.
"""
from __future__ import annotations

import ipaddress
from collections.abc import Hashable
from typing import Generic, TypeVar

Guest = TypeVar("Guest", bound=Hashable)


def origin_of(address: str) -> str:
    """What an address counts as: itself, or its /64 network."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


class Admission(Generic[Guest]):
    """Guests by origin, each in the order of coming. Cost: one step a guest, one pass over the origins at the bound."""

    def __init__(self, guests_max: int, guests_per_address_max: int) -> None:
        self.guests_max = guests_max
        self.guests_per_address_max = guests_per_address_max
        self._origins: dict[str, dict[Guest, None]] = {}
        self._origin_of: dict[Guest, str] = {}

    def __len__(self) -> int:
        return len(self._origin_of)

    def enter(self, guest: Guest, address: str) -> Guest | None:
        """Lets a guest in; answers the one that must leave for it, who counts no longer."""
        origin = origin_of(address)
        self._origins.setdefault(origin, {})[guest] = None
        self._origin_of[guest] = origin
        if len(self._origins[origin]) > self.guests_per_address_max:
            return self._oldest(origin)
        if len(self._origin_of) > self.guests_max:
            return self._oldest(max(self._origins, key=lambda name: len(self._origins[name])))
        return None

    def leave(self, guest: Guest) -> None:
        """The guest counts no longer; it may have left before."""
        origin = self._origin_of.pop(guest, None)
        if origin is None:
            return
        del self._origins[origin][guest]
        if not self._origins[origin]:
            del self._origins[origin]

    def _oldest(self, origin: str) -> Guest:
        guest = next(iter(self._origins[origin]))
        self.leave(guest)
        return guest
