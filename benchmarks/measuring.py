"""How benchmarks measure: children with their memory and processor time, the machine, its load.

Knows nothing of graphs. Memory is that of a process and all its descendants, looked at twice a
second: `peak_rss_mib` counts pages that processes share once for each of them, `peak_pss_mib` once.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
PERIOD = 0.5  # seconds between two looks at a child's memory
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
PACKAGES = ("numpy", "torch", "numba", "pyarrow", "h5py", "biggraph", "torchbiggraph", "pykeen")

VERSIONS = """
import importlib.metadata as m, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""

SGEMM = """
import time
import numpy as np
a, b = (np.random.default_rng(i).random((1024, 1024), dtype=np.float32) for i in (0, 1))
c, best = np.empty_like(a), 1e9
np.matmul(a, b, out=c)
for _ in range(20):
    began = time.perf_counter()
    np.matmul(a, b, out=c)
    best = min(best, time.perf_counter() - began)
print(2 * 1024**3 / best / 1e9)
"""


def run(
    command: Sequence[str | Path], *, extra_env: Mapping[str, str] | None = None
) -> tuple[str, dict[str, float]]:
    """Run a command from the repository to its end, alone with what its benchmark left running.

    Args:
        command: program and arguments.
        extra_env: added to the environment, in which numeric libraries have one thread.

    Returns:
        its standard output and error, and what it used: `wall_s`, `cpu_s`, `peak_rss_mib`,
        `peak_pss_mib`; `others_cpus`, the cores that all others kept busy (what a hypervisor took
        counts); `load`, of the last minute, at the end.

    Raises:
        SystemExit: it failed; the end of what it said is in the message.
    """
    environment = {**os.environ, **ONE_THREAD, **(extra_env or {})}
    with tempfile.TemporaryFile("w+") as said:
        began, busy = time.perf_counter(), _busy()
        before = os.times()
        child = subprocess.Popen(
            [str(word) for word in command],
            cwd=REPOSITORY,
            env=environment,
            stdout=said,
            stderr=said,
        )
        peaks = _watch(child)
        wall, after = time.perf_counter() - began, os.times()
        cpu = sum(after[2:4]) - sum(before[2:4])
        said.seek(0)
        output = said.read()
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{output[-3000:]}")
    used = {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), **peaks}
    used["others_cpus"] = round(max(_busy() - busy - cpu, 0) / wall, 2)
    return output, used | {"load": round(os.getloadavg()[0], 2)}


def _watch(child: subprocess.Popen[bytes]) -> dict[str, float]:
    """Wait for a child, and return the most memory that it had."""
    peaks = {"peak_rss_mib": 0, "peak_pss_mib": 0}
    while True:
        try:
            child.wait(PERIOD)
        except subprocess.TimeoutExpired:
            for name, value in _memory(child.pid).items():
                peaks[name] = max(peaks[name], value)
        else:
            return peaks


def _memory(pid: int) -> dict[str, int]:
    rss = pss = 0
    try:
        child = psutil.Process(pid)
        for process in (child, *child.children(recursive=True)):
            found = process.memory_full_info()
            rss, pss = rss + found.rss, pss + getattr(found, "pss", found.rss)
    except psutil.Error:
        pass  # it ended between two looks
    return {"peak_rss_mib": rss >> 20, "peak_pss_mib": pss >> 20}


def _busy() -> float:
    """Return processor seconds since the machine started, of everybody."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def sgemm_gflops() -> float:
    """Return the rate of one thread at 1024 x 1024 float32 products: the best of 20."""
    found = subprocess.run(
        [sys.executable, "-c", SGEMM], env={**os.environ, **ONE_THREAD}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return float(found.stdout)


def versions(python: str | Path) -> dict[str, str]:
    """Return the versions of what matters in an environment."""
    found = subprocess.run(
        [str(python), "-c", VERSIONS, *PACKAGES], check=True, capture_output=True, text=True
    )
    return dict(json.loads(found.stdout))


def machine() -> dict[str, Any]:
    """Return what kind of machine this is, and how busy."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.startswith("model name")), "")
    memory = psutil.virtual_memory().total
    return {
        "cpu": model, "cpus": os.cpu_count(), "memory_gib": round(memory / 2**30, 1),
        "system": platform.platform(), "load": [round(load, 2) for load in os.getloadavg()],
    }  # fmt: skip


def emit(benchmark: str, measurement: str, **values: Any) -> dict[str, Any]:
    """Print one JSON line, and return it."""
    line = {"benchmark": benchmark, "measurement": measurement, **values}
    print(json.dumps(line), flush=True)
    return line
