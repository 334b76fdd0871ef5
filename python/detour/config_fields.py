"""What all tables of the configuration file are made of: their base, and readers of this project as validators."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from detour.errors import UsageError
from detour.urls import FileUrl, IscsiUrl, MemoryUrl, RepositoryUrl

T = TypeVar("T")


def reader(read: Callable[[Any], T]) -> BeforeValidator:
    """A reader of this project as a pydantic validator: its UsageError becomes the field's reason."""
    def validate(value: Any) -> Any:
        if isinstance(value, IscsiUrl | FileUrl | MemoryUrl | RepositoryUrl):
            return value
        try:
            return read(value)
        except UsageError as error:
            raise ValueError(error.message) from None
    return BeforeValidator(validate)


def text_of(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError("a text is wanted here")
    return value


def list_of(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Location = Annotated[Path, reader(lambda value: Path(text_of(value)))]


class Section(BaseModel):
    """A table of the file: kebab-case keys, nothing unknown, not changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, strict=True,
                              alias_generator=lambda name: name.replace("_", "-"), populate_by_name=True)
