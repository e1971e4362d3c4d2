"""File operations: complete or absent, refused with a remedy, nothing left behind."""

import errno
import os

import pytest

from biggraph.errors import StorageError
from biggraph.storage import fsops
from tests.storage.doubles import Fault


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_put_if_absent_lets_one_writer_win(tmp_path):
    assert fsops.put_if_absent(tmp_path / "a", b"first")
    assert not fsops.put_if_absent(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_a_probe_that_another_process_cleaned_up_says_nothing_of_the_file_system(tmp_path):
    removed = []

    def clean_up(operation, path):
        if operation == "sync folder" and not removed:
            removed.extend(tmp_path.glob("probe-*"))
            for probe in removed:
                probe.unlink()

    with fsops.observed(clean_up):
        fsops.check_put_if_absent(tmp_path)
    assert removed
    assert names(tmp_path) == []


@pytest.mark.parametrize("times", [1, 100])
def test_what_is_being_replaced_may_be_cleaned_up_now_and_then(tmp_path, times):
    removed = []

    def clean_up(operation, path):
        if operation == "rename" and len(removed) < times:
            removed.extend(found := list(tmp_path.glob("*.tmp")))
            for temporary in found:
                temporary.unlink()

    with fsops.observed(clean_up):
        if times == 1:
            fsops.replace(tmp_path / "a", b"data")
        else:
            with pytest.raises(StorageError, match="another process has cleaned up here"):
                fsops.replace(tmp_path / "a", b"data")
    assert removed
    assert names(tmp_path) == (["a"] if times == 1 else [])


def test_replace_takes_the_name(tmp_path):
    fsops.replace(tmp_path / "a", b"first")
    fsops.replace(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"second"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("write", [fsops.put_if_absent, fsops.replace])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
def test_a_refusal_says_what_where_and_what_to_do(tmp_path, write, code):
    remedies = {errno.ENOSPC: "free some", errno.EIO: "check the disk"}
    remedy = remedies.get(code, "choose another folder")
    probe = Fault(0, None)
    with fsops.observed(probe):
        write(tmp_path / "0", b"data")
    assert probe.count >= 4
    for n in range(1, probe.count + 1):
        folder = tmp_path / f"folder-{n}"
        folder.mkdir()
        fault = Fault(n, OSError(code, os.strerror(code)))
        with (
            fsops.observed(fault),
            pytest.raises(StorageError, match=f"{folder}.*{os.strerror(code)}; .*{remedy}"),
        ):
            write(folder / "a", b"data")
        if fault.seen[-1] != "remove":  # it could not, and a temporary file never counts
            assert names(folder) in ([], ["a"])


def test_missing_and_existing_files_are_not_storage_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        fsops.read_file(tmp_path / "none")
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(FileExistsError), fsops.publish(tmp_path / "a"):
        pass
    assert names(tmp_path) == ["a"]


def test_folders_are_made_listed_and_removed(tmp_path):
    fsops.make_folder(tmp_path / "x/y/z")
    fsops.make_folder(tmp_path / "x/y/z")
    assert fsops.put_if_absent(tmp_path / "x/y/a", b"")
    assert fsops.list_files(tmp_path / "x") == [tmp_path / "x/y/a"]
    assert fsops.list_files(tmp_path / "none") == []
    fsops.unlink(tmp_path / "x/y/a")
    fsops.unlink(tmp_path / "x/y/a")
    fsops.remove_empty_folders(tmp_path / "x")
    assert names(tmp_path) == []


def test_too_little_space_is_refused_before_writing(tmp_path):
    fsops.require_space(tmp_path, 1)
    with pytest.raises(StorageError, match=r"MB to write, .* MB free; free some space"):
        fsops.require_space(tmp_path, 10**18)


def test_the_start_up_check_passes_here_and_leaves_nothing(tmp_path):
    fsops.check_put_if_absent(tmp_path)
    assert names(tmp_path) == []


def test_the_start_up_check_notices_a_file_system_where_both_win(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", os.replace)
    with pytest.raises(StorageError, match="two writers"):
        fsops.check_put_if_absent(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_is_refused(tmp_path, monkeypatch, code):
    def no_link(source, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(StorageError, match="this file system has no hard links"):
        fsops.check_put_if_absent(tmp_path)
    assert names(tmp_path) == []


def test_a_full_file_system_in_earnest(tmp_path):
    """The kernel refuses; only the length of the file is limited, which acts like a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match="ulimit -f"):
            fsops.put_if_absent(tmp_path / "a", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match=f"{tmp_path}: cannot list: Permission denied"):
        fsops.list_files(tmp_path)


def test_folders_that_hold_files_stay(tmp_path):
    (tmp_path / "x/empty").mkdir(parents=True)
    (tmp_path / "x/full").mkdir()
    (tmp_path / "x/full/a").write_text("")
    fsops.remove_empty_folders(tmp_path / "x")
    assert names(tmp_path / "x") == ["full"]
