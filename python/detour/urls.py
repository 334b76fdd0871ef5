"""Storage URLs and the units of the configuration: sizes, durations, rates.

Forms: iscsi://[user[%secret]@]host[:port]/target-iqn/lun, file:///path, a bare path, /dev/name, mem:SIZE. Also known by
form, but without a driver here: repo:, repo+s3:, rbd:, nbd:. A secret may stand in the URL (after the user, split by
"%" as QEMU and libiscsi users know it), or come from `?secret-file=PATH` or `?secret-env=NAME`; str() and repr() never
show it. Further options of iscsi: URLs: `mutual-user` with `mutual-secret-file` or `mutual-secret-env` (the target must
prove itself too), `header-digest` and `data-digest` (crc32c or none), `initiator-name`.
"""
from __future__ import annotations

import hmac
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote

from detour.errors import UrlError, UsageError

ISCSI_PORT = 3260
SECRET_FILE_BYTES_MAX = 1024
HIDDEN = "***"

_SIZE_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50,
               "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "PIB": 2**50,
               "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_TIME_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0,
               "d": 86400.0}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ]*)\s*")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_TARGET_NAME = re.compile(r"(iqn|eui|naa)\.[^\s/]{1,219}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)


def parse_size(text: str | int) -> int:
    """Bytes of "256MiB", "64GiB", "4096", "1.5GB". K, M, G, T alone are powers of 1024. UsageError otherwise."""
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise UsageError(f"{text!r} is not a size")
    if isinstance(text, int):
        if text < 0:
            raise UsageError(f"a size cannot be negative: {text}")
        return text
    match = _NUMBER.fullmatch(text)
    factor = _SIZE_UNITS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise UsageError(f"{text!r} is not a size", hint='Sizes look like "256MiB", "64GiB" or "4096" (bytes).')
    whole, _, fraction = match[1].partition(".")
    scaled = int(whole + fraction) * factor
    if scaled % 10 ** len(fraction):
        raise UsageError(f"{text!r} is not a whole number of bytes")
    return scaled // 10 ** len(fraction)


def parse_duration(text: str | float | int) -> float:
    """Seconds of "1s", "500ms", "2min", "1h". A unit is demanded, except for 0. UsageError otherwise."""
    match = _NUMBER.fullmatch(text) if isinstance(text, str) else None
    if match is not None and match[2] in _TIME_UNITS:
        return float(match[1]) * _TIME_UNITS[match[2]]
    if not isinstance(text, bool) and (text == 0 or (match is not None and not match[2] and float(match[1]) == 0)):
        return 0.0
    raise UsageError(f"{text!r} is not a duration", hint='Durations have a unit: "500ms", "1s", "2min", "1h".')


def parse_rate(text: str | int) -> int:
    """Bytes a second of "100MiB/s" or "100MiB"; 0 means without limit. UsageError otherwise."""
    return parse_size(re.sub(r"\s*/\s*s(ec)?\s*$", "", text) if isinstance(text, str) else text)


def format_size(length_bytes: int) -> str:
    """"256MiB" where a power of 1024 divides evenly, else the bytes: parse_size reads both back unchanged."""
    for unit in ("PiB", "TiB", "GiB", "MiB", "KiB"):
        factor = _SIZE_UNITS[unit.upper()]
        if length_bytes and length_bytes % factor == 0:
            return f"{length_bytes // factor}{unit}"
    return str(length_bytes)


def parse_endpoint(text: str, default_port: int | None = None) -> tuple[str, int]:
    """("host", port) of "host:port", "[v6]:port", or without a port where a default is given. UsageError otherwise."""
    host, port_text = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or ":" not in host:
            raise UsageError(f"{text!r} is not [IPv6]:port")
        port_text = rest[1:]
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    elif ":" in text:
        raise UsageError(f"{text!r}: an IPv6 address needs brackets")
    if not text.startswith("[") and not _HOST_NAME.fullmatch(host):
        raise UsageError(f"{text!r} has no usable host name")
    if not port_text:
        if default_port is None or text.endswith(":"):
            raise UsageError(f"{text!r} has no port")
        return host, default_port
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or int(port_text) > 65535:
        raise UsageError(f"{text!r} has no usable port")
    return host, int(port_text)


def format_endpoint(host: str, port: int) -> str:
    """"host:port", with IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Secret:
    """A secret that only `reveal()` shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return HIDDEN

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(other._value.encode(), self._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)


def _read_private(path: str | Path) -> str:
    """Text of a file that nobody else may read; OSError, UnicodeDecodeError or UsageError otherwise."""
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP):
            raise UsageError(f"the secret file {path} may be read or changed by others (mode {mode & 0o777:04o})",
                             hint=f"Restrict it: chmod 600 {path}")
        return file.read(SECRET_FILE_BYTES_MAX + 1).decode()


def read_secret_file(path: str | Path) -> Secret:
    """The secret in a file: its text without the line end. UsageError when it cannot be read, is empty, or when others
    than its owner and group may read it (as ssh does with keys). A pipe has no mode that matters."""
    try:
        value = _read_private(path).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the secret file {path} cannot be read: {getattr(error, 'strerror', None) or 'not text'}",
                         hint="Check that the file exists and may be read by this user.") from None
    if not value:
        raise UsageError(f"the secret file {path} is empty")
    if len(value) > SECRET_FILE_BYTES_MAX or "\n" in value or "\0" in value:
        raise UsageError(f"the secret file {path} holds more than one line with a secret")
    return Secret(value)


def read_secret_env(name: str) -> Secret:
    """The secret in an environment variable. UsageError when it is not set or empty."""
    value = os.environ.get(name, "")
    if not value:
        raise UsageError(f"the environment variable {name} holds no secret")
    return Secret(value)


@dataclass(frozen=True)
class IscsiUrl:
    """A logical unit (or, with an empty target name, a portal) of an iSCSI target."""

    host: str
    port: int = ISCSI_PORT
    target: str = ""
    lun: int = 0
    user: str = ""
    secret: Secret | None = field(default=None, repr=False)
    secret_source: str = ""         # "file=PATH" or "env=NAME", when the secret came from there
    mutual_user: str = ""           # with which the target must prove itself
    mutual_secret: Secret | None = field(default=None, repr=False)
    mutual_source: str = ""
    header_digest: bool = False     # asked for; the target decides
    data_digest: bool = False
    initiator_name: str = ""        # with which to log in, where the caller has no name of its own
    scheme = "iscsi"

    @property
    def portal(self) -> str:
        """host:port, IPv6 in brackets."""
        return format_endpoint(self.host, self.port)

    def __str__(self) -> str:
        login = self.user + ("%" + HIDDEN if self.secret and not self.secret_source else "")
        path = f"/{quote(self.target, safe=':.-')}/{self.lun}" if self.target else ""
        return f"iscsi://{login}{'@' if login else ''}{self.portal}{path}{self._query()}"

    def _query(self) -> str:
        options = [f"secret-{quote(self.secret_source, safe='=/')}"] if self.secret_source else []
        if self.mutual_user:
            options.append(f"mutual-user={quote(self.mutual_user, safe='')}")
            options.append(f"mutual-secret-{quote(self.mutual_source or 'env=' + HIDDEN, safe='=/*')}")
        options += [f"{name}=crc32c" for name, wanted in (("header-digest", self.header_digest),
                                                          ("data-digest", self.data_digest)) if wanted]
        if self.initiator_name:
            options.append(f"initiator-name={quote(self.initiator_name, safe=':')}")
        return "?" + "&".join(options) if options else ""


@dataclass(frozen=True)
class FileUrl:
    """A file, or a block device when the path names one."""

    path: str
    scheme = "file"

    def __str__(self) -> str:
        return f"file://{quote(os.fsencode(os.path.abspath(self.path)))}"


@dataclass(frozen=True)
class MemoryUrl:
    """A store in memory of `size_bytes`."""

    size_bytes: int
    scheme = "mem"

    def __str__(self) -> str:
        return f"mem:{format_size(self.size_bytes)}"


@dataclass(frozen=True)
class RepositoryUrl:
    """A chunk repository in a folder: a place for backups, not a store."""

    path: str
    scheme = "repo"

    def __str__(self) -> str:
        return f"repo://{quote(os.fsencode(os.path.abspath(self.path)))}"


StoreUrl = IscsiUrl | FileUrl | MemoryUrl

_NO_DRIVER = {
    "repo": "a chunk repository",
    "repo+s3": "a chunk repository in an object store",
    "rbd": "a Ceph image",
    "nbd": "an NBD export",
    "nbd+unix": "an NBD export on a Unix socket",
}


def _split_login(login: str) -> tuple[str, Secret | None]:
    """User and secret of "user%secret": the first "%" splits (a user may hold ":", as initiator names do), and the
    secret is percent-decoded."""
    user, percent, secret = login.partition("%")
    return user, Secret(unquote(secret)) if percent else None


_SECRET_READERS = {"file": read_secret_file, "env": read_secret_env}
_DIGESTS = {"crc32c": True, "none": False}
_URL_OPTIONS = ("secret-file", "secret-env", "mutual-user", "mutual-secret-file", "mutual-secret-env", "header-digest",
                "data-digest", "initiator-name")


def _url_options(query: str, shown: str) -> dict[str, str]:
    """Options behind the "?", each at most once. UrlError for others."""
    options: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _URL_OPTIONS:
            raise UrlError(f"{shown}: unknown option {key!r}; known are {', '.join(_URL_OPTIONS)}")
        if key in options:
            raise UrlError(f"{shown}: {key} is given twice")
        options[key] = value
    return options


def _option_secret(options: dict[str, str], prefix: str, shown: str) -> tuple[Secret | None, str]:
    """Secret and where it came from, of PREFIXsecret-file or PREFIXsecret-env."""
    given = [kind for kind in _SECRET_READERS if f"{prefix}secret-{kind}" in options]
    if not given:
        return None, ""
    if len(given) > 1:
        raise UrlError(f"{shown}: only one of {prefix}secret-file and {prefix}secret-env may be given")
    source = options[f"{prefix}secret-{given[0]}"]
    return _SECRET_READERS[given[0]](source), f"{given[0]}={source}"


def _option_digest(options: dict[str, str], key: str, shown: str) -> bool:
    text = options.get(key, "none").lower()
    if text not in _DIGESTS:
        raise UrlError(f"{shown}: {key} is crc32c or none")
    return _DIGESTS[text]


def parse_iscsi_url(text: str, *, portal_only: bool = False) -> IscsiUrl:
    """An iscsi:// URL; with `portal_only` a target name and LUN may be missing (discovery). UrlError otherwise."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UrlError("an iSCSI URL is UTF-8")             # bytes of the command line that are none come as surrogates
    rest = text.partition("://")[2]
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    login, at, portal = authority.rpartition("@")
    shown = f"iscsi://{HIDDEN + '@' if at else ''}{portal}/{path}"
    try:
        host, port = parse_endpoint(portal, ISCSI_PORT)
    except UsageError as error:
        raise UrlError(f"{shown}: {error.message}") from None
    if port == 0:
        raise UrlError(f"{shown}: port 0 is no portal")
    if ":" in host:
        host = host.replace("%25", "%")         # a zone, as RFC 6874 writes it
    user, secret = _split_login(login) if at else ("", None)
    options = _url_options(query, shown)
    file_secret, source = _option_secret(options, "", shown)
    mutual_secret, mutual_source = _option_secret(options, "mutual-", shown)
    mutual_user = options.get("mutual-user", "")
    if secret and file_secret:
        raise UrlError(f"{shown}: the secret is given twice")
    if (secret or file_secret) and not user:
        raise UrlError(f"{shown}: a secret needs a user name before it")
    if bool(mutual_user) != bool(mutual_secret):
        raise UrlError(f"{shown}: mutual-user and mutual-secret-file (or -env) belong together")
    if mutual_user and not (secret or file_secret):
        raise UrlError(f"{shown}: mutual CHAP needs a user and secret of our own")
    target, lun = _split_target(path, shown, portal_only)
    return IscsiUrl(host, port, target, lun, user, secret or file_secret, source, mutual_user, mutual_secret,
                    mutual_source, _option_digest(options, "header-digest", shown),
                    _option_digest(options, "data-digest", shown), options.get("initiator-name", ""))


def _split_target(path: str, shown: str, portal_only: bool) -> tuple[str, int]:
    if not path.strip("/") and portal_only:
        return "", 0
    target, slash, lun_text = path.rstrip("/").rpartition("/")
    target = unquote(target).lower() if slash else ""
    if not _TARGET_NAME.fullmatch(target):
        raise UrlError(f"{shown}: after the portal comes /target-name/lun, the name beginning with iqn., eui. or naa.")
    if not re.fullmatch(r"[0-9]{1,5}", lun_text) or int(lun_text) > 16383:
        raise UrlError(f"{shown}: the LUN is a number from 0 to 16383")
    return target, int(lun_text)


def _file_path(rest: str, text: str) -> str:
    path = unquote(rest)
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost") or not slash or not path:
            raise UrlError(f"{text}: a file is named file:///absolute/path")
        path = "/" + unquote(path)
    if "\0" in path:
        raise UrlError(f"{text}: no path holds a zero byte")
    return path


def parse_url(text: str) -> StoreUrl:
    """Any storage URL of DESIGN.md section 5 that names one volume. UrlError with a clear sentence otherwise."""
    match = _SCHEME.fullmatch(text)
    if match is None or text.startswith(("/", ".")):
        if not text or "\0" in text:
            raise UrlError("an empty text is no storage URL")
        return FileUrl(text)
    scheme, rest = match[1].lower(), match[2]
    if scheme == "iscsi" and rest.startswith("//"):
        return parse_iscsi_url(text)
    if scheme == "file" and rest:
        return FileUrl(_file_path(rest, text))
    if scheme == "mem":
        try:
            size_bytes = parse_size(rest)
        except UsageError as error:
            raise UrlError(f"{text}: {error.message}") from None
        if size_bytes <= 0:
            raise UrlError(f"{text}: memory of no size")
        return MemoryUrl(size_bytes)
    if scheme in _NO_DRIVER:
        raise UrlError(f"{scheme}: names {_NO_DRIVER[scheme]}; this build has no driver that opens it as a volume")
    raise UrlError(f"{scheme}: is no known kind of storage")


def parse_backup_url(text: str) -> StoreUrl | RepositoryUrl:
    """What a backup may be written to: any volume, or a chunk repository in a folder (repo:///path)."""
    if text.startswith("repo://"):
        return RepositoryUrl(_file_path(text.removeprefix("repo:"), text))
    return parse_url(text)
