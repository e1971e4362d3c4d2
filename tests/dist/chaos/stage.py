"""A run whose coordinator and workers are processes that a test may kill, freeze and start."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import biggraph

LONGEST_S = 120.0  # for anything to happen, on a machine that is busy with other things

RUN_FILE = """
[graph]
path = "{graph}"
[checkpoint]
path = "{run}"
[model]
dimension = 8
operator = "diagonal"
[negatives]
in_batch = 20
uniform = 20
reservoir = 40
[train]
threads = 1
epochs = {epochs}
[eval]
every = {every}
[cluster]
lease_ttl = {ttl}
wait = {wait}
"""


def make_graph(folder: Path, partitions: int = 4, edges: int = 400) -> Path:
    """Return a new graph of 80 entities."""
    numbers = random.Random(partitions)
    lines = [
        f"e{numbers.randrange(80)}\tr{numbers.randrange(3)}\te{numbers.randrange(80)}\n"
        for _ in range(edges)
    ]
    source = folder / "edges.tsv"
    source.write_text("".join(lines))
    biggraph.import_graph(
        [source], folder / "graph", partitions=partitions, holdout={"valid": 0.05}, quiet=True
    )
    return folder / "graph"


def eventually(what: str, condition: Callable[[], Any]) -> Any:
    """Return what `condition` returns once that is true; fail if it never is."""
    deadline = time.monotonic() + LONGEST_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
    return found


class Launcher:
    """The process from which all others are forked."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("BIGGRAPH_WORKER", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.dist.chaos.launcher"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=Path(__file__).parents[3],
            text=True,
        )
        self._codes: dict[int, int] = {}
        self.tell(None)

    def tell(self, options: dict | None) -> int | None:
        """Start a process, if there are options; learn which have ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write((json.dumps(options) if options else "") + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        self._codes |= {int(pid): code for pid, code in answer["ended"].items()}
        self._codes.pop(answer["started"], None)  # of an earlier process of that number
        return answer["started"]

    def code(self, pid: int) -> int | None:
        """Return the exit code of a process, negative for a signal; None while it lives."""
        if pid not in self._codes:
            self.tell(None)
        return self._codes.get(pid)

    def close(self) -> None:
        with self._process as process:
            process.stdin.close()


@dataclass
class Process:
    """One process of a stage."""

    launcher: Launcher
    pid: int
    out: Path

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        return self.launcher.code(self.pid)

    def send(self, number: int) -> None:
        """Send a signal, if the process still lives."""
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a crash would, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Return the exit code, once there is one."""
        eventually(f"{self.out.name} ends", lambda: self.code is not None)
        assert self.code is not None
        return self.code

    def said(self) -> str:
        """Return what it has printed."""
        return self.out.read_text() if self.out.exists() else ""

    def frozen(self) -> bool:
        """Return whether a signal has stopped it."""
        with suppress(FileNotFoundError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False


@dataclass
class Stage:
    """One run.

    Args:
        launcher: of its processes.
        folder: of the test, empty.
        graph: to train on.
        epochs: to train.
        ttl: of leases in seconds.
        every: epochs between validations.
        wait: how long workers wait for a coordinator, in seconds.
    """

    launcher: Launcher
    folder: Path
    graph: Path
    epochs: int = 2
    ttl: float = 60.0
    every: int = 0
    wait: float = 300.0
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run = self.folder / "run"
        self.kept = self.folder / "kept"
        self.kept.mkdir()
        self.run_file = self.folder / "run.toml"
        values = {name: getattr(self, name) for name in ("graph", "run", "epochs", "every", "wait")}
        self.run_file.write_text(RUN_FILE.format(ttl=self.ttl, **values))

    def start(
        self,
        verb: str,
        *arguments: str,
        out: str | None = None,
        config: str | None = None,
        **options: Any,
    ) -> Process:
        """Start `biggraph VERB run.toml ARGUMENTS…`; options as in `launcher`."""
        path = self.folder / f"{out or verb}-{len(self.processes)}.out"
        argv = [verb, config or str(self.run_file), *arguments]
        pid = self.launcher.tell({"argv": argv, "out": str(path), **options})
        assert pid is not None
        self.processes.append(Process(self.launcher, pid, path))
        return self.processes[-1]

    def coordinator(self, *arguments: str, **options: Any) -> Process:
        """Start a coordinator, which keeps the relation files that it removes."""
        return self.start("coordinator", *arguments, keep=str(self.kept), **options)

    def worker(self, name: str, *arguments: str, **options: Any) -> Process:
        """Start a worker of this name."""
        return self.start("worker", *arguments, "--name", name, out=name, **options)

    def finish(self, *processes: Process) -> None:
        """Wait until these processes have ended well."""
        for process in processes:
            assert process.wait() == 0, f"{process.out.name}:\n{process.said()}"

    def endpoint(self) -> dict | None:
        """Return where the coordinator says that it is."""
        with suppress(FileNotFoundError):
            return json.loads((self.run / "endpoint.json").read_text())
        return None

    def events(self, name: str) -> list[str]:
        """Return what a worker has written to its metrics."""
        path = self.run / f"metrics-{name}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["event"] for line in lines if line.endswith("}")]

    def close(self) -> None:
        """End every process."""
        for process in self.processes:
            process.send(signal.SIGKILL)
        for process in self.processes:
            process.wait()
