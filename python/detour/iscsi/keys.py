"""Text keys of RFC 7143 section 13 as a table, and the result functions.

A key is *declarative* (one side states a value, no answer) or *negotiated* (offer and answer; the result function gives
the outcome). `answer` is what a responder says to an offer; `accept` is what the offering side makes of the answer.
Both end at the same value, which tests check over all of the table.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from detour.errors import ProtocolError

NOT_UNDERSTOOD = "NotUnderstood"
IRRELEVANT = "Irrelevant"
REJECT = "Reject"
NONE = "None"
RESERVED_ANSWERS = frozenset({NOT_UNDERSTOOD, IRRELEVANT, REJECT})

Value = str | int | bool


class Kind(Enum):
    """How the value of a key comes about."""

    DECLARED_TEXT = "declared text"
    DECLARED_NUMBER = "declared number"
    LIST = "the responder's choice of an offered list"
    AND = "boolean and"
    OR = "boolean or"
    MINIMUM = "smaller number"
    MAXIMUM = "larger number"
    OBSOLETE = "answered by a constant (section 13.25)"


class Phase(Enum):
    """When a key may be sent (the Use column of section 13)."""

    SECURITY = "security stage"
    LOGIN = "login phase"
    LEADING_LOGIN = "login of the leading connection"
    FULL_FEATURE = "full feature phase"
    ANY = "any time"


class Who(Enum):
    """Who may send the key first."""

    INITIATOR = "initiator"
    TARGET = "target"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Key:
    """One row: name, kind, default, bounds (numbers) or choices (lists), phase, sender, and whether discovery sessions
    have no use for it (answered "Irrelevant" there)."""

    name: str
    kind: Kind
    default: Value | None = None
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()
    phase: Phase = Phase.LOGIN
    who: Who = Who.BOTH
    normal_only: bool = False

    @property
    def declarative(self) -> bool:
        return self.kind in (Kind.DECLARED_TEXT, Kind.DECLARED_NUMBER)


_BYTES_MAX = 2**24 - 1


def _leading(name: str, kind: Kind, default: Value, low: int = 0, high: int = 0, choices: tuple[str, ...] = ()) -> Key:
    """A key of the leading connection of a normal session."""
    return Key(name, kind, default, low, high, choices, Phase.LEADING_LOGIN, normal_only=True)


_ROWS = (
    Key("AuthMethod", Kind.LIST, NONE, choices=("CHAP", NONE), phase=Phase.SECURITY),
    Key("HeaderDigest", Kind.LIST, NONE, choices=("CRC32C", NONE)),
    Key("DataDigest", Kind.LIST, NONE, choices=("CRC32C", NONE)),
    _leading("MaxConnections", Kind.MINIMUM, 1, 1, 65535),
    Key("SendTargets", Kind.DECLARED_TEXT, phase=Phase.FULL_FEATURE, who=Who.INITIATOR),
    Key("TargetName", Kind.DECLARED_TEXT, phase=Phase.ANY),
    Key("InitiatorName", Kind.DECLARED_TEXT, who=Who.INITIATOR),
    Key("TargetAlias", Kind.DECLARED_TEXT, phase=Phase.ANY, who=Who.TARGET),
    Key("InitiatorAlias", Kind.DECLARED_TEXT, phase=Phase.ANY, who=Who.INITIATOR),
    Key("TargetAddress", Kind.DECLARED_TEXT, phase=Phase.ANY, who=Who.TARGET),
    Key("TargetPortalGroupTag", Kind.DECLARED_NUMBER, low=0, high=65535, who=Who.TARGET),
    _leading("InitialR2T", Kind.OR, True),
    _leading("ImmediateData", Kind.AND, True),
    Key("MaxRecvDataSegmentLength", Kind.DECLARED_NUMBER, 8192, 512, _BYTES_MAX, phase=Phase.ANY),
    _leading("MaxBurstLength", Kind.MINIMUM, 262144, 512, _BYTES_MAX),
    _leading("FirstBurstLength", Kind.MINIMUM, 65536, 512, _BYTES_MAX),
    Key("DefaultTime2Wait", Kind.MAXIMUM, 2, 0, 3600, phase=Phase.LEADING_LOGIN),
    Key("DefaultTime2Retain", Kind.MINIMUM, 20, 0, 3600, phase=Phase.LEADING_LOGIN),
    _leading("MaxOutstandingR2T", Kind.MINIMUM, 1, 1, 65535),
    _leading("DataPDUInOrder", Kind.OR, True),
    _leading("DataSequenceInOrder", Kind.OR, True),
    Key("ErrorRecoveryLevel", Kind.MINIMUM, 0, 0, 2, phase=Phase.LEADING_LOGIN),
    Key("SessionType", Kind.DECLARED_TEXT, "Normal", who=Who.INITIATOR),
    _leading("TaskReporting", Kind.LIST, "RFC3720", choices=("RFC3720",)),
    _leading("iSCSIProtocolLevel", Kind.MINIMUM, 1, 0, 31),
    Key("X#NodeArchitecture", Kind.DECLARED_TEXT, phase=Phase.ANY),
    Key("IFMarker", Kind.OBSOLETE, "No"),
    Key("OFMarker", Kind.OBSOLETE, "No"),
    Key("IFMarkInt", Kind.OBSOLETE, REJECT),
    Key("OFMarkInt", Kind.OBSOLETE, REJECT),
)
KEYS: Mapping[str, Key] = MappingProxyType({row.name: row for row in _ROWS})

_NUMBER = re.compile(r"[0-9]{1,10}|0[xX][0-9a-fA-F]{1,8}")
_NAME = re.compile(r"(iqn\.[0-9]{4}-[0-9]{2}\.|eui\.|naa\.|iqn\.)[^\s,;=/]{1,219}")


def valid_name(name: str) -> bool:
    """Whether a text can be an iSCSI name (section 4.2.7): iqn., eui. or naa., at most 223 bytes."""
    return len(name.encode()) <= 223 and name.isprintable() and _NAME.fullmatch(name) is not None


def parse_number(text: str) -> int | None:
    """A numerical value (section 6.1), decimal or hexadecimal; None when it is none."""
    return int(text, 16 if text[:2] in ("0x", "0X") else 10) if _NUMBER.fullmatch(text) else None


def text_of(value: Value) -> str:
    """A value as it is sent."""
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return str(value)


def _read(key: Key, text: str) -> Value | None:
    """The value of an offered text, or None when it is outside of what the key allows (the list kind: its text)."""
    if key.kind in (Kind.AND, Kind.OR):
        return {"Yes": True, "No": False}.get(text)
    if key.kind in (Kind.MINIMUM, Kind.MAXIMUM, Kind.DECLARED_NUMBER):
        number = parse_number(text)
        return number if number is not None and key.low <= number <= key.high else None
    return text


def combine(key: Key, offered: Value, own: Value) -> Value:
    """The result function of a negotiated key that is no list."""
    if key.kind is Kind.AND:
        return bool(offered) and bool(own)
    if key.kind is Kind.OR:
        return bool(offered) or bool(own)
    if key.kind is Kind.MINIMUM:
        return min(int(offered), int(own))
    return max(int(offered), int(own))


def declared(key: Key, text: str) -> Value:
    """The value of a declarative key. ProtocolError when it is out of range."""
    value = _read(key, text)
    if value is None:
        raise ProtocolError(f"{key.name}={text[:64]} is outside of what the key allows")
    return value


def answer(key: Key, offer: str, own: Value | tuple[str, ...]) -> tuple[Value | None, str]:
    """Outcome and answer of a responder to an offer.

    own: the value it would have liked, or, for lists, what it takes: the first such of the offer (section 6.2.1).
    Outcome None: "Reject", and the key stays as it was (lists: nothing in common; others: a value that the key does not
    allow).
    """
    if key.kind is Kind.LIST:
        wanted = own if isinstance(own, tuple) else (str(own),)
        choice = next((item for item in offer.split(",") if item in wanted), None)
        return choice, REJECT if choice is None else choice
    value = _read(key, offer)
    if value is None or isinstance(own, tuple):
        return None, REJECT
    outcome = combine(key, value, own)
    return outcome, text_of(outcome)


def accept(key: Key, offered: Value | tuple[str, ...], text: str | None) -> Value:
    """Outcome for the side that offered, from the answer's text (None: no answer came).

    ProtocolError when the answer is no possible outcome of the offer. A key that was not understood, irrelevant,
    rejected or not answered keeps its default, except that booleans whose offer decides need no answer (section 6.2.2).
    """
    if text is None and isinstance(offered, bool) and offered == (key.kind is Kind.OR):
        return offered
    if text is None or text in RESERVED_ANSWERS:
        assert key.default is not None
        return key.default
    if key.kind is Kind.LIST:
        if not isinstance(offered, tuple) or text not in offered:
            raise ProtocolError(f"{key.name}={text[:64]} was answered, which was not offered")
        return text
    value = _read(key, text)
    if value is None or isinstance(offered, tuple) or combine(key, offered, value) != value:
        wanted = text_of(offered)  # type: ignore[arg-type]
        raise ProtocolError(f"{key.name}={text[:64]} is no possible answer to {wanted}")
    return value


def parse_target_address(text: str) -> tuple[str, int, int | None]:
    """Host, port and portal group tag of a TargetAddress value (section 13.8); ProtocolError when it is none."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^\s\[\]:,]+))(?::([0-9]{1,5}))?(?:,([0-9]{1,5}))?", text)
    port = int(match[3] or 3260) if match else 0
    if match is None or not text.isprintable() or not 0 < port < 65536:
        raise ProtocolError(f"TargetAddress={text[:128]!r} is no address")
    return match[1] or match[2], port, int(match[4]) if match[4] else None
