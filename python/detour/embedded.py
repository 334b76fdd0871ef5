"""`detour target`: plain disks over any storage as one iSCSI target, with an HTTP API to redirect and drop sessions.

    GET    /v1/targets                        -> [{iqn, redirect: null | {address, except}, portals, luns, sessions}]
    GET    /v1/targets/{iqn}/sessions         -> [{id, initiator, isid, peer}]
    GET    /v1/targets/{iqn}/logins?since=N   -> [{number, initiator, isid, peer}], of sessions that have ended, too
    PUT    /v1/targets/{iqn}/redirect            {"address": "host:port", "except": [sessions], "permanent": false}
    DELETE /v1/targets/{iqn}/redirect
    POST   /v1/targets/{iqn}/luns/{lun}/grow     {"bytes": n}, or nothing: what the image has by now -> {"bytes": n}
    POST   /v1/targets/{iqn}/sessions/drop       {"except": [sessions]} -> {"dropped": n}
    GET    /healthz                           -> {"ok": true}

An exception is {"name": initiator name, "isid": 12 hexadecimal digits}, or a name alone for all sessions of that name.
A redirect counts on all portals, at once for new logins; sessions stay until they are dropped. The answer to a drop
comes when the tasks of the dropped sessions have ended at the store. An error is {"error": sentence} with status 400
or 404.
"""
from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from detour.api_guard import OWNER_ALONE, Admission, Guard, GuardedProtocol, prepare_socket
from detour.core.disk import DiskHandle
from detour.core.target import TargetHandle
from detour.disk_options import LUNS_MAX, DiskOptions
from detour.errors import DetourError, UsageError
from detour.iscsi.access import ADMIT_ALL, Access
from detour.iscsi.chap import ChapAuth
from detour.iscsi.listener import Listener, SessionInfo, TargetEntry
from detour.iscsi.login_target import Redirect as Moved
from detour.limits import TargetLimits
from detour.redo import redo_path_of
from detour.reservations import ReservationKeeper, reservations_file
from detour.runtime import Runtime
from detour.stores import OpenStore, open_store
from detour.urls import FileUrl, format_endpoint, parse_endpoint, parse_url

BODY_BYTES_MAX = 65536


@dataclass(frozen=True)
class Exceptions:
    """Sessions that a redirect or a drop leaves alone: (initiator name, ISID); None as ISID stands for every one."""

    entries: frozenset[tuple[str, bytes | None]] = frozenset()

    def cover(self, initiator_name: str, isid: bytes) -> bool:
        name = initiator_name.lower()
        return (name, isid) in self.entries or (name, None) in self.entries

    def document(self) -> list[Any]:
        ordered = sorted(self.entries, key=lambda entry: (entry[0], entry[1] or b""))
        return [name if isid is None else {"name": name, "isid": isid.hex()} for name, isid in ordered]


@dataclass
class Redirect:
    """Where logins are sent, and whose are not."""

    address: str
    excepted: Exceptions = field(default_factory=Exceptions)
    permanent: bool = False

    def __call__(self, initiator_name: str, peer_host: str, isid: bytes) -> Moved | None:
        return None if self.excepted.cover(initiator_name, isid) else Moved(self.address, self.permanent)

    def document(self) -> dict[str, Any]:
        told = {"address": self.address, "except": self.excepted.document()}
        return {**told, "permanent": True} if self.permanent else told


def serial_of(iqn: str, lun: int) -> str:
    """A serial number that stays the same from one start to the next."""
    return hashlib.sha256(f"{iqn}/{lun}".encode()).hexdigest()[:16]


def _file_options(url: str, options: DiskOptions) -> dict[str, Any]:
    """Files take writes into the page cache at once, as a disk takes them into its own cache."""
    parsed = parse_url(url)
    if not isinstance(parsed, FileUrl):
        return {}
    known: dict[str, Any] = {"inline_writes": options.write_cache}
    if not options.read_only and not Path(parsed.path).is_block_device():
        known["redo_path"] = redo_path_of(parsed.path)
    if options.create_bytes is not None:
        known["create_bytes"] = options.create_bytes
    return known


class EmbeddedTarget:
    """One target name on one reactor. Several may share a listener: then its portals lead to all of them."""

    def __init__(self, runtime: Runtime, iqn: str, *, auth: ChapAuth | None = None,
                 access: Access = ADMIT_ALL, listener: Listener | None = None,
                 limits: TargetLimits | None = None) -> None:
        self.runtime = runtime
        self.reactor = runtime.next_reactor()
        self.listener = listener or Listener(runtime)
        self.handle = TargetHandle(self.reactor, runtime.new_id(), **(limits or TargetLimits()).options())
        self.entry = self.listener.add_target(TargetEntry(iqn=iqn, handle=self.handle, auth=auth, access=access))
        self.stores: dict[int, OpenStore] = {}
        self.disks: dict[int, DiskHandle] = {}
        self.keepers: list[ReservationKeeper] = []
        self.started = secrets.token_hex(8)     # logins are numbered anew by another process

    async def add_disk(self, url: str, options: DiskOptions, lun: int | None = None) -> None:
        """A LUN; without a number the next one."""
        if lun is None:
            lun = max(self.stores, default=-1) + 1
        if lun >= LUNS_MAX:
            raise UsageError(f"a target has {LUNS_MAX} LUNs at most")
        if lun in self.stores:
            raise UsageError(f"{self.entry.iqn} has a LUN {lun} already")
        store = await open_store(self.runtime, url, reactor=self.reactor, read_only=options.read_only,
                                 **_file_options(url, options))
        self.stores[lun] = store
        disk = self.disks[lun] = self._make_disk(lun, url, store, options)
        await self.runtime.wait(self.handle.set_lun(lun, disk), context=f"LUN {lun}")

    def _make_disk(self, lun: int, url: str, store: OpenStore, options: DiskOptions) -> DiskHandle:
        """The disk over `store`, with the reservations that it kept. CorruptError when they are damaged."""
        kept, disk_id = reservations_file(url, options.reservations_path), self.runtime.new_id()
        reservations = kept.load() if kept else b""
        try:
            disk = DiskHandle(self.reactor, store.handle, serial=options.serial or serial_of(self.entry.iqn, lun),
                              write_cache=options.write_cache, thin=options.thin, read_only=options.read_only,
                              delay_us=options.delay_us, removable=options.removable, device_id=disk_id,
                              port_name=f"{self.entry.iqn},t,0x{self.entry.portal_group:04x}",
                              durable=kept is not None, reservations=reservations,
                              physical_bytes=options.physical_bytes, write_bytes_s=options.write_bytes_s)
        except ValueError:
            if kept and reservations:
                raise kept.damaged() from None
            raise
        if kept:
            self.keepers.append(ReservationKeeper(self.runtime, disk_id, disk, kept))
        return disk

    async def listen(self, text: str) -> str:
        """Opens a portal; answers its address with the real port."""
        host, port = parse_endpoint(text, 3260)
        return format_endpoint(*await self.listener.listen(host, port))

    async def grow(self, lun: int, size_bytes: int | None) -> int:
        """Makes a LUN's image larger, or with None takes the size that it has got by now; answers it. Hosts are told
        (2A/09). LookupError, UsageError."""
        if lun not in self.stores:
            raise LookupError(f"{self.entry.iqn} has no LUN {lun}")
        store, url = self.stores[lun], parse_url(str(self.stores[lun].url))
        if not isinstance(url, FileUrl) or not hasattr(store.handle, "grow"):
            raise UsageError(f"LUN {lun} is no file or block device: it keeps its size")
        if size_bytes is not None and (size_bytes < store.size_bytes or size_bytes % store.block_bytes):
            raise UsageError(f"LUN {lun} has {store.size_bytes} bytes: it can grow, by {store.block_bytes} or more")
        try:
            if size_bytes is not None and not Path(url.path).is_block_device():
                await asyncio.to_thread(os.truncate, url.path, size_bytes)
            ticket = store.handle.grow()
        except OSError as error:
            raise UsageError(f"{url.path}: {error.strerror}") from None
        await self.runtime.wait(ticket, context=str(url))
        await self.runtime.wait(self.disks[lun].grow(), context=f"LUN {lun}")
        return store.size_bytes

    @property
    def infos(self) -> list[SessionInfo]:
        """Its sessions."""
        return self.listener.sessions_of(self.entry.iqn)

    async def send_to(self, redirect: Redirect | None) -> None:
        """Where logins are sent from now on; None: they are taken here."""
        self.entry.redirect = redirect

    async def drop(self, excepted: Exceptions) -> int:
        """Ends the sessions of others than `excepted`; returns when their tasks have ended at the store."""
        others = [info for info in self.listener.sessions_of(self.entry.iqn)
                  if not excepted.cover(info.initiator_name, info.isid)]
        await asyncio.gather(*(self.listener.drop(info.id) for info in others))
        return len(others)

    async def close(self) -> None:
        """Portals first, then sessions, then disks and what is below them."""
        await self.listener.close()
        await self.runtime.wait(self.handle.close(), check=False)
        for keeper in self.keepers:
            await keeper.close()
        for disk in self.disks.values():
            await self.runtime.wait(disk.close(), check=False)
        self.disks.clear()
        for store in reversed(self.stores.values()):
            with contextlib.suppress(DetourError, OSError):
                await store.close()
        self.stores.clear()

    def document(self) -> dict[str, Any]:
        rule = self.entry.redirect
        return {
            "iqn": self.entry.iqn,
            "redirect": rule.document() if isinstance(rule, Redirect) else None,
            "portals": [format_endpoint(*portal) for portal in self.listener.portals],
            "luns": [{"lun": lun, "url": str(store.url), "bytes": store.size_bytes}
                     for lun, store in sorted(self.stores.items())],
            "sessions": len(self.listener.sessions_of(self.entry.iqn)),
            "logins": self.listener.logins, "started": self.started,
        }


# --- the API

def make_app(*targets: Redirectable) -> Starlette:
    """The HTTP API of the targets of one process."""
    routes = _Routes(targets)
    one = "/v1/targets/{iqn}"
    return Starlette(
        routes=[
            Route("/healthz", routes.health),
            Route("/v1/targets", routes.targets),
            Route(f"{one}/sessions", routes.sessions),
            Route(f"{one}/logins", routes.logins),
            Route(f"{one}/redirect", routes.set_redirect, methods=["PUT"]),
            Route(f"{one}/luns/{{lun:int}}/grow", routes.grow, methods=["POST"]),
            Route(f"{one}/redirect", routes.clear_redirect, methods=["DELETE"]),
            Route(f"{one}/sessions/drop", routes.drop, methods=["POST"]),
        ],
        exception_handlers={DetourError: _refusal, LookupError: _unknown},     # type: ignore[dict-item]
    )


async def _refusal(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 400)


async def _unknown(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error.args[0])}, 404)


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request, {} when it has none. UsageError otherwise."""
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > BODY_BYTES_MAX:
            raise UsageError(f"the request is longer than {BODY_BYTES_MAX} bytes")
    try:
        content = json.loads(data) if data else {}
    except ValueError:
        raise UsageError("the request is not JSON") from None
    if not isinstance(content, dict):
        raise UsageError("the request is not a JSON object")
    return content


def _exceptions(content: dict[str, Any]) -> Exceptions:
    rows = content.get("except", [])
    if not isinstance(rows, list):
        raise UsageError("`except` is a list of sessions")
    return Exceptions(frozenset(_exception(row) for row in rows))


def _exception(row: Any) -> tuple[str, bytes | None]:
    if isinstance(row, str):
        return row.lower(), None
    if isinstance(row, dict) and row.keys() == {"name", "isid"} and all(isinstance(one, str) for one in row.values()):
        with contextlib.suppress(ValueError):
            isid = bytes.fromhex(row["isid"])
            if len(isid) == 6:
                return row["name"].lower(), isid
    raise UsageError('`except` has initiator names, or {"name": ..., "isid": 12 hexadecimal digits}')


class Redirectable(Protocol):
    """What the API works on: a target whose logins can be sent elsewhere."""

    entry: TargetEntry

    @property
    def infos(self) -> list[SessionInfo]: ...

    def document(self) -> dict[str, Any]: ...

    async def send_to(self, redirect: Redirect | None) -> None: ...

    async def drop(self, excepted: Exceptions) -> int: ...


class _Routes:
    def __init__(self, targets: Sequence[Redirectable]) -> None:
        self._targets = targets

    def _check(self, request: Request) -> Redirectable:
        iqn = request.path_params["iqn"]
        target = next((one for one in self._targets if one.entry.iqn == iqn.lower()), None)
        if target is None:
            raise LookupError(f"there is no target {iqn}")
        return target

    async def health(self, request: Request) -> JSONResponse:
        return JSONResponse({"ok": True})

    async def targets(self, request: Request) -> JSONResponse:
        return JSONResponse([target.document() for target in self._targets])

    async def sessions(self, request: Request) -> JSONResponse:
        target = self._check(request)
        return JSONResponse([{"id": info.id, "initiator": info.initiator_name, "isid": info.isid.hex(),
                              "peer": info.peer} for info in target.infos])

    async def logins(self, request: Request) -> JSONResponse:
        target, since = self._check(request), request.query_params.get("since", "0")
        if not isinstance(target, EmbeddedTarget) or not (since.isascii() and since.isdigit()):
            raise UsageError("`since` is the number of a login" if isinstance(target, EmbeddedTarget) else
                             "this target does not number its logins")
        return JSONResponse([{"number": number, "initiator": info.initiator_name, "isid": info.isid.hex(),
                              "peer": info.peer} for number, info in target.listener.opened
                             if number > int(since) and info.target == target.entry.iqn])

    async def set_redirect(self, request: Request) -> JSONResponse:
        target, content = self._check(request), await _body(request)
        address = content.get("address")
        if not isinstance(address, str):
            raise UsageError("`address` is missing: host:port")
        permanent = content.get("permanent", False)
        if not isinstance(permanent, bool):
            raise UsageError("`permanent` is true or false")
        redirect = Redirect(format_endpoint(*parse_endpoint(address)), _exceptions(content), permanent)
        await target.send_to(redirect)
        return JSONResponse(redirect.document())

    async def clear_redirect(self, request: Request) -> JSONResponse:
        await self._check(request).send_to(None)
        return JSONResponse({"redirect": None})

    async def grow(self, request: Request) -> JSONResponse:
        target, size_bytes = self._check(request), (await _body(request)).get("bytes")
        if not isinstance(target, EmbeddedTarget):
            raise UsageError("this target has no images of its own")
        if size_bytes is not None and (not isinstance(size_bytes, int) or isinstance(size_bytes, bool)):
            raise UsageError("`bytes` is a number")
        return JSONResponse({"bytes": await target.grow(request.path_params["lun"], size_bytes)})

    async def drop(self, request: Request) -> JSONResponse:
        target, content = self._check(request), await _body(request)
        return JSONResponse({"dropped": await target.drop(_exceptions(content))})


# --- serving HTTP

DATE_SECONDS = 1.0

class _Server(uvicorn.Server):
    """Leaves signals to the program, and waits for its end instead of looking for it ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ending = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self._ending.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):        # 0: the date of responses is set
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_SECONDS):
                    await self._ending.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def api_socket(api: str, admission: Admission = OWNER_ALONE) -> tuple[socket.socket, str]:
    """A listening socket of "unix:PATH" or "http://HOST:PORT", and its address with the real port. UsageError when the
    text or the address is of no use. A stale Unix socket of a dead process is replaced."""
    if api.startswith("unix:"):
        path = api.removeprefix("unix:")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(path)
            prepare_socket(sock, path, admission)
            sock.listen(64)
        except OSError as error:
            sock.close()
            raise UsageError(f"{api} cannot be listened to: {error.strerror or error}") from None
        return sock, api
    if not api.startswith("http://"):
        raise UsageError(f"{api!r} is no address for the API", hint="Give unix:PATH or http://HOST:PORT.")
    host, port = parse_endpoint(api.removeprefix("http://").rstrip("/"))
    try:
        sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(f"{api} cannot be listened to: {error.strerror or error}") from None
    return sock, f"http://{format_endpoint(*sock.getsockname()[:2])}"


def _remove_stale(path: str) -> None:
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


@contextlib.asynccontextmanager
async def serving(app: Any, api: str, admission: Admission = OWNER_ALONE) -> AsyncIterator[str]:
    """Serves an ASGI application while the block runs, to those who are admitted; yields its address."""
    sock, address = api_socket(api, admission)
    bound = None if api.startswith("unix:") else sock.getsockname()[0]
    config = uvicorn.Config(Guard(app, admission, bound), http=GuardedProtocol, ws="none", proxy_headers=False,
                            log_config=None, log_level="warning", access_log=False, lifespan="off",
                            timeout_graceful_shutdown=2)
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        yield address
    finally:
        server.end()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        sock.close()
        if api.startswith("unix:"):
            Path(api.removeprefix("unix:")).unlink(missing_ok=True)
