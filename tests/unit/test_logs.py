"""Logs: JSON or text, and never a secret."""
import io
import json
import logging

import pytest
import structlog

from detour import logs
from detour.errors import UsageError
from detour.urls import Secret


@pytest.fixture
def restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("style", ["json", "text"])
def test_secrets_are_hidden_in_both_styles(restored, style):
    out = io.StringIO()
    logs.set_up("debug", style, out)
    structlog.get_logger("a").info("login", url="iscsi://u%topsecret@h/x/1", chap_secret="topsecret",
                                   more={"password": "topsecret", "list": [Secret("topsecret")]}, secret_file="/s")
    logging.getLogger("b").warning("to %s", "iscsi://u%topsecret@h/x/1")
    text = out.getvalue()
    assert "topsecret" not in text
    assert text.count("***") == 5 and "/s" in text


@pytest.mark.parametrize("style", ["json", "text"])
def test_tracebacks_tell_no_secrets(restored, style):
    out = io.StringIO()
    logs.set_up("info", style, out)
    password = "".join(["top", "secret"])
    try:
        raise ValueError(f"iscsi://u%{password}@h/x/1")
    except ValueError:
        structlog.get_logger("a").exception("it broke")
        logging.getLogger("b").exception("it broke, too")
    text = out.getvalue()
    assert "topsecret" not in text and text.count("ValueError: iscsi://u%***@h") == 2


def test_json_lines_carry_level_and_fields(restored):
    out = io.StringIO()
    logs.set_up("info", "auto", out)
    structlog.get_logger("a").info("hello", n=1)
    structlog.get_logger("a").debug("unheard")
    logging.getLogger("b").error("bad %d", 7)
    first, other = map(json.loads, out.getvalue().splitlines())
    assert (first["event"], first["n"], first["level"]) == ("hello", 1, "info") and first["timestamp"]
    assert (other["event"], other["level"]) == ("bad 7", "error")


@pytest.mark.parametrize("level, style", [("loud", "auto"), ("info", "xml")])
def test_unknown_options(level, style):
    with pytest.raises(UsageError):
        logs.set_up(level, style)
