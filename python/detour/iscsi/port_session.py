"""Sessions on main under the name and ISID of a host that is not there now: main knows a registrant by nothing else.

A login with a host's name and ISID would end a session that the host itself has on main (RFC 7143 section 6.3.5):
whoever asks has made sure that there is none.
"""
from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace

from detour.errors import DetourError
from detour.iscsi.chap import ChapAuth
from detour.iscsi.probe import RawUnit
from detour.iscsi.registration_plan import Port
from detour.iscsi.session import LoginOptions, login_once
from detour.urls import IscsiUrl

CONNECT_SECONDS, LOGIN_SECONDS, LOGOUT_SECONDS = 2.0, 4.0, 1.0


@dataclass(frozen=True)
class PortDoor:
    """How a host's port is logged in at main. `url` and `options` are those of the gateway's own session, `auth` what
    hosts prove themselves with at the gateway, which is what they do at main; None: as the gateway does."""

    url: IscsiUrl
    options: LoginOptions
    auth: ChapAuth | None = None

    async def open(self, port: Port) -> PortSession:
        """Redirected, LoginError, StorageError, TimeoutError_ or another DetourError otherwise."""
        url = self.url
        done = await login_once(url.host, url.port, url.target, self._options(port))
        return PortSession(RawUnit(done, url.lun))

    def _options(self, port: Port) -> LoginOptions:
        options = replace(self.options, initiator_name=port.name, isid=port.isid, follow_redirect=False,
                          connect_seconds=CONNECT_SECONDS, login_seconds=LOGIN_SECONDS)
        if self.auth is None:
            return options
        named = [user for user in self.auth.users if user.user.lower() == port.name]
        return replace(options, credentials=(*named, *self.auth.users)[0], mutual=self.auth.mutual)


class PortSession:
    """One session; `unit` takes commands one at a time."""

    def __init__(self, unit: RawUnit) -> None:
        self.unit = unit

    async def close(self) -> None:
        """Logs out; a main that does not answer is left after a second."""
        try:
            with contextlib.suppress(DetourError, OSError, TimeoutError):
                async with asyncio.timeout(LOGOUT_SECONDS):
                    await self.unit.log_out()
        finally:
            self.unit.login.sock.close()
