"""Coordinators and workers that are real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from biggraph.dist.endpoint import Endpoint
from biggraph.dist.mailbox import MailboxLink
from biggraph.dist.messages import Identity

SECRET = b"a secret of the tests"


class Processes:
    """Starts processes that a test may kill."""

    def __init__(self) -> None:
        environment = {**os.environ, "TORCH_CPP_LOG_LEVEL": "FATAL", "OMP_NUM_THREADS": "1"}
        self._parent = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("processes.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self._read()
        self.started: list[int] = []

    def _read(self) -> dict:
        return json.loads(self._parent.stdout.readline())

    def _start(self, **options) -> dict:
        self._parent.stdin.write(json.dumps(options) + "\n")
        self._parent.stdin.flush()
        said = self._read()
        self.started.append(said["pid"])
        return said

    def coordinator(self, term: str = "t", port: int = 0) -> tuple[int, Endpoint]:
        """Return the process and the endpoint of a new coordinator."""
        said = self._start(role="serve", term=term, port=port)
        return said["pid"], Endpoint(term=term, host="127.0.0.1", port=said["port"], job="j")

    def offer(self, transport: str, port: int = 0) -> tuple[int, Endpoint]:
        """Return the process and the endpoint of a new coordinator on either transport."""
        said = self._start(role="offer", transport=transport, port=port)
        return said["pid"], Endpoint(**said["endpoint"])

    def worker(self, endpoint: Endpoint, sender: str) -> int:
        """Return the process of a new worker that has joined its pair."""
        term, port = endpoint.term, endpoint.port
        return self._start(role="work", term=term, port=port, sender=sender)["pid"]

    def leaver(self) -> int:
        """Return the exit status of a process that closes nothing before it ends."""
        self._start(role="leave")
        return self._read()["status"]

    def reap(self, pid: int) -> int:
        """Return the exit status of a process, once it has ended."""
        self._parent.stdin.write(json.dumps({"reap": pid}) + "\n")
        self._parent.stdin.flush()
        return self._read()["status"]

    def kill_all(self) -> None:
        for pid in self.started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.started.clear()

    def close(self) -> None:
        self.kill_all()
        with self._parent as parent:
            parent.stdin.close()


@pytest.fixture(scope="session")
def parent():
    processes = Processes()
    yield processes
    processes.close()


@pytest.fixture
def processes(parent):
    """Return a starter of processes, which end with the test."""
    yield parent
    parent.kill_all()


@pytest.fixture
def connect():
    """Return a function that makes a link to an endpoint; it is closed with the test."""
    links = []

    def make(endpoint: Endpoint, sender: str = "w", secret: bytes = SECRET) -> MailboxLink:
        links.append(MailboxLink(Identity(secret, "j", sender, 0), endpoint))
        return links[-1]

    yield make
    for link in links:
        link.close()


@pytest.fixture(scope="session")
def pem(tmp_path_factory):
    """Return the paths of certificates with keys: "a" and "b" signed by themselves, "c" by "ca"."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make certificates")
    folder = tmp_path_factory.mktemp("pem")
    extensions = "subjectAltName=IP:127.0.0.1"
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    for name in ("a", "b", "ca", "c"):
        signer = ["-CA", "ca.pem", "-CAkey", "ca.key"] if name == "c" else []
        added = ["-addext", extensions] if name != "ca" else []
        subprocess.run(
            ["openssl", "req", "-x509", *new, "-subj", f"/CN={name}", *added, *signer,
             "-keyout", f"{name}.key", "-out", f"{name}.pem"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    return {path.name: path for path in folder.iterdir()}
