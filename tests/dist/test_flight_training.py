"""A whole run over Flight: a coordinator, two workers, real processes."""

import json

import pytest

from biggraph import api
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.run import read_state

RUN = """
[graph]
path = "{graph}"
[model]
dimension = 8
[negatives]
in_batch = 4
uniform = 4
[train]
epochs = 2
batch_size = 8
threads = 1
[cluster]
workers = 2
transport = "flight"
sync_every = "0.05s"
[checkpoint]
path = "{run}"
"""


@pytest.mark.multiprocess
def test_two_workers_train_over_flight(write_tsv, tmp_path, pem):
    rows = [(f"e{i % 23}", f"r{i % 3}", f"e{i * 7 % 23}") for i in range(200)]
    api.import_graph([str(write_tsv(rows))], tmp_path / "graph", partitions=3, quiet=True)
    run = tmp_path / "run.toml"
    run.write_text(RUN.format(graph=tmp_path / "graph", run=tmp_path / "run"))
    tls = [f"cluster.tls_cert={pem['a.pem']}", f"cluster.tls_key={pem['a.key']}"]
    result = api.train(run, tls, quiet=True)
    assert result.epochs == 2
    endpoint = json.loads((tmp_path / "run" / "endpoint.json").read_text())
    assert endpoint["transport"] == "flight"
    assert endpoint["certificate"] == pem["a.pem"].read_text()
    state = read_state(tmp_path / "run")
    assert (state.epoch, len(state.leases)) == (2, 0)
    assert Checkpoint.open(tmp_path / "run", "latest").verify() == []
