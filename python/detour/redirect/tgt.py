"""Driver for fujita/tgt (Debian package tgt): everything through `tgtadm`, directly or over ssh.

What tgtd 1.0.85 does, as seen on a running one:
- One redirect a target, valid on every portal: RedirectAddress switches it on and, set to "", off; so port and reason
  are written before the address. `--mode target --op show --tid N` lists nothing but the redirect while there is one.
- The address must be numeric. A login from the redirect's own address is not redirected (ports do not count): so the
  gateway's door is its source address, which must be the advertised one.
- A RedirectCallback goes before the address. It is the administrator's: never touched, and a reason to refuse.
- The redirect is decided before the access rules. So the rules can fence hosts off at the same time: with the gateway's
  address as the only rule, a host is redirected, or refused should the redirect be lost. One matching rule, by address
  or by initiator name, gives access; therefore all others are taken out, and put back exactly by `unfence`. What they
  were is kept in two files; should both be damaged, hosts still come home, to a target that admits everybody.
- No ISID is listed. The gateway's own sessions are those with its name, from the address of its door, whose number is
  the TSIH of their login (tgtd sends it in the byte order of its machine). A session with that name and address which
  is none of them cannot be kept out by redirect or rules: `prepare` refuses.
- `conn delete` closes the TCP connection, no PDU is sent. A connection stays in the list until its commands have ended
  in the backing store (a store whose writes take 4 s keeps it listed for 4 s), and so does its I_T nexus. "None left in
  both lists" therefore means that no write of a dropped session can land any more: that is the barrier. The
  SYNCHRONIZE CACHE that the gateway sends afterwards through its own session (which the run driver does for every main)
  orders nothing in tgtd; it makes what has landed stable, so that the point in time survives a power cut of main.
"""
from __future__ import annotations

import asyncio
import ipaddress
import re
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pydantic import Field

from detour.errors import DetourError, StorageError, UnsupportedError
from detour.redirect.base import (
    Address,
    Door,
    DriverOptions,
    MainSession,
    Memo,
    RedirectDriver,
    VolumeContext,
    register,
    require_numeric,
)
from detour.redirect.command import CommandRunner


class TgtOptions(DriverOptions):
    command: list[str] = Field(default=["tgtadm"], min_length=1, description="prefix, for example ssh root@main tgtadm")
    env: dict[str, str] = Field(default={}, description="added to the environment, for example TGT_IPC_SOCKET")
    control_port: int | None = Field(default=None, ge=0, le=65535, description="tgtd's -C")
    fence: bool = Field(default=True, description="let main's access rules refuse hosts while it redirects")
    reason: str = Field(default="Temporary", pattern="^(Temporary|Permanent)$")


@dataclass
class TargetState:
    """What `--mode target --op show` tells of one target."""

    tid: int
    acl: list[str] = field(default_factory=list)
    nexuses: dict[str, MainSession] = field(default_factory=dict)


@register
class TgtDriver(RedirectDriver):
    name: ClassVar[str] = "tgt"
    options_model: ClassVar[type[DriverOptions]] = TgtOptions
    options: TgtOptions

    def __init__(self, context: VolumeContext, options: TgtOptions) -> None:
        super().__init__(context, options)
        # Twice, because hosts could not come home without it.
        path = context.memo_path
        self._memos = [Memo(path)] + ([Memo(path.with_name(f"{path.name}.copy"))] if path is not None else [])
        self._tgtadm = CommandRunner(options.command, options.env, options.limit_s)

    # -- the driver's contract ---------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        require_numeric(self.context.gateway)
        state = await self._target()
        await self._parameters(state.tid)
        await self.check_own()

    async def set(self, address: Address) -> None:
        require_numeric(address)
        state = await self._target()
        await self._parameters(state.tid)
        await self._update(state.tid, "RedirectPort", str(address.port))
        await self._update(state.tid, "RedirectReason", self.options.reason)
        await self._update(state.tid, "RedirectAddress", address.host)

    async def clear(self) -> None:
        state = await self._target()
        await self._update(state.tid, "RedirectAddress", "")

    async def verify(self, address: Address | None) -> None:
        state = await self._target()
        now = await self._parameters(state.tid)
        found = None
        if now.get("RedirectAddress"):
            port = now.get("RedirectPort", "")
            found = (_same_ip(now["RedirectAddress"]), port, now.get("RedirectReason", ""))
        wanted = None if address is None else (_same_ip(address.host), str(address.port), self.options.reason)
        if found != wanted:
            told = "does not redirect" if found is None else f"redirects to {found[0]} port {found[1]} ({found[2]})"
            should = "not redirect" if address is None else f"redirect to {address}"
            raise StorageError(f"main's target {self.context.target} {told}, but should {should}")

    async def sessions(self) -> list[MainSession]:
        state = await self._target()
        listed = parse_connections(await self._run("--mode", "conn", "--op", "show", "--tid", str(state.tid)))
        merged = {**state.nexuses, **{session.id: session for session in listed}}
        return self._claim(list(merged.values()))

    async def drop_all(self) -> int:
        state = await self._target()
        tid = str(state.tid)
        found = parse_connection_ids(await self._run("--mode", "conn", "--op", "show", "--tid", tid))
        ours = {session.id for session in self._claim([session for session, _ in found]) if session.ours}
        dropped: set[str] = set()
        for session, connection in found:
            if session.id in ours:
                continue
            dropped.add(session.id)
            await self._run("--mode", "conn", "--op", "delete", "--tid", tid, "--sid", session.id, "--cid", connection,
                            gone_is_fine=True)
        return len(dropped)

    async def fence(self) -> None:
        if not self.options.fence:
            return
        state = await self._target()
        own = self.context.gateway.host
        memo = self._kept_rules(state)
        if memo is None:
            memo = {"target": self.context.target, "acl": state.acl, "added": None if own in state.acl else own}
        for place in self._memos:
            place.write(memo)
        if own not in state.acl:
            await self._rule("bind", state.tid, own)
        for entry in state.acl:
            if entry != own:
                await self._rule("unbind", state.tid, entry)

    async def unfence(self) -> None:
        if not any(place.kept for place in self._memos):
            return
        state = await self._target()
        memo = self._kept_rules(state)
        assert memo is not None
        for entry in memo["acl"]:
            if entry not in state.acl:
                await self._rule("bind", state.tid, entry)
        if memo["added"] is not None and memo["added"] in state.acl:
            await self._rule("unbind", state.tid, memo["added"])
        for place in self._memos:
            place.ignore()

    async def forget(self) -> None:
        for place in self._memos:
            await asyncio.to_thread(place.forget)

    def _kept_rules(self, state: TargetState) -> dict[str, Any] | None:
        """The rules as the fence found them; None when nothing is kept. Where what is kept cannot be read, those that
        are there besides the gateway's, else "ALL": hosts come home, and the administrator is told."""
        lost = ""
        for place in self._memos:
            try:
                memo = place.read()
            except DetourError as error:
                lost = error.message
                continue
            if memo is None:
                continue
            if _are_rules(memo):
                return memo
            lost = f"the memo {place.path} holds no access rules"
        if not lost:
            return None
        rules = [entry for entry in state.acl if entry != self.context.gateway.host] or ["ALL"]
        sentence = (f"main's access rules from before the detour are lost ({lost}): {self.context.target} now admits "
                    f"{', '.join(rules)}; set its rules again")
        self._sentences.append(sentence)
        return {"target": self.context.target, "acl": rules, "added": None}

    def door(self) -> Door:
        return Door(source_ip=self.context.gateway.host)

    def traps(self, sessions: list[MainSession]) -> list[tuple[str, str]]:
        door = _same_ip(self.context.gateway.host)
        return [(f"{session.initiator} comes from {session.peer}: tgtd does not redirect from a redirect's own address",
                 "Give gateway.advertise an address that no host comes from.")
                for session in sessions if not session.ours and _same_ip(session.peer) == door]

    # -- tgtadm ------------------------------------------------------------------------------------------------------

    def _claim(self, sessions: list[MainSession]) -> list[MainSession]:
        """Ours: name and address of the gateway, and a session handle of its own. While a session of the gateway is not
        attached, one with that name and address may be it on its way back, and counts as ours."""
        names = {own.initiator for own in self.context.own} or {self.context.initiator_name}
        door = _same_ip(self.context.gateway.host)
        handles = self.own_tsihs()
        numbers = {str(number) for handle in handles for number in (handle, (handle & 0xFF) << 8 | handle >> 8)}
        all_attached = len(handles) >= max(1, len(self.context.own))

        def claimed(session: MainSession) -> MainSession:
            if session.initiator not in names or _same_ip(session.peer) != door:
                return session
            ours = not all_attached or session.id in numbers
            return replace(session, ours=ours, twin=not ours)
        return [claimed(session) for session in sessions]

    async def _target(self) -> TargetState:
        """The target by its name, each time: numbers change when tgtd is started again."""
        targets = parse_targets(await self._run("--mode", "target", "--op", "show"))
        state = targets.get(self.context.target.lower())
        if state is None:
            raise StorageError(f"tgtd has no target {self.context.target}",
                               hint="Check volume main, and redirect control-port where several tgtd run.")
        return state

    async def _parameters(self, tid: int) -> dict[str, str]:
        output = await self._run("--mode", "target", "--op", "show", "--tid", str(tid))
        values = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
        if values.get("RedirectCallback"):
            raise UnsupportedError(f"main's target {self.context.target} has a redirect callback, which would win",
                                   hint='Take it out: tgtadm ... --op update --name RedirectCallback --value "".')
        return values

    async def _update(self, tid: int, name: str, value: str) -> None:
        await self._run("--mode", "target", "--op", "update", "--tid", str(tid), "--name", name, "--value", value)

    async def _rule(self, action: str, tid: int, entry: str) -> None:
        kind = "--initiator-address" if entry == "ALL" or _is_network(entry) else "--initiator-name"
        try:
            await self._run("--mode", "target", "--op", action, "--tid", str(tid), kind, entry)
        except StorageError as error:
            if not re.search("already exists|does not exist", error.message):
                raise

    async def _run(self, *arguments: str, gone_is_fine: bool = False) -> str:
        """Standard output. StorageError with what tgtadm said; TimeoutError_ after `limit`, with the process gone."""
        port = [] if self.options.control_port is None else ["-C", str(self.options.control_port)]
        output = await self._tgtadm.run(*port, "--lld", "iscsi", *arguments)
        if output.status != 0:
            if gone_is_fine and "can't find" in output.said:
                return ""
            raise StorageError(f"tgtadm {' '.join(arguments)}: {output.said}")
        return output.text


def _are_rules(memo: Any) -> bool:
    """Whether a memo is what `fence` writes."""
    return (isinstance(memo, dict) and isinstance(memo.get("acl"), list) and "added" in memo
            and all(isinstance(entry, str) for entry in memo["acl"]) and isinstance(memo["added"], str | None))


# -- what tgtadm prints ----------------------------------------------------------------------------------------------

_SECTIONS = re.compile(r"    (\S.* information):")


def parse_targets(text: str) -> dict[str, TargetState]:
    """By lower-case name, of `--mode target --op show`. Lines that are not understood are passed over."""
    targets: dict[str, TargetState] = {}
    state: TargetState | None = None
    section = nexus = ""
    for line in text.splitlines():
        if head := re.fullmatch(r"Target (\d+): (\S+)", line):
            state = targets[head[2].lower()] = TargetState(int(head[1]))
            section = ""
        elif state is None:
            continue
        elif part := _SECTIONS.fullmatch(line):
            section = part[1]
        elif section == "ACL information" and line.strip():
            state.acl.append(line.strip())
        elif section == "I_T nexus information":
            if found := re.fullmatch(r"\s+I_T nexus: (\d+)", line):
                nexus = found[1]
                state.nexuses[nexus] = MainSession(nexus, "")
            elif found := re.fullmatch(r"\s+(Initiator|IP Address): (\S+)( alias:.*)?", line):
                field_name = "initiator" if found[1] == "Initiator" else "peer"
                state.nexuses[nexus] = replace(state.nexuses.get(nexus) or MainSession(nexus, ""),
                                               **{field_name: found[2]})
    return targets


def parse_connection_ids(text: str) -> list[tuple[MainSession, str]]:
    """Sessions with the number of each of their connections, of `--mode conn --op show`."""
    found: list[tuple[MainSession, str]] = []
    session = ""
    for line in text.splitlines():
        key, _, value = line.strip().partition(": ")
        if key == "Session":
            session = value
        elif key == "Connection" and session:
            found.append((MainSession(session, ""), value))
        elif key == "Initiator" and found:
            found[-1] = (replace(found[-1][0], initiator=value.split(" ")[0]), found[-1][1])
        elif key == "IP Address" and found:
            found[-1] = (replace(found[-1][0], peer=value), found[-1][1])
    return found


def parse_connections(text: str) -> list[MainSession]:
    """Sessions, each once, of `--mode conn --op show`."""
    return list({session.id: session for session, _ in parse_connection_ids(text)}.values())


def _same_ip(text: str) -> str:
    """One spelling for each IP address; anything else stays as it is."""
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return text


def _is_network(text: str) -> bool:
    address, _, prefix = text.partition("/")
    try:
        ipaddress.ip_network(f"{address.strip('[]')}/{prefix}" if prefix else address.strip("[]"), strict=False)
    except ValueError:
        return False
    return True
