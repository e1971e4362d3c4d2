"""A folder as a place: whatever leads outside it or is no file is refused."""

import numpy as np
import pytest

from biggraph.errors import FormatError, StorageError
from biggraph.storage.folder import Folder
from biggraph.storage.opening import open_place


@pytest.fixture
def place(tmp_path):
    return Folder(tmp_path / "run")


@pytest.fixture
def filled(place):
    place.make_folder("log")
    assert place.put_if_absent("log/0", b"zero")
    with place.create("parts/user/0/a", 1) as file:
        file.write(b"embedding")
    place.replace("config", b"{}")
    return place


def test_a_path_means_a_folder_and_a_place_itself(tmp_path):
    for path in (tmp_path, str(tmp_path)):
        assert isinstance(open_place(path), Folder)
        assert str(open_place(path)) == str(tmp_path)
    place = Folder(tmp_path)
    assert open_place(place) is place
    assert place.where("log/0") == str(tmp_path / "log/0")


def test_what_was_written_is_found(filled):
    assert filled.top() == ["config", "log/", "parts/"]
    assert filled.names("parts") == ["parts/user/0/a"]
    assert filled.names("none") == filled.names("config") == []
    assert [filled.size(n) for n in ("log/0", "log", "log/1", "config/0")] == [4, None, None, None]
    assert filled.read("log/0") == b"zero"
    with filled.open("parts/user/0/a", 9) as file:
        assert file.read() == b"embedding"
    mapped = filled.map("parts/user/0/a", 9)
    filled.remove("parts/user/0/a")
    filled.remove("parts/user/0/a")
    assert np.array_equal(mapped, np.frombuffer(b"embedding", np.uint8))
    filled.remove_folder("parts")
    assert filled.top() == ["config", "log/"]


def test_a_taken_name_stays(filled):
    assert not filled.put_if_absent("log/0", b"other")
    with pytest.raises(FileExistsError), filled.create("log/0", 1):
        pass
    assert filled.read("log/0") == b"zero"
    assert filled.names("log") == ["log/0"]


def test_a_block_that_fails_publishes_nothing(place):
    def write():
        with place.create("a", 1) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert place.top() == []


def test_whether_it_exists(place, tmp_path):
    assert not place.exists()
    place.make_folder("")
    assert place.exists()
    (tmp_path / "file").write_text("")
    for below in ("file", "file/run"):
        with pytest.raises(StorageError, match="file: is a file; give the path of a folder"):
            Folder(tmp_path / below).exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\0b"])
def test_names_that_lead_outside_are_refused(filled, name):
    uses = [
        lambda: filled.create(name, 1).__enter__(),
        lambda: filled.open(name, 1).__enter__(),
        lambda: filled.put_if_absent(name, b""),
        lambda: filled.replace(name, b""),
        lambda: filled.map(name, 1),
        lambda: filled.read(name),
        lambda: filled.size(name),
        lambda: filled.remove(name),
    ]
    for use in uses:
        with pytest.raises(FormatError, match="outside the run directory"):
            use()


def test_what_is_no_plain_file_of_that_size_is_refused(filled):
    (filled.root / "link").symlink_to(filled.root / "config")
    for name, size in (("config", 3), ("link", 2)):
        for use in (lambda n, s: filled.open(n, s).__enter__(), filled.map):
            with pytest.raises(FormatError, match=rf"{name}: expected a file of {size} bytes"):
                use(name, size)


def test_one_lock_at_a_time(filled):
    unlock = filled.lock()
    with pytest.raises(StorageError, match=r"is writing this run; wait"):
        filled.lock()
    unlock()
    filled.lock()()
