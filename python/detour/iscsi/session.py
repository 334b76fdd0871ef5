"""The initiator's side of a login with its I/O: connect, exchange PDUs, follow redirects; and discovery.

The result is a socket in full feature phase with the negotiated values, to be handed to the core.
"""
from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

from detour.errors import ClosedError, LoginError, ProtocolError, StorageError, TimeoutError_
from detour.iscsi import keys, wire
from detour.iscsi.chap import OFFERED, Credentials
from detour.iscsi.login_initiator import InitiatorLogin
from detour.iscsi.negotiation import Redirected, SessionParams, Wishes
from detour.urls import format_endpoint

REDIRECT_HOPS_MAX = 8
TEXT_BYTES_MAX = 2**20          # of a SendTargets answer
TEXT_PDUS_MAX = 4096
TEXT_TASK = 2                   # task tag of the question

T = TypeVar("T")


def new_isid(qualifier: int = 0) -> bytes:
    """A random ISID (type 10b of RFC 7143 section 11.12.5) with a qualifier of 16 bits."""
    return b"\x80" + os.urandom(3) + qualifier.to_bytes(2, "big")


@dataclass(frozen=True)
class LoginOptions:
    """How to log in. source_ip: local address to connect from. connect_seconds: for TCP; login_seconds: for the whole
    exchange with one portal. chap_algorithms: CHAP_A numbers in the order in which they are offered."""

    initiator_name: str
    isid: bytes = field(default_factory=new_isid)
    source_ip: str | None = None
    follow_redirect: bool = True
    wishes: Wishes = field(default_factory=Wishes)
    credentials: Credentials | None = None
    mutual: Credentials | None = None
    connect_seconds: float = 5.0
    login_seconds: float = 15.0
    chap_algorithms: tuple[int, ...] = OFFERED

    def __post_init__(self) -> None:
        if not keys.valid_name(self.initiator_name):
            raise ValueError(f"{self.initiator_name!r} is no iSCSI name")
        if len(self.isid) != 6:
            raise ValueError("an ISID has 6 bytes")
        if self.mutual and self.credentials and self.mutual.secret == self.credentials.secret:
            raise ValueError("CHAP secrets of the two directions must differ (RFC 7143 section 9.2.1)")


@dataclass
class Login:
    """A socket in full feature phase. `portal` is where it ended; `hops` the addresses of the redirects on the way."""

    sock: socket.socket
    params: SessionParams
    host: str
    port: int
    hops: tuple[str, ...]
    portal_group: int | None
    target_alias: str

    @property
    def portal(self) -> str:
        return format_endpoint(self.host, self.port)


@dataclass(frozen=True)
class DiscoveredTarget:
    """What SendTargets told: a target name and its addresses (host, port, portal group tag)."""

    name: str
    addresses: tuple[tuple[str, int, int | None], ...]


async def _bounded(work: Awaitable[T], seconds: float, what: str) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise TimeoutError_(f"{what} took longer than {seconds:g} s") from None


async def open_socket(host: str, port: int, source_ip: str | None, seconds: float) -> socket.socket:
    """A connected, non-blocking socket without delay. StorageError or TimeoutError_ otherwise."""
    loop = asyncio.get_running_loop()
    portal = format_endpoint(host, port)

    async def attempt() -> socket.socket:
        failure = "no address"
        for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                if source_ip:
                    sock.bind((source_ip, 0))
                await loop.sock_connect(sock, address)
                return sock
            except OSError as error:
                sock.close()
                failure = os.strerror(error.errno) if error.errno else str(error)
            except BaseException:
                sock.close()
                raise
        raise StorageError(f"{portal} cannot be reached: {failure}")

    try:
        return await _bounded(attempt(), seconds, f"connecting to {portal}")
    except (OSError, UnicodeError) as error:       # no host name of a wire or a file can be trusted to be one
        reason = getattr(error, "strerror", None) or "this is no host name"
        raise StorageError(f"{portal} cannot be reached: {reason}") from None


async def _exchange(sock: socket.socket, machine: InitiatorLogin) -> None:
    request: wire.LoginRequest | None = machine.first()
    while request is not None:
        await wire.send(sock, request.pack())
        header, data = await wire.receive_pdu(sock)
        if header[0] & wire.OPCODE_MASK == wire.OP_REJECT:
            raise ProtocolError(f"the target rejects the login (reason {header[2]:#04x})")
        request = machine.receive(wire.LoginResponse.unpack(header, data))


async def login_once(host: str, port: int, target: str | None, options: LoginOptions) -> Login:
    """One login at one portal. Redirected, LoginError, ProtocolError, StorageError, ClosedError or TimeoutError_
    otherwise; then the socket is closed."""
    sock = await open_socket(host, port, options.source_ip, options.connect_seconds)
    machine = InitiatorLogin(initiator_name=options.initiator_name, target_name=target, isid=options.isid,
                             wishes=options.wishes, credentials=options.credentials, mutual=options.mutual,
                             algorithms=options.chap_algorithms)
    portal = format_endpoint(host, port)
    try:
        await _bounded(_exchange(sock, machine), options.login_seconds, f"the login at {portal}")
    except OSError as error:
        sock.close()
        raise ClosedError(f"{portal} broke off the login: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise
    assert machine.params is not None
    return Login(sock, machine.params, host, port, (), machine.portal_group, machine.target_alias)


async def login(host: str, port: int, target: str | None, options: LoginOptions) -> Login:
    """A login that follows redirects, at most REDIRECT_HOPS_MAX of them. With follow_redirect off a redirect is a
    LoginError (0101 or 0102)."""
    hops: list[str] = []
    while True:
        try:
            done = await login_once(host, port, target, options)
            return replace(done, hops=tuple(hops))
        except Redirected as moved:
            address = format_endpoint(moved.host, moved.port)
            if not options.follow_redirect:
                raise LoginError(f"{format_endpoint(host, port)} redirects to {address}", status_class=1,
                                 status_detail=2 if moved.permanent else 1) from None
            hops.append(address)
            if len(hops) > REDIRECT_HOPS_MAX:
                raise LoginError(f"{target} redirects more than {REDIRECT_HOPS_MAX} times, lastly to {address}",
                                 status_class=1, status_detail=1,
                                 hint="Two portals redirect to each other; clear one of the redirects.") from None
            host, port = moved.host, moved.port


class _TextExchange:
    """SendTargets in a session of its own: one question, its answer over as many PDUs as it takes, a Logout."""

    def __init__(self, done: Login) -> None:
        self._sock, self._params = done.sock, done.params
        self._portal = done.portal
        self._cmd_sn, self._exp_stat_sn = done.params.cmd_sn, done.params.stat_sn

    async def ask(self, pairs: list[tuple[str, str]]) -> bytes:
        text = wire.TextAssembly(TEXT_BYTES_MAX)
        request = wire.TextRequest(TEXT_TASK, data=wire.encode_text(pairs))
        for _ in range(TEXT_PDUS_MAX):
            request.cmd_sn, request.exp_stat_sn = self._cmd_sn, self._exp_stat_sn
            await wire.send(self._sock, request.pack())
            self._cmd_sn = wire.serial_add(self._cmd_sn, 1)
            response = await self._response()
            text.add(response.data)
            if response.final:
                return text.take()
            request = wire.TextRequest(TEXT_TASK, ttt=response.ttt, lun=response.lun)
        raise ProtocolError(f"{self._portal} does not end its answer within {TEXT_PDUS_MAX} PDUs")

    async def leave(self) -> None:
        await wire.send(self._sock, wire.logout_request(TEXT_TASK + 1, self._params.cid, self._cmd_sn,
                                                        self._exp_stat_sn))
        await self._receive(wire.OP_LOGOUT_RESPONSE)

    async def _response(self) -> wire.TextResponse:
        response = wire.TextResponse.unpack(*await self._receive(wire.OP_TEXT_RESPONSE))
        if response.itt != TEXT_TASK:
            raise ProtocolError(f"{self._portal} answers another Text Request")
        # Section 11.11: F and C exclude each other, and a tag is given as long as there is more to come.
        if response.final and (response.more or response.ttt != wire.TAG_NONE):
            raise ProtocolError(f"{self._portal} ends an answer that goes on")
        if not response.final and response.ttt == wire.TAG_NONE:
            raise ProtocolError(f"{self._portal} goes on without a tag")
        return response

    async def _receive(self, wanted: int) -> tuple[bytes, bytes]:
        """The next PDU of a kind; pings on the way are answered."""
        for _ in range(TEXT_PDUS_MAX):
            header, data = await wire.receive_pdu(self._sock, self._params.recv_data_bytes_max)
            opcode, stat_sn = header[0] & wire.OPCODE_MASK, int.from_bytes(header[24:28], "big")
            if opcode == wanted:
                self._exp_stat_sn = wire.serial_add(stat_sn, 1)
                return header, data
            if opcode == wire.OP_NOP_IN and header[20:24] != b"\xff\xff\xff\xff":
                await wire.send(self._sock, wire.nop_out(header[8:16], header[20:24], self._cmd_sn, self._exp_stat_sn))
            elif opcode == wire.OP_ASYNC_MESSAGE and header[36] != wire.ASYNC_SCSI:
                raise ClosedError(f"{self._portal} ends the session (event {header[36]})")
            elif opcode not in (wire.OP_NOP_IN, wire.OP_ASYNC_MESSAGE):
                raise ProtocolError(f"{self._portal} answers a Text Request with PDU {opcode:02x}h")
        raise ProtocolError(f"{self._portal} sends pings and no answer")


async def send_targets(done: Login, wanted: str, seconds: float) -> list[DiscoveredTarget]:
    """Asks on a session without digests, and logs out: "All" or a name in a discovery session, "" in a normal one for
    its own target. The socket is closed behind it."""
    assert not done.params.header_digest and not done.params.data_digest
    exchange = _TextExchange(done)

    async def work() -> bytes:
        text = await exchange.ask([("SendTargets", wanted)])
        with suppress(ClosedError, ProtocolError):      # what was asked is known already
            await exchange.leave()
        return text

    try:
        data = await _bounded(work(), seconds, f"SendTargets at {done.portal}")
    except OSError as error:
        raise ClosedError(f"{done.portal} broke off: {error.strerror or error}") from None
    finally:
        done.sock.close()
    return _targets_of(data, (done.host, done.port, None))


def _targets_of(data: bytes, own: tuple[str, int, int | None]) -> list[DiscoveredTarget]:
    """Names with their addresses; a target without one is at the portal that was asked (section 4.3)."""
    found: dict[str, list[tuple[str, int, int | None]]] = {}
    current = ""
    for key, value in wire.decode_text(data):
        if key == "TargetName":
            if not keys.valid_name(value):
                raise ProtocolError("a discovered target has no iSCSI name")
            current = value
            found.setdefault(current, [])
        elif key == "TargetAddress" and current:
            found[current].append(keys.parse_target_address(value))
    return [DiscoveredTarget(name, tuple(addresses) or (own,)) for name, addresses in found.items()]


async def discover(host: str, port: int, options: LoginOptions, wanted: str = "All") -> list[DiscoveredTarget]:
    """Targets that a portal offers, or the one named `wanted`, by a discovery session."""
    plain = replace(options.wishes, header_digest=("None",), data_digest=("None",))
    done = await login(host, port, None, replace(options, wishes=plain))
    return await send_targets(done, wanted, options.login_seconds)
