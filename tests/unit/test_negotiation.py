"""The login machines: stages, authentication, redirect, continued text, and every kind of malformed login."""
import pytest

from detour.errors import LoginError, ProtocolError
from detour.iscsi.chap import ChapAuth, Credentials
from detour.iscsi.login_target import Accept, Redirect, Refuse
from detour.iscsi.negotiation import LoginStatus, Redirected, Wishes, status_sentence
from detour.iscsi.wire import LoginResponse, decode_text, encode_text
from detour.urls import Secret
from tests.support.logins import (
    AUTH,
    HOST,
    INITIATOR,
    ISID,
    MAIN,
    NAMES,
    TARGET,
    first_request,
    initiator_login,
    run,
    target_login,
)


def keys_of(response):
    return dict(decode_text(response.data))


def test_a_plain_login_agrees_on_both_sides():
    initiator, target = initiator_login(), target_login()
    seen = run(initiator, target)
    assert len(seen) == 2       # one exchange a stage
    one, other = initiator.params, target.params
    assert one.isid == other.isid == ISID and one.tsih == other.tsih == 77
    assert (one.cmd_sn, one.stat_sn, one.max_cmd_sn) == (other.cmd_sn, other.stat_sn, other.max_cmd_sn)
    assert one.max_cmd_sn == one.cmd_sn + 127
    assert initiator.portal_group == 1
    assert target.identity.initiator_name == INITIATOR and target.identity.target_name == TARGET


def test_digests_are_used_when_both_want_them():
    both = Wishes(header_digest=("CRC32C", "None"), data_digest=("CRC32C", "None"))
    initiator, target = initiator_login(wishes=both), target_login(wishes=both)
    run(initiator, target)
    assert initiator.params.header_digest and target.params.data_digest
    initiator, target = initiator_login(wishes=both), target_login()
    run(initiator, target)
    assert not initiator.params.header_digest and not target.params.header_digest


@pytest.mark.parametrize("mutual", [None, MAIN])
def test_chap_login(mutual):
    initiator, target = initiator_login(credentials=HOST, mutual=mutual), target_login(Accept(AUTH))
    run(initiator, target)
    assert target.user == "host1" and initiator.params.tsih == 77


def test_a_target_without_chap_is_taken_unless_mutual_is_wanted():
    initiator, target = initiator_login(credentials=HOST), target_login()
    run(initiator, target)
    assert target.user == ""
    with pytest.raises(LoginError):
        run(initiator_login(credentials=HOST, mutual=MAIN), target_login())


@pytest.mark.parametrize("credentials", [None, Credentials("host1", Secret("wrong"))])
def test_chap_cannot_be_skipped(credentials):
    target = target_login(Accept(AUTH))
    with pytest.raises(LoginError) as caught:
        run(initiator_login(credentials=credentials), target)
    assert (caught.value.status_class, caught.value.status_detail) == (2, 1)
    assert target.params is None and target.failure


def test_skipping_the_security_stage_is_no_way_around_chap():
    target = target_login(Accept(AUTH))
    response = target.receive(first_request(NAMES))
    assert (response.status_class, response.status_detail) == (2, 1)
    target = target_login(Accept(AUTH))
    response = target.receive(first_request(NAMES, csg=0, nsg=3))
    assert (response.status_class, response.status_detail) == (2, 1)


def test_chap_cannot_be_left_in_the_middle():
    target = target_login(Accept(AUTH))
    target.receive(first_request([*NAMES, ("AuthMethod", "CHAP")], csg=0, nsg=0, transit=False))
    for _ in range(3):
        response = target.receive(first_request([], csg=0, nsg=1))
        assert not response.transit and response.status_class == 0
    assert target.receive(first_request([], csg=1)).status_class == 2


def test_mutual_needs_own_credentials():
    with pytest.raises(ValueError):
        initiator_login(mutual=MAIN)


@pytest.mark.parametrize("permanent, detail", [(False, 1), (True, 2)])
def test_a_redirect_comes_before_authentication(permanent, detail):
    target = target_login(Redirect("[2001:db8::1]:3261", permanent))
    initiator = initiator_login(credentials=HOST)
    response = target.receive(initiator.first())
    assert (response.status_class, response.status_detail) == (1, detail)
    assert keys_of(response) == {"TargetAddress": "[2001:db8::1]:3261"}
    with pytest.raises(Redirected) as caught:
        initiator.receive(response)
    assert (caught.value.host, caught.value.port, caught.value.permanent) == ("2001:db8::1", 3261, permanent)
    assert target.redirect and target.params is None


def test_a_redirect_without_an_address_is_a_protocol_error():
    initiator = initiator_login()
    initiator.first()
    with pytest.raises(ProtocolError):
        initiator.receive(LoginResponse(ISID, itt=1, status_class=1, status_detail=1))


@pytest.mark.parametrize("status", [status for status in LoginStatus if status.status_class > 1])
def test_every_refusal_is_told_to_the_initiator_in_words(status):
    with pytest.raises(LoginError) as caught:
        run(initiator_login(), target_login(Refuse(status)))
    assert (caught.value.status_class, caught.value.status_detail) == (status.status_class, status.status_detail)
    assert status.sentence in str(caught.value)


def test_unregistered_statuses_have_words_too():
    assert "0499" in status_sentence(4, 0x99)


@pytest.mark.parametrize("pairs, fields, status", [
    ([("TargetName", TARGET)], {}, LoginStatus.MISSING_PARAMETER),
    ([("InitiatorName", INITIATOR)], {}, LoginStatus.MISSING_PARAMETER),
    ([("InitiatorName", "bad name"), ("TargetName", TARGET)], {}, LoginStatus.INITIATOR_ERROR),
    ([*NAMES, ("SessionType", "Strange")], {}, LoginStatus.SESSION_TYPE),
    ([*NAMES, ("InitiatorName", INITIATOR)], {}, LoginStatus.INITIATOR_ERROR),
    ([*NAMES, ("MaxRecvDataSegmentLength", "100")], {}, LoginStatus.INITIATOR_ERROR),
    ([*NAMES, ("TargetPortalGroupTag", "1")], {}, LoginStatus.INITIATOR_ERROR),
    (NAMES, {"version_min": 1}, LoginStatus.UNSUPPORTED_VERSION),
    (NAMES, {"csg": 2, "nsg": 3}, LoginStatus.INITIATOR_ERROR),
    (NAMES, {"csg": 3, "nsg": 3}, LoginStatus.INITIATOR_ERROR),
    (NAMES, {"csg": 1, "nsg": 0}, LoginStatus.INITIATOR_ERROR),
    (NAMES, {"csg": 1, "nsg": 1}, LoginStatus.INITIATOR_ERROR),
    (NAMES, {"csg": 0, "nsg": 2}, LoginStatus.INITIATOR_ERROR),
    (NAMES, {"more": True}, LoginStatus.INITIATOR_ERROR),
    ([*NAMES, ("CHAP_N", "x")], {"csg": 0, "nsg": 1}, LoginStatus.INITIATOR_ERROR),
    ([*NAMES, ("AuthMethod", "KRB5")], {"csg": 0, "nsg": 1}, LoginStatus.AUTHENTICATION_FAILURE),
])
def test_malformed_first_requests(pairs, fields, status):
    target = target_login()
    response = target.receive(first_request(pairs, **fields))
    assert (response.status_class, response.status_detail) == status.value[:2]
    assert target.failure and target.params is None


@pytest.mark.parametrize("changed", [{"isid": b"other!"}, {"itt": 6}, {"cid": 1}, {"tsih": 1}, {"csg": 0}])
def test_a_login_may_not_change_its_identity(changed):
    target = target_login()
    assert target.receive(first_request(NAMES, transit=False, nsg=0)).status_class == 0
    assert target.receive(first_request([], **changed)).status_class == 2


def test_binary_rubbish_is_answered_with_an_initiator_error():
    request = first_request(NAMES)
    request.data = b"\xff\xfe\0garbage"
    assert target_login().receive(request).status_class == 2


def test_keys_are_answered_as_the_standard_says():
    target = target_login()
    response = target.receive(first_request([
        *NAMES, ("X-com.example.key", "1"), ("Strange", "2"), ("IFMarker", "Yes"), ("OFMarkInt", "1~2"),
        ("SendTargets", "All"), ("MaxBurstLength", "7"), ("DataDigest", "CRC32C"), ("InitiatorAlias", "me"),
        ("AuthMethod", "None")]))
    answers = keys_of(response)
    assert answers.pop("MaxRecvDataSegmentLength") == "262144"
    assert answers == {"TargetPortalGroupTag": "1", "X-com.example.key": "NotUnderstood", "Strange": "NotUnderstood",
                       "IFMarker": "No", "OFMarkInt": "Reject", "SendTargets": "Reject", "MaxBurstLength": "Reject",
                       "DataDigest": "Reject", "AuthMethod": "Reject"}
    assert response.transit and target.params.burst_bytes_max == 262144


def test_a_key_is_negotiated_once():
    target = target_login()
    target.receive(first_request([*NAMES, ("InitialR2T", "No")], transit=False, nsg=0))
    assert target.receive(first_request([("InitialR2T", "Yes")])).status_class == 2


def test_first_burst_never_exceeds_max_burst():
    target = target_login()
    answers = keys_of(target.receive(first_request(
        [*NAMES, ("FirstBurstLength", "262144"), ("MaxBurstLength", "65536")])))
    assert answers["FirstBurstLength"] == "65536" and target.params.first_burst_bytes == 65536


def test_discovery_has_no_use_for_data_keys():
    target = target_login()
    answers = keys_of(target.receive(first_request([
        ("InitiatorName", INITIATOR), ("SessionType", "Discovery"), ("InitialR2T", "No"), ("MaxBurstLength", "65536"),
        ("DefaultTime2Wait", "2")])))
    assert answers == {"InitialR2T": "Irrelevant", "MaxBurstLength": "Irrelevant", "DefaultTime2Wait": "2",
                       "MaxRecvDataSegmentLength": "262144"}
    assert target.identity.discovery and target.identity.target_name == ""
    initiator, target = initiator_login(target=None), target_login()
    run(initiator, target)
    assert initiator.params.tsih == 77 and initiator.portal_group is None


def test_text_of_the_initiator_may_come_in_pieces():
    target = target_login()
    data = encode_text([*NAMES, ("InitialR2T", "No")])
    for piece in (data[:7], data[7:40]):
        request = first_request([], more=True, transit=False, nsg=0)
        request.data = piece
        response = target.receive(request)
        assert response.data == b"" and not response.transit and response.status_class == 0
    request = first_request([])
    request.data = data[40:]
    assert keys_of(target.receive(request))["InitialR2T"] == "No" and target.params


def test_a_long_answer_goes_out_in_pieces_and_the_transit_waits():
    many = [(f"X-{number:04d}", "v") for number in range(150)]
    target = target_login(text_bytes_max=65536)
    response = target.receive(first_request([*NAMES, ("MaxRecvDataSegmentLength", "512"), *many]))
    text = b""
    pieces = 0
    while response.more:
        assert not response.transit and len(response.data) == 512 and target.params is None
        text += response.data
        pieces += 1
        response = target.receive(first_request([]))
    assert pieces > 3 and response.transit and target.params
    assert [pair for pair in decode_text(text + response.data) if pair[1] == "NotUnderstood"] \
        == [(name, "NotUnderstood") for name, _ in many]


def test_new_keys_in_the_middle_of_a_long_answer_are_refused():
    many = [(f"X-{number:04d}", "v") for number in range(150)]
    target = target_login()
    assert target.receive(first_request([*NAMES, ("MaxRecvDataSegmentLength", "512"), *many])).more
    assert target.receive(first_request([("InitialR2T", "No")])).status_class == 2


def test_text_without_end_is_refused():
    target = target_login(text_bytes_max=8192)
    request = first_request([], more=True, transit=False, nsg=0)
    request.data = b"A=" + b"x" * 8000
    assert target.receive(request).status_class == 0
    assert target.receive(request).status_class == 2


def test_exchanges_without_end_are_refused():
    target = target_login()
    request = first_request(NAMES, transit=False, nsg=0)
    responses = []
    while not target.failure:
        responses.append(target.receive(request))
        request = first_request([], transit=False, nsg=0)
    assert len(responses) == 33


@pytest.mark.parametrize("change", [
    {"isid": b"other!"}, {"itt": 99}, {"csg": 1}, {"transit": True, "more": True}, {"nsg": 3}, {"version_active": 1},
    {"itt": 99, "status_class": 1, "status_detail": 1, "data": b"TargetAddress=192.0.2.1\0"}])
def test_the_initiator_checks_what_it_is_answered(change):
    initiator = initiator_login()
    initiator.first()
    fields = {"isid": ISID, "itt": 1, "csg": 0, "nsg": 1, "transit": True,
              "data": encode_text([("AuthMethod", "None")]), **change}
    with pytest.raises(ProtocolError):
        initiator.receive(LoginResponse(**fields))


def test_a_target_may_not_move_on_uninvited():
    initiator = initiator_login(credentials=HOST)
    initiator.first()
    with pytest.raises(ProtocolError):
        initiator.receive(LoginResponse(ISID, itt=1, csg=0, nsg=1, transit=True,
                                        data=encode_text([("AuthMethod", "None")])))


@pytest.mark.parametrize("method", ["KRB5", "CHAP", "Reject"])
def test_an_authentication_that_was_not_offered_is_refused(method):
    initiator = initiator_login()
    initiator.first()
    with pytest.raises(LoginError):
        initiator.receive(LoginResponse(ISID, itt=1, csg=0, nsg=1, transit=True,
                                        data=encode_text([("AuthMethod", method)])))


def operational(initiator):
    initiator.first()
    return initiator.receive(LoginResponse(ISID, itt=1, csg=0, nsg=1, transit=True, stat_sn=5,
                                           data=encode_text([("AuthMethod", "None")])))


def test_the_initiator_answers_what_a_target_offers_of_itself():
    initiator = initiator_login()
    request = operational(initiator)
    assert request.csg == 1 and request.exp_stat_sn == 6
    request = initiator.receive(LoginResponse(ISID, itt=1, csg=1, stat_sn=6, data=encode_text(
        [("TaskReporting", "FastAbort,RFC3720"), ("X-strange", "1"), ("TargetAlias", "disk")])))
    assert dict(decode_text(request.data)) == {"TaskReporting": "RFC3720", "X-strange": "NotUnderstood"}
    assert initiator.receive(LoginResponse(ISID, tsih=4, itt=1, csg=1, nsg=3, transit=True, stat_sn=7)) is None
    # What was not answered has its default.
    assert initiator.params.burst_bytes_max == 262144 and initiator.params.initial_r2t
    assert initiator.params.send_data_bytes_max == 8192 and initiator.target_alias == "disk"


@pytest.mark.parametrize("pairs", [
    [("MaxBurstLength", "99999999")], [("MaxBurstLength", "1048577")], [("InitiatorAlias", "x")],
    [("MaxRecvDataSegmentLength", "1")], [("Strange", "Reject")], [("HeaderDigest", "CRC32C")]])
def test_impossible_answers_end_the_login(pairs):
    initiator = initiator_login()
    operational(initiator)
    with pytest.raises(ProtocolError):
        initiator.receive(LoginResponse(ISID, tsih=4, itt=1, csg=1, nsg=3, transit=True, data=encode_text(pairs)))


def test_a_session_without_a_handle_is_refused():
    initiator = initiator_login()
    operational(initiator)
    with pytest.raises(ProtocolError, match="TSIH"):
        initiator.receive(LoginResponse(ISID, tsih=0, itt=1, csg=1, nsg=3, transit=True))


def test_a_target_that_never_ends_is_left():
    initiator = initiator_login()
    operational(initiator)
    with pytest.raises(ProtocolError, match="exchanges"):
        for _ in range(40):
            initiator.receive(LoginResponse(ISID, itt=1, csg=1))


def test_wishes_are_checked():
    with pytest.raises(ValueError):
        Wishes(first_burst_bytes=2**20, burst_bytes_max=2**16)
    with pytest.raises(ValueError):
        Wishes(recv_data_bytes_max=100)


def test_auth_with_two_users():
    other = Credentials("host2", Secret("another secret"))
    target = target_login(Accept(ChapAuth((HOST, other))))
    run(initiator_login(credentials=other), target)
    assert target.user == "host2"
