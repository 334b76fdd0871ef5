"""Limits of the configuration and of `--limit`: defaults, what they become, what is refused, and that they are told."""
import re
from pathlib import Path

import pytest

from detour.config_limits import LimitsSection, parse_limits
from detour.errors import UsageError
from detour.limits import LoginLimits, TargetLimits

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_the_defaults_are_those_of_the_parts():
    section = LimitsSection()
    assert section.login == LoginLimits() and section.target == TargetLimits()


def test_what_is_given_reaches_its_part():
    section = parse_limits(("sessions=9", "sessions-per-initiator=2", "logins=5", "login-time=6s", "queue-depth=16",
                            "nop-interval=0", "stall-time=500ms", "session-memory=4MiB", "discovery-silence=5s"))
    login, target = section.login, section.target
    assert (login.sessions_max, login.sessions_per_initiator_max, login.logins_max, login.queue_depth) == (9, 2, 5, 16)
    assert (login.login_seconds, login.drop_seconds, login.discovery_seconds) == (6.0, 4.0, 5.0)
    assert target.options() == {"queue_depth_max": 16, "nop_interval_ms": 0, "nop_timeout_ms": 30000,
                                "stall_timeout_ms": 500, "session_bytes_max": 4 << 20}


@pytest.mark.parametrize("text", [
    "sessions", "sessions=0", "sessions=many", "bogus=1", "login-time=12", "login-time=0", "login-time=20s",
    "nop-time=10s", "session-memory=1KiB", "queue-depth=5000", "discovery-time=1s", "logins=99999"])
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_limits((text,))
    assert text.partition("=")[0] in caught.value.message or "discovery" in caught.value.message


def test_the_manual_tells_every_limit_with_its_default():
    section = OPERATIONS.read_text().split("\n## Limits\n")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `([a-z-]+)` \|.*\| `?([^|`]+)`? \|$", section, re.MULTILINE))
    assert set(told) == {name.replace("_", "-") for name in LimitsSection.model_fields}
    assert parse_limits(tuple(f"{name}={value}" for name, value in told.items())) == LimitsSection()
