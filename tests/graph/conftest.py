"""Fixtures for the importer: write sources, import them, read a graph back as names."""

import hashlib
from collections import Counter

import pytest

from biggraph.errors import InputError
from biggraph.graph import spec
from biggraph.graph.graph import Graph
from biggraph.graph.importer import import_graph
from biggraph.graph.spec import ImportSpec
from biggraph.types import PartitionKey


@pytest.fixture
def any_memory(monkeypatch):
    """Allow budgets so small that a few thousand edges are cut into ranges."""
    monkeypatch.setattr(spec, "MIN_MEMORY", 1)


@pytest.fixture
def source(tmp_path):
    """Return a function that writes a source file: text, bytes or rows of a TSV."""

    def write(content, name="edges.tsv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, (str, bytes)):
            content = "".join("\t".join(map(str, row)) + "\n" for row in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def build(tmp_path):
    """Return a function that imports sources into a new directory and opens it."""
    made = []

    def make(sources, **options):
        out = tmp_path / f"graph-{len(made)}"
        made.append(import_graph(sources, out, spec=ImportSpec(**options)))
        graph = Graph.open(out)
        assert graph.verify() == []
        return graph

    make.reports = made
    return make


@pytest.fixture
def refuse(tmp_path):
    """Return a function that imports and returns the message of the refusal."""

    def attempt(sources, **options):
        out = tmp_path / "out" / "graph"
        with pytest.raises(InputError) as caught:
            import_graph(sources, out, spec=ImportSpec(**options))
        assert not out.exists()
        assert list(out.parent.glob("*")) == [] if out.parent.exists() else True
        return str(caught.value)

    return attempt


@pytest.fixture
def triples():
    """Return a function from graph and split to a Counter of (head, relation, tail, weight)."""

    def read(graph, split="train"):
        found = Counter()
        for bucket in graph.splits.get(split, {}):
            edges = graph.edges(split, bucket)
            assert len(edges) == graph.splits[split][bucket]
            for i in range(len(edges)):
                relation = graph.schema.relations[edges.rel[i]]
                lhs = graph.names(PartitionKey(relation.lhs, bucket.lhs))[int(edges.lhs[i])]
                rhs = graph.names(PartitionKey(relation.rhs, bucket.rhs))[int(edges.rhs[i])]
                weight = 1.0 if edges.weight is None else float(edges.weight[i])
                found[lhs.as_py(), relation.name, rhs.as_py(), weight] += 1
        return found

    return read


@pytest.fixture
def digests():
    """Return a function from a graph to its files' digests, without graph.json."""

    def digest(graph):
        return {
            str(path.relative_to(graph.path)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(graph.path.rglob("*"))
            if path.is_file() and path.name != "graph.json"
        }

    return digest
