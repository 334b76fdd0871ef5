"""Tables of the configuration that say who may come, and who the gateway is: access rules, CHAP in both directions.

Front side: `auth` and `access` of a volume, `access` and `discovery-auth` of the gateway. Back side: `main-auth` of a
volume, `auth` of a store. Secrets stay in files or in the environment; the file only names them.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from detour.config_fields import Location, Section, list_of, reader, text_of
from detour.errors import UsageError
from detour.iscsi.access import Access, Network, parse_network, parse_pattern
from detour.iscsi.chap import ALGORITHMS, ChapAuth, Credentials, algorithm_number
from detour.urls import IscsiUrl, Secret, read_secret_env, read_secret_file

Algorithm = Annotated[int, reader(lambda value: algorithm_number(text_of(value)))]
Pattern = Annotated[str, reader(lambda value: parse_pattern(text_of(value)))]
NetworkText = Annotated[Network, reader(lambda value: parse_network(text_of(value)))]


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
    chap_users: list[UserSection] = Field(default_factory=list)
    mutual_user: str | None = None
    mutual_secret_file: Location | None = None
    mutual_secret_env: str | None = None
    algorithms: Annotated[list[Algorithm], BeforeValidator(list_of), Field(min_length=1)] = Field(
        default_factory=lambda: list(ALGORITHMS))

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
    """How the gateway logs in to a target: CHAP user, `mutual-*` with which the target must prove itself, digests."""

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

    initiators: Annotated[list[Pattern], BeforeValidator(list_of)] = Field(default_factory=list)
    networks: Annotated[list[NetworkText], BeforeValidator(list_of)] = Field(default_factory=list)

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


def log_in(section: Section, field: str, login: LoginSection | None, key: str) -> None:
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
