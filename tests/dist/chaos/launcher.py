"""Runs `biggraph` as processes of their own, one for each line of JSON on standard input.

Forking a process that has imported everything, and has no threads yet, takes milliseconds where a
start from nothing takes seconds. A child is the command line as it is shipped; only what its line
asks for is different:

    argv     arguments of `biggraph`
    env      added to the environment
    out      file for standard output and errors, appended to
    netns    network namespace to enter
    pace     seconds that each bucket takes longer
    strike   {"point", "hit", "signal"}: the signal that the process sends itself before the
             hit-th (from 1) of the file operations of this name; see `crash_point`
    keep     folder that gets every file of relation parameters before it is removed
    copies   file that gets the worker's copy of the relation parameters at the end of the run
    watch    file that gets the name of each file operation
    lockless true: as on a file system that has no locks

Each line is answered with {"started": process or null, "ended": {process: exit code}}.
"""

import ctypes
import json
import os
import re
import signal
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch

from biggraph import cli
from biggraph.dist.parameters import SharedParameters
from biggraph.storage import fsops, lock
from biggraph.train.bucket import BucketTrainer

PR_SET_PDEATHSIG = 1
CLONE_NEWNET = 0x40000000

forever = ExitStack()


def crash_point(operation: str, path: Path) -> str:
    """Return the name of a file operation: what is done to which kind of file.

    >>> crash_point("link", Path("/runs/log/00000003"))
    'link log'
    >>> crash_point("sync", Path("/runs/endpoint.json.0123456789ab.tmp"))
    'sync endpoint temporary'
    """
    folders = [part for part in path.parts if part in ("log", "parts", "relations")]
    kind = folders[-1] if folders else re.sub(r"[.-].*", "", path.name)
    if kind not in ("log", "parts", "relations", "endpoint", "config", "secret", "probe", "lock"):
        kind = "run"
    temporary = " temporary" if path.name.endswith(fsops.TEMPORARY) else ""
    return f"{operation} {kind}{temporary}"


def observe(options: dict) -> None:
    """Watch the file operations of this process, as its line says."""
    strike, keep, watch = options.get("strike"), options.get("keep"), options.get("watch")
    left = strike["hit"] if strike else 0

    def observer(operation: str, path: Path) -> None:
        nonlocal left
        if keep and operation == "remove" and path.parent.name == "relations":
            with suppress(FileExistsError, FileNotFoundError):
                os.link(path, Path(keep) / path.name)
        name = crash_point(operation, path)
        if watch:
            with open(watch, "a") as file:
                file.write(name + "\n")
        if strike and name == strike["point"]:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), strike["signal"])

    forever.enter_context(fsops.observed(observer))


def slow_down(seconds: float) -> None:
    """Make every bucket take longer."""
    train = BucketTrainer.train

    def slowly(self, *args):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._stop.is_set():
            time.sleep(0.01)
        return train(self, *args)

    BucketTrainer.train = slowly


def keep_copies(path: str) -> None:
    """Write the relation parameters as the worker has them when the run is finished."""
    end = SharedParameters.end

    def ended(self):
        end(self)
        np.savez(path, **self._arrays)

    SharedParameters.end = ended


def lose_locks(_: bool) -> None:
    """Let nobody have a lock."""

    def refuse(file, operation):
        raise OSError("no locks here")

    lock.fcntl.flock = refuse


def enter_network(name: str) -> None:
    """Move this process to another network."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {name}")


def become(options: dict) -> None:
    """Make a forked child what its line asks for."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    out = os.open(options["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.environ.update(options.get("env", {}))
    for key, prepare in PREPARE.items():
        if options.get(key):
            prepare(options[key])
    if {"strike", "keep", "watch"} & options.keys():
        observe(options)
    sys.argv = ["biggraph", *options["argv"]]


PREPARE = {
    "netns": enter_network,
    "pace": slow_down,
    "copies": keep_copies,
    "lockless": lose_locks,
}


def reaped() -> dict[int, int]:
    """Return the exit codes of children that have ended."""
    codes = {}
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            codes[found[0]] = os.waitstatus_to_exitcode(found[1])
    return codes


def serve() -> dict | None:
    """Fork a child for each line; return its options in the child, None in the parent."""
    for line in iter(sys.stdin.readline, ""):
        pid = None
        if line.strip():
            pid = os.fork()
            if pid == 0:
                return json.loads(line)
        answer = {"started": pid, "ended": reaped()}
        os.write(1, json.dumps(answer).encode() + b"\n")
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = serve()
    if asked is not None:
        become(asked)
        cli.main()
