"""Floors on what small real graphs reach, with one partition and with several."""

import pytest

from biggraph import api
from biggraph.config import make_config


def find(folder, split):
    return [str(path) for path in folder.glob(f"{split}.tsv*")]


@pytest.mark.parametrize(
    ("partitions", "memory", "floor"), [(1, "1MB", 0.83), (3, "1MB", 0.83), (3, "50KB", 0.75)]
)
def test_umls_complex(datasets, tmp_path, partitions, memory, floor):
    """One partition, three trained together, and three one bucket at a time."""
    folder = datasets("umls")
    api.import_graph(
        find(folder, "train"), tmp_path / "graph", valid=find(folder, "valid"),
        test=find(folder, "test"), partitions=partitions, quiet=True,
    )  # fmt: skip
    config = make_config(
        {
            "graph": {"path": str(tmp_path / "graph")},
            "model": {"dimension": 64},
            "optimizer": {"name": "adagrad"},
            "train": {"epochs": 15, "batch_size": 200, "threads": 2, "memory": memory},
            "checkpoint": {"path": str(tmp_path / "run")},
        }
    )
    api.train(config, quiet=True)
    model = api.evaluate(tmp_path / "run", quiet=True).metrics
    popular = api.evaluate(tmp_path / "run", baseline=True, quiet=True).metrics
    assert model.mrr > max(floor, popular.mrr)
    assert model.hits_at_10 > 0.95
