"""Driver for the project's own target (`detour target`): its HTTP API, on a Unix socket or loopback.

    GET    /v1/targets                        -> [{iqn, redirect: null | {address, except}, ...}]
    GET    /v1/targets/{iqn}/sessions         -> [{id, initiator, isid, peer}]
    PUT    /v1/targets/{iqn}/redirect            {"address": "host:port", "except": [{"name", "isid"}]}
    DELETE /v1/targets/{iqn}/redirect
    POST   /v1/targets/{iqn}/sessions/drop       {"except": [{"name", "isid"}]}

The redirect of a target counts on all its portals; the gateway passes by initiator name and ISID together (`except`),
so that a host which has the gateway's name is redirected and dropped like any other. The answer to a drop comes when
the tasks of the dropped sessions have ended at the store, which is the barrier. There is no fence: the target loses its
redirect only when its process ends; when it is started again, the gateway's watch over main sets the redirect again.
"""
from __future__ import annotations

import re
from typing import Any, ClassVar
from urllib.parse import quote

import httpx
from pydantic import Field

from detour.errors import StorageError, TimeoutError_
from detour.redirect.base import (
    Address,
    DriverOptions,
    MainSession,
    RedirectDriver,
    VolumeContext,
    not_numeric,
    register,
    wait_gone,
)
from detour.urls import parse_duration


class DetourOptions(DriverOptions):
    api: str = Field(pattern=r"^(unix:.+|http://.+)$", description="unix:PATH or http://HOST:PORT of `detour target`")
    barrier_limit: str = "25s"


@register
class DetourDriver(RedirectDriver):
    name: ClassVar[str] = "detour"
    options_model: ClassVar[type[DriverOptions]] = DetourOptions
    options: DetourOptions

    def __init__(self, context: VolumeContext, options: DetourOptions) -> None:
        super().__init__(context, options)
        self._client = _make_client(options.api)

    async def prepare(self) -> None:
        if not self.context.gateway.numeric:
            raise not_numeric(self.context.gateway)
        await self._target()
        await self.check_own()

    async def set(self, address: Address) -> None:
        await self._ask("PUT", "/redirect", {"address": str(address), "except": self._own()})

    async def clear(self) -> None:
        await self._ask("DELETE", "/redirect")

    async def verify(self, address: Address | None) -> None:
        redirect = (await self._target()).get("redirect")
        found = redirect.get("address") if isinstance(redirect, dict) else None
        if found != (None if address is None else str(address)):
            told = f"redirects to {found}" if found else "does not redirect"
            should = f"redirect to {address}" if address else "not redirect"
            raise StorageError(f"main's target {self.context.target} {told}, but should {should}")

    async def sessions(self) -> list[MainSession]:
        own = {(session.initiator.lower(), session.isid) for session in self.context.own}
        return [MainSession(str(row["id"]), row["initiator"], _host_of(row.get("peer") or ""), row.get("isid") or "",
                            ours=(row["initiator"].lower(), row.get("isid")) in own)
                for row in _rows(await self._ask("GET", "/sessions"), "id", "initiator")]

    async def drop_all(self) -> int:
        others = sum(not session.ours for session in await self.sessions())
        await self._ask("POST", "/sessions/drop", {"except": self._own()}, parse_duration(self.options.barrier_limit))
        return others

    async def barrier(self) -> None:
        """The answer to a drop is the barrier; this waits until the list shows it too, dropping who came since."""
        await self._ask("POST", "/sessions/drop", {"except": self._own()}, parse_duration(self.options.barrier_limit))
        await wait_gone(self, parse_duration(self.options.barrier_limit))

    async def close(self) -> None:
        await self._client.aclose()

    def _own(self) -> list[dict[str, str]]:
        return [{"name": session.initiator, "isid": session.isid} for session in self.context.own]

    async def _target(self) -> dict[str, Any]:
        for row in _rows(await self._request("GET", "/v1/targets", None, self.options.limit_s), "iqn"):
            if row["iqn"].lower() == self.context.target.lower():
                return row
        raise StorageError(f"main has no target {self.context.target}")

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None, limit_s: float = 0.0) -> Any:
        target = quote(self.context.target, safe="")
        return await self._request(method, f"/v1/targets/{target}{path}", body, limit_s or self.options.limit_s)

    async def _request(self, method: str, path: str, body: dict[str, Any] | None, limit_s: float) -> Any:
        """The answer's JSON. StorageError or TimeoutError_ with one sentence."""
        try:
            answer = await self._client.request(method, path, json=body, timeout=limit_s)
        except httpx.TimeoutException:
            raise TimeoutError_(f"main's API did not answer {method} {path} within {limit_s:g} s") from None
        except httpx.HTTPError as error:
            raise StorageError(f"main's API at {self.options.api} cannot be reached: {error}") from None
        try:
            content = answer.json() if answer.content else None
        except ValueError:
            content = None
        if answer.status_code >= 400:
            said = content.get("error") if isinstance(content, dict) else None
            raise StorageError(f"main's API refused {method} {path}: {said or answer.status_code}")
        return content


def _make_client(api: str) -> httpx.AsyncClient:
    if api.startswith("unix:"):
        transport = httpx.AsyncHTTPTransport(uds=api.removeprefix("unix:"))
        return httpx.AsyncClient(transport=transport, base_url="http://main", trust_env=False)
    return httpx.AsyncClient(base_url=api, trust_env=False)


def _rows(content: Any, *keys: str) -> list[dict[str, Any]]:
    """A list of objects with these keys. StorageError when something else answered."""
    if not isinstance(content, list) or not all(isinstance(row, dict) and row.keys() >= set(keys) for row in content):
        raise StorageError("what answers as main's API is no `detour target`",
                           hint="Write the address of main's API into redirect.api.")
    return content


def _host_of(peer: str) -> str:
    """The IP address of "host:port" or "[v6]:port"."""
    return re.sub(r"^\[(.*)\](:\d+)?$|^([^:]*)(:\d+)?$", lambda match: match[1] or match[3] or "", peer)
