"""Logins with somebody in between: text, flags and headers of both directions mutated, pieces of any size.

Both machines of the project speak to each other and each other PDU may be changed on its way. Neither may raise what it
does not promise, answer beyond its limits, or take long; and whoever does not know a secret never gets through.
"""
from __future__ import annotations

import random
from dataclasses import dataclass, replace

from detour.errors import LoginError, ProtocolError
from detour.iscsi import keys
from detour.iscsi.chap import ChapAuth, Credentials
from detour.iscsi.login_initiator import InitiatorLogin
from detour.iscsi.login_target import Accept, LoginIdentity, Redirect, Refuse, TargetLogin, Verdict
from detour.iscsi.negotiation import LoginStatus, Redirected, SessionParams, Wishes
from detour.iscsi.wire import LOGIN_DATA_BYTES_MAX, LoginRequest, LoginResponse, decode_text, encode_text
from detour.urls import Secret
from tests.fuzz.figures import Figures
from tests.fuzz.mutate import bytes_of, pairs_of

INITIATOR, TARGET = "iqn.2026-01.example:host", "iqn.2026-01.example:disk"
HOST, MAIN = Credentials("host1", Secret("a secret of host1")), Credentials("main1", Secret("a secret of main1"))
FALSE = Credentials("host1", Secret("not that secret, no"))
ROUNDS_MAX = 200
NAMES = [*keys.KEYS, "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R"]
REASONS = list(LoginStatus)[1:]


@dataclass
class Case:
    """`pdus` Login PDUs, in as many logins as it takes."""

    seed: int
    pdus: int
    figures: Figures

    def run(self) -> None:
        self.chance = random.Random(self.seed)
        wanted = self.figures.pdus + self.pdus
        while self.figures.pdus < wanted:
            self.figures.logins += 1
            self.login()

    def login(self) -> None:
        chance = self.chance
        self.rate = chance.choice([0.0, 0.1, 0.3, 0.8])
        self.towards_target, self.towards_initiator = chance.choice([(True, False), (False, True), (True, True)])
        auth = chance.choice([None, ChapAuth((HOST,)), ChapAuth((HOST,), MAIN)])
        own = chance.choice([None, HOST, FALSE])
        demand = chance.choice([None, MAIN]) if own else None
        target = TargetLogin(self.resolve(auth), self.wishes(), tsih=lambda: 77, random=chance.randbytes)
        initiator = InitiatorLogin(
            initiator_name=INITIATOR, target_name=None if chance.random() < 0.15 else TARGET, isid=bytes(6),
            wishes=self.wishes(), credentials=own, mutual=demand, random=chance.randbytes)
        self.talk(initiator, target)
        if target.params is not None:
            self.check(target.params)
            assert auth is None or (own is HOST and target.user == "host1"), "a login without the secret"
        if initiator.params is not None:
            self.check(initiator.params)
            assert demand is None or (auth is not None and auth.mutual is MAIN), "a target that proved nothing is taken"

    def wishes(self) -> Wishes:
        chance = self.chance
        return Wishes(header_digest=chance.choice([("None",), ("CRC32C", "None")]),
                      first_burst_bytes=chance.choice([512, 65536]), burst_bytes_max=chance.choice([65536, 1 << 20]),
                      initial_r2t=chance.random() < 0.5, immediate_data=chance.random() < 0.5)

    def resolve(self, auth: ChapAuth | None):
        verdict: Verdict = Accept(auth)
        if self.chance.random() < 0.1:
            verdict = self.chance.choice([Redirect("192.0.2.1:3260"), Redirect("[2001:db8::1]"),
                                          Refuse(self.chance.choice(REASONS))])

        def decide(identity: LoginIdentity) -> Verdict:
            assert len(identity.initiator_name.encode()) <= 223 and len(identity.isid) == 6
            return verdict
        return decide

    def talk(self, initiator: InitiatorLogin, target: TargetLogin) -> None:
        request: LoginRequest | None = initiator.first()
        for _ in range(ROUNDS_MAX):
            if request is None:
                return
            self.figures.pdus += 2
            header, data = self.spoil(request, self.towards_target)
            try:
                response = target.receive(LoginRequest.unpack(header, data))
            except ProtocolError:
                return                          # no Login Request at all
            assert len(response.data) <= LOGIN_DATA_BYTES_MAX
            header, data = self.spoil(response, self.towards_initiator)
            over = bool(target.params or target.failure)
            try:
                request = initiator.receive(LoginResponse.unpack(header, data))
            except (ProtocolError, LoginError, Redirected):
                return
            assert request is None or len(request.data) <= LOGIN_DATA_BYTES_MAX
            if over:
                return
        raise AssertionError("a login that never ends")

    def spoil(self, pdu: LoginRequest | LoginResponse, may: bool) -> tuple[bytes, bytes]:
        chance = self.chance
        if not may or chance.random() >= self.rate:
            return pdu.pack()[:48], pdu.data
        what = chance.randrange(10)
        data, header = pdu.data, pdu.pack()[:48]
        if what < 5:
            try:
                data = encode_text(pairs_of(decode_text(data), chance, NAMES))[:LOGIN_DATA_BYTES_MAX]
            except ProtocolError:
                data = bytes_of(data, chance)[:LOGIN_DATA_BYTES_MAX]
        elif what == 5:
            data = bytes_of(data, chance)[:LOGIN_DATA_BYTES_MAX]
        elif what == 6:
            header = replace(pdu, csg=chance.randrange(4), nsg=chance.randrange(4), transit=chance.random() < 0.5,
                             more=chance.random() < 0.3).pack()[:48]
        elif what == 7:
            header = replace(pdu, more=True).pack()[:48]
            data = data[:chance.randrange(len(data) + 1)]
        elif what == 8:
            header = bytes([header[0]]) + bytes_of(header[1:], chance)[:47].ljust(47, b"\0")
        else:
            data = chance.randbytes(chance.choice([0, 1, 50, 8192]))
        return header, data

    def check(self, params: SessionParams) -> None:
        """What any session may come to (RFC 7143 section 13)."""
        agreed = params.as_dict()
        assert 512 <= agreed["send_data_bytes_max"] < 1 << 24 and 512 <= agreed["recv_data_bytes_max"] < 1 << 24
        assert 512 <= agreed["first_burst_bytes"] <= agreed["burst_bytes_max"] < 1 << 24
        assert 1 <= agreed["outstanding_r2t_max"] <= 65535
