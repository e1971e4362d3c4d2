"""Starts coordinators and workers as processes, one for each line on standard input.

Forking a process that has imported everything, and has no threads yet, takes milliseconds.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time

import torch

from biggraph.dist.endpoint import Endpoint
from biggraph.dist.leaving import leave_threads_behind
from biggraph.dist.mailbox import MailboxLink, MailboxServer
from biggraph.dist.messages import Identity
from biggraph.dist.pairs import PairClient, PairLimits, PairServer
from biggraph.dist.transport import Handlers, open_server
from biggraph.sections import ClusterSection

SECRET = b"a secret of the tests"
PR_SET_PDEATHSIG = 1


def say(values: dict) -> None:
    # One write, so that the lines of several processes do not mix.
    os.write(1, json.dumps({"pid": os.getpid(), **values}).encode() + b"\n")


class LateKill:
    """Kills a process when nothing is left of Python but what waits for it to end."""

    def __init__(self, pid: int) -> None:
        # Modules are empty by then.
        self._kill, self._arguments, self._sleep = os.kill, (pid, signal.SIGKILL), time.sleep

    def __del__(self) -> None:
        self._kill(*self._arguments)
        self._sleep(0.5)


@leave_threads_behind()
def serve(term: str, port: int) -> None:
    """Be a coordinator that answers what a test asks for."""

    def handle(sender, incarnation, body):
        if "accept" in body:
            pairs.accept(body["accept"])
        if "end" in body:
            sys.late_kill = LateKill(body["end"])  # this module goes last
            ended.set()
        time.sleep(body.get("sleep", 0))
        counts = {"handled": server.handled, "refused": server.refused}
        return {**counts, "pairs": pairs.keys(), "echo": body.get("echo"), "sender": sender}

    def double(sender, header, payload):
        time.sleep(header.get("sleep", 0))
        return header, payload * 2

    ended = threading.Event()
    server = MailboxServer.open(
        handle, secret=SECRET, job="j", term=term, bind="127.0.0.1", port=port
    )
    pairs = PairServer(double, SECRET, server.endpoint, PairLimits(join_s=5.0, exchange_s=5.0))
    say({"port": server.port})
    ended.wait()
    sys.exit(3)


def offer(transport: str, port: int) -> None:
    """Be a coordinator on either transport that echoes requests and doubles vectors."""

    def handle(sender, incarnation, body):
        time.sleep(body.get("sleep", 0))
        return body

    handlers = Handlers(handle, lambda sender, header, payload: (header, payload * 2))
    section = ClusterSection(transport=transport, port=port)
    server = open_server(section, handlers, SECRET, "j")
    say({"endpoint": server.endpoint.model_dump()})
    signal.pause()


def work(term: str, port: int, sender: str, pause=signal.pause) -> None:
    """Be a worker that has exchanged a vector and then does nothing."""
    endpoint = Endpoint(term=term, host="127.0.0.1", port=port, job="j")
    identity = Identity(SECRET, "j", sender, 0)
    link = MailboxLink(identity, endpoint)
    link.call({"accept": sender}, 5.0)
    pair = PairClient(identity, endpoint, sender)
    pair.join(5.0)
    pair.exchange({}, torch.ones(3), 5.0)
    say({})
    pause()


def leave() -> None:
    """Be a coordinator and a worker in one that end without closing anything."""
    server = MailboxServer.open(
        lambda sender, incarnation, body: pairs.accept("k") or {},
        secret=SECRET,
        job="j",
        term="t",
        bind="127.0.0.1",
        port=0,
    )
    pairs = PairServer(lambda sender, header, payload: (header, payload), SECRET, server.endpoint)
    work("t", server.port, "k", pause=lambda: sys.exit(3))


def reaped(pid: int) -> int:
    """Return the exit code of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    say({})
    for line in sys.stdin:
        options = json.loads(line)
        if "reap" in options:
            say({"status": reaped(options["reap"])})
            continue
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            roles = {"serve": serve, "offer": offer, "work": work, "leave": leave}
            roles[options.pop("role")](**options)
            os._exit(0)
        if options["role"] == "leave":
            say({"status": reaped(pid)})
