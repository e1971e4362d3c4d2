"""Which device a run file means, and what is said where there is none."""

import pytest
import torch

from biggraph.config import make_config
from biggraph.errors import ConfigError
from biggraph.train.devices import find_device
from biggraph.train.local import _environment


@pytest.fixture
def gpus(monkeypatch):
    """Return a function that lets torch find so many GPUs."""

    def find(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Model {index}")

    return find


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1"])
def test_a_run_file_names_a_device(name):
    assert make_config({"train": {"device": name}}).train.device == name


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", 0])
def test_other_names_are_refused_with_what_is_expected(name):
    with pytest.raises(ConfigError, match=r'train.device = .*expected "cpu", "cuda"'):
        make_config({"train": {"device": name}})


def test_the_processor_needs_no_gpu(gpus):
    gpus(0)
    assert find_device("cpu", {}) == torch.device("cpu")


@pytest.mark.parametrize(
    ("environment", "index"),
    [({}, 0), ({"LOCAL_RANK": "1"}, 1), ({"LOCAL_RANK": "5"}, 2), ({"SLURM_LOCALID": "2"}, 2),
     ({"LOCAL_RANK": "", "SLURM_LOCALID": "1"}, 1)],
)  # fmt: skip
def test_each_process_of_a_machine_takes_a_gpu(gpus, environment, index):
    gpus(3)
    assert find_device("cuda", environment) == torch.device("cuda", index)
    assert find_device("cuda:2", environment) == torch.device("cuda", 2)


@pytest.mark.parametrize("index", [0, 2])
def test_local_workers_are_told_which_they_are(gpus, index):
    gpus(3)
    assert find_device("cuda", _environment(f"worker-{index}")) == torch.device("cuda", index)


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(gpus):
    gpus(2)
    with pytest.raises(ConfigError, match=r'"cuda:2": torch finds 2 .*0: Model 0, 1: Model 1'):
        find_device("cuda:2", {})


@pytest.mark.parametrize(
    ("built_with", "said"), [(None, "built without CUDA"), ("12.8", "CUDA_VISIBLE_DEVICES")]
)
def test_without_a_gpu_the_message_says_why(gpus, monkeypatch, built_with, said):
    gpus(0)
    monkeypatch.setattr(torch.version, "cuda", built_with)
    with pytest.raises(ConfigError, match=rf'"cuda": torch .*{said}.*set train.device = "cpu"'):
        find_device("cuda", {})
