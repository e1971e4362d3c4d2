"""Array files: what was written comes back bit by bit, anything else is refused in words."""

import hashlib
import io
import itertools
import os
import random

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from biggraph.errors import BigGraphError, FormatError, StorageError
from biggraph.storage import files, fsops
from biggraph.storage.files import FileRef, MappedArrays, read_arrays, write_arrays
from biggraph.storage.folder import Folder
from tests.storage.doubles import Fault

counter = itertools.count()
dtypes = st.sampled_from(["<f4", "<f8", "<f2", "<i4", "<i8", "|u1"])
shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
some_arrays = st.dictionaries(
    st.text("abc.-ü ", min_size=1).filter(lambda name: name.strip(".")),
    npst.arrays(dtypes, shapes),
    max_size=4,
)
ARRAYS = {"embeddings": np.arange(12, dtype="f4").reshape(4, 3), "optimizer": np.ones(4, "f4")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def place(root):
    return Folder(root)


def read_both_ways(place, ref):
    return [read_arrays(place, ref), MappedArrays.open(place, ref).arrays()]


def reference(path, root):
    data = path.read_bytes()
    return FileRef(str(path.relative_to(root)), hashlib.sha256(data).hexdigest(), len(data))


@given(arrays=some_arrays, number=st.integers(-(2**63), 2**63 - 1), text=st.text("aü ", max_size=9))
@settings(max_examples=60, deadline=None)
def test_round_trip(place, arrays, number, text):
    ref = write_arrays(place, f"a/{next(counter)}.h5", arrays, {"number": number, "text": text})
    for found, attributes in read_both_ways(place, ref):
        assert attributes == {"number": number, "text": text}
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert found[name].shape == array.shape
            assert found[name].tobytes() == array.tobytes()


def test_any_hdf5_reader_can_read_it(root, place):
    ref = write_arrays(place, "plain.h5", ARRAYS, {"version": 3})
    with h5py.File(root / "plain.h5", locking=False) as hdf:
        assert hdf.attrs["version"] == 3
        assert hdf["embeddings"].chunks is None
        assert np.array_equal(hdf["embeddings"][...], ARRAYS["embeddings"])
    assert ref == reference(root / "plain.h5", root)


def test_equal_content_gives_equal_bytes(place):
    first = write_arrays(place, "first.h5", ARRAYS, {"version": 3})
    second = write_arrays(place, "second.h5", ARRAYS, {"version": 3})
    assert first.digest == second.digest


def test_views_that_are_not_contiguous_are_written_right(place):
    array = np.arange(24, dtype="f4").reshape(4, 6)[::2, ::-2]
    ref = write_arrays(place, "view.h5", {"x": array}, {})
    assert np.array_equal(read_arrays(place, ref)[0]["x"], array)


def test_a_taken_name_is_never_overwritten(place):
    ref = write_arrays(place, "taken.h5", ARRAYS, {})
    with pytest.raises(StorageError, match="exists already"):
        write_arrays(place, "taken.h5", {}, {})
    assert read_arrays(place, ref)[0].keys() == ARRAYS.keys()


def test_a_mapped_file_outlives_its_name(root, place):
    ref = write_arrays(place, "gone.h5", ARRAYS, {})
    mapped = MappedArrays.open(place, ref)
    (root / "gone.h5").unlink()
    assert np.array_equal(mapped.arrays()[0]["embeddings"], ARRAYS["embeddings"])
    with pytest.raises(FileNotFoundError):
        MappedArrays.open(place, ref)
    with pytest.raises(FileNotFoundError):
        read_arrays(place, ref)


@pytest.mark.parametrize("relative", ["/etc/passwd", "../x.h5", "a/../../x.h5", "", "a\0b"])
def test_names_that_lead_outside_are_refused(place, relative):
    with pytest.raises(FormatError, match="outside the run directory"):
        read_arrays(place, FileRef(relative, "", 1))
    with pytest.raises(FormatError, match="outside the run directory"):
        write_arrays(place, relative, {}, {})


def test_symbolic_links_are_refused(root, place, tmp_path):
    (tmp_path / "x.h5").write_bytes(b"secret")
    (root / "folder").symlink_to(tmp_path)
    (root / "link.h5").symlink_to(tmp_path / "x.h5")
    for name in ("folder/x.h5", "link.h5"):
        with pytest.raises(FormatError):
            read_arrays(place, FileRef(name, hashlib.sha256(b"secret").hexdigest(), 6))


def test_too_little_space_is_refused_before_anything_is_written(root, place, monkeypatch):
    monkeypatch.setattr(files, "_HEADER", 10**18)
    with pytest.raises(StorageError, match="free some space"):
        write_arrays(place, "full/x.h5", ARRAYS, {})
    assert fsops.list_files(root / "full") == []


def test_a_full_disk_while_writing_leaves_nothing(root, place):
    """The kernel refuses in the middle of the numbers, as a full disk does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 1 << 14, 1 << 18):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(StorageError, match="cannot write"):
                write_arrays(place, "limited/x.h5", {"x": np.zeros(1 << 20, "f4")}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert fsops.list_files(root / "limited") == []


def test_every_byte_counts(root, place):
    """Each mutant is refused whatever HDF5 would make of it."""
    ref = write_arrays(place, "fuzz.h5", ARRAYS, {"version": 3})
    path, sound = root / "fuzz.h5", (root / "fuzz.h5").read_bytes()
    rng = random.Random(1)
    mutants = [sound[:n] for n in (0, 1, 100, len(sound) // 2, len(sound) - 1)]
    mutants += [sound + b"\0", b"\0" * len(sound), b"PK" + sound[2:]]
    for _ in range(150):
        data = bytearray(sound)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        mutants.append(bytes(data))
    for data in mutants:
        path.write_bytes(data)
        for read in (read_arrays, lambda *a: MappedArrays.open(*a).arrays()):
            with pytest.raises(FormatError, match=r"expected a file of|damaged"):
                read(place, ref)


def test_hostile_files_with_a_right_digest_are_refused_or_harmless(root, place):
    """An attacker who can write the log makes the digest fit: parsing has to withstand it."""
    write_arrays(place, "hostile.h5", ARRAYS, {"version": 3})
    path, sound = root / "hostile.h5", (root / "hostile.h5").read_bytes()
    rng = random.Random(2)
    refused = 0
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(rng.randrange(1, 4)):  # the structure lies in the first 2 KiB
            data[rng.randrange(2048)] = rng.randrange(256)
        path.write_bytes(data)
        for read in (read_arrays, lambda *a: MappedArrays.open(*a).arrays()):
            try:
                found, _ = read(place, reference(path, root))
                assert sum(a.nbytes for a in found.values()) <= len(data)
            except BigGraphError:
                refused += 1
    assert refused > 20


def craft(root, name, write):
    with h5py.File(root / name, "w", locking=False) as hdf:
        hdf.attrs["format"], hdf.attrs["format_version"] = files.FORMAT, files.VERSION
        write(hdf)
    return reference(root / name, root)


def external_storage(hdf):
    hdf.create_dataset("x", (8,), "u1", external=[("/etc/passwd", 0, 8)])


def virtual(hdf):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("plain.h5", "optimizer", (4,))
    hdf.create_virtual_dataset("x", layout)


HOSTILE = {
    "external link": lambda hdf: hdf.__setitem__("x", h5py.ExternalLink("plain.h5", "optimizer")),
    "soft link": lambda hdf: hdf.__setitem__("x", h5py.SoftLink("/y")),
    "external storage": external_storage,
    "virtual": virtual,
    "group": lambda hdf: hdf.create_group("x"),
    "text": lambda hdf: hdf.create_dataset("x", data=["a", "b"]),
    "objects": lambda hdf: hdf.create_dataset("x", (2,), h5py.ref_dtype),
    "compressed": lambda hdf: hdf.create_dataset("x", data=np.ones(99), compression="gzip"),
    "chunked": lambda hdf: hdf.create_dataset("x", data=np.ones(99), chunks=(10,)),
    "big endian": lambda hdf: hdf.create_dataset("x", data=np.ones(3, ">f4")),
    "never written": lambda hdf: hdf.create_dataset("x", (1 << 40, 128), "f4"),
    "compound": lambda hdf: hdf.create_dataset("x", data=np.zeros(2, "i4,f4")),
    "no shape": lambda hdf: hdf.create_dataset("x", data=h5py.Empty("f4")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_structures_that_are_not_ours_are_refused(root, place, name):
    ref = craft(root, f"hostile-{name}.h5", HOSTILE[name])
    for read in (read_arrays, lambda *a: MappedArrays.open(*a).arrays()):
        with pytest.raises(FormatError, match=r"refused|not a readable"):
            read(place, ref)


def test_foreign_and_other_versions_are_told_apart(root, place):
    with h5py.File(root / "foreign.h5", "w") as hdf:
        hdf["x"] = np.ones(3)
    with pytest.raises(FormatError, match="not written by biggraph"):
        read_arrays(place, reference(root / "foreign.h5", root))
    with h5py.File(root / "newer.h5", "w") as hdf:
        hdf.attrs["format"], hdf.attrs["format_version"] = files.FORMAT, 99
    with pytest.raises(FormatError, match="version 99, this biggraph reads version 1"):
        read_arrays(place, reference(root / "newer.h5", root))
    (root / "text.h5").write_bytes(b"not hdf5 at all")
    with pytest.raises(FormatError, match="not a readable HDF5 file"):
        read_arrays(place, reference(root / "text.h5", root))


def test_reading_errors_are_storage_errors(place):
    ref = write_arrays(place, "io.h5", ARRAYS, {})
    with fsops.observed(probe := Fault(0, None)):
        read_arrays(place, ref)
    assert probe.count >= 2
    for n in range(1, probe.count + 1):
        with (
            fsops.observed(Fault(n, OSError(5, os.strerror(5)))),
            pytest.raises(StorageError, match="check the disk"),
        ):
            read_arrays(place, ref)


@pytest.mark.parametrize("sound", [0, 1, 2])
def test_a_disk_that_fails_after_some_blocks_is_a_storage_error(place, monkeypatch, sound):
    """It fails in the digest, or only when the numbers are read."""
    arrays = {"x": np.zeros(1 << 18, "f4")}

    class Failing(io.FileIO):
        left = sound * (arrays["x"].nbytes + 100_000)  # more than the structure

        def readinto(self, buffer):
            self.left -= (found := super().readinto(buffer))
            if self.left < 0 and found > 1 << 16:  # HDF5 reads less than that of the structure
                raise OSError(5, os.strerror(5))
            return found

    ref = write_arrays(place, f"failing-{sound}.h5", arrays, {})
    monkeypatch.setattr(fsops, "open_file", lambda path: io.BufferedReader(Failing(path)))
    if sound == 2:
        assert read_arrays(place, ref)[0].keys() == arrays.keys()
        return
    with pytest.raises(StorageError, match=r"cannot read: .*check the disk"):
        read_arrays(place, ref)


def test_mapped_files_are_not_kept_open(tmp_path):
    ref = write_arrays(Folder(tmp_path), "a.h5", ARRAYS, {})
    before = len(os.listdir("/dev/fd"))
    mapped = [MappedArrays.open(Folder(tmp_path), ref) for _ in range(50)]
    assert len(os.listdir("/dev/fd")) == before
    for one in mapped:
        array = one.arrays()[0]["embeddings"]
        assert np.array_equal(array, ARRAYS["embeddings"])
        assert not array.flags.writeable
    assert len(os.listdir("/dev/fd")) == before
