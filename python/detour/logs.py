"""Log set-up: lines for people on a terminal, JSON otherwise or where asked. Secrets never reach a log.

Modules log by `structlog.get_logger(__name__)` or by the standard library's logging; both come out the same way, on
standard error (standard output belongs to the commands).
"""
from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from detour.errors import UsageError
from detour.urls import HIDDEN, Secret

LEVELS = ("debug", "info", "warning", "error")
Style = Literal["auto", "text", "json"]

_SECRET_KEY = re.compile(r"secret|password|passphrase|token|chap_r\b|private.?key", re.IGNORECASE)
_URL_SECRET = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^/@\s%:]*)[%:][^/@\s]*@", re.IGNORECASE)


def hidden(value: Any) -> Any:
    """The same value with secrets replaced: Secret objects, secrets inside URLs, entries named like secrets."""
    if isinstance(value, Secret):
        return HIDDEN
    if isinstance(value, str):
        return _URL_SECRET.sub(rf"\1%{HIDDEN}@", value)
    if isinstance(value, Mapping):
        return {key: HIDDEN if _names_secret(key) else hidden(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(hidden, value)) if type(value) in (list, tuple) else hidden(list(value))
    return value


def _names_secret(key: object) -> bool:
    # The name of a secret's file is no secret.
    return isinstance(key, str) and _SECRET_KEY.search(key) is not None and not key.endswith(("file", "env"))


def _hide(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: HIDDEN if _names_secret(key) else hidden(value) for key, value in event.items()}


def set_up(level: str = "info", style: Style = "auto", stream: TextIO | None = None) -> None:
    """Sends all logs to `stream` (standard error). May be called again. UsageError for an unknown level or style."""
    if level not in LEVELS:
        raise UsageError(f"{level!r} is no log level; known are {', '.join(LEVELS)}")
    if style not in ("auto", "text", "json"):
        raise UsageError(f"{style!r} is no log style; known are auto, text, json")
    out = stream or sys.stderr
    for_people = style == "text" or (style == "auto" and out.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S" if for_people else "iso", utc=not for_people),
        structlog.processors.StackInfoRenderer(),
    ]
    # A traceback is text without local variables (which may hold secrets) before secrets are hidden in it.
    last: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                       structlog.processors.format_exc_info, _hide]
    if for_people:
        last.append(structlog.dev.ConsoleRenderer(colors=out.isatty(),
                                                  exception_formatter=structlog.dev.plain_traceback))
    else:
        last.append(structlog.processors.JSONRenderer(default=str))
    handler = logging.StreamHandler(out)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()], processors=last))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared,
                    structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(), wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False)
