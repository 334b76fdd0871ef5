"""The initiator's side: connecting, redirects, limits in time, and targets that misbehave."""
import asyncio
import socket
import struct

import pytest

from detour.errors import ClosedError, DetourError, LoginError, ProtocolError, StorageError, TimeoutError_
from detour.iscsi import wire
from detour.iscsi.login_target import Redirect
from detour.iscsi.negotiation import Wishes
from detour.iscsi.session import REDIRECT_HOPS_MAX, LoginOptions, discover, login, new_isid
from tests.support.logins import INITIATOR, TARGET, target_login
from tests.support.patience import SLOWER


class Peer:
    """A server whose answer to a PDU is a function; None closes."""

    def __init__(self, answer):
        self.answer = answer
        self.connections = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await self.server.wait_closed()

    async def serve(self, reader, writer):
        self.connections += 1
        answer = self.answer()
        try:
            while True:
                header = await reader.readexactly(48)
                length = int.from_bytes(header[5:8], "big")
                data = (await reader.readexactly(length + -length % 4))[:length]
                reply = answer(header, data)
                if reply is None:
                    break
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def target(verdict=None):
    """A Peer's answers by the target's own login machine."""
    def begin():
        machine = target_login(verdict() if verdict else None)
        return lambda header, data: machine.receive(wire.LoginRequest.unpack(header, data)).pack()
    return begin


def options(**more):
    return LoginOptions(INITIATOR, **{"login_seconds": 5.0 * SLOWER, "connect_seconds": 5.0 * SLOWER, **more})


def run(work):
    return asyncio.run(work())


def test_a_login_gives_a_socket_in_full_feature_phase():
    async def work():
        async with Peer(target()) as peer:
            done = await login("127.0.0.1", peer.port, TARGET, options(source_ip="127.0.0.1"))
            with done.sock:
                assert done.portal == f"127.0.0.1:{peer.port}" and done.hops == () and done.portal_group == 1
                assert done.params.tsih == 77 and not done.sock.getblocking()
    run(work)


@pytest.mark.parametrize("chain", [1, REDIRECT_HOPS_MAX])
def test_redirects_are_followed(chain):
    async def work():
        async with Peer(target()) as last:
            portal = [f"127.0.0.1:{last.port}"]
            left = [chain]

            def verdict():
                left[0] -= 1
                return Redirect(portal[0] if left[0] == 0 else f"127.0.0.1:{first.port}")

            async with Peer(target(verdict)) as first:
                done = await login("127.0.0.1", first.port, TARGET, options())
                done.sock.close()
                assert done.portal == portal[0] and len(done.hops) == chain and first.connections == chain
    run(work)


def test_a_circle_of_redirects_ends():
    async def work():
        async with Peer(target(lambda: Redirect(f"127.0.0.1:{peer.port}"))) as peer:
            with pytest.raises(LoginError, match="more than 8 times"):
                await login("127.0.0.1", peer.port, TARGET, options())
            assert peer.connections == REDIRECT_HOPS_MAX + 1
    run(work)


def test_a_redirect_that_is_not_to_be_followed_is_told():
    async def work():
        async with Peer(target(lambda: Redirect("192.0.2.9:3260", permanent=True))) as peer:
            with pytest.raises(LoginError, match=r"192\.0\.2\.9:3260") as caught:
                await login("127.0.0.1", peer.port, TARGET, options(follow_redirect=False))
            assert (caught.value.status_class, caught.value.status_detail) == (1, 2)
    run(work)


def test_a_target_that_says_nothing_costs_a_bounded_time():
    async def work():
        async with Peer(lambda: lambda header, data: b"") as peer:
            with pytest.raises(TimeoutError_, match=r"0\.1 s"):
                await login("127.0.0.1", peer.port, TARGET, options(login_seconds=0.1))
    run(work)


@pytest.mark.parametrize("reply, error", [
    (None, ClosedError),
    (wire.reject(4, bytes(48), 0, 0, 0), ProtocolError),
    (bytes(48), ProtocolError),
    (b"\x23\0\0\0\0\xff\xff\xff" + bytes(40), ProtocolError),
    (b"\x23\0\0\0\x01" + bytes(43), ProtocolError),
])
def test_targets_that_misbehave(reply, error):
    async def work():
        async with Peer(lambda: lambda header, data: reply) as peer:
            with pytest.raises(error):
                await login("127.0.0.1", peer.port, TARGET, options())
    run(work)


def test_nobody_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))        # bound, not listening

        async def work():
            with pytest.raises(StorageError, match="cannot be reached"):
                await login("127.0.0.1", taken.getsockname()[1], TARGET, options())
            for name in ("no.such.host.invalid", "x" * 80, "a..b"):
                with pytest.raises(StorageError, match="cannot be reached"):
                    await login(name, 3260, TARGET, options())
            with pytest.raises(DetourError):
                await login("127.0.0.1", 3260, TARGET, options(source_ip="192.0.2.1"))
        run(work)


def test_no_socket_is_left_behind_by_failures():
    async def work():
        opened = []

        class Counted(socket.socket):
            def connect(self, address):
                opened.append(self)
                return super().connect(address)

        async with Peer(lambda: lambda header, data: bytes(48)) as peer:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("detour.iscsi.session.socket.socket", Counted)
                with pytest.raises(ProtocolError):
                    await login("127.0.0.1", peer.port, TARGET, options())
        assert opened and all(sock.fileno() == -1 for sock in opened)
    run(work)


def test_discovery_reads_names_and_addresses():
    text = (b"TargetName=iqn.2026-01.x:a\0TargetAddress=192.0.2.1:3260,1\0TargetAddress=[2001:db8::1]:3261,2\0"
            b"TargetName=iqn.2026-01.x:b\0")

    def begin():
        machine = target_login()

        def answer(header, data):
            opcode = header[0] & 0x3F
            if opcode == wire.OP_LOGIN_REQUEST:
                return machine.receive(wire.LoginRequest.unpack(header, data)).pack()
            if opcode == wire.OP_TEXT_REQUEST:
                request = wire.TextRequest.unpack(header, data)
                first = request.ttt == wire.TAG_NONE
                return wire.TextResponse(request.itt, ttt=5 if first else wire.TAG_NONE, final=not first, more=first,
                                         data=text[:40] if first else text[40:]).pack()
            return wire.logout_response(3, 0, 0, 0)
        return answer

    async def work():
        async with Peer(begin) as peer:
            found = await discover("127.0.0.1", peer.port, options())
            assert [(one.name, one.addresses) for one in found] == [
                ("iqn.2026-01.x:a", (("192.0.2.1", 3260, 1), ("2001:db8::1", 3261, 2))),
                ("iqn.2026-01.x:b", (("127.0.0.1", peer.port, None),))]
    run(work)


def discovering(text_answer, *, seen=None):
    """A portal whose answers to Text Requests are those of a function of the request and its number."""
    def begin():
        machine = target_login()
        asked = 0

        def answer(header, data):
            nonlocal asked
            opcode = header[0] & 0x3F
            if opcode == wire.OP_LOGIN_REQUEST:
                return machine.receive(wire.LoginRequest.unpack(header, data)).pack()
            if seen is not None:
                seen.append((opcode, header))
            if opcode == wire.OP_TEXT_REQUEST:
                asked += 1
                return text_answer(wire.TextRequest.unpack(header, data), asked)
            return wire.logout_response(3, 0, 0, 0) if opcode == wire.OP_LOGOUT_REQUEST else b""
        return answer
    return begin


TARGET_A = b"TargetName=iqn.2026-01.x:a\0"


def response(request, **fields):
    return wire.TextResponse(**{"itt": request.itt, "data": TARGET_A, **fields}).pack()


@pytest.mark.parametrize("answer, error", [
    (lambda request, number: response(request, itt=99), "another Text Request"),
    (lambda request, number: response(request, final=True, more=True), "goes on"),
    (lambda request, number: response(request, final=True, ttt=5), "goes on"),
    (lambda request, number: response(request, final=False), "without a tag"),
    (lambda request, number: response(request, data=b"", final=False, ttt=5), "does not end"),
    (lambda request, number: response(request, data=bytes(200_000)), "bytes of data"),
    (lambda request, number: response(request, data=b"X" * 8000 + b"=", final=False, more=True, ttt=5), "longer than"),
    (lambda request, number: response(request, data=b"TargetName=iqn.2026-01.x:\x1b[2J\0"), "no iSCSI name"),
    (lambda request, number: response(request, data=TARGET_A + b"TargetAddress=a b\0"), "no address"),
    (lambda request, number: response(request, data=TARGET_A + b"TargetAddress=h:99999\0"), "no address"),
    (lambda request, number: response(request, data=b"\xff\xfe"), "UTF-8"),
    (lambda request, number: wire.reject(4, bytes(48), 0, 0, 0), "PDU 3fh"),
    (lambda request, number: b"\x25\x80" + bytes(46), "PDU 25h")])
def test_answers_to_discovery_that_mean_harm(answer, error):
    async def work():
        async with Peer(discovering(answer)) as peer:
            with pytest.raises(ProtocolError, match=error):
                await discover("127.0.0.1", peer.port, options(wishes=Wishes(recv_data_bytes_max=65536)))
    run(work)


def test_discovery_answers_pings_and_keeps_the_lun_of_a_long_answer():
    seen = []
    lun = b"\0\7" + bytes(6)

    def answer(request, number):
        if number == 1:
            ping = struct.pack(">BBxxI8sIIIII12x", wire.OP_NOP_IN, 0x80, 0, lun, wire.TAG_NONE, 77, 10, 0, 0)
            return ping + response(request, final=False, ttt=5, lun=lun, stat_sn=11)
        return response(request, data=b"TargetAddress=[::1]:9,1\0", stat_sn=12)

    async def work():
        async with Peer(discovering(answer, seen=seen)) as peer:
            found = await discover("127.0.0.1", peer.port, options())
            assert [(one.name, one.addresses) for one in found] == [("iqn.2026-01.x:a", (("::1", 9, 1),))]
    run(work)
    pong = next(header for opcode, header in seen if opcode == wire.OP_NOP_OUT)
    assert pong[8:16] == lun and pong[16:24] == b"\xff" * 4 + (77).to_bytes(4, "big")
    second = [header for opcode, header in seen if opcode == wire.OP_TEXT_REQUEST][1]
    assert second[8:16] == lun and second[20:24] == (5).to_bytes(4, "big") and second[28:32] == (12).to_bytes(4, "big")


def test_a_discovery_session_that_the_portal_ends():
    async def work():
        def end(request, number):
            return b"".join(struct.pack(">BBxxI8xI4xIIIB11x", wire.OP_ASYNC_MESSAGE, 0x80, 0, wire.TAG_NONE, 5, 0, 0,
                                        event) for event in (wire.ASYNC_SCSI, wire.ASYNC_DROP_CONNECTION))

        async with Peer(discovering(end)) as peer:
            with pytest.raises(ClosedError, match="event 2"):
                await discover("127.0.0.1", peer.port, options())
    run(work)


def test_digests_are_not_asked_for_in_discovery():
    asked = []

    def begin():
        answer = discovering(lambda request, number: response(request))()

        def noting(header, data):
            asked.extend(value for key, value in wire.decode_text(data) if key.endswith("Digest"))
            return answer(header, data)
        return noting

    async def work():
        async with Peer(begin) as peer:
            wishes = Wishes(header_digest=("CRC32C",), data_digest=("CRC32C",))
            assert (await discover("127.0.0.1", peer.port, options(wishes=wishes)))[0].name == "iqn.2026-01.x:a"
    run(work)
    assert asked == ["None", "None"]


def test_isids_are_of_the_random_kind_and_differ():
    assert len({new_isid() for _ in range(50)}) == 50
    assert all(len(isid) == 6 and isid[0] == 0x80 for isid in (new_isid(), new_isid(7)))
    assert new_isid(7).endswith(b"\0\x07")


@pytest.mark.parametrize("wrong", [{"initiator_name": "host"}, {"initiator_name": INITIATOR, "isid": b"12345"}])
def test_options_are_checked(wrong):
    with pytest.raises(ValueError):
        LoginOptions(**wrong)
