import os
import stat

import pytest

from biggraph.dist import endpoint as endpoints
from biggraph.dist.endpoint import (
    ENDPOINT_FILE,
    Endpoint,
    Secret,
    advertised_host,
    encode_endpoint,
    find_secret,
    is_loopback,
    new_id,
    parse_endpoint,
    require_secret_beyond_loopback,
)
from biggraph.errors import ConfigError, FormatError
from biggraph.storage.folder import Folder
from biggraph.train.meeting import find_endpoint

HERE = Endpoint(term="t", host="127.0.0.1", port=4000, job="j")
KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_secret_in_the_environment(monkeypatch):
    monkeypatch.delenv("BIGGRAPH_SECRET", raising=False)


def secret_file(path, content=KEY, mode=0o600):
    path.write_text(content)
    path.chmod(mode)
    return path


def test_an_endpoint_comes_back(tmp_path):
    place = Folder(tmp_path)
    assert find_endpoint(place) is None
    place.replace(ENDPOINT_FILE, encode_endpoint(HERE))
    assert find_endpoint(place) == HERE
    later = HERE.model_copy(update={"term": "u", "port": 4001})
    place.replace(ENDPOINT_FILE, encode_endpoint(later))
    assert find_endpoint(place) == later
    assert os.listdir(tmp_path) == ["endpoint.json"]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "content"),
        (encode_endpoint(HERE)[:-10], "Invalid JSON"),
        (encode_endpoint(HERE).replace(b"4000", b"0"), "port"),
        (encode_endpoint(HERE).replace(b"4000", b'"4000"'), "port"),
        (encode_endpoint(HERE).replace(b'"127.0.0.1"', b'""'), "host"),
        (encode_endpoint(HERE).replace(b"term", b"turn"), "term"),
        (encode_endpoint(HERE).replace(b"{", b'{"more": 1,'), "more"),
    ],
)
def test_a_damaged_endpoint_is_refused(data, named):
    with pytest.raises(FormatError, match=named) as caught:
        parse_endpoint(data, "run/endpoint.json")
    assert str(caught.value).startswith("run/endpoint.json: damaged")


def test_ids_differ():
    assert new_id() != new_id()


def test_where_there_is_no_folder_a_secret_has_to_be_given(monkeypatch):
    with pytest.raises(ConfigError, match="set BIGGRAPH_SECRET"):
        find_secret(None, None, create=True)
    monkeypatch.setenv("BIGGRAPH_SECRET", KEY)
    assert find_secret(None, None, create=True).explicit


def test_the_coordinator_makes_a_secret_that_workers_find(tmp_path):
    made = find_secret(tmp_path, None, create=True)
    assert len(made.key) >= 32
    assert not made.explicit
    assert find_secret(tmp_path, None, create=True) == made
    assert find_secret(tmp_path, None, create=False) == made
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["secret"]


def test_the_secret_is_never_readable_by_others(tmp_path, monkeypatch):
    opened = []

    def watched(path, flags, mode=0o777):
        if flags & os.O_CREAT:
            opened.append((bool(flags & os.O_EXCL), mode))
        return os_open(path, flags, mode)

    os_open, before = os.open, os.umask(0)
    try:
        monkeypatch.setattr(endpoints.os, "open", watched)
        find_secret(tmp_path, None, create=True)
    finally:
        os.umask(before)
    assert opened == [(True, 0o600)]
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_worker_without_a_secret_is_told(tmp_path):
    with pytest.raises(ConfigError, match="start the coordinator first"):
        find_secret(tmp_path, None, create=False)


def test_a_file_wins_over_the_environment_and_that_over_the_run(tmp_path, monkeypatch):
    run = find_secret(tmp_path, None, create=True)
    monkeypatch.setenv("BIGGRAPH_SECRET", "of the environment")
    file = secret_file(tmp_path / "file", "of the file, more than enough\n")
    assert find_secret(tmp_path, file, create=True) == (b"of the file, more than enough", True)
    assert find_secret(tmp_path, None, create=True) == (b"of the environment", True)
    monkeypatch.delenv("BIGGRAPH_SECRET")
    assert find_secret(tmp_path, None, create=True) == run


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o660, 0o666])
def test_a_secret_that_others_can_read_or_change_is_refused(tmp_path, mode):
    path = secret_file(tmp_path / "s", mode=mode)
    with pytest.raises(ConfigError, match=rf"\(mode {mode:04o}\); chmod 600 {path}"):
        find_secret(tmp_path, path, create=False)


def test_a_secret_that_only_we_can_read_passes(tmp_path):
    path = secret_file(tmp_path / "s", mode=0o400)
    assert find_secret(tmp_path, path, create=False).key == KEY.encode()


def test_a_short_secret_is_refused(tmp_path, monkeypatch):
    path = secret_file(tmp_path / "s", "   0123456789abcde\n  ")
    with pytest.raises(ConfigError, match="a job secret of 15 bytes; give at least 16"):
        find_secret(tmp_path, path, create=False)
    monkeypatch.setenv("BIGGRAPH_SECRET", "short")
    with pytest.raises(ConfigError, match="BIGGRAPH_SECRET: a job secret of 5 bytes"):
        find_secret(tmp_path, None, create=False)


def test_any_bytes_may_be_a_secret(tmp_path, monkeypatch):
    key = bytes(range(128, 160))
    monkeypatch.setenv("BIGGRAPH_SECRET", os.fsdecode(key))
    assert find_secret(tmp_path, None, create=False).key == key


def test_a_secret_of_somebody_else_is_refused(tmp_path, monkeypatch):
    path = secret_file(tmp_path / "s")
    monkeypatch.setattr(endpoints.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="belongs to user"):
        find_secret(tmp_path, path, create=False)


def test_a_folder_or_a_pipe_is_no_secret(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    for name in ("pipe", "folder"):
        with pytest.raises(ConfigError, match=f"{name}: .* regular file"):
            find_secret(tmp_path, tmp_path / name, create=False)


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.5.0.1", "::1", "localhost"])
def test_loopback_needs_no_secret_of_the_user(bind):
    assert is_loopback(bind)
    require_secret_beyond_loopback(bind, Secret(b"", explicit=False))


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "", "10.0.0.7", "fe80::1", "no such host"])
def test_beyond_loopback_the_user_must_give_a_secret(bind):
    with pytest.raises(ConfigError, match="BIGGRAPH_SECRET"):
        require_secret_beyond_loopback(bind, Secret(b"", explicit=False))
    require_secret_beyond_loopback(bind, Secret(b"", explicit=True))


def test_workers_are_told_an_address_that_they_can_reach():
    assert advertised_host("10.0.0.7") == "10.0.0.7"
    assert advertised_host("0.0.0.0") not in ("", "0.0.0.0")
