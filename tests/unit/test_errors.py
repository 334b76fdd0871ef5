"""The exception tree, its exit codes, and its table against the core's Status codes."""
import re
from pathlib import Path

import pytest

from detour import errors

CORE = Path(__file__).parents[2] / "pyext/detour/core"


def all_errors():
    found, queue = [], [errors.DetourError]
    while queue:
        kind = queue.pop()
        found.append(kind)
        queue += [sub for sub in kind.__subclasses__() if sub.__module__ == "detour.errors"]
    return found


def test_the_table_names_every_error_status_of_the_core():
    text = (CORE / "types.pxd").read_text()
    core = {int(code): name for name, code in re.findall(r"\b(E_[A-Z]+) = (-\d+)", text)}
    assert core and core == {code: meaning.name for code, meaning in errors.STATUS_TABLE.items()}


@pytest.mark.parametrize("status", errors.STATUS_TABLE)
def test_a_status_becomes_an_exception_that_says_what_was_tried(status):
    error = errors.from_status(status, "flush of main")
    assert type(error) is errors.STATUS_TABLE[status].exception
    assert str(error).startswith("flush of main: ") and error.status == status
    assert errors.status_name(status) == errors.STATUS_TABLE[status].name


def test_an_unknown_status_is_an_error_and_success_is_none():
    assert "-99" in str(errors.from_status(-99))
    with pytest.raises(ValueError):
        errors.from_status(0)


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_has_an_exit_code_a_hint_and_a_docstring(kind):
    assert kind.exit_code in (1, 2, 3)
    assert kind.hint.endswith(".") and kind.__doc__
    assert str(kind("it broke")) == "it broke"
    assert kind("it broke", hint="mend it").hint == "mend it"


def test_exit_codes():
    assert errors.AbandonedError("x").exit_code == 3
    assert {errors.UsageError.exit_code, errors.ConfigError.exit_code, errors.UrlError.exit_code} == {2}
    assert errors.StorageError.exit_code == 1


def test_a_config_error_names_file_key_and_reason():
    error = errors.ConfigError("no", file="a.toml", key="volume.x")
    assert str(error) == "a.toml: volume.x: no"
    assert (error.file, error.key, error.reason) == ("a.toml", "volume.x", "no")
