"""Driver for LIO, the Linux kernel's target: it cannot redirect, so hosts come by a front portal (portal mode).

Hosts are configured with the portal of `detour front`, which sends every login on: to main in normal operation, to the
gateway for the time of a detour. Setting and clearing the redirect therefore is asked of the front (`front`); listing,
dropping and fencing is done in LIO's configfs tree, here or through a command such as ssh.

What LIO does (drivers/target, seen on Linux 6.1):
- iscsi/TARGET/tpgt_N/acls/NAME/info tells of the newest session of a named initiator, dynamic_sessions of those
  without an ACL of their own (demo mode, generate_node_acls). A session leaves both when its commands have ended.
- A new value in acls/NAME/cmdsn_depth ends the sessions of that initiator, which may log in again at once: another
  value and then the old one. Initiators without an ACL can be dropped by `enable` alone: 0 ends every session, the
  gateway's too, which logs in again as soon as 1 is written. Logins in between are refused with 0301, which initiators
  try again.
- Fence: with generate_node_acls 0 only named initiators may log in. It takes an ACL for the gateway; named hosts are
  not fenced off: the front is all that they know of main.
"""
from __future__ import annotations

import asyncio
from typing import ClassVar

from pydantic import Field

from detour.errors import ConfigError, StorageError
from detour.redirect.base import (
    DriverOptions,
    MainSession,
    Memo,
    VolumeContext,
    register,
    require_numeric,
)
from detour.redirect.command import CommandRunner
from detour.redirect.portal import FrontedDriver
from detour.redirect.witness import WitnessedOptions

# Each script gets its words as "$1"...: nothing of the configuration or of the wire is ever part of a script.
SESSIONS = """
tr '\\0' '\\n' <"$1/dynamic_sessions" 2>/dev/null | while read -r name; do
    [ -n "$name" ] && printf 'dynamic\\t%s\\t\\n' "$name"
done
for one in "$1"/acls/*/info; do
    [ -e "$one" ] || continue
    name=$(sed -n 's/^InitiatorName: *//p' "$one" 2>/dev/null)
    [ -n "$name" ] || continue
    printf 'named\\t%s\\t%s\\n' "$name" "$(sed -n 's/^ *Address \\([^ ]*\\).*/\\1/p' "$one" 2>/dev/null | head -n1)"
done
"""
KICK = 'q=$(cat "$1") && if [ "$q" = 64 ]; then o=63; else o=64; fi && echo "$o" >"$1" && echo "$q" >"$1"'
WRITE = 'printf "%s\\n" "$2" >"$1"'
LOOK = """
[ -d "$1" ] && cat "$1/enable" && cat "$1/attrib/generate_node_acls" || exit
[ -d "$1/acls/$2" ] && echo named || echo open
"""


class LioOptions(WitnessedOptions):
    front: str = Field(pattern=r"^(unix:.+|http://.+)$", description="unix:PATH or http://HOST:PORT of `detour front`")
    root: str = Field(default="/sys/kernel/config/target", pattern="^/")
    portal_group: int = Field(default=1, ge=1, le=65535, description="tpgt_N")
    command: list[str] = Field(default=[], description="prefix that reaches main, such as ssh root@main")
    fence: bool = Field(default=True, description="close demo mode for the time, where the gateway has its own ACL")


@register
class LioDriver(FrontedDriver):
    name: ClassVar[str] = "lio"
    options_model: ClassVar[type[DriverOptions]] = LioOptions
    options: LioOptions

    def __init__(self, context: VolumeContext, options: LioOptions) -> None:
        super().__init__(context, options)
        if "/" in context.target:
            raise ConfigError(f"{context.target!r} is no target name", key="main")
        self._runner = CommandRunner(options.command, {}, options.limit_s)
        self._group = f"{options.root.rstrip('/')}/iscsi/{context.target.lower()}/tpgt_{options.portal_group}"
        self.front = self.make_front(options.front)
        self._memo = Memo(context.memo_path)

    async def prepare(self) -> None:
        require_numeric(self.context.gateway)
        enabled, _, _ = await self._look_at_group()
        if not enabled:
            raise StorageError(f"main's portal group {self._group} is not enabled")
        await self.front.target()
        await self.check_own()

    async def sessions(self) -> list[MainSession]:
        own = {one.initiator.lower() for one in self.context.own} or {self.context.initiator_name.lower()}
        rows = (line.split("\t") for line in (await self._sh(SESSIONS, self._group)).splitlines())
        return [MainSession(f"{row[0]} {row[1]}", row[1], row[2].rpartition(":")[0] or row[2],
                            ours=row[1].lower() in own) for row in rows if len(row) == 3]

    async def drop_all(self) -> int:
        others = [session for session in await self.sessions() if not session.ours]
        for session in others:
            if session.id.startswith("named "):
                await self._sh(KICK, f"{self._group}/acls/{session.initiator}/cmdsn_depth")
        if any(session.id.startswith("dynamic ") for session in others):
            await self._write("enable", "0")
            await self._write("enable", "1")
        return len(others)

    async def fence(self) -> None:
        _, open_to_all, named = await self._look_at_group()
        if not self.options.fence or not named or (not open_to_all and self._memo.read() is None):
            return
        if self._memo.read() is None:
            self._memo.write({"target": self.context.target, "generate_node_acls": "1"})
        await self._write("attrib/generate_node_acls", "0")

    async def unfence(self) -> None:
        memo = self._memo.read()
        if memo is None:
            return
        await self._write("attrib/generate_node_acls", str(memo["generate_node_acls"]))
        self._memo.ignore()

    async def forget(self) -> None:
        await asyncio.to_thread(self._memo.forget)

    async def _look_at_group(self) -> tuple[bool, bool, bool]:
        """Whether the portal group is enabled, is open to initiators without an ACL, and has an ACL for the gateway."""
        text = await self._sh(LOOK, self._group, self.context.initiator_name.lower())
        words = text.split()
        if len(words) != 3:
            raise StorageError(f"main has no portal group {self._group}")
        return words[0] == "1", words[1] == "1", words[2] == "named"

    async def _write(self, name: str, value: str) -> None:
        await self._sh(WRITE, f"{self._group}/{name}", value)

    async def _sh(self, script: str, *words: str) -> str:
        output = await self._runner.run("sh", "-c", script, "sh", *words)
        if output.status != 0:
            raise StorageError(f"LIO at {words[0]}: {output.said}")
        return output.text
