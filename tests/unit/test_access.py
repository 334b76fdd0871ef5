"""Access rules: names with wildcards, networks, what is no rule; who is told what at the door."""
import asyncio

import pytest

from detour.disk_options import DiskOptions
from detour.embedded import EmbeddedTarget
from detour.errors import LoginError, UsageError
from detour.iscsi.access import Access, matches, parse_network, parse_pattern
from detour.iscsi.chap import Credentials
from detour.iscsi.listener import TargetEntry
from detour.iscsi.login_target import Accept
from detour.iscsi.session import LoginOptions, discover, login, send_targets
from detour.iscsi.wire import LoginRequest, LoginResponse
from detour.runtime import Runtime
from detour.urls import Secret, parse_endpoint
from tests.support.logins import AUTH, HOST, INITIATOR, MAIN, TARGET, initiator_login, target_login
from tests.support.sinks import Door

NAME = "iqn.2026-01.example:host1"


@pytest.mark.parametrize("pattern, name, expected", [
    (NAME, NAME, True), (NAME, NAME + "2", False), (NAME + "2", NAME, False), ("iqn.2026-01.example:*", NAME, True),
    ("*:host?", NAME, True), ("*:host??", NAME, False), ("*", NAME, True), ("*host1*", NAME, True), ("?*?", "ab", True),
    ("?*?", "a", False), ("*a*b", "xaxbxa", False), ("*a*b", "xaxbxab", True), ("a.c", "abc", False), ("", "", True),
    ("", "a", False), ("**", "", True)])
def test_wildcards(pattern, name, expected):
    assert matches(pattern, name) is expected


def test_a_long_name_costs_little():
    assert not matches("*a" * 100 + "b", "a" * 223)


def test_names_are_compared_without_case():
    assert Access.of([NAME.upper().replace("IQN.", "iqn.")]).admits(NAME.upper(), "192.0.2.1")


@pytest.mark.parametrize("networks, host, expected", [
    (["192.0.2.0/24"], "192.0.2.77", True), (["192.0.2.0/24"], "192.0.3.1", False), (["192.0.2.7"], "192.0.2.7", True),
    (["192.0.2.7"], "192.0.2.8", False), (["2001:db8::/32"], "2001:db8:1::5", True), (["2001:db8::/32"], "::1", False),
    (["192.0.2.0/24"], "::ffff:192.0.2.9", True), (["fe80::/10"], "fe80::1%eth0", True),
    (["0.0.0.0/0"], "2001:db8::1", False), (["192.0.2.0/24", "::1"], "::1", True),
    (["192.0.2.0/24"], "nonsense", False), ([], "nonsense", True)])
def test_networks(networks, host, expected):
    assert Access.of(networks=networks).admits(NAME, host) is expected


def test_both_lists_must_admit():
    rules = Access.of(["*:host1"], ["192.0.2.0/24"])
    assert rules.admits(NAME, "192.0.2.1")
    assert not rules.admits(NAME + "x", "192.0.2.1") and not rules.admits(NAME, "198.51.100.1")


def test_without_rules_everyone_is_admitted():
    assert Access().admits("anything", "")


@pytest.mark.parametrize("text", ["", "host1", "iqn.2026-01.example:a b", "iqn. *", "iqn.*,x", "*" * 300])
def test_what_is_no_name(text):
    with pytest.raises(UsageError):
        parse_pattern(text)


@pytest.mark.parametrize("text", ["", "192.0.2.1/24", "192.0.2.0/33", "example.org", "1:2", "192.0.2"])
def test_what_is_no_network(text):
    with pytest.raises(UsageError):
        parse_network(text)


def last_answer(credentials):
    """The Login Response that refuses, as bytes."""
    target = target_login(Accept(AUTH), random=lambda length: b"\7" * length)
    initiator = initiator_login(credentials=credentials, random=lambda length: b"\5" * length)
    request = initiator.first()
    while not target.failure:
        response = target.receive(LoginRequest.unpack(request.pack()[:48], request.data))
        if not target.failure:
            request = initiator.receive(LoginResponse.unpack(response.pack()[:48], response.data))
    return response.pack()


def test_a_wrong_name_and_a_wrong_secret_get_the_same_answer():
    answers = {last_answer(Credentials(user, Secret(secret))) for user, secret in (
        (HOST.user, "a wrong secret"), ("nobody", "a wrong secret"), ("nobody", HOST.secret.reveal()),
        (MAIN.user, MAIN.secret.reveal()))}     # the target's own account is none of a host
    assert len(answers) == 1
    refusal = answers.pop()
    assert refusal[36:38] == b"\2\1" and len(refusal) == 48     # status 0201h, no text


def test_rules_are_asked_before_a_secret_and_after_a_redirect():
    async def work():
        async with Door() as door:
            door.entry.access = Access.of(["iqn.2026-01.example:else"])
            door.entry.auth = AUTH
            assert await refusal_of(door.login(credentials=HOST)) == (2, 2)
            door.entry.accepting = False        # who may not come is not told to come again
            assert await refusal_of(door.login(credentials=HOST)) == (2, 2)
            door.entry.redirect = "127.0.0.9:1"
            assert await refusal_of(door.login(credentials=HOST, follow_redirect=False)) == (1, 1)
            door.entry.redirect, door.entry.access, door.entry.accepting = None, Access.of(networks=["127.0.0.1"]), True
            await door.login(credentials=HOST)
            door.entry.access = Access.of(networks=["::1"])
            assert await refusal_of(door.login(credentials=HOST)) == (2, 2)
    asyncio.run(work())


async def refusal_of(attempt):
    with pytest.raises(LoginError) as caught:
        await attempt
    return caught.value.status_class, caught.value.status_detail


def test_discovery_shows_what_an_initiator_may_reach():
    async def work():
        async with Door() as door:
            for name, rules in (
                    ("a", Access.of([INITIATOR])), ("b", Access.of(["iqn.2026-01.example:else"])),
                    ("c", Access.of(networks=["192.0.2.0/24"])), ("d", Access.of(["*:host"], ["127.0.0.0/8"]))):
                door.listener.add_target(TargetEntry(f"iqn.2026-01.example:{name}", door.sink, access=rules))
            options = LoginOptions(INITIATOR)
            found = {one.name[-2:] for one in await discover(door.host, door.port, options)}
            assert found == {TARGET[-2:], ":a", ":d"}
            for wanted, seen in (("iqn.2026-01.example:b", 0), ("iqn.2026-01.example:a", 1)):
                assert len(await discover(door.host, door.port, options, wanted)) == seen
    asyncio.run(work())


def test_a_session_asks_for_its_own_target():
    async def work():
        async with Runtime() as runtime:
            target = EmbeddedTarget(runtime, TARGET)
            try:
                await target.add_disk("mem:1MiB", DiskOptions())
                host, port = parse_endpoint(await target.listen("127.0.0.1:0"))
                done = await login(host, port, TARGET, LoginOptions(INITIATOR))
                found = await send_targets(done, "", 5.0)
                assert [(one.name, one.addresses) for one in found] == [(TARGET, ((host, port, 1),))]
            finally:
                await target.close()
    asyncio.run(work())
