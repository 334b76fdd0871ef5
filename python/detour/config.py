"""The configuration file (DESIGN.md section 5): TOML, read into frozen models.

Keys are kebab-case. An unknown key, a wrong unit or an impossible combination is refused as ConfigError with file, key
and reason. Options of a redirect driver are the driver's business: only `driver` is looked at here.
"""
from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from detour import limits
from detour.errors import ConfigError, UsageError
from detour.iscsi.access import Access, Network, parse_network, parse_pattern
from detour.iscsi.chap import ALGORITHMS, ChapAuth, Credentials
from detour.iscsi.keys import valid_name
from detour.urls import (
    FileUrl,
    IscsiUrl,
    MemoryUrl,
    RepositoryUrl,
    Secret,
    StoreUrl,
    format_endpoint,
    parse_backup_url,
    parse_duration,
    parse_endpoint,
    parse_rate,
    parse_size,
    parse_url,
    read_secret_env,
    read_secret_file,
)

T = TypeVar("T")
DRIVERS = ("tgt", "scst", "spdk", "ctld", "detour", "portal", "initiator", "hook")
CHAP_ALGORITHMS = {"sha3-256": 8, "sha-256": 7, "sha-1": 6, "md5": 5}
_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_COMPRESS = re.compile(r"none|zstd(:([1-9]|1[0-9]|2[0-2]))?|zlib(:[1-9])?")


def _reader(read: Callable[[Any], T]) -> BeforeValidator:
    """A reader of this project as a pydantic validator: its UsageError becomes the field's reason."""
    def validate(value: Any) -> Any:
        if isinstance(value, IscsiUrl | FileUrl | MemoryUrl | RepositoryUrl):
            return value
        try:
            return read(value)
        except UsageError as error:
            raise ValueError(error.message) from None
    return BeforeValidator(validate)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError("a text is wanted here")
    return value


def _endpoint(value: Any) -> str:
    host, port = parse_endpoint(_text(value), 3260)
    return format_endpoint(host, port)


def _api(value: Any) -> str:
    text = _text(value)
    if text.startswith("unix:/") and len(text) > len("unix:/"):
        return text
    if text.startswith("http://"):
        host, port = parse_endpoint(text.removeprefix("http://").rstrip("/"))
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise UsageError(f"{text!r}: the API has no authentication and listens on loopback or a Unix socket only")
        return f"http://{format_endpoint(host, port)}"
    raise UsageError(f"{text!r} is neither unix:/path nor http://127.0.0.1:PORT")


def _name(value: Any) -> str:
    text = _text(value).lower()
    if not valid_name(text):
        raise UsageError(f"{text!r} is no iSCSI name (iqn., eui. or naa.)")
    return text


def _algorithm(value: Any) -> int:
    number = CHAP_ALGORITHMS.get(_text(value).lower())
    if number is None:
        raise UsageError(f"{value!r} is no CHAP algorithm; known are {', '.join(CHAP_ALGORITHMS)}")
    return number


def _compress(value: Any) -> str:
    text = _text(value)
    if not _COMPRESS.fullmatch(text):
        raise UsageError(f'{text!r} is no compression; known are "none", "zstd:1" to "zstd:22", "zlib:1" to "zlib:9"')
    return text


def _redirect(value: Any) -> Any:
    driver = value.get("driver") if isinstance(value, dict) else None
    if driver not in DRIVERS:
        raise UsageError(f"driver is {driver!r}; known are {', '.join(DRIVERS)}")
    return value


def _list_of(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Size = Annotated[int, _reader(parse_size)]
Duration = Annotated[float, _reader(parse_duration)]
Rate = Annotated[int, _reader(parse_rate)]
Endpoint = Annotated[str, _reader(_endpoint)]
Name = Annotated[str, _reader(_name)]
Pause = Annotated[float, _reader(lambda value: limits.check_pause(parse_duration(value)))]
Retry = Annotated[float, _reader(lambda value: limits.check_retry(parse_duration(value)))]
Location = Annotated[Path, _reader(lambda value: Path(_text(value)))]
Algorithm = Annotated[int, _reader(_algorithm)]
Pattern = Annotated[str, _reader(lambda value: parse_pattern(_text(value)))]
NetworkText = Annotated[Network, _reader(lambda value: parse_network(_text(value)))]


class Section(BaseModel):
    """A table of the file: kebab-case keys, nothing unknown, not changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, strict=True,
                              alias_generator=lambda name: name.replace("_", "-"), populate_by_name=True)


class LogSection(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    style: Literal["auto", "text", "json"] = "auto"


class JournalSection(Section):
    path: Location
    size: Size

    @model_validator(mode="after")
    def _check(self) -> JournalSection:
        if self.size < limits.JOURNAL_BYTES_MIN:
            raise ValueError(f"a journal of {self.size} bytes is too small; {limits.JOURNAL_BYTES_MIN} is the least")
        return self


class UserSection(Section):
    """A CHAP user of several."""

    user: str
    secret_file: Location | None = None
    secret_env: str | None = None

    @model_validator(mode="after")
    def _check(self) -> UserSection:
        _one_secret(self.secret_file, self.secret_env, "secret-")
        return self


class AuthSection(Section):
    """CHAP that the gateway demands of hosts, as main does: one user, or `chap-users`; `mutual-*` is what the gateway
    proves itself with, `algorithms` what it accepts, in its order."""

    chap_user: str | None = None
    chap_secret_file: Location | None = None
    chap_secret_env: str | None = None
    chap_users: list[UserSection] = []
    mutual_user: str | None = None
    mutual_secret_file: Location | None = None
    mutual_secret_env: str | None = None
    algorithms: Annotated[list[Algorithm], BeforeValidator(_list_of), Field(min_length=1)] = list(ALGORITHMS)

    @model_validator(mode="after")
    def _check(self) -> AuthSection:
        if self.chap_user is not None:
            _one_secret(self.chap_secret_file, self.chap_secret_env, "chap-secret-")
        elif self.chap_secret_file or self.chap_secret_env or not self.chap_users:
            raise ValueError("chap-user (or chap-users) is missing")
        _mutual_whole(self.mutual_user, self.mutual_secret_file, self.mutual_secret_env)
        return self

    def chap(self) -> ChapAuth:
        """Reads the secrets. UsageError when one cannot be read or they do not go together."""
        named = [(one.user, one.secret_file, one.secret_env) for one in self.chap_users]
        if self.chap_user is not None:
            named.insert(0, (self.chap_user, self.chap_secret_file, self.chap_secret_env))
        try:
            users = tuple(Credentials(user, _secret(file, env)) for user, file, env in named)
            mutual = None
            if self.mutual_user is not None:
                mutual = Credentials(self.mutual_user, _secret(self.mutual_secret_file, self.mutual_secret_env))
            return ChapAuth(users, mutual, tuple(self.algorithms))
        except ValueError as error:
            raise UsageError(str(error)) from None


class LoginSection(Section):
    """How the gateway logs in to a target: its CHAP user, `mutual-*` that the target must prove itself with, digests."""

    user: str | None = None
    secret_file: Location | None = None
    secret_env: str | None = None
    mutual_user: str | None = None
    mutual_secret_file: Location | None = None
    mutual_secret_env: str | None = None
    header_digest: bool = False
    data_digest: bool = False

    @model_validator(mode="after")
    def _check(self) -> LoginSection:
        if self.user is not None:
            _one_secret(self.secret_file, self.secret_env, "secret-")
        elif self.secret_file or self.secret_env or self.mutual_user:
            raise ValueError("user is missing")
        _mutual_whole(self.mutual_user, self.mutual_secret_file, self.mutual_secret_env)
        return self

    def onto(self, url: IscsiUrl) -> IscsiUrl:
        """The URL with these credentials. UsageError when it has its own, or a secret cannot be used."""
        if self.user is not None and (url.user or url.mutual_user):
            raise UsageError("the URL names a user already")
        found = replace(url, header_digest=url.header_digest or self.header_digest,
                        data_digest=url.data_digest or self.data_digest)
        if self.user is None:
            return found
        own = _secret(self.secret_file, self.secret_env)
        found = replace(found, user=self.user, secret=own, secret_source=_source(self.secret_file, self.secret_env))
        if self.mutual_user is None:
            return found
        mutual = _secret(self.mutual_secret_file, self.mutual_secret_env)
        if mutual == own:
            raise UsageError("CHAP secrets of the two directions must differ (RFC 7143 section 9.2.1)")
        return replace(found, mutual_user=self.mutual_user, mutual_secret=mutual,
                       mutual_source=_source(self.mutual_secret_file, self.mutual_secret_env))


class AccessSection(Section):
    """Who may reach a target: initiator names ("*" and "?" stand for other characters), networks. Both must admit."""

    initiators: Annotated[list[Pattern], BeforeValidator(_list_of)] = []
    networks: Annotated[list[NetworkText], BeforeValidator(_list_of)] = []

    @property
    def rules(self) -> Access:
        return Access(tuple(self.initiators), tuple(self.networks))


def _one_secret(file: Path | None, env: str | None, prefix: str) -> None:
    if (file is None) == (env is None):
        raise ValueError(f"exactly one of {prefix}file and {prefix}env is needed")


def _mutual_whole(user: str | None, file: Path | None, env: str | None) -> None:
    if (file is not None) + (env is not None) != (user is not None):
        raise ValueError("mutual CHAP needs mutual-user and one of mutual-secret-file and mutual-secret-env")


def _secret(file: Path | None, env: str | None) -> Secret:
    return read_secret_file(file) if file is not None else read_secret_env(env or "")


def _source(file: Path | None, env: str | None) -> str:
    return f"file={file}" if file is not None else f"env={env}"


def _log_in(section: Section, field: str, login: LoginSection | None, key: str) -> None:
    """Puts credentials into a section's URL while it is made, so that whoever opens the URL has them."""
    url = getattr(section, field)
    if login is None:
        return
    if not isinstance(url, IscsiUrl):
        raise ValueError(f"{key} is for iSCSI, not for {url}")
    try:
        section.__dict__[field] = login.onto(url)
    except UsageError as error:
        raise ValueError(f"{key}: {error.message}") from None


class GatewaySection(Section):
    """[gateway]: listen, advertise are "host:port"; state is a folder; api "unix:/path" or "http://127.0.0.1:PORT".
    access: for volumes without one of their own. discovery-auth: CHAP for discovery sessions."""

    listen: Annotated[list[Endpoint], BeforeValidator(_list_of), Field(min_length=1)] = ["0.0.0.0:3260"]
    advertise: Endpoint | None = None
    state: Location = Path("/var/lib/detour")
    api: Annotated[list[Annotated[str, _reader(_api)]], BeforeValidator(_list_of)] = ["unix:/run/detour/api.sock"]
    reactors: Annotated[int, Field(ge=1, le=limits.REACTORS_MAX)] = 1
    buffers: Size = 256 * 2**20
    access: AccessSection = AccessSection()
    discovery_auth: AuthSection | None = None
    log: Annotated[LogSection, BeforeValidator(lambda v: {"level": v} if isinstance(v, str) else v)] = LogSection()


class HooksSection(Section):
    """Programs of the administrator. frozen: program and its arguments (no shell), run when main is frozen, before the
    copy begins."""

    frozen: Annotated[list[str], BeforeValidator(_list_of)] = []
    hook_timeout: Duration = 60.0


class CopySection(Section):
    """window: parts in flight; rate: bytes a second, 0 without limit."""

    window: Annotated[int, Field(ge=1, le=256)] = 8
    rate: Rate = 0


class VolumeSection(Section):
    """[volume.NAME]. auth, access: for hosts. main-auth: for main. target: name that the gateway serves, main's own by default. initiator-name: with which it logs in
    to main. main-retry: how long a lost main is tried again before the backup is given up."""

    main: Annotated[StoreUrl, _reader(parse_url)]
    journal: JournalSection
    redirect: Annotated[dict[str, Any], _reader(_redirect)]
    auth: AuthSection | None = None
    access: AccessSection | None = None
    main_auth: LoginSection | None = None
    max_pause: Pause = 1.0
    catch_up_reads: Literal["backup", "main"] = "backup"
    target: Name | None = None
    initiator_name: Name | None = None
    main_retry: Retry = 110.0
    hooks: HooksSection = HooksSection()
    copy_: Annotated[CopySection, Field(alias="copy")] = CopySection()
    sync: Literal["auto", "always", "flush"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> VolumeSection:
        if not isinstance(self.main, IscsiUrl) and self.target is None:
            raise ValueError("main is no iSCSI target: the key target must name the one that hosts log in to")
        _log_in(self, "main", self.main_auth, "main-auth")
        if isinstance(self.main, FileUrl) and os.path.abspath(self.main.path) == os.path.abspath(self.journal.path):
            raise ValueError("journal.path is main itself")
        return self

    @property
    def target_name(self) -> str:
        """The name under which hosts find the volume."""
        return self.target or (self.main.target if isinstance(self.main, IscsiUrl) else "")

    @property
    def lun(self) -> int:
        return self.main.lun if isinstance(self.main, IscsiUrl) else 0


class EncryptSection(Section):
    key_file: Location


class KeepSection(Section):
    """How many backups prune keeps, of the newest of each period."""

    last: Annotated[int, Field(ge=0)] = 0
    hourly: Annotated[int, Field(ge=0)] = 0
    daily: Annotated[int, Field(ge=0)] = 0
    weekly: Annotated[int, Field(ge=0)] = 0
    monthly: Annotated[int, Field(ge=0)] = 0
    yearly: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _check(self) -> KeepSection:
        if not any(self.model_dump().values()):
            raise ValueError("a keep that keeps nothing would delete every backup")
        return self


class StoreSection(Section):
    """[store.NAME]: where backups go. compress, encrypt and keep are for chunk repositories."""

    url: Annotated[StoreUrl | RepositoryUrl, _reader(parse_backup_url)]
    compress: Annotated[str, _reader(_compress)] = "none"
    encrypt: EncryptSection | None = None
    keep: KeepSection | None = None
    auth: LoginSection | None = None

    @model_validator(mode="after")
    def _check(self) -> StoreSection:
        _log_in(self, "url", self.auth, "auth")
        if isinstance(self.url, RepositoryUrl):
            return self
        for key in ("compress", "encrypt", "keep"):
            if key in self.model_fields_set:
                raise ValueError(f"{key} is for chunk repositories (repo:///path), not for {self.url}")
        return self


class Config(Section):
    """The whole file."""

    gateway: GatewaySection = GatewaySection()
    volume: dict[str, VolumeSection] = {}
    store: dict[str, StoreSection] = {}


def load_config(path: str | Path) -> Config:
    """Reads and checks a configuration file. ConfigError with file, key and reason otherwise."""
    file = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}",
                          file=file) from None
    return parse_config(text, file)


def parse_config(text: str, file: str = "") -> Config:
    """Checks the text of a configuration file; `file` is named in errors."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the file is not TOML: {error}", file=file) from None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise _config_error(error, file) from None
    _check_whole(config, file)
    return config


def _config_error(error: ValidationError, file: str) -> ConfigError:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    # An unknown key often is the misspelt one that is missing besides: it comes first.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    place = [str(part) for part in first["loc"]]
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place[-1], _known_keys(place[:-1]), 1)
        reason = "this key is unknown" + (f"; is {near[0]!r} meant?" if near else "")
    elif first["type"] == "missing":
        reason = "this key is missing"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ConfigError(reason + more, file=file, key=".".join(place))


def _known_keys(place: list[str]) -> list[str]:
    """Keys that the table at this place may have."""
    model: Any = Config
    for part in place:
        if get_origin(model) is dict:
            model = get_args(model)[1]
        elif isinstance(model, type) and issubclass(model, Section):
            field = next((f for name, f in model.model_fields.items() if (f.alias or name) == part), None)
            model = field.annotation if field else None
            model = next((m for m in get_args(model) if isinstance(m, type) and issubclass(m, Section)), model) \
                if get_origin(model) is not dict else model
    if isinstance(model, type) and issubclass(model, Section):
        return [field.alias or name for name, field in model.model_fields.items()]
    return []


def _check_doors(config: Config, refuse: Callable[[str, str], None]) -> None:
    """Secrets can be read, and volumes behind one target name ask the same of its hosts."""
    sections = {f"volume.{name}.auth": volume.auth for name, volume in config.volume.items()}
    sections["gateway.discovery-auth"] = config.gateway.discovery_auth
    for key, section in sections.items():
        try:
            if section is not None:
                section.chap()
        except UsageError as error:
            refuse(key, error.message)
    first: dict[str, tuple[str, VolumeSection]] = {}
    for name, volume in config.volume.items():
        other, known = first.setdefault(volume.target_name, (name, volume))
        for key in ("auth", "access"):
            if getattr(volume, key) != getattr(known, key):
                refuse(f"volume.{name}.{key}", f"the target is shared with volume {other}, which asks for other hosts")


def _check_whole(config: Config, file: str) -> None:
    """What no single table can know."""
    def refuse(key: str, reason: str) -> None:
        raise ConfigError(reason, file=file, key=key)

    for key in [*(f"volume.{name}" for name in config.volume), *(f"store.{name}" for name in config.store)]:
        if not _VOLUME_NAME.fullmatch(key.partition(".")[2]):
            refuse(key, "a name has letters, digits, '.', '_' and '-', at most 64")
    places: dict[str, list[str]] = defaultdict(list)
    for name, volume in config.volume.items():
        places[f"journal {os.path.abspath(volume.journal.path)}"].append(name)
        places[f"target {volume.target_name} LUN {volume.lun}"].append(name)
        if isinstance(volume.main, IscsiUrl) and volume.main.portal == config.gateway.advertise:
            refuse(f"volume.{name}.main", "main is the gateway's own address (gateway.advertise)")
        if isinstance(volume.main, MemoryUrl) and volume.main.size_bytes % 512:
            refuse(f"volume.{name}.main", "the size is no multiple of 512 bytes")
    _check_doors(config, refuse)
    for place, names in places.items():
        if len(names) > 1:
            refuse(f"volume.{names[1]}", f"the {place} is used by volume {names[0]} already")
    try:
        per_reactor = -(-len(config.volume) // config.gateway.reactors)
        limits.check_buffers(config.gateway.buffers, per_reactor, limits.QUEUE_DEPTH_MAX, 2**20)
    except UsageError as error:
        refuse("gateway.buffers", error.message)
