"""The target side's door: hand-over, replacement of sessions, limits, redirects, discovery, hostile peers."""
import asyncio
import contextlib
import os
import socket
import struct

import pytest
import structlog

from detour import events
from detour.errors import BusyError, ClosedError, LoginError, UsageError
from detour.iscsi import wire
from detour.iscsi.access import Access
from detour.iscsi.chap import ChapAuth
from detour.iscsi.keys import parse_target_address
from detour.iscsi.listener import TargetEntry
from detour.iscsi.login_target import Redirect
from detour.iscsi.session import LoginOptions, discover, login, new_isid
from detour.limits import LoginLimits
from detour.urls import format_endpoint
from tests.support.logins import AUTH, HOST, INITIATOR, MAIN, NAMES, TARGET, first_request
from tests.support.ports import has_ipv6
from tests.support.sinks import Door

OTHER = "iqn.2026-01.example:other"


async def refused(attempt):
    with pytest.raises(LoginError) as caught:
        await attempt
    return caught.value.status_class, caught.value.status_detail


async def ended(sock):
    """Whether the peer closes, after whatever it still sends."""
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(sock, 4096):
                pass
    return True


def run(work):
    return asyncio.run(work())


def test_a_session_is_handed_over_with_what_was_negotiated():
    async def work():
        async with Door() as door:
            done = await door.login()
            await door.until(lambda: door.listener.sessions)
            info, = door.listener.sessions_of(TARGET)
            assert (info.target, info.initiator_name, info.tsih) == (TARGET, INITIATOR, done.params.tsih)
            assert info.peer == "{}:{}".format(*done.sock.getsockname())
            params = door.sink.params[info.id]
            assert params["send_data_bytes_max"] == done.params.recv_data_bytes_max
            assert params["cmd_sn"] == done.params.cmd_sn and params["stat_sn"] == done.params.stat_sn
            # What the initiator sends behind its login is untouched.
            await wire.send(done.sock, b"first command")
            with socket.socket(fileno=os.dup(door.sink.sessions[info.id])) as taken:
                assert await asyncio.get_running_loop().sock_recv(taken, 100) == b"first command"
    run(work)


def test_a_session_that_ended_is_forgotten():
    async def work():
        async with Door() as door:
            await door.login()
            await door.until(lambda: door.listener.sessions)
            door.runtime.callbacks[events.SESSION_CLOSED, 1](0, (-7, 0), None)
            assert not door.listener.sessions and not door.runtime.callbacks
            await door.listener.drop(1)
            assert ("drop", 1) not in door.sink.log
    run(work)


def test_a_new_login_of_the_same_nexus_replaces_the_old_session_first():
    async def work():
        async with Door() as door:
            await door.login()
            await door.until(lambda: door.listener.sessions)
            door.sink.hold_drops = True
            second = asyncio.create_task(door.login())
            await door.until(lambda: ("drop", 1) in door.sink.log)
            await asyncio.sleep(0.05)
            assert not second.done()        # not answered while a task of the old session may still run
            door.runtime.release()
            await second
            await door.until(lambda: 2 in door.listener.sessions)
            assert [entry[:2] for entry in door.sink.log] == [("adopt", 1), ("drop", 1), ("adopt", 2)]
            assert list(door.listener.sessions) == [2]
            await door.login(isid=new_isid())       # another nexus stands beside it
            await door.until(lambda: len(door.listener.sessions) == 2)
    run(work)


def test_a_login_whose_forerunner_does_not_end_is_told_to_come_back():
    async def work():
        async with Door(LoginLimits(drop_seconds=0.1)) as door:
            await door.login()
            await door.until(lambda: door.listener.sessions)
            door.sink.hold_drops = True
            assert await refused(door.login()) == (3, 1)
            assert len(door.sink.params) == 1
            door.runtime.release()
    run(work)


@pytest.mark.parametrize("target, change, status", [
    (OTHER, {}, (2, 3)), (TARGET, {"accepting": False}, (3, 1)), (TARGET, {"handle": None}, (3, 1)),
    (TARGET, {"access": Access.of([OTHER])}, (2, 2)), (TARGET, {"auth": AUTH}, (2, 1))])
def test_logins_that_are_refused(target, change, status):
    async def work():
        async with Door() as door:
            for name, value in change.items():
                setattr(door.entry, name, value)
            assert await refused(door.login(target)) == status
            assert door.listener.logins_refused == 1 and not door.sink.params
    run(work)


def test_chap_both_ways():
    async def work():
        async with Door() as door:
            door.entry.auth = AUTH
            await door.login(credentials=HOST, mutual=MAIN)
            await door.until(lambda: door.listener.sessions)
            assert door.listener.sessions[1].user == HOST.user
    run(work)


def test_a_second_connection_of_a_session_is_refused():
    async def work():
        async with Door() as door:
            done = await door.login()
            await door.until(lambda: door.listener.sessions)
            own, foreign = done.params.tsih, [("InitiatorName", OTHER), ("TargetName", TARGET)]
            for names, fields, status in (
                    (NAMES, {"tsih": own}, 6), (NAMES, {"tsih": own, "cid": 7}, 6), (NAMES, {"tsih": own + 1}, 10),
                    (foreign, {"tsih": own}, 10), (NAMES, {"tsih": own, "isid": new_isid()}, 10)):
                sock = await door.connect()
                await wire.send(sock, first_request(names, **fields).pack())
                response = wire.LoginResponse.unpack(*await wire.receive_pdu(sock))
                assert (response.status_class, response.status_detail) == (2, status)
    run(work)


def test_sessions_are_bounded():
    async def work():
        async with Door(LoginLimits(sessions_max=1)) as door:
            await door.login()
            await door.until(lambda: door.listener.sessions)
            assert await refused(door.login(isid=new_isid())) == (3, 2)
            await door.login()      # replaces itself
    run(work)


def test_logins_are_bounded_in_number_and_time():
    async def work():
        async with Door(LoginLimits(logins_max=2, login_seconds=0.3, drop_seconds=0.1)) as door:
            slow = [await door.connect(), await door.connect()]
            await asyncio.sleep(0.02)
            await wire.send(slow[0], b"\x43")
            newest = await door.connect()
            assert await ended(slow[0]) and door.listener.logins_crowded_out == 1
            await door.login()                              # in front of whoever only waits
            assert await ended(slow[1]) and await ended(newest)
            assert not door.listener._waiting and not door.listener._connections
    run(work)


def test_a_login_that_sends_a_byte_now_and_then_has_the_same_time():
    async def work():
        async with Door(LoginLimits(login_seconds=0.4, drop_seconds=0.1)) as door:
            sock, begun = await door.connect(), asyncio.get_running_loop().time()
            request = first_request(NAMES).pack()
            with contextlib.suppress(ConnectionError):
                for at in range(len(request)):
                    await wire.send(sock, request[at:at + 1])
                    await asyncio.sleep(0.05)
                    if asyncio.get_running_loop().time() - begun > 5:
                        break
            assert await ended(sock) and not door.listener.sessions
    run(work)


def test_discovery_sessions_count_as_long_as_they_last():
    async def work():
        async with Door(LoginLimits(logins_max=2, discovery_life_seconds=0.5, discovery_seconds=0.5)) as door:
            socks = [(await door.login(None)).sock for _ in range(3)]
            assert await ended(socks[0])
            begun = asyncio.get_running_loop().time()
            with contextlib.suppress(ConnectionError, ClosedError):
                for itt in range(100):                      # never silent, and yet it ends
                    nop = struct.pack(">BBxxI8xIIII16x", wire.OP_NOP_OUT | wire.OP_IMMEDIATE, 0x80, 0, itt + 9,
                                      wire.TAG_NONE, 0, 0)
                    await wire.send(socks[2], nop)
                    await wire.receive_pdu(socks[2])
                    await asyncio.sleep(0.05)
            assert asyncio.get_running_loop().time() - begun < 4
    run(work)


@pytest.mark.parametrize(("limits", "same_initiator", "same_target"), [
    ({"sessions_per_target_max": 1}, False, True), ({"sessions_per_initiator_max": 1}, True, False)])
def test_sessions_are_bounded_by_target_and_by_initiator(limits, same_initiator, same_target):
    async def work():
        async with Door(LoginLimits(**limits)) as door:
            door.listener.add_target(TargetEntry(OTHER, door.sink))
            other_host = {} if same_initiator else {"initiator": OTHER}
            await door.login()
            await door.until(lambda: door.listener.sessions)
            await door.login(TARGET if not same_target else OTHER, initiator=OTHER, isid=new_isid())
            await door.until(lambda: len(door.listener.sessions) == 2)
            target = TARGET if same_target else OTHER
            assert await refused(door.login(target, isid=new_isid(), **other_host)) == (3, 2)
            await door.login()                              # replaces itself
    run(work)


def test_the_last_place_is_given_once():
    async def work():
        async with Door(LoginLimits(sessions_max=1)) as door:
            answers = await asyncio.gather(*(door.login(isid=new_isid()) for _ in range(5)), return_exceptions=True)
            await door.until(lambda: door.listener.sessions)
            codes = [(one.status_class, one.status_detail) for one in answers if isinstance(one, LoginError)]
            assert codes == [(3, 2)] * 4 and len(door.listener.sessions) == 1
    run(work)


@pytest.mark.parametrize("raw", [
    bytes(48), b"GET / HTTP/1.1\r\n" + bytes(64), b"\x43\x87\0\0\x01" + bytes(43),
    b"\x43\x87\0\0\0\xff\xff\xff" + bytes(40), first_request([("A", "x" * 8000)]).pack(), b"\x43\x87"])
def test_rubbish_ends_the_connection_and_nothing_else(raw):
    async def work():
        async with Door(LoginLimits(login_seconds=1, drop_seconds=0.1)) as door:
            sock = await door.connect()
            await wire.send(sock, raw)
            sock.shutdown(socket.SHUT_WR)
            assert await ended(sock)
            await door.login()
    run(work)


def test_endless_text_is_refused():
    async def work():
        async with Door(LoginLimits(text_bytes_max=16384)) as door:
            sock = await door.connect()
            request = first_request([], more=True, transit=False, nsg=0)
            request.data = b"A=" + b"x" * 8000
            for status_class in (0, 0, 2):
                await wire.send(sock, request.pack())
                response = wire.LoginResponse.unpack(*await wire.receive_pdu(sock))
                assert response.status_class == status_class
            assert await ended(sock)
    run(work)


def test_redirects_by_address_and_by_rule():
    async def work():
        async with Door() as door, Door() as elsewhere:
            asked = []

            def rule(initiator, peer, isid):
                asked.append((initiator, peer, len(isid)))
                return f"{elsewhere.host}:{elsewhere.port}" if len(asked) == 1 else None

            door.entry.redirect = f"{elsewhere.host}:{elsewhere.port}"
            door.entry.auth = AUTH      # the redirect comes first
            door.entry.accepting = False
            done = await door.login()
            assert done.port == elsewhere.port and done.hops == (f"127.0.0.1:{elsewhere.port}",)
            assert not door.sink.params and door.listener.redirects == 1
            door.entry.auth, door.entry.accepting, door.entry.redirect = None, True, rule
            assert (await door.login()).port == elsewhere.port
            assert (await door.login()).port == door.port
            assert asked == [(INITIATOR, "127.0.0.1", 6)] * 2
    run(work)


@pytest.mark.parametrize("address", ["gateway.example", "gateway.example:3261", "192.0.2.9", "192.0.2.9:3260",
                                     "[2001:db8::9]", "[::1]:3260"])
@pytest.mark.parametrize("permanent", [False, True])
def test_redirects_to_names_and_addresses_of_both_kinds(address, permanent):
    async def work():
        async with Door() as door:
            for rule in (Redirect(address, permanent), lambda *_: Redirect(address, permanent)):
                door.entry.redirect = rule
                sock = await door.connect()
                await wire.send(sock, first_request(NAMES).pack())
                response = wire.LoginResponse.unpack(*await wire.receive_pdu(sock))
                assert (response.status_class, response.status_detail) == (1, 2 if permanent else 1)
                assert response.data == f"TargetAddress={address}\0".encode() and not response.transit
                assert await ended(sock)
                host, port, tag = parse_target_address(address)
                with pytest.raises(LoginError) as caught:
                    await door.login(follow_redirect=False)
                assert format_endpoint(host, port) in caught.value.message and tag is None
    run(work)


@pytest.mark.parametrize("address", ["", "host name", "host:0", "host:70000", "::1", "[::1", "192.0.2.9:3260,1", "a,b"])
def test_redirects_to_nowhere_are_refused(address):
    with pytest.raises(UsageError):
        Redirect(address)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
def test_a_portal_of_ipv6():
    async def work():
        async with Door() as door:
            host, port = await door.listener.listen("::1", 0)
            door.entry.redirect = lambda name, peer, isid: f"127.0.0.1:{door.port}" if peer == "::1" else None
            moved = await login(host, port, TARGET, LoginOptions(INITIATOR))
            assert moved.portal == f"127.0.0.1:{door.port}"
            moved.sock.close()
            door.entry.redirect = f"[::1]:{port}"
            (found,) = await discover("127.0.0.1", door.port, LoginOptions(INITIATOR))
            assert found.addresses == (("127.0.0.1", door.port, 1),)
            door.entry.redirect = None
            (found,) = await discover(host, port, LoginOptions(INITIATOR))
            assert found.addresses == (("::1", port, 1),)
            done = await login(host, port, TARGET, LoginOptions(INITIATOR))
            done.sock.close()
            await door.until(lambda: any(info.peer.startswith("[::1]:") for info in door.listener.sessions.values()))
    run(work)


def test_a_redirect_rule_that_fails_ends_that_login_only():
    async def work():
        async with Door() as door:
            door.entry.redirect = lambda initiator, peer, isid: 1 // 0
            with structlog.testing.capture_logs() as told, pytest.raises(ClosedError):
                await door.login()
            assert [entry["event"] for entry in told] == ["a login failed"]
            door.entry.redirect = None
            await door.login()
    run(work)


def test_discovery_tells_targets_and_their_address():
    async def work():
        async with Door() as door:
            door.listener.add_target(TargetEntry(OTHER, None, portal_group=5, redirect="192.0.2.1:3260"))
            door.listener.add_target(TargetEntry(OTHER + "2", None, accepting=False))
            found = await discover(door.host, door.port, LoginOptions(INITIATOR))
            assert [(one.name, one.addresses) for one in found] == [
                (TARGET, ((door.host, door.port, 1),)), (OTHER, ((door.host, door.port, 5),))]
        async with Door(advertise="gw.example:3260", discovery_auth=AUTH) as door:
            assert await refused(discover(door.host, door.port, LoginOptions(INITIATOR))) == (2, 1)
            found = await discover(door.host, door.port, LoginOptions(INITIATOR, credentials=HOST))
            assert found[0].addresses == (("gw.example", 3260, 1),)
    run(work)


def test_a_long_list_of_targets_comes_in_pieces():
    async def work():
        async with Door() as door:
            names = [f"{OTHER}-{number:04d}" for number in range(4000)]
            for name in names:
                door.listener.add_target(TargetEntry(name, door.sink))
            found = await discover(door.host, door.port, LoginOptions(INITIATOR))
            assert [one.name for one in found] == [TARGET, *names]
    run(work)


async def discovery_session(door):
    sock = await door.connect()
    await wire.send(sock, first_request([("InitiatorName", INITIATOR), ("SessionType", "Discovery")]).pack())
    response = wire.LoginResponse.unpack(*await wire.receive_pdu(sock))
    assert response.transit and response.tsih
    return sock, response


def test_a_discovery_session_answers_pings_rubbish_and_logout():
    async def work():
        async with Door() as door:
            sock, _ = await discovery_session(door)
            ping = struct.pack(">BBxxI8xIIII16x", 0x40, 0x80, 4, 7, wire.TAG_NONE, 9, 0)
            await wire.send(sock, ping + b"ping")
            header, data = await wire.receive_pdu(sock)
            assert header[0] == wire.OP_NOP_IN and data == b"ping" and header[16:20] == b"\0\0\0\7"
            command = b"\x01\x80" + bytes(46)
            await wire.send(sock, command)
            header, data = await wire.receive_pdu(sock)
            assert header[0] == wire.OP_REJECT and data == command
            await wire.send(sock, wire.TextRequest(8, data=b"SendTargets=" + OTHER.encode() + b"\0X-a=1\0").pack())
            response = wire.TextResponse.unpack(*await wire.receive_pdu(sock))
            assert response.itt == 8 and response.data == b"X-a=NotUnderstood\0"
            await wire.send(sock, wire.logout_request(9, 0, 10, 0))
            header, _ = await wire.receive_pdu(sock)
            assert header[0] == wire.OP_LOGOUT_RESPONSE and header[2] == 0
            assert await ended(sock)
    run(work)


def test_a_silent_discovery_session_ends():
    async def work():
        async with Door(LoginLimits(discovery_seconds=0.05)) as door:
            sock, _ = await discovery_session(door)
            assert await ended(sock)
    run(work)


def test_send_targets_in_a_normal_session_tells_only_its_own_target():
    async def work():
        async with Door() as door:
            door.listener.add_target(TargetEntry(OTHER, door.sink))
            await door.login()
            await door.until(lambda: door.listener.sessions)
            ask = door.runtime.callbacks[events.TEXT_REQUEST, 1]
            own = f"TargetName={TARGET}\0TargetAddress=127.0.0.1:{door.port},1\0".encode()
            by_name = f"SendTargets={TARGET}\0".encode()
            other = f"SendTargets={OTHER}\0".encode()
            for itt, text, answer in ((3, b"SendTargets=\0", own), (4, b"SendTargets=All\0", b"SendTargets=Reject\0"),
                                      (5, b"X-y=1\0", b"X-y=NotUnderstood\0"), (6, by_name, own), (7, other, b""),
                                      (8, b"MaxBurstLength=512\0", b"MaxBurstLength=Reject\0")):
                ask(0, (itt,), text)
                assert door.sink.log[-1] == ("text", 1, itt, answer, 0)
            ask(0, (9,), b"MaxRecvDataSegmentLength=4096\0")
            assert door.sink.log[-1] == ("text", 1, 9, b"", 4096)
            for itt, text in ((10, b"\xff\xff"), (11, b"MaxRecvDataSegmentLength=100\0"), (12, b"A=1\0A=2\0")):
                ask(0, (itt,), text)
                assert door.sink.log[-1] == ("reject", 1, itt, wire.REJECT_PROTOCOL)
    run(work)


def test_close_ends_logins_under_way():
    async def work():
        async with Door() as door:
            sock = await door.connect()
            await asyncio.sleep(0.02)
            await door.listener.close()
            assert await ended(sock)
            with pytest.raises((ConnectionRefusedError, OSError)):
                await door.connect()
    run(work)


def test_a_portal_that_cannot_be_opened_is_told():
    async def work():
        async with Door() as door:
            with pytest.raises(BusyError, match="in use"):
                await door.listener.listen("127.0.0.1", door.port)
            with pytest.raises(UsageError):
                await door.listener.listen("no.such.host.invalid", 0)
            with pytest.raises(UsageError):
                door.listener.add_target(TargetEntry(TARGET.upper()))
    run(work)


def test_limits_are_checked():
    for wrong in ({"sessions_max": 0}, {"logins_max": 0}, {"text_bytes_max": 10}, {"drop_seconds": 99.0},
                  {"discovery_seconds": 0}):
        with pytest.raises(UsageError):
            LoginLimits(**wrong)


def test_secrets_do_not_show_in_an_entry():
    entry = TargetEntry(TARGET, auth=ChapAuth((HOST,), MAIN))
    assert "a secret of" not in repr(entry)
