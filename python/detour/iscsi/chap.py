"""CHAP, one-way and mutual, both roles, without I/O (RFC 7143 section 12.1.3, RFC 1994; SHA-256 and SHA3-256 as
registered by RFC 7143).

    initiator                      target
    CHAP_A=<list>            ->
                             <-    CHAP_A CHAP_I CHAP_C
    CHAP_N CHAP_R            ->                            one-way
    CHAP_N CHAP_R CHAP_I CHAP_C -> <- CHAP_N CHAP_R        mutual
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

from detour.errors import LoginError, ProtocolError
from detour.iscsi.keys import parse_number
from detour.urls import Secret

# CHAP_A numbers, strongest first: the order in which a target of ours chooses
ALGORITHMS: Mapping[int, Callable[[bytes], bytes]] = {
    8: lambda data: hashlib.sha3_256(data).digest(),
    7: lambda data: hashlib.sha256(data).digest(),
    6: lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    5: lambda data: hashlib.md5(data, usedforsecurity=False).digest(),
}
# The order in which they are offered, as targets take the first that they know. 7 comes last: tgt and its relatives
# take it for SHA-1.
OFFERED = (8, 6, 5, 7)
CHALLENGE_BYTES = 32
CHALLENGE_BYTES_MAX = 1024      # section 12.1.3

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Credentials:
    """A CHAP name with its secret."""

    user: str
    secret: Secret = field(repr=False)


@dataclass(frozen=True)
class ChapAuth:
    """What a target demands: one of `users`; `mutual` is what it proves itself with when the initiator asks."""

    users: tuple[Credentials, ...]
    mutual: Credentials | None = None
    algorithms: tuple[int, ...] = tuple(ALGORITHMS)

    def __post_init__(self) -> None:
        if self.mutual and any(user.secret == self.mutual.secret for user in self.users):
            raise ValueError("CHAP secrets of the two directions must differ (RFC 7143 section 9.2.1)")


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


def _take(values: dict[str, str], *names: str) -> list[str]:
    """Values of the keys that this step demands."""
    missing = [name for name in names if name not in values]
    if missing:
        raise ProtocolError(f"{missing[0]} is missing in the CHAP exchange")
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
    LoginError (0201) when the name or response is wrong, ProtocolError when keys are missing or malformed."""

    def __init__(self, auth: ChapAuth, random: Callable[[int], bytes] = os.urandom) -> None:
        self._auth = auth
        self._random = random
        self._algorithm = 0
        self._identifier = 0
        self._challenge = b""
        self.done = False
        self.user = ""

    def step(self, values: dict[str, str]) -> Pairs:
        if self._algorithm == 0:
            return self._challenge_initiator(*_take(values, "CHAP_A"))
        return self._check(values)

    def _challenge_initiator(self, offered: str) -> Pairs:
        wanted = [number for number in self._auth.algorithms if str(number) in offered.split(",")]
        if not wanted:
            raise refused("the initiator offers no CHAP algorithm that is accepted here")
        self._algorithm = wanted[0]
        self._identifier = self._random(1)[0]
        self._challenge = self._random(CHALLENGE_BYTES)
        return [("CHAP_A", str(self._algorithm)), ("CHAP_I", str(self._identifier)),
                ("CHAP_C", encode_binary(self._challenge))]

    def _check(self, values: dict[str, str]) -> Pairs:
        name, response_text = _take(values, "CHAP_N", "CHAP_R")
        response = decode_binary(response_text, CHALLENGE_BYTES_MAX)
        user = next((user for user in self._auth.users if user.user == name), None)
        # A name that is unknown costs the same time as a wrong secret.
        secret = user.secret if user else Secret(self._random(16).hex())
        expected = response_of(self._algorithm, self._identifier, secret, self._challenge)
        if not hmac.compare_digest(expected, response) or user is None:
            raise refused("CHAP name or secret is wrong")
        answer = self._prove(values) if "CHAP_C" in values or "CHAP_I" in values else []
        self.done, self.user = True, name
        return answer

    def _prove(self, values: dict[str, str]) -> Pairs:
        identifier, challenge_text = _take(values, "CHAP_I", "CHAP_C")
        challenge = decode_binary(challenge_text, CHALLENGE_BYTES_MAX)
        if hmac.compare_digest(challenge, self._challenge):
            raise refused("the initiator sent our own CHAP challenge back")
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
        self.answered = False        # our response has been given
        self.done = False

    def first(self) -> Pairs:
        return [("CHAP_A", ",".join(map(str, self._algorithms)))]

    def step(self, values: dict[str, str]) -> Pairs:
        """Answers our next keys; nothing when the exchange is over (`done`)."""
        if self.answered:
            self._check(values)
            return []
        algorithm, identifier, challenge_text = _take(values, "CHAP_A", "CHAP_I", "CHAP_C")
        if algorithm not in map(str, self._algorithms):
            raise ProtocolError("the target chose a CHAP algorithm that was not offered")
        self._algorithm = int(algorithm)
        challenge = decode_binary(challenge_text, CHALLENGE_BYTES_MAX)
        response = response_of(self._algorithm, _identifier(identifier), self._own.secret, challenge)
        pairs = [("CHAP_N", self._own.user), ("CHAP_R", encode_binary(response))]
        self.answered = True
        if self._mutual is None:
            self.done = True
            return pairs
        self._identifier = self._random(1)[0]
        self._challenge = self._random(CHALLENGE_BYTES)
        return [*pairs, ("CHAP_I", str(self._identifier)), ("CHAP_C", encode_binary(self._challenge))]

    def _check(self, values: dict[str, str]) -> None:
        assert self._mutual is not None
        if "CHAP_R" not in values:
            raise refused("the target did not prove who it is (mutual CHAP)")
        name, response_text = _take(values, "CHAP_N", "CHAP_R")
        response = decode_binary(response_text, CHALLENGE_BYTES_MAX)
        expected = response_of(self._algorithm, self._identifier, self._mutual.secret, self._challenge)
        if not hmac.compare_digest(expected, response) or name != self._mutual.user:
            raise refused("the target could not prove who it is (mutual CHAP)")
        self.done = True
