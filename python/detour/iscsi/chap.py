"""CHAP, one-way and mutual, both roles, without I/O (RFC 7143 sections 9.2.1 and 12.1.3, RFC 1994; SHA-1, SHA-256 and
SHA3-256 as registered with IANA).

    initiator                      target
    CHAP_A=<list>            ->
                             <-    CHAP_A CHAP_I CHAP_C
    CHAP_N CHAP_R            ->                            one-way
    CHAP_N CHAP_R CHAP_I CHAP_C -> <- CHAP_N CHAP_R        mutual

A machine answers one exchange and is of no use after it, however it ended. Whoever sends one of our open challenges
back, on the same or on another connection, wants us to compute what it cannot: it is refused. A process that never logs
in to itself asks for that between its two roles, too (`refuse_across_roles`). A wrong name and a wrong secret cost the
same work and get the same answer.
"""
from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from detour.errors import LoginError, ProtocolError, UsageError
from detour.iscsi.keys import parse_number
from detour.urls import Secret

# CHAP_A numbers, strongest first: the order in which a target of ours chooses
ALGORITHMS: Mapping[int, Callable[[bytes], bytes]] = {
    8: lambda data: hashlib.sha3_256(data).digest(),
    7: lambda data: hashlib.sha256(data).digest(),
    6: lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    5: lambda data: hashlib.md5(data, usedforsecurity=False).digest(),
}
ALGORITHM_NAMES = {"sha3-256": 8, "sha-256": 7, "sha-1": 6, "md5": 5}
# The order in which they are offered, as targets take the first that they know. 7 comes last: tgt and its relatives
# take it for SHA-1.
OFFERED = (8, 6, 5, 7)
CHALLENGE_BYTES = 32            # as long as the longest hash (section 9.2.1)
CHALLENGE_BYTES_MAX = 1024      # section 12.1.3
SECRET_BYTES_MIN = 12           # 96 bits: shorter secrets are for links that are protected otherwise (section 9.2.1)
SECRET_BYTES_MAX = 1024
USER_BYTES_MAX = 255

Pairs = list[tuple[str, str]]

class _Book:
    """Challenges that machines of one role have given, each for as long as its machine lives."""

    def __init__(self) -> None:
        self.given: WeakValueDictionary[bytes, object] = WeakValueDictionary()
        self.others: tuple[_Book, ...] = ()

    def give(self, machine: object, random: Callable[[int], bytes]) -> bytes:
        challenge = random(CHALLENGE_BYTES)
        self.given[challenge] = machine
        return challenge

    def take(self, text: str) -> bytes:
        """The peer's challenge. LoginError when it is one of ours."""
        challenge = decode_binary(text, CHALLENGE_BYTES_MAX)
        if any(challenge in book.given for book in (self, *self.others)):
            raise refused("our own CHAP challenge came back")
        return challenge


_as_target, _as_initiator = _Book(), _Book()


def refuse_across_roles() -> None:
    """From now on no machine of this process answers a challenge that a machine of the other role gave. For the
    gateway: a false main could have it answer what its own door asks of hosts."""
    _as_target.others, _as_initiator.others = (_as_initiator,), (_as_target,)


@dataclass(frozen=True)
class Credentials:
    """A CHAP name with its secret. ValueError when they cannot be sent or hashed."""

    user: str
    secret: Secret = field(repr=False)

    def __post_init__(self) -> None:
        if not self.user.isprintable() or not 0 < len(self.user.encode()) <= USER_BYTES_MAX:
            raise ValueError(f"a CHAP user has 1 to {USER_BYTES_MAX} printable characters")
        if not 0 < len(self.secret.reveal().encode()) <= SECRET_BYTES_MAX:
            raise ValueError(f"the CHAP secret of {self.user} must have 1 to {SECRET_BYTES_MAX} bytes")

    @property
    def weak(self) -> bool:
        """The secret is shorter than the 96 bits that the standard asks for without IPsec."""
        return len(self.secret.reveal().encode()) < SECRET_BYTES_MIN


@dataclass(frozen=True)
class ChapAuth:
    """What a target demands: one of `users`; `mutual` is what it proves itself with when the initiator asks."""

    users: tuple[Credentials, ...]
    mutual: Credentials | None = None
    algorithms: tuple[int, ...] = tuple(ALGORITHMS)

    def __post_init__(self) -> None:
        if self.mutual and any(user.secret == self.mutual.secret for user in self.users):
            raise ValueError("CHAP secrets of the two directions must differ (RFC 7143 section 9.2.1)")
        if len({user.user for user in self.users}) != len(self.users):
            raise ValueError("a CHAP user is named twice")
        if not self.algorithms or any(number not in ALGORITHMS for number in self.algorithms):
            raise ValueError(f"CHAP algorithms are of {', '.join(map(str, ALGORITHMS))}")

    @property
    def weak_users(self) -> list[str]:
        """Names whose secrets are shorter than they should be."""
        return [one.user for one in (*self.users, *([self.mutual] if self.mutual else [])) if one.weak]


def algorithm_number(name: str) -> int:
    """CHAP_A of a name. UsageError when it is none."""
    number = ALGORITHM_NAMES.get(name.lower())
    if number is None:
        raise UsageError(f"{name!r} is no CHAP algorithm; known are {', '.join(ALGORITHM_NAMES)}")
    return number


def encode_binary(data: bytes) -> str:
    return "0x" + data.hex()


def decode_binary(text: str, length_bytes_max: int) -> bytes:
    """A binary value, hexadecimal (0x) or base64 (0b). ProtocolError when it is none or too long."""
    try:
        if re.fullmatch(r"0[xX][0-9a-fA-F]+", text):
            data = bytes.fromhex(text[2:].rjust(len(text[2:]) + len(text) % 2, "0"))
        elif text[:2] in ("0b", "0B"):
            data = base64.b64decode(text[2:], validate=True)
        else:
            raise ValueError
    except (ValueError, binascii.Error):
        raise ProtocolError("a CHAP value is neither hexadecimal nor base64") from None
    if not 0 < len(data) <= length_bytes_max:
        raise ProtocolError(f"a CHAP value has {len(data)} bytes; 1 to {length_bytes_max} are allowed")
    return data


def response_of(algorithm: int, identifier: int, secret: Secret, challenge: bytes) -> bytes:
    """The CHAP response: hash of identifier, secret and challenge."""
    return ALGORITHMS[algorithm](bytes([identifier]) + secret.reveal().encode() + challenge)


def _take(values: dict[str, str], *names: str, also: tuple[str, ...] = ()) -> list[str]:
    """Values of the keys that this step demands; `also` may come besides, and no other."""
    missing = [name for name in names if name not in values]
    if missing:
        raise ProtocolError(f"{missing[0]} is missing in the CHAP exchange")
    if any(name not in names and name not in also for name in values):
        raise ProtocolError("a CHAP key came out of turn")
    return [values[name] for name in names]


def _identifier(text: str) -> int:
    number = parse_number(text)
    if number is None or number > 255:
        raise ProtocolError("CHAP_I is no number from 0 to 255")
    return number


def refused(sentence: str) -> LoginError:
    return LoginError(sentence, status_class=2, status_detail=1)


class ChapTarget:
    """The authenticating side. `step` takes the initiator's CHAP keys and answers ours; `done` tells when it is proven.
    LoginError (0201) when the name or response is wrong, ProtocolError when keys are missing, malformed or too many."""

    def __init__(self, auth: ChapAuth, random: Callable[[int], bytes] = os.urandom) -> None:
        self._auth = auth
        self._random = random
        self._algorithm = 0
        self._identifier = 0
        self._challenge = b""
        self._spent = False         # the one response to our challenge has come
        self.done = False
        self.user = ""

    def step(self, values: dict[str, str]) -> Pairs:
        if self._spent:
            raise ProtocolError("the CHAP exchange is over")
        if self._algorithm == 0:
            return self._challenge_initiator(*_take(values, "CHAP_A"))
        self._spent = True
        return self._check(values)

    def _challenge_initiator(self, offered: str) -> Pairs:
        numbers = set(map(parse_number, offered.split(",")))
        wanted = [number for number in self._auth.algorithms if number in numbers]
        if not wanted:
            raise refused("the initiator offers no CHAP algorithm that is accepted here")
        self._algorithm = wanted[0]
        self._identifier = self._random(1)[0]
        self._challenge = _as_target.give(self, self._random)
        return [("CHAP_A", str(self._algorithm)), ("CHAP_I", str(self._identifier)),
                ("CHAP_C", encode_binary(self._challenge))]

    def _check(self, values: dict[str, str]) -> Pairs:
        name, response_text = _take(values, "CHAP_N", "CHAP_R", also=("CHAP_I", "CHAP_C"))
        response = decode_binary(response_text, CHALLENGE_BYTES_MAX)
        known, secret = self._look_up(name)
        expected = response_of(self._algorithm, self._identifier, secret, self._challenge)
        if not (hmac.compare_digest(expected, response) and known):
            raise refused("CHAP name or secret is wrong")
        answer = self._prove(values) if "CHAP_C" in values or "CHAP_I" in values else []
        self.done, self.user = True, name
        return answer

    def _look_up(self, name: str) -> tuple[bool, Secret]:
        """Whether the name is known, and its secret or one that nobody has. Every name is compared, so that the time
        does not tell which of them exists."""
        known, secret = False, Secret(self._random(16).hex())
        for user in self._auth.users:
            if hmac.compare_digest(user.user.encode(), name.encode()):
                known, secret = True, user.secret
        return known, secret

    def _prove(self, values: dict[str, str]) -> Pairs:
        identifier, challenge_text = _take(values, "CHAP_I", "CHAP_C", also=("CHAP_N", "CHAP_R"))
        challenge = _as_target.take(challenge_text)
        if self._auth.mutual is None:
            raise refused("the initiator asks for mutual CHAP, which is not set up here")
        response = response_of(self._algorithm, _identifier(identifier), self._auth.mutual.secret, challenge)
        return [("CHAP_N", self._auth.mutual.user), ("CHAP_R", encode_binary(response))]


class ChapInitiator:
    """The side that proves itself, and with `mutual` demands the same of the target."""

    def __init__(self, own: Credentials, mutual: Credentials | None = None,
                 algorithms: tuple[int, ...] = OFFERED, random: Callable[[int], bytes] = os.urandom) -> None:
        if mutual and mutual.secret == own.secret:
            raise ValueError("CHAP secrets of the two directions must differ (RFC 7143 section 9.2.1)")
        self._own = own
        self._mutual = mutual
        self._algorithms = algorithms
        self._random = random
        self._algorithm = 0
        self._identifier = 0
        self._challenge = b""
        self._spent = False          # the one answer to our challenge has come
        self.answered = False        # our response has been given
        self.done = False

    def first(self) -> Pairs:
        return [("CHAP_A", ",".join(map(str, self._algorithms)))]

    def step(self, values: dict[str, str]) -> Pairs:
        """Answers our next keys; nothing when the exchange is over (`done`)."""
        if self.done or self._spent:
            raise ProtocolError("the CHAP exchange is over")
        if self.answered:
            self._spent = True
            self._check(values)
            return []
        algorithm, identifier, challenge_text = _take(values, "CHAP_A", "CHAP_I", "CHAP_C")
        self._algorithm = parse_number(algorithm) or 0
        if self._algorithm not in self._algorithms:
            raise ProtocolError("the target chose a CHAP algorithm that was not offered")
        challenge = _as_initiator.take(challenge_text)
        response = response_of(self._algorithm, _identifier(identifier), self._own.secret, challenge)
        pairs = [("CHAP_N", self._own.user), ("CHAP_R", encode_binary(response))]
        self.answered = True
        if self._mutual is None:
            self.done = True
            return pairs
        self._identifier = self._random(1)[0]
        self._challenge = _as_initiator.give(self, self._random)
        return [*pairs, ("CHAP_I", str(self._identifier)), ("CHAP_C", encode_binary(self._challenge))]

    def _check(self, values: dict[str, str]) -> None:
        assert self._mutual is not None
        if "CHAP_R" not in values:
            raise refused("the target did not prove who it is (mutual CHAP)")
        name, response_text = _take(values, "CHAP_N", "CHAP_R")
        response = decode_binary(response_text, CHALLENGE_BYTES_MAX)
        expected = response_of(self._algorithm, self._identifier, self._mutual.secret, self._challenge)
        proven = hmac.compare_digest(expected, response)
        if not (hmac.compare_digest(self._mutual.user.encode(), name.encode()) and proven):
            raise refused("the target could not prove who it is (mutual CHAP)")
        self.done = True
