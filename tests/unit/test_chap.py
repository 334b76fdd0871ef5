"""CHAP: vectors, both directions, every algorithm, and what must be refused."""
import hashlib

import pytest

from detour.errors import LoginError, ProtocolError
from detour.iscsi import chap
from detour.iscsi.chap import ChapAuth, ChapInitiator, ChapTarget, Credentials
from detour.urls import Secret

HOST = Credentials("host1", Secret("a secret of host1"))
MAIN = Credentials("main1", Secret("a secret of main1"))


def conversation(target, initiator):
    """Runs both machines against each other; answers all that went over the wire."""
    seen = [initiator.first()]
    while not (target.done and initiator.done):
        seen.append(target.step(dict(seen[-1])))
        if target.done and initiator.done:
            break
        seen.append(initiator.step(dict(seen[-1])))
    return seen


@pytest.mark.parametrize("algorithm", chap.ALGORITHMS)
@pytest.mark.parametrize("mutual", [None, MAIN])
def test_right_secrets_are_accepted(algorithm, mutual):
    target = ChapTarget(ChapAuth((HOST,), MAIN, (algorithm,)))
    seen = conversation(target, ChapInitiator(HOST, mutual))
    assert target.user == "host1"
    assert dict(seen[1])["CHAP_A"] == str(algorithm)
    assert all("secret of" not in str(pair) for pairs in seen for pair in pairs)


def test_the_response_is_the_hash_of_the_standard():
    expected = hashlib.md5(b"\x07" + b"a secret of host1" + b"challenge").digest()
    assert chap.response_of(5, 7, HOST.secret, b"challenge") == expected
    assert chap.response_of(7, 7, HOST.secret, b"c") == hashlib.sha256(b"\x07a secret of host1c").digest()
    assert chap.response_of(8, 7, HOST.secret, b"c") == hashlib.sha3_256(b"\x07a secret of host1c").digest()
    assert chap.response_of(6, 7, HOST.secret, b"c") == hashlib.sha1(b"\x07a secret of host1c").digest()


@pytest.mark.parametrize("own", [Credentials("host1", Secret("wrong")), Credentials("host2", HOST.secret)])
def test_a_wrong_name_or_secret_is_refused_alike(own):
    with pytest.raises(LoginError) as caught:
        conversation(ChapTarget(ChapAuth((HOST,))), ChapInitiator(own))
    assert (caught.value.status_class, caught.value.status_detail) == (2, 1)
    assert str(caught.value) == "CHAP name or secret is wrong"


@pytest.mark.parametrize("proof", [Credentials("main1", Secret("wrong")), Credentials("main2", MAIN.secret)])
def test_a_target_that_does_not_prove_itself_is_refused(proof):
    with pytest.raises(LoginError, match="mutual"):
        conversation(ChapTarget(ChapAuth((HOST,), proof)), ChapInitiator(HOST, MAIN))


def test_a_target_that_leaves_the_proof_out_is_refused():
    initiator = ChapInitiator(HOST, MAIN)
    initiator.step(dict(ChapTarget(ChapAuth((HOST,))).step({"CHAP_A": "5"})))
    with pytest.raises(LoginError, match="mutual"):
        initiator.step({})


def test_mutual_chap_that_is_not_set_up_is_refused():
    with pytest.raises(LoginError, match="not set up"):
        conversation(ChapTarget(ChapAuth((HOST,))), ChapInitiator(HOST, MAIN))


def test_a_reflected_challenge_is_refused():
    target = ChapTarget(ChapAuth((HOST,), MAIN))
    challenge = dict(target.step({"CHAP_A": "5"}))
    answer = dict(ChapInitiator(HOST).step(challenge))
    with pytest.raises(LoginError, match="our own CHAP challenge"):
        target.step({**answer, "CHAP_I": challenge["CHAP_I"], "CHAP_C": challenge["CHAP_C"]})
    assert not target.done


def test_both_directions_need_different_secrets():
    same = Credentials("main1", HOST.secret)
    with pytest.raises(ValueError, match="differ"):
        ChapAuth((HOST,), same)
    with pytest.raises(ValueError, match="differ"):
        ChapInitiator(HOST, same)


def test_no_common_algorithm():
    with pytest.raises(LoginError):
        ChapTarget(ChapAuth((HOST,), algorithms=(8,))).step({"CHAP_A": "5,6"})
    with pytest.raises(ProtocolError):
        ChapInitiator(HOST, algorithms=(7,)).step({"CHAP_A": "5", "CHAP_I": "1", "CHAP_C": "0x00"})


@pytest.mark.parametrize("values", [{}, {"CHAP_N": "host1"}, {"CHAP_R": "0x00"}, {"CHAP_N": "host1", "CHAP_R": "zz"},
                                    {"CHAP_N": "host1", "CHAP_R": "0x"}, {"CHAP_N": "host1", "CHAP_R": "0b!"},
                                    {"CHAP_N": "host1", "CHAP_R": "0x" + "00" * 1025}])
def test_malformed_responses(values):
    target = ChapTarget(ChapAuth((HOST,)))
    target.step({"CHAP_A": "5"})
    with pytest.raises(ProtocolError):
        target.step(values)
    assert not target.done


@pytest.mark.parametrize("identifier", ["256", "-1", "x", ""])
def test_malformed_identifiers(identifier):
    with pytest.raises(ProtocolError):
        ChapInitiator(HOST).step({"CHAP_A": "5", "CHAP_I": identifier, "CHAP_C": "0x00"})


@pytest.mark.parametrize("text, data", [("0x0a0B", b"\x0a\x0b"), ("0xabc", b"\x0a\xbc"), ("0bAAEC", b"\0\1\2"),
                                        ("0BAAEC", b"\0\1\2")])
def test_binary_values(text, data):
    assert chap.decode_binary(text, 1024) == data


def challenge_of(target):
    return dict(target.step({"CHAP_A": "5"}))


def test_a_challenge_reflected_over_a_parallel_connection_is_refused():
    """The attacker logs in twice and has the second login answer the challenge of the first."""
    auth = ChapAuth((HOST,), MAIN)
    first, second = ChapTarget(auth), ChapTarget(auth)
    stolen = challenge_of(first)
    answer = dict(ChapInitiator(HOST).step(challenge_of(second)))
    with pytest.raises(LoginError, match="our own CHAP challenge"):
        second.step({**answer, "CHAP_I": stolen["CHAP_I"], "CHAP_C": stolen["CHAP_C"]})


def test_an_initiator_does_not_answer_what_it_asked_elsewhere():
    first, second = ChapInitiator(HOST, MAIN), ChapInitiator(HOST, MAIN)
    asked = dict(first.step(challenge_of(ChapTarget(ChapAuth((HOST,), MAIN)))))
    with pytest.raises(LoginError, match="our own CHAP challenge"):
        second.step({"CHAP_A": "5", "CHAP_I": asked["CHAP_I"], "CHAP_C": asked["CHAP_C"]})


def test_a_gateway_does_not_answer_to_main_what_its_door_asks_of_hosts(monkeypatch):
    for book in (chap._as_target, chap._as_initiator):
        monkeypatch.setattr(book, "others", ())
    door, towards_main = ChapTarget(ChapAuth((HOST,))), ChapInitiator(HOST)
    challenge = challenge_of(door)
    chap.refuse_across_roles()
    with pytest.raises(LoginError, match="our own CHAP challenge"):
        towards_main.step(challenge)
    assert not towards_main.answered


def test_a_challenge_that_nobody_waits_for_is_forgotten():
    target = ChapTarget(ChapAuth((HOST,)))
    challenge_of(target)
    given = len(chap._as_target.given)
    del target
    assert len(chap._as_target.given) == given - 1


def test_one_challenge_takes_one_response():
    target = ChapTarget(ChapAuth((HOST,)))
    answer = dict(ChapInitiator(HOST).step(challenge_of(target)))
    with pytest.raises(LoginError):
        target.step({"CHAP_N": "host1", "CHAP_R": "0x00"})
    with pytest.raises(ProtocolError, match="over"):
        target.step(answer)
    assert not target.done


def test_a_target_has_one_try_to_prove_itself():
    target, initiator = ChapTarget(ChapAuth((HOST,), MAIN)), ChapInitiator(HOST, MAIN)
    proof = dict(target.step(dict(initiator.step(challenge_of(target)))))
    with pytest.raises(LoginError, match="mutual"):
        initiator.step({"CHAP_N": "main1", "CHAP_R": "0x00"})
    with pytest.raises(ProtocolError, match="over"):
        initiator.step(proof)
    assert not initiator.done


@pytest.mark.parametrize("values", [
    {"CHAP_A": "5", "CHAP_N": "host1"}, {"CHAP_A": "5", "CHAP_R": "0x00"}, {"CHAP_A": "5", "CHAP_I": "1"}])
def test_keys_ahead_of_their_step_are_refused(values):
    with pytest.raises(ProtocolError, match="out of turn"):
        ChapTarget(ChapAuth((HOST,))).step(values)


def test_unknown_names_cost_the_same_hash(monkeypatch):
    """No oracle: name lookup and hash are done whether the name exists or not, over secrets of the same kind."""
    hashed = []
    monkeypatch.setattr(chap, "response_of", lambda *args: hashed.append(args[2].reveal()) or b"\0" * 16)
    for name in ("host1", "nobody"):
        target = ChapTarget(ChapAuth((HOST,)))
        challenge_of(target)
        with pytest.raises(LoginError) as caught:
            target.step({"CHAP_N": name, "CHAP_R": "0x01"})
        assert str(caught.value) == "CHAP name or secret is wrong"
    assert len(hashed) == 2 and hashed[0] == HOST.secret.reveal() and len(hashed[1]) == 32


@pytest.mark.parametrize("user", ["", "a\0b", "a\nb", "u" * 256])
def test_users_that_cannot_be_sent(user):
    with pytest.raises(ValueError, match="printable"):
        Credentials(user, Secret("a secret of twelve"))


@pytest.mark.parametrize("secret, weak", [("a" * 11, True), ("a" * 12, False), ("ä" * 6, False)])
def test_secrets_below_96_bits_are_weak(secret, weak):
    assert Credentials("u", Secret(secret)).weak is weak
    assert ChapAuth((Credentials("u", Secret(secret)),)).weak_users == (["u"] if weak else [])


def test_settings_that_cannot_be():
    for algorithms in ((), (4,)):
        with pytest.raises(ValueError, match="algorithms"):
            ChapAuth((HOST,), algorithms=algorithms)
    with pytest.raises(ValueError, match="twice"):
        ChapAuth((HOST, Credentials("host1", Secret("another secret"))))


def test_challenges_and_identifiers_are_fresh():
    seen = [challenge_of(ChapTarget(ChapAuth((HOST,)))) for _ in range(64)]
    assert len({one["CHAP_C"] for one in seen}) == 64 and len({one["CHAP_I"] for one in seen}) > 8
    assert all(len(chap.decode_binary(one["CHAP_C"], 1024)) == 32 for one in seen)


def test_nothing_shows_a_secret():
    auth = ChapAuth((HOST,), MAIN)
    for shown in (repr(auth), str(HOST), f"{MAIN!r}", repr(vars(ChapTarget(auth))), repr(vars(ChapInitiator(HOST)))):
        assert "a secret of" not in shown
