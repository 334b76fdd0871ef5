"""The initiator's side of a login, without I/O: the first Login Request, then one for each Login Response."""
from __future__ import annotations

import os
from collections.abc import Callable

from detour.errors import LoginError, ProtocolError
from detour.iscsi import keys
from detour.iscsi.chap import OFFERED, ChapInitiator, Credentials
from detour.iscsi.negotiation import (
    FULL_FEATURE,
    OPERATIONAL,
    ROUNDS_MAX,
    SECURITY,
    TEXT_BYTES_MAX,
    Negotiation,
    Redirected,
    SessionParams,
    Wishes,
    in_order,
    status_sentence,
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

Pairs = list[tuple[str, str]]


class InitiatorLogin:
    """One login: `first()`, then `receive` until it answers None, when `params` is set.

    target_name None asks for a discovery session. `receive` raises LoginError (refused; class 3 may be tried again),
    Redirected, or ProtocolError. With `mutual` a target that does not prove itself is refused.
    """

    def __init__(self, *, initiator_name: str, target_name: str | None, isid: bytes, wishes: Wishes,
                 credentials: Credentials | None = None, mutual: Credentials | None = None, cid: int = 0,
                 cmd_sn: int = 1, algorithms: tuple[int, ...] = OFFERED,
                 random: Callable[[int], bytes] = os.urandom) -> None:
        if mutual and not credentials:
            raise ValueError("mutual CHAP needs credentials of our own")
        self._initiator_name = initiator_name
        self._target_name = target_name
        self._isid = isid
        self._cid = cid
        self._cmd_sn = cmd_sn
        self._itt = 1
        self._exp_stat_sn = 0
        self._stage = SECURITY
        self._wanted_transit = False
        self._rounds = 0
        self._text = TextAssembly(TEXT_BYTES_MAX)
        self._outgoing = b""
        self._mutual = mutual
        self._chap = ChapInitiator(credentials, mutual, algorithms, random) if credentials else None
        self._method = ""
        self._negotiation = Negotiation(wishes, discovery=target_name is None, peer_is_initiator=False)
        self._transit_after = False
        self.portal_group: int | None = None
        self.target_alias = ""
        self.params: SessionParams | None = None

    def first(self) -> LoginRequest:
        pairs = [("InitiatorName", self._initiator_name)]
        if self._target_name is None:
            pairs.append(("SessionType", "Discovery"))
        else:
            pairs += [("SessionType", "Normal"), ("TargetName", self._target_name)]
        offered = "None" if self._chap is None else "CHAP" if self._mutual else "CHAP,None"
        return self._request([*pairs, ("AuthMethod", offered)], transit=self._chap is None)

    def receive(self, response: LoginResponse) -> LoginRequest | None:
        self._check(response)
        self._text.add(response.data)
        if response.more:
            return self._send(False)
        if self._outgoing:
            return self._send(self._transit_after)
        table = unique(decode_text(self._text.take()))
        answers = self._security(table) if self._stage == SECURITY else self._operational(table)
        if response.transit:
            return self._enter(response, answers)
        proven = self._chap is None or self._method == "None" or self._chap.answered
        return self._request(answers, transit=self._stage == OPERATIONAL or proven)

    def _check(self, response: LoginResponse) -> None:
        self._rounds += 1
        if response.status_class == 1 and response.itt != self._itt:
            raise ProtocolError("the Login Response answers another login")
        if response.status_class == 1:
            raise self._redirect(response)
        if response.status_class:
            raise LoginError(status_sentence(response.status_class, response.status_detail),
                             status_class=response.status_class, status_detail=response.status_detail)
        if self._rounds > ROUNDS_MAX:
            raise ProtocolError(f"the login takes more than {ROUNDS_MAX} exchanges")
        if response.isid != self._isid or response.itt != self._itt:
            raise ProtocolError("the Login Response answers another login")
        if response.version_active:
            raise ProtocolError(f"the target speaks version {response.version_active}, which was not asked for")
        if response.csg != self._stage or (response.transit and response.more):
            raise ProtocolError("the Login Response is of another stage")
        next_stage = OPERATIONAL if self._stage == SECURITY else FULL_FEATURE
        if response.transit and not (self._wanted_transit and response.nsg == next_stage):
            raise ProtocolError("the target changes the stage without being asked")
        self._exp_stat_sn = serial_add(response.stat_sn, 1)

    @staticmethod
    def _redirect(response: LoginResponse) -> Redirected:
        address = dict(decode_text(response.data)).get("TargetAddress")
        if address is None:
            raise ProtocolError("the target redirects without an address")
        host, port, _tag = keys.parse_target_address(address)
        return Redirected(host, port, response.status_detail == 2)

    def _declared(self, table: dict[str, str]) -> dict[str, str]:
        """Takes what the target declares; answers the rest."""
        rest = {}
        for name, text in table.items():
            key = keys.KEYS.get(name)
            if key is not None and key.declarative:
                self._negotiation.take_declared(key, text)
            else:
                rest[name] = text
        tag = self._negotiation.peer.get("TargetPortalGroupTag")
        self.portal_group = int(tag) if tag is not None else None
        self.target_alias = str(self._negotiation.peer.get("TargetAlias", ""))
        return rest

    def _security(self, table: dict[str, str]) -> Pairs:
        """What to send next in the security stage."""
        rest = self._declared(table)
        method = rest.pop("AuthMethod", None)
        chap_values = {name: value for name, value in rest.items() if name.startswith("CHAP_")}
        answers = self._answer({name: text for name, text in rest.items() if name not in chap_values})
        if method is not None:
            self._choose(method)
            if self._chap and self._method == "CHAP":
                return answers + self._chap.first()
        if self._chap and self._method == "CHAP" and not self._chap.done:
            return answers + self._chap.step(chap_values)
        if chap_values:
            raise ProtocolError("CHAP keys came out of turn")
        return answers

    def _choose(self, method: str) -> None:
        if self._method:
            raise ProtocolError("AuthMethod was answered twice")
        offered = ("None",) if self._chap is None else ("CHAP",) if self._mutual else ("CHAP", "None")
        if method not in offered:
            raise LoginError(f"the target answers AuthMethod={method[:32]!r}, which was not offered",
                             status_class=2, status_detail=1)
        self._method = method

    def _operational(self, table: dict[str, str]) -> Pairs:
        rest = self._declared(table)
        return self._answer({name: text for name, text in rest.items()
                             if not self._negotiation.take_answer(name, text)})

    def _answer(self, offers: dict[str, str]) -> Pairs:
        """Answers to what the target offers of its own accord."""
        answers = []
        for name, text in in_order(offers):
            if text in keys.RESERVED_ANSWERS:
                raise ProtocolError(f"{name}={text} answers what was not offered")
            answer = self._negotiation.respond(name, text)
            if answer is not None:
                answers.append((name, answer))
        return answers

    def _enter(self, response: LoginResponse, answers: Pairs) -> LoginRequest | None:
        """The target granted the transit."""
        if answers:
            raise ProtocolError("the target ends the stage with an offer that is not settled")
        self._stage = response.nsg
        if self._stage == OPERATIONAL:
            return self._request(self._negotiation.offer(), transit=True)
        if self._target_name is not None and response.tsih == 0:
            raise ProtocolError("the target gives the session no handle (TSIH 0)")
        self._negotiation.close()
        self.params = self._negotiation.params(
            cmd_sn=self._cmd_sn, stat_sn=self._exp_stat_sn, max_cmd_sn=response.max_cmd_sn, cid=self._cid,
            tsih=response.tsih, isid=self._isid)
        return None

    def _request(self, pairs: Pairs, *, transit: bool) -> LoginRequest:
        self._outgoing = encode_text(pairs)
        return self._send(transit)

    def _send(self, transit: bool) -> LoginRequest:
        """The next piece of our text; the transit is asked for with the last one."""
        data, self._outgoing = self._outgoing[:LOGIN_DATA_BYTES_MAX], self._outgoing[LOGIN_DATA_BYTES_MAX:]
        self._transit_after = transit
        more = bool(self._outgoing)
        self._wanted_transit = transit and not more
        nsg = OPERATIONAL if self._stage == SECURITY else FULL_FEATURE
        return LoginRequest(self._isid, csg=self._stage, nsg=nsg if self._wanted_transit else 0,
                            transit=self._wanted_transit, more=more, itt=self._itt, cid=self._cid,
                            cmd_sn=self._cmd_sn, exp_stat_sn=self._exp_stat_sn, data=data)
