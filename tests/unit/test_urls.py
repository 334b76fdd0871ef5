"""Storage URLs, secrets, sizes and durations."""
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detour.errors import UrlError, UsageError
from detour.urls import (
    FileUrl,
    IscsiUrl,
    MemoryUrl,
    RepositoryUrl,
    Secret,
    format_endpoint,
    format_size,
    parse_backup_url,
    parse_duration,
    parse_endpoint,
    parse_iscsi_url,
    parse_rate,
    parse_size,
    parse_url,
    read_secret_file,
)

IQN = "iqn.2026-01.example:db01"


def test_an_iscsi_url_whole():
    url = parse_url(f"iscsi://user%pass%25word@[fe80::1]:3261/{IQN}/7")
    assert (url.host, url.port, url.target, url.lun, url.user) == ("fe80::1", 3261, IQN, 7, "user")
    assert url.secret.reveal() == "pass%word"
    assert url.portal == "[fe80::1]:3261"


@pytest.mark.parametrize("text", ["[fe80::1%25eth0]:3261", "[fe80::1%eth0]:3261"])
def test_a_link_local_address_has_a_zone(text):
    url = parse_url(f"iscsi://u@{text}/{IQN}/1")
    assert (url.host, url.port, url.user) == ("fe80::1%eth0", 3261, "u") and parse_url(str(url)) == url


def test_the_port_has_a_default_and_names_are_lower_case():
    assert parse_url(f"iscsi://host/{IQN.upper().replace('IQN.', 'iqn.')}/0") == IscsiUrl("host", 3260, IQN, 0)


@pytest.mark.parametrize("text", [
    f"iscsi://user%topsecret@host/{IQN}/1", f"iscsi://iqn.2026-01.example:u%topsecret@host/{IQN}/1"])
def test_a_secret_is_never_shown(text):
    url = parse_url(text)
    assert url.secret.reveal() == "topsecret"
    for shown in (str(url), repr(url), f"{url.secret}", repr(url.secret), str([url])):
        assert "topsecret" not in shown
    assert "%***@" in str(url)


@pytest.mark.parametrize("bad", ["iscsi://u%topsecret@host:0x1/" + IQN + "/1", "iscsi://u%topsecret@host/x/1",
                                 "iscsi://u%topsecret@host/" + IQN + "/1?secret-file=/nowhere"])
def test_a_refused_url_does_not_tell_its_secret(bad):
    with pytest.raises(UsageError) as caught:
        parse_url(bad)
    assert "topsecret" not in str(caught.value)


def test_a_secret_from_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "s").write_text("from file\n")
    (tmp_path / "s").chmod(0o600)
    monkeypatch.setenv("DETOUR_TEST_SECRET", "from env")
    url = parse_url(f"iscsi://u@host/{IQN}/1?secret-file={tmp_path / 's'}")
    assert url.secret == Secret("from file") and str(url).endswith(f"?secret-file={tmp_path / 's'}")
    assert parse_url(str(url)) == url
    assert parse_url(f"iscsi://u@host/{IQN}/1?secret-env=DETOUR_TEST_SECRET").secret == Secret("from env")


@pytest.mark.parametrize("bad", [
    f"iscsi://host/{IQN}", "iscsi://host/", f"iscsi:///{IQN}/1", f"iscsi://host/{IQN}/-1", f"iscsi://host/{IQN}/16384",
    f"iscsi://host:99999/{IQN}/1", f"iscsi://host:0/{IQN}/1", f"iscsi://::1/{IQN}/1",
    f"iscsi://host/{IQN}/1?secret=x", "file://other/x", "mem:0",
    f"iscsi://u@host/{IQN}/1?secret-env=DETOUR_NOT_SET", "mem:12XB", "", "ftp://x/y", "file:"])
def test_malformed_urls_are_refused_with_exit_code_2(bad):
    with pytest.raises(UsageError) as caught:
        parse_url(bad)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["rbd:pool/image", "nbd://h/e", "nbd+unix:///e?socket=s", "repo+s3://b/p",
                                  "repo:///x"])
def test_kinds_without_a_driver_say_so(text):
    with pytest.raises(UrlError, match="no driver"):
        parse_url(text)


def test_files_memory_and_repositories(tmp_path):
    assert parse_url("file:///a%20b/c") == FileUrl("/a b/c")
    assert parse_url("/dev/sdb") == FileUrl("/dev/sdb")
    assert parse_url("disk.img") == FileUrl("disk.img")
    assert parse_url("mem:1GiB") == MemoryUrl(2**30) and str(MemoryUrl(2**30)) == "mem:1GiB"
    assert parse_backup_url("repo:///backup/nightly") == RepositoryUrl("/backup/nightly")
    assert parse_backup_url("mem:4096") == MemoryUrl(4096)


def test_a_portal_alone_is_enough_for_discovery():
    assert parse_iscsi_url("iscsi://host:3261", portal_only=True) == IscsiUrl("host", 3261)
    assert str(parse_iscsi_url("iscsi://host/", portal_only=True)) == "iscsi://host:3260"


@pytest.mark.parametrize("text, length", [("0", 0), ("512", 512), ("1KiB", 1024), ("256MiB", 2**28), ("64GiB", 2**36),
                                          ("1.5GB", 1_500_000_000), ("2 T", 2**41), ("1MB", 10**6), (77, 77)])
def test_sizes(text, length):
    assert parse_size(text) == length


@pytest.mark.parametrize("bad", ["", "MiB", "-1", "1.0001KiB", "1XB", "1 2", -1, None, True, 1.5, "0.1"])
def test_wrong_sizes(bad):
    with pytest.raises(UsageError):
        parse_size(bad)


@given(st.integers(0, 2**60))
def test_sizes_are_read_back(length):
    assert parse_size(format_size(length)) == length


@pytest.mark.parametrize("text, seconds", [("1s", 1), ("500ms", 0.5), ("2min", 120), ("1.5h", 5400), (0, 0), ("0", 0)])
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("bad", ["1", "s", "1x", 5, "-1s", True, None])
def test_durations_need_a_unit(bad):
    with pytest.raises(UsageError):
        parse_duration(bad)


def test_rates():
    assert parse_rate("100MiB/s") == 100 * 2**20 and parse_rate("0") == 0


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str), st.integers(0, 65535))
def test_endpoints_are_read_back(host, port):
    assert parse_endpoint(format_endpoint(host, port)) == (host, port)


@pytest.mark.parametrize("bad", ["", ":1", "h:", "h:x", "::1", "[::1", "[h]:1", "[::1]x", "h:65536", "a b:1"])
def test_wrong_endpoints(bad):
    with pytest.raises(UsageError):
        parse_endpoint(bad)


def private(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_mutual_credentials_digests_and_a_name_in_a_url(tmp_path):
    own, theirs = private(tmp_path / "own", "secret one\n"), private(tmp_path / "theirs", "secret two\r\n")
    url = parse_url(f"iscsi://u@h/{IQN}/1?secret-file={own}&mutual-user=main&mutual-secret-file={theirs}"
                    "&header-digest=CRC32C&data-digest=none&initiator-name=iqn.2026-01.example:me")
    assert (url.mutual_user, url.mutual_secret.reveal()) == ("main", "secret two")
    assert (url.header_digest, url.data_digest, url.initiator_name) == (True, False, "iqn.2026-01.example:me")
    assert parse_url(str(url)) == url and "secret two" not in str(url) + repr(url)


@pytest.mark.parametrize("query, reason", [
    ("mutual-user=m", "belong together"), ("mutual-secret-env=DETOUR_TEST_SECRET", "belong together"),
    ("header-digest=md5", "crc32c or none"), ("header-digest=none&header-digest=none", "given twice"),
    ("secret-env=DETOUR_TEST_SECRET&secret-file=/x", "only one"),
    ("mutual-user=m&mutual-secret-env=DETOUR_TEST_SECRET", "of our own")])
def test_url_options_that_do_not_go_together(query, reason, monkeypatch):
    monkeypatch.setenv("DETOUR_TEST_SECRET", "from env")
    login = "u@" if "secret-env=DETOUR_TEST_SECRET&" in query else ""
    with pytest.raises(UsageError, match=reason):
        parse_url(f"iscsi://{login}h/{IQN}/1?{query}")


@pytest.mark.parametrize("mode, allowed", [(0o600, True), (0o400, True), (0o640, True), (0o644, False), (0o602, False),
                                           (0o620, False), (0o666, False)])
def test_secret_files_of_others_are_refused(tmp_path, mode, allowed):
    path = private(tmp_path / "s", "a secret\n")
    path.chmod(mode)
    if allowed:
        assert read_secret_file(path) == Secret("a secret")
        return
    with pytest.raises(UsageError, match="by others") as caught:
        read_secret_file(path)
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize("text", ["", "\n", "two\nlines\n", "x" * 1025, "a\0b"])
def test_files_that_hold_no_secret(tmp_path, text):
    with pytest.raises(UsageError):
        read_secret_file(private(tmp_path / "s", text))


def test_a_secret_may_come_through_a_pipe():
    read_end, write_end = os.pipe()
    os.write(write_end, b"piped secret\n")
    os.close(write_end)
    try:
        assert read_secret_file(f"/dev/fd/{read_end}") == Secret("piped secret")
    finally:
        os.close(read_end)


def test_bytes_of_the_command_line_that_are_no_utf8():
    """They come as lone surrogates: a file may be named so, a target may not."""
    with pytest.raises(UrlError, match="UTF-8"):
        parse_url("iscsi://192.0.2.1/iqn.2026-01.example:d\udcff/0")
    assert str(parse_url("/images/\udcff.img")) == "file:///images/%FF.img"
    assert str(parse_backup_url("repo:///backup/\udcff")) == "repo:///backup/%FF"


def test_no_path_holds_a_zero_byte():
    for text in ("file:///images/a%00b", "file:a%00b", "repo:///backup/%00"):
        with pytest.raises(UrlError):
            parse_backup_url(text)
