"""Runs whose embeddings are float16 in files: half the traffic, and as good a model."""

import h5py
import numpy as np
import pytest

from biggraph import api
from biggraph.errors import ConfigError
from biggraph.storage.checkpoint import Checkpoint
from tests.train.test_orders import graph_path, run_of  # noqa: F401 - a fixture
from tests.train.test_trainer import event_lines

HALF = {"checkpoint__rows": "float16", "optimizer__name": "adagrad_row"}
WHOLE = {"checkpoint__rows": "float32", "optimizer__name": "adagrad_row"}


@pytest.mark.parametrize("order", ["beta", "comet"])
def test_half_rows_halve_the_traffic_and_train_as_well(graph_path, tmp_path, order):  # noqa: F811
    for name, changes in (("half", HALF), ("whole", WHOLE)):
        api.train(run_of(graph_path, tmp_path / name, order, **changes), quiet=True)
    half, whole = (event_lines(tmp_path / name, "epoch")[-1] for name in ("half", "whole"))
    share = (2 * 8 + 4) / (4 * 8 + 4)  # of a row of 8 floats with its sum
    assert half["bytes_read"] == pytest.approx(share * whole["bytes_read"], rel=0.01)
    assert half["bytes_written"] < 0.7 * whole["bytes_written"]
    assert half["loss"] == pytest.approx(whole["loss"], rel=0.02)


def test_half_rows_are_float16_in_files_and_float32_for_readers(graph_path, tmp_path):  # noqa: F811
    path = tmp_path / "run"
    api.train(run_of(graph_path, path, "beta", **HALF, train__epochs=2), quiet=True)
    result = api.train(run_of(graph_path, path, "beta", **HALF, train__epochs=3), quiet=True)
    assert result.epochs == 3
    checkpoint = Checkpoint.open(path)
    assert checkpoint.verify() == []
    for key, saved in checkpoint.state.present.heads.items():
        with h5py.File(path / saved.file.path) as file:
            assert (file["embeddings"].dtype, file["optimizer"].dtype) == (np.float16, np.float32)
            rows = checkpoint.rows(key, slice(None))
            assert rows.dtype == np.float32
            np.testing.assert_array_equal(rows, file["embeddings"][...])
    with pytest.raises(ConfigError, match=r"begun with checkpoint.rows = float16, found float32"):
        api.train(run_of(graph_path, path, "beta", **WHOLE), quiet=True)
