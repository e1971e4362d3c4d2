"""A killed or failed import leaves nothing that opens as complete, and the next one cleans up."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from biggraph.errors import FormatError, InputError, StorageError
from biggraph.graph import disk, workspace
from biggraph.graph.graph import Graph
from biggraph.graph.importer import import_graph
from biggraph.graph.spec import ImportSpec

ROWS = [(f"e{i % 7}", f"r{i % 3}", f"e{i * 5 % 11}") for i in range(60)]
SPEC = {"partitions": 2, "holdout": {"test": 0.2}, "min_entity_count": 2}


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def fail_at(monkeypatch):
    """Return a function that makes the n-th disk operation fail; it returns those counted."""

    def arm(n, error=None):
        seen = []

        def before(operation):
            seen.append(operation)
            if len(seen) == n:
                raise error

        monkeypatch.setattr(disk, "before_operation", before)
        return seen

    return arm


@pytest.fixture
def operations(source, tmp_path, fail_at):
    """Return the number of disk operations of one import."""
    seen = fail_at(0)
    import_graph([source(ROWS)], tmp_path / "count", spec=ImportSpec(**SPEC))
    shutil.rmtree(tmp_path / "count")
    return len(seen)


def left_over(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "edges.tsv")


def test_a_full_disk_at_any_operation_is_reported_and_cleaned(
    operations, source, tmp_path, fail_at
):
    path, out = source(ROWS), tmp_path / "graph"
    for n in range(1, operations, 7):
        fail_at(n, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(StorageError, match=f"{out}: no space left"):
            import_graph([path], out, spec=ImportSpec(**SPEC))
        assert left_over(tmp_path) in ([], ["graph"])
        if out.exists():  # only what fails after publishing leaves a graph, and it is whole
            assert Graph.open(out).verify() == []
            shutil.rmtree(out)


def test_a_kill_at_any_operation_leaves_no_graph(
    operations, source, tmp_path, fail_at, monkeypatch, digests
):
    path, out = source(ROWS), tmp_path / "graph"
    import_graph([path], tmp_path / "whole", spec=ImportSpec(**SPEC))
    expected = digests(Graph.open(tmp_path / "whole"))
    half_made = 0
    for n in range(2, operations, 7):
        with monkeypatch.context() as patch:  # a process that ends cleans nothing up
            patch.setattr(workspace, "_discard", lambda _: None)
            fail_at(n, Killed())
            with pytest.raises(Killed):
                import_graph([path], out, spec=ImportSpec(**SPEC))
        half_made += (tmp_path / ".graph.importing").exists()
        if out.exists():
            assert Graph.open(out).verify() == []
        else:
            with pytest.raises(FormatError):
                Graph.open(out)
        fail_at(0)
        import_graph([path], out, spec=ImportSpec(**SPEC, overwrite=True))
        assert left_over(tmp_path) == ["graph", "whole"]
        assert digests(Graph.open(out)) == expected
        shutil.rmtree(out)
    assert half_made > 5


CHILD = """
import os, sys
from biggraph.graph import disk
from biggraph.graph.importer import import_graph
from biggraph.graph.spec import ImportSpec

source, out, operation, overwrite = sys.argv[1:]
seen = []

def before(found):
    seen.append(found)
    if found == operation and seen.count(found) == 2:
        os._exit(9)

disk.before_operation = before
import_graph([source], out, spec=ImportSpec(partitions=2, overwrite=bool(overwrite)))
"""


def run_child(*arguments):
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    return subprocess.run(command, check=False, timeout=120).returncode


@pytest.mark.multiprocess
@pytest.mark.parametrize("operation", ["append", "write edges", "rename"])
def test_a_killed_process_leaves_the_old_graph_or_none(operation, source, tmp_path):
    """The second rename of a replacement happens while the old graph is out of the way."""
    path, out = source(ROWS), tmp_path / "graph"
    import_graph([source(ROWS[:9], "old.tsv")], out, spec=ImportSpec())
    old = Graph.open(out).fingerprint
    assert run_child(path, out, operation, "overwrite") == 9
    assert (tmp_path / ".graph.importing").exists()
    if operation == "rename":
        with pytest.raises(
            FormatError, match=r"the old one lies in .*\.graph\.replaced: rename it"
        ):
            Graph.open(out)
        with pytest.raises(StorageError, match="exists and is not empty"):
            import_graph([path], out, spec=ImportSpec())  # puts the old graph back first
    assert Graph.open(out).fingerprint == old
    import_graph([path], out, spec=ImportSpec(overwrite=True))
    assert Graph.open(out).verify() == []
    assert left_over(tmp_path) == ["graph", "old.tsv"]


def test_a_taken_name_is_refused_and_not_touched(source, tmp_path):
    path, out = source(ROWS), tmp_path / "taken"
    out.mkdir()
    (out / "precious").write_text("data")
    for overwrite in (False, True):
        with pytest.raises(StorageError, match="exists and is not empty"):
            import_graph([path], out, spec=ImportSpec(overwrite=overwrite))
    assert (out / "precious").read_text() == "data"
    assert left_over(tmp_path) == ["taken"]
    (tmp_path / "file").write_text("data")
    with pytest.raises(StorageError, match="exists"):
        import_graph([path], tmp_path / "file", spec=ImportSpec())


def test_a_graph_is_replaced_only_if_asked(source, tmp_path):
    out = tmp_path / "graph"
    import_graph([source(ROWS)], out, spec=ImportSpec())
    one = Graph.open(out).fingerprint
    with pytest.raises(StorageError, match="exists and is not empty"):
        import_graph([source(ROWS[:5], "b.tsv")], out, spec=ImportSpec())
    assert Graph.open(out).fingerprint == one
    with pytest.raises(InputError):
        import_graph([tmp_path / "none"], out, spec=ImportSpec(overwrite=True))
    assert Graph.open(out).fingerprint == one
    import_graph([source(ROWS[:5], "b.tsv")], out, spec=ImportSpec(overwrite=True))
    assert Graph.open(out).fingerprint != one


def test_an_empty_folder_is_filled(source, tmp_path):
    (tmp_path / "graph").mkdir()
    import_graph([source(ROWS)], tmp_path / "graph", spec=ImportSpec())
    assert Graph.open(tmp_path / "graph").verify() == []


def test_two_imports_of_one_name_do_not_meet(source, tmp_path):
    path, out = source(ROWS), tmp_path / "graph"
    with workspace.workspace(out, lambda _: False) as folder:
        with pytest.raises(StorageError, match="another import is writing this graph"):
            import_graph([path], out, spec=ImportSpec())
        assert folder.exists()
    assert out.exists()


def test_two_processes_take_turns_with_the_lock(tmp_path):
    """A lock whose file was removed by the one before protects nothing: it is taken anew."""
    out = tmp_path / "graph"
    with workspace._locked(out):
        lock = tmp_path / ".graph.lock"
        assert lock.exists()
        with pytest.raises(StorageError, match="another import"), workspace._locked(out):
            pass
        assert lock.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_comes_into_being_meanwhile_is_not_replaced(tmp_path):
    out = tmp_path / "graph"

    def work():
        with workspace.workspace(out, lambda _: False):
            out.mkdir()
            (out / "precious").write_text("data")

    with pytest.raises(StorageError, match="exists and is not empty"):
        work()
    assert (out / "precious").read_text() == "data"
    assert left_over(tmp_path) == ["graph"]


@pytest.mark.parametrize("extra", ["notes.txt", "edges/run/log", "entities/empty/"])
def test_a_graph_that_holds_more_is_not_replaced(extra, source, tmp_path):
    path, out = source(ROWS), tmp_path / "graph"
    import_graph([path], out, spec=ImportSpec(**SPEC))
    if extra.endswith("/"):
        (out / extra).mkdir()
    else:
        (out / extra).parent.mkdir(exist_ok=True)
        (out / extra).write_text("mine")
    with pytest.raises(StorageError, match=r"holds .*, which is no part of the graph"):
        import_graph([path], out, spec=ImportSpec(overwrite=True))
    assert (out / extra).exists()


def test_sources_inside_the_graph_are_refused(source, tmp_path):
    out = tmp_path / "graph"
    import_graph([source(ROWS)], out, spec=ImportSpec())
    inside = source(ROWS, "graph/edges.tsv")
    with pytest.raises(InputError, match=r"edges\.tsv: lies inside .*graph, which the import"):
        import_graph([inside], out, spec=ImportSpec(overwrite=True))
    assert inside.exists()


def test_too_little_space_is_noticed_before_the_work(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(workspace.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"needs about .* GB of disk, 0\.0 GB are free"):
        import_graph([source(ROWS)], tmp_path / "graph", spec=ImportSpec())
    assert left_over(tmp_path) == []


def test_a_read_only_place_is_reported(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not write"):
        import_graph([source(ROWS)], tmp_path / "file" / "graph", spec=ImportSpec())
