"""Every format read back by a naive reader, with names that are hard to write."""

import importlib
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
import pytest

from biggraph.embeddings import Embeddings
from biggraph.errors import InputError, StorageError
from biggraph.export import export
from tests.evaluate.trained import ENTITIES, ODD, make_run

module = importlib.import_module("biggraph.export")  # biggraph.export is the function


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def vectors(run):
    emb = Embeddings.open(run)
    return {
        kind: {name: emb.vector(name, kind) for name in names} for kind, names in ENTITIES.items()
    }


@pytest.fixture(params=[1 << 20, 64], ids=["one block", "blocks of 2 rows"], autouse=True)
def block_size(request, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", request.param)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, vector in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name], dtype=np.float32), vector)


def unescape(text):
    pairs = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}
    out, i = "", 0
    while i < len(text):
        step = 2 if text[i] == "\\" else 1
        out += pairs.get(text[i : i + step], text[i : i + step])
        i += step
    return out


def test_parquet(run, vectors, tmp_path):
    out = tmp_path / "new" / "out"
    export(run, out, format="parquet")
    for kind, expected in vectors.items():
        parts = sorted((out / "entities" / kind).iterdir())
        assert len(parts) == (3 if kind == "person" else 1)
        found = {}
        for part in parts:
            table = pq.read_table(part)
            assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
            found |= dict(zip(*table.to_pydict().values(), strict=True))
        assert_same(found, expected)
    relations = pq.read_table(out / "relations.parquet").to_pylist()
    emb = Embeddings.open(run)
    arrays = emb.checkpoint.relations()
    seen = {(r["relation"], r["side"], r["parameter"]): r for r in relations}
    assert len(seen) == len(relations) == 2 * 2 * 2
    for group in emb.model.groups:
        for place, rel in enumerate(group.relations):
            for side in ("lhs", "rhs"):
                row = seen[emb.graph.schema.relations[rel].name, side, "imag"]
                assert row["operator"] == "complex_diagonal"
                expected = arrays[f"{group.index}.{side}.imag"][place]
                np.testing.assert_array_equal(np.array(row["values"], np.float32), expected)


def test_npy(run, vectors, tmp_path):
    export(run, tmp_path / "out", format="npy")
    for kind, expected in vectors.items():
        rows = np.load(tmp_path / "out" / f"{kind}.npy", allow_pickle=False)
        assert rows.dtype == np.float32
        text = (tmp_path / "out" / f"{kind}.names.txt").read_bytes().decode()
        names = [unescape(line) for line in text.removesuffix("\n").split("\n")]
        assert_same(dict(zip(names, rows, strict=True)), expected)


def test_tsv(run, vectors, tmp_path):
    export(run, tmp_path / "out", format="tsv")
    for kind, expected in vectors.items():
        text = (tmp_path / "out" / f"{kind}.tsv").read_bytes().decode()
        lines = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
        assert_same({unescape(name): values for name, *values in lines}, expected)


@pytest.mark.parametrize("types", [None, ["person"]])
def test_word2vec(run, vectors, tmp_path, types):
    out = tmp_path / "vectors.txt"
    export(run, out, format="word2vec", entity_types=types)
    expected = {
        (name if types else f"{kind}:{name}"): vector
        for kind in types or vectors
        for name, vector in vectors[kind].items()
    }
    with out.open(encoding="utf-8", newline="\n") as file:
        count, dimension = map(int, next(file).split())
        found = {}
        for line in file:
            word, *values = line.split()
            assert len(values) == dimension
            found[unquote(word)] = values
    assert len(found) == count
    assert_same(found, expected)
    plain = out.read_text().split("\n")[1].split()[0]
    assert "%" not in plain or any(unquote(plain).endswith(name) for name in ODD)


def test_only_chosen_types_are_written(run, tmp_path):
    export(run, tmp_path / "out", format="npy", entity_types=["film", "film"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"film.npy", "film.names.txt"}


def test_an_occupied_target_is_refused(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name in ("full", "file"):
        for format in ("npy", "word2vec"):
            with pytest.raises(StorageError, match="already there"):
                export(run, tmp_path / name, format=format)
    assert (tmp_path / "file").read_text() == "keep"
    (tmp_path / "empty").mkdir()
    export(run, tmp_path / "empty", format="npy")
    assert (tmp_path / "empty" / "film.npy").exists()


def test_a_failure_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def fail(source, path):
        path.mkdir()
        (path / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(module.FORMATS, "npy", fail)
    with pytest.raises(StorageError, match="No space left"):
        export(run, tmp_path / "out", format="npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "parqet"}, 'unknown format "parqet"; did you mean "parquet"'),
        ({"format": "npy", "entity_types": ["films"]}, 'entity type "films"; did you mean "film"'),
        ({"format": "npy", "snapshot": "goldd"}, 'no snapshot "goldd"'),
    ],
)
def test_mistakes_are_named(run, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        export(run, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []
