"""Persistent reservations as a state, and the commands that lead main's from one to another (SPC-4 5.13). Pure.

`Plan.next` looks at main as it is and names one PERSISTENT RESERVE OUT; whoever sends it reads main again and asks
anew, so that nothing depends on how a target fills the gaps of the standard. What narrows who may write comes before
what widens it: the reservation first, then registrations that go, then those that come, the gateway's own last.

A port's registration can only be made by that port. What goes is taken away by the gateway's own port (PREEMPT, or
CLEAR where nothing stays), so that main need not let in a host that others have shut out.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from detour.iscsi.registrations import descriptors, port_of

REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT = range(5)
APTPL, ALL_TARGET_PORTS = 0x01, 0x04
ALL_REGISTRANTS = (7, 8)                # types whose holders are all who are registered
REGISTRANTS_TYPES = (5, 6, 7, 8)        # who is registered may write
EXCLUSIVE_TYPES = (1, 3)                # the holder alone may write
PARAMETERS_BYTES = 24


@dataclass(frozen=True, order=True)
class Port:
    """An initiator port; the name in lower case."""

    name: str
    isid: bytes

    def __str__(self) -> str:
        return f"{self.name} (ISID {self.isid.hex()})"


@dataclass(frozen=True)
class Row:
    key: int
    all_ports: bool = False             # registered at all target ports (ALL_TG_PT)


@dataclass(frozen=True)
class Registrations:
    """`holder`: None without a reservation, and with one of all registrants. `foreign`: keys of ports that are none of
    iSCSI. `durable`: they outlive power (APTPL)."""

    rows: Mapping[Port, Row] = field(default_factory=dict)
    kind: int = 0
    holder: Port | None = None
    durable: bool = False
    foreign: tuple[int, ...] = ()

    def same_reservation(self, other: Registrations) -> bool:
        return self.kind == other.kind and (self.kind in ALL_REGISTRANTS or self.holder == other.holder)


@dataclass(frozen=True)
class Step:
    """One PERSISTENT RESERVE OUT that `actor` sends."""

    actor: Port
    action: int
    key: int = 0
    action_key: int = 0
    kind: int = 0
    flags: int = 0

    def command(self) -> tuple[bytes, bytes]:
        """CDB and parameter list (SPC-4 6.16)."""
        return (struct.pack(">BBBxxIx", 0x5F, self.action, self.kind, PARAMETERS_BYTES),
                struct.pack(">QQ4xB3x", self.key, self.action_key, self.flags))


def parse_registrations(status: bytes, durable: bool = False) -> Registrations:
    """READ FULL STATUS data."""
    rows: dict[Port, Row] = {}
    kind, holder, foreign = 0, None, []
    for descriptor in descriptors(status):
        key, flags, type_ = struct.unpack_from(">Q4xBB", descriptor)
        found = port_of(descriptor)
        if flags & 1:
            kind = type_ & 0x0F
        if found is None:
            foreign.append(key)
            continue
        port = Port(*found)
        rows.setdefault(port, Row(key, bool(flags & 2)))
        if flags & 1 and kind not in ALL_REGISTRANTS:
            holder = port
            rows[port] = Row(key, bool(flags & 2))
    return Registrations(rows, kind, holder, durable, tuple(foreign))


def after(main: Registrations, step: Step) -> Registrations | None:
    """What main has after a REGISTER or RESERVE that it took; None for other steps."""
    rows = {port: row for port, row in main.rows.items() if port != step.actor}
    if step.action == REGISTER and step.action_key:
        rows[step.actor] = Row(step.action_key, bool(step.flags & ALL_TARGET_PORTS))
        return Registrations(rows, main.kind, main.holder, bool(step.flags & APTPL), main.foreign)
    if step.action == RESERVE:
        holder = None if step.kind in ALL_REGISTRANTS else step.actor
        return Registrations(main.rows, step.kind, holder, main.durable, main.foreign)
    return None


class Plan:
    """From main as it is to `wanted`, with the gateway's `own` port as helper, whose key is `own_key`.

    known: ports whose registrations are the hosts' of this detour; others (a host that came to main by another
    transport meanwhile) are left alone. keep_own: the gateway goes on writing to main, and stays, or is made, a
    registrant where main's reservation asks for that; else it does not stay one."""

    def __init__(self, wanted: Registrations, own: Port, own_key: int, known: frozenset[Port],
                 keep_own: bool = False) -> None:
        self.wanted, self.own, self.own_key, self.keep_own = wanted, own, own_key, keep_own
        self.known = known | wanted.rows.keys()
        self._failed: set[Step] = set()

    def next(self, main: Registrations, failed: set[Step]) -> Step | None:
        """None: nothing is left that could be done. failed: steps that main does not take."""
        self._failed = failed
        return next((step for step in self._steps(main) if step not in failed), None)

    def differences(self, main: Registrations) -> list[str]:
        """What of main is not as wanted: parts of a sentence."""
        wanted, found = self.wanted, []
        for port, row in sorted(wanted.rows.items()):
            there = main.rows.get(port)
            if there is None or there.key != row.key:
                found.append(f"{port} is not registered with its key")
        found += [f"{port} is still registered" for port in sorted(main.rows)
                  if port in self.known and port not in wanted.rows]
        if not main.same_reservation(wanted) and not self._is_strangers(main):
            holder = f" of {wanted.holder}" if wanted.holder else ""
            found.append(f"the reservation{holder} (type {wanted.kind}) is not there" if wanted.kind
                         else f"a reservation (type {main.kind}) is still there")
        if wanted.rows and wanted.durable != main.durable:
            found.append("whether registrations outlive a power cut (APTPL) is not as hosts have set it")
        return found

    def may_write(self, main: Registrations) -> bool:
        """Whether main takes what the gateway writes."""
        if main.kind == 0 or main.holder == self.own:
            return True
        return main.kind in REGISTRANTS_TYPES and self.own in main.rows

    def _steps(self, main: Registrations) -> Iterator[Step]:
        """Whatever could bring main nearer, the best first."""
        yield from self._clear(main)
        if main.kind in EXCLUSIVE_TYPES and self.wanted.kind in REGISTRANTS_TYPES:
            yield from self._removals(main, main.holder)        # else they could write in between
        yield from self._reservation(main)
        yield from self._removals(main)
        for port, row in sorted(self.wanted.rows.items()):
            if port not in main.rows or main.rows[port].key != row.key:
                yield from self._registration(main, port)
        if self.wanted.rows and self.wanted.durable != main.durable:
            key = self._key(main) or self.own_key
            yield from self._by_own(main, Step(self.own, REGISTER, key, key, flags=self._flags()))
        if self.keep_own and main.kind in REGISTRANTS_TYPES and self.own not in main.rows:
            yield Step(self.own, REGISTER, 0, self.own_key, flags=self._flags())
        if not self.keep_own and self.own in main.rows and self.own not in self.wanted.rows:
            yield Step(self.own, REGISTER, self._key(main), 0, flags=self._flags())

    def _key(self, main: Registrations) -> int:
        return main.rows[self.own].key if self.own in main.rows else 0

    def _flags(self, row: Row | None = None) -> int:
        return (APTPL if self.wanted.durable else 0) | (ALL_TARGET_PORTS if row is not None and row.all_ports else 0)

    def _as_own(self, main: Registrations, action: int, action_key: int = 0) -> Iterator[Step]:
        key = self._key(main) or self.own_key
        yield from self._by_own(main, Step(self.own, action, key, action_key, main.kind))

    def _by_own(self, main: Registrations, step: Step) -> Iterator[Step]:
        """By the gateway's port, which is registered before; not for a step that has failed already."""
        if self.own in main.rows:
            yield step
        elif step not in self._failed:
            yield Step(self.own, REGISTER, 0, self.own_key, flags=self._flags())

    def _registration(self, main: Registrations, port: Port) -> Iterator[Step]:
        row = self.wanted.rows[port]
        old = main.rows[port].key if port in main.rows else 0
        yield Step(port, REGISTER, old, row.key, flags=self._flags(row))
        if row.all_ports:
            yield Step(port, REGISTER, old, row.key, flags=self._flags())

    def _strangers_keys(self, main: Registrations) -> set[int]:
        return {row.key for port, row in main.rows.items() if port not in self.known and port != self.own} \
            | set(main.foreign)

    def _is_strangers(self, main: Registrations) -> bool:
        """Main's reservation is of nobody that the gateway knows."""
        if main.kind in ALL_REGISTRANTS:
            return not main.rows.keys() & (self.known | {self.own})
        return main.kind != 0 and main.holder != self.own and main.holder not in self.known

    def _clear(self, main: Registrations) -> Iterator[Step]:
        if not self.wanted.rows and main.rows.keys() - {self.own} and not self._strangers_keys(main):
            yield from self._as_own(main, CLEAR)

    def _reservation(self, main: Registrations) -> Iterator[Step]:
        wanted = self.wanted
        if main.same_reservation(wanted) or self._is_strangers(main):
            return
        if wanted.kind == 0:
            yield from self._release(main)
            return
        right = [port for port, row in sorted(wanted.rows.items()) if main.rows.get(port) == row]
        actor = wanted.holder or next(iter(right), None) or min(wanted.rows)
        if actor not in main.rows or main.rows[actor].key != wanted.rows[actor].key:
            yield from self._registration(main, actor)
            return
        key = wanted.rows[actor].key
        if main.kind == 0:
            yield Step(actor, RESERVE, key, 0, wanted.kind)
            return
        strangers = self._strangers_keys(main)
        held_by = main.rows[main.holder].key if main.holder is not None else 0
        if held_by not in strangers and not (main.holder is None and strangers):
            yield Step(actor, PREEMPT, key, held_by, wanted.kind)
        yield from self._release(main)

    def _release(self, main: Registrations) -> Iterator[Step]:
        holder = main.holder
        if holder is None or holder == self.own:
            yield from self._as_own(main, RELEASE)
        elif holder in self.wanted.rows:
            yield Step(holder, RELEASE, main.rows[holder].key, 0, main.kind)
        else:
            if main.rows[holder].key not in self._strangers_keys(main):
                yield from self._as_own(main, PREEMPT, main.rows[holder].key)
            yield Step(holder, REGISTER, main.rows[holder].key, 0, flags=self._flags())

    def _removals(self, main: Registrations, but: Port | None = None) -> Iterator[Step]:
        holders = {main.rows[main.holder].key} if main.holder is not None else set()
        staying = {main.rows[port].key for port in self.wanted.rows if port in main.rows}
        shared = self._strangers_keys(main) | holders | staying
        for port, row in sorted(main.rows.items()):
            if port in self.wanted.rows or port in (self.own, but) or port not in self.known:
                continue
            if row.key not in shared:
                yield from self._as_own(main, PREEMPT, row.key)
            yield Step(port, REGISTER, row.key, 0, flags=self._flags())
