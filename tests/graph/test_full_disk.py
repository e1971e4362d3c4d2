"""A disk that is full, or that refuses large files, is an ordinary error wherever it strikes."""

import ctypes
import os
import subprocess
import sys

import pytest

CHILD = """
import resource, shutil, signal, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from biggraph.errors import StorageError
from biggraph.graph.dictionary import EntityFiles
from biggraph.graph.format import EdgeLayout, write_edges
from biggraph.graph.hashing import Hashes
from biggraph.graph.importer import import_graph
from biggraph.graph.spec import ImportSpec
from biggraph.types import Bucket, Edges

task, limit, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
disk_size, work = 4 << 20, folder / "work"
columns = [np.arange(5000, dtype=kind) for kind in (np.int32, np.int32, np.int32, np.float32)]
lanes = Hashes(*np.zeros((2, 20_000), np.uint64))
rows = [f"e{i}" for i in range(4001)]
table = pa.table({"head": rows, "relation": rows, "tail": rows[::-1]})

def run_edges():
    write_edges(work / "e.h5", EdgeLayout(Bucket(0, 0), 5000, np.int32, True), [Edges(*columns)])

def run_counter():
    files = EntityFiles(work)
    files.append(pa.array([""] * 20_000), lanes)
    files.counter("degree")[:] = 1

def run_import():
    import_graph(table, work / "graph", spec=ImportSpec())

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
outcomes = []
for room in range(0, *map(int, sys.argv[4:])):
    work.mkdir()
    if limit == "file size":
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    else:
        (folder / "filler").write_bytes(bytes(disk_size - 8192 - room))
    try:
        globals()["run_" + task]()
        outcomes.append("done")
    except (StorageError, OSError):
        outcomes.append("refused")
        assert task != "import" or not list(work.iterdir()), list(work.iterdir())
    shutil.rmtree(work)
    (folder / "filler").unlink(missing_ok=True)
print(" ".join(dict.fromkeys(outcomes)))
"""


def outcomes(*arguments):
    """Return what happened to a task with more and more room, in order of appearance."""
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    result = subprocess.run(command, check=False, timeout=300, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


STEPS = {"edges": (100_000, 5_000), "counter": (600_000, 30_000), "import": (1_500_000, 300_000)}


@pytest.mark.multiprocess
@pytest.mark.parametrize("task", STEPS)
def test_a_limit_on_file_sizes_is_an_error(task, tmp_path):
    assert outcomes(task, "file size", tmp_path, *STEPS[task]) == ["refused", "done"]


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a disk of 4 MiB."""
    folder, libc = tmp_path / "disk", ctypes.CDLL(None, use_errno=True)
    folder.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=4m"):
        pytest.skip("needs the right to mount a file system")
    yield folder
    libc.umount(os.fsencode(folder))


@pytest.mark.multiprocess
@pytest.mark.parametrize("task", STEPS)
def test_a_full_disk_is_an_error(task, small_disk):
    assert outcomes(task, "space", small_disk, *STEPS[task]) == ["refused", "done"]
