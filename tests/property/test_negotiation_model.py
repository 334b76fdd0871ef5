"""Both login machines against each other over all wishes: they come to the same values, those of RFC 7143."""
from hypothesis import given, settings
from hypothesis import strategies as st

from detour.iscsi import keys
from detour.iscsi.keys import KEYS, Kind
from detour.iscsi.login_target import Accept
from detour.iscsi.negotiation import Wishes
from detour.iscsi.wire import LoginRequest
from tests.support.logins import AUTH, HOST, MAIN, NAMES, first_request, initiator_login, run, target_login

length = st.integers(512, 2**24 - 1)
digest = st.sampled_from([("None",), ("CRC32C", "None"), ("None", "CRC32C"), ("CRC32C",)])


@st.composite
def wishes(draw):
    burst, first = draw(length), draw(length)
    return Wishes(
        header_digest=draw(digest), data_digest=draw(digest), recv_data_bytes_max=draw(length),
        burst_bytes_max=max(burst, first), first_burst_bytes=min(burst, first), initial_r2t=draw(st.booleans()),
        immediate_data=draw(st.booleans()), outstanding_r2t_max=draw(st.integers(1, 65535)),
        time2wait_s=draw(st.integers(0, 3600)), time2retain_s=draw(st.integers(0, 3600)),
        queue_depth=draw(st.integers(1, 1024)), alias=draw(st.sampled_from(["", "a disk"])))


def digest_of(offered, accepted):
    return next((one for one in offered if one in accepted), "None") == "CRC32C"    # section 6.2.1


@settings(max_examples=150, deadline=None)
@given(wishes(), wishes(), st.sampled_from([(None, None), (HOST, None), (HOST, MAIN)]))
def test_both_sides_come_to_the_same_values(mine, theirs, login):
    credentials, mutual = login
    initiator = initiator_login(wishes=mine, credentials=credentials, mutual=mutual)
    target = target_login(Accept(AUTH if credentials else None), theirs)
    run(initiator, target)
    one, other = initiator.params, target.params
    same = ("header_digest", "data_digest", "burst_bytes_max", "first_burst_bytes", "initial_r2t", "immediate_data",
            "outstanding_r2t_max", "time2wait_s", "time2retain_s", "cmd_sn", "stat_sn", "max_cmd_sn", "tsih", "isid")
    assert {name: getattr(one, name) for name in same} == {name: getattr(other, name) for name in same}
    assert one.recv_data_bytes_max == other.send_data_bytes_max == mine.recv_data_bytes_max
    assert other.recv_data_bytes_max == one.send_data_bytes_max == theirs.recv_data_bytes_max
    assert one.header_digest == digest_of(mine.header_digest, theirs.header_digest)
    assert one.data_digest == digest_of(mine.data_digest, theirs.data_digest)
    assert one.burst_bytes_max == min(mine.burst_bytes_max, theirs.burst_bytes_max)
    assert one.first_burst_bytes == min(mine.first_burst_bytes, theirs.first_burst_bytes, one.burst_bytes_max)
    assert one.initial_r2t == (mine.initial_r2t or theirs.initial_r2t)
    assert one.immediate_data == (mine.immediate_data and theirs.immediate_data)
    assert one.outstanding_r2t_max == min(mine.outstanding_r2t_max, theirs.outstanding_r2t_max)
    assert one.time2wait_s == max(mine.time2wait_s, theirs.time2wait_s)
    assert one.time2retain_s == min(mine.time2retain_s, theirs.time2retain_s)
    assert other.max_cmd_sn == (other.cmd_sn + theirs.queue_depth - 1) & 0xFFFFFFFF


def values_of(key):
    if key.kind in (Kind.AND, Kind.OR):
        return st.booleans()
    if key.kind is Kind.LIST:
        return st.lists(st.sampled_from([*key.choices, "KRB5"]), min_size=1, max_size=3, unique=True).map(tuple)
    return st.integers(key.low, key.high)


NEGOTIATED = [key for key in KEYS.values() if key.kind in (Kind.AND, Kind.OR, Kind.LIST, Kind.MINIMUM, Kind.MAXIMUM)]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(NEGOTIATED).flatmap(lambda key: st.tuples(st.just(key), values_of(key), values_of(key))))
def test_offer_and_answer_of_every_key_end_at_one_value(case):
    key, offered, own = case
    text = ",".join(offered) if isinstance(offered, tuple) else keys.text_of(offered)
    outcome, answer = keys.answer(key, text, own)
    accepted = keys.accept(key, offered, answer)
    assert accepted == (key.default if outcome is None else outcome)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*KEYS, "CHAP_A", "CHAP_N", "X-strange"]), st.text(max_size=30)), max_size=8),
       st.builds(LoginRequest, isid=st.just(first_request([]).isid), csg=st.integers(0, 3), nsg=st.integers(0, 3),
                 transit=st.booleans(), more=st.booleans(), version_min=st.integers(0, 1), itt=st.integers(0, 2),
                 data=st.binary(max_size=40)))
def test_no_request_makes_the_target_raise_or_let_anybody_in(pairs, strange):
    target = target_login(Accept(AUTH))
    for request in (first_request([*NAMES, *pairs], csg=0, nsg=1), first_request(pairs, csg=0, nsg=1), strange):
        if target.failure:
            break
        response = target.receive(request)
        assert target.params is None and not (response.transit and response.nsg == 3)
        assert response.status_class in (0, 2)
