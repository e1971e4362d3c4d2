"""A graph directory that was damaged, edited or made by someone else is refused, never a crash."""

import hashlib
import json
import os
import re
import shutil

import h5py
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biggraph.errors import FormatError, InputError
from biggraph.graph.format import entity_path
from biggraph.graph.graph import Graph
from biggraph.types import Bucket, PartitionKey

ROWS = [(f"e{i % 7}", f"r{i % 3}", f"e{i * 5 % 11}", i / 4) for i in range(60)]
KEY = PartitionKey("entity", 1)


@pytest.fixture
def graph(source, build):
    return build([source(ROWS)], partitions=2, valid=[source(ROWS[:5], "v.tsv")])


def reseal(graph, change):
    """Apply `change` to graph.json and give it a matching checksum, as a hostile writer would."""
    path = graph.path / "graph.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    change(content)
    parts = [content.get("entities"), content["relations"], content["splits"]]
    content["fingerprint"] = sha(parts)
    content["checksum"] = sha(content)
    path.write_text(json.dumps(content))


def sha(value):
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def replace_file(graph, split, bucket):
    """Record the present bytes of an edge file in graph.json."""
    path = graph.path / f"edges/{split}/bucket-{bucket.lhs}-{bucket.rhs}.h5"
    content = path.read_bytes()

    def change(manifest):
        for record in manifest["splits"][split]:
            if (record["lhs"], record["rhs"]) == bucket:
                record["size"] = len(content)
                record["sha256"] = hashlib.sha256(content).hexdigest()

    reseal(graph, change)


def open_and_read(path):
    graph = Graph.open(path)
    for key in graph.schema.partition_keys():
        graph.names(key)
    for split, buckets in graph.splits.items():
        for bucket in buckets:
            graph.edges(split, bucket)


def test_open_reads_what_import_wrote(graph):
    assert graph.verify() == []
    assert sum(graph.splits["train"].values()) == 60
    assert sum(graph.splits["valid"].values()) == 5
    assert graph.schema.entity_type("entity").count == 11
    edges = graph.edges("train", Bucket(0, 0))
    assert [c.dtype for c in (edges.lhs, edges.rel, edges.rhs)] == [np.dtype("int32")] * 3
    assert edges.weight.dtype == np.float32
    none = graph.edges("test", Bucket(0, 0))
    assert len(none) == 0
    assert none.weight is not None


def test_an_unknown_split_is_refused_and_an_empty_one_is_empty(graph):
    assert len(graph.edges("test", Bucket(0, 0))) == 0
    with pytest.raises(InputError, match=r'no split "tset"; did you mean "test"\?'):
        graph.edges("tset", Bucket(0, 0))


def test_names_are_found_and_suggested(graph):
    for name in ("e0", "e10"):
        ((key, offset),) = graph.find(name)
        assert graph.names(key)[offset].as_py() == name
    assert graph.find("nobody") == []
    partition, offset = graph.locate("entity", ["e1", "nobody"])
    assert partition[0] >= 0
    assert (partition[1], offset[1]) == (-1, -1)
    assert "e1" in graph.suggest(None, "E1")
    assert graph.suggest("entity", "zzzzzz") == []
    with pytest.raises(InputError, match='unknown entity type "x"'):
        graph.locate("x", ["e1"])


def test_not_a_graph(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FormatError, match="not a graph directory"):
            Graph.open(path)


def test_edited_by_hand(graph):
    path = graph.path / "graph.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(FormatError, match=r"graph.json: checksum does not match, edited by hand"):
        Graph.open(graph.path)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_versions(graph, version):
    reseal(graph, lambda content: content.update(version=version))
    with pytest.raises(FormatError, match=r"format version .*, this biggraph reads 1"):
        Graph.open(graph.path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "null",
        '{"format": 1}',
        "[" * 200_000,
        '{"a": NaN, "a": 1}',
        "\ud800",
        '{"a": 1e999}',
    ],
)
def test_foreign_json(graph, text):
    (graph.path / "graph.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(FormatError, match=re.escape(str(graph.path / "graph.json"))):
        Graph.open(graph.path)


def drop(key):
    return lambda content: content.pop(key)


HOSTILE = {
    "no entities": drop("entities"),
    "empty entities": lambda c: c.update(entities=[]),
    "unknown key": lambda c: c.update(extra=1),
    "negative count": lambda c: c["entities"][0]["partitions"][0].update(count=-1),
    "count as text": lambda c: c["entities"][0]["partitions"][0].update(count="3"),
    "huge count": lambda c: c["entities"][0]["partitions"][0].update(count=2**62),
    "unknown type": lambda c: c["relations"][0].update(lhs="nobody"),
    "relation twice": lambda c: c["relations"].append(c["relations"][0]),
    "bucket twice": lambda c: c["splits"]["train"].append(c["splits"]["train"][0]),
    "bucket outside": lambda c: c["splits"]["train"][0].update(lhs=99),
    "bucket count": lambda c: c["splits"]["train"][0].update(count=1),
    "unknown split": lambda c: c["splits"].update(dev=[]),
    "digest": lambda c: c["splits"]["train"][0].update(sha256="../../etc/passwd"),
    "path in a type": lambda c: c["entities"][0].update(name="../../etc"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_manifests(graph, name):
    reseal(graph, HOSTILE[name])
    with pytest.raises(FormatError):
        open_and_read(graph.path)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", ".", "a/b", "é", "%2E", "a b"])
def test_entity_types_cannot_leave_the_directory(name, source, build, tmp_path, triples):
    relative = entity_path(PartitionKey(name, 0))
    assert (tmp_path / relative).resolve().parent.parent == (tmp_path / "entities").resolve()
    made = build([source([("a", "r", "b")])], relations=[("r", name, "plain")])
    assert triples(made) == {("a", "r", "b", 1.0): 1}


@pytest.mark.parametrize("relative", ["edges/train/bucket-0-1.h5", "entities/entity/part-1.arrow"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "remove", "link", "folder"])
def test_damaged_files(graph, relative, damage, tmp_path):
    path = graph.path / relative
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "truncate":
        content.pop()
    elif damage == "grow":
        content.append(0)
    if damage == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "folder":
        path.mkdir()
    elif damage != "remove":
        path.write_bytes(content)
    damaged = Graph.open(graph.path)
    with pytest.raises(FormatError, match=re.escape(str(path))):
        open_and_read(graph.path)
    assert any(str(path) in problem for problem in damaged.verify())


def test_a_folder_linked_elsewhere_is_refused(graph, tmp_path):
    shutil.move(graph.path / "edges", tmp_path / "elsewhere")
    (graph.path / "edges").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="outside the graph directory"):
        graph.edges("train", Bucket(0, 0))


def rewrite(name, make):
    """Return an edit of an HDF5 file that puts something else in a dataset's place."""

    def edit(file, folder):
        data = file[name][:]
        del file[name]
        make(file, data, folder)

    return edit


def external_storage(file, data, folder):
    (folder / "secret").write_bytes(data.tobytes())
    where = [(str(folder / "secret"), 0, data.nbytes)]
    file.create_dataset("lhs", data.shape, data.dtype, external=where)


def virtual(file, data, folder):
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    file.create_virtual_dataset("lhs", layout)


def external_link(file, data, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["lhs"] = data
    file["lhs"] = h5py.ExternalLink(str(folder / "other.h5"), "lhs")


def huge(file, data, folder):
    file.create_dataset("lhs", (1 << 40,), "<i4", chunks=(1 << 20,))


EDITS = {
    "external storage": rewrite("lhs", external_storage),
    "virtual": rewrite("lhs", virtual),
    "external link": rewrite("lhs", external_link),
    "soft link": rewrite("lhs", lambda f, d, _: f.__setitem__("lhs", h5py.SoftLink("/rhs"))),
    "huge": rewrite("lhs", huge),
    "chunked": rewrite("lhs", lambda f, d, _: f.create_dataset("lhs", data=d, chunks=(1,))),
    "gzip": rewrite("lhs", lambda f, d, _: f.create_dataset("lhs", data=d, compression="gzip")),
    "short": rewrite("lhs", lambda f, d, _: f.create_dataset("lhs", data=d[:-1])),
    "matrix": rewrite("lhs", lambda f, d, _: f.create_dataset("lhs", data=d.reshape(-1, 1))),
    "float": rewrite("lhs", lambda f, d, _: f.create_dataset("lhs", data=d.astype("f4"))),
    "big endian": rewrite("lhs", lambda f, d, _: f.create_dataset("lhs", data=d.astype(">i4"))),
    "text": rewrite("lhs", lambda f, d, _: f.create_dataset("lhs", data=["x"] * len(d))),
    "group": rewrite("lhs", lambda f, d, _: f.create_group("lhs")),
    "offset too large": rewrite("lhs", lambda f, d, _: f.create_dataset("lhs", data=d + 99)),
    "offset negative": rewrite("rhs", lambda f, d, _: f.create_dataset("rhs", data=d - 99)),
    "relation too large": rewrite("rel", lambda f, d, _: f.create_dataset("rel", data=d + 99)),
    "weight nan": rewrite(
        "weight", lambda f, d, _: f.create_dataset("weight", data=d * np.float32("nan"))
    ),
    "no weight": lambda f, _: f.__delitem__("weight"),
    "extra": lambda f, _: f.create_dataset("extra", data=[1]),
    "version": lambda f, _: f.attrs.__setitem__("format_version", 2),
    "other bucket": lambda f, _: f.attrs.__setitem__("lhs", 5),
    "no attribute": lambda f, _: f.attrs.__delitem__("count"),
    "odd attribute": lambda f, _: f.attrs.__setitem__("count", np.zeros(3)),
}


@pytest.mark.parametrize("name", EDITS)
def test_hostile_edge_files(graph, name, tmp_path):
    """The digest matches, yet what the file says is refused before it is used."""
    bucket = Bucket(1, 1)
    with h5py.File(graph.path / "edges/train/bucket-1-1.h5", "r+") as file:
        EDITS[name](file, tmp_path)
    replace_file(graph, "train", bucket)
    with pytest.raises(FormatError):
        Graph.open(graph.path).edges("train", bucket)


def test_hostile_entity_files(graph):
    path = graph.path / "entities/entity/part-1.arrow"
    good = graph._partition(KEY)
    for batch in (good.slice(1), good.select(["name"]), good.rename_columns(list("abcd"))):
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        content = path.read_bytes()
        record = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        reseal(graph, lambda c, r=record: c["entities"][0]["partitions"][1].update(r))
        with pytest.raises(FormatError, match=re.escape(str(path))):
            Graph.open(graph.path).names(KEY)


def test_verify_finds_wrong_degrees_and_relation_counts(graph):
    reseal(graph, lambda c: c["relations"][0].update(train_edges=1))
    assert any("edges per relation" in problem for problem in Graph.open(graph.path).verify())


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_files_are_refused(graph, data):
    """A random change of any file is noticed, and the original is accepted again."""
    files = sorted(p for p in graph.path.rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(files))
    original = path.read_bytes()
    content = bytearray(original)
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(min_size=0, max_size=3))
    path.write_bytes(content)
    try:
        if same_json(path, original, content):
            open_and_read(graph.path)
        else:
            with pytest.raises(FormatError):
                open_and_read(graph.path)
    finally:
        path.write_bytes(original)


def same_json(path, original, content):
    if bytes(content) == original:
        return True
    if path.name != "graph.json":
        return False
    try:
        return json.loads(content) == json.loads(original)
    except ValueError:
        return False


def test_reading_leaves_no_file_open(graph):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        Graph.open(graph.path).edges("train", Bucket(0, 0))
    assert len(os.listdir("/proc/self/fd")) <= before
