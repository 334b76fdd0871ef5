"""The target's side of a login, without I/O: one Login Request in, one Login Response out."""
from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from detour.errors import LoginError, ProtocolError, UsageError
from detour.iscsi import keys
from detour.iscsi.chap import ChapAuth, ChapTarget
from detour.iscsi.negotiation import (
    FULL_FEATURE,
    OPERATIONAL,
    ROUNDS_MAX,
    SECURITY,
    TEXT_BYTES_MAX,
    LoginStatus,
    Negotiation,
    SessionParams,
    Wishes,
    in_order,
    login_error,
    unique,
)
from detour.iscsi.wire import (
    LOGIN_DATA_BYTES_MAX,
    LoginRequest,
    LoginResponse,
    TextAssembly,
    decode_text,
    encode_text,
    serial_add,
)


@dataclass(frozen=True)
class LoginIdentity:
    """Who logs in to what, as the first request tells. `target_name` is empty for discovery sessions."""

    initiator_name: str
    isid: bytes
    tsih: int
    cid: int
    target_name: str
    discovery: bool


@dataclass(frozen=True)
class Accept:
    """The login may go on: with CHAP where `auth` is given."""

    auth: ChapAuth | None = None
    portal_group: int = 1


@dataclass(frozen=True)
class Redirect:
    """The initiator is sent to another address: "host[:port]", the host a name, IPv4, or IPv6 in brackets; without a
    portal group tag (section 13.8). UsageError when the text is no such address."""

    address: str
    permanent: bool = False

    def __post_init__(self) -> None:
        try:
            _, _, tag = keys.parse_target_address(self.address)
        except ProtocolError as error:
            raise UsageError(error.message) from None
        if tag is not None:
            raise UsageError(f"the address of a redirect has no portal group tag: {self.address}")


@dataclass(frozen=True)
class Refuse:
    """The login ends with this status."""

    status: LoginStatus
    reason: str = ""


Verdict = Accept | Redirect | Refuse


class TargetLogin:
    """One login. `resolve` decides on the identity before any authentication, so that a redirect needs no secret.

    After each `receive`: `params` is set when full feature phase is reached with this response; `failure` holds the
    sentence when the response refuses or redirects (the connection is to be closed behind it).
    """

    def __init__(self, resolve: Callable[[LoginIdentity], Verdict], wishes: Wishes, *, tsih: Callable[[], int],
                 text_bytes_max: int = TEXT_BYTES_MAX, random: Callable[[int], bytes] = os.urandom) -> None:
        self._resolve = resolve
        self._wishes = wishes
        self._allocate_tsih = tsih
        self._random = random
        self._text = TextAssembly(text_bytes_max)
        self._first: LoginRequest | None = None
        self._stage = SECURITY
        self._rounds = 0
        self._stat_sn = int.from_bytes(random(4), "big")
        self._outgoing = b""
        self._negotiation: Negotiation | None = None
        self._auth: ChapAuth | None = None
        self._chap: ChapTarget | None = None
        self._method = ""
        self._announced = False
        self.identity: LoginIdentity | None = None
        self.redirect: Redirect | None = None
        self.params: SessionParams | None = None
        self.failure = ""

    @property
    def user(self) -> str:
        """The CHAP name that was proven; empty without authentication."""
        return self._chap.user if self._chap else ""

    def receive(self, request: LoginRequest) -> LoginResponse:
        """The response to a request; never raises for what the peer sent."""
        assert self.params is None and not self.failure, "the login is over"
        try:
            return self._receive(request)
        except ProtocolError as error:
            return self.refuse(request, LoginStatus.INITIATOR_ERROR, error.message)
        except LoginError as error:
            status = next(status for status in LoginStatus
                          if status.value[:2] == (error.status_class, error.status_detail))
            return self.refuse(request, status, error.message)

    def refuse(self, request: LoginRequest, status: LoginStatus, reason: str = "") -> LoginResponse:
        """Ends the login with a status."""
        self.params = None
        self.failure = reason or status.sentence
        return self._respond(request, status=status)

    def _receive(self, request: LoginRequest) -> LoginResponse:
        self._check_header(request)
        self._text.add(request.data)
        if request.more:
            return self._respond(request)
        table = unique(decode_text(self._text.take()))
        answers: list[tuple[str, str]] = []
        if self.identity is None:
            verdict = self._identify(request, table)
            if isinstance(verdict, Redirect):
                return self._send_away(request, verdict)
            if not self.identity.discovery:     # type: ignore[attr-defined]
                answers.append(("TargetPortalGroupTag", str(verdict.portal_group)))
        if self._outgoing and table:
            raise ProtocolError("new keys came while a long answer was under way")
        answers += self._security(request, table) if self._stage == SECURITY else self._operational(table)
        self._outgoing += encode_text(answers)
        return self._advance(request)

    def _check_header(self, request: LoginRequest) -> None:
        self._rounds += 1
        if self._rounds > ROUNDS_MAX:
            raise ProtocolError(f"the login takes more than {ROUNDS_MAX} exchanges")
        if self._first is None:
            self._first = request
            self._stage = request.csg
            if request.version_min > 0:
                raise login_error(LoginStatus.UNSUPPORTED_VERSION)
        first = self._first
        if (request.isid, request.tsih, request.cid, request.itt) != (first.isid, first.tsih, first.cid, first.itt):
            raise ProtocolError("ISID, TSIH, CID or task tag changed within a login")
        if request.csg != self._stage or request.csg not in (SECURITY, OPERATIONAL):
            raise ProtocolError(f"stage {request.csg} was announced in stage {self._stage}")
        if request.transit and (request.more or request.nsg not in (OPERATIONAL, FULL_FEATURE)
                                or request.nsg <= request.csg):
            raise ProtocolError(f"the transit from stage {request.csg} to {request.nsg} is not allowed")

    def _identify(self, request: LoginRequest, table: dict[str, str]) -> Accept | Redirect:
        name = table.get("InitiatorName")
        session_type = table.get("SessionType", "Normal")
        target_name = table.get("TargetName", "")
        if name is None:
            raise login_error(LoginStatus.MISSING_PARAMETER, "InitiatorName")
        if not keys.valid_name(name):
            raise ProtocolError("InitiatorName is no iSCSI name")
        if session_type not in ("Normal", "Discovery"):
            raise login_error(LoginStatus.SESSION_TYPE, session_type[:32])
        if session_type == "Normal" and not target_name:
            raise login_error(LoginStatus.MISSING_PARAMETER, "TargetName")
        discovery = session_type == "Discovery"
        self.identity = LoginIdentity(name, request.isid, request.tsih, request.cid,
                                      "" if discovery else target_name.lower(), discovery)
        verdict = self._resolve(self.identity)
        if isinstance(verdict, Refuse):
            raise login_error(verdict.status, verdict.reason)
        if isinstance(verdict, Accept):
            self._auth = verdict.auth
            if self._auth and self._stage != SECURITY:
                raise login_error(LoginStatus.AUTHENTICATION_FAILURE, "the initiator skipped the security stage")
            self._negotiation = Negotiation(self._wishes, discovery=discovery, peer_is_initiator=True)
        return verdict

    def _send_away(self, request: LoginRequest, verdict: Redirect) -> LoginResponse:
        self.redirect = verdict
        self.failure = f"redirected to {verdict.address}"
        status = LoginStatus.MOVED_PERMANENTLY if verdict.permanent else LoginStatus.MOVED_TEMPORARILY
        return self._respond(request, status=status, data=encode_text([("TargetAddress", verdict.address)]))

    def _security(self, request: LoginRequest, table: dict[str, str]) -> list[tuple[str, str]]:
        chap_values = {name: value for name, value in table.items() if name.startswith("CHAP_")}
        others = {name: value for name, value in table.items() if name not in chap_values and name != "AuthMethod"}
        answers: list[tuple[str, str]] = []
        if "AuthMethod" in table:
            answers.append(("AuthMethod", self._choose_method(table["AuthMethod"])))
        answers += self._settle(others)
        if chap_values:
            if self._chap is None or self._chap.done:
                raise ProtocolError("CHAP keys came out of turn")
            answers += self._chap.step(chap_values)
        if self._auth and not self._method and request.transit:
            raise login_error(LoginStatus.AUTHENTICATION_FAILURE, "the initiator offers no authentication")
        return answers

    def _choose_method(self, offered: str) -> str:
        if self._method:
            raise ProtocolError("AuthMethod was negotiated twice")
        wanted = ("CHAP",) if self._auth else ("None",)
        outcome, answer = keys.answer(keys.KEYS["AuthMethod"], offered, wanted)
        if outcome is None:
            raise login_error(LoginStatus.AUTHENTICATION_FAILURE, f"only {wanted[0]} is accepted here")
        self._method = answer
        if self._auth:
            self._chap = ChapTarget(self._auth, self._random)
        return answer

    def _settle(self, table: dict[str, str]) -> list[tuple[str, str]]:
        assert self._negotiation is not None
        answers = []
        for name, text in in_order(table):
            answer = self._negotiation.respond(name, text)
            if answer is not None:
                answers.append((name, answer))
        return answers

    def _operational(self, table: dict[str, str]) -> list[tuple[str, str]]:
        answers = self._settle(table)
        if not self._announced:
            self._announced = True
            answers.append(("MaxRecvDataSegmentLength", str(self._wishes.recv_data_bytes_max)))
            if self._wishes.alias:
                answers.append(("TargetAlias", self._wishes.alias))
        return answers

    def _advance(self, request: LoginRequest) -> LoginResponse:
        """Sends what fits of the answers; grants the transit when all of it is out and authentication is over."""
        assert self._negotiation is not None
        room = min(LOGIN_DATA_BYTES_MAX, self._negotiation.peer_recv_bytes_max)
        data, self._outgoing = self._outgoing[:room], self._outgoing[room:]
        proven = self._stage != SECURITY or self._auth is None or (self._chap is not None and self._chap.done)
        transit = request.transit and proven and not self._outgoing
        response = self._respond(request, data=data, transit=transit, more=bool(self._outgoing))
        if not transit:
            return response
        self._stage = request.nsg
        if self._stage == FULL_FEATURE:
            self._finish(request, response)
        return response

    def _finish(self, request: LoginRequest, response: LoginResponse) -> None:
        assert self._negotiation is not None
        response.tsih = self._allocate_tsih()
        self.params = self._negotiation.params(cmd_sn=response.exp_cmd_sn, stat_sn=self._stat_sn,
                                               max_cmd_sn=response.max_cmd_sn, cid=request.cid, tsih=response.tsih,
                                               isid=request.isid)

    def _respond(self, request: LoginRequest, *, status: LoginStatus = LoginStatus.SUCCESS, data: bytes = b"",
                 transit: bool = False, more: bool = False) -> LoginResponse:
        stat_sn, self._stat_sn = self._stat_sn, serial_add(self._stat_sn, 1)
        return LoginResponse(
            request.isid, tsih=request.tsih, csg=request.csg, nsg=request.nsg if transit else 0, transit=transit,
            more=more, itt=request.itt, stat_sn=stat_sn, exp_cmd_sn=request.cmd_sn,
            max_cmd_sn=serial_add(request.cmd_sn, self._wishes.queue_depth - 1),
            status_class=status.status_class, status_detail=status.status_detail, data=data)
