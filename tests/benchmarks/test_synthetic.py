"""The graph of the benchmarks: skewed, with structure that can be learned, and always the same."""

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

SHAPE = {"entities": 5000, "relations": 5, "communities": 50, "noise": 0.2}


@pytest.fixture(scope="module")
def synthetic(module_of):
    return module_of("synthetic")


def test_edges_are_unique_within_bounds_and_as_many_as_asked(synthetic):
    edges = synthetic.triples(30_000, **SHAPE)
    assert edges.shape == (30_000, 3)
    assert edges.dtype == np.int32
    assert len(np.unique(edges, axis=0)) == 30_000
    assert edges.min() >= 0
    assert (edges.max(axis=0) < [5000, 5, 5000]).all()
    assert len(np.unique(edges[:, 1])) == 5


def test_the_seed_alone_decides(synthetic):
    edges = synthetic.triples(2000, **SHAPE, seed=3)
    assert (edges == synthetic.triples(2000, **SHAPE, seed=3)).all()
    assert (edges != synthetic.triples(2000, **SHAPE, seed=4)).any()


def test_relations_lead_from_community_to_community_but_for_noise(synthetic):
    edges = synthetic.triples(30_000, **SHAPE)
    led = edges[:, 0] + synthetic.SHIFT * (edges[:, 1] + 1)
    share = np.mean((edges[:, 2] - led) % SHAPE["communities"] == 0)
    assert 0.75 < share < 0.85


def test_the_first_ranks_have_most_edges(synthetic):
    drawn = synthetic._zipf(np.random.default_rng(0), 200_000, 1000)
    counts = np.bincount(drawn, minlength=1000)
    # The integral of the density over [k, k + 1), for ranks that begin at 1.
    edge = np.arange(1, 1002) ** (1 - synthetic.EXPONENT)
    expected = 200_000 * np.diff(edge) / (edge[-1] - 1)
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected.max())


@pytest.mark.parametrize("suffix", ["tsv", "parquet"])
def test_files_hold_the_edges_under_names(synthetic, tmp_path, suffix):
    edges = synthetic.triples(500, **SHAPE)
    rows, path = synthetic.table(edges, 5000), tmp_path / f"edges.{suffix}"
    synthetic.write(rows, path)
    if suffix == "parquet":
        found = pyarrow.parquet.read_table(path)
    else:
        options = pyarrow.csv.ReadOptions(column_names=rows.column_names)
        parse = pyarrow.csv.ParseOptions(delimiter="\t")
        found = pyarrow.csv.read_csv(path, read_options=options, parse_options=parse)
    assert found.equals(rows)
    names = dict(zip(edges[:, 0].tolist(), rows["head"].to_pylist(), strict=True))
    assert len(set(names.values())) == len(names)
    assert rows["relation"].to_pylist() == [f"r{kind}" for kind in edges[:, 1]]


def test_too_many_edges_are_refused(synthetic):
    with pytest.raises(SystemExit, match="need more entities"):
        synthetic.triples(10_000, entities=100, relations=2, communities=10, noise=0.1)
