"""Devices: which one a run file means, and what this process can have of it.

Names and numbers only. Knows nothing of tables, steps or runs; what differs between devices is
chosen in `train.build`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from biggraph.errors import ConfigError

# Number of a process among those of its machine, as launchers say it; the first that is set.
RANK_VARIABLES = ("LOCAL_RANK", "SLURM_LOCALID")

# Of free memory on a GPU, what tables may take; the rest is for batches.
_SHARE_FOR_TABLES = 0.8


def find_device(name: str, environment: Mapping[str, str] = os.environ) -> torch.device:
    """Return the device that `train.device` names, for this process.

    Args:
        name: "cpu"; "cuda:N" for GPU N; "cuda" for the GPU of this process: of the processes of one
            machine, the i-th takes the i-th, and beyond the last they begin anew.
        environment: says which process this is, see `RANK_VARIABLES`.

    Raises:
        ConfigError: there is no such GPU; says what was found.
    """
    if name == "cpu":
        return torch.device(name)
    count, (_, _, number) = torch.cuda.device_count(), name.partition(":")
    if not count:
        raise ConfigError(f'train.device = "{name}": {_why_none()}, or set train.device = "cpu"')
    rank = next((environment[key] for key in RANK_VARIABLES if environment.get(key)), "0")
    index = int(number) if number else int(rank) % count
    if index >= count:
        found = ", ".join(f"{i}: {torch.cuda.get_device_name(i)}" for i in range(count))
        raise ConfigError(f'train.device = "{name}": torch finds {count} GPU(s) here, {found}')
    return torch.device("cuda", index)


def describe_gpu(gpu: torch.device) -> str:
    """Return what people call a GPU, such as "cuda:0 (NVIDIA H200)"."""
    return f"{gpu} ({torch.cuda.get_device_name(gpu)})"


def room_for_tables(gpu: torch.device) -> int:
    """Return how many bytes of tables a GPU has room for now."""
    free, _ = torch.cuda.mem_get_info(gpu)
    return int(free * _SHARE_FOR_TABLES)


def _why_none() -> str:
    version, built_with = torch.__version__, torch.version.cuda
    if built_with is None:
        return f"torch {version} is built without CUDA; install a build with it"
    return (
        f"torch {version} (CUDA {built_with}) finds no GPU; see that `nvidia-smi` lists one and "
        "that CUDA_VISIBLE_DEVICES does not hide it"
    )
