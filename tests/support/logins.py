"""Both login machines against each other, without I/O."""
from __future__ import annotations

from detour.iscsi.chap import ChapAuth, Credentials
from detour.iscsi.login_initiator import InitiatorLogin
from detour.iscsi.login_target import Accept, TargetLogin, Verdict
from detour.iscsi.negotiation import Wishes
from detour.iscsi.wire import LoginRequest, LoginResponse, encode_text
from detour.urls import Secret

INITIATOR = "iqn.2026-01.example:host"
TARGET = "iqn.2026-01.example:disk"
ISID = b"\x80\x01\x02\x03\x00\x00"
HOST = Credentials("host1", Secret("a secret of host1"))
MAIN = Credentials("main1", Secret("a secret of main1"))
AUTH = ChapAuth((HOST,), MAIN)


def target_login(verdict: Verdict | None = None, wishes: Wishes | None = None, **options) -> TargetLogin:
    return TargetLogin(lambda identity: verdict or Accept(), wishes or Wishes(), tsih=lambda: 77, **options)


def initiator_login(target: str | None = TARGET, wishes: Wishes | None = None, **options) -> InitiatorLogin:
    return InitiatorLogin(initiator_name=INITIATOR, target_name=target, isid=ISID, wishes=wishes or Wishes(), **options)


def run(initiator: InitiatorLogin, target: TargetLogin) -> list[tuple[LoginRequest, LoginResponse]]:
    """Every PDU of a login; what the initiator raises passes."""
    seen = []
    request = initiator.first()
    while request is not None:
        response = target.receive(LoginRequest.unpack(request.pack()[:48], request.data))
        seen.append((request, response))
        assert len(seen) < 40
        request = initiator.receive(LoginResponse.unpack(response.pack()[:48], response.data))
    return seen


def first_request(pairs, **fields) -> LoginRequest:
    """A first request by hand: operational stage, straight to full feature phase, unless told otherwise."""
    values = {"isid": ISID, "csg": 1, "nsg": 3, "transit": True, "itt": 5, "cmd_sn": 9, **fields}
    return LoginRequest(data=encode_text(pairs), **values)


NAMES = [("InitiatorName", INITIATOR), ("TargetName", TARGET)]
