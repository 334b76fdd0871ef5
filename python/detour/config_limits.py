"""[gateway.limits], and `--limit` of `detour target`: what hosts may ask of the process (listed in docs/operations.md).
"""
from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from detour.config_fields import Section, reader
from detour.errors import UsageError
from detour.limits import QUEUE_DEPTH_MAX, LoginLimits, TargetLimits
from detour.urls import parse_duration, parse_size

Count = Annotated[int, Field(ge=1, le=65535)]
Time = Annotated[float, reader(parse_duration), Field(ge=0, le=3600)]


class LimitsSection(Section):
    """Counts, durations and one size. nop-interval and stall-time: 0 is off."""

    sessions: Count = 256
    sessions_per_target: Count = 256
    sessions_per_initiator: Count = 64
    logins: Annotated[int, Field(ge=1, le=4096)] = 64
    logins_per_address: Count = 32
    login_time: Time = 12.0
    discovery_silence: Time = 30.0
    discovery_time: Time = 600.0
    queue_depth: Annotated[int, Field(ge=1, le=QUEUE_DEPTH_MAX)] = 128
    nop_interval: Time = 10.0
    nop_time: Time = 30.0
    stall_time: Time = 30.0
    session_memory: Annotated[int, reader(parse_size), Field(ge=2**20)] = 64 * 2**20

    @model_validator(mode="after")
    def _check(self) -> LimitsSection:
        if not 0 < self.login_time <= 15:
            raise ValueError("login-time is above 0, and initiators give up after 15 s")
        try:
            _ = self.login
        except UsageError as error:
            raise ValueError(error.message) from None
        if self.nop_interval and self.nop_time <= self.nop_interval:
            raise ValueError("nop-time must be longer than nop-interval")
        return self

    @property
    def login(self) -> LoginLimits:
        """What the listener holds connections to."""
        return LoginLimits(
            sessions_max=self.sessions, sessions_per_target_max=self.sessions_per_target,
            sessions_per_initiator_max=self.sessions_per_initiator, logins_max=self.logins,
            logins_per_address_max=self.logins_per_address, login_seconds=self.login_time,
            drop_seconds=self.login_time * 2 / 3, discovery_seconds=self.discovery_silence,
            discovery_life_seconds=self.discovery_time, queue_depth=self.queue_depth)

    @property
    def target(self) -> TargetLimits:
        """What each target holds sessions to."""
        return TargetLimits(
            queue_depth_max=self.queue_depth, nop_interval_ms=round(self.nop_interval * 1000),
            nop_timeout_ms=round(self.nop_time * 1000), stall_timeout_ms=round(self.stall_time * 1000),
            session_bytes_max=self.session_memory)


def parse_limits(texts: tuple[str, ...]) -> LimitsSection:
    """Limits of "name=value" texts; UsageError for what is no limit."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is not NAME=VALUE")
        values[name] = int(value) if value.isdecimal() else value
    try:
        return LimitsSection.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "limits"
        raise UsageError(f"--limit {where}: {first['msg'].removeprefix('Value error, ')}",
                         hint=f"Limits are {', '.join(name.replace('_', '-') for name in LimitsSection.model_fields)}."
                         ) from None
